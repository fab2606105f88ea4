"""``map_parquet``: a task over the rows of a Parquet file, into another one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Unpack

import pandas as pd

from ...errors import RunFailed, UsageError, plural
from ...record.metrics import Usage
from ...record.totals import Totals
from ...runtime.options import Options, Showing
from ...tables.dtypes import STRING
from ..arguments import TaskLike, checked, shows_options
from ..chunked_run import CHUNK_ROWS, LEAVE_OUT, ChunkedRun, check_chunk_rows
from ..prepare import prepare

__all__ = ["ParquetResult", "map_parquet"]

#: Those of a run's options that decide what its columns hold.
_DECIDE = ("on", "prefix", "error", "repeat")


class ParquetResult:
    """What :func:`map_parquet` gives back: where the rows are, and what they came to.

    Its size does not grow with the rows.

    Attributes:
        path: of the finished file; ``pandas.read_parquet(path)`` reads it.
        metrics: counts and sums over all chunks; see :class:`revkit.record.totals.Totals`.
    """

    def __init__(self, path: Path, totals: Totals):
        self.path = path
        self.metrics = totals

    @property
    def usage(self) -> Usage:
        """Tokens of all attempts in finished chunks, and their cost where it is known."""
        return self.metrics.usage

    @property
    def latency(self) -> pd.Series:
        """Service time of the good attempts in ms, as :attr:`revkit.ParallelResult.latency`.

        Percentiles are right to 1 %: they come from a histogram.
        """
        return pd.Series(self.metrics.latency, name="latency_ms", dtype="float64")

    @property
    def errors(self) -> pd.DataFrame:
        """The first 20 rows that failed: ``row`` (int64, from 0), ``error_type``, ``message``.

        All of them stand in the file, in its error column.
        """
        rows, types, messages = (
            zip(*self.metrics.errors, strict=True) if self.metrics.errors else ((), (), ())
        )
        return pd.DataFrame(
            {
                "row": pd.array(rows, dtype="int64"),
                "error_type": pd.array(types, dtype=STRING),
                "message": pd.array(messages, dtype=STRING),
            }
        )

    def __repr__(self) -> str:
        from ...display.facts import cut_off, truncated
        from ...display.words import rows_of

        totals = self.metrics
        parts = [rows_of(totals.total, totals.samples), f"{totals.succeeded:,} ok"]
        parts += [f"{totals.failed:,} failed"] if totals.failed else []
        lines = [f"ParquetResult: {', '.join(parts)}, in {self.path.name}"]
        lines += [f"  {count:,} x {kind}" for kind, count in totals.error_types.items()]
        lines += [f"  {cut_off(totals.cut_off, totals.samples)}"] if totals.cut_off else []
        lines += [f"  {truncated(totals.truncated)}"] if totals.truncated else []
        return "\n".join(lines)


@shows_options(*LEAVE_OUT)
def map_parquet(
    source: str | os.PathLike[str],
    task: TaskLike,
    sink: str | os.PathLike[str],
    *,
    chunk_rows: int = CHUNK_ROWS,
    restart: bool = False,
    **options: Unpack[Options],
) -> ParquetResult:
    """Run a task over every row of a Parquet file, and write rows and outputs to another one.

    The file may be larger than memory: it is read, run and written in chunks of rows. The sink
    has the columns of the source as they were, then the outputs and the error column, in the
    order of the source's rows, and pandas reads it as it reads the source.

    Finished chunks are kept beside the sink, in the directory ``<sink>.parts``; when all are
    there, the sink is made of them and the directory removed. So the sink is there whole or not
    at all. After an interrupt, a stop or a kill the same call goes on after the last finished
    chunk: what the chunk at hand had done is lost for functions; replies of models are in the
    store. ``chunk_rows`` and all options that do not decide what the columns hold may differ then.
    A sink that is finished is not made again. Two calls must not write the same sink at the same
    time: the second one is refused, but not on Windows and on some network file systems.

    Args:
        source: a Parquet file, or a directory of them, which are read in the order of their names;
            not one that is divided by a column (``year=2024/…``), whose values no file has.
        task: as for :func:`revkit.parallel_map`. A function goes by its name: after changing what
            it does, pass ``restart=True``.
        sink: the file to write.
        chunk_rows: rows that are in memory at once. Workers wait at the end of a chunk for its
            slowest row, so it should have many more than there are workers.
        restart: begin anew, whatever stands at the sink or in its parts; a file that is there is
            replaced when the new one is whole. To go on after that was stopped, call it without.
        options: those of :func:`revkit.parallel_map`. ``max_failures``, ``fail_fast``,
            ``timeout``, ``budget`` and ``rate_limit`` hold over all chunks together, failures of
            chunks that were finished before included, and ``progress`` counts over all rows.

    Returns:
        Counts, usage, latency, and the first errors.

    Raises:
        UsageError: the call cannot be carried out as written; or the sink, finished or not, was
            made by something else: another task, model, source, binding or name of a column.
        RunFailed: the run was stopped, or no row is ok (the sink is there then); ``.result`` is
            that of the chunk at hand.
        Interrupted: the user interrupted it; ``.result`` likewise.

    The type of a column is the same in the whole file. That of a signature or template is the
    task's own. For a function it is one that holds the values of all chunks: whole numbers become
    floats where another chunk has floats; where there is none (numbers and texts, or whole numbers
    that no float holds beside fractions), all are written as text, with a warning. Mappings are
    written as JSON.

    >>> import pandas as pd, revkit, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> pd.DataFrame({"n": range(5)}).to_parquet(f"{folder}/numbers.parquet")
    >>> def square(row):
    ...     return row["n"] ** 2
    >>> revkit.map_parquet(f"{folder}/numbers.parquet", square, f"{folder}/squares.parquet",
    ...                    output="square", chunk_rows=2)
    ParquetResult: 5 rows, 5 ok, in squares.parquet
    >>> pd.read_parquet(f"{folder}/squares.parquet")["square"].tolist()
    [0, 1, 4, 9, 16]
    """
    from .sink import Sink, joined  # with pyarrow's part for Parquet, which takes a while to import
    from .source import Source, frame_of

    rows = check_chunk_rows(chunk_rows) or CHUNK_ROWS
    read = Source(source)
    progress = options.pop("progress", Showing.progress)
    found = checked(map_parquet, options)
    call = prepare(frame_of(read.schema.empty_table(), 0), task, found)
    made_by = call.provenance
    kept = Sink(
        sink,
        {
            "task": made_by["task"],
            "model": made_by["model"],
            "source": read.identity,
            **{f"{name}=": made_by["options"][name] for name in _DECIDE},
            # Sinks that were begun by an older revkit do not have it.
            **({"truncated=": "keep"} if found.failures.truncated == "keep" else {}),
        },
    )
    if kept.path.is_relative_to(read.path):
        raise UsageError(f"the sink {kept.path} is the source, or lies in it; choose another")
    if not kept.path.parent.is_dir():
        raise UsageError(f"there is no directory {kept.path.parent}; make it first")
    finished = None if restart else kept.finished()
    if finished is not None:
        return ParquetResult(kept.path, finished)
    if call.plan.client is not None:
        found = found.replace(model=call.plan.client)  # the same one for all chunks
    run = ChunkedRun(task, found, progress=progress, total=read.rows)
    with kept.open(restart=restart):
        run.resume_after(kept.totals())
        try:
            # A source without rows is one empty chunk, so that the sink has its columns.
            any_rows = read.rows or kept.parts
            if call.plan.draws is not None:
                for table in read.tables(rows, end=kept.rows):
                    run.pass_over(frame_of(table, 0))
            tables = read.tables(rows, start=kept.rows) if any_rows else [read.schema.empty_table()]
            for table in tables:
                start = kept.rows
                result = run.run_chunk(frame_of(table, start))
                totals = Totals.of(result._record, result._find_price(), first=start)
                kept.put(joined(table, result), totals)
        except (RunFailed, KeyboardInterrupt) as error:
            error.add_note(
                f"{plural(kept.rows, 'row', 'are finished and kept')} in {kept.directory}; the "
                "same call goes on from there."
            )
            raise
        finally:
            run.close()
        totals = kept.finish()
    run.end()
    return ParquetResult(kept.path, totals)
