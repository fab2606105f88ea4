"""The arithmetic of the limits: a token bucket for a rate, an account for a budget.

Pure, and for one caller at a time: :mod:`revkit.scheduling.limits` shares them between runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..task.tokens import Price

__all__ = ["Account", "Refusal", "Reservation", "TokenBucket"]

#: Seconds by which a start may be early: what a late timer lost is made up for.
_SLACK = 0.02
#: The share of the limit that is used; see the bound in :class:`TokenBucket`.
_SHARE = 1 - _SLACK


class TokenBucket:
    """A token bucket that is refilled evenly, with hardly any burst.

    The Generic Cell Rate Algorithm in its virtual scheduling form (ITU-T Recommendation I.371,
    annex A), whose whole state is one time: when the bucket is full again. A start is allowed
    when it is full to within the slack, and takes its amount then, be it more than the bucket
    holds: the debt delays the next start. So no amount is too large to be ever allowed.

    The starts of any window of w seconds take at most 0.98 x limit x (w + 0.02) / 60, and the
    last one of them in addition. For every w of 1 or more that is at most limit x w / 60 and the
    last one; for 60 s and starts of 1 it is at most the limit, rounded up.

    Args:
        per_minute: the limit.

    >>> bucket = TokenBucket(per_minute=60)
    >>> bucket.take(1, now=100.0)
    >>> round(bucket.ready, 6)
    101.000408
    """

    def __init__(self, per_minute: float):
        self._seconds_each = 60 / (per_minute * _SHARE)
        #: when the bucket is full again
        self._full = float("-inf")

    @property
    def ready(self) -> float:
        """The earliest time of the next start; it may be over."""
        return self._full - _SLACK

    def take(self, amount: float, now: float) -> None:
        """Take an amount, or put back a negative one, of which a full bucket keeps nothing.

        ``now`` must not go back.
        """
        self._full = max(now, self._full) + amount * self._seconds_each


class Refusal(Enum):
    """Why a budget has no room for an attempt."""

    #: Not now: what the attempts in flight have reserved may come back.
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
    def amounts(self) -> tuple[int, int]:
        """In tokens, and in picodollars."""
        return self.used(self.prompt, self.completion)

    def used(self, prompt: int, completion: int) -> tuple[int, int]:
        """The same of what was used: tokens and picodollars."""
        usd = 0.0 if self.price is None else self.price.cost(prompt, completion)
        return prompt + completion, round(usd * PICO)


#: Picodollars in a dollar. Whole ones add up exactly, whatever comes back in whatever order.
PICO = 10**12


@dataclass(slots=True)
class Account:
    """What was spent of a limit, and what is reserved of it.

    ``spent + reserved`` never exceeds the limit while nobody uses more than was reserved.

    Attributes:
        limit: None: there is none, and it only counts.
    """

    limit: int | None
    spent: int = 0
    reserved: int = 0

    def refusal(self, amount: int) -> Refusal | None:
        """Why so much cannot be reserved; None: it can."""
        if self.limit is None:
            return None
        if self.spent + amount > self.limit:
            return Refusal.NEVER
        return Refusal.LATER if self.spent + self.reserved + amount > self.limit else None

    def reserve(self, amount: int) -> None:
        self.reserved += amount

    def settle(self, reserved: int, used: int) -> None:
        self.reserved -= reserved
        self.spent += used
