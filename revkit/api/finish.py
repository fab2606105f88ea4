"""The end of a call: its run's record becomes a result and columns, or an error that has both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..clients.prices import price_finder
from ..errors import (
    BudgetReached,
    Interrupted,
    RunCancelled,
    RunFailed,
    RunTimeout,
    UsageError,
    plural,
    warn,
)
from ..record import columns, samples
from ..results import provenance
from ..results.result import ParallelResult
from ..runtime.interrupt import Interrupts, noted_interrupts
from ..runtime.options import Writing
from ..runtime.plan import Plan
from ..runtime.run import aexecute, execute
from ..scheduling.events import Status, StopKind
from ..tables.dtypes import same_rows, snapshot
from ..tables.frame_lock import frame_lock
from ..task.kinds import CallableTask, ModelTask
from ..task.outputs import Field
from .prepare import Prepared, Task

if TYPE_CHECKING:
    import pandas as pd

    from ..record.record import Record

__all__ = ["error_of_stop", "finish", "last_result", "outputs_of", "unless_interrupted"]

_last: ParallelResult | None = None

_STOPPED = {
    StopKind.TIMEOUT: RunTimeout,
    StopKind.CANCELLED: RunCancelled,
    StopKind.BUDGET: BudgetReached,
}


def error_of_stop(kind: StopKind) -> type[RunFailed]:
    """What is raised where a run was stopped."""
    return _STOPPED.get(kind, RunFailed)


def outputs_of(
    record: Record, task: Task, frame: pd.DataFrame, writing: Writing
) -> tuple[dict[Any, str], dict[Any, Any]]:
    """The outputs of a run: by name, the labels of their columns and their values."""
    values, fields = record.values, _fields(task)
    if record.samples > 1:
        declared = task.outputs if isinstance(task, ModelTask) else None
        values, fields = samples.combine(record, declared)
    labels = columns.result_labels(
        values,
        record,
        task,
        frame,
        prefix=writing.prefix,
        error=writing.error,
        overwrite=writing.overwrite,
    )
    return labels, columns.finished(values, fields)


def _fields(task: Task) -> Mapping[Any, Field | None]:
    return task.outputs if isinstance(task, ModelTask) else {}


def finish(call: Prepared, record: Record) -> ParallelResult:
    """Make the result, write the columns, and raise what the run came to.

    Raises:
        RunFailed: every row failed, or the run was stopped.
        Interrupted: the user stopped it.
    """
    global _last
    plan, task, writing = call.plan, call.plan.task, call.plan.options.writing
    if isinstance(record.ended_by, UsageError) and not len(record.row):
        raise record.ended_by  # nothing was sent, and nothing is written
    frame = call.before
    if isinstance(task, CallableTask) and not record.values:  # it never returned anything
        record.values[task.output] = [None] * record.total
    sampled = None
    if record.samples > 1:
        sampled = columns.finished(record.values, _fields(task))
    with frame_lock():
        labels, arrays = outputs_of(record, task, frame, writing)
        made = {labels[name]: array for name, array in arrays.items()}
        if writing.error is not None:
            made[writing.error] = columns.errors(record)
        changed = None if call.target is None else _change_of(call, made)
        written = call.target is not None and changed is None
        columns.write(frame, made, task.fingerprint)
        if written and call.target is not None:
            columns.write(call.target, made, task.fingerprint)
        result = _last = ParallelResult(
            record,
            frame=frame,
            task=task,
            rows=plan.rows,
            columns=labels,
            sampled=sampled,
            model_name=None if plan.client is None else plan.client.name,
            find_price=price_finder(plan.client, plan.options.limits.budget),
            provenance=provenance.of_run(call.provenance, record),
            rerun=_Rerun(call, record),
        )
    if changed is not None:
        warn(
            f"nothing was written to the frame: {changed}; the finished frame is run.frame, also "
            "as revkit.last_result().frame"
        )
    for message in record.warnings:
        warn(message)
    if isinstance(record.ended_by, KeyboardInterrupt):
        where = "the columns and in " if written else ""
        raise Interrupted(
            f"interrupted: {_done(result)} in {where}revkit.last_result().frame{_go_on(record)}",
            result,
        )
    if isinstance(record.ended_by, Exception):
        fault = f"{type(record.ended_by).__name__}: {record.ended_by}"
        from ..display import failure_message

        raise RunFailed(f"the run broke off: {fault}\n{failure_message(record)}", result) from (
            record.ended_by
        )
    if record.ended_by is not None:  # the awaiting task was cancelled
        if not record.ended_by.args:
            record.ended_by.args = (
                f"{_done(result)} in revkit.last_result().frame{_go_on(record)}",
            )
        raise record.ended_by
    succeeded = result.metrics.succeeded
    stopped = record.stopped
    some_failed = stopped is not None and succeeded < record.total
    if some_failed or record.has_unfinished or (record.failed and not succeeded):
        cause = record.first_failure[1].cause if record.first_failure else None
        kind = RunFailed if stopped is None else error_of_stop(stopped.kind)
        from ..display import failure_message

        raise kind(failure_message(record), result) from cause
    return result


def _done(result: ParallelResult) -> str:
    total, verb = result.metrics.total, "is" if result.metrics.succeeded == 1 else "are"
    stand = "stands" if verb == "is" else "stand"
    return f"{result.metrics.succeeded} of {plural(total, 'row')} {verb} done, and {stand}"


def _go_on(record: Record) -> str:
    """What to do after a run that was broken off."""
    if record.store is None or record.store_problem is not None:
        return "; revkit.last_result().retry_failed() runs the others"
    return "; run the same again, and it goes on from there"


def unless_interrupted(result: ParallelResult, interrupts: Interrupts) -> ParallelResult:
    """The result, unless an interrupt came while it was written."""
    if interrupts():
        raise Interrupted("interrupted when all was done: revkit.last_result() has it", result)
    return result


class _Rerun:
    """Runs the rows of a call again that are not ok."""

    def __init__(self, call: Prepared, record: Record):
        self._call = call
        self._record = record

    def run(self) -> ParallelResult:
        again, rows = _what_is_left(self._call, self._record)
        with noted_interrupts() as interrupts:
            record = self._record.continued(execute(self._call.wiring(again), interrupts), rows)
            result = finish(_once_more(self._call), record)
        return unless_interrupted(result, interrupts)

    async def arun(self) -> ParallelResult:
        again, rows = _what_is_left(self._call, self._record)
        record = self._record.continued(await aexecute(self._call.wiring(again)), rows)
        return finish(_once_more(self._call), record)


def _what_is_left(call: Prepared, record: Record) -> tuple[Plan, list[int]]:
    """A plan for the rows that are not ok, and which they are."""
    plan = call.plan
    rows = [
        row
        for row, status in enumerate(record.status)
        if status is not Status.OK and row not in plan.refused
    ]
    answered = Status.OK in record.status
    again = dataclasses.replace(plan.only(rows), answered=answered)
    cancel = again.options.limits.cancel
    if cancel is not None and cancel.cancelled:  # it has done what it was for
        again = dataclasses.replace(again, options=again.options.replace(cancel=None))
    return again, rows


def _once_more(call: Prepared) -> Prepared:
    return dataclasses.replace(call, before=snapshot(call.before))


def _change_of(call: Prepared, made: Mapping[Any, Any]) -> str | None:
    """What was changed in the caller's frame while the run went on; None: nothing that matters."""
    target, task = call.target, call.plan.task
    assert target is not None
    if not call.plan.options.writing.overwrite:
        for label in made:
            if columns.is_foreign(target, label, task.fingerprint):
                done = "was replaced" if label in call.before.columns else "has appeared in it"
                return f'a column "{label}" {done} while the run went on'
    if not same_rows(target, call.before, call.inputs):
        return "its rows were changed while the run went on"
    return None


def last_result() -> ParallelResult | None:
    """The result of the last run of this process, also of one that raised; None before any."""
    return _last
