"""What an observer is told: one thing that happened in a run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

__all__ = ["Event", "Observer"]

_UNSEEN = re.compile(r"[^ -~]")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a run. Observers share it, so do not change its ``data``.

    Attributes:
        type: such as ``"worker.start"``; docs/observers.md lists them with what is in ``data``.
        timestamp: when it happened: UTC, ISO 8601 with microseconds.
        source: what made it, ``"revkit.parallel_map"``.
        run_id: the same in all events of a run.
        data: plain JSON values by name. Names that end in ``_ms`` are milliseconds, in ``_s``
            seconds; rows (``item_index``) and workers are counted from 0, attempts from 1.

    >>> event = Event("worker.start", "2026-01-31T12:00:00.000000+00:00", "revkit.parallel_map",
    ...               "7c9e", {"worker_id": 0, "item_index": 3, "total_items": 12, "attempt": 1})
    >>> event.data["item_index"]
    3
    >>> print(event.to_json())
    {"type":"worker.start","timestamp":"2026-01-31T12:00:00.000000+00:00",...,"attempt":1}}
    """

    type: str
    timestamp: str
    source: str
    run_id: str
    data: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The event as a new dict of plain JSON values."""
        return {
            "type": self.type,
            "timestamp": self.timestamp,
            "source": self.source,
            "run_id": self.run_id,
            "data": dict(self.data),
        }

    def to_json(self) -> str:
        """The event as one JSON object on one line.

        What a terminal would obey, such as control characters and marks of direction, is escaped.
        """
        line = orjson.dumps(self.to_dict()).decode()
        return line if line.isprintable() else _UNSEEN.sub(_escaped, line)


def _escaped(found: re.Match[str]) -> str:
    """A character that is not printable, as JSON writes it; joiners, which scripts need, stay."""
    char = found[0]
    return char if char.isprintable() or char in "\u200c\u200d" else json.dumps(char)[1:-1]


class Observer(Protocol):
    """Anything with this method; docs/observers.md has two more that it may have."""

    def on_event(self, event: Event, /) -> object: ...
