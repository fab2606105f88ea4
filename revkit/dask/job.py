"""One call of ``ddf.llm.parallel_map``: checked where it is called, and sent to workers."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import pickle
import socket
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from ..api.arguments import checked
from ..api.finish import outputs_of
from ..api.prepare import Prepared, prepare
from ..clients.contract import Client
from ..errors import UsageError, warn
from ..observers import ObserverSpec
from ..record import columns
from ..record.record import Record
from ..runtime.options import Inputs, Pool, RunOptions
from ..runtime.plan import Plan
from ..scheduling.accounts import PICO
from ..scheduling.limits import Budget
from ..store.manage import is_off
from ..store.shared import MARK, SharedStore
from ..tables.dtypes import STRING, snapshot
from ..task.kinds import CallableTask, ModelTask
from ..task.tokens import Price

__all__ = ["LEFT_OUT", "REPEATS_REQUESTS", "UNOBSERVED", "Job", "empty_record", "make_job"]

_NAME_ONE = (
    'name a directory that all workers see, store="/shared/replies" (store=False turns this '
    "warning off)"
)
#: Warnings before anything is sent.
NO_STORE = (
    "no shared store is named, so each compute() asks the model for every row again, and so does a "
    f"partition whose worker dies: {_NAME_ONE}"
)
REPEATS_REQUESTS = (
    "a Dask frame is computed again, and no shared store is named: rows that have a reply are sent "
    f"to the model again. To keep replies, {_NAME_ONE}"
)
UNOBSERVED = (
    "observer= gets no events of this run: parallel_map was called without a client of this Dask "
    "cluster. Call it again after Client(…), or revkit.collect(…) the frame"
)

#: Arguments of ``parallel_map`` that belong to one process, or to lists.
LEFT_OUT = ("inplace", "loop", "progress", "cancel", "instances", "batch_key")
#: What to use instead of them.
_INSTEAD = {
    "loop": "each Dask worker runs its calls beside Dask's own loop",
    "progress": "use Dask's own: dask.diagnostics.ProgressBar(), distributed.progress(…), or the "
    "dashboard; observer= gets an event for each row",
    "cancel": "cancel the future that client.compute(…) returned; or interrupt the cell",
    "instances": "Dask workers come and go; factory= makes a state for each worker",
}


@dataclass
class Job:
    """One call of ``ddf.llm.parallel_map``.

    Attributes:
        id: unique.
        name: of its tasks on Dask's dashboard.
        options: of a partition's own run.
        samples: how often each row is run.
        scalar: it was called on a Series, which is the only column of its frame.
        client: None for a function.
        terms: options that the partitions share, as plain JSON: see :func:`terms_of`.
        price: of the model's tokens, for a budget in dollars.
        store: the directory that all workers see, or None.
        source: the empty frame that it was called on.
        meta: the empty frame of the result.
        dtypes: of a function's outputs.
        observed: it has observers.
        repeats_requests: replies are not kept, and the user did not choose that.
        clients: subscribed to its events, by their names on the Dask scheduler.
        made_in: host and process of the call.
    """

    id: str
    name: str
    task: ModelTask | CallableTask
    options: RunOptions
    samples: int
    scalar: bool
    client: Client | None
    terms: dict[str, Any]
    price: Price | None
    store: str | None
    source: pd.DataFrame
    meta: pd.DataFrame
    dtypes: dict[str, Any] | None
    observed: bool
    repeats_requests: bool
    made_in: tuple[str, int]
    clients: list[str] = field(default_factory=list)
    #: these stay with the client; ``asked``: all options of the call
    asked: RunOptions | None = field(default=None, repr=False)
    budget: Budget | None = field(default=None, repr=False)
    observers: Sequence[ObserverSpec] = field(default=(), repr=False)
    graph: Any = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        kept: dict[str, Any] = {"asked": None, "budget": None, "observers": (), "graph": None}
        return {**self.__dict__, **kept}

    def check_travels(self) -> None:
        """Explain what cannot be sent to workers, before Dask does.

        Raises:
            UsageError: the client holds a plain key, or connections of this process.
        """
        try:
            pickle.dumps(self.client)
        except UsageError:
            raise
        except Exception:  # noqa: BLE001 - Dask also tries cloudpickle, and raises its own error
            return

    def prepare(self, frame: pd.DataFrame, *, alone: bool = False) -> Prepared:
        """The call over some of the rows.

        Args:
            alone: in one process, with all options; else without those that partitions share.
        """
        task: Any = self.task
        output = None
        if isinstance(task, CallableTask):
            task, output = task.fn, task.output
        options = self.asked if alone else self.options
        assert options is not None
        options = options.replace(
            on=self.options.inputs.on,
            output=output,
            instructions=None,  # the task has them
            model=self.client,
            store=False,
            overwrite=True,  # checked when the job was made
        )
        call = prepare(frame.iloc[:, 0] if self.scalar else frame, task, options)
        if self.samples > 1 and not alone:
            call = dataclasses.replace(call, plan=call.plan.repeated(self.samples))
        if alone and self.store is not None:
            opened = functools.partial(SharedStore, Path(self.store))
            call = dataclasses.replace(call, open_store=opened)
        return call

    def finished(self, frame: pd.DataFrame, record: Record) -> pd.DataFrame:
        """A frame with the columns of its record, with the dtypes of ``meta``."""
        if self.dtypes is not None:
            _fit(record, self.dtypes, self.task)
        error = self.options.writing.error
        labels, arrays = outputs_of(record, self.task, frame, self.options.writing)
        for name, dtype in (self.dtypes or {}).items():
            arrays[name] = _as(arrays[name], dtype, name, self.task)
        made: dict[Any, Any] = {labels[name]: array for name, array in arrays.items()}
        if error is not None:
            made[error] = columns.errors(record)
        frame = snapshot(frame)
        columns.write(frame, made, self.task.fingerprint)
        return frame


def _fit(record: Record, dtypes: Mapping[str, Any], task: ModelTask | CallableTask) -> None:
    """Give a function's record the outputs of ``meta``, in their order."""
    assert isinstance(task, CallableTask)
    unknown = [name for name in record.values if name not in dtypes and record.status]
    if unknown and any(value is not None for value in record.values[unknown[0]]):
        raise UsageError(
            f'{task.name} returned the output "{unknown[0]}", which is not in meta=; name every '
            f'output with its dtype: meta={{"{unknown[0]}": "string", …}}'
        )
    nothing = [None] * record.total
    record.values = {name: record.values.get(name, list(nothing)) for name in dtypes}


def _as(values: Any, dtype: Any, name: str, task: ModelTask | CallableTask) -> Any:
    try:
        return pd.Series(values).astype(dtype).array
    except (TypeError, ValueError) as error:
        assert isinstance(task, CallableTask)
        raise UsageError(
            f'the output "{name}" of {task.name} is not {dtype}, as meta= says: {error}'
        ) from error


def make_job(
    meta: pd.DataFrame,
    task: Any,
    options: dict[str, Any],
    *,
    function: Callable[..., Any],
    dtypes: Any,
    scalar: bool,
) -> Job:
    """Check a call, and make its job; sends nothing.

    Args:
        meta: the collection's empty frame.
        function: the one that was called.
        dtypes: as the user gave them.
        scalar: the collection is a Series, and ``meta`` its frame.

    Raises:
        UsageError: the call cannot be carried out as written.
    """
    store = options.pop("store", None)
    for name, instead in _INSTEAD.items():
        if name in options:
            raise TypeError(f"parallel_map on Dask has no argument {name}=; {instead}")
    if isinstance(options.get("max_failures"), float):
        raise UsageError(
            f"max_failures={options['max_failures']!r}: the number of rows of a Dask frame is not "
            "known in advance; give a number of rows instead of a share"
        )
    asked = checked(function, options)
    plan = prepare(meta.iloc[:, 0] if scalar else meta, task, asked).plan
    if plan.samples > 1 and isinstance(plan.task, CallableTask):
        raise UsageError(
            f"repeat={plan.samples} on Dask is for tasks that ask a model: Dask must know the "
            f"columns in advance, and those of the samples depend on what {plan.task.name} returns"
        )
    if plan.loop_factory is not None:
        raise UsageError(f"{plan.client!r} has a virtual clock, which a cluster cannot share")
    known = None
    if isinstance(plan.task, CallableTask):
        if store not in (None, False):
            raise UsageError(f"store= keeps replies of models; {plan.task.name} is a function")
        known = _dtypes(plan.task, dtypes)
    elif dtypes is not None:
        raise UsageError(
            f"meta= is for functions; the outputs of {plan.task!r} have their own types"
        )
    directory, repeats_requests = None, False
    if plan.client is not None:
        directory = _directory(store)
        repeats_requests = directory is None and store is None and plan.client.keeps_replies
        if repeats_requests:
            warn(NO_STORE)
    identity = uuid.uuid4().hex
    job = Job(
        id=identity,
        name=_name(plan),
        task=plan.task,
        options=RunOptions(
            inputs=Inputs(on=plan.options.inputs.on),
            pool=Pool(engine=asked.pool.engine, factory=asked.pool.factory, max_workers=10**6),
            writing=dataclasses.replace(asked.writing, overwrite=True),
            failures=asked.failures,
        ),
        samples=plan.samples,
        scalar=scalar,
        client=plan.client,
        terms=terms_of(identity, plan),
        price=plan.price,
        store=directory,
        source=meta,
        meta=meta,
        dtypes=known,
        observed=bool(asked.showing.observers),
        repeats_requests=repeats_requests,
        made_in=(socket.gethostname(), os.getpid()),
        asked=asked,
        budget=asked.limits.budget,
        observers=asked.showing.observers,
    )
    job.meta = job.finished(meta, empty_record(plan))
    return job


def terms_of(job: str, plan: Plan) -> dict[str, Any]:
    """The options that the partitions of a job share, as plain JSON."""
    pool, failures, limits = plan.options.pool, plan.options.failures, plan.options.limits
    adaptive, rate, budget = pool.adaptive, limits.rate_limit, limits.budget
    terms: dict[str, Any] = {
        "job": job,
        "max_workers": pool.max_workers if isinstance(pool.max_workers, int) else None,
        "worker_cap": pool.worker_cap,
        "max_failures": failures.limit(plan.total),
        "fail_fast": failures.fail_fast,
        "timeout": limits.timeout,
    }
    if adaptive is not None:
        terms |= {"adaptive": [adaptive.minimum, adaptive.maximum], "max_workers": adaptive.maximum}
    if rate is not None:
        terms["rate_limit"] = {
            "id": rate.identity,
            "requests": rate.requests_per_minute,
            "tokens": rate.tokens_per_minute,
        }
    if budget is not None:
        terms["budget"] = {
            "id": budget.identity,
            "tokens": budget.tokens,
            "pico": None if budget.usd is None else round(budget.usd * PICO),
            "spent": [budget.spent_tokens, round(budget.spent_usd * PICO)],
        }
    return terms


def empty_record(plan: Plan) -> Record:
    """The record of no rows."""
    names = plan.task.outputs if isinstance(plan.task, ModelTask) else ()
    return Record(
        0,
        names,
        asks_model=plan.client is not None,
        samples=plan.samples,
        run_id="",
        started_at=datetime.now(UTC),
    )


def _name(plan: Plan) -> str:
    """The name of the job's tasks on the dashboard: letters only, or Dask cuts it off."""
    name = (
        plan.task.name
        if isinstance(plan.task, CallableTask)
        else "-".join(map(str, plan.task.outputs))
    )
    words = "".join(c if c.isascii() and c.isalpha() else "_" for c in name).strip("_")
    return f"revkit-{words[:40] or 'rows'}"


def _directory(store: Any) -> str | None:
    """The directory that ``store=`` or ``REVKIT_STORE`` names for all workers; None: none."""
    named = os.environ.get("REVKIT_STORE", "").strip() or None
    if store is None and named is not None and not is_off(None) and (Path(named) / MARK).exists():
        return str(Path(named).expanduser().absolute())
    if store is None or is_off(store):
        return None
    if store is True or not isinstance(store, str | os.PathLike):
        raise UsageError(
            f"store={store!r}: on Dask, name a directory that all workers see, such as "
            'store="/shared/replies"'
        )
    if "://" in str(store):
        raise UsageError(f"store={store!r} is a URL; name a directory that all workers see")
    path = Path(store).expanduser().absolute()
    if path.is_file() or path.suffix in (".sqlite", ".sqlite3", ".db"):
        raise UsageError(
            f"store={str(store)!r} is a file, which several machines cannot write safely; on Dask, "
            "name a directory"
        )
    return str(path)


_PLAIN = {int: "Int64", float: "Float64", bool: "boolean", str: STRING}


def _dtypes(task: CallableTask, given: Any) -> dict[str, Any]:
    """The dtype of each output of a function: as given, or as its annotation says."""
    if given is None:
        try:
            returned = typing.get_type_hints(task.fn).get("return")
        except Exception:  # noqa: BLE001 - an annotation may say anything
            returned = None
        origin = typing.get_origin(returned) or returned
        if inspect.isclass(origin) and issubclass(origin, Mapping):
            raise UsageError(
                f"{task.name} returns several outputs, and Dask must know them in advance: "
                'meta={"name": "string", "count": "Int64"}'
            )
        return {task.output: _PLAIN.get(returned, "object")}  # type: ignore[arg-type]
    if not isinstance(given, Mapping):
        given = {task.output: given}
    known = {}
    for name, dtype in given.items():
        try:
            known[str(name)] = pd.api.types.pandas_dtype(_PLAIN.get(dtype, dtype))
        except TypeError:
            raise UsageError(f"meta={given!r}: {dtype!r} is no dtype") from None
    return known
