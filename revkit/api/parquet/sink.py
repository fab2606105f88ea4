"""Keeps finished chunks beside the file that they are to become, and makes it of them.

While work goes on, ``<sink>.parts`` holds one Parquet file for each finished chunk, named after
its rows, and what they were made by. Each is there whole or not at all, and so is the sink: a
kill at any time loses the chunk at hand, no more. Where the directory is there, work is not done,
whatever stands at the sink.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import UsageError, plural, warn
from ...record.totals import Totals
from ...results.result import ParallelResult
from ...results.saved.values import UNFIT
from ...results.saved.write import readable
from ...store.files import replacing
from ...store.lock import locked
from ...tables.dtypes import ATTRS, STRING
from ...task.kinds import CallableTask

__all__ = ["Sink", "joined"]

#: Goes up when an older revkit could not go on with the parts.
FORMAT = 1
#: Under this key the metadata of a part, and of the sink, holds our JSON.
METADATA = b"revkit.map_parquet"
#: Under these, pandas keeps its own.
_PANDAS, _ATTRS = b"pandas", b"PANDAS_ATTRS"
_UNDESCRIBED = b'{"index_columns": [], "column_indexes": [], "columns": []}'


class Part(NamedTuple):
    """A finished chunk: the rows from ``start`` up to ``stop``."""

    start: int
    stop: int
    path: Path


class Sink:
    """A Parquet file that is made of chunks.

    Args:
        path: the file.
        made_by: what decides what is in it, as plain JSON: a mapping of what to what.
    """

    def __init__(self, path: str | os.PathLike[str], made_by: Mapping[str, Any]):
        self.path = Path(path).expanduser().absolute()
        self.directory = self.path.with_name(f"{self.path.name}.parts")
        self._finished_parts = self.path.with_name(f"{self.path.name}.parts.finished")
        self._made_by = {what: _digest(value) for what, value in made_by.items()}
        self.parts: list[Part] = []

    @property
    def rows(self) -> int:
        """Rows that are finished: the first ones."""
        return self.parts[-1].stop if self.parts else 0

    def finished(self) -> Totals | None:
        """What the file comes to where it is finished; None where it is not there.

        Nor is it where parts are: then it is what ``restart=True`` is about to replace.

        Raises:
            UsageError: another file is there.
        """
        shutil.rmtree(self._finished_parts, ignore_errors=True)  # a kill may have left them
        if self.directory.exists() or not self.path.exists():
            return None
        try:
            noted = json.loads((pq.read_schema(self.path).metadata or {})[METADATA])
        except (OSError, KeyError, ValueError, pa.ArrowException):
            raise UsageError(
                f"{self.path} is there already, and map_parquet did not make it; choose another "
                "sink, or pass restart=True to replace it when the new one is whole"
            ) from None
        self._check(noted, f"{self.path} is there already")
        totals = Totals.from_json(noted["totals"])
        if totals.is_whole:
            return totals
        warn(
            f"{self.path} was kept by revkit 0.1.0 as finished, and {_unfinished(totals)}; all "
            "rows are run again, and those whose replies are in the store are not asked for again"
        )
        return None

    def _check(self, noted: Mapping[str, Any], what: str) -> None:
        """Refuse what something else has made."""
        if noted.get("format", 0) > FORMAT:
            raise UsageError(f"{what}, made by a newer revkit; choose another sink")
        made_by = noted.get("made_by", {})
        names = self._made_by | made_by
        others = [name for name in names if self._made_by.get(name) != made_by.get(name)]
        if others:
            raise UsageError(
                f"{what}, and was made with another {' and another '.join(others)}; choose "
                "another sink, or pass restart=True to begin anew (what it has is then lost, but "
                "replies of models that are in the store are not asked for again)"
            )

    @contextlib.contextmanager
    def open(self, *, restart: bool) -> Iterator[None]:
        """Hold the directory of the parts, and find those that are there.

        Raises:
            UsageError: something else has made them, or another process is at work on them.
        """
        if restart and self.directory.exists():
            with self._locked():
                shutil.rmtree(self.directory)
        self.directory.mkdir(exist_ok=True)
        with self._locked():
            about = self.directory / "about.json"
            if about.exists():
                self._check(json.loads(about.read_text("utf-8")), f"{self.directory} is there")
            else:
                note = {"format": FORMAT, "made_by": self._made_by}
                with replacing(about) as (_, unfinished):
                    unfinished.write_text(json.dumps(note), encoding="utf-8")
            self.parts = list(self._whole_parts())
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self.directory) as alone:
            if not alone:
                raise UsageError(
                    f"{self.path} is being written by another process, or another call; wait for "
                    "it, or choose another sink"
                )
            yield

    def _whole_parts(self) -> Iterator[Part]:
        """The parts that follow one another from the first row on; others are removed.

        So is one with rows that were never finished, which revkit 0.1.0 kept after a timeout.
        """
        stop = 0
        for path in sorted(self.directory.glob("*.parquet")):
            first, _, last = path.stem.partition("-")
            try:
                with pq.ParquetFile(path) as file:
                    fits = int(first) == stop and file.metadata.num_rows == int(last) - stop
                    totals = Totals.from_json(json.loads(file.metadata.metadata[METADATA]))
                if fits and not totals.is_whole:
                    fits = False
                    warn(
                        f"{path} was kept by revkit 0.1.0 as finished, and {_unfinished(totals)}; "
                        f"rows {stop:,} and after are run again, and those whose replies are in "
                        "the store are not asked for again"
                    )
            except (
                OSError,
                ValueError,
                KeyError,
                TypeError,
                pa.ArrowException,
            ):  # as a power cut may leave it
                fits = False
            if not fits:
                path.unlink()
                continue
            yield Part(stop, stop := int(last), path)
        for path in self.directory.glob("*.part"):  # of a process that was killed
            path.unlink()

    def put(self, table: pa.Table, totals: Totals) -> None:
        """Keep a finished chunk: the rows after those that are there."""
        if not totals.is_whole:
            raise RuntimeError(f"an unfinished chunk is not kept: {_unfinished(totals)}")
        start, stop = self.rows, self.rows + len(table)
        note = {METADATA: json.dumps(totals.to_json()).encode()}
        table = table.replace_schema_metadata((table.schema.metadata or {}) | note)
        with replacing(self.directory / f"{start:015}-{stop:015}.parquet") as (path, unfinished):
            pq.write_table(table, unfinished, write_page_checksum=True)
        self.parts.append(Part(start, stop, path))

    def totals(self) -> Totals:
        """What all parts come to."""
        totals = Totals()
        for part in self.parts:
            totals.add(Totals.from_json(json.loads(pq.read_schema(part.path).metadata[METADATA])))
        return totals

    def finish(self) -> Totals:
        """Make one file of all parts, put it in its place, and remove them."""
        totals = self.totals()
        schema = _unified([part.path for part in self.parts])
        note = {"format": FORMAT, "made_by": self._made_by, "totals": totals.to_json()}
        metadata = {**(schema.metadata or {}), METADATA: json.dumps(note).encode()}
        schema = schema.with_metadata(metadata)
        with (
            replacing(self.path) as (_, unfinished),
            pq.ParquetWriter(unfinished, schema, write_page_checksum=True) as writer,
        ):
            for part in self.parts:
                writer.write_table(_fitted(_read(part.path), schema))
        self.remove()
        return totals

    def remove(self) -> None:
        """Remove the parts; as parts of unfinished work all at once."""
        os.replace(self.directory, self._finished_parts)
        shutil.rmtree(self._finished_parts, ignore_errors=True)
        self.parts = []


def _unfinished(totals: Totals) -> str:
    left = totals.total - totals.succeeded - totals.failed
    return plural(left, "row", f"of {totals.total:,} {'was' if left == 1 else 'were'} not finished")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def joined(table: pa.Table, result: ParallelResult) -> pa.Table:
    """The rows as they were read, and the columns that a run has made of them."""
    task = result.task
    assert task is not None
    metadata = dict(table.schema.metadata or {})
    described = json.loads(metadata.get(_PANDAS, _UNDESCRIBED))
    noted = result.frame.attrs.get(ATTRS, {})
    error = result.provenance["options"]["error"]
    made = [label for label in result.frame.columns if noted.get(str(label)) == task.fingerprint]
    for label in made:
        column = _column(result.frame[label])
        values = column.column(0)
        is_open = isinstance(task, CallableTask) and label != error
        if is_open and values.null_count == len(values):
            values = pa.nulls(len(values))  # of what type they are, other chunks may tell
        if label in table.column_names:
            table = table.set_column(table.column_names.index(label), label, values)
        else:
            table = table.append_column(label, values)
        entries = json.loads(readable(column.schema.metadata[_PANDAS]))["columns"]
        described["columns"] = [c for c in described["columns"] if c["name"] != label] + entries
    metadata[_PANDAS] = json.dumps(described).encode()
    with contextlib.suppress(*UNFIT):  # what is no JSON, no Parquet file could have brought
        metadata[_ATTRS] = json.dumps(result.frame.attrs).encode()
    return table.replace_schema_metadata(metadata)


def _column(values: pd.Series) -> pa.Table:
    """The column as a table; what Arrow has no one type for, as text."""
    with contextlib.suppress(*UNFIT):
        table = pa.Table.from_pandas(values.to_frame(), preserve_index=False)
        if values.dtype != object or not pa.types.is_nested(table.schema.field(0).type):
            return table
    given = [value for value in values.tolist() if value is not None]
    if not all(isinstance(value, dict | list) for value in given):
        kinds = ", ".join(sorted({type(value).__name__ for value in given}))
        warn(
            f'the values of the output "{values.name}" are of types that Parquet has no one type '
            f"for ({kinds}), so all of them were written as text"
        )
    texts = pd.array(_texts(values.tolist()), dtype=STRING)
    return pa.Table.from_pandas(pd.DataFrame({values.name: texts}), preserve_index=False)


def _texts(values: list[Any]) -> list[str | None]:
    """Texts as they are, times in ISO 8601, and anything else as JSON."""
    return [None if value is None else _text(value) for value in values]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, bytes) else json.dumps(value, default=str)


def _read(path: Path) -> pa.Table:
    """The table of one file; of its path nothing is read into it."""
    with pq.ParquetFile(path) as file:
        return file.read()


def _unified(paths: list[Path]) -> pa.Schema:
    """One schema that holds the values of all, with what pandas is to know of its columns."""
    schemas = [pq.read_schema(path) for path in paths]
    fields: dict[str, dict[pa.DataType, list[Path]]] = {}
    attrs: dict[str, Any] = {}
    for path, schema in zip(paths, schemas, strict=True):
        for field in schema:
            fields.setdefault(field.name, {}).setdefault(field.type, []).append(path)
        theirs = json.loads(schema.metadata.get(_ATTRS, b"{}"))
        noted = {**attrs.get(ATTRS, {}), **theirs.get(ATTRS, {})}
        attrs = {**theirs, ATTRS: noted}
    unified = pa.schema([(name, _common_type(name, types)) for name, types in fields.items()])
    described = json.loads(schemas[0].metadata[_PANDAS])
    entries: dict[str, Any] = {}
    for schema in schemas:
        for entry in json.loads(schema.metadata[_PANDAS])["columns"]:
            place = schema.get_field_index(entry["field_name"])
            if place < 0 or schema.field(place).type == unified.field(entry["field_name"]).type:
                entries.setdefault(entry["field_name"] or entry["name"], entry)
    described["columns"] = list(entries.values())
    for_pandas = {_PANDAS: json.dumps(described).encode(), _ATTRS: json.dumps(attrs).encode()}
    return unified.with_metadata({**schemas[0].metadata, **for_pandas})


def _common_type(name: str, types: Mapping[pa.DataType, list[Path]]) -> pa.DataType:
    """A type that holds the values of all of these; the files say whether it really does."""
    try:
        schemas = [pa.schema([(name, one)]) for one in types]
        common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        for one, paths in types.items():
            for path in paths if one != common else ():
                with pq.ParquetFile(path) as file:
                    file.read(columns=[name])[name].cast(common)
    except pa.ArrowException:
        found = " and ".join(str(one) for one in types if not pa.types.is_null(one))
        warn(
            f'the values of the output "{name}" are of different types in different chunks '
            f"({found}), so all of them were written as text"
        )
        return pa.string()
    return pa.string() if pa.types.is_null(common) else common


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of the schema."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            column = pa.nulls(len(table), field.type)
        else:
            column = table[field.name]
            if column.type == field.type:
                pass
            elif pa.types.is_string(field.type) and not pa.types.is_large_string(column.type):
                column = pa.array(_texts(column.to_pylist()), field.type)
            else:
                column = column.cast(field.type)
        columns.append(column)
    return pa.table(columns, schema=schema)
