"""``map_chunks``: a task over chunk after chunk of rows, each handed out when it is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import chain, islice
from typing import Any, Unpack

import pandas as pd

from ..errors import UsageError
from ..results.result import ParallelResult
from ..runtime.options import Options, Showing
from ..task.sentiment import SENTIMENT
from .arguments import TaskLike, checked, shows_options
from .chunked_run import CHUNK_ROWS, LEAVE_OUT, ChunkedRun, check_chunk_rows

__all__ = ["map_chunks"]


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
    progress = options.pop("progress", Showing.progress)
    found = checked(map_chunks, options)
    chunks, total = _chunks(source, check_chunk_rows(chunk_rows))
    return _results(chunks, ChunkedRun(task, found, progress=progress, total=total))


def _results(chunks: Iterator[Any], run: ChunkedRun) -> Iterator[ParallelResult]:
    try:
        for chunk in chunks:
            yield run.run_chunk(chunk)
        run.end()
    finally:
        run.close()


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
