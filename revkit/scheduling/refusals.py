"""What a server's refusals mean: how long the run pauses, when the row is retried, what it uses up.

A *refusal* is a 429, a 503 or a 529. Where the server says how long to wait, the whole run waits,
and the row has used up no attempt. It is not so for a row that the server refuses while it takes
the others: that row waits alone, and each wait is an attempt.

A 429 that says nothing uses up no attempt while other rows succeed, and none after that, unless the
server refuses this row alone. A 503 or 529 that says nothing
may also be the fault of its row. It uses up none while others succeed and are refused as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from .events import OVERLOADED, Failure, Stop, StopKind
from .pacing import Pacer
from .policy import Retry

__all__ = ["Refusal", "Refusals", "RowRefusals", "pause_stop"]

#: Fewer refusals of a row are no sign that the server has something against it.
_AGAIN: Final = 3
#: So unlikely must it be that chance alone refused a row so often.
_UNLIKELY: Final = 1e-3
#: The same where many rows wait for one server, each of which must not be taken for such a row.
_MEANT: Final = 1e-4
#: Attempts that "lately" means.
_LATELY: Final = 128
#: An attempt that runs for so many times a refusal, and so many seconds, is being served.
_SERVED: Final = 3.0
_SERVED_S: Final = 0.1
#: A row that is refused so often waits so much longer than the run: others go first.
_BEHIND: Final = 1.1


@dataclass(slots=True)
class RowRefusals:
    """How often a row was refused, and what others had met before."""

    count: int = 0
    succeeded: int = 0  #: rows of the run that had succeeded at its first refusal
    refused: int = 0  #: refusals of the run until then
    seen: int = 0  #: rows that had succeeded at its last refusal


class Refusal(NamedTuple):
    """What follows from a refusal.

    Attributes:
        run_pause: seconds for which the whole run pauses.
        wait: seconds after which the row may be retried, at the earliest.
        counts: it uses up an attempt.
    """

    run_pause: float
    wait: float
    counts: bool


def pause_stop(failure: Failure, longest: float) -> Stop | None:
    """The stop of a run whose server asked for a pause; None: the run waits."""
    if failure.run_pause <= longest:
        return None
    reason = (
        f"the server asked for a pause of {failure.run_pause:g} s, longer than "
        f"Retry(max_pause={longest:g}): {failure}; raise max_pause=, or run it again later"
    )
    return Stop(StopKind.PAUSE, reason, cancels=False)


class Refusals:
    """Judges the refusals of one run.

    Args:
        pacer: hears of attempts that have failed.
        chance: random numbers, uniform in [0, 1).
    """

    def __init__(self, retry: Retry, pacer: Pacer, chance: Callable[[], float]):
        self._retry, self._pacer, self._chance = retry, pacer, chance
        self._succeeded = self._refused = 0
        self._last_success = float("-inf")
        #: the same lately, and how many rows of all that succeeded are counted there
        self._lately_succeeded = self._lately_refused = 0.0
        self._counted = 0
        self._slowest = 0.0  #: seconds that a refusal took at most
        #: pauses one after the other without a success between
        self._rounds = 0
        #: what was started before this time was started before the last pause
        self._round_ends = float("-inf")

    def succeeded(self, now: float) -> None:
        """A row has succeeded."""
        self._succeeded += 1
        self._rounds = 0
        self._last_success = now

    def judge(
        self,
        number: int,
        row: RowRefusals,
        failure: Failure,
        *,
        start: float,
        now: float,
        oldest: float,
    ) -> Refusal:
        """Say what follows from a failure, where it is a refusal.

        Args:
            number: of the row.
            row: the history of its refusals, which is continued.
            start: when the attempt was started.
            oldest: when the oldest attempt that runs was started; it may be this one.
        """
        if failure.status not in OVERLOADED:
            if self._pacer.on:
                self._pacer.ended(number, accepted=not failure.transient)
            return Refusal(0.0, failure.pause or 0.0, counts=True)
        asked, is_hint = failure.run_pause, bool(failure.run_pause or failure.reset)
        self._count(row, now - start)
        served = max(_SERVED * self._slowest, _SERVED_S) <= now - oldest
        # A server that has accepted nothing yet may do so for ever: then rows fail, and fast.
        if self._pacer.on or (not is_hint and (served or self._succeeded)):
            self._pacer.refused(number, start, now)
        if not is_hint:
            free = served or self._succeeded > row.seen
            if failure.status != 429:
                free = free and not self._is_alone(row, max(row.count, _AGAIN))
            elif not free and not self._is_alone(row, _AGAIN):
                free = self._are_others_served(row, now)
            row.seen = self._succeeded
            # Without a wait, it would be tried again without end; one attempt never is.
            free = free and self._retry.attempts > 1 and self._retry.wait(1, chance=1.0) > 0
            return Refusal(0.0, self._backoff(row.count), counts=not free)
        if self._is_meant(row):
            return Refusal(0.0, asked, counts=True)
        if start >= self._round_ends:
            self._rounds += 1
        if asked:
            pause = max(asked, self._backoff(self._rounds - 1))
            wait = max(pause, self._backoff(row.count))
        else:
            assert failure.reset is not None
            pause = min(failure.reset, self._backoff(self._rounds))
            wait = max(pause, min(failure.reset, self._backoff(row.count)))
        self._round_ends = max(self._round_ends, now + pause)
        # Where it is always the first one, no other row can show whether the server takes others.
        # Once others have succeeded as often, rows keep their order: a row that falls behind is
        # refused for that alone.
        if row.count >= _AGAIN and self._succeeded - row.succeeded < row.count:
            wait *= _BEHIND
        return Refusal(pause, wait, counts=not wait)

    def _count(self, row: RowRefusals, seconds: float) -> None:
        """Count a refusal, and what has succeeded since the last one; older ones count less."""
        if not row.count:
            row.succeeded = row.seen = self._succeeded
            row.refused = self._refused
        row.count += 1
        self._refused += 1
        self._slowest = max(self._slowest, seconds)
        self._lately_refused += 1
        self._lately_succeeded += self._succeeded - self._counted
        self._counted = self._succeeded
        while self._lately_refused + self._lately_succeeded > _LATELY:
            self._lately_refused /= 2
            self._lately_succeeded /= 2

    def _are_others_served(self, row: RowRefusals, now: float) -> bool:
        """Whether rows have succeeded since the first refusal of this one, or lately."""
        if self._succeeded > row.succeeded:
            return True
        return self._succeeded > 0 and now - self._last_success <= self._retry.max_pause

    def _is_alone(self, row: RowRefusals, times: int) -> bool:
        """Whether few others are refused lately: chance does not refuse a row so many times."""
        refused = max(0.0, self._lately_refused - row.count)
        share = (refused + 1) / (self._lately_succeeded + refused + 2)
        return bool(share**times < _UNLIKELY)

    def _is_meant(self, row: RowRefusals) -> bool:
        """Whether the server refuses this row rather than the run.

        That is so where it is unlikely that a row is refused so often by chance. The probability
        of one refusal is estimated from what others met since the first one (Laplace's rule).
        """
        if row.count < _AGAIN:
            return False
        succeeded = self._succeeded - row.succeeded
        refused = self._refused - row.refused - row.count
        share = (refused + 1) / (succeeded + refused + 2)
        return succeeded > 0 and share**row.count < _MEANT

    def _backoff(self, times: int) -> float:
        return self._retry.wait(times, chance=self._chance()) if times > 0 else 0.0
