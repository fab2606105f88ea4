"""Compute all partitions of a job, and make one result of their records, in the user's process."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from ..api.finish import finish
from ..errors import plural
from ..results.result import ParallelResult
from ..runtime.draws import PartitionDraws
from ..runtime.interrupt import noted_interrupts
from ..scheduling.events import Stop, StopKind
from ..task.kinds import ModelTask
from .event_relay import EventRelay
from .gather import Gathered, gather
from .job import Job
from .links import client_link, current_client
from .merge import merge

__all__ = ["collect_parts"]


def collect_parts(job: Job, relay: EventRelay, parts: Sequence[Any]) -> ParallelResult:
    """Compute the parts of a job, and make their result.

    Args:
        relay: of the job's events.
        parts: Dask's tasks, each of which returns a :class:`~revkit.dask.partition.Part`.

    Raises:
        RunFailed: every row failed, or the run was stopped.
        Interrupted: the user stopped it.
    """
    client = current_client()
    if client is not None:
        job.check_travels()
        if relay.subscribe(client) not in job.clients:
            job.clients.append(str(client.id))
    link = client_link()

    def stop(reason: str = "it was interrupted") -> None:
        stop = list(Stop(StopKind.INTERRUPTED, reason, cancels=True))
        with contextlib.suppress(Exception):  # the cluster may be gone
            link.call("stop", job=job.id, stop=stop)

    def interrupt() -> None:
        stop()
        with contextlib.suppress(Exception):
            link.call("collect", job=job.id)  # the run may not have begun yet

    link.call("collect", job=job.id)
    with noted_interrupts() as interrupts, relay.collect(interrupts) as warnings:
        try:
            gathered = gather(client, parts, interrupts, interrupt)
        except BaseException as error:
            stop(str(error))
            raise
        interrupts.hold()
        if gathered.interrupted:
            stop()
    if job.budget is not None:
        job.budget.count(*link.call("spent", budget=job.budget.identity)["value"])
    return _result(job, gathered, warnings)


def _result(job: Job, gathered: Gathered, warnings: Sequence[str]) -> ParallelResult:
    parts = gathered.parts
    frames = [part.frame for part in parts if len(part.frame)]
    frames = frames or [parts[0].frame if parts else job.source]
    whole = pd.concat(frames) if len(frames) > 1 else frames[0]
    call = job.prepare(whole, alone=True)  # as ``retry_failed`` will run it again
    if call.plan.draws is not None:
        sizes = [(part.number, part.record.total) for part in parts]
        plan = dataclasses.replace(call.plan, draws=PartitionDraws(call.plan, sizes))
        call = dataclasses.replace(call, plan=plan)
    outputs = job.task.outputs if isinstance(job.task, ModelTask) else ()
    record = merge(
        parts,
        outputs,
        asks_model=job.client is not None,
        samples=job.samples,
        run_id=uuid.uuid4().hex,
        now=datetime.now(UTC),
    )
    record.warnings += warnings
    if gathered.missing:
        record.warnings.append(
            f"{gathered.missing} of {plural(gathered.missing + len(parts), 'partition')} had not "
            "arrived when the run was ended; the rows of those are not in the result"
        )
    record.ended_by = KeyboardInterrupt() if gathered.interrupted else gathered.error
    return finish(call, record)
