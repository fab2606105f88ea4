"""From the record of a run to what a timeline of it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..errors import plural
from ..record import frames
from ..record.record import Record

__all__ = ["timeline_of"]

_LETTERS = 21  # of a process's name, at most


def timeline_of(record: Record, index: pd.Index) -> dict[str, Any]:
    """The arguments of ``draw_timeline``, except for ``ax``.

    Args:
        index: of the frame; it labels the rows where its labels are unique and not just numbers.
    """
    began, ended = record.began, record.ended
    limits = [(max(0.0, at - began), limit) for at, limit in record.limits]
    # Of the workers that an adaptive run might have had, those that it has used.
    workers = max(record.worker, default=0) + 1 if limits else record.workers
    tried = len(set(record.row))
    attempted = "" if tried == record.total else f", {tried:,} attempted,"
    samples = "" if record.samples == 1 else f" x {record.samples} samples"
    rows = plural(record.total // record.samples, "row") + samples
    stopped_at = ended if record.stopped_at is None else record.stopped_at
    return {
        "attempts": frames.attempts(record),
        "row_labels": _row_labels(index, record.samples),
        "worker_names": None if record.places is None else _worker_names(record.places),
        "title": f"{rows}{attempted} on {plural(workers, 'worker')}",
        "workers": workers,
        "wall_s": ended - began,
        "limits": limits,
        "holds": [
            (kind, max(0.0, start - began), min(end, ended) - began)
            for kind, start, end in record.holds
        ],
        "visits": [(at - began, rows) for at, rows in record.visits],
        "stop": record.stopped and (record.stopped.kind.value, stopped_at - began),
    }


def _row_labels(index: pd.Index, samples: int) -> Any:
    """None where the index names no rows: it is plain numbers, or repeats itself after a concat."""
    named = not isinstance(index, pd.RangeIndex) and index.is_unique
    if samples == 1:
        return index if named else None
    names = index if named else range(len(index))
    return [f"{name}/{sample}" for name in names for sample in range(samples)]


def _worker_names(places: Sequence[tuple[str, str] | None]) -> list[str]:
    """The workers of a cluster: the process of each, and its number there."""
    names, seen = [], Counter[Any]()
    for place in places:
        process = "here" if place is None else place[1].removeprefix("tcp://")[-_LETTERS:]
        names.append(f"{process}: {seen[place]}")
        seen[place] += 1
    return names
