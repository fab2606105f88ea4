"""One task over chunk after chunk of rows: memory holds one chunk, limits hold over all of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from ..errors import Interrupted, RunFailed, RunTimeout, UsageError
from ..record.record import RowResult
from ..results.result import ParallelResult
from ..scheduling.events import StopKind
from ..scheduling.policy import failure_limit
from ..task.sentiment import SENTIMENT
from .call import Options, TaskLike, map_any, refuse_unknown, seconds, shows_options

if TYPE_CHECKING:
    from ..display.progress import Bar
    from ..record.totals import Totals

__all__ = ["Whole", "check_chunk_rows", "map_chunks"]

#: Rows of a Parquet file that make a chunk where nothing else is asked for.
CHUNK_ROWS = 10_000
#: Arguments of a run that one over chunks does not have.
LEAVE_OUT = ("inplace", "batch_key")


class Whole:
    """The runs of one task over chunk after chunk, as one.

    Args:
        options: those of :func:`revkit.parallel_map`.
        total: rows of all chunks; None: not known.

    Attributes:
        settled, failed, from_store, tokens: how far it is; for a progress bar.
        succeeded: rows that are ok. With ``repeat=`` each sample is counted as one, as in a run.
    """

    def __init__(self, task: Any, options: Mapping[str, Any], *, total: int | None):
        self._task = task
        self._options = dict(options)
        repeat = self._options.get("repeat", 1)
        self._samples = repeat if isinstance(repeat, int) and repeat > 0 else 1
        self._total = None if total is None else total * self._samples
        self._fail_fast = bool(self._options.get("fail_fast", False))
        self._max_failures = self._options.pop("max_failures", None)
        self._timeout: Any = self._options.pop("timeout", None)
        share = isinstance(self._max_failures, float)
        if share and total is None and not self._fail_fast:
            raise UsageError(
                f"max_failures={self._max_failures!r} is a share of all rows, and how many there "
                "are is not known; give a number of rows"
            )
        self._limit = failure_limit(
            self._max_failures, fail_fast=self._fail_fast, rows=self._total or 0
        )
        if self._timeout is not None:
            seconds("timeout", self._timeout)
        self.settled = self._done = 0
        self.failed = self.succeeded = self.from_store = self.tokens = 0
        self._chunks = 0
        self._wall_s = 0.0
        self._last: ParallelResult | None = None
        self._bar: Bar | None = None
        self._callback = self._watching(self._options.pop("progress", False))

    def goes_on(self, before: Totals) -> None:
        """Take what an earlier call has finished as done: its rows come before the first chunk."""
        if self._limit is not None and not self._fail_fast and before.failed > self._limit:
            raise UsageError(
                f"max_failures={self._max_failures!r}: {before.failed:,} rows of the finished "
                "chunks have failed already; allow more, or begin anew"
            )
        self.settled = self._done = before.total
        self.failed, self.succeeded = before.failed, before.succeeded
        self.from_store, self.tokens = before.from_store, before.usage.total_tokens or 0

    def _watching(self, progress: Any) -> Callable[[int, int, RowResult], object] | None:
        if callable(progress):
            return _Told(self, progress)
        if progress is True:
            from ..display.progress import bar

            self._bar = bar(self._total)
            return self._move_bar
        if progress is False:
            return None
        raise UsageError(
            f"progress={progress!r}: True for a bar over all chunks, False for none, or a function "
            'of (completed, total, row_result); "live" is for a run of one chunk'
        )

    def _move_bar(self, completed: int, total: int, row: RowResult) -> None:
        assert self._bar is not None
        self.settled += 1
        self.failed += row.status == "error"
        self.from_store += row.source == "store"
        self._bar.update(self)

    def told(self, completed: int, total: int, row: RowResult) -> tuple[int, int, RowResult]:
        """What a chunk tells of one of its rows, as told of all."""
        every = self._done + total if self._total is None else self._total
        number = self._done // self._samples + row.row
        return self._done + completed, every, dataclasses.replace(row, row=number)

    def run(self, chunk: Any) -> ParallelResult:
        """Run the task over the next chunk.

        Raises:
            RunFailed, Interrupted: the whole was stopped; ``.result`` is that of this chunk.
        """
        options = dict(self._options)
        if self._timeout is not None:
            options["timeout"] = self._timeout - self._wall_s
            if options["timeout"] <= 0:
                assert self._last is not None
                raise RunTimeout(self._told(f"timeout={self._timeout:g} s was over"), self._last)
        failed, from_store = self.failed, self.from_store
        if self._limit is not None and not self._fail_fast:
            options["max_failures"] = self._limit - failed
        if self._callback is not None:
            options["progress"] = self._callback
        stopped: RunFailed | Interrupted | None = None
        try:
            result = map_any(chunk, self._task, leave_out=LEAVE_OUT, **options)
        except (RunFailed, Interrupted) as error:
            result, record = error.result, error.result._record
            # A chunk all of whose rows failed is no reason to stop: what counts is the whole.
            if isinstance(error, Interrupted) or record.stopped or record.ended_by:
                stopped = error
        metrics = result.metrics
        first = self._done
        self._last = result
        self._chunks += 1
        self._done += metrics.total
        self._wall_s += metrics.wall_s
        self.succeeded += metrics.succeeded
        self.failed, self.from_store = failed + metrics.failed, from_store + metrics.from_store
        self.tokens += result.usage.total_tokens or 0
        self.settled = self._done
        if stopped is not None:
            raise self._of_the_whole(stopped, first) from stopped.__cause__
        return result

    def _of_the_whole(self, error: RunFailed | Interrupted, first: int) -> RunFailed | Interrupted:
        """The same error, with what it means for all chunks."""
        record = error.result._record
        if isinstance(error, Interrupted):
            reason = "it was interrupted"
        elif record.stopped is None:
            reason = f"it broke off: {type(record.ended_by).__name__}: {record.ended_by}"
        elif record.stopped.kind is StopKind.FAILURES and not self._fail_fast:
            failed = f"{self.failed:,} row{'' if self.failed == 1 else 's'} failed"
            reason = f"{failed}, more than max_failures allows ({self._limit})"
        elif record.stopped.kind is StopKind.TIMEOUT:
            reason = f"timeout={self._timeout:g} s was over"
        else:
            reason = record.stopped.reason
        lines = [self._told(reason)]
        if record.first_failure is not None:
            row, failure = record.first_failure
            number = (first + row) // self._samples
            lines.append(f"The first failure of this chunk was row {number:,}: {failure}")
        lines.append("The partial result of this chunk is in .result of this error.")
        return type(error)("\n".join(lines), error.result)

    def _told(self, reason: str) -> str:
        all_rows = "" if self._total is None else f" of {self._total:,}"
        what = "rows" if self._samples == 1 else "samples"
        return (
            f"the run was stopped in chunk {self._chunks}: {reason}; {self.succeeded:,}{all_rows} "
            f"{what} {'is' if self.succeeded == 1 else 'are'} done and {self.failed:,} failed"
        )

    def end(self) -> None:
        """Every chunk was run. Raises :class:`~revkit.RunFailed` where no row of any is ok.

        But not where this call has run none: then what came of them was told by an earlier one.
        """
        if self.failed and not self.succeeded and self._last is not None:
            first = self._last._record.first_failure
            every = "the only row" if self.failed == 1 else f"all {self.failed:,} rows"
            raise RunFailed(
                f"{every} failed. The first of the last chunk: "
                f"{first and first[1]}\nThe result of the last chunk is in .result of this error.",
                self._last,
            )

    def close(self) -> None:
        """Leave the bar as it should stay."""
        if self._bar is not None:
            self._bar.close()


class _Told:
    """The user's progress callback, told of rows by their number among all."""

    def __init__(self, whole: Whole, callback: Callable[[int, int, RowResult], object]):
        self._whole = whole
        self._callback: Callable[[int, int, RowResult], object] | None = callback

    def __call__(self, completed: int, total: int, row: RowResult) -> None:
        if self._callback is None:
            return
        try:
            self._callback(*self._whole.told(completed, total, row))
        except BaseException:
            self._callback = None  # the run tells the user; later chunks do not call it again
            raise


@shows_options(*LEAVE_OUT)
def map_chunks(
    source: Any,
    task: TaskLike = SENTIMENT,
    *,
    chunk_rows: int | None = None,
    **options: Unpack[Options],
) -> Iterator[ParallelResult]:
    """Run a task over chunk after chunk of rows, and hand out each chunk's result when it is done.

    Nothing is read or sent before the next result is asked for, and nothing is kept of a result
    that was handed out: memory holds one chunk, and each can be stored before the next begins.

    Args:
        source: an iterable of DataFrames (as ``pandas.read_csv(..., chunksize=)`` gives); one
            DataFrame or Series; the path of a Parquet file, which is read piece by piece; or an
            iterable of items, as :func:`revkit.parallel_map` takes.
        task: as for :func:`revkit.parallel_map`.
        chunk_rows: most rows of a chunk. None: each frame of an iterable is a chunk, and 10,000
            rows of a Parquet file; the others need it. Workers wait at the end of a chunk for its
            slowest row, so a chunk should have many more rows than there are workers.
        options: those of :func:`revkit.parallel_map`. ``max_failures``, ``fail_fast``,
            ``timeout`` (without the time between chunks), ``budget`` and ``rate_limit`` hold over
            all chunks together, and ``progress`` counts over all of them. For observers each
            chunk is a run.

    Returns:
        An iterator over a :class:`~revkit.ParallelResult` for each chunk, in order. A chunk all
        of whose rows failed is handed out as well.

    Raises:
        UsageError: the call cannot be carried out as written. What shows only in a chunk (a
            missing column) is raised when that chunk is asked for, before it sends anything.
        RunFailed: the whole was stopped; ``.result`` is the partial result of the chunk at hand.
            Or, at the end, no row of any chunk is ok.
        Interrupted: the user interrupted it; ``.result`` likewise.

    >>> import pandas as pd, revkit
    >>> df = pd.DataFrame({"n": range(5)})
    >>> for result in revkit.map_chunks(df, lambda row: row["n"] * 2, output="twice", chunk_rows=2):
    ...     print(result.frame["twice"].tolist())
    [0, 2]
    [4, 6]
    [8]
    """
    refuse_unknown("map_chunks", options, leave_out=LEAVE_OUT)
    chunks, total = _chunks(source, check_chunk_rows(chunk_rows))
    return _results(chunks, Whole(task, options, total=total))


def _results(chunks: Iterator[Any], whole: Whole) -> Iterator[ParallelResult]:
    try:
        for chunk in chunks:
            yield whole.run(chunk)
        whole.end()
    finally:
        whole.close()


def check_chunk_rows(rows: Any) -> int | None:
    """Refuse a number of rows that makes no chunk."""
    if rows is None or (isinstance(rows, int) and not isinstance(rows, bool) and rows >= 1):
        return rows
    raise UsageError(f"chunk_rows={rows!r}: give a whole number of at least 1")


def _chunks(source: Any, rows: int | None) -> tuple[Iterator[Any], int | None]:
    """The chunks, read when they are asked for; and how many rows they have, if that is known."""
    if isinstance(source, str | os.PathLike):
        from .parquet.source import Source

        file = Source(source)
        return file.frames(CHUNK_ROWS if rows is None else rows), file.rows
    if isinstance(source, pd.DataFrame | pd.Series):
        return _pieces(source, _needed(rows, "a frame")), len(source)
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise UsageError(
            "map_chunks takes frames, a frame, the path of a Parquet file, or items; got "
            f"{type(source).__name__}"
        )
    items = iter(source)
    head = list(islice(items, 1))
    items = chain(head, items)
    if head and isinstance(head[0], pd.DataFrame):
        total = sum(map(len, source)) if isinstance(source, list | tuple) else None
        return (piece for frame in items for piece in _pieces(frame, rows)), total
    total = len(source) if isinstance(source, Sized) else None
    size = _needed(rows, "items") if head else 1
    return iter(lambda: list(islice(items, size)), []), total


def _needed(rows: int | None, what: str) -> int:
    if rows is None:
        raise UsageError(f"chunk_rows= is needed to divide {what} into chunks, such as 1000")
    return rows


def _pieces(frame: Any, rows: int | None) -> Iterator[Any]:
    if rows is None or len(frame) <= rows:
        yield frame
        return
    for start in range(0, len(frame), rows):
        yield frame.iloc[start : start + rows]
