"""The observers that need nothing beside Python: JSON lines, and the standard logging."""

from __future__ import annotations

import json
import logging
import sys

from ..errors import UsageError, one_line, plural
from .event import Event

__all__ = ["JsonLines", "Logging"]

#: Lines that are written at once where events come faster than they can be written.
_AT_ONCE = 1000


class JsonLines:
    """Writes each event as a line of JSON to what is ``sys.stdout`` when the run starts.

    Lines are written as soon as no event waits, and in blocks before that: each write lets other
    threads run, and may wait long for its next turn.

    Raises:
        UsageError: the process has no standard output.
    """

    def __init__(self) -> None:
        if sys.stdout is None:
            raise UsageError('observer="jsonl" writes to sys.stdout, which this process lacks')
        self._out = sys.stdout
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        self._takes_all = encoding.lower().startswith("utf")
        self._lines: list[str] = []

    def on_event(self, event: Event) -> None:
        line = event.to_json()
        if not self._takes_all:
            line = json.dumps(json.loads(line)).replace("\x7f", "\\u007f")
        self._lines.append(line)
        if len(self._lines) >= _AT_ONCE:
            self._write()

    def flush(self) -> None:
        self._write()
        self._out.flush()

    def close(self) -> None:
        self.flush()

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._out.write("\n".join(lines) + "\n")


class Logging:
    """Passes events to the logger ``revkit`` as one readable line each.

    The whole event is in the record's ``revkit_event``, as a dict. Handlers are the user's: revkit
    adds none but a ``NullHandler``.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger("revkit")
        if not self._logger.handlers:
            self._logger.addHandler(logging.NullHandler())

    def on_event(self, event: Event) -> None:
        level = _level(event)
        if self._logger.isEnabledFor(level):
            line = f"[{event.run_id[:8]}] {event.type}: {_in_words(event)}"
            self._logger.log(level, "%s", line, extra={"revkit_event": event.to_dict()})


def _level(event: Event) -> int:
    match event.type:
        case "parallel.start" | "worker.limited":
            return logging.INFO
        case "parallel.complete":
            return logging.INFO if event.data["error"] is None else logging.ERROR
        case "worker.retry":
            return logging.WARNING
        case "row.settled" if event.data["status"] == "error":
            return logging.WARNING
        case _:
            return logging.DEBUG


def _in_words(event: Event) -> str:
    data = event.data
    match event.type:
        case "parallel.start":
            by = "" if data["model"] is None else f" by {data['model']}"
            words = (
                f"{data['task']}{by}, {data['item_count']:,} rows, "
                f"{data['worker_count']:,} workers, {data['engine']} engine"
            )
        case "worker.start":
            words = f"row {data['item_index']}, attempt {data['attempt']}, {_worker(event)}"
        case "worker.complete":
            words = (
                f"row {data['item_index']}, attempt {data['attempt']}, {_worker(event)}: "
                f"{data['outcome']} after {data['service_ms']:,.1f} ms"
            )
        case "worker.retry":
            words = (
                f"row {data['item_index']}, attempt {data['attempt']} in {data['delay_ms']:,.0f} ms"
            )
        case "worker.limited":
            words = (
                f"row {data['item_index']} waits {data['delay_ms']:,.0f} ms for its "
                f"{data['reason']}"
            )
        case "row.settled":
            words = (
                f"row {data['item_index']} {data['status']} ({data['source']}), "
                f"attempts: {data['attempts']}"
            )
        case "store.write":
            words = f"{plural(data['replies'], 'reply')} in {data['duration_ms']:,.1f} ms"
        case "parallel.complete":
            words = (
                f"{data['items_processed']:,} ok, {data['items_failed']:,} failed, "
                f"{data['items_cancelled']:,} cancelled, {data['items_not_started']:,} not "
                f"started in {data['wall_s']:,.2f} s"
            )
        case _:
            words = ", ".join(f"{name}={value!r}" for name, value in data.items())
    why = [data[name] for name in ("error_type", "error") if data.get(name)]
    if len(why) == 2 and why[1].startswith(why[0]):
        why.pop(0)
    return one_line(": ".join([words, *why]))


def _worker(event: Event) -> str:
    return f"worker {event.data['worker_id']}"
