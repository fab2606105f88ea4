"""Records of runs, for tests that fill them in by hand."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from revkit.record.record import Record

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def empty_record(total: int, outputs: Iterable[str] = (), *, asks_model: bool = False) -> Record:
    """The record of a run that has just begun."""
    return Record(total, outputs, asks_model=asks_model, run_id="", started_at=NOON)
