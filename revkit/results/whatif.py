"""How long a run would have taken with other numbers of workers: fitted and replayed here.

What a client measures is not what a row costs. A server works on so many requests at once, its
slots; with more workers than slots a request waits at the server, and its service time, as the
client sees it, holds that wait. So three steps:

1. *Recover*: for a given number of slots, what each attempt asked of the server alone, its base
   time. Two servers are tried, because there are two kinds. One *queues*: an attempt begins when a
   slot is free, first come first served, so its base time runs from then to its end. The other
   *shares*: it takes everybody at once and slows down, so ``n`` attempts on ``s`` slots progress at
   ``s / n`` of the full speed each ("processor sharing", Kleinrock, "Queueing Systems", vol. 2,
   1976, sec. 4.4), and the base time is the progress made between start and end.
2. *Fit*: the likeliest number of slots, if base times are log-normal and independent of how many
   were running. A wrong number shows: too many leave a wait in the base times, too few take away
   what was work, and either spreads them. (A slow drift along the run is allowed for: rows may be
   sorted by length.) If no number explains the run clearly better than a server without a limit,
   nothing waited, and the slots cannot be told.
3. *Replay*: the rows in their order, with their base times, on the server that was fitted, with
   another number of workers, as a simulation of discrete events.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import UsageError
from ..record.metrics import metrics
from ..record.record import DECISIONS, Record
from ..scheduling.events import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

__all__ = [
    "Attempts",
    "Prediction",
    "Predictions",
    "Server",
    "base_times",
    "fit",
    "idle_share",
    "predict",
    "replay",
    "weighed",
]

_OK = DECISIONS.index(Decision.OK)

#: Attempts that the slots are fitted to, from the start of the run: more add time, not certainty.
_FITTED = 5_000
#: Numbers of slots that are tried at first: spread evenly by ratio; then those about the best.
_TRIED = 100
#: How much likelier than no limit a number of slots must make the run: e^10, 22,000 times.
#: Log-normal is a guess; other base times, and chance, were seen to reach e^9 without any limit.
_EVIDENCE = 10.0
#: Degree of the drift of (logarithmic) base times along the run.
_DRIFT = 3
#: Service times are measured this well, as a share of a typical one and in seconds; finer detail is
#: noise.
_NOISE, _JITTER = 0.02, 1e-3
#: Share of odd attempts, which no server explains: they overtook others on their way to it, say.
_ODD = 0.001
#: Share of the workers' time, as long as there were rows to start, from which on they were idle.
_IDLE = 0.25


class Server(NamedTuple):
    """How a server works on many requests at once.

    Attributes:
        slots: how many it works on at full speed; None: no limit.
        shares: above that, all go on at a lower speed each; else the later ones wait their turn.
    """

    slots: int | None = None
    shares: bool = False

    def speed(self, running: int) -> float:
        """Of each attempt, 1 at most, while so many run on the server."""
        if not self.shares or self.slots is None or running <= self.slots:
            return 1.0
        return self.slots / running


@dataclass(frozen=True)
class Attempts:
    """The attempts of a run as columns in the order of their starts, each of shape (attempts,).

    Attributes:
        start, end: in seconds, since the first start.
        ok: it gave the row its values.
        first: it is the first one of its row.
        after: place of the row's next attempt, -1 where there is none.
        wait: seconds from its end to the start of that one.
    """

    start: Floats
    end: Floats
    ok: Bools
    first: Bools
    after: Ints
    wait: Floats

    @classmethod
    def of(cls, row: Ints, start: Floats, end: Floats, ok: Bools) -> Attempts:
        """From columns in any order; at least one attempt."""
        order = np.lexsort((row, start))  # rows that start together, in their order
        row, start, end, ok = row[order], start[order], end[order], ok[order]
        by_row = np.argsort(row, kind="stable")
        same = row[by_row][1:] == row[by_row][:-1]
        before, next_one = by_row[:-1][same], by_row[1:][same]
        first, after, wait = np.ones(len(row), bool), np.full(len(row), -1), np.zeros(len(row))
        first[next_one] = False
        after[before] = next_one
        wait[before] = np.maximum(start[next_one] - end[before], 0.0)
        return cls(start - start[0], end - start[0], ok, first, after, wait)


class Recovered(NamedTuple):
    """What a server did with the attempts.

    Attributes:
        work: base time of each attempt in seconds; below 0 where that server cannot have done it.
        refused: it failed before its turn had come, and so never held a slot.
        speed: at which each attempt went on when it ended, 1 at most.
    """

    work: Floats
    refused: Bools
    speed: Floats


class _Running:
    """How many attempts were running, from when on."""

    def __init__(self, attempts: Attempts):
        times = np.concatenate([attempts.end, attempts.start])  # of one time, ends come first
        order = np.argsort(times, kind="stable")
        self.times = times[order]
        self.count = np.cumsum(np.repeat([-1, 1], len(attempts.start))[order])

    def most(self) -> int:
        return int(self.count.max())

    def least(self) -> int:
        """So many or fewer were running for 5 % of the time."""
        order = np.argsort(self.count[:-1], kind="stable")
        seconds = np.cumsum(np.diff(self.times)[order])
        if not len(seconds) or not seconds[-1]:
            return self.most()
        return int(self.count[order][np.searchsorted(seconds, 0.05 * seconds[-1])])

    def shared(self, attempts: Attempts, slots: int) -> Recovered:
        """What a server that shares so many slots did."""
        speed = np.minimum(1.0, slots / np.maximum(self.count, 1))
        progress = np.concatenate([[0.0], np.cumsum(np.diff(self.times) * speed[:-1])])
        begun = np.interp(attempts.start, self.times, progress)
        done = np.interp(attempts.end, self.times, progress)
        at_end = speed[np.maximum(np.searchsorted(self.times, attempts.end) - 1, 0)]
        return Recovered(done - begun, np.zeros(len(begun), bool), at_end)


def _queued(attempts: Attempts, slots: int) -> Recovered:
    """What a server did on which all but so many waited, first come first served."""
    busy: list[float] = []  # when each slot that is taken is free again
    work, refused = [], []
    columns = attempts.start.tolist(), attempts.end.tolist(), attempts.ok.tolist()
    for start, end, ok in zip(*columns, strict=True):
        full = len(busy) == slots
        begins = max(start, busy[0]) if full else start
        work.append(end - begins)
        refused.append(end < begins and not ok)
        if refused[-1]:
            continue
        if full:
            heapq.heapreplace(busy, max(end, begins))
        else:
            heapq.heappush(busy, end)
    return Recovered(np.array(work), np.array(refused, bool), np.ones(len(work)))


def _recover(attempts: Attempts, server: Server, running: _Running | None = None) -> Recovered:
    """What that server did, while so many attempts were running."""
    if server.slots is None:
        took = attempts.end - attempts.start
        return Recovered(took, np.zeros(len(took), bool), np.ones(len(took)))
    if server.shares:
        return (running or _Running(attempts)).shared(attempts, server.slots)
    return _queued(attempts, server.slots)


def _log_likelihood(recovered: Recovered, ok: Bools, resolution: float, typical: float) -> float:
    """Of the ends of the good attempts, with log-normal base times.

    Each is known to a ``resolution`` in seconds only: where base times differ by less than that,
    no server explains them better than another. An attempt without a base time, or with next to
    none, is not a quick row but an odd one, which may have taken anything up to a ``typical``
    service time.
    """
    work, speed = recovered.work[ok], recovered.speed[ok]
    middle = float(np.median(work))
    if middle <= 0:
        return -math.inf
    fits = work > 0.01 * middle
    work, step = work[fits], resolution * speed[fits]
    logs = np.log(work)
    order = np.linspace(-1.0, 1.0, len(logs))
    drift = np.polynomial.Polynomial.fit(order, logs, min(_DRIFT, len(logs) - 1))
    spread = max(float((logs - drift(order)).std()), 1e-9)
    apart = (logs - drift(order)) / spread
    thin = np.log(2 * step / (work * spread * math.sqrt(2 * math.pi))) - apart**2 / 2
    lowest = np.log(np.maximum(work - step, 1e-300))
    high, low = ((at - drift(order)) / spread for at in (np.log(work + step), lowest))
    mass = (_erf(high / math.sqrt(2)) - _erf(low / math.sqrt(2))) / 2
    each = np.where(mass > 1e-9, np.log(np.maximum(mass, 1e-300)), thin)
    odd = int((~fits).sum()) * math.log(_ODD * min(1.0, 2 * resolution / typical))
    return float(each.sum()) + odd


def base_times(attempts: Attempts, server: Server) -> Floats:
    """What each attempt asked of that server alone, in seconds; shape (attempts,)."""
    return _recover(attempts, server).work


_erf = np.vectorize(math.erf, otypes=[float])


def fit(attempts: Attempts, slots: int | None = None) -> Server:
    """The server that explains the attempts best.

    Args:
        slots: its slots, where they are known; then only its kind is fitted.

    Returns:
        A server of no limit where none shows: where nothing ever waited.
    """
    found, evidence = weighed(attempts, slots)
    return found if slots is not None or evidence > _EVIDENCE else Server()


def weighed(attempts: Attempts, slots: int | None = None) -> tuple[Server, float]:
    """The server that explains the attempts best, and how much better than one without a limit.

    Returns:
        The server, and the logarithm of how many times likelier it makes the run; 0 where its
        slots were given, or nothing can be weighed.
    """
    running = _Running(attempts)
    most = running.most()
    seen = Attempts(*(column[:_FITTED] for column in vars(attempts).values()))
    if not seen.ok.any() or most == 1 or (slots or 0) >= most:
        return Server(slots), 0.0
    took = seen.end - seen.start
    typical = float(np.median(took[seen.ok])) or 1e-9
    resolution = max(_NOISE * typical, _JITTER)

    @cache
    def evidence(server: Server) -> float:
        recovered = _recover(seen, server, running)
        if server.shares and not _varies(recovered.work / np.maximum(took, 1e-12)):
            return -math.inf  # any number of slots would explain it as well
        if not server.shares and _makes_up(recovered.work[seen.ok], took[seen.ok]):
            return -math.inf
        return _log_likelihood(recovered, seen.ok, resolution, typical)

    def best(numbers: Iterable[int]) -> Server:
        kinds = product(numbers, (False, True))
        return max((Server(number, shares) for number, shares in kinds), key=evidence)

    if slots is not None:
        return best([slots]), 0.0
    tried = np.unique(np.geomspace(1, most - 1, _TRIED).round().astype(int)).tolist()
    found = best(tried)
    place = tried.index(found.slots)
    found = best(range(tried[max(place - 1, 0)], tried[min(place + 1, len(tried) - 1)] + 1))
    return found, evidence(found) - evidence(Server())


def _varies(speed: Floats) -> bool:
    """Whether attempts went on at speeds that differ by a quarter at least."""
    slow, quick = np.percentile(speed, (5, 95))
    return bool(quick > 1.25 * slow)


def _makes_up(work: Floats, took: Floats) -> bool:
    """Whether rows had less work just as they had waited longer, which no server sees to.

    So it looks where all took as long, with no wait at all, and the waits are made up: of base
    times that have nothing to do with waits, the slope over them is 0, and there -1.
    """
    wait = took - work
    return bool(np.mean((work - work.mean()) * (wait - wait.mean())) < -0.5 * wait.var())


def replay(
    attempts: Attempts, server: Server, workers: int, gap: float = 0.0
) -> tuple[Floats, Floats]:
    """When each attempt would have started and ended with so many workers, in seconds.

    Rows start in their order; one that is to be tried again comes first when its wait is over, and
    holds no worker until then. An attempt that the server refused takes the time that it took.

    Args:
        gap: seconds from a worker's end of an attempt to its next start.

    Returns:
        Start and end, each of shape (attempts,), since the first start.
    """
    recovered = _recover(attempts, server)
    took = (attempts.end - attempts.start).tolist()
    work = np.maximum(recovered.work, 0.0).tolist()
    refused, after, wait = recovered.refused.tolist(), attempts.after.tolist(), attempts.wait
    room = math.inf if server.slots is None or server.shares else server.slots
    start, end = np.zeros(len(took)), np.zeros(len(took))

    fresh = deque(np.flatnonzero(attempts.first).tolist())
    again: list[tuple[float, int]] = []  # when it is due, attempt
    free = deque([0.0] * workers)  # when each worker without an attempt can take one
    queue: deque[int] = deque()  # at the server
    serving: list[tuple[float, int]] = []  # the progress at which it is done, attempt
    turned_away: list[tuple[float, int]] = []  # when it ends, attempt
    now = progress = 0.0

    while True:
        speed = server.speed(len(serving))
        served = now + (serving[0][0] - progress) / speed if serving else math.inf
        told = turned_away[0][0] if turned_away else math.inf
        taken = math.inf
        if free and (fresh or again):
            taken = max(now, free[0] if fresh else max(free[0], again[0][0]))
        then = min(served, told, taken)
        if then == math.inf:
            return start, end
        progress += (then - now) * speed
        now = then
        if served > then and told > then:
            free.popleft()
            one = heapq.heappop(again)[1] if again and again[0][0] <= now else fresh.popleft()
            start[one] = now
            if refused[one]:
                heapq.heappush(turned_away, (now + took[one], one))
            elif len(serving) < room:
                heapq.heappush(serving, (progress + work[one], one))
            else:
                queue.append(one)
            continue
        one = heapq.heappop(serving if served <= then else turned_away)[1]
        end[one] = now
        free.append(now + gap)
        if after[one] >= 0:
            heapq.heappush(again, (now + wait[one], after[one]))
        if queue and len(serving) < room:
            waited = queue.popleft()
            heapq.heappush(serving, (progress + work[waited], waited))


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
    attempts = Attempts.of(
        row, np.asarray(record.start), np.asarray(record.end), np.asarray(record.decision) == _OK
    )
    server = fit(attempts, slots)
    running, rows = _Running(attempts), int(attempts.first.sum())
    idle, gap = idle_share(record, attempts), _gap(record)
    work = _recover(attempts, server).work[attempts.ok]
    known = server.slots is not None and len(work)
    base_ms = float(work.mean()) * 1e3 if known else math.nan
    figures = metrics(record)
    measured = None if record.limits else record.workers
    before_and_after = (first_start - record.began) + (record.ended - max(record.end))
    done = figures.rows_per_s * figures.wall_s

    def told(workers: int) -> Prediction:
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

    each = [told(number) for number in sorted({*numbers, *([measured] if measured else [])})]
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
    server: Server, running: _Running, workers: int, idle: float, *, given: bool
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
