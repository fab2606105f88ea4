"""What a run gives back: :class:`ParallelResult`, a reading of the run's record.

What a session may never use is imported where it is used: ``import revkit`` must stay light.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from ..errors import UsageError, nearest
from ..record import frames
from ..record import metrics as figures
from ..record.columns import errors
from ..record.record import Record
from ..scheduling.events import Status
from ..tables.dtypes import snapshot
from ..tables.rows import Rows
from ..task.kinds import CallableTask, ModelTask
from .timing import Timing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ..task.tokens import Price
    from .compare import Comparison
    from .evaluate import Evaluation

__all__ = ["ParallelResult"]


class Rerun(Protocol):
    """Runs the rows of a result again that are not ok, and returns one result for both runs."""

    def run(self) -> ParallelResult: ...
    async def arun(self) -> ParallelResult: ...


class ParallelResult(Timing):
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
        tokens are not known); ``finish_reason``; ``truncated`` (boolean, NA without a reply: its
        text was cut at a limit of tokens, and kept); ``model`` (that answered, as the server names
        it); ``format`` (how the reply's form was asked for: ``schema``, ``json`` or ``prompt``);
        ``thought`` (what the model thought before it answered); ``text`` (what it said last);
        ``probabilities`` (a dict for each row in which the model gave them); ``error_type``,
        ``error``.
        """
        index = self._index.repeat(self.repeat)
        return frames.rows(self._record, self._sampled, index, self._find_price())

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
        if not isinstance(other, ParallelResult):
            raise UsageError(f"a run is compared with another run, not with {type(other).__name__}")

        from .compare import compare

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

    # -- as pictures, text and HTML ------------------------------------------------------------

    def plot(self) -> Figure:
        """Draw the panel: timeline, latency, labels of each class output, and errors if any.

        Returns:
            A new matplotlib Figure, which a notebook shows; ``.savefig(path)`` saves it.
        """
        from ..plot import draw_panel, timeline_of

        classes = [name for name, labels in self.outputs.items() if labels is not None]
        return draw_panel(
            service_ms=figures.good_ms(self._record),
            shares={name: self.summary(name)["count"].to_dict() for name in classes},
            errors=dict(Counter(self.errors["error_type"]).most_common()),
            **timeline_of(self._record, self._index),
        )

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
