"""One task over many chunks of rows: memory holds one chunk, limits hold over all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import Interrupted, RunFailed, RunTimeout, UsageError, plural
from ..record.record import RowResult
from ..results.result import ParallelResult
from ..runtime.draws import Draws, PromptCounts
from ..runtime.lifecycle import timed_out
from ..runtime.options import RunOptions
from ..scheduling.events import StopKind
from .call import run_task
from .prepare import prepare

if TYPE_CHECKING:
    from ..display.progress import Bar
    from ..record.totals import Totals
    from ..scheduling.events import Away

__all__ = ["CHUNK_ROWS", "LEAVE_OUT", "ChunkedRun", "check_chunk_rows"]

#: Rows of a Parquet file that make a chunk where nothing else is asked for.
CHUNK_ROWS = 10_000
#: Options that a run over chunks does not have.
LEAVE_OUT = ("inplace", "batch_key")


def check_chunk_rows(rows: Any) -> int | None:
    """Refuse a number of rows that makes no chunk."""
    if rows is None or (isinstance(rows, int) and not isinstance(rows, bool) and rows >= 1):
        return rows
    raise UsageError(f"chunk_rows={rows!r}: give a whole number of at least 1")


class ChunkedRun:
    """The runs of one task over many chunks of rows, with counts and limits over all of them.

    Args:
        progress: as the user gave it; it counts the rows of all chunks.
        total: rows of all chunks; None: not known.

    Attributes:
        settled, succeeded, failed, from_store: rows so far; with ``repeat=``, samples.
        tokens: of the finished chunks.
    """

    def __init__(self, task: Any, options: RunOptions, *, progress: Any, total: int | None):
        self._task = task
        self._options = options
        self._samples = options.inputs.repeat
        self._total = None if total is None else total * self._samples
        self._failures, self._timeout = options.failures, options.limits.timeout
        if isinstance(self._failures.max_failures, float) and total is None:
            raise UsageError(
                f"max_failures={self._failures.max_failures!r} is a share of all rows, and how "
                "many there are is not known; give a number of rows"
            )
        self._limit = self._failures.limit(self._total or 0)
        self._counts = PromptCounts()
        self.settled = self._done = 0
        self.failed = self.succeeded = self.from_store = self.tokens = 0
        # The bar moves when a row is settled, and none is while the server is away.
        self.ended = 0.0
        self.away: Away | None = None
        self._chunks = 0
        #: the model has replied in this call
        self._alive = False
        self._wall_s = 0.0
        self._last: ParallelResult | None = None
        self._bar: Bar | None = None
        self._callback = self._progress_callback(progress)

    def resume_after(self, before: Totals) -> None:
        """Count the rows that an earlier call finished; they come before the first chunk."""
        if self._limit is not None and not self._failures.fail_fast and before.failed > self._limit:
            raise UsageError(
                f"max_failures={self._failures.max_failures!r}: "
                f"{plural(before.failed, 'row')} of the finished chunks failed already; "
                "allow more, or begin anew"
            )
        self.settled = self._done = before.total
        self.failed, self.succeeded = before.failed, before.succeeded
        self.from_store, self.tokens = before.from_store, before.usage.total_tokens or 0

    def pass_over(self, chunk: Any) -> None:
        """Count the prompts of a chunk that an earlier call finished; sends nothing."""
        call = prepare(chunk, self._task, self._options, self._counts)
        if isinstance(call.plan.draws, Draws) and call.open_store is not None:
            call.plan.draws.number_all()

    def _progress_callback(self, progress: Any) -> Callable[[int, int, RowResult], object] | None:
        if callable(progress):
            return _RenumberedCallback(self, progress)
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

    def renumbered(self, completed: int, total: int, row: RowResult) -> tuple[int, int, RowResult]:
        """The progress of the chunk at hand, counted over all chunks."""
        every = self._done + total if self._total is None else self._total
        number = self._done // self._samples + row.row
        return self._done + completed, every, dataclasses.replace(row, row=number)

    def run_chunk(self, chunk: Any) -> ParallelResult:
        """Run the task over the next chunk.

        Raises:
            RunFailed, Interrupted: it was stopped; ``.result`` is that of this chunk.
        """
        changed: dict[str, Any] = {}
        if self._timeout is not None:
            changed["timeout"] = self._timeout - self._wall_s
            if changed["timeout"] <= 0:
                assert self._last is not None
                raise RunTimeout(self._stop_message(timed_out(self._timeout).reason), self._last)
        failed, from_store = self.failed, self.from_store
        if self._limit is not None and not self._failures.fail_fast:
            changed["max_failures"] = self._limit - failed
        if self._callback is not None:
            changed["progress"] = self._callback
        stopped: RunFailed | Interrupted | None = None
        try:
            options = self._options.replace(**changed)
            result = run_task(chunk, self._task, options, self._counts, alive=self._alive)
        except (RunFailed, Interrupted) as error:
            result, record = error.result, error.result._record
            # A chunk all of whose rows failed is no reason to stop: what counts is the whole.
            cut_short = record.stopped or record.ended_by or record.has_unfinished
            if isinstance(error, Interrupted) or cut_short:
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
        self._alive = self._alive or metrics.succeeded > metrics.from_store
        self.settled = self._done
        if stopped is not None:
            raise self._with_all_chunks(stopped, first) from stopped.__cause__
        return result

    def _with_all_chunks(
        self, error: RunFailed | Interrupted, first: int
    ) -> RunFailed | Interrupted:
        """The same error, with counts over all chunks."""
        record = error.result._record
        if isinstance(error, Interrupted):
            reason = "it was interrupted"
        elif record.stopped is None and record.ended_by is None:
            reason = "it ended before its last row"
        elif record.stopped is None:
            reason = f"it broke off: {type(record.ended_by).__name__}: {record.ended_by}"
        elif record.stopped.kind is StopKind.FAILURES and not self._failures.fail_fast:
            failed = plural(self.failed, "row", "failed")
            reason = f"{failed}, more than max_failures allows ({self._limit})"
        elif record.stopped.kind is StopKind.TIMEOUT:
            assert self._timeout is not None
            reason = timed_out(self._timeout).reason  # of all chunks, not what this one had left
        else:
            reason = record.stopped.reason
        lines = [self._stop_message(reason)]
        if record.first_failure is not None:
            row, failure = record.first_failure
            number = (first + row) // self._samples
            lines.append(f"The first failure of this chunk was row {number:,}: {failure}")
        lines.append("The partial result of this chunk is in .result of this error.")
        return type(error)("\n".join(lines), error.result)

    def _stop_message(self, reason: str) -> str:
        all_rows = "" if self._total is None else f" of {self._total:,}"
        what = "row" if self._samples == 1 else "sample"
        counted = self.succeeded if self._total is None else self._total
        return (
            f"the run was stopped in chunk {self._chunks}: {reason}; {self.succeeded:,}{all_rows} "
            f"{what}{'' if counted == 1 else 's'} {'is' if self.succeeded == 1 else 'are'} done "
            f"and {self.failed:,} failed"
        )

    def end(self) -> None:
        """Raise :class:`~revkit.RunFailed` if no row of any chunk is ok.

        Not if this call has run no chunk: then an earlier call has raised it.
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


class _RenumberedCallback:
    """The user's progress callback, called with counts over all chunks."""

    def __init__(self, run: ChunkedRun, callback: Callable[[int, int, RowResult], object]):
        self._run = run
        self._callback: Callable[[int, int, RowResult], object] | None = callback

    def __call__(self, completed: int, total: int, row: RowResult) -> None:
        if self._callback is None:
            return
        try:
            self._callback(*self._run.renumbered(completed, total, row))
        except BaseException:
            self._callback = None  # the run tells the user; later chunks do not call it again
            raise
