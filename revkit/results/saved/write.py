"""A result into a file."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import UsageError, one_line
from ...scheduling.events import Status
from ...store.files import replacing
from ...tables.dtypes import STRING, same_rows
from .values import UNFIT, Note, encoded, same, through_parquet

if TYPE_CHECKING:
    from ..result import ParallelResult

__all__ = ["ATTEMPTS", "FORMAT", "METADATA", "PREFIX", "readable", "write"]

#: Goes up when an older revkit could not read the file rightly.
FORMAT = 1
#: Under this key the schema's metadata holds our JSON; pandas' own stands beside it.
METADATA = b"revkit"
PREFIX = "revkit."
ATTEMPTS = f"{PREFIX}attempts"
#: The values of an output, by its number, in each sample of a row.
SAMPLED = f"{PREFIX}output.{{}}"
#: The facts of a row that are columns of ``run.rows``.
_OF_ROWS = (
    *("status", "source", "service_ms", "wait_ms", "worker", "prompt_tokens", "completion_tokens"),
    *("cost_usd", "finish_reason", "truncated", "model", "format", "thought", "text"),
    *("probabilities", "error_type", "error"),
)


def write(result: ParallelResult, path: str | os.PathLike[str]) -> None:
    """:meth:`ParallelResult.to_parquet`."""
    _check(result)
    with replacing(path) as (_, unfinished):
        columns, described = _columns(result)
        try:
            table = pa.Table.from_pandas(columns).append_column(ATTEMPTS, _attempts(result))
            metadata = table.schema.metadata | {METADATA: _json(_run_facts(result) | described)}
            metadata[b"pandas"] = readable(metadata[b"pandas"])
            if columns.attrs:
                metadata[b"PANDAS_ATTRS"] = _json(columns.attrs)
            table = table.replace_schema_metadata(metadata)
            pq.write_table(table, unfinished, write_page_checksum=True)
        except UNFIT as error:
            raise _unfit(columns, result, error) from None


def _columns(result: ParallelResult) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The columns of the file, attempts apart, and what is to be known of them to read them."""
    frame = result.frame
    inputs, bound_to = _inputs(result)
    columns = pd.concat([frame, pd.DataFrame(inputs, index=frame.index, dtype=object)], axis=1)
    if result.repeat > 1:
        columns = columns.take(np.repeat(np.arange(len(columns)), result.repeat))
        sampled = {SAMPLED.format(n): x for n, x in enumerate(result._sampled.values())}
        columns = pd.concat([columns, pd.DataFrame(sampled, index=columns.index)], axis=1)
    notes: dict[str, Note] = {}
    for place, name in enumerate(columns.columns):
        values, note = encoded(columns.iloc[:, place])
        if note is not None:
            columns.isetitem(place, values)
            notes[name] = note
    whole = pd.concat([columns, _facts(result)], axis=1)
    whole.attrs, whole.columns.name = frame.attrs, frame.columns.name
    return whole, {
        "inputs": {"bound_to": bound_to, "scalar": result._rows.scalar},
        "frame": {
            "columns": list(frame.columns),
            "index": list(frame.index.names),
            "notes": notes,
        },
    }


def _run_facts(result: ParallelResult) -> dict[str, Any]:
    """What is known of the run as a whole; times in seconds since its start."""
    record, price = result._record, result._find_price()

    def since(seconds: float | None) -> float | None:
        return None if seconds is None else seconds - record.began

    return {
        "format": FORMAT,
        "provenance": result.provenance,
        "run": {
            "asks_model": record.asks_model,
            "samples": record.samples,
            "engine": record.engine,
            "workers": record.workers,
            "wall_s": since(record.ended),
            "stopped": record.stopped,
            "stopped_at_s": since(record.stopped_at),
            "holds": [(kind, since(start), since(end)) for kind, start, end in record.holds],
            "visits": [(since(at), rows) for at, rows in record.visits],
            "limits": [(since(at), limit) for at, limit in record.limits],
            "first_refused": None if record.first_refused is None else record.first_refused[0],
            "store": record.store,
            "store_problem": record.store_problem,
            "weights": record.facts.get("weights"),  # all that revkit 0.1.0 reads of them
            "facts": dict(record.facts),
            "places": record.places,
        },
        "model_name": result.model_name,
        "price": None if price is None else dataclasses.asdict(price),
        "columns": list(result._columns.items()),
        "outputs": list(result.outputs.items()),
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, default=lambda x: getattr(x, "value", str(x))).encode()


def _check(result: ParallelResult) -> None:
    """Refuse a frame that does not fit the run any more, or that no Parquet file can hold."""
    frame, columns = result.frame, result._columns
    if not same_rows(frame, result._values, columns.values()):
        raise UsageError(
            "run.frame was sorted, filtered or has other outputs since the run, and one line of "
            "the file is one row of the run; set it back (run.frame = df, the frame that the run "
            "was called on) and change a copy, or save it alone: run.frame.to_parquet(path)"
        )
    renamed = "run.frame.columns = run.frame.columns.map(str)"
    for name in frame.columns:
        if not isinstance(name, str):
            raise UsageError(
                f"the column {name!r} has a name that is no text, and Parquet has no other; "
                f"rename it: {renamed}"
            )
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise UsageError(f'the frame has several columns "{one_line(twice)}"; rename them first')
    for label in [*frame.columns, *frame.index.names]:
        if isinstance(label, str) and label.startswith(PREFIX):
            raise UsageError(
                f'the frame has a column or index "{one_line(label)}", and names that begin with '
                f'"{PREFIX}" are those of the facts in the file; rename it first'
            )
    for key, value in frame.attrs.items():
        try:
            json.dumps({key: value})
        except UNFIT:
            raise UsageError(
                f"run.frame.attrs[{key!r}] is not JSON, as a file needs it; delete it first"
            ) from None


def _inputs(result: ParallelResult) -> tuple[dict[str, list[Any]], list[tuple[Any, str]]]:
    """What the inputs were.

    Returns:
        The columns to save for them; and the column of each, which is the frame's own where that
        has the same values.
    """
    on = result.provenance["options"]["on"]
    own: dict[str, list[Any]] = {}
    bound_to = []
    for number, (name, values) in enumerate(
        zip(result._rows.names, result._rows.columns, strict=True)
    ):
        column = on.get(str(name))
        if column not in result.frame or not same(result.frame[column].tolist(), values):
            column = f"{PREFIX}input.{number}"
            own[column] = values
        bound_to.append((name, column))
    return own, bound_to


def _facts(result: ParallelResult) -> pd.DataFrame:
    """What is known of each row, attempts apart."""
    record = result._record
    sample = ["sample"] if result.repeat > 1 else []
    facts = result.rows[[*sample, *_OF_ROWS]].copy(deep=False)
    texts = [None if p is None else json.dumps(p) for p in facts["probabilities"]]
    facts["probabilities"] = pd.array(texts, dtype=STRING)
    failures = [
        record.failures[row] if status is Status.ERROR else None
        for row, status in enumerate(record.status)
    ]
    facts["http_status"] = pd.array([f and f.status for f in failures], dtype="Int64")
    facts["error_text"] = pd.array([f and f.text for f in failures], dtype=STRING)
    return facts.set_axis([f"{PREFIX}{name}" for name in facts.columns], axis=1)


def _attempts(result: ParallelResult) -> pa.ListArray:
    """For each row a list of its attempts.

    Each has the columns of ``run.attempts`` but the row; its ``place`` among all of the run;
    ``due_s``, when it might start (null: as soon as the run did); and where it failed,
    ``http_status`` and ``text`` (what the model said).
    """
    record = result._record
    attempts = result.attempts.drop(columns="row")
    failures = [record.attempt_failures.get(place) for place in range(len(attempts))]
    attempts["place"] = np.arange(len(attempts))
    attempts["due_s"] = np.asarray(record.due, dtype=float) - record.began
    attempts["http_status"] = pd.array([f and f.status for f in failures], dtype="Int64")
    attempts["text"] = pd.array([f and f.text for f in failures], dtype=STRING)
    batch = pa.RecordBatch.from_pandas(attempts, preserve_index=False)
    rows = np.asarray(record.row, dtype=np.int64)
    ends = np.cumsum(np.bincount(rows, minlength=record.total))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    by_row = batch.take(pa.array(np.argsort(rows, kind="stable"))).to_struct_array()
    return pa.ListArray.from_arrays(pa.array(offsets), by_row)


def _unfit(columns: pd.DataFrame, result: ParallelResult, error: Exception) -> Exception:
    """The error for values that Parquet does not take; it names the first column of such."""
    for place, name in enumerate(columns.columns):
        try:
            through_parquet(columns.iloc[:, place])
        except UNFIT as why:
            text = f'run.frame["{name}"].map(str)'
            way_out = f'make it text: run.frame["{name}"] = {text}; or drop it'
            if name in result._columns.values() or name not in result.frame:
                alone = f'run.frame.assign(**{{"{name}": {text}}}).to_parquet(path)'
                way_out = f"save the frame alone, with it as text: {alone}"
            return UsageError(
                f'Parquet cannot hold the values of the column "{one_line(name)}" '
                f"({one_line(str(why))[:200]}); {way_out}"
            )
    try:
        pa.Table.from_pandas(columns[[]])
    except UNFIT as why:
        return UsageError(
            f"Parquet cannot hold the frame's index ({one_line(str(why))[:200]}); make it text: "
            "run.frame.index = run.frame.index.map(str)"
        )
    return error


def readable(metadata: bytes) -> bytes:
    """pandas' metadata without names of types that pandas writes and cannot read (lists)."""
    known = json.loads(metadata)
    for column in known["columns"]:
        try:
            pd.api.types.pandas_dtype(column["numpy_type"])
        except (TypeError, ValueError, NotImplementedError):  # ValueError: pandas 2.2
            column["numpy_type"] = "object"
    return json.dumps(known).encode()
