"""What a call comes to: everything is decided, and refused if it cannot be done, before anything
is sent.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..clients import prices, registry
from ..clients.contract import Client
from ..errors import UsageError, warn
from ..record import columns, samples
from ..results import provenance
from ..runtime.options import Failures, Inputs, Limits, Pool, Replies, RunOptions
from ..runtime.plan import Plan, available_cpus, choose_engine
from ..runtime.wiring import Display, Wiring
from ..store.choice import store_of
from ..tables.batch import batch
from ..tables.binding import Binding, bind_frame, bind_items, bind_series, series_frame
from ..tables.dtypes import snapshot
from ..tables.frame_lock import frame_lock
from ..task.kinds import CallableTask, ModelTask, as_task

if TYPE_CHECKING:
    from ..runtime.draws import PromptCounts
    from ..store.contract import ReplyStore
    from ..task.tokens import Price

__all__ = ["Prepared", "Task", "prepare", "written_columns"]

Task = ModelTask | CallableTask

#: Seconds that a client gets to keep its own timeout.
_SLACK = 5.0


@dataclass(frozen=True)
class Prepared:
    """A call that can be carried out."""

    plan: Plan
    #: the frame as it was when the call was made
    before: pd.DataFrame
    #: the frame to write to, None where nothing is written
    target: pd.DataFrame | None
    inputs: list[Hashable]
    #: what the run is going to be made of, as plain JSON
    provenance: Mapping[str, Any]
    #: as :class:`~revkit.runtime.wiring.Wiring` has them
    open_store: Callable[[], ReplyStore | None] | None
    open_display: Callable[[int], Display] | None

    def wiring(self, plan: Plan | None = None) -> Wiring:
        """For one run, of the whole plan or of one for some of its rows."""
        return Wiring(
            self.plan if plan is None else plan,
            open_store=self.open_store,
            open_display=self.open_display,
        )


def prepare(
    source: Any,
    task: Any,
    options: RunOptions,
    counts: PromptCounts | None = None,
    *,
    alive: bool = False,
) -> Prepared:
    """Decide everything about a call; raises :class:`UsageError` kinds, and sends nothing.

    Args:
        counts: of the prompts of rows before these, where this is one chunk of many.
        alive: the model has replied to some of those.
    """
    pool = options.pool
    task, inputs = _task(task, options.inputs)
    with frame_lock():  # what is checked and bound from here on, no other thread can change
        target = source if isinstance(source, pd.DataFrame) else None
        frame, binding = _bound(source if target is None else snapshot(target), task, inputs)
    client = _client(task, options.replies)
    if isinstance(task, CallableTask) and options.failures.truncated != "error":
        raise UsageError(f"truncated= is for tasks that ask a model; {task.name} is a function")
    open_store = None
    if client is not None and len(frame) > len(binding.refused):
        open_store = store_of(options.replies.store, client)
    if isinstance(task, ModelTask) and client is not None and inputs.repeat > 1:
        _warn_of_equal_samples(task, client, inputs.repeat)
    columns.check_outputs(
        frame,
        written_columns(task, options),
        task.fingerprint,
        inputs=binding.columns if isinstance(task, ModelTask) or inputs.on is not None else [],
        overwrite=options.writing.overwrite,
    )
    engine = choose_engine(pool.engine, task, client)
    if pool.loop == "notebook" and engine != "async":
        raise UsageError('loop="notebook" is for the async engine, and this run is on threads')
    _check_states(task, pool, engine)
    options = dataclasses.replace(
        options,
        inputs=inputs,
        failures=_failures(options.failures, len(frame) * inputs.repeat, engine, client),
        limits=_limits(options.limits, client),
    )
    todo = (len(frame) - len(binding.refused)) * inputs.repeat
    plan = Plan(
        task=task,
        rows=binding.rows,
        total=len(frame),
        refused=binding.refused,
        client=client,
        engine=engine,
        workers=pool.count(todo, cpus=available_cpus()),
        options=options,
        price=_price(options.limits, task, client),
        alive=alive,
    )
    if inputs.repeat > 1:
        plan = plan.repeated(inputs.repeat)
    plan = plan.with_draws(counts)
    return Prepared(
        plan=plan,
        before=frame,
        target=target if options.writing.inplace else None,
        inputs=binding.columns,
        provenance=provenance.of_call(plan, inputs=binding.columns or frame.columns[:1]),
        open_store=open_store,
        open_display=_display(options.showing.progress),
    )


def written_columns(task: Task, options: RunOptions, *, is_open: bool = False) -> list[Hashable]:
    """The columns that a run writes.

    Args:
        is_open: the task is a function whose outputs are known only when it has run.
    """
    if isinstance(task, CallableTask):
        names = [] if is_open else [task.output]
    else:
        repeated = options.inputs.repeat > 1
        names = samples.columns_of(task.outputs) if repeated else list(task.outputs)
    error = options.writing.error
    labels = columns.output_columns(names, options.writing.prefix, error).values()
    return [*labels, *([error] if error is not None else [])]


def _task(given: Any, inputs: Inputs) -> tuple[Task, Inputs]:
    """The task, and its inputs as they are to be bound."""
    on: Any = inputs.on
    named = list(on) if isinstance(on, list | Mapping) else [on] if on is not None else None
    task = as_task(given, instructions=inputs.instructions, inputs=named, output=inputs.output)
    if inputs.instructions is not None and not isinstance(on, Mapping):
        # A pydantic model's inputs are the columns themselves.
        inputs = dataclasses.replace(inputs, on=None)
    return task, inputs


def _bound(source: Any, task: Task, inputs: Inputs) -> tuple[pd.DataFrame, Binding]:
    """The items as a frame, and which of its columns are the task's inputs."""
    on, batch_key = inputs.on, inputs.batch_key
    if batch_key is not None and isinstance(source, pd.DataFrame | pd.Series):
        raise UsageError(
            "batch_key= picks a list out of a mapping, and items= is a frame or Series"
        )
    if isinstance(source, pd.DataFrame):
        return source, bind_frame(source, task, on)
    if isinstance(source, pd.Series):
        binding = bind_series(source, task, on)
        return series_frame(source), binding
    binding, frame = bind_items(batch(source, batch_key), task, on)
    return frame, binding


def _client(task: Task, replies: Replies) -> Client | None:
    if isinstance(task, ModelTask):
        return registry.resolve(replies.model, task)
    if replies.model is not None:
        raise UsageError(f"model= is for tasks that ask a model; {task.name} is a function")
    if replies.store not in (None, False):
        raise UsageError(f"store= keeps replies of models; {task.name} is a function")
    return None


def _warn_of_equal_samples(task: ModelTask, client: Client, repeat: int) -> None:
    """Warn where all samples of a row will be the same."""
    why = client.repeats_itself(task)
    if why is not None:
        warn(
            f"repeat={repeat} asks {client.name} {repeat} times for what it will answer in the "
            f"same way each time: {why}. Give it a temperature above 0 and no seed"
        )


def _failures(given: Failures, rows: int, engine: str, client: Client | None) -> Failures:
    """As they hold for a run: a number of rows in place of a share, and a bound of attempts.

    In a thread a client bounds each wait of a reply, and not their sum before its body.
    """
    timeout = given.attempt_timeout
    if timeout is None and engine == "thread" and client is not None and client.timeout is not None:
        timeout = client.timeout + _SLACK
    limit = None if given.fail_fast else given.limit(rows)
    return dataclasses.replace(given, max_failures=limit, attempt_timeout=timeout)


def _limits(given: Limits, client: Client | None) -> Limits:
    """As they hold for a run: with the client's own rate limit, where none was given."""
    if given.rate_limit is not None or client is None:
        return given
    return dataclasses.replace(given, rate_limit=client.rate_limit)


def _display(progress: Any) -> Callable[[int], Display] | None:
    if progress is True:
        from ..display.progress import bar

        return bar
    if isinstance(progress, str):
        from ..display.live import live

        return live
    return None


def _price(limits: Limits, task: Task, client: Client | None) -> Price | None:
    """The price that a budget needs; refuses limits that cannot be kept."""
    rate_limit, budget = limits.rate_limit, limits.budget
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


def _check_states(task: Task, pool: Pool, engine: str) -> None:
    """Refuse states that no worker could have, or that nobody would see."""
    if pool.factory is None and pool.instances is None:
        return
    name = "factory" if pool.factory is not None else "instances"
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
    if engine == "thread" and inspect.iscoroutinefunction(pool.factory):
        raise UsageError(
            f"factory= is a coroutine function, and {task.name} runs in threads; give a plain "
            "one, or make both `async def`"
        )
