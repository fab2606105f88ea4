"""One partition on one worker: an ordinary run, whose limits come from the coordinator."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..api.finish import error_of_stop
from ..errors import Interrupted, RunFailed
from ..observers import ObserverSpec
from ..record.record import Record
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
from .job import ASKS_AGAIN, UNHEARD, Job, empty_record
from .links import Begun, link_here
from .ration import PurseShare, Ration, StartShare
from .seat import Seat

if TYPE_CHECKING:
    from ..store.contract import ReplyStore

__all__ = ["Part", "begin", "columns_of", "run_partition"]


@dataclass
class Part:
    """One partition when it is through.

    Attributes:
        number: its place among the partitions, from 0.
        frame: its rows, as they came.
        record: everything that is known of its run.
        host, process: where it ran: the machine's name, and the Dask worker's.
        offset: seconds to be added to the record's times for those of the coordinator.
        began: when the run of all partitions began, on the coordinator's clock.
        workers: what the run of all partitions might have.
        limits: (time on the coordinator's clock, limit) where that changed.
        stop: why the run of all partitions was stopped.
        lost: attempts that workers had made or begun that died, in the run of all partitions.
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
    """An ordinary run's, but its limits, claims and facts are those of the cluster."""

    def __init__(self, plan: Plan, seat: Seat, claims: ClaimingStore | None, *, observed: bool):
        super().__init__(plan)
        self._seat = seat
        self._claims = claims
        self.callback = seat.settled
        self.observers = [ObserverSpec("cluster", lambda: seat, owned=False)] if observed else []
        if claims is not None and plan.total > len(plan.refused):
            self.open_store = lambda: claims

    def throttle(self) -> Ration:
        plan, seat = self.plan, self._seat
        ration = Ration(
            plan.workers,
            starts=seat.starts,
            purse=seat.purse,
            size=self.prompts.size if isinstance(plan.task, ModelTask) else None,
            max_tokens=None if plan.client is None else plan.client.max_tokens,
            price=plan.price,
        )
        seat.begin(ration)
        return ration

    def lookahead(
        self, store: ReplyStore, todo: Iterable[int] | None = None, *, offline: bool = False
    ) -> Lookahead:
        assert self._claims is not None
        return ClaimingLookahead(self.plan, self.prompts, self._claims, self._seat)

    def started(
        self, stop: Callable[[Stop], object], tell: Callable[[Callable[[], object]], object]
    ) -> None:
        self._seat.started(stop, tell)


def begin(job: Job) -> Begun:
    """Begin a run of a job: the first task of each computation."""
    link = link_here(job.id, job.made_in)
    begun = link.begin(job.terms, job.clients)
    if begun.again and job.asks_anew:
        link.tell(job.id, {"warn": ASKS_AGAIN})
    if job.observed and not begun.heard:
        link.tell(job.id, {"warn": UNHEARD})
    return begun


def run_partition(job: Job, begun: Begun, number: int, frame: pd.DataFrame) -> Part:
    """Work a partition off.

    Raises:
        RunFailed: the run was stopped, and nobody collects its partial result.
    """
    plan = job.prepare(frame).plan
    if not plan.total:
        return Part(number, frame, empty_record(plan))
    link = link_here(job.id, job.made_in)
    host = socket.gethostname()
    place = {"partition": number, "host": host, "process": link.name}
    seat = Seat(link, begun.run, job.id, number, plan.total, place)
    with contextlib.ExitStack() as stack:
        closed = stack.enter_context(_closed(seat))
        seat.tells_load = "adaptive" in job.terms
        seat.starts = StartShare(seat.urge) if "rate_limit" in job.terms else None
        seat.purse = PurseShare(seat.urge) if "budget" in job.terms else None
        claims = None
        if job.store is not None:
            store = stack.enter_context(shared_store(job.store))
            claims = ClaimingStore(store, seat, job.store)
        record = execute(_wired(plan, seat, claims, job, observed=job.observed and begun.heard))
        if record.stopped is not None and record.stopped.kind is StopKind.TIMEOUT:
            # Of the run, not what was left of it for this partition.
            record.stopped = timed_out(job.terms["timeout"])
        closed |= seat.close(record.stopped)
    elsewhere = job.made_in != (host, os.getpid())
    if record.store_problem is not None and elsewhere and not seat.collected:
        # What a worker warns of stands in its log. Who collects has it in the result.
        link.tell(job.id, {"warn": record.store_problem})
    if isinstance(record.ended_by, KeyboardInterrupt):
        raise Interrupted("interrupted")
    if record.ended_by is not None:
        raise record.ended_by
    _make_light(record)
    stop = Stop(StopKind(closed["stop"][0]), *closed["stop"][1:]) if "stop" in closed else None
    if record.stopped is None and Status.NOT_STARTED in record.status:
        record.stopped = stop
    part = Part(
        number=number,
        frame=frame,
        record=record,
        host=host,
        process=link.name,
        offset=seat.offset,
        began=seat.began,
        workers=seat.workers,
        limits=tuple((at, limit) for at, limit in closed.get("limits", ())),
        stop=stop or record.stopped,
        lost=closed.get("lost", 0),
    )
    unfinished = record.stopped is not None and record.total > record.status.count(Status.OK)
    if unfinished and not seat.collected:
        raise _failed(job, part)
    return part


@contextmanager
def _closed(seat: Seat) -> Iterator[dict[str, Any]]:
    """Whatever happens, the seat is given up; yields where to put what is said then."""
    said: dict[str, Any] = {}
    try:
        yield said
    finally:
        if not said:
            seat.close()


def _wired(
    plan: Plan, seat: Seat, claims: ClaimingStore | None, job: Job, *, observed: bool
) -> Wiring:
    timeout = seat.timeout if seat.timeout is None else max(seat.timeout, 0.001)
    plan = dataclasses.replace(
        plan,
        workers=max(1, min(seat.workers, plan.total - len(plan.refused))),
        options=dataclasses.replace(plan.options, limits=Limits(timeout=timeout)),
        price=job.price,
    )
    return _PartitionWiring(plan, seat, claims, observed=observed)


def _make_light(record: Record) -> None:
    """Take out what does not travel: the exceptions behind failures, which may be anything."""
    for failures in (record.failures, record.attempt_failures):
        for at, failure in failures.items():
            failures[at] = failure._replace(cause=None)
    if record.first_refused is not None:
        row, failure = record.first_refused
        record.first_refused = row, failure._replace(cause=None)


def _failed(job: Job, part: Part) -> RunFailed:
    record = part.record
    stop = part.stop or record.stopped
    assert stop is not None
    done = record.status.count(Status.OK)
    kept = (
        f"Replies that came are kept in {job.store}: compute it again to go on from there."
        if job.store is not None
        else "For the partial result, revkit.collect(…) instead."
    )
    message = (
        f"the run was stopped: {stop.reason}; of the {record.total} rows of partition "
        f"{part.number}, {done} are done. {kept}"
    )
    return error_of_stop(stop.kind)(message)


def columns_of(job: Job, part: Part) -> pd.DataFrame:
    """A partition's frame with the columns that were made."""
    return job.finished(part.frame, part.record)
