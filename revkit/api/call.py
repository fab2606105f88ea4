"""The function behind every door: ``parallel_map`` and ``aparallel_map``.

A call has three steps: :func:`prepare` decides everything and refuses what cannot be done,
``run.execute`` carries it out, and :func:`finish` makes the result of its record.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

import pandas as pd

from ..clients import prices, registry
from ..clients.contract import Client
from ..errors import (
    BudgetReached,
    Interrupted,
    RunCancelled,
    RunFailed,
    RunTimeout,
    UsageError,
    nearest,
    warn,
)
from ..observers import resolve
from ..record import columns, samples
from ..results import provenance
from ..results.result import ParallelResult, failure_message
from ..runtime.cancel import CancelToken
from ..runtime.interrupt import Press, noted_interrupts
from ..runtime.plan import Display, Plan, Progress, available_cpus, choose_engine, repeated
from ..runtime.run import aexecute, execute
from ..scheduling.adaptive import Adaptive
from ..scheduling.events import Status, StopKind
from ..scheduling.limits import Budget, RateLimit
from ..scheduling.policy import Retry, failure_limit, worker_count
from ..store.choice import store_of
from ..tables.batch import batch
from ..tables.binding import bind_frame, bind_items, bind_series, series_frame
from ..tables.dtypes import same_rows, snapshot
from ..task.kinds import CallableTask, ModelTask, as_task
from ..task.outputs import Field
from ..task.sentiment import SENTIMENT
from ..task.tokens import Price

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..observers import ObserverLike
    from ..record.record import Record

__all__ = [
    "ItemOptions",
    "Options",
    "Prepared",
    "TaskLike",
    "aparallel_map",
    "last_result",
    "map_any",
    "parallel_map",
    "prepare_any",
    "refuse_unknown",
    "seconds",
    "shows_options",
]

TaskLike = ModelTask | str | Callable[..., Any] | type["BaseModel"]

#: Seconds that a client gets to keep its own timeout.
_SLACK = 5.0

_last: ParallelResult | None = None


class Options(TypedDict, total=False):
    """The keyword arguments of every ``parallel_map``; their meaning: :func:`parallel_map`."""

    on: Hashable | list[Any] | Mapping[str, Hashable] | None
    model: str | Client | None
    output: str | None
    instructions: str | None
    engine: Literal["auto", "thread", "async"]
    loop: Literal["background", "notebook"]
    max_workers: int | Adaptive | Literal["adaptive"] | None
    worker_cap: int
    repeat: int
    factory: Callable[[int], Any] | None
    instances: Sequence[Any] | None
    progress: bool | Literal["live"] | Progress
    observer: ObserverLike
    prefix: str
    error: str | None
    overwrite: bool
    fail_fast: bool
    max_failures: float | None
    timeout: float | None
    attempt_timeout: float | None
    cancel: CancelToken | None
    retry: Retry | None
    rate_limit: RateLimit | None
    budget: Budget | None
    store: bool | str | os.PathLike[str] | None


class ItemOptions(Options, total=False):
    """Those of ``revkit.parallel_map``."""

    batch_key: str | None


@dataclass(frozen=True)
class Prepared:
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
    #: what the run is going to be made of, as plain JSON
    provenance: Mapping[str, Any]


def prepare(
    source: Any,
    task: Any = SENTIMENT,
    *,
    on: Any = None,
    model: str | Client | None = None,
    output: str | None = None,
    instructions: str | None = None,
    engine: Literal["auto", "thread", "async"] = "auto",
    loop: Literal["background", "notebook"] = "background",
    max_workers: int | Adaptive | Literal["adaptive"] | None = None,
    worker_cap: int = 16,
    batch_key: str | None = None,
    repeat: int = 1,
    factory: Callable[[int], Any] | None = None,
    instances: Sequence[Any] | None = None,
    progress: bool | Literal["live"] | Progress = False,
    observer: ObserverLike = "noop",
    prefix: str = "",
    error: str | None = "error",
    overwrite: bool = False,
    fail_fast: bool = False,
    max_failures: float | None = None,
    timeout: float | None = None,
    attempt_timeout: float | None = None,
    cancel: CancelToken | None = None,
    retry: Retry | None = None,
    rate_limit: RateLimit | None = None,
    budget: Budget | None = None,
    store: bool | str | os.PathLike[str] | None = None,
    inplace: bool = True,
) -> Prepared:
    """Decide everything about a call; raises :class:`UsageError` kinds, and sends nothing."""
    named = list(on) if isinstance(on, list | Mapping) else [on] if on is not None else None
    for name, given, kind in (
        ("cancel", cancel, CancelToken),
        ("retry", retry, Retry),
        ("rate_limit", rate_limit, RateLimit),
        ("budget", budget, Budget),
    ):
        if given is not None and not isinstance(given, kind):
            raise UsageError(f"{name}={given!r}: give a revkit.{kind.__name__}, or leave it out")
    task = as_task(task, instructions=instructions, inputs=named, output=output)
    if instructions is not None and not isinstance(on, Mapping):
        on = None  # a pydantic model's inputs are the columns themselves
    if batch_key is not None and isinstance(source, pd.DataFrame | pd.Series):
        raise UsageError(
            "batch_key= picks a list out of a mapping, and items= is a frame or Series"
        )
    if isinstance(source, pd.DataFrame):
        frame, binding = source, bind_frame(source, task, on)
    elif isinstance(source, pd.Series):
        binding = bind_series(source, task, on)
        frame = series_frame(source)
    else:
        binding, frame = bind_items(batch(source, batch_key), task, on)
    observers = resolve(observer)
    client = None
    if isinstance(task, ModelTask):
        client = registry.resolve(model, task)
    elif model is not None:
        raise UsageError(f"model= is for tasks that ask a model; {task.name} is a function")
    elif store not in (None, False):
        raise UsageError(f"store= keeps replies of models; {task.name} is a function")
    open_store = None
    if client is not None and len(frame) > len(binding.refused):
        open_store = store_of(store, client)
    _check_repeat(repeat, task, client)
    if isinstance(task, CallableTask):
        names = [task.output]
    else:
        names = samples.columns_of(task.outputs) if repeat > 1 else list(task.outputs)
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
    _check_state(task, factory, instances, chosen, max_workers)
    if instances is not None:
        max_workers = len(instances)
    rows, refused = binding.rows, binding.refused
    if repeat > 1:
        rows, refused = repeated(rows, refused, repeat)
    total = len(frame) * repeat
    adaptive = Adaptive() if max_workers == "adaptive" else max_workers
    workers = worker_count(
        total - len(refused),
        available_cpus(),
        max_workers=adaptive.maximum if isinstance(adaptive, Adaptive) else adaptive,
        worker_cap=worker_cap,
    )
    if rate_limit is None and client is not None:
        rate_limit = client.rate_limit
    open_display: Callable[[int], Display] | None = None
    callback: Progress | None = None
    if callable(progress):
        callback = progress
    elif progress is True:
        from ..display.progress import bar

        open_display = bar
    elif isinstance(progress, str) and progress == "live":
        from ..display.live import live

        open_display = live
    elif progress is not False:
        raise UsageError(
            f'progress={progress!r}: True for a bar, "live" for a display with the timeline, '
            "False for none, or a function of (completed, total, row_result)"
        )
    plan = Plan(
        task=task,
        rows=rows,
        samples=repeat,
        total=total,
        client=client,
        engine=chosen,
        loop=loop,
        workers=workers,
        refused=refused,
        open_display=open_display,
        callback=callback,
        observers=observers,
        retry=Retry() if retry is None else retry,
        max_failures=failure_limit(max_failures, fail_fast=fail_fast, rows=total),
        fail_fast=fail_fast,
        timeout=seconds("timeout", timeout),
        attempt_timeout=seconds("attempt_timeout", attempt_timeout) or _bound(chosen, client),
        cancel=cancel,
        rate_limit=rate_limit,
        budget=budget,
        price=_price(rate_limit, budget, task, client),
        adaptive=adaptive if isinstance(adaptive, Adaptive) else None,
        open_store=open_store,
        factory=factory,
        instances=instances,
    )
    return Prepared(
        plan=plan,
        before=snapshot(frame),
        target=frame if inplace else None,
        inputs=binding.columns,
        prefix=prefix,
        error=error,
        overwrite=overwrite,
        provenance=provenance.of_call(
            plan,
            max_workers=adaptive,
            inputs=binding.columns or frame.columns[:1],
            prefix=prefix,
            error=error,
        ),
    )


def _price(
    rate_limit: RateLimit | None,
    budget: Budget | None,
    task: ModelTask | CallableTask,
    client: Client | None,
) -> Price | None:
    """The price that a budget needs; refuses limits that cannot be kept."""
    if isinstance(task, CallableTask):
        if budget is not None or (rate_limit is not None and rate_limit.tokens_per_minute):
            counted = "budget=" if budget is not None else "tokens_per_minute="
            raise UsageError(f"{counted} counts tokens of models; {task.name} is a function")
        return None
    if budget is None or client is None:
        return None
    price = None
    if budget.usd is not None:
        price = prices.price_of(client.provider, client.model or client.name, budget.prices)
    budget.check(client.name, client.max_tokens, price)
    return price


def _check_repeat(repeat: Any, task: ModelTask | CallableTask, client: Client | None) -> None:
    """Refuse what is no number, and warn where all samples of a row will be the same."""
    if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
        raise UsageError(f"repeat={repeat!r}: give how often each row is run, 1 or more")
    if repeat > 1 and client is not None and isinstance(task, ModelTask):
        why = client.repeats_itself(task)
        if why is not None:
            warn(
                f"repeat={repeat} asks {client.name} {repeat} times for what it will answer in the "
                f"same way each time: {why}. Give it a temperature above 0 and no seed"
            )


def _check_state(
    task: ModelTask | CallableTask,
    factory: Any,
    instances: Any,
    engine: str,
    max_workers: Any,
) -> None:
    """Refuse states that no worker could have, or that nobody would see."""
    if factory is None and instances is None:
        return
    name = "factory" if factory is not None else "instances"
    if isinstance(task, ModelTask):
        raise UsageError(
            f"{name}= gives a state to the workers of a function; {task!r} has none. Write a "
            "function(row, context) that uses context.state"
        )
    if not task.wants_context:
        raise UsageError(
            f"{name}= gives each worker a state, which {task.name} would never see: give it a "
            "parameter named context, and use context.state"
        )
    if instances is None:
        if not callable(factory):
            raise UsageError(
                f"factory={factory!r}: give a function that makes a state from a worker's number"
            )
        if engine == "thread" and inspect.iscoroutinefunction(factory):
            raise UsageError(
                f"factory= is a coroutine function, and {task.name} runs in threads; give a plain "
                "one, or make both `async def`"
            )
        return
    if factory is not None:
        raise UsageError("give factory= or instances=, not both")
    if not isinstance(instances, Sequence) or isinstance(instances, str) or not instances:
        raise UsageError("instances= takes a list of states, one for each worker")
    if len({id(instance) for instance in instances}) < len(instances):
        raise UsageError(
            "instances= has the same object twice, and no two workers may share one; use "
            "factory= to make one for each worker"
        )
    if max_workers is not None and max_workers != len(instances):
        raise UsageError(
            f"there are as many workers as instances ({len(instances)}): leave max_workers= out"
        )


def _bound(engine: str, client: Client | None) -> float | None:
    """Seconds after which an attempt is given up where only its client was to bound it.

    In a thread a client bounds each wait of a reply, and not their sum before its body.
    """
    if engine != "thread" or client is None or client.timeout is None:
        return None
    return client.timeout + _SLACK


def seconds(name: str, given: Any) -> float | None:
    """A time that was given, None for none; refuses what is none."""
    if given is None or (
        isinstance(given, int | float) and not isinstance(given, bool) and given > 0
    ):
        return None if given is None else float(given)
    raise UsageError(f"{name}={given!r}: give seconds above 0, or leave it out")


_STOPPED = {
    StopKind.TIMEOUT: RunTimeout,
    StopKind.CANCELLED: RunCancelled,
    StopKind.BUDGET: BudgetReached,
}


def finish(call: Prepared, record: Record) -> ParallelResult:
    """Make the result, write the columns, and raise what the run came to.

    Raises:
        RunFailed: every row failed, or the run was stopped.
        Interrupted: the user stopped it.
    """
    global _last
    plan, task = call.plan, call.plan.task
    if isinstance(record.ended_by, UsageError) and not len(record.row):
        raise record.ended_by  # nothing was sent, and nothing is written
    frame = call.before
    if isinstance(task, CallableTask) and not record.values:  # it never returned anything
        record.values[task.output] = [None] * record.total
    declared = task.outputs if isinstance(task, ModelTask) else None
    values, sampled = record.values, None
    fields: Mapping[Any, Field | None] = declared or {}
    if record.samples > 1:
        sampled = columns.finished(values, fields)
        values, fields = samples.combine(record, declared)
    labels = columns.result_labels(
        values,
        record,
        task,
        frame,
        prefix=call.prefix,
        error=call.error,
        overwrite=call.overwrite,
    )
    made = {labels[name]: array for name, array in columns.finished(values, fields).items()}
    if call.error is not None:
        made[call.error] = columns.errors(record)
    written = call.target is not None and _can_write(call, made)
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
        find_price=plan.find_price,
        provenance=provenance.of_run(call.provenance, record),
        rerun=_Rerun(call, record),
    )
    for message in record.warnings:
        warn(message)
    if isinstance(record.ended_by, KeyboardInterrupt):
        done = f"interrupted: {result.metrics.succeeded} of {record.total} rows are done, and stand"
        where = "the columns and in " if written else ""
        raise Interrupted(f"{done} in {where}revkit.last_result().frame{_go_on(record)}", result)
    if isinstance(record.ended_by, Exception):
        fault = f"{type(record.ended_by).__name__}: {record.ended_by}"
        raise RunFailed(f"the run broke off: {fault}\n{failure_message(result)}", result) from (
            record.ended_by
        )
    if record.ended_by is not None:  # the awaiting task was cancelled
        if not record.ended_by.args:
            done = f"{result.metrics.succeeded} of {record.total} rows are done, and stand"
            record.ended_by.args = (f"{done} in revkit.last_result().frame{_go_on(record)}",)
        raise record.ended_by
    succeeded = result.metrics.succeeded
    stopped = record.stopped
    if (stopped is not None and succeeded < record.total) or (record.failed and not succeeded):
        cause = record.first_failure[1].cause if record.first_failure else None
        kind = RunFailed if stopped is None else _STOPPED.get(stopped.kind, RunFailed)
        raise kind(failure_message(result), result) from cause
    return result


def _go_on(record: Record) -> str:
    """What to do after a run that was broken off."""
    if record.store is None or record.store_problem is not None:
        return "; revkit.last_result().retry_failed() runs the others"
    return "; run the same again, and it goes on from there"


def _unless_pressed(result: ParallelResult, press: Press) -> ParallelResult:
    """The result, unless an interrupt came while it was written."""
    if press():
        raise Interrupted("interrupted when all was done: revkit.last_result() has it", result)
    return result


class _Rerun:
    """Runs the rows of a call again that are not ok."""

    def __init__(self, call: Prepared, record: Record):
        self._call = call
        self._record = record

    def run(self) -> ParallelResult:
        again, rows = _what_is_left(self._call, self._record)
        with noted_interrupts() as press:
            record = self._record.continued(execute(again, press), rows)
            result = finish(_once_more(self._call), record)
        return _unless_pressed(result, press)

    async def arun(self) -> ParallelResult:
        again, rows = _what_is_left(self._call, self._record)
        record = self._record.continued(await aexecute(again), rows)
        return finish(_once_more(self._call), record)


def _what_is_left(call: Prepared, record: Record) -> tuple[Plan, list[int]]:
    """A plan for the rows that are not ok, and which they are."""
    plan = call.plan
    rows = [
        row
        for row, status in enumerate(record.status)
        if status is not Status.OK and row not in plan.refused
    ]
    again = plan.only(rows)
    if again.cancel is not None and again.cancel.cancelled:  # it has done what it was for
        again = dataclasses.replace(again, cancel=None)
    return again, rows


def _once_more(call: Prepared) -> Prepared:
    return dataclasses.replace(call, before=snapshot(call.before))


def _can_write(call: Prepared, made: Mapping[Any, Any]) -> bool:
    """Whether the caller's frame is still as it was; a warning says where it is not."""
    assert call.target is not None
    target, fingerprint = call.target, call.plan.task.fingerprint
    new = [label for label in made if label not in call.before.columns and label in target.columns]
    if not call.overwrite and any(columns.is_foreign(target, x, fingerprint) for x in new):
        why = f'a column "{new[0]}" has appeared in it while the run went on'
    elif not same_rows(target, call.before, call.inputs):
        why = "its rows were changed while the run went on"
    else:
        return True
    warn(
        f"nothing was written to the frame: {why}; the finished frame is run.frame, also as "
        "revkit.last_result().frame"
    )
    return False


def prepare_any(
    door: str, source: Any, task: Any, *, leave_out: Iterable[str], options: dict[str, Any]
) -> Prepared:
    """Decide everything about a call to a door; raises :class:`UsageError` kinds, sends nothing.

    Args:
        door: name of the function that was called.
        leave_out: arguments of :func:`prepare` that it does not have.
    """
    refuse_unknown(door, options, leave_out=leave_out)
    if "inplace" in leave_out:
        options["inplace"] = False
    return prepare(source, task, **options)


def refuse_unknown(door: str, options: Iterable[str], *, leave_out: Iterable[str]) -> None:
    """Refuse arguments that a door does not have, as Python does, and with the nearest name."""
    awaited = door.startswith("a")
    if awaited and "loop" in options:
        raise UsageError(f"loop= is for {door[1:]}; {door} runs on the loop that awaits it")
    known = [name for name in _OPTIONS if name not in leave_out]
    for name in options:
        if name not in known:
            raise TypeError(f"{door} has no argument {name}=; {nearest(name, known)}")


def map_any(
    source: Any, task: Any, *, leave_out: tuple[str, ...] = (), **options: Any
) -> ParallelResult:
    """Run ``task`` over a frame, a Series or a list, from a plain call.

    Args:
        leave_out: arguments of :func:`prepare` that the door does not have.
    """
    call = prepare_any("parallel_map", source, task, leave_out=leave_out, options=options)
    with noted_interrupts() as press:
        result = finish(call, execute(call.plan, press))
    return _unless_pressed(result, press)


async def amap_any(
    source: Any, task: Any, *, leave_out: tuple[str, ...] = (), **options: Any
) -> ParallelResult:
    """:func:`map_any` on the running loop."""
    call = prepare_any("aparallel_map", source, task, leave_out=leave_out, options=options)
    return finish(call, await aexecute(call.plan))


#: The arguments that doors have in common, with their defaults.
_OPTIONS = {
    name: parameter
    for name, parameter in inspect.signature(prepare).parameters.items()
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
    items: Any, task: TaskLike = SENTIMENT, **options: Unpack[ItemOptions]
) -> ParallelResult:
    """Run a task over every item of a list, in parallel, and keep the order.

    For frames there is the accessor, ``df.llm.parallel_map``, which takes the same arguments.

    Args:
        items: a list of mappings, or of single values (a callable then gets the value itself); a
            mapping of equally long lists, in which any other value is the same for all rows, or
            one without a list, which is one row. Text is no list. A DataFrame or Series is taken
            as well, and not written to.
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
            ``worker_cap``, rows); a :class:`~revkit.Adaptive` or ``"adaptive"``: as many as the
            server's throughput grows with, found in the run.
        worker_cap: upper limit of the automatic number.
        batch_key: the key of a mapping under which the list of items stands; its other entries
            play no part.
        repeat: run each row so often, and take the value that most of its samples gave (numbers:
            their median, a float), with ``<output>_agreement``, the share of all samples that gave
            it (Float64, 0 to 1; a failed sample agrees with none), and ``<output>_tied``
            (boolean), where another value was given as often: then the label that was declared
            first is taken, of other values the one that came first. One good sample is enough for
            a row to be ok; ``run.rows`` has each sample, and limits and counts count samples. A
            model needs a temperature above 0 for it: with the default, 0, its samples are alike,
            and a warning says so.
        factory: makes a state for each worker from its number (a session with history, a
            connection), which a function finds in ``context.state``. It is made on the worker's
            own thread, or in its task, where it is first needed; no other worker uses it; it is
            closed there at the end (as a context manager, by ``aclose`` or ``close``). The state
            of an abandoned attempt is not used again. One that cannot be made, or that another
            worker has, ends the run. For a coroutine function plain factories and ``close`` run on
            the loop, and hold it up as long as they take.
        instances: ready-made states instead, and as many workers; they are left open.
        progress: True for a bar; ``"live"``, in a notebook, for one output with counts, errors and
            timeline that is drawn anew in place (elsewhere a bar); or a function
            ``(completed, total, row_result)`` that is called for each settled row, one at a time.
        observer: what is told of each event of the run: ``"jsonl"`` (a line each to standard
            output), ``"logging"`` (the logger ``revkit``), ``"otel"`` (OpenTelemetry), a name
            given to :func:`~revkit.register_observer`, an object with ``on_event(event)``, or a
            list of these; ``"noop"``: nothing.
        prefix: put before the name of each output column.
        error: name of the error column, None for none.
        overwrite: replace columns that this task did not write.
        fail_fast: stop at the first failed row, and cancel what is running.
        max_failures: stop when more rows than this have failed (an int), or more than this share
            of all rows (a float between 0 and 1); what is running may finish.
        timeout: seconds for the whole run; what is running then is cancelled.
        attempt_timeout: seconds for one attempt. A function in a thread cannot be cancelled: it is
            abandoned and its thread replaced, at most as often as there are workers.
        cancel: a :class:`~revkit.CancelToken`, which cancels the run from any thread.
        retry: a :class:`~revkit.Retry`: when a failed attempt is tried again.
        rate_limit: a :class:`~revkit.RateLimit`: most requests and tokens a minute; None: the
            client's own. Runs that are given the same object share it.
        budget: a :class:`~revkit.Budget`: most tokens or dollars. When it has no room for another
            attempt the run is stopped; what is running may finish.
        store: where good replies of models are kept, so that the same prompt is never paid for
            twice: a path; None: ``REVKIT_STORE``, else a file in the user's data directory; False:
            nowhere, and every row is asked for.

    Returns:
        The result; its ``frame`` has the items, the outputs and ``error``, in the items' order.

    Raises:
        UsageError: the call cannot be carried out as written; nothing was sent.
        RunFailed: every row failed, or the run was stopped; ``.result`` has what was done.
            ``RunTimeout``, ``RunCancelled`` and ``BudgetReached`` are kinds of it.
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
    items: Any, task: TaskLike = SENTIMENT, **options: Unpack[ItemOptions]
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
