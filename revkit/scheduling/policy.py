"""Rules of a run that depend on numbers alone: retries, failures, the number of workers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UsageError, plural
from .events import Stop, StopKind

__all__ = ["Retry", "check_count", "failure_limit", "failure_stop", "worker_count"]


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed attempt is retried: exponential backoff with full jitter.

    Connection errors, timeouts, and the statuses 408, 409, 425, 429 and 5xx are retried. A reply
    that does not fit the task is retried once, and the model is shown the error. A 429 or 503 that
    asks for a pause makes *all* workers pause. These two do not use up an attempt. Nor does a 429
    that asks for none while other rows succeed, or a 503 or 529 while others succeed and are
    refused as well. But a row that is refused again and again while others succeed waits alone,
    and its pauses use up attempts.

    When the server is away in the middle of a run, the run waits: it probes the server with single
    requests, and no row uses up an attempt.

    Args:
        attempts: most attempts at one row, the first included; 1 never retries.
        initial: upper limit of the first wait, in seconds; it doubles with each attempt.
        maximum: upper limit of every wait, in seconds.
        max_pause: longest pause that a server may ask for, in seconds; a longer one ends the run.
        max_elapsed: seconds after its first attempt in which a row may be retried; the time in
            which the server was away does not count.
        max_outage: seconds for which the server may be away; after them the run is stopped.

    Raises:
        UsageError: a number that is impossible.

    >>> Retry(attempts=5).wait(3, chance=1.0)
    2.0
    """

    attempts: int = 3
    initial: float = 0.5
    maximum: float = 30.0
    max_pause: float = 60.0
    max_elapsed: float = 600.0
    max_outage: float = 600.0

    def __post_init__(self) -> None:
        check_count(self.attempts, f"Retry(attempts={self.attempts!r})")
        for name in ("initial", "maximum", "max_pause", "max_elapsed", "max_outage"):
            seconds = getattr(self, name)
            number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            if not (number and seconds >= 0):
                raise UsageError(f"Retry({name}={seconds!r}): give seconds, 0 or more")
            if math.isinf(seconds) and name in ("initial", "maximum"):
                raise UsageError(f"Retry({name}={seconds!r}): give seconds that have an end")

    def wait(self, failures: int, *, chance: float) -> float:
        """Seconds to wait after so many failures of a row, between 0 and the backoff's limit.

        "Full jitter" of Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog,
        2015): the wait is uniform between 0 and min(``maximum``, ``initial`` x 2^(failures - 1)).

        Args:
            failures: from 1.
            chance: a random number, uniform in [0, 1].
        """
        return chance * min(self.maximum, self.initial * 2.0 ** min(failures - 1, 60))


def failure_limit(max_failures: float | None, *, fail_fast: bool, rows: int) -> int | None:
    """The number of failures that a run tolerates; None: any number.

    Args:
        max_failures: an int counts rows; a float between 0 and 1 is a share of ``rows``.
        fail_fast: stop at the first failure.
        rows: all rows of the run.

    Raises:
        UsageError: it is neither, or goes with ``fail_fast``.

    >>> failure_limit(0.25, fail_fast=False, rows=10)
    2
    """
    if fail_fast:
        if max_failures is not None:
            raise UsageError("fail_fast=True stops at the first failure; leave max_failures= out")
        return 0
    if max_failures is None:
        return None
    if isinstance(max_failures, int) and not isinstance(max_failures, bool) and max_failures >= 0:
        return max_failures
    if isinstance(max_failures, float) and 0 < max_failures < 1:
        return int(max_failures * rows + 1e-9)  # 0.29 x 100 is 28.999999999999996
    raise UsageError(
        f"max_failures={max_failures!r}: give a number of rows (0 or more), or a share of them "
        "between 0 and 1, such as 0.05"
    )


def failure_stop(failed: int, limit: int | None, *, fail_fast: bool) -> Stop | None:
    """The stop of a run in which so many rows failed; None: the run continues.

    >>> failure_stop(3, 2, fail_fast=False).reason
    '3 rows failed, more than max_failures allows (2)'
    """
    if limit is None or failed <= limit:
        return None
    reason = (
        "a row failed, and fail_fast=True"
        if fail_fast
        else f"{plural(failed, 'row', 'failed')}, more than max_failures allows ({limit})"
    )
    return Stop(StopKind.FAILURES, reason, cancels=fail_fast)


def check_count(number: object, written: str, others: str = "") -> None:
    """Refuse what is no int of at least 1, as ``written``; the user may give ``others``."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise UsageError(f"{written}: give a whole number{others}")
    if number < 1:
        raise UsageError(f"{written}: at least 1 is needed")


def worker_count(rows: int, cpus: int, *, max_workers: int | None, worker_cap: int = 16) -> int:
    """How many workers a run gets.

    Args:
        rows: rows to run.
        cpus: processors of this machine.
        max_workers: taken exactly, though never more than ``rows``. None: automatic,
            min(2 x ``cpus``, ``worker_cap``, ``rows``).
        worker_cap: upper limit of the automatic number.

    Returns:
        At least 1.

    Raises:
        UsageError: a number below 1, or something that is not a whole number.

    >>> worker_count(1000, 4, max_workers=None)
    8
    >>> worker_count(1000, 64, max_workers=None)
    16
    >>> worker_count(12, 4, max_workers=100)
    12
    """
    if max_workers is not None:
        adaptive = ', or "adaptive", or leave it out'
        check_count(max_workers, f"max_workers={max_workers!r}", adaptive)
    check_count(worker_cap, f"worker_cap={worker_cap!r}", ", or leave it out")
    wanted = min(2 * cpus, worker_cap) if max_workers is None else max_workers
    return max(1, min(wanted, rows))
