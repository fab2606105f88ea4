"""All partitions of a job computed, and their records made one result, in the user's process."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ..api import finish
from ..events import StopKind
from ..observers import Event, Observers
from ..result import ParallelResult
from ..task import ModelTask
from .job import Job
from .links import client_link, current_client, listeners, topic_of
from .merge import merge
from .partition import Part

__all__ = ["collect_parts"]

#: Seconds that observers have for what is left to them when the run is over.
_OBSERVERS_WAIT = 10.0


def collect_parts(job: Job, compute: Callable[[], Sequence[Part]]) -> ParallelResult:
    """Compute the parts of a job, and make their result.

    Raises:
        RunFailed: every row failed, or the run was stopped.
        KeyboardInterrupt: the user stopped it.
    """
    link = client_link()
    link.call("collect", job=job.id)
    with _observed(job):
        try:
            parts = sorted(compute(), key=lambda part: part.number)
        except BaseException as error:
            reason = "it was interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            stop = [StopKind.INTERRUPTED.value, reason, True]
            with contextlib.suppress(Exception):
                link.call("stop", job=job.id, stop=stop)
            raise
    if job.budget is not None:
        job.budget.count(*link.call("spent", budget=job.budget.identity)["answer"])
    return _result(job, parts)


def _result(job: Job, parts: Sequence[Part]) -> ParallelResult:
    frames = [part.frame for part in parts if len(part.frame)] or [parts[0].frame]
    whole = pd.concat(frames) if len(frames) > 1 else frames[0]
    call = job.prepare(whole)
    outputs = job.task.outputs if isinstance(job.task, ModelTask) else ()
    record = merge(parts, outputs, asks_model=job.client is not None)
    return finish(call, record)


@contextlib.contextmanager
def _observed(job: Job) -> Iterator[None]:
    """While it is computed, the events of all workers go to the user's observers."""
    if not job.observers:
        yield
        return
    observers = Observers(job.observers)

    def hear(events: Sequence[Mapping[str, Any]]) -> None:
        for event in events:
            observers.send(Event(**event))

    client = current_client()
    topic = topic_of(job.id)
    listeners[job.id] = hear
    if client is not None:
        client.subscribe_topic(topic, lambda message: hear(message[1]))
    try:
        yield
    finally:
        del listeners[job.id]
        if client is not None:
            client.unsubscribe_topic(topic)
        for told in observers.close(_OBSERVERS_WAIT):
            warnings.warn(told, UserWarning, stacklevel=5)
