"""Where the time of a run went: the part of a result that needs only the run's record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ..record import frames, latency
from ..record import metrics as figures
from ..record.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..task.tokens import Price
    from .bottleneck import Bottleneck
    from .forecast import WhatIf

__all__ = ["Timing"]


class Timing:
    """Figures, frames and plots of a run's attempts; :class:`~revkit.ParallelResult` adds rows."""

    _record: Record
    #: of the frame
    _index: pd.Index
    #: output name -> its value for each row of the record
    _sampled: Mapping[str, Any]
    _find_price: Callable[[], Price | None]
    model_name: str | None
    outputs: dict[str, tuple[Any, ...] | None]
    repeat: int

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
        return latency.latency_by(self._record, by, self._sampled, self.outputs)

    @cached_property
    def waiting(self) -> pd.DataFrame:
        """How long rows waited, and for what, in milliseconds; rows that were never attempted not.

        A row waits from the start of the run until its last attempt begins, but for the time in
        which an attempt of its own is running. Each moment of that is counted once, under the
        first of these that applies:

        - ``backoff``: from the end of an attempt that failed until the row was due to be tried
          again: the wait that ``Retry`` chose, or that the server asked this row for. After
          :meth:`retry_failed` also the time from when it was given up to the second run.
        - ``limit``: no attempt might start, because of a rate limit, a budget, a pause that
          the server had asked of another row, or a server that was away.
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
        return latency.waiting(self._record)

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

        Hatched bands are spans in which nothing might start, because the server was away or asked
        for a pause, or a limit was reached; a line marks a stop. On top, rows that needed no
        attempt. A strip below the lanes of a new figure shows how many attempts were running, and
        the limit.

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
        from ..plot import draw_timeline, timeline_of

        return draw_timeline(ax=ax, **timeline_of(self._record, self._index))

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
        from ..plot import timeline_of, timeline_png

        return timeline_png(**timeline_of(self._record, self._index))

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

        return draw_latency(figures.good_ms(self._record), ax=ax, kind=kind)
