"""A budget that runs share: what each partition was given of it, and what is free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..scheduling.buckets import PICO

__all__ = ["Amounts", "Purse"]

Amounts = tuple[int, int]  #: tokens and picodollars


@dataclass(slots=True)
class _Share:
    """Of one seat: all that it was given and has not given back, and what is spent of that."""

    given: Amounts = (0, 0)
    spent: Amounts = (0, 0)


def _sum(amounts: Iterable[Amounts]) -> Amounts:
    tokens = pico = 0
    for one in amounts:
        tokens, pico = tokens + one[0], pico + one[1]
    return tokens, pico


class Purse:
    """Gives parts of a :class:`~revkit.Budget` to the seats whose runs have it.

    What a seat was given counts as used until the seat says that it has less. So nothing is given
    twice, and a message that is lost costs nothing for long: the next one says it again.

    Args:
        limit: tokens and picodollars; None: any number.
        spent: before.

    Who asks in vain comes first when there is more: others get nothing before, and are told that
    it is short, so that they give back what they do not use.

    >>> purse = Purse((1000, None))
    >>> purse.give("a seat", (300, 0), attempts=5)
    (900, 0)
    >>> purse.give("another", (300, 0), attempts=1), purse.is_short_for("a seat")
    (None, True)
    >>> purse.hear("a seat", given=(400, 0), spent=(350, 0))
    >>> purse.give("another", (300, 0), attempts=1), purse.is_short_for("a seat")
    ((300, 0), False)
    """

    def __init__(self, limit: tuple[int | None, int | None], spent: Amounts = (0, 0)):
        self.limit = limit
        self._closed = spent  #: spent by seats that are closed
        self._shares: dict[str, _Share] = {}
        #: seats that have asked in vain, in order; the values say nothing
        self._queue: dict[str, None] = {}

    @property
    def in_use(self) -> Amounts:
        """What is spent, and what seats may spend."""
        return _sum([self._closed, *(share.given for share in self._shares.values())])

    @property
    def spent(self) -> Amounts:
        """What is spent, as far as it was told."""
        return _sum([self._closed, *(share.spent for share in self._shares.values())])

    def hear(self, seat: str, *, given: Amounts, spent: Amounts) -> None:
        """A seat says what it still has of all that it was given, with what it has spent of it."""
        self._shares[seat] = _Share(given, spent)

    def give(self, seat: str, need: Amounts, *, attempts: int) -> Amounts | None:
        """Give what so many attempts may use, or as many of them as there is room for.

        Returns:
            None: there is no room even for one, or others come first. Ask again.
        """
        if not attempts:
            self._queue.pop(seat, None)
            return None
        self._queue.setdefault(seat)
        if next(iter(self._queue)) != seat:
            return None
        rooms = [
            (limit - used) // amount
            for limit, used, amount in zip(self.limit, self.in_use, need, strict=True)
            if limit is not None and amount > 0
        ]
        attempts = min([attempts if len(self._queue) == 1 else 1, *rooms])
        if attempts < 1:
            return None
        del self._queue[seat]
        given = need[0] * attempts, need[1] * attempts
        share = self._shares.setdefault(seat, _Share())
        share.given = _sum([share.given, given])
        return given

    def is_short_for(self, seat: str) -> bool:
        """Whether others wait for what the seat does not use."""
        return any(other != seat for other in self._queue)

    def is_used_up(self, need: Amounts) -> bool:
        """Whether it is too little for an attempt, even when all that is not spent comes back."""
        return any(
            limit is not None and used + amount > limit
            for limit, used, amount in zip(self.limit, self.spent, need, strict=True)
        )

    def close(self, seat: str, *, lost: bool) -> None:
        """A seat is closed; where it was lost, all that it had may have been billed."""
        self._queue.pop(seat, None)
        share = self._shares.pop(seat, _Share())
        self._closed = _sum([self._closed, share.given if lost else share.spent])

    def why_used_up(self, need: Amounts) -> str:
        """What the user is told of it."""
        needs, left = f"{need[0]:,} tokens", []
        tokens, pico = self.limit
        if need[1]:
            needs += f" (${need[1] / PICO:.6f})"
        if tokens is not None:
            left.append(f"tokens={tokens!r}")
        if pico is not None:
            left.append(f"usd={pico / PICO!r}")
        return (
            f"the next attempt may need {needs}, more than is left of Budget({', '.join(left)}); "
            "to go on, give it more"
        )
