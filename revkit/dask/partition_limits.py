"""One partition's part of the cluster's limits: whether an attempt may start now.

The partition's own scheduler uses them as any other limits (:mod:`revkit.scheduling.throttle`).
The coordinator grants their contents a little ahead of need, so that no attempt waits for a
message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..scheduling.accounts import ZERO, Account, Amounts, Refusal, Reservation
from ..scheduling.events import Failure, HoldKind, Stop, Success
from ..scheduling.limits import BudgetLedger
from ..scheduling.throttle import Refused, Throttle, as_load

if TYPE_CHECKING:
    from ..task.tokens import Price

__all__ = ["PartitionBudget", "PartitionLimits", "PartitionRateLimit"]

#: A start that is so late (seconds) is lost: it would crowd the next ones.
_STALE = 0.5
#: Seconds until the next try of a row that waits for a message.
_RETRY = 0.02


class PartitionRateLimit:
    """The partition's part of a rate limit: the times of its next starts.

    Args:
        request_more: called when no start is left, to report at once.
    """

    def __init__(self, request_more: Callable[[], object]):
        self._request_more = request_more
        self._lock = Lock()
        #: earliest first: the time on this process's clock, the time on the coordinator's clock,
        #: and the tokens that the coordinator counted for it
        self._starts: list[tuple[float, float, int]] = []
        self._tokens = self._extra = 0

    def reserve(self, tokens: int, now: float) -> float | None:
        """Let a request of about so many tokens start; else the time to ask again."""
        with self._lock:
            self._tokens = tokens
            while self._starts and self._starts[0][0] < now - _STALE:
                self._extra -= self._starts.pop(0)[2]
            if self._starts:
                when, _, counted = self._starts[0]
                if when > now:
                    return when
                del self._starts[0]
                self._extra += tokens - counted
                return None
        self._request_more()
        return now + _RETRY

    def correct(self, estimated: int, used: int, now: float) -> None:
        """Count the tokens of a request, instead of its estimate."""
        with self._lock:
            self._extra += used - estimated

    def report(self, wanted: int, *, closing: bool) -> dict[str, Any]:
        """The request for more starts, and what is returned; see :meth:`Coordinator.exchange`.

        Args:
            wanted: starts that the partition could use.
        """
        with self._lock:
            kept = 0 if closing else wanted
            unused, self._starts = self._starts[kept:], self._starts[:kept]
            extra = self._extra - sum(counted for _, _, counted in unused)
            self._extra = 0
            return {
                "starts": kept - len(self._starts),
                "tokens": self._tokens,
                "unused": [when for _, when, _ in unused],
                "extra": extra,
            }

    def add(self, starts: list[float], tokens: int, *, offset: float) -> None:
        """Add starts that the coordinator has planned.

        Args:
            starts: times on the coordinator's clock.
            offset: seconds to add to them for times on this process's clock.
        """
        with self._lock:
            self._starts += [(when + offset, when, tokens) for when in starts]
            self._starts.sort()


class PartitionBudget(BudgetLedger):
    """The partition's part of a budget: what the coordinator granted is its limit.

    Args:
        request_more: called when an attempt does not fit, to report at once.
    """

    def __init__(self, request_more: Callable[[], object]):
        super().__init__(Account((0, 0)))
        self._request_more = request_more
        self._granted = ZERO
        #: the most that an attempt has needed so far, in each unit
        self._need = ZERO
        self._short = False

    def reserve(
        self, prompt: int, completion: int, price: Price | None = None
    ) -> Reservation | Refusal:
        """Reserve what one attempt may use at most; ``LATER`` if that has to be requested."""
        with self._lock:
            self._need = Amounts(
                *map(max, self._need, Reservation(prompt, completion, price).amounts)
            )
        found = super().reserve(prompt, completion, price)
        if isinstance(found, Reservation):
            return found
        self._request_more()
        return Refusal.LATER

    def report(self, wanted: int, *, closing: bool) -> dict[str, Any]:
        """The request for more, and what is held and spent; see :meth:`Coordinator.exchange`.

        A partition returns what it does not use if others wait for it. It also returns a remainder
        that is too small for an attempt. The coordinator grants whole attempts, and cannot combine
        a remainder here with one that it has itself.

        Args:
            wanted: attempts that the partition could start.
        """
        with self._lock:
            account = self._account
            room = account.room(self._need) or 0
            if self._short or closing or room == 0:
                used = account.spent.plus(account.reserved)
                self._granted = account.limits = Amounts(*map(min, self._granted, used))
                room = 0
            report: dict[str, Any] = {"granted": list(self._granted), "spent": list(account.spent)}
            if not closing and any(self._need) and room < wanted:
                report |= {"need": list(self._need), "attempts": wanted - room}
            return report

    def add(self, granted: Amounts, *, short: bool) -> None:
        """Add what the coordinator granted; ``short``: others wait for what is not used."""
        with self._lock:
            self._short = short
            self._granted = self._account.limits = self._granted.plus(granted)


class PartitionLimits(Throttle):
    """The limits of one partition, as the coordinator sets them.

    Args:
        reports_load: reports say how attempts ended, for the limit of all partitions.
        report_now: called when a server asked for a pause, to report at once.

    Attributes:
        share: attempts that the partition may have running now.
        stop: why nothing more may start.
        paused_until: nothing starts before this time, because a server asked another partition.
    """

    def __init__(
        self,
        max_workers: int,
        *,
        rate_limit: PartitionRateLimit | None,
        budget: PartitionBudget | None,
        size: Callable[[int], int] | None,
        max_tokens: int | None,
        price: Price | None,
        reports_load: bool,
        report_now: Callable[[], object],
    ):
        super().__init__(
            max_workers,
            rate_limit=rate_limit,
            budget=budget,
            size=size,
            max_tokens=max_tokens,
            price=price,
        )
        self._reports_load, self._report_now = reports_load, report_now
        self.share = 0
        self.stop: Stop | None = None
        self.paused_until = float("-inf")
        #: attempts that have ended since the last report: (start, end, outcome)
        self._ended: deque[tuple[float, float, str]] = deque()
        #: when a server asked for a pause since the last report, and for how long
        self._pause: tuple[float, float] | None = None

    @property
    def limit(self) -> int:
        return min(self._max_workers, self.share)

    def admit(self, row: int, previous: Failure | None, now: float) -> Refused | Stop | None:
        if self.stop is not None:
            return self.stop
        if now < self.paused_until:
            return Refused(self.paused_until, HoldKind.PAUSE)
        return super().admit(row, previous, now)

    def paused(self, seconds: float, now: float) -> None:
        self._pause = (now, seconds)
        self._report_now()

    def learn(self, outcome: Success | Failure, *, start: float, end: float, running: int) -> None:
        if self._reports_load:
            self._ended.append((start, end, as_load(outcome)))

    def report(self, now: float) -> dict[str, Any]:
        """What attempts showed since the last report; see :meth:`Coordinator.exchange`."""
        report: dict[str, Any] = {}
        pause, self._pause = self._pause, None
        if pause is not None and (left := pause[0] + pause[1] - now) > 0:
            report["pause"] = left
        ended = []
        while self._ended:
            start, end, outcome = self._ended.popleft()
            ended.append((now - start, now - end, outcome))
        if ended:
            report["ended"] = ended
        return report
