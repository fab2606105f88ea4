"""The rows that have failed so far: they are to be tried again, or are parked."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from .events import Attempt, Attempted, Decided, Decision, Failure
from .outage import Sign, is_timeout, sign_of
from .policy import Retry
from .refusals import Refusal, RowRefusals

__all__ = ["Trouble", "Unsettled"]

#: How often a row gets its attempts back: it may be the row that takes the server down.
_MERCY: Final = 3


@dataclass(slots=True)
class Trouble:
    """The history of a row that has failed."""

    began: float  #: when its first attempt ended
    failures: int = 0  #: those that count against ``Retry.attempts``
    is_free: bool = False  #: the last one does not count, for the server is busy
    forgivable: int = 0  #: those of them that do not where the server turns out to be away
    epoch: int | None = None  #: of the outage rule, when it had trouble for the first time
    forgiven: int = 0  #: times that it got attempts back
    again: float | None = None  #: when it is due to be retried
    correction: Failure | None = None  #: shown to the model in the next attempt
    refusals: RowRefusals = field(default_factory=RowRefusals)


class Unsettled:
    """Rows that have failed, and may succeed yet.

    A row is parked whose last attempt failed in a way that may be the server's fault.

    Args:
        retry: when a failed attempt is tried again.
        chance: random numbers, uniform in [0, 1).

    Attributes:
        again: (when, row, number of the next attempt, why the last one did not do), a heap with
            the earliest first.
        trouble: only of rows that are to be tried again, are running once more, or are parked.
        parked: the last attempts of rows that are parked, in order of time.
    """

    def __init__(self, retry: Retry, chance: Callable[[], float]):
        self._retry, self._chance = retry, chance
        self.again: list[tuple[float, int, int, Failure]] = []
        self.trouble: dict[int, Trouble] = {}
        self.parked: dict[int, Attempted] = {}

    def next_try(
        self, trouble: Trouble, failure: Failure, refusal: Refusal, now: float
    ) -> float | None:
        """When a row is tried again, None if it is not.

        Args:
            trouble: its history, which is continued.
        """
        if failure.correctable:
            if trouble.correction is not None or self._retry.attempts == 1:
                return None
            trouble.correction = failure
            return now
        if not failure.transient:
            return None
        wait = refusal.wait
        trouble.is_free = not refusal.counts
        if refusal.counts:
            trouble.failures += 1
            trouble.forgivable += sign_of(failure) is Sign.TROUBLE and not is_timeout(failure)
            if trouble.failures >= self._retry.attempts:
                return None
            wait = max(wait, self._retry.wait(trouble.failures, chance=self._chance()))
        when = now + wait
        return when if when - trouble.began <= self._retry.max_elapsed else None

    def retry(self, attempt: Attempt, failure: Failure, when: float) -> None:
        """Try the row again at that time."""
        previous = self.trouble[attempt.row].correction or failure
        heapq.heappush(self.again, (when, attempt.row, attempt.number + 1, previous))

    def has_attempts(self, row: int) -> bool:
        """Whether the row has not used up its attempts."""
        return self.trouble[row].failures < self._retry.attempts

    def suspend(self, rows: Iterable[int], now: float, *, forgives: bool) -> list[Decided]:
        """The server is away: all rows wait for nothing else, and none stays parked.

        Args:
            rows: which had trouble; they and parked ones get the attempts back that this took
                where it ``forgives``.

        Returns:
            What became of parked rows.
        """
        parked = dict(self.parked)
        self.parked.clear()
        for row in {*rows, *parked} if forgives else ():
            trouble = self.trouble.get(row)
            if trouble is not None and trouble.forgiven < _MERCY:
                trouble.failures -= trouble.forgivable
                trouble.forgivable = 0
                trouble.forgiven += 1
        # A sorted list is a heap.
        self.again[:] = sorted((min(when, now), *rest) for when, *rest in self.again)  # type: ignore[misc]
        decided = []
        for row, fact in parked.items():
            assert isinstance(fact.outcome, Failure)
            back = forgives and self.has_attempts(row)
            if back:
                self.trouble[row].again = now
                self.retry(fact.attempt, fact.outcome, now)
                decided.append(Decided(fact._replace(decision=Decision.RETRY, again=now)))
            else:
                decided.append(_failed(fact))
        return decided

    def take_parked(self, before: float) -> list[Decided]:
        """Parked rows whose last attempt had ended by then have failed."""
        rows = [row for row, fact in self.parked.items() if fact.end <= before]
        return [_failed(self.parked.pop(row)) for row in rows]

    def skip(self, since: float, now: float) -> None:
        """The time that has passed since then does not count against ``Retry.max_elapsed``."""
        for trouble in self.trouble.values():
            trouble.began += now - max(trouble.began, since)


def _failed(fact: Attempted) -> Decided:
    return Decided(fact._replace(decision=Decision.FAIL))
