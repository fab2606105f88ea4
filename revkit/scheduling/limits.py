"""Limits that runs share: :class:`RateLimit` in time, :class:`Budget` in tokens and money.

The arithmetic is in :mod:`revkit.scheduling.buckets` and :mod:`revkit.scheduling.accounts`. Here
is what users write, with one lock for each object, because several threads may use it. Nothing
waits while it holds a lock.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from threading import Lock
from typing import Any

from ..errors import UsageError
from ..task.tokens import Price
from .accounts import PICO, ZERO, Account, Amounts, Refusal, Reservation, as_call
from .buckets import TokenBucket
from .events import Stop

__all__ = ["Budget", "BudgetLedger", "RateLimit"]


class RateLimit:
    """Never more requests, or tokens, in a minute than these.

    Starts are spread evenly, because providers also look at less than a minute; so a run begins
    with one request, not with a minute's worth of them. In any 60 s at most
    ``requests_per_minute`` requests start. Tokens are counted as estimated when an attempt
    starts, and corrected when its reply is there. In any 60 s those that start add up to at most
    ``tokens_per_minute``; where single requests need more than a second's worth, the last one of
    them may exceed it. A request that needs more than a whole minute's tokens is let through when
    nothing is owed, and what comes after it waits for longer.

    The same object given to several runs is shared by them. Times are in seconds on one
    monotonic clock.

    Args:
        requests_per_minute: requests that may start in a minute; None: any number.
        tokens_per_minute: tokens of prompts and replies together; None: any number.

    Raises:
        UsageError: neither is given, or a number that is impossible.

    >>> limit = RateLimit(requests_per_minute=60)
    >>> print(limit.reserve(tokens=500, now=10.0))
    None
    >>> round(limit.reserve(tokens=500, now=10.0))
    11
    """

    def __init__(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ):
        given = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        _check("RateLimit", given)
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._requests = TokenBucket(requests_per_minute)
        self._tokens = TokenBucket(tokens_per_minute)
        self._now = -math.inf  #: the latest time of any call
        self._lock = Lock()
        #: the identity under which copies share one limit: on the machines of a cluster
        self.identity = uuid.uuid4().hex

    def reserve(self, tokens: int, now: float) -> float | None:
        """Let a request of about so many tokens start.

        Returns:
            None: it may start, and is counted. Else the time to ask again, later than ``now``.
        """
        with self._lock:
            now = self._latest(now)
            ready = max(self._requests.ready, self._tokens.ready)
            if ready > now:
                return ready
            self._requests.take(1, now)
            self._tokens.take(tokens, now)
            return None

    def correct(self, estimated: int, used: int, now: float) -> None:
        """Count the tokens that a request used instead of its estimate."""
        with self._lock:
            self._tokens.take(used - estimated, self._latest(now))

    def _latest(self, now: float) -> float:
        """``now``, or a later time of another run: the lock is not taken in order of time."""
        self._now = max(self._now, now)
        return self._now

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_now": -math.inf}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy counts for itself; on a Dask cluster, all copies of one are one limit."""
        self.__dict__.update(state, _lock=Lock())
        self._requests = TokenBucket(self.requests_per_minute)
        self._tokens = TokenBucket(self.tokens_per_minute)

    def __repr__(self) -> str:
        return as_call(
            "RateLimit",
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
        )


class BudgetLedger:
    """What attempts have reserved and spent of a budget. Usable from any thread."""

    def __init__(self, account: Account):
        self._account = account
        self._in_flight: set[Reservation] = set()
        self._lock = Lock()

    def reserve(
        self, prompt: int, completion: int, price: Price | None = None
    ) -> Reservation | Refusal:
        """Reserve what one attempt may use at most, in tokens; ``price`` makes it dollars.

        Returns:
            The reservation, to be given to :meth:`settle` or :meth:`release` once. Else
            ``Refusal.LATER``: attempts in flight, of any run, hold what is missing;
            or ``Refusal.NEVER``: the budget is used up for an attempt of this size.
        """
        reservation = Reservation(prompt, completion, price)
        need = reservation.amounts
        with self._lock:
            refusal = self._account.refusal(need)
            if refusal is not None:
                return refusal
            self._account.reserve(need)
            self._in_flight.add(reservation)
            return reservation

    def settle(
        self,
        reservation: Reservation,
        prompt_used: int | None = None,
        completion_used: int | None = None,
    ) -> None:
        """Count what an attempt used, in tokens; None, if unknown, counts all that it reserved.

        Raises:
            KeyError: the reservation was settled or released before.
        """
        prompt = reservation.prompt if prompt_used is None else prompt_used
        completion = reservation.completion if completion_used is None else completion_used
        self._close(reservation, reservation.used(prompt, completion))

    def release(self, reservation: Reservation) -> None:
        """Give all of a reservation back: the attempt was certainly not billed.

        Raises:
            KeyError: the reservation was settled or released before.
        """
        self._close(reservation, ZERO)

    def _close(self, reservation: Reservation, used: Amounts) -> None:
        with self._lock:
            self._in_flight.remove(reservation)
            self._account.settle(reservation.amounts, used)

    def exhausted(self, prompt: int, completion: int, price: Price | None = None) -> Stop:
        """The stop of a run whose next attempt was refused with ``Refusal.NEVER``."""
        with self._lock:
            return self._account.exhausted(Reservation(prompt, completion, price).amounts)


class Budget(BudgetLedger):
    """Never more tokens, or dollars, than these.

    Each attempt reserves its estimated prompt and ``max_tokens``, and settles to what it used. An
    attempt that may have been billed without a count (it was cancelled, say) counts as all that
    it had reserved. So the budget is kept as long as no prompt has more tokens than estimated;
    where one has, it is exceeded by that much, and nothing more is sent.

    The same object given to several runs is shared by them: it is what they spend together.

    Args:
        tokens: of prompts and replies together; None: any number.
        usd: US dollars; None: any sum.
        prices: what models cost: a :class:`Price`, or a mapping of model name to price. A model
            that is not in it is looked up (extra ``revkit[prices]``).

    Raises:
        UsageError: neither ``tokens`` nor ``usd`` is given, or a number that is impossible.

    >>> budget = Budget(tokens=1000)
    >>> attempt = budget.reserve(prompt=300, completion=500)
    >>> budget.reserve(prompt=300, completion=500)
    <Refusal.LATER: 'later'>
    >>> budget.settle(attempt, prompt_used=280, completion_used=20)
    >>> budget
    Budget(tokens=1000, spent_tokens=300)
    >>> budget.reserve(prompt=300, completion=500)
    <Refusal.NEVER: 'never'>
    """

    def __init__(
        self,
        *,
        tokens: int | None = None,
        usd: float | None = None,
        prices: Price | Mapping[str, Price] | None = None,
    ):
        _check_budget(tokens, usd)
        listed = list(prices.values()) if isinstance(prices, Mapping) else [prices]
        if prices is not None and not all(isinstance(one, Price) for one in listed):
            raise UsageError(
                f"Budget(prices={prices!r}): give a Price, or a mapping of model name to Price"
            )
        self.prices = prices
        super().__init__(Account((tokens, None if usd is None else round(usd * PICO))))
        #: the identity under which copies share one budget: on the machines of a cluster
        self.identity = uuid.uuid4().hex

    def check(self, model: str, max_tokens: int | None, price: Price | None) -> None:
        """Refuse, before anything is sent, a model for which the budget cannot be kept.

        Raises:
            UsageError: no ``max_tokens``; or, for a budget in dollars, no price, or none to pay.
        """
        if max_tokens is None:
            raise UsageError(
                f"a budget needs to know how long a reply of {model} may become: give the model "
                "max_tokens="
            )
        if self.usd is None:
            return
        if price is None:
            raise UsageError(
                f"the price of {model} is not known at its address (a gateway may have its own); "
                f"give it: Budget(usd={self.usd!r}, prices=Price(input_usd_per_million=…, "
                "output_usd_per_million=…))"
            )
        if price.cost(1, 1) == 0:
            raise UsageError(f"{model} costs nothing; use Budget(tokens=) instead of usd=")

    def reserve(
        self, prompt: int, completion: int, price: Price | None = None
    ) -> Reservation | Refusal:
        if self.usd is not None and price is None:
            raise UsageError("a budget in dollars needs the price")
        return super().reserve(prompt, completion, price)

    @property
    def tokens(self) -> int | None:
        """The most tokens; None: any number. Raise it to continue a run that it stopped."""
        return self._account.limits[0]

    @tokens.setter
    def tokens(self, tokens: int | None) -> None:
        _check_budget(tokens, self.usd)
        with self._lock:
            self._account.limits = tokens, self._account.limits[1]

    @property
    def usd(self) -> float | None:
        """The most US dollars; None: any sum. It can be set as :attr:`tokens` can."""
        pico = self._account.limits[1]
        return None if pico is None else pico / PICO

    @usd.setter
    def usd(self, usd: float | None) -> None:
        _check_budget(self.tokens, usd)
        pico = None if usd is None else round(usd * PICO)
        with self._lock:
            self._account.limits = self._account.limits[0], pico

    @property
    def spent_tokens(self) -> int:
        """Tokens that were used, by all runs."""
        return self._account.spent.tokens

    @property
    def spent_usd(self) -> float:
        """US dollars that were used, by all runs; without a price an attempt adds none."""
        return self._account.spent.pico / PICO

    @property
    def reserved_tokens(self) -> int:
        """Tokens that attempts in flight hold."""
        return self._account.reserved.tokens

    @property
    def reserved_usd(self) -> float:
        """US dollars that attempts in flight hold."""
        return self._account.reserved.pico / PICO

    def count(self, tokens: int, pico: int) -> None:
        """Set what a cluster has spent, in tokens and picodollars."""
        with self._lock:
            self._account.spent = Amounts(tokens, pico)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {**self.__dict__, "_lock": None, "_in_flight": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy counts for itself, from what was spent; on a Dask cluster, all are one budget."""
        self.__dict__.update(state, _lock=Lock())
        self._account = Account(self._account.limits, self._account.spent)

    def __repr__(self) -> str:
        return str(self._account)


def _check_budget(tokens: int | None, usd: float | None) -> None:
    _check("Budget", {"tokens": tokens, "usd": usd})
    if isinstance(tokens, float):
        raise UsageError(f"Budget(tokens={tokens!r}): give a whole number")


def _check(name: str, given: Mapping[str, float | None]) -> None:
    """Refuse limits that are no limits."""
    if all(limit is None for limit in given.values()):
        raise UsageError(f"{name}(): give " + " or ".join(f"{one}=" for one in given))
    for parameter, limit in given.items():
        if limit is None:
            continue
        number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if not (number and 0 < limit < math.inf):
            raise UsageError(f"{name}({parameter}={limit!r}): give a number above 0")
