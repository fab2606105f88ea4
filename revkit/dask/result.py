"""All partitions of a job computed, and their records made one result, in the user's process."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..api.finish import finish
from ..results.result import ParallelResult
from ..runtime.interrupt import Press, noted_interrupts
from ..scheduling.events import StopKind
from ..task.kinds import ModelTask
from .gather import Gathered, gather
from .job import Job
from .links import client_link, current_client
from .merge import merge

if TYPE_CHECKING:
    from .audience import Audience

__all__ = ["collect_parts"]

_INTERRUPTED = (StopKind.INTERRUPTED.value, "it was interrupted", True)


def collect_parts(job: Job, audience: Audience, parts: Sequence[Any]) -> ParallelResult:
    """Compute the parts of a job, and make their result.

    Args:
        audience: who hears of it.
        parts: of Dask, each of which gives a :class:`~revkit.dask.partition.Part`.

    Raises:
        RunFailed: every row failed, or the run was stopped.
        Interrupted: the user stopped it.
    """
    client = current_client()
    if client is not None:
        job.check_travels()
        if audience.listen(client) not in job.clients:
            job.clients.append(str(client.id))
    link = client_link()

    def stop(reason: tuple[str, str, bool]) -> None:
        with contextlib.suppress(Exception):  # the cluster may be gone
            link.call("stop", job=job.id, stop=list(reason))

    def interrupt() -> None:
        stop(_INTERRUPTED)
        with contextlib.suppress(Exception):
            link.call("collect", job=job.id)  # it may begin yet, and its partitions are wanted

    link.call("collect", job=job.id)
    with noted_interrupts() as press, _held(audience, press) as told:
        try:
            gathered = gather(client, parts, press, interrupt)
        except BaseException as error:
            stop((StopKind.INTERRUPTED.value, str(error), True))
            raise
        press.hold()
        if gathered.interrupted:
            stop(_INTERRUPTED)
    if job.budget is not None:
        job.budget.count(*link.call("spent", budget=job.budget.identity)["answer"])
    return _result(job, gathered, told)


def _result(job: Job, gathered: Gathered, told: Sequence[str]) -> ParallelResult:
    parts = gathered.parts
    frames = [part.frame for part in parts if len(part.frame)]
    frames = frames or [parts[0].frame if parts else job.source]
    whole = pd.concat(frames) if len(frames) > 1 else frames[0]
    call = job.prepare(whole, alone=True)  # as it would be run again, for ``retry_failed``
    outputs = job.task.outputs if isinstance(job.task, ModelTask) else ()
    record = merge(
        parts,
        outputs,
        asks_model=job.client is not None,
        samples=job.samples,
        run_id=uuid.uuid4().hex,
        now=datetime.now(UTC),
    )
    record.warnings += told
    if gathered.missing:
        record.warnings.append(
            f"{gathered.missing} of {gathered.missing + len(parts)} partitions had not come back "
            "when the run was ended; their rows are not in the result"
        )
    record.ended_by = KeyboardInterrupt() if gathered.interrupted else gathered.error
    return finish(call, record)


@contextlib.contextmanager
def _held(audience: Audience, press: Press) -> Iterator[list[str]]:
    """While it is computed, all observers hear it to its end; yields what is to be said of them."""
    told: list[str] = []
    audience.held = True
    try:
        audience.begin()
        yield told
    finally:
        told += audience.end(hurried=press())
        audience.held = False
