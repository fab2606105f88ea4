"""A file into a result."""

from __future__ import annotations

import io
import json
import math
import os
from array import array
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import UsageError, one_line
from ...record.record import DECISIONS, SOURCES, Record
from ...scheduling.events import Failure, Hold, HoldKind, Source, Status, Stop, StopKind
from ...tables.rows import Rows
from ...task.chat import Reply
from ...task.tokens import Price
from .values import UNFIT, decoded
from .write import ATTEMPTS, FORMAT, METADATA, PREFIX, SAMPLED

if TYPE_CHECKING:
    from ..result import ParallelResult

__all__ = ["read"]

#: What stands of a reply in ``run.rows``, beside its text and probabilities.
_OF_REPLIES = ("finish_reason", "truncated", "model", "format", "thought")


def read(path: str | os.PathLike[str], kind: type[ParallelResult]) -> ParallelResult:
    """:meth:`ParallelResult.read_parquet`."""
    place = Path(path).expanduser()
    data = place.read_bytes()
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        what = "is cut short or damaged" if data.startswith(b"PAR1") else "is not a Parquet file"
        raise UsageError(f"{place} {what}: {one_line(str(error))[:200]}") from None
    text = (table.schema.metadata or {}).get(METADATA)
    if text is None:
        raise UsageError(
            f"{place} is a Parquet file, but not a result that run.to_parquet() wrote; "
            "pandas.read_parquet reads it"
        )
    try:
        kept = json.loads(text)
        if kept["format"] <= FORMAT:
            return _result(kind, place, data, table, kept)
    except (LookupError, AttributeError, *UNFIT) as error:
        why = one_line(f"{type(error).__name__}: {error}")[:200]
        raise UsageError(f"{place} is damaged: what it says of its run is not whole ({why})") from (
            error
        )
    raise UsageError(
        f"{place} was written by a newer revkit (format {kept['format']}, this one reads up to "
        f"{FORMAT}); update revkit, or read its columns with pandas.read_parquet"
    )


def _result(
    kind: type[ParallelResult], place: Path, data: bytes, table: pa.Table, kept: dict[str, Any]
) -> ParallelResult:
    bound_to = [(_label(name), column) for name, column in kept["inputs"]["bound_to"]]
    names = kept["frame"]["columns"]
    own = [column for _, column in bound_to if column not in names]
    samples, outputs = kept["run"]["samples"], kept["outputs"]
    sampled = [SAMPLED.format(n) for n in range(len(outputs) if samples > 1 else 0)]
    columns = pd.read_parquet(io.BytesIO(data), columns=[*names, *own, *sampled])
    places = list(columns.columns)
    for name, note in kept["frame"]["notes"].items():
        columns.isetitem(places.index(name), decoded(table[name], note, columns.index))
    columns.index.names = [_label(name) for name in kept["frame"]["index"]]
    if table.num_rows % samples:
        raise ValueError("a row lacks a sample")
    whole, columns = columns, columns.iloc[::samples]
    frame = columns[names]
    labels = {_label(name): column for name, column in kept["columns"]}
    classes = {_label(name): known for name, known in outputs}
    values = {
        name: whole[sampled[n] if sampled else labels[name]] for n, name in enumerate(classes)
    }
    record = _record(table, kept, values)
    price = None if kept["price"] is None else _price(kept["price"])
    result = kind(
        record,
        frame=frame,
        task=None,
        rows=Rows(
            [name for name, _ in bound_to],
            [columns[column].tolist() for _, column in bound_to],
            scalar=kept["inputs"]["scalar"],
            samples=samples,
        ),
        columns=labels,
        sampled={name: column.array for name, column in values.items()},
        model_name=kept["model_name"],
        find_price=lambda: price,  # that of its day
        provenance=kept["provenance"],
        rerun=_NoRerun(place),
    )
    for name, known in classes.items():
        result.outputs[name] = None if known is None else tuple(known)
    return result


class _NoRerun:
    """Refuses: a file holds neither the function nor the model."""

    def __init__(self, place: Path):
        self._place = place

    def run(self) -> NoReturn:
        raise UsageError(
            f"this result was read from {self._place}, which holds neither the function nor the "
            'model; run the rows that are not ok again: run.frame[run.rows["status"].to_numpy() '
            '!= "ok"].llm.parallel_map(task, …)'
        )

    async def arun(self) -> NoReturn:
        self.run()


def _price(fields: dict[str, Any]) -> Price:
    tiers = tuple((tokens, _price(dearer)) for tokens, dearer in fields["tiers"])
    return Price(**{**fields, "tiers": tiers})


def _label(name: Any) -> Any:
    """A name out of JSON, which has no tuples."""
    return tuple(map(_label, name)) if isinstance(name, list) else name


def _record(table: pa.Table, kept: dict[str, Any], values: dict[Any, pd.Series]) -> Record:
    """The run's record, with times since its start."""
    run = kept["run"]

    def fact(name: str) -> list[Any]:
        found: list[Any] = table[f"{PREFIX}{name}"].to_pylist()
        return found

    record = Record(
        table.num_rows,
        asks_model=run["asks_model"],
        samples=run["samples"],
        run_id=kept["provenance"]["run_id"],
        started_at=datetime.fromisoformat(kept["provenance"]["started_at"]),
    )
    statuses = {status.value: status for status in Status}
    record.status = [statuses[name] for name in fact("status")]
    sources = {source.value: place for place, source in enumerate(SOURCES)}
    record.source = bytearray(sources[name] for name in fact("source"))
    record.values = {
        name: column.astype(object).where(column.notna(), None).tolist()
        for name, column in values.items()
    }
    failures = map(_failure, *map(fact, ("error_type", "error", "http_status", "error_text")))
    record.failures = {
        row: failure
        for row, (status, failure) in enumerate(zip(record.status, failures, strict=True))
        if status is Status.ERROR
    }
    if None in record.failures.values():
        raise ValueError("a row has failed without an error")
    texts, chances = fact("text"), fact("probabilities")
    # A file of revkit 0.1.0 has only the finish reason.
    facts = {name: fact(name) for name in _OF_REPLIES if f"{PREFIX}{name}" in table.column_names}
    for row, text in enumerate(texts):
        if text is not None:
            known = {name: values[row] for name, values in facts.items() if values[row] is not None}
            if chances[row] is not None:
                known["probabilities"] = json.loads(chances[row])
            record.replies[row] = Reply(text, **known)
    _read_attempts(record, table[ATTEMPTS].combine_chunks())
    record.engine, record.workers, record.ended = run["engine"], run["workers"], run["wall_s"]
    if run["stopped"] is not None:
        kind, reason, cancels = run["stopped"]
        record.stopped = Stop(StopKind(kind), reason, cancels)
        record.stopped_at = run["stopped_at_s"]
    record.holds = [Hold(HoldKind(kind), start, end) for kind, start, end in run["holds"]]
    record.visits = [(at, rows) for at, rows in run["visits"]]
    record.limits = [(at, limit) for at, limit in run["limits"]]
    if run["first_refused"] is not None:
        record.first_refused = run["first_refused"], record.failures[run["first_refused"]]
    record.store, record.store_problem = run["store"], run["store_problem"]
    weights = run["weights"]  # revkit 0.1.0 knew no other fact
    record.facts = dict(run.get("facts", {} if weights is None else {"weights": weights}))
    if (places := run.get("places")) is not None:  # files of before there was a cluster have none
        record.places = [None if place is None else (place[0], place[1]) for place in places]
        if len(places) <= max(record.worker, default=-1):
            raise ValueError("a worker has no place")
    times = [record.ended, record.stopped_at or 0.0, *(x for h in record.holds for x in h[1:])]
    times += [x for pair in (*record.visits, *record.limits) for x in pair]
    if not all(map(math.isfinite, times)):
        raise ValueError("a time is not finite")
    record.count_rows()
    record.from_store = record.source.count(SOURCES.index(Source.STORE))
    return record


def _failure(kind: str | None, error: str | None, status: int | None, text: str | None) -> Any:
    if kind is None or error is None:
        return None
    message = "" if error == kind else error.removeprefix(f"{kind}: ")
    return Failure(kind, message, status=status, text=text)


def _read_attempts(record: Record, attempts: pa.ListArray) -> None:
    """Fill the record's attempts in, in the order in which they ended."""
    counts = pc.list_value_length(attempts).to_numpy(zero_copy_only=False)
    listed = attempts.flatten()
    order = np.argsort(pc.struct_field(listed, "place").to_numpy(zero_copy_only=False))
    in_order = listed.take(pa.array(order))

    def column(name: str) -> pa.Array:
        return pc.struct_field(in_order, name)

    def numbers(name: str, code: str) -> array[Any]:
        filled = pc.fill_null(column(name), -1 if code == "q" else np.nan)
        return array(code, filled.to_numpy(zero_copy_only=False).astype(code).tobytes())

    record.row = array("q", np.repeat(np.arange(record.total), counts)[order].astype("q").tobytes())
    record.number, record.worker = numbers("attempt", "q"), numbers("worker", "q")
    record.start, record.end, record.due = (numbers(x, "d") for x in ("start_s", "end_s", "due_s"))
    codes = {decision.value: code for code, decision in enumerate(DECISIONS)}
    record.decision = array("b", [codes[name] for name in column("outcome").to_pylist()])
    if record.asks_model:
        record.prompt_tokens = numbers("prompt_tokens", "q")
        record.completion_tokens = numbers("completion_tokens", "q")
        record.tokens = sum(n for n in record.prompt_tokens if n > 0)
        record.tokens += sum(n for n in record.completion_tokens if n > 0)
    failed = pc.indices_nonzero(pc.is_valid(column("error_type"))).to_pylist()
    facts = [column(x).take(pa.array(failed, pa.int64())).to_pylist() for x in
             ("error_type", "error", "http_status", "text")]  # fmt: skip
    record.attempt_failures = dict(zip(failed, map(_failure, *facts), strict=True))
