"""Rules that decide about a run from numbers alone."""

from __future__ import annotations

from .errors import UsageError

__all__ = ["worker_count"]


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
    for name, number in (("max_workers", max_workers), ("worker_cap", worker_cap)):
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int):
            raise UsageError(f"{name}={number!r}: give a whole number, or leave it out")
        if number < 1:
            raise UsageError(f"{name}={number}: at least 1 is needed")
    wanted = min(2 * cpus, worker_cap) if max_workers is None else max_workers
    return max(1, min(wanted, rows))
