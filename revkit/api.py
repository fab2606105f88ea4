"""The function behind every door: ``parallel_map`` and ``aparallel_map``.

A call has three steps: :func:`_prepare` decides everything and refuses what cannot be done,
``run.execute`` carries it out, and :func:`_finish` makes the result of its record.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

import pandas as pd

from . import columns, config
from .clients.base import Client
from .errors import Interrupted, RunFailed, UsageError, nearest
from .policy import worker_count
from .result import ParallelResult, failure_message
from .run import Plan, Progress, aexecute, available_cpus, choose_engine, execute
from .sentiment import SENTIMENT
from .task import CallableTask, ModelTask, as_task

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .progress import Bar
    from .record import Record

__all__ = ["Options", "TaskLike", "aparallel_map", "last_result", "map_any", "parallel_map"]

TaskLike = ModelTask | str | Callable[..., Any] | type["BaseModel"]

_last: ParallelResult | None = None


class Options(TypedDict, total=False):
    """The keyword arguments of every ``parallel_map``; their meaning: :func:`parallel_map`."""

    on: Hashable | list[Any] | Mapping[str, Hashable] | None
    model: str | Client | None
    output: str | None
    instructions: str | None
    engine: Literal["auto", "thread", "async"]
    loop: Literal["background", "notebook"]
    max_workers: int | None
    worker_cap: int
    progress: bool | Progress
    prefix: str
    error: str | None
    overwrite: bool


@dataclass(frozen=True)
class _Prepared:
    """A call that can be carried out."""

    plan: Plan
    #: the frame as it was when the call was made
    before: pd.DataFrame
    #: the frame to write to, None where nothing is written
    target: pd.DataFrame | None
    inputs: list[Hashable]
    prefix: str
    error: str | None
    overwrite: bool


def _prepare(
    source: Any,
    task: Any = SENTIMENT,
    *,
    on: Any = None,
    model: str | Client | None = None,
    output: str | None = None,
    instructions: str | None = None,
    engine: Literal["auto", "thread", "async"] = "auto",
    loop: Literal["background", "notebook"] = "background",
    max_workers: int | None = None,
    worker_cap: int = 16,
    progress: bool | Progress = False,
    prefix: str = "",
    error: str | None = "error",
    overwrite: bool = False,
    inplace: bool = False,
) -> _Prepared:
    """Decide everything about a call; raises :class:`UsageError` kinds, and sends nothing."""
    named = list(on) if isinstance(on, list | Mapping) else [on] if on is not None else None
    task = as_task(task, instructions=instructions, inputs=named, output=output, reserved=error)
    if instructions is not None and not isinstance(on, Mapping):
        on = None  # a pydantic model's inputs are the columns themselves
    if isinstance(source, pd.DataFrame):
        frame, binding = source, columns.bind_frame(source, task, on)
    elif isinstance(source, pd.Series):
        binding = columns.bind_series(source, task, on)
        frame = columns.series_frame(source)
    elif isinstance(source, str | bytes | Mapping) or not isinstance(source, Iterable):
        raise UsageError(
            "items= takes a list of mappings, a list of values, a DataFrame or a Series; got "
            f"{type(source).__name__}"
        )
    else:
        binding, frame = columns.bind_items(list(source), task, on)
    client = None
    if isinstance(task, ModelTask):
        client = config.resolve(model, task)
    elif model is not None:
        raise UsageError(f"model= is for tasks that ask a model; {task.name} is a function")
    names = list(task.outputs) if isinstance(task, ModelTask) else [task.output]
    labels = list(columns.output_columns(names, prefix, error).values())
    columns.check_outputs(
        frame,
        [*labels, *([error] if error is not None else [])],
        task.fingerprint,
        inputs=binding.columns if isinstance(task, ModelTask) or on is not None else [],
        overwrite=overwrite,
    )
    chosen = choose_engine(engine, task, client)
    if loop not in ("background", "notebook"):
        raise UsageError(f'loop={loop!r}: there are "background" and "notebook"')
    if loop == "notebook" and chosen != "async":
        raise UsageError('loop="notebook" is for the async engine, and this run is on threads')
    total = len(frame)
    workers = worker_count(
        total - len(binding.refused),
        available_cpus(),
        max_workers=max_workers,
        worker_cap=worker_cap,
    )
    open_bar: Callable[[int], Bar] | None = None
    callback: Progress | None = None
    if callable(progress):
        callback = progress
    elif progress is True:
        from .progress import bar as open_bar
    elif progress is not False:
        raise UsageError(
            f"progress={progress!r}: True for a bar, False for none, or a function of "
            "(completed, total, row_result)"
        )
    plan = Plan(
        task=task,
        rows=binding.rows,
        total=total,
        client=client,
        engine=chosen,
        loop=loop,
        workers=workers,
        refused=binding.refused,
        open_bar=open_bar,
        callback=callback,
    )
    return _Prepared(
        plan=plan,
        before=columns.snapshot(frame),
        target=frame if inplace else None,
        inputs=binding.columns,
        prefix=prefix,
        error=error,
        overwrite=overwrite,
    )


def _finish(call: _Prepared, record: Record) -> ParallelResult:
    """Make the result, write the columns, and raise what the run came to.

    Raises:
        RunFailed: every row failed, or the run was stopped.
        Interrupted: the user stopped it.
    """
    global _last
    plan, task = call.plan, call.plan.task
    frame = call.before
    made = columns.finished(record, task, prefix=call.prefix, error=call.error)
    surprise = None
    if call.target is not None and not call.overwrite:
        surprise = next((label for label in made if _taken(call.target, label, task)), None)
    # before the outputs stand in ``frame``: a function without on= has every column for an input
    same = call.target is None or columns.same_rows(call.target, frame, call.inputs)
    columns.write(frame, made, task.fingerprint)
    result = _last = ParallelResult(
        record,
        frame=frame,
        task=task,
        rows=plan.rows,
        columns={name: f"{call.prefix}{name}" for name in record.values},
        model_name=None if plan.client is None else plan.client.name,
    )
    written = call.target is not None and _write_back(call, made, surprise, same_rows=same)
    for message in record.warnings:
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    if isinstance(record.ended_by, KeyboardInterrupt):
        done = f"interrupted: {result.metrics.succeeded} of {record.total} rows are done, and stand"
        where = "the columns and in " if written else ""
        raise Interrupted(f"{done} in {where}revkit.last_result().frame", result)
    if record.ended_by is not None:
        raise record.ended_by
    if record.failed and (record.stopped or not result.metrics.succeeded):
        cause = record.first_failure[1].cause if record.first_failure else None
        raise RunFailed(failure_message(result), result) from cause
    return result


def _taken(frame: pd.DataFrame, label: Any, task: ModelTask | CallableTask) -> bool:
    """Whether an output is the user's own column: a callable names its outputs only when it
    returns them, and a column may have appeared while the run went on.
    """
    written = frame.attrs.get(columns.ATTRS, {})
    return label in frame.columns and written.get(str(label)) != task.fingerprint


def _write_back(
    call: _Prepared, made: Mapping[Any, Any], surprise: Any, *, same_rows: bool
) -> bool:
    """Write the columns into the caller's frame; says whether it could be done."""
    assert call.target is not None
    if surprise is not None:
        why = (
            f'the column "{surprise}" is there already, and this task did not write it (prefix= '
            "gives outputs other names, overwrite=True replaces it)"
        )
    elif same_rows:
        columns.write(call.target, made, call.plan.task.fingerprint)
        return True
    else:
        why = "its rows were changed while the run went on"
    warnings.warn(
        f"nothing was written to the frame: {why}; the finished frame is run.frame, also as "
        "revkit.last_result().frame",
        UserWarning,
        stacklevel=5,
    )
    return False


def _check_names(options: Mapping[str, Any], leave_out: Iterable[str]) -> None:
    """Refuse an argument that a door does not have, as Python does, and name the nearest."""
    known = [name for name in _OPTIONS if name not in leave_out]
    for name in options:
        if name not in known:
            raise TypeError(f"parallel_map has no argument {name}=; {nearest(name, known)}")


def map_any(
    source: Any, task: Any, *, leave_out: tuple[str, ...] = (), **options: Any
) -> ParallelResult:
    """Run ``task`` over a frame, a Series or a list, from a plain call.

    Args:
        leave_out: arguments of :func:`_prepare` that the door does not have.
    """
    _check_names(options, leave_out)
    call = _prepare(source, task, **options)
    return _finish(call, execute(call.plan))


async def amap_any(
    source: Any, task: Any, *, leave_out: tuple[str, ...] = (), **options: Any
) -> ParallelResult:
    """:func:`map_any` on the running loop."""
    if "loop" in options:
        raise UsageError("loop= is for parallel_map; aparallel_map runs on the loop that awaits it")
    _check_names(options, leave_out)
    call = _prepare(source, task, **options)
    return _finish(call, await aexecute(call.plan))


#: The arguments that doors have in common, with their defaults.
_OPTIONS = {
    name: parameter
    for name, parameter in inspect.signature(_prepare).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}

_F = TypeVar("_F", bound=Callable[..., Any])


def shows_options(*leave_out: str) -> Callable[[_F], _F]:
    """Give a door the signature that it really has, for a notebook's shift-tab."""

    def decorate(door: _F) -> _F:
        own = inspect.signature(door)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        options = [option for name, option in _OPTIONS.items() if name not in leave_out]
        door.__signature__ = own.replace(parameters=[*named, *options])  # type: ignore[attr-defined]
        return door

    return decorate


@shows_options("inplace")
def parallel_map(
    items: Any, task: TaskLike = SENTIMENT, **options: Unpack[Options]
) -> ParallelResult:
    """Run a task over every item of a list, in parallel, and keep the order.

    For frames there is the accessor, ``df.llm.parallel_map``, which takes the same arguments.

    Args:
        items: a list of mappings, or of single values (a callable then gets the value itself).
            A DataFrame or Series is taken as well, and not written to.
        task: a :class:`~revkit.Signature`; a template such as ``"Summarise: {review}"``; a
            pydantic model class (with ``instructions=`` and ``on=``); or a function, plain or
            ``async``, that takes a row (a mapping of its columns) and returns a scalar or a
            mapping of outputs. A parameter named ``context`` gets a :class:`~revkit.Context`.
        on: which columns are the inputs: a column for the only input, or a mapping of input to
            column. What is not bound binds by name. For a function: the columns it gets (None:
            all). A row with NA in an input fails with ``MissingInput``; nothing is sent. A
            function without ``on`` gets every row as it is.
        model: a name (``"local"``, ``"ollama:llama3.2:3b"``, ``"openai:gpt-4.1-mini"``) or a
            client; None: ``revkit.use``, then ``REVKIT_MODEL``, then the embedded model.
        output: the output's name for a template, or a function that returns a scalar
            (``"response"``).
        instructions: for a pydantic model class, what to do.
        engine: ``"auto"``: async for models and coroutine functions, threads for plain ones.
        loop: ``"background"``: beside the notebook's loop; ``"notebook"``: on it, for functions
            that use objects bound to it.
        max_workers: exactly so many, though never more than the rows; None: min(2 x CPUs,
            ``worker_cap``, rows).
        worker_cap: upper limit of the automatic number.
        progress: True for a bar, or a function ``(completed, total, row_result)`` that is called
            for each settled row, one at a time.
        prefix: put before the name of each output column.
        error: name of the error column, None for none.
        overwrite: replace columns that this task did not write.

    Returns:
        The result; its ``frame`` has the items, the outputs and ``error``, in the items' order.

    Raises:
        UsageError: the call cannot be carried out as written; nothing was sent.
        RunFailed: every row failed; ``.result`` has what was done.
        Interrupted: the user interrupted the run; ``.result`` has what was done.

    >>> import revkit
    >>> run = revkit.parallel_map([{"n": 1}, {"n": 2}], lambda row: row["n"] * 10, output="ten")
    >>> run.frame
       n  ten error
    0  1   10  <NA>
    1  2   20  <NA>
    """
    return map_any(items, task, leave_out=("inplace",), **options)


@shows_options("inplace", "loop")
async def aparallel_map(
    items: Any, task: TaskLike = SENTIMENT, **options: Unpack[Options]
) -> ParallelResult:
    """:func:`parallel_map`, awaited: runs on the caller's event loop.

    Raises:
        asyncio.CancelledError: the awaiting task was cancelled; what was done is in
            :func:`last_result`.
    """
    return await amap_any(items, task, leave_out=("inplace",), **options)


def last_result() -> ParallelResult | None:
    """The result of the last run of this process, also of one that raised; None before any."""
    return _last
