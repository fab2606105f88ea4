"""One partition on one worker: an ordinary run with limits that the coordinator sets."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from ..api.finish import error_of_stop
from ..errors import Interrupted, RunFailed, plural
from ..observers import ObserverSpec
from ..record.record import Record
from ..runtime.drain import INTERRUPTED
from ..runtime.draws import DRAWS_OF_A_PARTITION
from ..runtime.lifecycle import timed_out
from ..runtime.lookahead import Lookahead
from ..runtime.options import Limits
from ..runtime.plan import Plan
from ..runtime.run import execute
from ..runtime.wiring import Wiring
from ..scheduling.events import Status, Stop, StopKind
from ..store.shared import shared_store
from ..task.kinds import ModelTask
from .claiming import ClaimingLookahead, ClaimingStore
from .cluster_run import stop_of
from .job import REPEATS_REQUESTS, UNOBSERVED, Job, empty_record
from .links import RunHandle, link_here
from .partition_limits import PartitionLimits
from .session import PartitionSession

if TYPE_CHECKING:
    from ..store.contract import ReplyStore

__all__ = ["Part", "begin", "columns_of", "run_partition"]


@dataclass
class Part:
    """One finished partition.

    Attributes:
        number: its position among the partitions, from 0.
        frame: its source rows.
        record: of its own run.
        host, process: where it ran: names of the machine and of the Dask worker.
        offset: seconds to add to the record's times for the coordinator's clock.
        began: when the run of all partitions began, on the coordinator's clock.
        workers: of the run of all partitions.
        limits: (time on the coordinator's clock, new limit) of each change.
        stop: why the run of all partitions was stopped.
        lost: attempts, in all partitions, that were made or running on workers that died.
    """

    number: int
    frame: pd.DataFrame
    record: Record
    host: str = ""
    process: str = ""
    offset: float = 0.0
    began: float = 0.0
    workers: int = 0
    limits: tuple[tuple[float, int], ...] = ()
    stop: Stop | None = None
    lost: int = 0


class _PartitionWiring(Wiring):
    """An ordinary run's, with a part of the cluster's limits and the claims of its session."""

    def __init__(self, plan: Plan, session: PartitionSession, claims: ClaimingStore | None):
        timeout = session.timeout if session.timeout is None else max(session.timeout, 0.001)
        options = dataclasses.replace(plan.options, limits=Limits(timeout=timeout))
        workers = max(1, min(session.workers, plan.total - len(plan.refused)))
        plan = dataclasses.replace(plan, options=options, workers=workers, price=session.job.price)
        super().__init__(plan)
        self._session = session
        self._claims = claims
        self.callback = session.settled
        relay = ObserverSpec("cluster", lambda: session, owned=False)
        self.observers = [relay] if session.observed else []
        if claims is not None and plan.total > len(plan.refused):
            self.open_store = lambda: claims

    def throttle(self) -> PartitionLimits:
        plan, session = self.plan, self._session
        limits = PartitionLimits(
            plan.workers,
            rate_limit=session.rate_limit,
            budget=session.budget,
            size=self.prompts.size if isinstance(plan.task, ModelTask) else None,
            max_tokens=None if plan.client is None else plan.client.max_tokens,
            price=plan.price,
            reports_load=session.reports_load,
            report_now=session.report_now,
        )
        session.begin(limits)
        return limits

    def lookahead(
        self,
        store: ReplyStore,
        todo: Iterable[int] | None = None,
        *,
        offline: bool = False,
        claims: bool = True,
    ) -> Lookahead:
        assert self._claims is not None
        return ClaimingLookahead(self.plan, self.prompts, self._claims, self._session, self.answers)

    def started(
        self, stop: Callable[[Stop], object], apply: Callable[[Callable[[], object]], object]
    ) -> None:
        self._session.started(stop, apply)


def begin(job: Job) -> RunHandle:
    """Begin a run of a job: the first task of each computation."""
    link = link_here(job.made_in)
    run = link.begin(job.terms, job.clients)
    if run.again and job.repeats_requests:
        link.send(job.id, {"warn": REPEATS_REQUESTS})
    if job.observed and not run.observed:
        link.send(job.id, {"warn": UNOBSERVED})
    return run


def run_partition(job: Job, run: RunHandle, number: int, frame: pd.DataFrame) -> Part:
    """Run a partition.

    Raises:
        RunFailed: the run was stopped, and ``collect`` does not want its partial result.
    """
    plan = job.prepare(frame).plan.with_draws(first=number * DRAWS_OF_A_PARTITION)
    if not plan.total:
        return Part(number, frame, empty_record(plan))
    link = link_here(job.made_in)
    with contextlib.ExitStack() as stack:
        session = PartitionSession(link, run, job, number, plan.total)
        stack.enter_context(session)
        claims = None
        if job.store is not None:
            store = stack.enter_context(shared_store(job.store))
            claims = ClaimingStore(store, session, job.store)
        record = execute(_PartitionWiring(plan, session, claims))
        if record.stopped is not None and record.stopped.kind is StopKind.TIMEOUT:
            # The timeout of the run, not the rest of it for this partition.
            record.stopped = timed_out(job.terms["timeout"])
        closed = session.close(record.stopped)
    elsewhere = job.made_in != (link.host, os.getpid())
    if record.store_problem is not None and elsewhere and not session.collected:
        # A warning on a worker only reaches its log. ``collect`` shows it in the result.
        link.send(job.id, {"warn": record.store_problem})
    if isinstance(record.ended_by, KeyboardInterrupt):
        raise Interrupted("interrupted")
    if record.ended_by is not None:
        raise record.ended_by
    _make_light(record)
    stop = stop_of(closed["stop"]) if "stop" in closed else None
    if record.stopped is None and Status.NOT_STARTED in record.status:
        record.stopped = stop
    part = Part(
        number=number,
        frame=frame,
        record=record,
        host=link.host,
        process=link.name,
        offset=session.offset,
        began=session.began,
        workers=session.workers,
        limits=tuple((at, limit) for at, limit in closed.get("limits", ())),
        stop=stop or record.stopped,
        lost=closed.get("lost", 0),
    )
    stopped = record.stopped is not None and record.total > record.status.count(Status.OK)
    if (stopped or record.has_unfinished) and not session.collected:
        raise _failed(job, part)
    return part


def _make_light(record: Record) -> None:
    """Remove the exceptions of failures, which may not pickle."""
    for failures in (record.failures, record.attempt_failures):
        for at, failure in failures.items():
            failures[at] = failure._replace(cause=None)
    if record.first_refused is not None:
        row, failure = record.first_refused
        record.first_refused = row, failure._replace(cause=None)


def _failed(job: Job, part: Part) -> RunFailed:
    record = part.record
    stop = part.stop or record.stopped or INTERRUPTED
    done = record.status.count(Status.OK)
    kept = (
        f"Replies that came are kept in {job.store}: compute it again to go on from there."
        if job.store is not None
        else "For the partial result, revkit.collect(…) instead."
    )
    message = (
        f"the run was stopped: {stop.reason}; of the {plural(record.total, 'row')} of partition "
        f"{part.number}, {done} {'is' if done == 1 else 'are'} done. {kept}"
    )
    return error_of_stop(stop.kind)(message)


def columns_of(job: Job, part: Part) -> pd.DataFrame:
    """A partition's frame with the columns of its record."""
    return job.finished(part.frame, part.record)
