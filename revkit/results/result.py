"""What a run gives back: :class:`ParallelResult`, a reading of the run's record."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd

from ..errors import UsageError, nearest
from ..record import frames
from ..record import metrics as figures
from ..record.columns import errors
from ..record.record import Record
from ..scheduling.events import Status, StopKind
from ..tables.dtypes import snapshot
from ..tables.rows import Rows
from ..task.kinds import CallableTask, ModelTask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ..task.tokens import Price
    from .bottleneck import Bottleneck
    from .compare import Comparison
    from .evaluate import Evaluation
    from .forecast import WhatIf

__all__ = ["ParallelResult", "failure_message"]

#: Failures of one run that read the same are told once; this many different ones are told.
_TOLD = 5
#: Characters of a process's name that the timeline shows, at most.
_LANE_NAME = 21
#: What ``latency_by`` groups by, beside outputs.
_GROUPINGS = ("worker", "status", "wave")
#: Groups that it makes of an output that is no class output, at most.
_GROUPS = 50


class Rerun(Protocol):
    """Runs the rows of a result again that are not ok, and returns one result for both runs."""

    def run(self) -> ParallelResult: ...
    async def arun(self) -> ParallelResult: ...


class ParallelResult:
    """The finished run: its frame, what became of each row, and where the time went.

    Shown at the end of a notebook cell, it gives counts, latency percentiles and the timeline.

    Attributes:
        frame: the finished frame: the caller's columns, the outputs and the error column, with
            the caller's index and row order.
        task: what was done to each row; None where the result was read from a file.
        provenance: what the run was made of, as plain JSON: ``run_id``, ``started_at`` (UTC, ISO
            8601), ``task`` (with its outputs as a JSON schema), ``model`` (None for a callable),
            ``options`` and ``versions``. Never a key.
        model_name: the model's name, None for a callable.
        outputs: output name to its labels, or to None where it is not a class output.
        repeat: how often each row was run, 1 where nothing else was asked for. Where it is more,
            counts, ``rows``, ``errors`` and times are of samples, and the frame, ``completions``,
            ``summary``, ``evaluate`` and ``compare`` of what they came to.
        stopped: why the run was stopped before its last row, in words; else None.
        store: path of the store that keeps the run's replies, None where there was none.
        store_problem: what the store could not do in this run; None where all is well.
    """

    def __init__(
        self,
        record: Record,
        *,
        frame: pd.DataFrame,
        task: ModelTask | CallableTask | None,
        rows: Rows,
        columns: Mapping[str, Hashable],
        sampled: Mapping[str, Any] | None = None,
        model_name: str | None,
        find_price: Callable[[], Price | None] = lambda: None,
        provenance: Mapping[str, Any],
        rerun: Rerun,
    ):
        self.frame = frame
        self.task = task
        self.model_name = model_name
        self.provenance = dict(provenance)
        fields = task.outputs if isinstance(task, ModelTask) else {}
        self.outputs: dict[str, tuple[Any, ...] | None] = {
            name: fields[name].labels if name in fields else None for name in record.values
        }
        self.repeat = record.samples
        self.stopped = None if record.stopped is None else record.stopped.reason
        self.store = record.store
        self.store_problem = record.store_problem
        self._record = record
        self._rows = rows
        self._columns = dict(columns)
        self._find_price = find_price
        self._rerun = rerun
        # Of our own: the user may sort or filter ``frame``, and rows go by position.
        self._index = frame.index
        self._values = snapshot(frame[list(columns.values())])
        # By output name, the values of each sample; the frame's own where there is one of each.
        self._sampled = sampled or {
            name: self._values[column].array for name, column in columns.items()
        }

    # -- what became of the rows ---------------------------------------------------------------

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One line for each row, with the frame's index; with ``repeat=`` for each of its samples.

        Columns: ``row`` (int64, position from 0); with ``repeat=`` ``sample`` (int64, from 0); each
        output (as ``output_<name>`` where its name is that of a column here); ``status`` (``ok``,
        ``error``, ``cancelled``, ``not_started``); ``source`` (``model``, also for a function;
        ``store``: its reply was kept; ``duplicate``: a row before it has the same prompt;
        ``none``); ``attempts`` (int64, of its own); ``service_ms`` (float64, of the last attempt);
        ``wait_ms`` (float64, the time since the start of the run in which no attempt of the row was
        running, until its last one ended), which is the sum of ``queue_ms``, ``limit_ms`` and
        ``backoff_ms`` (float64, what it waited for: see :attr:`waiting`); ``worker`` (Int64, of the
        last attempt); ``prompt_tokens``, ``completion_tokens`` (Int64, of all attempts);
        ``cost_usd`` (Float64, of all attempts: 0 where none was made, NA where the price or the
        tokens are not known); ``finish_reason``, ``text`` (what the model said last);
        ``probabilities`` (a dict for each row in which the model gave them); ``error_type``,
        ``error``.
        """
        index = self._index.repeat(self.repeat)
        return frames.rows(
            self._record, self._sampled, self._waits, self._last, index, self._find_price()
        )

    @property
    def completions(self) -> pd.DataFrame:
        """The outputs of the rows that succeeded: dense, in row order, with the frame's index."""
        named: pd.DataFrame = self._values.set_axis(list(self._columns), axis=1)
        return named[self._ok]

    @cached_property
    def _ok(self) -> NDArray[np.bool_]:
        """Which of the frame's rows have their values."""
        good = np.array([status is Status.OK for status in self._record.status], dtype=bool)
        some: NDArray[np.bool_] = np.any(good.reshape(-1, self.repeat), axis=1)
        return some

    @cached_property
    def _errors(self) -> list[Any]:
        """For each of the frame's rows why it has no values; NA where it has."""
        return list(errors(self._record))

    @cached_property
    def errors(self) -> pd.DataFrame:
        """One line for each row that failed, in row order.

        Columns: ``row`` (position from 0), with ``repeat=`` ``sample``, ``index`` (its label in the
        frame), ``item`` (its inputs), ``error_type``, ``status`` (Int64, HTTP), ``message``,
        ``attempts``, ``text`` (what the model said, where it said something).
        """
        return frames.errors(self._record, self._rows, self._index)

    def summary(self, output: str | None = None) -> pd.DataFrame:
        """How often each value of an output occurs among the rows that succeeded.

        Args:
            output: name of an output; None: the first class output, else the first output.

        Returns:
            A frame indexed by value with the columns ``count`` (int64) and ``share`` (float64,
            0 to 1). The labels of a class output stand in declared order, also those that do not
            occur; other values stand most frequent first.

        Raises:
            UsageError: there is no such output.
        """
        output = self._output(output)
        return frames.summary(self.completions[output], self.outputs[output], name=output)

    def _output(self, name: str | None) -> str:
        """The output of that name; None: the first class output, else the first output."""
        if name is None:
            classes = [known for known, labels in self.outputs.items() if labels is not None]
            return next(iter(classes or self.outputs))
        if name not in self.outputs:
            raise UsageError(f'there is no output "{name}"; {nearest(name, self.outputs)}')
        return name

    def compare(self, other: ParallelResult) -> Comparison:
        """This run and another one on the same rows, side by side: for trying a prompt or a model.

        Rows are compared by position. They are taken for the same where every input that both
        tasks have under one name holds the same values (outputs of revkit in the frame are no
        such inputs); where the tasks have no input in common, the frames' indexes must be equal.

        Values agree where they are equal: labels and text exactly, numbers to one part in a
        thousand million, lists item by item in their order, a missing value with a missing one
        only. Only rows that are ok in both runs are counted.

        Args:
            other: the run that comes after this one.

        Returns:
            Agreement of each output, the rows that changed, and labels, counts, latency, tokens
            and cost of both; see :class:`revkit.Comparison`.

        Raises:
            UsageError: the runs are not on the same rows, or have no output in common.

        >>> import pandas as pd, revkit
        >>> from revkit.testing import FakeModel
        >>> df = pd.DataFrame({"review": ["good", "bad", "fine"]})
        >>> small = FakeModel(["positive", "positive", "neutral"])
        >>> large = FakeModel(["positive", "negative", "neutral"])
        >>> first = df.llm.parallel_map(on="review", model=small)
        >>> second = df.llm.parallel_map(on="review", model=large)
        >>> comparison = first.compare(second)
        >>> comparison
        Comparison: 3 rows, 3 ok in both
        sentiment: 2 of 3 agree (66.7%)
        >>> comparison.changed[["row", "before", "after"]]
           row    before     after
        0    1  positive  negative
        """
        from .compare import compare

        if not isinstance(other, ParallelResult):
            raise UsageError(f"a run is compared with another run, not with {type(other).__name__}")

        return compare(self, other)

    def evaluate(self, label: Any, *, output: str | None = None) -> Evaluation:
        """An output against labels that are known to be right.

        Precision, recall, F1 and the others are computed by scikit-learn. Rows that are not ok,
        and rows without a label, are neither right nor wrong: they are left out and counted.

        Args:
            label: a column of ``run.frame``; or the labels themselves: a Series, an array or a
                list with one for each row, by position. A missing one leaves its row out.
            output: the output; None: the first class output, else the first output.

        Returns:
            Accuracy, figures of each class and the confusion matrix; ``plot()`` draws it. See
            :class:`revkit.Evaluation`.

        Raises:
            MissingExtra: scikit-learn is not installed: ``pip install "revkit[evaluate]"``.
            MissingColumn: ``run.frame`` has no such column.
            UsageError: there is no such output, or it holds no classes, booleans or text; a label
                is not among its classes; the labels do not fit the rows; or no row is left.

        >>> import pandas as pd, revkit
        >>> from revkit.testing import FakeModel
        >>> df = pd.DataFrame({"review": ["good", "bad", "fine"],
        ...                    "label": ["positive", "negative", "neutral"]})
        >>> model = FakeModel(["positive", "negative", "positive"])
        >>> df.llm.parallel_map(on="review", model=model).evaluate("label")
        Evaluation of sentiment: 3 of 3 labelled rows
        accuracy 0.667, balanced accuracy 0.667, macro F1 0.556
        """
        from .evaluate import evaluate

        return evaluate(self, label, output=output)

    def retry_failed(self) -> ParallelResult:
        """Run what is not ok once more, with the same arguments; what is ok is left alone.

        Rows with a missing input are not tried again: nothing could come of it. The columns are
        written back to the frame as by ``parallel_map``.

        Returns:
            One result for both runs. The second one's attempts follow on the first one's in time,
            without what lay between.

        Raises:
            RunFailed: the second run was stopped, or still no row is ok.

        >>> import pandas as pd, revkit
        >>> answers = iter([1, ValueError("not yet"), 3, 2])
        >>> def next_answer(row):
        ...     answer = next(answers)
        ...     if isinstance(answer, Exception):
        ...         raise answer
        ...     return answer
        >>> df = pd.DataFrame({"n": [1, 2, 3]})
        >>> run = df.llm.parallel_map(next_answer, max_workers=1)
        >>> run.retry_failed()
        ParallelResult: 3 rows, 3 ok
        >>> df["response"].tolist()
        [1, 2, 3]
        """
        return self._rerun.run()

    async def aretry_failed(self) -> ParallelResult:
        """:meth:`retry_failed`, awaited: runs on the caller's event loop."""
        return await self._rerun.arun()

    # -- as a file -----------------------------------------------------------------------------

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the whole result to one Parquet file, for :meth:`read_parquet` and for others.

        The file is a table with one line for each row: the columns and the index of ``frame``, as
        they are now, then what is known of the row, in columns whose names begin with "revkit."
        (its attempts are one of them). ``pandas.read_parquet`` reads it. The run's other facts
        and :attr:`provenance` are JSON in the file's metadata, under "revkit".

        Args:
            path: a file; one that is there is replaced when the new one is whole.

        Raises:
            UsageError: the frame's rows or outputs were changed since the run, a name or a value
                is one that Parquet has not, or there is no such directory.
        """
        from .saved.write import write

        write(self, path)

    @classmethod
    def read_parquet(cls, path: str | os.PathLike[str]) -> ParallelResult:
        """Read a result that :meth:`to_parquet` wrote.

        Every frame and every figure is as it was, the cost included. ``task`` is None: a file
        holds neither the function nor the model, so nothing can be run again from it.

        Args:
            path: the file. Nothing in it is executed or unpickled.

        Raises:
            FileNotFoundError: there is no such file.
            UsageError: it is not a result, is damaged, or was written by a newer revkit.

        >>> import pandas as pd, revkit, tempfile
        >>> run = pd.Series([3, 4]).llm.parallel_map(lambda n: n * n, output="square")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run.to_parquet(f"{folder}/squares.parquet")
        ...     again = revkit.ParallelResult.read_parquet(f"{folder}/squares.parquet")
        ...     pd.read_parquet(f"{folder}/squares.parquet")[["item", "square", "revkit.status"]]
           item  square revkit.status
        0     3       9            ok
        1     4      16            ok
        >>> again
        ParallelResult: 2 rows, 2 ok
        >>> again.metrics == run.metrics
        True
        """
        from .saved.read import read

        return read(path, cls)

    # -- where the time went -------------------------------------------------------------------

    @cached_property
    def metrics(self) -> figures.Metrics:
        """Counts and rates; see :class:`revkit.Metrics`."""
        return figures.metrics(self._record)

    @cached_property
    def latency(self) -> pd.Series:
        """Service time of the good attempts in milliseconds.

        A float64 Series indexed ``min``, ``mean``, ``p50``, ``p90``, ``p95``, ``p99``, ``max``;
        all NaN where no attempt was good. Service time runs from the moment a worker takes up a
        row to the moment its reply is read; the time a row waits for a worker is not part of it:
        see :attr:`waiting`. ``p95`` is the time that 95 % of the attempts did not exceed, between
        two attempts by linear interpolation (``numpy.percentile``). Rows from the store have no
        attempt; the attempts of a function count as those of a model do.
        """
        return pd.Series(figures.latency(self._record), name="latency_ms", dtype="float64")

    def latency_by(self, by: str) -> pd.DataFrame:
        """Service time in milliseconds, by group, to see what is slow.

        Args:
            by: what to group by:

                - ``"worker"``: the good attempts, by worker; each worker that made an attempt.
                - ``"status"``: the last attempt of each row, by the row's status: ``ok``,
                  ``error``, ``cancelled``, ``not_started``.
                - ``"wave"``: the good attempts; ``first``: those that were the first attempt of
                  their worker, which may pay for loading the model and opening the connection;
                  ``rest``: all others.
                - the name of an output: the good attempts, by their row's value of it. The labels
                  of a class output stand in declared order, also those that do not occur; other
                  values most frequent first, missing ones left out, as in :meth:`summary`.

                An output that is itself called ``worker``, ``status`` or ``wave`` is
                ``"output_worker"`` and so on.

        Returns:
            A frame indexed by group with the columns ``count`` (int64, of attempts), and ``min``,
            ``mean``, ``p50``, ``p90``, ``p95``, ``p99``, ``max`` (float64, defined as in
            :attr:`latency`; NaN where ``count`` is 0).

        Raises:
            UsageError: there is no such group, or the output is no class output and has more than
                50 different values.

        >>> import pandas as pd, revkit
        >>> from revkit.testing import FakeModel
        >>> fake = FakeModel(lambda text: "positive" if "good" in text else "negative",
        ...                  latency=lambda text: len(text) / 4, clock="virtual")
        >>> df = pd.DataFrame({"review": ["good", "bad", "so good"]})
        >>> run = df.llm.parallel_map(model=fake)
        >>> run.latency_by("sentiment")[["count", "mean", "max"]]
                   count    mean     max
        sentiment
        positive       2  1375.0  1750.0
        neutral        0     NaN     NaN
        negative       1   750.0   750.0
        """
        record = self._record
        groups, group_of, chosen = self._grouped(by)
        service = figures.service_times(record) * 1e3
        samples = [service[chosen & (group_of == place)] for place in range(len(groups))]
        return frames.distributions(samples, pd.Index(groups, name=by, tupleize_cols=False))

    def _grouped(self, by: str) -> tuple[list[Any], Any, Any]:
        """The groups, the place among them of each attempt's group, and which attempts count."""
        record, good = self._record, figures.good(self._record)
        row = np.asarray(record.row, dtype=np.int64)
        if by == "worker":
            workers, group_of = np.unique(record.worker, return_inverse=True)
            return workers.tolist(), group_of, good
        if by == "wave":
            return ["first", "rest"], np.where(figures.first_wave(record), 0, 1), good
        if by == "status":
            place = {status: i for i, status in enumerate(Status)}
            of_row = np.array([place[status] for status in record.status], dtype=np.int64)
            return [*map(str, Status)], of_row[row], self._last[row] == np.arange(len(row))
        output = self._grouping(by)
        of_each = pd.Series(self._sampled[output])
        status = np.array([status is Status.OK for status in record.status], dtype=bool)
        told = frames.summary(of_each[status], self.outputs[output], name=output)
        groups = told.index.tolist()
        if self.outputs[output] is None and len(groups) > _GROUPS:
            raise UsageError(
                f'output "{output}" has {len(groups):,} different values, and latency_by() takes '
                f"at most {_GROUPS}; run.rows has the output beside service_ms, to be put into "
                "groups of your own"
            )
        places = {value: i for i, value in enumerate(groups)}
        values = frames.countable(of_each)
        of_row = np.array([places.get(value, -1) for value in values.tolist()], dtype=np.int64)
        return groups, of_row[row], good

    def _grouping(self, by: str) -> str:
        """The output that ``latency_by`` is to group by."""
        if by in self.outputs:
            return by
        name = str(by).removeprefix("output_")
        if name in _GROUPINGS and name in self.outputs:
            return name
        known = [*_GROUPINGS, *self.outputs]
        raise UsageError(f'latency_by() knows no "{by}"; {nearest(by, known)}')

    @cached_property
    def waiting(self) -> pd.DataFrame:
        """How long rows waited, and for what, in milliseconds; rows that were never attempted not.

        A row waits from the start of the run until its last attempt begins, but for the time in
        which an attempt of its own is running. Each moment of that is counted once, under the
        first of these that applies:

        - ``backoff``: from the end of an attempt that failed until the row was due to be tried
          again: the wait that ``Retry`` chose, or that the server asked this row for. After
          :meth:`retry_failed` also the time from when it was given up to the second run.
        - ``limit``: no attempt might start, because of a rate limit, a budget, or a pause that
          the server had asked of another row.
        - ``queue``: no worker was free for it: other rows had them, or the run was still getting
          ready (the first one of a process imports and connects), which takes until
          ``run.attempts["start_s"].min()``.

        A frame with a line for ``queue``, ``limit``, ``backoff`` and ``total``, which is the sum of
        the three for each row, and the columns ``count`` (int64: the rows that were attempted,
        whether they waited or not) and ``mean``, ``p50``, ``p90``, ``p95``, ``p99``, ``max``
        (float64, defined as in :attr:`latency`; NaN where ``count`` is 0). So the three means
        add up to the total's, and percentiles do not. ``run.rows`` has the times of each row.

        This says what a row waited for, not what would be saved without it: where the server is
        busy anyway, a row that no limit holds back waits there.

        >>> import pandas as pd, revkit
        >>> from revkit.testing import FakeModel
        >>> fake = FakeModel(lambda text: "positive", latency=2.0, clock="virtual")
        >>> df = pd.DataFrame({"review": ["good", "so good", "good!"]})
        >>> df.llm.parallel_map(model=fake, max_workers=1).waiting[["count", "mean", "max"]]
                 count    mean     max
        queue        3  2000.0  4000.0
        limit        3     0.0     0.0
        backoff      3     0.0     0.0
        total        3  2000.0  4000.0
        """
        samples = [waits[self._last >= 0] for waits in self._waits.values()]
        return frames.distributions(samples, pd.Index(list(self._waits))).drop(columns="min")

    @cached_property
    def _waits(self) -> dict[str, Any]:
        """Milliseconds that each row waited, by what for."""
        each = {name: s * 1e3 for name, s in figures.waits(self._record)._asdict().items()}
        return each | {"total": each["queue"] + each["limit"] + each["backoff"]}

    @cached_property
    def _last(self) -> Any:
        """The place among the attempts of each row's last one, -1 where there was none."""
        last = np.full(self._record.total, -1)
        last[self._record.row] = np.arange(len(self._record.row))  # of repeated places, the last
        return last

    @cached_property
    def usage(self) -> figures.Usage:
        """Tokens of all attempts, failed ones too, and their cost in US dollars, where it is known.

        See :class:`revkit.Usage`. Prices come from ``Budget(prices=)``, else from the
        extra ``revkit[prices]``; the first use of its list takes a quarter of a second.
        """
        return figures.usage(self._record, self._find_price())

    @cached_property
    def attempts(self) -> pd.DataFrame:
        """The timeline as a frame: one line for each attempt, in the order in which they ended.

        Columns: ``row``, with ``repeat=`` ``sample``, ``attempt`` (from 1), ``worker`` (from 0),
        of a run on a cluster its ``host`` and ``process`` (the Dask worker; NA where
        :meth:`retry_failed` tried again in this process), ``start_s``, ``end_s`` (float64, seconds
        since the start of the run), ``service_ms``, ``outcome`` (``ok``, ``retried``, ``failed``,
        ``cancelled``), ``error_type``, ``error``, ``prompt_tokens``, ``completion_tokens`` (Int64).
        """
        table = frames.attempts(self._record)
        if self.repeat > 1:
            row, sample = np.divmod(table["row"].to_numpy(), self.repeat)
            table["row"] = row
            table.insert(1, "sample", sample)
        return table

    def plot_timeline(self, *, ax: Axes | None = None) -> Axes:
        """Draw what each worker did: one lane a worker, one bar an attempt, coloured by outcome.

        Hatched bands are spans in which nothing might start, because the server asked for a pause
        or a limit was reached; a line marks a stop. On top, rows that needed no attempt. A strip
        below the lanes of a new figure shows how many attempts were running, and the limit.

        Args:
            ax: matplotlib Axes to draw the lanes into; None: a new figure, which a notebook shows.

        Returns:
            The Axes; ``.figure.savefig(path)`` saves it.

        >>> import revkit
        >>> from revkit.testing import FakeModel
        >>> model = FakeModel(lambda text: "positive", latency=0.5, clock="virtual")
        >>> run = revkit.load_reviews().llm.parallel_map(model=model, max_workers=4)
        >>> run.plot_timeline().get_title("left")
        '12 rows on 4 workers'
        """
        from ..plot import draw_timeline

        return draw_timeline(frames.attempts(self._record), ax=ax, **self._timeline())

    def to_trace(self, path: str | PathLike[str]) -> Path:
        """Write the run as a trace, to be opened in https://ui.perfetto.dev: zoom, search, SQL.

        The format is Chrome's Trace Event Format in JSON: a thread for each worker (on a cluster
        below a process for each Dask worker), an event for each attempt, coloured by its outcome,
        an arrow from a failed attempt to the next one at its row, and counters of what is running.
        It has rows' numbers, types of errors and tokens, and nothing of what rows hold or the
        model said.

        Args:
            path: the file; one that is there is overwritten. A name that ends in ``.gz`` is
                gzipped, which Perfetto opens as well.

        Returns:
            The path.

        >>> import tempfile, revkit
        >>> run = revkit.parallel_map([1, 2, 3], lambda n: n * n)
        >>> run.to_trace(tempfile.mkdtemp() + "/run.json.gz").name
        'run.json.gz'
        """
        from .trace import write_trace

        return write_trace(self._record, path, model_name=self.model_name)

    def what_if(
        self, max_workers: Iterable[int] = (1, 4, 16, 64), *, slots: int | None = None
    ) -> WhatIf:
        """How long this run would have taken with other numbers of workers.

        Its attempts are replayed, one by one, on the server that explains them best: how many
        requests that works on at once (its slots) shows in how service times grew. Where nothing
        ever waited at the server, a number of workers beyond the highest seen cannot be told;
        ``docs/what-if.md`` has the assumptions.

        Args:
            max_workers: numbers of workers, each a whole one of at least 1; there are never more
                workers than rows. The run's own number is added, as it was measured.
            slots: of the server, where they are known; None: fitted.

        Raises:
            UsageError: an argument is not as above, or the run made no attempt.

        >>> import pandas as pd, revkit
        >>> from revkit.testing import FakeModel
        >>> df = pd.DataFrame({"review": ["good"] * 12})
        >>> fake = FakeModel(lambda text: "positive", latency=2.0, clock="virtual")
        >>> run = df.llm.parallel_map(model=fake, max_workers=4)
        >>> run.what_if([1, 2, 8]).frame["wall_s"].tolist()
        [24.0, 12.0, 6.0, nan]
        >>> run.what_if([8]).frame.loc[8, "basis"]
        'cannot tell: never more than 4 at once, and none waited; give slots='
        >>> run.what_if([8], slots=12).frame["wall_s"].tolist()
        [6.0, 4.0]
        """
        from .forecast import WhatIf
        from .whatif import predict

        return WhatIf(predict(self._record, max_workers, slots))

    @cached_property
    def bottleneck(self) -> Bottleneck | None:
        """The server, where it was what limited the run; None where not, or that cannot be told.

        A server works on so many requests at once, its slots; with more workers than that,
        replies take longer and no more of them come. It is told only where it is plain: at least
        twice as many workers as slots, 40 attempts and 3 for each worker, and no rate limit, pause
        or idle worker that set the pace; never of a function, an adaptive run or one on a cluster.
        :meth:`report` and the notebook's output say it in words, with the setting that helps.

        Returns:
            ``slots`` and ``workers``; ``service_s`` and ``base_s``, medians in seconds of what
            replies took and of the work on them; ``stretch``, the one over the other. See
            :class:`revkit.Bottleneck`.

        >>> import asyncio, heapq, pandas as pd, revkit
        >>> from revkit.testing import FakeModel
        >>> free = [0.0, 0.0]                      # when each of two slots is free
        >>> def latency(text):
        ...     now = asyncio.get_running_loop().time()
        ...     done = max(now, heapq.heappop(free)) + 1 + len(text) / 10
        ...     heapq.heappush(free, done)
        ...     return done - now
        >>> fake = FakeModel(lambda text: "positive", latency=latency, clock="virtual")
        >>> df = pd.DataFrame({"review": ["good" + "!" * (n % 7) for n in range(100)]})
        >>> run = df.llm.parallel_map(model=fake, max_workers=16)
        >>> run.bottleneck.slots, round(run.bottleneck.stretch)
        (2, 8)
        """
        from .bottleneck import find_bottleneck

        return find_bottleneck(self._record)

    def timeline_png(self) -> bytes:
        """The timeline as a PNG."""
        from ..plot import timeline_png

        return timeline_png(frames.attempts(self._record), **self._timeline())

    def plot_latency(
        self, *, ax: Axes | None = None, kind: Literal["ecdf", "hist"] = "ecdf"
    ) -> Axes:
        """Draw the service times of the good attempts in ms, with p50, p90, p95 and p99 marked.

        The axis of time is logarithmic where the longest takes more than 50 times the shortest.

        Args:
            ax: matplotlib Axes to draw into; None: a new figure, which a notebook shows.
            kind: ``"ecdf"``: what share of the attempts took at most so long (the empirical
                cumulative distribution function); ``"hist"``: a histogram.

        Returns:
            The Axes; ``.figure.savefig(path)`` saves it.

        Raises:
            UsageError: another kind.
        """
        from ..plot import draw_latency

        return draw_latency(self._good_ms(), ax=ax, kind=kind)

    def plot(self) -> Figure:
        """Draw the panel: timeline, latency, labels of each class output, and errors if any.

        Returns:
            A new matplotlib Figure, which a notebook shows; ``.savefig(path)`` saves it.
        """
        from ..plot import draw_panel

        classes = [name for name, labels in self.outputs.items() if labels is not None]
        return draw_panel(
            frames.attempts(self._record),
            service_ms=self._good_ms(),
            shares={name: self.summary(name)["count"].to_dict() for name in classes},
            errors=dict(Counter(self.errors["error_type"]).most_common()),
            **self._timeline(),
        )

    def _good_ms(self) -> Any:
        return self.attempts.loc[self.attempts["outcome"] == "ok", "service_ms"].to_numpy()

    def _timeline(self) -> dict[str, Any]:
        """What the timeline shows beside the attempts, in seconds since the start of the run."""
        from ..display import plural, rows_of

        record = self._record
        limits = [(max(0.0, at - record.began), limit) for at, limit in record.limits]
        stopped_at = record.ended if record.stopped_at is None else record.stopped_at
        # The index where it names rows; numbers that start anew, as after a concat, name none.
        named = not isinstance(self._index, pd.RangeIndex) and self._index.is_unique
        tried = len(set(record.row))
        attempted = "" if tried == record.total else f", {tried:,} attempted,"
        workers = max(record.worker, default=0) + 1 if limits else record.workers
        row_labels: Any = self._index if named else None
        if self.repeat > 1:
            names = range(len(self._index)) if row_labels is None else row_labels
            row_labels = [f"{name}/{sample}" for name in names for sample in range(self.repeat)]
        counted = rows_of(record.total, self.repeat)
        return {
            "row_labels": row_labels,
            "worker_names": None if record.places is None else _lane_names(record.places),
            "title": f"{counted}{attempted} on {plural(workers, 'worker')}",
            # Of the workers that an adaptive run might have had, those that it has used.
            "workers": workers,
            "wall_s": self.metrics.wall_s,
            "limits": limits,
            "holds": [
                (kind, max(0.0, start - record.began), min(end, record.ended) - record.began)
                for kind, start, end in record.holds
            ],
            "visits": [(at - record.began, rows) for at, rows in record.visits],
            "stop": record.stopped and (record.stopped.kind.value, stopped_at - record.began),
        }

    # -- as text and HTML ----------------------------------------------------------------------

    def report(self) -> str:
        """The whole as text, for a terminal."""
        from .. import display

        return display.text(self)

    def __repr__(self) -> str:
        from .. import display

        return display.short(self)

    def _repr_html_(self) -> str:
        from .. import display

        return display.html(self)


def _lane_names(places: Sequence[tuple[str, str] | None]) -> list[str]:
    """What the timeline calls the workers of a cluster: the process, and which one there."""
    names, seen = [], Counter[Any]()
    for place in places:
        process = "here" if place is None else place[1].removeprefix("tcp://")[-_LANE_NAME:]
        names.append(f"{process}: {seen[place]}")
        seen[place] += 1
    return names


def failure_message(result: ParallelResult) -> str:
    """Why a run failed: the first failure in time, then the others grouped, with counts."""
    record = result._record
    failed, done = result.metrics.failed, result.metrics.succeeded
    told = "The partial result is in .result of this error, and in revkit.last_result()."
    if done and record.store is not None and record.store_problem is None:
        told += " Run the same again to go on from there: replies that came are kept."
    left = record.total - done - failed
    rows = "rows" if record.samples == 1 else "samples"
    head = (
        f"of {record.total} {rows} {done} {'is' if done == 1 else 'are'} done, {failed} failed and "
        f"{left} {'was' if left == 1 else 'were'} not finished"
    )
    if record.stopped is not None:
        first_of_all = "" if record.first_failure is None else str(record.first_failure[1])
        fatal = record.stopped.kind is StopKind.FATAL
        told_below = fatal and record.stopped.reason == first_of_all
        why = "every other row would fail too" if told_below else record.stopped.reason
        head = f"the run was stopped: {why}; {head}"
    if record.first_failure is None:
        return f"{head}.\n{told}"
    row, first = record.first_failure
    if record.stopped is None and not done:
        head = f"all {failed} {rows} failed" if failed > 1 else "the only row failed"
        if not len(record.row):
            head += ", and nothing was sent"
    lines = [f"{head}. The first was {record.name(row)}: {first}"]
    groups = Counter(
        str(record.failures[i]) for i, status in enumerate(record.status) if status is Status.ERROR
    )
    rest = [(text, n) for text, n in groups.most_common() if text != str(first)]
    if failed > 1 and groups[str(first)] > 1:
        lines.append(f"  {groups[str(first)]} x the same")
    lines += [f"  {n} x {text}" for text, n in rest[:_TOLD]]
    if len(rest) > _TOLD:
        others = sum(n for _, n in rest[_TOLD:])
        lines.append(f"  {others} x others, of {len(rest) - _TOLD} kinds")
    lines.append(told)
    return "\n".join(lines)
