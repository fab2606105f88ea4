"""The record of a run as frames: rows, errors, attempts, and how values are distributed.

What their columns mean stands with the methods of :class:`~revkit.ParallelResult` that
give them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..scheduling.events import Status
from ..tables.dtypes import STRING
from ..tables.rows import Rows
from . import metrics as figures
from .record import DECISIONS, SOURCES, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..task.tokens import Price

__all__ = ["attempts", "countable", "errors", "rows", "summary"]


def rows(
    record: Record,
    outputs: Mapping[str, Any],
    index: pd.Index,
    price: Price | None,
) -> pd.DataFrame:
    """One line for each row.

    Args:
        outputs: by name, an array of values by row.
    """
    row, total = np.asarray(record.row, dtype=np.int64), record.total
    waits, last = figures.wait_ms(record), figures.last_attempts(record)
    tried = last >= 0

    def of_last(values: Any) -> Any:
        out = np.full(total, np.nan)
        out[tried] = np.asarray(values, dtype=float)[last[tried]]
        return out

    sources = np.array([source.value for source in SOURCES], dtype=object)
    replies = [record.replies.get(i) for i in range(total)]
    cut: list[Any] = [r and r.truncated for r in replies]
    failures = [
        record.failures[i] if s is Status.ERROR else None for i, s in enumerate(record.status)
    ]
    facts: dict[Any, Any] = {
        "status": pd.array([status.value for status in record.status], dtype=STRING),
        "source": pd.array(sources[np.asarray(record.source)], dtype=STRING),
        "attempts": np.bincount(row, minlength=total),
        "service_ms": of_last(figures.service_times(record)) * 1e3,
        "wait_ms": waits["total"],
        "queue_ms": waits["queue"],
        "limit_ms": waits["limit"],
        "backoff_ms": waits["backoff"],
        "worker": pd.array(of_last(record.worker), dtype="Int64"),
        "prompt_tokens": _summed(record.prompt_tokens, row, total),
        "completion_tokens": _summed(record.completion_tokens, row, total),
        "cost_usd": _cost(record, price),
        "finish_reason": pd.array([r and r.finish_reason for r in replies], dtype=STRING),
        "truncated": pd.array(cut, dtype="boolean"),
        "model": pd.array([r and r.model for r in replies], dtype=STRING),
        "format": pd.array([r and r.format for r in replies], dtype=STRING),
        "thought": pd.array([r and r.thought for r in replies], dtype=STRING),
        "text": pd.array([r and r.text for r in replies], dtype=STRING),
        "probabilities": pd.Series([r and r.probabilities for r in replies], dtype=object).array,
        "error_type": pd.array([f and f.type for f in failures], dtype=STRING),
        "error": pd.array([record.error(i) for i in range(total)], dtype=STRING),
    }
    data = _numbers(range(total), record.samples)
    for name, values in outputs.items():
        data[f"output_{name}" if name in facts or name in data else name] = values
    return pd.DataFrame(data | facts, index=index)


def _numbers(rows: Sequence[int], samples: int) -> dict[Any, Any]:
    """The caller's number of each row, and where rows are repeated that of its sample."""
    row, sample = np.divmod(np.array(rows, dtype=np.int64), samples)
    return {"row": row} | ({"sample": sample} if samples > 1 else {})


def _summed(counts: Sequence[int], row: NDArray[np.int64], total: int) -> Any:
    """Counts of attempts, summed by row; NA where none is known."""
    known = np.asarray(counts, dtype=np.int64)
    if not len(known):
        return pd.array([None] * total, dtype="Int64")
    has = known >= 0
    # of nothing at all, bincount makes integers
    summed = np.bincount(row[has], weights=known[has], minlength=total).astype(float)
    summed[np.bincount(row[has], minlength=total) == 0] = np.nan
    return pd.array(summed, dtype="Int64")


def _cost(record: Record, price: Price | None) -> Any:
    """US dollars for all attempts of each row; NA where the price or its tokens are not known."""
    if price is None or not record.asks_model:
        return pd.array([None] * record.total, dtype="Float64")
    row, each = np.asarray(record.row, dtype=np.int64), figures.costs(record, price)
    known = ~np.isnan(each)
    cost = np.bincount(row[known], weights=each[known], minlength=record.total)
    unknown = np.isin(np.arange(record.total), np.setdiff1d(row, row[known]))
    return pd.Series(np.where(unknown, np.nan, cost), dtype="Float64").array


def errors(record: Record, items: Rows, index: pd.Index) -> pd.DataFrame:
    """One line for each row that failed, in row order."""
    failed = [i for i, status in enumerate(record.status) if status is Status.ERROR]
    failures = [record.failures[i] for i in failed]
    counts = Counter(record.row)
    return pd.DataFrame(
        {
            **_numbers(failed, record.samples),
            "index": pd.Series([index[i // record.samples] for i in failed], dtype=object).array,
            "item": pd.Series([items.item(i) for i in failed], dtype=object).array,
            "error_type": pd.array([f.type for f in failures], dtype=STRING),
            "status": pd.array([f.status for f in failures], dtype="Int64"),
            "message": pd.array([f.message for f in failures], dtype=STRING),
            "attempts": np.array([counts[i] for i in failed], dtype=np.int64),
            "text": pd.array([f.text for f in failures], dtype=STRING),
        }
    )


def attempts(record: Record) -> pd.DataFrame:
    """One line for each attempt, in the order in which they ended."""
    count = len(record.row)
    failures = [record.attempt_failures.get(i) for i in range(count)]
    words = np.array([decision.value for decision in DECISIONS], dtype=object)

    def tokens(counts: Any) -> Any:
        known = np.asarray(counts if len(counts) else [-1] * count, dtype=float)
        return pd.array(np.where(known < 0, np.nan, known), dtype="Int64")

    worker = np.asarray(record.worker, dtype=np.int64)
    places = record.places
    where = (
        {}
        if places is None
        else {
            name: pd.array([(places[lane] or (None, None))[at] for lane in worker], dtype=STRING)
            for at, name in enumerate(("host", "process"))
        }
    )
    return pd.DataFrame(
        {
            "row": np.asarray(record.row, dtype=np.int64),
            "attempt": np.asarray(record.number, dtype=np.int64),
            "worker": worker,
            **where,
            "start_s": np.asarray(record.start, dtype=float) - record.began,
            "end_s": np.asarray(record.end, dtype=float) - record.began,
            "service_ms": figures.service_times(record) * 1e3,
            "outcome": pd.array(words[np.asarray(record.decision, dtype=int)], dtype=STRING),
            "error_type": pd.array([f and f.type for f in failures], dtype=STRING),
            "error": pd.array([f and str(f) for f in failures], dtype=STRING),
            "prompt_tokens": tokens(record.prompt_tokens),
            "completion_tokens": tokens(record.completion_tokens),
        }
    )


def summary(values: pd.Series, labels: Sequence[Any] | None, *, name: str) -> pd.DataFrame:
    """Count and share of each value; ``labels``: all that there are, in their order."""
    values = countable(values)
    if labels is None:
        counts = values.value_counts()
    else:
        counts = values.value_counts(sort=False).reindex(list(labels), fill_value=0)
    total = max(1, len(values))
    index = pd.Index(counts.index.tolist(), name=name, tupleize_cols=False)
    count = counts.to_numpy(dtype=np.int64)
    return pd.DataFrame({"count": count, "share": count / total}, index=index)


def countable(values: pd.Series) -> pd.Series:
    """The values; lists as tuples and mappings as text, for what can change cannot be counted."""
    if not isinstance(values.dtype, pd.ArrowDtype) and values.dtype != object:
        return values
    return pd.Series([_hashable(value) for value in values], dtype=object)


def _hashable(value: Any) -> Any:
    if isinstance(value, list | np.ndarray):
        return tuple(map(_hashable, value))
    return str(value) if isinstance(value, Mapping) else value
