"""The arithmetic of a budget: what was spent of it, what is reserved, and what an attempt may use.

Pure, and for one caller at a time: :mod:`revkit.scheduling.limits` shares it between threads, and
:mod:`revkit.dask.shared_budget` between machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from .events import Stop, StopKind

if TYPE_CHECKING:
    from ..task.tokens import Price

__all__ = ["PICO", "ZERO", "Account", "Amounts", "Refusal", "Reservation", "as_call"]

#: Picodollars in a dollar. Integers add up exactly, in whatever order amounts are returned.
PICO = 10**12


class Amounts(NamedTuple):
    """An amount in both units of a budget."""

    tokens: int = 0
    pico: int = 0  #: picodollars

    def plus(self, other: Amounts, times: int = 1) -> Amounts:
        return Amounts(self.tokens + times * other.tokens, self.pico + times * other.pico)


ZERO = Amounts()


class Refusal(Enum):
    """Why a budget has no room for an attempt."""

    #: Not now: attempts in flight may return a part of what they reserved.
    LATER = "later"
    #: Never: even with nothing in flight, what was spent leaves too little.
    NEVER = "never"


@dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """What one attempt may use at most.

    Attributes:
        prompt, completion: in tokens.
        price: of a token, where it is known.
    """

    prompt: int
    completion: int
    price: Price | None = None

    @property
    def amounts(self) -> Amounts:
        return self.used(self.prompt, self.completion)

    def used(self, prompt: int, completion: int) -> Amounts:
        """The amounts of so many tokens at this price."""
        usd = 0.0 if self.price is None else self.price.cost(prompt, completion)
        return Amounts(prompt + completion, round(usd * PICO))


@dataclass(slots=True)
class Account:
    """The state of a budget.

    ``spent`` and ``reserved`` together never exceed the limits as long as no attempt uses more
    than it reserved.

    Attributes:
        limits: tokens and picodollars; None: unlimited, and only counted.

    >>> account = Account((1000, None))
    >>> account.reserve(Amounts(600))
    >>> account.room(Amounts(300)), account.refusal(Amounts(500))
    (1, <Refusal.LATER: 'later'>)
    """

    limits: tuple[int | None, int | None]
    spent: Amounts = ZERO
    reserved: Amounts = ZERO

    def room(self, need: Amounts) -> int | None:
        """How many attempts that need so much fit in now; None: any number."""
        used = self.spent.plus(self.reserved)
        rooms = [
            max(0, limit - used) // amount
            for limit, used, amount in zip(self.limits, used, need, strict=True)
            if limit is not None and amount
        ]
        return min(rooms, default=None)

    def refusal(self, need: Amounts) -> Refusal | None:
        """Why so much cannot be reserved; None: it can."""
        if self._exceeds(self.spent.plus(need)):
            return Refusal.NEVER
        return Refusal.LATER if self._exceeds(self.spent.plus(self.reserved).plus(need)) else None

    def _exceeds(self, amounts: Amounts) -> bool:
        pairs = zip(amounts, self.limits, strict=True)
        return any(limit is not None and amount > limit for amount, limit in pairs)

    def reserve(self, amounts: Amounts) -> None:
        self.reserved = self.reserved.plus(amounts)

    def settle(self, reserved: Amounts, used: Amounts) -> None:
        self.reserved = self.reserved.plus(reserved, -1)
        self.spent = self.spent.plus(used)

    def exhausted(self, need: Amounts) -> Stop:
        """The stop of a run whose next attempt needs more than is left."""
        needs = f"{need.tokens:,} tokens"
        if need.pico:
            needs += f" (${need.pico / PICO:.6f})"
        reason = (
            f"the next attempt may need {needs}, more than is left of {self}; "
            "to go on, give it more"
        )
        return Stop(StopKind.BUDGET, reason, cancels=False)

    def __str__(self) -> str:
        """The budget as the user writes it, and what was used of it."""
        tokens, pico = self.limits
        return as_call(
            "Budget",
            tokens=tokens,
            usd=None if pico is None else pico / PICO,
            spent_tokens=self.spent.tokens,
            spent_usd=self.spent.pico / PICO or None,
            reserved_tokens=self.reserved.tokens or None,
            reserved_usd=self.reserved.pico / PICO or None,
        )


def as_call(name: str, **arguments: float | None) -> str:
    """The call of a constructor, without the arguments that are None."""
    shown = ", ".join(f"{k}={v!r}" for k, v in arguments.items() if v is not None)
    return f"{name}({shown})"
