"""A run as a trace that https://ui.perfetto.dev and ``chrome://tracing`` open.

The format is Chrome's "Trace Event Format" in its JSON object form: a process is the run, a thread
is a worker (of a run on a cluster each Dask worker is a process of its own, beside the run's), and
times are whole microseconds from the start of the run, so that the attempts of a worker never
overlap by a rounding, which viewers would not draw. Nothing of what rows hold or a model said goes
into it.
"""

from __future__ import annotations

import gzip
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from .._version import __version__
from ..record.record import DECISIONS, Record
from ..store.files import replacing

__all__ = ["write_trace"]

Event = dict[str, Any]
Spans = Sequence[tuple[int, int]]  #: start and end of each attempt, in microseconds

_PID = 1  #: the run's; Dask workers follow
_RUN = 0  # the thread of what is no worker's; worker n is thread n + 1

#: Names of chrome://tracing's palette: blue, yellow, dark red, light grey, much as in the timeline.
#: Perfetto has no such names: it colours by an event's own name without its digits, and so by what
#: stands after "row 5".
_COLOURS = {
    "ok": "rail_response",
    "retried": "yellow",
    "failed": "terrible",
    "cancelled": "grey",
}


def write_trace(
    record: Record,
    path: str | os.PathLike[str],
    *,
    model_name: str | None = None,
) -> Path:
    """Write a run's attempts, its concurrency and what held it up as a trace.

    Args:
        record: of a finished run.
        path: the file; one that is there is overwritten. A name that ends in ``.gz`` is gzipped.
        model_name: for the trace's metadata.

    Returns:
        The path.
    """
    spans = list(zip(_us(record, record.start), _us(record, record.end), strict=True))
    limits = [limit for _, limit in record.limits]
    changed = _us(record, (at for at, _ in record.limits))
    facts = {
        "started_at": record.started_at.isoformat(),
        "revkit": __version__,
        "model": model_name,
        "engine": record.engine,
        "rows": record.total,
    }
    content = orjson.dumps(
        {
            "traceEvents": [
                *_names(record, model_name),
                *_attempts(record, spans),
                *_retries(record, spans),
                *_counter("running", _running(spans)),
                *_counter("limit", zip(changed, limits, strict=True)),
                *_holds(record),
                *_stop(record),
            ],
            "otherData": {name: value for name, value in facts.items() if value is not None},
        }
    )
    with replacing(path) as (target, unfinished):
        # mtime: the same run gives the same file.
        packed = gzip.compress(content, 6, mtime=0) if target.suffix == ".gz" else content
        unfinished.write_bytes(packed)
    return target


def _us(record: Record, times: Iterable[float]) -> list[int]:
    """Whole microseconds from the start of the run, within the run's length."""
    at = np.fromiter(times, dtype=np.float64)
    at = np.clip(at, record.began, max(record.began, record.ended)) - record.began
    whole: list[int] = (at * 1e6).astype(np.int64).tolist()
    return whole


def _names(record: Record, model_name: str | None) -> Iterator[Event]:
    name = "revkit" if model_name is None else f"revkit: {model_name}"
    yield {"ph": "M", "pid": _PID, "name": "process_name", "args": {"name": name}}
    pids = _pids(record)
    for place, pid in _processes(record).items():
        host, process = place or ("", "this process")
        called = f"{process} on {host}" if host else process
        yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": called}}
        yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}
    for worker in sorted(set(record.worker)):
        of_thread = {"ph": "M", "pid": pids[worker], "tid": worker + 1}
        yield {**of_thread, "name": "thread_name", "args": {"name": f"worker {worker}"}}
        yield {**of_thread, "name": "thread_sort_index", "args": {"sort_index": worker}}


def _processes(record: Record) -> dict[tuple[str, str] | None, int]:
    """The processes of a run on a cluster, and their numbers in the trace."""
    places = dict.fromkeys(record.places or ())
    return {place: number for number, place in enumerate(places, _PID + 1)}


def _pids(record: Record) -> Sequence[int]:
    """The number of each worker's process."""
    if record.places is None:
        return [_PID] * (max(record.worker, default=-1) + 1)
    processes = _processes(record)
    return [processes[place] for place in record.places]


def _attempts(record: Record, spans: Spans) -> Iterator[Event]:
    """A complete event for each attempt, in the order in which they ended."""
    pids = _pids(record)
    counted = bool(record.prompt_tokens)
    words = [decision.value for decision in DECISIONS]
    columns = (record.row, record.number, record.worker, record.decision, spans)
    for place, (row, number, worker, code, (start, end)) in enumerate(zip(*columns, strict=True)):
        outcome = words[code]
        of_row, sample = divmod(row, record.samples)
        args: dict[str, Any] = {"row": of_row, "attempt": number, "outcome": outcome}
        if record.samples > 1:
            args["sample"] = sample
        failure = record.attempt_failures.get(place)
        if failure is not None:
            args["error_type"] = failure.type
        if counted and record.prompt_tokens[place] >= 0:
            args["prompt_tokens"] = record.prompt_tokens[place]
        if counted and record.completion_tokens[place] >= 0:
            args["completion_tokens"] = record.completion_tokens[place]
        yield {
            "ph": "X",
            "pid": pids[worker],
            "tid": worker + 1,
            "ts": start,
            "dur": end - start,
            "name": record.name(row) + ("" if outcome == "ok" else f" {outcome}"),
            "cat": outcome,
            "cname": _COLOURS[outcome],
            "args": args,
        }


def _retries(record: Record, spans: Spans) -> Iterator[Event]:
    """An arrow from each attempt to the next one at the same row."""
    last: dict[int, int] = {}
    pids = _pids(record)
    for place, row in enumerate(record.row):
        before = last.get(row)
        last[row] = place
        if before is None:
            continue
        # An end belongs to the attempt that its thread is at then: the middle of the first one,
        # because at its end the next one may have begun.
        start, end = spans[before]
        flow = {"id": place, "name": "retry", "cat": "retry"}
        one, other = record.worker[before], record.worker[place]
        yield {**flow, "ph": "s", "pid": pids[one], "tid": one + 1, "ts": (start + end) // 2}
        start, _ = spans[place]
        yield {**flow, "ph": "f", "bp": "e", "pid": pids[other], "tid": other + 1, "ts": start}


def _running(spans: Spans) -> Iterator[tuple[int, int]]:
    """How many attempts are running, at each change."""
    changes: Counter[int] = Counter()
    for start, end in spans:
        changes[start] += 1
        changes[end] -= 1
    running = 0
    for at in sorted(changes):
        if changes[at]:
            running += changes[at]
            yield at, running


def _counter(name: str, levels: Iterable[tuple[int, int]]) -> Iterator[Event]:
    for at, level in levels:
        yield {"ph": "C", "pid": _PID, "ts": at, "name": name, "args": {"attempts": level}}


def _holds(record: Record) -> Iterator[Event]:
    """Asynchronous events: they are no worker's."""
    for number, (kind, *span) in enumerate(record.holds):
        start, end = _us(record, span)
        of_hold = {"pid": _PID, "tid": _RUN, "id": str(number), "cat": "hold", "name": kind.value}
        yield {**of_hold, "ph": "b", "ts": start}
        yield {**of_hold, "ph": "e", "ts": end}


def _stop(record: Record) -> Iterator[Event]:
    if record.stopped is not None:
        (at,) = _us(record, [record.ended if record.stopped_at is None else record.stopped_at])
        yield {
            "ph": "i",
            "s": "p",
            "pid": _PID,
            "tid": _RUN,
            "ts": at,
            "name": f"stopped: {record.stopped.kind.value}",
            "cat": "stop",
        }
