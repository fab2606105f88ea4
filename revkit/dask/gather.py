"""The partitions of a run as they come, until all are there or the user has had enough.

The first Ctrl-C (or stop of the notebook) stops the run: every partition comes back with what it
has, which takes about a second. The second one leaves at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
from dask.callbacks import Callback

from ..runtime.interrupt import Press
from .partition import Part

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Gathered", "gather"]

#: Seconds between two looks at what has come, and whether the user has pressed stop.
_TICK = 0.05
#: Seconds that the partitions on a cluster have to come back in when the run was stopped.
_GRACE = 10.0


class Gathered(NamedTuple):
    """What has come.

    Attributes:
        parts: in their order.
        missing: how many have not come.
        interrupted: the user has stopped it.
        error: what else has ended it, out of a partition.
    """

    parts: list[Part]
    missing: int
    interrupted: bool
    error: Exception | None = None


def gather(
    client: Client | None, parts: Sequence[Any], press: Press, stop: Callable[[], object]
) -> Gathered:
    """Compute the parts of a run.

    Args:
        client: of the cluster; None: Dask works in this process.
        press: says whether the user has pressed stop.
        stop: has the run stopped. It is called again and again: the run may not have begun.
    """
    found: dict[int, Part] = {}
    broken_off, error = False, None
    try:
        if client is None:
            _compute_here(parts, found, press, stop)
        else:
            error = _compute_there(client, parts, found, press, stop)
    except KeyboardInterrupt:
        stop()
        broken_off = True
    came = sorted(found.values(), key=lambda part: part.number)
    return Gathered(came, len(parts) - len(came), broken_off or press(), error)


def _compute_here(
    parts: Sequence[Any], found: dict[int, Part], press: Press, stop: Callable[[], object]
) -> None:
    """In this thread, and those of Dask's own: what is stopped meanwhile comes back by itself."""

    def came(key: Any, value: Any, *rest: Any) -> None:
        if isinstance(value, Part):
            found[value.number] = value

    with _watched(press, stop), Callback(posttask=came):
        dask.compute(*parts)


@contextlib.contextmanager
def _watched(press: Press, stop: Callable[[], object]) -> Iterator[None]:
    """While this thread computes, another one looks whether it is to be stopped."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_TICK):
            if press():
                stop()

    threading.Thread(target=watch, name="revkit-stop", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _compute_there(
    client: Client,
    parts: Sequence[Any],
    found: dict[int, Part],
    press: Press,
    stop: Callable[[], object],
) -> Exception | None:
    """On the cluster's workers; gives what a partition came to that never came back."""
    from distributed import as_completed

    futures = client.compute(list(parts))
    until, error = float("inf"), None
    try:
        coming = as_completed(futures, loop=client.loop, with_results=True, raise_errors=False)
        while not coming.is_empty():
            if press() or error is not None:
                stop()
                until = min(until, time.monotonic() + _GRACE)
                if time.monotonic() > until:
                    break
            if not coming.has_ready():
                time.sleep(_TICK)
                continue
            future, came = coming.next()
            if isinstance(came, Part):
                found[came.number] = came
            elif error is None and not press():
                error = future.exception() or RuntimeError(f"a partition was {future.status}")
    finally:
        for future in futures:
            future.release()
    return None if press() else error
