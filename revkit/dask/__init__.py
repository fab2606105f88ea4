"""``ddf.llm``: the same call on a Dask DataFrame, for rows that outgrow one process or machine.

Importing it registers the accessor; ``import revkit`` does so if Dask's DataFrame was imported
before. Each partition is an ordinary run on a Dask worker. All partitions of a computation share
their limits, which a coordinator on the Dask scheduler keeps. The files, in reading order:

In the user's process
    job                one call: its options, checked and sent to the workers
    gather             computes the partitions, and stops them on an interrupt
    merge              the records of all partitions as one record
    result             ``collect``: gathers, merges, and makes the result
    event_relay        passes events and warnings from the workers on to observers and the user
On each worker
    partition          one partition as an ordinary run
    session            reports to the coordinator, and applies its replies
    partition_limits   the partition's part of ``max_workers``, rate limit and budget
    claiming           claims the keys that the shared store lacks, and lets rows wait for others
    links              the ways to send requests to the coordinator
On the Dask scheduler, or in the process if Dask runs in one; all but the plugin are pure
    plugin             installs the coordinator on the scheduler, and reports lost workers to it
    coordinator        every decision about a cluster, by run and session
    cluster_run        one computation: its sessions, failures, pause and stop
    shares             how ``max_workers`` is shared out
    shared_rate_limit  plans the starts of all sessions
    shared_budget      grants parts of a budget to sessions
    claims             which session asks the model for which key
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Mapping
from typing import Any, Unpack

try:
    import dask
    import dask.dataframe as dd
    from dask.callbacks import Callback
    from dask.delayed import Delayed, delayed
    from dask.sizeof import sizeof
except ImportError as error:
    from ..errors import MissingExtra

    raise MissingExtra('Dask is not installed: pip install "revkit[dask]"') from error

from ..api.arguments import TaskLike, shows_options
from ..errors import UsageError
from ..results.result import ParallelResult
from ..runtime.options import Options
from ..task.sentiment import SENTIMENT
from .event_relay import EventRelay
from .job import LEFT_OUT, Job, make_job
from .links import computed_here, current_client
from .partition import Part, begin, columns_of, run_partition
from .result import collect_parts

__all__ = ["DaskAccessor", "DaskSeriesAccessor", "collect"]


class _Graph:
    """A job and the tasks that run its partitions.

    Attributes:
        parts: one for each partition; each gives a :class:`~revkit.dask.partition.Part`.
        relay: passes its events on in this process.
    """

    def __init__(self, job: Job, parts: list[Delayed]):
        self.job, self.parts = job, parts
        self.relay = EventRelay(job.id, job.observers)
        if (client := current_client()) is not None:
            job.clients.append(self.relay.subscribe(client))
        weakref.finalize(self, self.relay.abandon).atexit = False
        Callback(finish=computed_here).register()  # the same one each time


#: name of a collection -> its graph, as long as the collection lives
_graphs: weakref.WeakValueDictionary[str, _Graph] = weakref.WeakValueDictionary()


class DaskAccessor:
    """``ddf.llm``: run a language model, or a function, over every row of a Dask DataFrame."""

    def __init__(self, frame: Any):
        self._frame = frame

    @shows_options(*LEFT_OUT)
    def parallel_map(
        self,
        task: TaskLike = SENTIMENT,
        *,
        meta: Mapping[str, Any] | Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """The frame with the outputs and ``error`` as further columns; lazy, so it sends nothing.

        Compute it as anything in Dask: ``.compute()``, ``.to_parquet(…)``, or
        :func:`revkit.collect` for the whole :class:`~revkit.ParallelResult`. Index, divisions and
        row order stay the same. It runs on the workers of any Dask scheduler.

        ``max_workers``, ``rate_limit``, ``budget``, ``max_failures``, ``fail_fast``, ``timeout``
        and the pauses of a server apply to all Dask workers together. ``docs/cluster.md`` says
        which of them are exact.

        Args:
            meta: for a function, the dtype of its output, or a mapping of output to dtype; None:
                from its return annotation (``int``, ``float``, ``bool``, ``str``), else ``object``.
            store: a directory that all workers see, which keeps good replies. With it, a worker
                that dies only costs its calls in flight, and a second ``compute()`` sends nothing.
                None: the directory of ``REVKIT_STORE``; without one nothing is kept, and you get
                a warning. False: nothing is kept.
            max_failures: a number of rows.
            observer: gets the events of every computation; each partition is a run of its own.

        For the other arguments see :func:`revkit.parallel_map`. ``loop``, ``progress``, ``cancel``
        and ``instances`` are not available on Dask; ``repeat`` is for models only.

        Raises:
            UsageError: the call cannot be carried out as written.
            RunFailed: while it is computed: the run was stopped. If every row fails you get a
                warning, and ``collect`` raises.

        >>> import pandas as pd, dask.dataframe as dd, revkit.dask
        >>> from revkit.testing import FakeModel
        >>> df = pd.DataFrame({"review": ["good", "bad", "so good"]})
        >>> fake = FakeModel(lambda text: "positive" if "good" in text else "negative")
        >>> rated = dd.from_pandas(df, npartitions=2).llm.parallel_map(model=fake)
        >>> rated.compute(scheduler="synchronous")["sentiment"].tolist()
        ['positive', 'negative', 'positive']
        """
        return _lazily(self._frame, task, meta, dict(options), scalar=False)


class DaskSeriesAccessor:
    """``series.llm`` on a Dask Series: the same over its values."""

    def __init__(self, series: Any):
        self._series = series

    @shows_options("on", *LEFT_OUT)
    def parallel_map(
        self,
        task: TaskLike = SENTIMENT,
        *,
        meta: Mapping[str, Any] | Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """A Dask DataFrame of the values, the outputs and ``error``; lazy, so it sends nothing.

        A function gets the value itself. For arguments and errors see
        :meth:`DaskAccessor.parallel_map`.

        >>> import pandas as pd, dask.dataframe as dd, revkit.dask
        >>> words = dd.from_pandas(pd.Series(["a", "bb"], name="word"), npartitions=2)
        >>> words.llm.parallel_map(len, output="length", meta=int).compute()
          word  length error
        0    a       1  <NA>
        1   bb       2  <NA>
        """
        name = "item" if self._series.name is None else self._series.name
        frame = self._series.to_frame(name=name)
        return _lazily(frame, task, meta, dict(options), scalar=True)


def _lazily(frame: Any, task: TaskLike, meta: Any, options: dict[str, Any], *, scalar: bool) -> Any:
    """The collection that ``parallel_map`` returns."""
    accessor = DaskSeriesAccessor if scalar else DaskAccessor
    job = make_job(
        frame._meta, task, options, function=accessor.parallel_map, dtypes=meta, scalar=scalar
    )
    if current_client() is not None:
        job.check_travels()
    key = f"{job.name}-{{}}-{uuid.uuid4().hex}"
    job_ = delayed(job, name=key.format("job"), traverse=False, pure=False)
    run = _task(begin, key.format("begin"), job_)
    parts = [
        _task(run_partition, f"{key.format('rows')}-{number}", job_, run, number, rows)
        for number, rows in enumerate(frame.to_delayed())
    ]
    frames = [
        _task(columns_of, f"{key.format('columns')}-{number}", job_, part)
        for number, part in enumerate(parts)
    ]
    # Types are those of meta: a column of objects need not hold text.
    with dask.config.set({"dataframe.convert-string": False}):
        made = dd.from_delayed(
            frames, meta=job.meta, divisions=frame.divisions, verify_meta=False, prefix=job.name
        )
    job.graph = _graphs[made._name] = _Graph(job, parts)  # lives as long as the job does
    return made


def _task(function: Any, key: str, *arguments: Any) -> Delayed:
    made: Delayed = delayed(function, pure=False, traverse=False)(*arguments, dask_key_name=key)
    return made


@sizeof.register(Part)  # type: ignore[untyped-decorator]
def _size(part: Part) -> int:
    """Dask's estimate of a partition's memory: of its frame and its replies."""
    text = sum(len(reply.text) for reply in part.record.replies.values())
    return int(sizeof(part.frame)) + text + 200 * part.record.total


def collect(frame: Any) -> ParallelResult:
    """Compute what ``ddf.llm.parallel_map`` returned, as one result for all partitions.

    Attempts come from all workers, on one clock that begins with the run: percentiles, timeline,
    trace and ``what_if`` are those of the cluster. ``run.attempts`` names the host and the Dask
    worker of each.

    Args:
        frame: the Dask DataFrame that ``parallel_map`` returned, unchanged.

    Raises:
        UsageError: the frame is another one.
        RunFailed: every row failed, or the run was stopped; ``.result`` has the finished rows.
        Interrupted: an interrupt stopped this run, and left the cluster as it is; ``.result`` has
            the finished rows. The second Ctrl-C returns at once.

    >>> import pandas as pd, dask, dask.dataframe as dd, revkit.dask
    >>> ddf = dd.from_pandas(pd.DataFrame({"n": range(4)}), npartitions=2)
    >>> def square(row) -> int:
    ...     return row["n"] ** 2
    >>> with dask.config.set(scheduler="synchronous"):
    ...     run = revkit.collect(ddf.llm.parallel_map(square, output="square"))
    >>> run.frame["square"].tolist()
    [0, 1, 4, 9]
    """
    graph = _graphs.get(getattr(frame, "_name", ""))
    if graph is None:
        raise UsageError(
            "collect() takes the Dask frame that ddf.llm.parallel_map(…) returned, as it is: "
            "collect that frame, and continue with run.frame"
        )
    return collect_parts(graph.job, graph.relay, graph.parts)


def _register() -> None:
    if not hasattr(dd.DataFrame, "llm"):
        dd.extensions.register_dataframe_accessor("llm")(DaskAccessor)
    if not hasattr(dd.Series, "llm"):
        dd.extensions.register_series_accessor("llm")(DaskSeriesAccessor)


_register()
