"""Compute the partitions of a run, until all have arrived or the user interrupts.

The first Ctrl-C (or stop of the notebook) stops the run: every partition returns its partial
record, which takes about a second. The second one returns at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
from dask.callbacks import Callback

from ..runtime.interrupt import Interrupts
from .partition import Part

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Gathered", "gather"]

#: Seconds between two looks at what has arrived, and whether the user has interrupted.
_TICK = 0.05
#: Seconds in which partitions on a cluster must arrive when the run was stopped.
_GRACE = 10.0


class Gathered(NamedTuple):
    """The partitions that have arrived.

    Attributes:
        parts: in their order.
        missing: how many have not arrived.
        interrupted: the user has stopped the run.
        error: of a partition, which ended the run.
    """

    parts: list[Part]
    missing: int
    interrupted: bool
    error: Exception | None = None


def gather(
    client: Client | None, parts: Sequence[Any], interrupts: Interrupts, stop: Callable[[], object]
) -> Gathered:
    """Compute the parts of a run.

    Args:
        client: of the cluster; None: Dask works in this process.
        interrupts: says whether the user has interrupted.
        stop: stops the run. It is called repeatedly, because the run may not have begun.
    """
    found: dict[int, Part] = {}
    broken_off, error = False, None
    try:
        if client is None:
            _compute_here(parts, found, interrupts, stop)
        else:
            error = _compute_there(client, parts, found, interrupts, stop)
    except KeyboardInterrupt:
        stop()
        broken_off = True
    arrived = sorted(found.values(), key=lambda part: part.number)
    missing = len(parts) - len(arrived)
    return Gathered(arrived, missing, broken_off or interrupts(), error)


def _compute_here(
    parts: Sequence[Any], found: dict[int, Part], interrupts: Interrupts, stop: Callable[[], object]
) -> None:
    """In this thread and Dask's own ones; partitions that are stopped return by themselves."""

    def arrived(key: Any, value: Any, *rest: Any) -> None:
        if isinstance(value, Part):
            found[value.number] = value

    with _watched(interrupts, stop), Callback(posttask=arrived):
        dask.compute(*parts)


@contextlib.contextmanager
def _watched(interrupts: Interrupts, stop: Callable[[], object]) -> Iterator[None]:
    """While this thread computes, another one stops the run if the user has interrupted."""
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_TICK):
            if interrupts():
                stop()

    threading.Thread(target=watch, name="revkit-stop", daemon=True).start()
    try:
        yield
    finally:
        finished.set()


def _compute_there(
    client: Client,
    parts: Sequence[Any],
    found: dict[int, Part],
    interrupts: Interrupts,
    stop: Callable[[], object],
) -> Exception | None:
    """On the cluster's workers; returns the error of a partition that did not arrive."""
    from distributed import as_completed

    futures = client.compute(list(parts))
    until, error = float("inf"), None
    try:
        coming = as_completed(futures, loop=client.loop, with_results=True, raise_errors=False)
        while not coming.is_empty():
            if interrupts() or error is not None:
                stop()
                until = min(until, time.monotonic() + _GRACE)
                if time.monotonic() > until:
                    break
            if not coming.has_ready():
                time.sleep(_TICK)
                continue
            future, part = coming.next()
            if isinstance(part, Part):
                found[part.number] = part
            elif error is None and not interrupts():
                error = future.exception() or RuntimeError(f"a partition was {future.status}")
    finally:
        for future in futures:
            future.release()
    return None if interrupts() else error
