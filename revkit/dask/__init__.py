"""``ddf.llm``: the same call on a Dask DataFrame, for rows that outgrow one process or machine.

Importing it registers the accessor; ``import revkit`` does so where Dask's DataFrame was imported
before. :mod:`revkit.dask.coordinator` decides what the workers of a cluster share.
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
from .audience import Audience
from .job import LEFT_OUT, Job, make_job
from .links import computed_here, current_client
from .partition import Part, begin, columns_of, run_partition
from .result import collect_parts

__all__ = ["DaskAccessor", "DaskSeriesAccessor", "collect"]


class _Graph:
    """A job and the tasks that run its partitions.

    Attributes:
        parts: one for each partition; each gives a :class:`~revkit.dask.partition.Part`.
        audience: who hears of it here.
    """

    def __init__(self, job: Job, parts: list[Delayed]):
        self.job, self.parts = job, parts
        self.audience = Audience(job.id, job.observers)
        if (client := current_client()) is not None:
            job.clients.append(self.audience.listen(client))
        weakref.finalize(self, self.audience.forsake).atexit = False
        Callback(finish=computed_here).register()  # the same one each time


#: name of a collection -> what it was made by; as long as the collection, or its graph, lives
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
        """The frame with the outputs and ``error`` as further columns; nothing is asked for yet.

        It is computed as anything in Dask is: ``.compute()``, ``.to_parquet(…)``, or
        :func:`revkit.collect` for the whole :class:`~revkit.ParallelResult`. Index, divisions and
        the order of rows stay as they are. Workers are those of whatever scheduler Dask uses.

        ``max_workers``, ``rate_limit``, ``budget``, ``max_failures``, ``fail_fast``, ``timeout``
        and the pauses that a server asks for hold for all Dask workers together. What is exact
        about it and what approximate: ``docs/cluster.md``.

        Args:
            meta: for a function, the dtype of its output, or a mapping of output to dtype; None:
                as its return annotation says (``int``, ``float``, ``bool``, ``str``), else
                ``object``.
            store: a directory that all workers see, in which good replies are kept: a worker that
                dies then costs its calls in flight and no others, and a second ``compute()`` asks
                for nothing. None: the one that ``REVKIT_STORE`` names, if it is such a directory,
                else nothing is kept, and a warning says so; False: nothing is kept.
            max_failures: a number of rows.
            observer: hears of every computation; each partition is a run of its own.

        The other arguments: :func:`revkit.parallel_map`; ``loop``, ``progress``, ``cancel`` and
        ``instances`` are those of one process, and not there; ``repeat`` is for models.

        Raises:
            UsageError: the call cannot be carried out as written.
            RunFailed: when it is computed: the run was stopped. Where every row fails there is a
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
        """A Dask DataFrame of the values, the outputs and ``error``; nothing is asked for yet.

        A function gets the value itself. The arguments, and what is raised: those of
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
    told = delayed(job, name=key.format("job"), traverse=False, pure=False)
    begun = _task(begin, key.format("begin"), told)
    parts = [
        _task(run_partition, f"{key.format('rows')}-{number}", told, begun, number, rows)
        for number, rows in enumerate(frame.to_delayed())
    ]
    frames = [
        _task(columns_of, f"{key.format('columns')}-{number}", told, part)
        for number, part in enumerate(parts)
    ]
    # Types are as they were announced: a column of objects need not hold text.
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
    """What Dask takes a partition for when it thinks of memory: its frame, and what was said."""
    said = sum(len(reply.text) for reply in part.record.replies.values())
    return int(sizeof(part.frame)) + said + 200 * part.record.total


def collect(frame: Any) -> ParallelResult:
    """Compute what ``ddf.llm.parallel_map`` returned, as one result for all partitions.

    Attempts come from all workers, on one clock that begins with the run: percentiles, timeline,
    trace and ``what_if`` are those of the cluster. ``run.attempts`` names the host and the Dask
    worker of each.

    Args:
        frame: the Dask DataFrame that ``parallel_map`` gave, not what was made of it.

    Raises:
        UsageError: it is not such a frame.
        RunFailed: every row failed, or the run was stopped; ``.result`` has what was done.
        Interrupted: it was interrupted, which stops this run on the cluster, and not the cluster;
            ``.result`` has what was done. The second Ctrl-C leaves at once.

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
            "collect that one, and go on with run.frame"
        )
    return collect_parts(graph.job, graph.audience, graph.parts)


def _register() -> None:
    if not hasattr(dd.DataFrame, "llm"):
        dd.extensions.register_dataframe_accessor("llm")(DaskAccessor)
    if not hasattr(dd.Series, "llm"):
        dd.extensions.register_series_accessor("llm")(DaskSeriesAccessor)


_register()
