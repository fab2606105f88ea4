"""What ``ddf.llm.parallel_map`` was asked for: decided where it is called, and sent to workers."""

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
from ..scheduling.buckets import PICO
from ..scheduling.limits import Budget
from ..store.manage import is_off
from ..store.shared import MARK, SharedStore
from ..tables.dtypes import STRING, snapshot
from ..task.kinds import CallableTask, ModelTask
from ..task.tokens import Price

__all__ = ["ASKS_AGAIN", "LEFT_OUT", "UNHEARD", "Job", "empty_record", "make_job"]

_NAME_ONE = (
    'name a directory that all workers see, store="/shared/replies" (store=False says that this '
    "is meant)"
)
#: What the user is told before anything is sent.
ASKS_ANEW = (
    "no shared store is named, so each compute() asks the model for every row anew, and so does a "
    f"partition whose worker dies: {_NAME_ONE}"
)
ASKS_AGAIN = (
    "a Dask frame is computed once more, and no shared store is named: the model is asked again "
    f"for rows that it has answered. To keep replies, {_NAME_ONE}"
)
UNHEARD = (
    "observer= hears nothing of this run: parallel_map was called where no client of this Dask "
    "cluster was there. Call it again after Client(…), or revkit.collect(…) the frame"
)

#: Arguments of ``parallel_map`` that belong to one process, or to lists.
LEFT_OUT = ("inplace", "loop", "progress", "cancel", "instances", "batch_key")
#: What there is instead of them.
_INSTEAD = {
    "loop": "each Dask worker runs its calls beside Dask's own loop",
    "progress": "use Dask's own: dask.diagnostics.ProgressBar(), distributed.progress(…), or the "
    "dashboard; observer= hears of each row",
    "cancel": "cancel what was computed, as client.compute(…) gives it; or interrupt the cell",
    "instances": "Dask workers come and go; factory= makes a state for each worker",
}


@dataclass
class Job:
    """One call of ``ddf.llm.parallel_map``.

    Attributes:
        id: a name that no other has.
        name: what Dask's dashboard calls its tasks.
        options: of a partition's own run.
        samples: how often each row is run.
        scalar: it was called on a Series, which is the one column of its frame.
        client: None for a function.
        terms: what the partitions share, as plain JSON: see :func:`terms_of`.
        price: of the model's tokens, for a budget in dollars.
        store: the directory that all workers see, None where none was named.
        source: the empty frame that it was called on.
        meta: the empty frame that is computed.
        dtypes: of a function's outputs.
        observed: somebody wants its events.
        asks_anew: replies are not kept, and nobody has said that this is meant.
        clients: who hears of it, by their names on the Dask scheduler.
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
    asks_anew: bool
    made_in: tuple[str, int]
    clients: list[str] = field(default_factory=list)
    #: what stays with the client; ``asked``: all that was asked for
    asked: RunOptions | None = field(default=None, repr=False)
    budget: Budget | None = field(default=None, repr=False)
    observers: Sequence[ObserverSpec] = field(default=(), repr=False)
    graph: Any = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        left: dict[str, Any] = {"asked": None, "budget": None, "observers": (), "graph": None}
        return {**self.__dict__, **left}

    def check_travels(self) -> None:
        """Say in the user's words, and not in Dask's, what cannot be sent to workers.

        Raises:
            UsageError: the client holds a key in the clear, or connections of this process.
        """
        try:
            pickle.dumps(self.client)
        except UsageError:
            raise
        except Exception:  # noqa: BLE001 - Dask has other ways, and says so where none does
            return

    def prepare(self, frame: pd.DataFrame, *, alone: bool = False) -> Prepared:
        """The call over some of the rows.

        Args:
            alone: in one process, with all that was asked for; else without what the partitions
                share.
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
            overwrite=True,  # whether it may was decided for all
        )
        call = prepare(frame.iloc[:, 0] if self.scalar else frame, task, options)
        if self.samples > 1 and not alone:
            call = dataclasses.replace(call, plan=call.plan.repeated(self.samples))
        if alone and self.store is not None:
            opened = functools.partial(SharedStore, Path(self.store))
            call = dataclasses.replace(call, open_store=opened)
        return call

    def finished(self, frame: pd.DataFrame, record: Record) -> pd.DataFrame:
        """A frame with the columns of its record, of the types that were promised."""
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
    """Let a function's record have the outputs that were promised, in their order."""
    assert isinstance(task, CallableTask)
    unknown = [name for name in record.values if name not in dtypes and record.status]
    if unknown and any(value is not None for value in record.values[unknown[0]]):
        raise UsageError(
            f'{task.name} returned the output "{unknown[0]}", which Dask was not told of; name '
            f'every output with its dtype: meta={{"{unknown[0]}": "string", …}}'
        )
    nothing = [None] * record.total
    record.values = {name: record.values.get(name, list(nothing)) for name in dtypes}


def _as(values: Any, dtype: Any, name: str, task: ModelTask | CallableTask) -> Any:
    try:
        return pd.Series(values).astype(dtype).array
    except (TypeError, ValueError) as error:
        assert isinstance(task, CallableTask)
        raise UsageError(
            f'what {task.name} returned as "{name}" is not {dtype}, as meta= says: {error}'
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
    """Decide everything about a call; raises :class:`UsageError` kinds, and sends nothing.

    Args:
        meta: the collection's empty frame.
        function: the one that was called.
        dtypes: as the user gave them.
        scalar: the collection is a Series, and this the frame of it.
    """
    store = options.pop("store", None)
    for name, instead in _INSTEAD.items():
        if name in options:
            raise TypeError(f"parallel_map on Dask has no argument {name}=; {instead}")
    if isinstance(options.get("max_failures"), float):
        raise UsageError(
            f"max_failures={options['max_failures']!r}: how many rows a Dask frame has is not "
            "known before it is computed; give a number of rows"
        )
    asked = checked(function, options)
    plan = prepare(meta.iloc[:, 0] if scalar else meta, task, asked).plan
    if plan.samples > 1 and isinstance(plan.task, CallableTask):
        raise UsageError(
            f"repeat={plan.samples} on Dask is for tasks that ask a model: what the samples of "
            f"{plan.task.name} come to shows in what it returns, and Dask must know it before"
        )
    if plan.loop_factory is not None:
        raise UsageError(f"{plan.client!r} keeps a clock of its own, which no cluster shares")
    known = None
    if isinstance(plan.task, CallableTask):
        if store not in (None, False):
            raise UsageError(f"store= keeps replies of models; {plan.task.name} is a function")
        known = _dtypes(plan.task, dtypes)
    elif dtypes is not None:
        raise UsageError(f"meta= is for functions; the outputs of {plan.task!r} say what they are")
    directory, asks_anew = None, False
    if plan.client is not None:
        directory = _directory(store)
        asks_anew = directory is None and store is None and plan.client.keeps_replies
        if asks_anew:
            warn(ASKS_ANEW)
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
        asks_anew=asks_anew,
        made_in=(socket.gethostname(), os.getpid()),
        asked=asked,
        budget=asked.limits.budget,
        observers=asked.showing.observers,
    )
    job.meta = job.finished(meta, empty_record(plan))
    return job


def terms_of(job: str, plan: Plan) -> dict[str, Any]:
    """What the partitions of a job share, as plain JSON."""
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
    """What the dashboard calls the job's tasks: of words only, or Dask cuts it off."""
    told = (
        plan.task.name
        if isinstance(plan.task, CallableTask)
        else "-".join(map(str, plan.task.outputs))
    )
    words = "".join(c if c.isascii() and c.isalpha() else "_" for c in told).strip("_")
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
            f"store={str(store)!r} is the file of one machine's store, which several cannot write "
            "safely; on Dask, name a directory"
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
                f"{task.name} returns several outputs, and Dask has to know them before it is "
                'called: meta={"name": "string", "count": "Int64"}'
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
