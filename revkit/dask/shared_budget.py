"""A budget that runs on a cluster share: what was granted to each partition, and what is free."""

from __future__ import annotations

from functools import reduce

from ..scheduling.accounts import ZERO, Account, Amounts, Refusal
from ..scheduling.events import Stop

__all__ = ["SharedBudget"]


class SharedBudget:
    """Grants parts of a :class:`~revkit.Budget` to the sessions of the runs that share it.

    A grant counts as used until the session reports that it holds less. So nothing is granted
    twice, and a lost message costs nothing for long, because the next one repeats it.

    A session whose request was refused comes first when there is more. Until then the others get
    nothing, and learn that the budget is short, so that they return what they do not use.

    Args:
        limits: tokens and picodollars; None: unlimited.
        spent: before.

    >>> budget = SharedBudget((1000, None))
    >>> budget.grant("one", Amounts(300), attempts=5)
    Amounts(tokens=900, pico=0)
    >>> budget.grant("two", Amounts(300), attempts=1), budget.is_short_for("one")
    (None, True)
    >>> budget.update("one", granted=Amounts(400), spent=Amounts(350))
    >>> budget.grant("two", Amounts(300), attempts=1), budget.is_short_for("one")
    (Amounts(tokens=300, pico=0), False)
    """

    def __init__(self, limits: tuple[int | None, int | None], spent: Amounts = ZERO):
        self.limits = limits
        self._closed = spent  #: spent by sessions that are closed
        #: session -> what it holds of all that it was granted, and what it has spent of that
        self._shares: dict[str, tuple[Amounts, Amounts]] = {}
        #: sessions whose request was refused, in order; the values mean nothing
        self._queue: dict[str, None] = {}

    @property
    def granted(self) -> Amounts:
        """What is spent, and what sessions may still spend."""
        return reduce(Amounts.plus, (granted for granted, _ in self._shares.values()), self._closed)

    @property
    def spent(self) -> Amounts:
        """What is spent, as far as it was reported."""
        return reduce(Amounts.plus, (spent for _, spent in self._shares.values()), self._closed)

    @property
    def _account(self) -> Account:
        return Account(self.limits, self.spent, self.granted.plus(self.spent, -1))

    def update(self, session: str, *, granted: Amounts, spent: Amounts) -> None:
        """A session reports what it holds of all that it was granted, and has spent of that."""
        self._shares[session] = granted, spent

    def grant(self, session: str, need: Amounts, *, attempts: int) -> Amounts | None:
        """Grant what so many attempts may use, or as many of them as there is room for.

        Returns:
            None: there is no room for even one, or others come first. Ask again.
        """
        if not attempts:
            self._queue.pop(session, None)
            return None
        self._queue.setdefault(session)
        if next(iter(self._queue)) != session:
            return None
        attempts, room = attempts if len(self._queue) == 1 else 1, self._account.room(need)
        attempts = attempts if room is None else min(attempts, room)
        if attempts < 1:
            return None
        del self._queue[session]
        granted, spent = self._shares.get(session, (ZERO, ZERO))
        self._shares[session] = granted.plus(need, attempts), spent
        return ZERO.plus(need, attempts)

    def is_short_for(self, session: str) -> bool:
        """Whether other sessions wait for what this one does not use."""
        return any(other != session for other in self._queue)

    def exhausted(self, need: Amounts) -> Stop | None:
        """The stop of a run for whose next attempt too little is left, whatever is returned."""
        account = self._account
        return account.exhausted(need) if account.refusal(need) is Refusal.NEVER else None

    def close(self, session: str, *, lost: bool) -> None:
        """A session is closed; if its worker died, all that it held may have been billed."""
        self._queue.pop(session, None)
        granted, spent = self._shares.pop(session, (ZERO, ZERO))
        self._closed = self._closed.plus(granted if lost else spent)
