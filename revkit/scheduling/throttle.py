"""The limits of one run: whether an attempt may start now.

The scheduler asks before it starts an attempt, and reports its outcome. A rate limit and a budget
may be shared with other runs. A throttle keeps what this run has reserved of them, and estimates
of its prompts' tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from ..task.tokens import Price, TokenEstimate
from .accounts import Refusal, Reservation
from .events import CANCELLED, OVERLOADED, Attempt, Failure, HoldKind, Outcome, Stop, Success

if TYPE_CHECKING:
    from .adaptive import AdaptiveLimit
    from .limits import BudgetLedger

__all__ = ["RateLimiter", "Refused", "Throttle", "as_load"]

#: Seconds until the next try where attempts in flight have reserved the rest of the budget.
_LATER = 0.05
#: Statuses of a gateway that stopped waiting for a server, which may have done the work.
_MAY_BE_BILLED = frozenset({408, 502, 504})


class Refused(NamedTuple):
    """An attempt may not start yet."""

    until: float  #: when to ask again
    why: HoldKind


class _Reserved(NamedTuple):
    size: int
    tokens: int  #: counted by the rate limit
    budget: Reservation | None


class RateLimiter(Protocol):
    """Decides when attempts may start: a :class:`~revkit.RateLimit`, or a part of one."""

    def reserve(self, tokens: int, now: float) -> float | None: ...
    def correct(self, estimated: int, used: int, now: float) -> None: ...


class Throttle:
    """The limits of one run.

    Args:
        max_workers: never more attempts than these are running.
        rate_limit, budget: shared with other runs; None: there is none.
        adaptive: finds how many attempts may run; None: ``max_workers``.
        size: the size of a row's prompt in bytes; None where no prompt is sent.
        max_tokens: most tokens of one reply, where it is known.
        price: of the model's tokens, for a budget in dollars.

    Attributes:
        alive: the server has replied to rows of another run of the same call.
    """

    alive = False

    def __init__(
        self,
        max_workers: int,
        *,
        rate_limit: RateLimiter | None = None,
        budget: BudgetLedger | None = None,
        adaptive: AdaptiveLimit | None = None,
        size: Callable[[int], int] | None = None,
        max_tokens: int | None = None,
        price: Price | None = None,
    ):
        self._max_workers = max_workers
        self._rate_limit = rate_limit
        self._budget = budget
        self._adaptive = adaptive
        self._size = size
        self._max_tokens = max_tokens
        self._price = price
        self._estimate = TokenEstimate()
        #: by row, while an attempt at it is running
        self._reserved: dict[int, _Reserved] = {}
        #: failures that are no sign of load if the server is away: (failure, start, running)
        self._doubtful: list[tuple[Failure, float, int]] = []

    @property
    def limit(self) -> int:
        """How many attempts may run now."""
        if self._adaptive is None:
            return self._max_workers
        return min(self._max_workers, self._adaptive.limit)

    @property
    def running(self) -> int:
        """How many attempts are running."""
        return len(self._reserved)

    @property
    def path(self) -> list[tuple[float, int]]:
        """The limits that were in force, and since when; empty where there was only one."""
        return [] if self._adaptive is None else self._adaptive.path

    def admit(self, row: int, previous: Failure | None, now: float) -> Refused | Stop | None:
        """Let an attempt at the row start.

        Args:
            previous: why the row is tried again; what the model said then may be shown to it.

        Returns:
            None: it starts, and what it may use is reserved. Else when to ask again, or why the
            run has to stop.
        """
        size = 0 if self._size is None else self._size(row)
        if previous is not None and previous.correctable:
            size += len(f"{previous.text}{previous.message}".encode("utf-8", "surrogatepass"))
        reservation = None
        if self._budget is not None:
            prompt, most = self._estimate.upper(size), self._max_tokens or 0
            found = self._budget.reserve(prompt, most, self._price)
            if found is Refusal.LATER:
                return Refused(now + _LATER, HoldKind.BUDGET)
            if found is Refusal.NEVER:
                return self._budget.exhausted(prompt, most, self._price)
            reservation = found
        tokens = 0
        if self._rate_limit is not None:
            completion = self._estimate.completion()
            if completion is None:
                completion = self._max_tokens or 0
            tokens = 0 if self._size is None else self._estimate.expected(size) + completion
            when = self._rate_limit.reserve(tokens, now)
            if when is not None:
                if self._budget is not None and reservation is not None:
                    self._budget.release(reservation)
                return Refused(when, HoldKind.RATE_LIMIT)
        self._reserved[row] = _Reserved(size, tokens, reservation)
        return None

    def settled(self, attempt: Attempt, outcome: Outcome, *, end: float) -> None:
        """Count what an attempt has used."""
        reserved = self._reserved.pop(attempt.row, None)
        if reserved is None:  # it ended after the run was closed
            return
        size, tokens, reservation = reserved
        reply = None if outcome is CANCELLED else outcome.reply
        prompt = None if reply is None else reply.prompt_tokens
        used = None if reply is None else reply.used_prompt_tokens
        completion = None if reply is None else reply.completion_tokens
        if self._rate_limit is not None and used is not None:
            self._rate_limit.correct(tokens, used + (completion or 0), end)
        if self._budget is not None and reservation is not None:
            if _is_unbilled(outcome):
                self._budget.release(reservation)
            else:
                self._budget.settle(reservation, used, completion)
        self._estimate.observe(size, prompt, completion)

    def learn(self, outcome: Success | Failure, *, start: float, end: float, running: int) -> None:
        """Take an outcome as a sign of the server's load.

        Args:
            running: attempts that were running when it ended, itself included.
        """
        if self._adaptive is not None:
            self._adaptive.settled(start=start, end=end, running=running, outcome=as_load(outcome))

    def doubt(self, failure: Failure, *, start: float, running: int) -> None:
        """Keep a failure for :meth:`believe`: the server may be away, which is no sign of load."""
        self._doubtful.append((failure, start, running))

    def believe(self, now: float) -> None:
        """The server is not away: learn from the failures that were kept."""
        for failure, start, running in self._doubtful:
            self.learn(failure, start=start, end=now, running=running)
        self._doubtful.clear()

    def forget(self) -> None:
        """The server is away: the failures that were kept say nothing of load."""
        self._doubtful.clear()

    def paused(self, seconds: float, now: float) -> None:
        """The run pauses, because the server asked it to."""

    def close(self) -> None:
        """Count all that attempts hold which have not ended: they may have been billed."""
        for row in list(self._reserved):
            reserved = self._reserved.pop(row, None)
            if self._budget is not None and reserved is not None and reserved.budget is not None:
                self._budget.settle(reserved.budget)


def _is_unbilled(outcome: Outcome) -> bool:
    """Whether an attempt cost nothing for certain: nothing was sent, or the server refused it."""
    if not isinstance(outcome, Failure):
        return False
    status = outcome.status or 0
    return not outcome.sent or (status >= 400 and status not in _MAY_BE_BILLED)


def as_load(outcome: Outcome) -> Literal["ok", "overloaded", "other"]:
    """What an outcome tells about the server's load."""
    if not isinstance(outcome, Failure) or outcome.reply is not None:
        return "ok"
    if outcome.status in OVERLOADED or outcome.type == "AttemptTimeout":
        return "overloaded"
    return "other"
