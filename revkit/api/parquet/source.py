"""Reads the rows of a Parquet file, or of a directory of them, chunk by chunk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import UsageError

__all__ = ["Source", "frame_of"]

#: Bytes of a column that are read at once, so that a huge row group is not read whole.
_BUFFER = 1 << 20


class Source:
    """A file, or the ``*.parquet`` files of a directory in the order of their names.

    Attributes:
        path: as an absolute path.
        rows: how many there are.
        schema: of all files, with their metadata.

    Raises:
        UsageError: nothing is there, it is no Parquet, or the files have different columns.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser().absolute()
        self._files = [self.path]
        if self.path.is_dir():
            self._files = sorted(self.path.rglob("*.parquet"))
            if not self._files:
                raise UsageError(f"there is no file *.parquet in the directory {self.path}")
            for file in self._files:
                partition = [x for x in file.relative_to(self.path).parts[:-1] if "=" in x]
                if partition:
                    raise UsageError(
                        f'{self.path} is divided by a column: the directory "{partition[0]}" holds '
                        "values that no file has; write it as plain files first, or run "
                        "map_parquet on each directory"
                    )
        self.rows = 0
        self.schema = pa.schema([])
        for number, file in enumerate(self._files):
            try:
                with pq.ParquetFile(file) as opened:
                    rows, schema = opened.metadata.num_rows, opened.schema_arrow
            except (OSError, pa.ArrowException) as error:
                raise UsageError(f"{file} cannot be read as Parquet: {error}") from error
            if number == 0:
                self.schema = schema
            elif not schema.equals(self.schema):
                raise UsageError(
                    f"{file} has other columns, or types of them, than {self._files[0]}; give "
                    "files that are alike"
                )
            self.rows += rows

    @property
    def identity(self) -> list[tuple[str, int, int]]:
        """Name, size in bytes and time of change (in ns) of each file: changed rows change it."""
        stats = [(file, file.stat()) for file in self._files]
        return [(file.name, stat.st_size, stat.st_mtime_ns) for file, stat in stats]

    def tables(self, rows: int, start: int = 0, end: int | None = None) -> Iterator[pa.Table]:
        """The rows from ``start`` to ``end``, as tables of so many; the last one may have fewer."""
        pending = self.schema.empty_table()
        left = self.rows - start if end is None else end - start
        for batch in self._batches(rows, start):
            if left <= 0:
                break
            batch = batch.slice(0, left)
            left -= len(batch)
            pending = pa.concat_tables([pending, pa.Table.from_batches([batch])])
            while len(pending) >= rows:
                yield pending.slice(0, rows)
                pending = pending.slice(rows)
        if len(pending):
            yield pending

    def _batches(self, rows: int, start: int) -> Iterator[pa.RecordBatch]:
        for path in self._files:
            with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
                groups: list[int] = []
                for group in range(file.metadata.num_row_groups):
                    size = file.metadata.row_group(group).num_rows
                    if groups or start < size:
                        groups.append(group)
                    else:
                        start -= size
                for batch in file.iter_batches(batch_size=rows, row_groups=groups):
                    skipped = min(start, len(batch))
                    start -= skipped
                    if skipped < len(batch):
                        yield batch.slice(skipped)

    def frames(self, rows: int) -> Iterator[pd.DataFrame]:
        """All rows as frames of so many rows, with the index that the whole frame would have."""
        start = 0
        for table in self.tables(rows):
            yield frame_of(table, start)
            start += len(table)


def frame_of(table: pa.Table, start: int) -> pd.DataFrame:
    """A table as a frame.

    Args:
        start: number of its first row in the whole.
    """
    metadata = table.schema.metadata or {}
    frame: pd.DataFrame = table.to_pandas()
    index: list[Any] = json.loads(metadata.get(b"pandas", b"{}")).get("index_columns", [])
    ranges = [of for of in index if isinstance(of, dict) and of.get("kind") == "range"]
    if ranges or not index:
        of: dict[str, Any] = ranges[0] if ranges else {"start": 0, "step": 1, "name": None}
        first, step = of["start"] + start * of["step"], of["step"]
        frame.index = pd.RangeIndex(first, first + len(frame) * step, step, name=of["name"])
    frame.attrs = json.loads(metadata.get(b"PANDAS_ATTRS", b"{}"))
    return frame
