"""How long a run would have taken with other numbers of workers.

``server.py`` recovers what each attempt asked of a server alone, ``fitting.py`` finds the server
that explains the run best, and ``replay.py`` runs the rows on it, in their order and with their
base times, with another number of workers. Here is what a prediction says, and what it rests on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from ..errors import UsageError
from ..record.metrics import good, metrics
from ..record.record import Record
from .fitting import fit
from .replay import replay
from .server import Attempts, Running, Server, base_times

__all__ = ["Prediction", "Predictions", "idle_share", "predict"]

#: Share of the workers' time, as long as there were rows to start, from which on they were idle.
_IDLE = 0.25


@dataclass(frozen=True, slots=True)
class Prediction:
    """The run with another number of workers; all NaN where it cannot be told.

    Attributes:
        workers: how many.
        wall_s: seconds from the start of the run to its end.
        rows_per_s: rows per second of wall time, counted as in :class:`~revkit.Metrics`.
        p95_ms: 95th percentile of the service time of good attempts, as the client sees it.
        mean_concurrency: sum of the service times of all attempts / wall time.
        basis: what it rests on, or why it cannot be told.
    """

    workers: int
    wall_s: float
    rows_per_s: float
    p95_ms: float
    mean_concurrency: float
    basis: str


@dataclass(frozen=True, slots=True)
class Predictions:
    """What :func:`predict` gives.

    Attributes:
        each: one for each number of workers, fewest first.
        server: that was fitted, or given.
        base_ms: mean base time of a good attempt in milliseconds; NaN where the server's slots
            cannot be told.
        measured: the run's own number of workers; None where it was adaptive.
        basis: a sentence on what was found out about the server.
    """

    each: list[Prediction]
    server: Server
    base_ms: float
    measured: int | None
    basis: str


def predict(record: Record, max_workers: Iterable[int], slots: int | None = None) -> Predictions:
    """A finished run with other numbers of workers, beside what it was itself.

    Raises:
        UsageError: a number that is not a whole one of at least 1, none at all, or a run
            without attempts.
    """
    numbers = _whole_numbers(max_workers, slots)
    if not len(record.row):
        raise UsageError(
            "there is nothing to replay: this run made no attempt. Ask a run whose rows the "
            "model answered; with store=False they are asked anew"
        )
    row, first_start = np.asarray(record.row), min(record.start)
    attempts = Attempts.of(row, np.asarray(record.start), np.asarray(record.end), good(record))
    server = fit(attempts, slots)
    running, rows = Running(attempts), int(attempts.first.sum())
    idle, gap = idle_share(record, attempts), _gap(record)
    work = base_times(attempts, server)[attempts.ok]
    known = server.slots is not None and len(work)
    base_ms = float(work.mean()) * 1e3 if known else math.nan
    figures = metrics(record)
    measured = None if record.limits else record.workers
    before_and_after = (first_start - record.began) + (record.ended - max(record.end))
    done = figures.rows_per_s * figures.wall_s

    def prediction(workers: int) -> Prediction:
        if workers == measured:
            basis, wall = "measured: this run", figures.wall_s
            start, end = attempts.start, attempts.end
        else:
            workers_used = min(workers, rows)
            basis, known = _basis(server, running, workers_used, idle, given=slots is not None)
            if not known:
                return Prediction(workers, math.nan, math.nan, math.nan, math.nan, basis)
            start, end = replay(attempts, server, workers_used, gap)
            wall = float(end.max()) + before_and_after
        service = end - start
        good = service[attempts.ok]
        p95 = float(np.percentile(good, 95)) * 1e3 if len(good) else math.nan
        if wall <= 0:
            return Prediction(workers, wall, math.nan, p95, math.nan, basis)
        return Prediction(workers, wall, done / wall, p95, float(service.sum()) / wall, basis)

    each = [prediction(number) for number in sorted({*numbers, *([measured] if measured else [])})]
    sentence = _sentence(server, running.most(), idle, slots)
    if server.slots is not None and idle <= _IDLE:
        sentence += f" A row takes {base_ms:,.3g} ms there, without any wait."
    return Predictions(each, server, base_ms, measured, sentence)


def _whole_numbers(max_workers: Iterable[int], slots: int | None) -> list[int]:
    def whole(number: object) -> bool:
        return isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= 1

    if isinstance(max_workers, str) or not isinstance(max_workers, Iterable):
        raise UsageError(
            f"max_workers={max_workers!r}: what_if takes a list of numbers of workers, "
            "such as [1, 4, 16]"
        )
    numbers = list(max_workers)
    if not numbers:
        raise UsageError("max_workers is empty: name at least one number of workers")
    for number in numbers:
        if not whole(number):
            raise UsageError(f"max_workers: {number!r} is not a whole number of at least 1")
    if slots is not None and not whole(slots):
        raise UsageError(f"slots={slots!r} is not a whole number of at least 1, nor None")
    return [int(number) for number in numbers]


def _gap(record: Record) -> float:
    """Median seconds from a worker's end of an attempt to its next start: the client's share."""
    worker, start, end = map(np.asarray, (record.worker, record.start, record.end))
    order = np.lexsort((start, worker))
    same = worker[order][1:] == worker[order][:-1]
    gaps = start[order][1:][same] - end[order][:-1][same]
    return max(0.0, float(np.median(gaps))) if len(gaps) else 0.0


def idle_share(record: Record, attempts: Attempts) -> float:
    """Share of their time that the workers allowed to work did not, while rows were left."""
    until, first_start = float(attempts.start[attempts.first][-1]), min(record.start)
    changes = [(max(at - first_start, 0.0), limit) for at, limit in record.limits]
    changes = [change for change in changes if change[0] < until] or [(0.0, record.workers)]
    ends = [*(at for at, _ in changes[1:]), until]
    allowed = sum(limit * (end - at) for (at, limit), end in zip(changes, ends, strict=True))
    busy = float(np.maximum(np.minimum(attempts.end, until) - attempts.start, 0.0).sum())
    return max(0.0, 1 - busy / allowed) if allowed > 0 else 0.0


def _basis(
    server: Server, running: Running, workers: int, idle: float, *, given: bool
) -> tuple[str, bool]:
    """What a prediction rests on, and whether there can be one."""
    most = running.most()
    if idle > _IDLE:
        return f"cannot tell: the workers were idle for {idle:.0%} of their time", False
    if server.slots is None and workers > most:
        return f"cannot tell: never more than {most} at once, and none waited; give slots=", False
    basis = "service times as measured"
    if server.slots is not None:
        basis = f"{_slots(server.slots)}, {'as given' if given else 'fitted'}"
        basis += ", shared" if server.shares else ""
    if server.shares and workers < running.least():
        basis += "; uncertain: the run never had so few at once for long"
    elif not server.shares and workers < min(most, server.slots or most):
        basis += "; an upper bound of the times: the server may be quicker with fewer at once"
    return basis, True


def _sentence(server: Server, most: int, idle: float, slots: int | None) -> str:
    """What was found out about the server."""
    if idle > _IDLE:
        return (
            f"While there were rows to start, the workers were idle for {idle:.0%} of their time: "
            "something other than the model set the pace (a rate limit, a pause, rows from the "
            "store, the run's own work), and more or fewer workers cannot be told from it."
        )
    if server.slots is None:
        seen = f"with up to {most} attempts at once" if most > 1 else "with one attempt at a time"
        return f"No wait at the server can be made out {seen}; its slots cannot be told."
    how = "as given" if slots is not None else "fitted to how service times grew"
    if server.shares:
        return (
            f"The server has {_slots(server.slots)} ({how}); with more attempts at once, "
            "all of them slow down."
        )
    return f"The server has {_slots(server.slots)} ({how}); further attempts wait their turn."


def _slots(number: int) -> str:
    return "1 slot" if number == 1 else f"{number} slots"
