"""The figures of a run, from its attempts: what each one means stands in its docstring."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import CutOff
from ..scheduling.events import Decision, HoldKind, Source, Status
from .join import add
from .record import DECISIONS, SOURCES, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..task.tokens import Price

__all__ = [
    "FIGURES",
    "PERCENTILES",
    "Metrics",
    "Usage",
    "Waits",
    "costs",
    "cut_off",
    "distribution",
    "first_wave",
    "good",
    "good_ms",
    "last_attempts",
    "latency",
    "metrics",
    "service_times",
    "usage",
    "wait_ms",
    "waits",
]

PERCENTILES = (50, 90, 95, 99)
#: The figures of a distribution.
FIGURES = ("min", "mean", *(f"p{q}" for q in PERCENTILES), "max")

_OK = DECISIONS.index(Decision.OK)
_RETRY = DECISIONS.index(Decision.RETRY)
_STORE, _DUPLICATE = SOURCES.index(Source.STORE), SOURCES.index(Source.DUPLICATE)


@dataclass(frozen=True, slots=True)
class Metrics:
    """The counts and rates of a run.

    Attributes:
        total: rows; with ``repeat=`` their samples, here and below.
        succeeded, failed, cancelled, not_started: rows by status; they add up to ``total``.
        from_store: rows whose reply was in the store.
        duplicates: rows that share the outcome of a row before them with the same prompt.
        attempts: attempts made.
        retries: attempts after which the row was tried again, within a run: not by
            ``retry_failed``.
        wall_s: seconds from the start of the run to its end.
        rows_per_s: rows that are ok or failed, wherever that came from (the store, a row with the
            same prompt), per second of wall time; NaN for an instant run.
        mean_concurrency: sum of the service times of all attempts / wall time: how many attempts
            were running on average (Little's law).
        speedup_estimate: an upper bound of how many times longer one worker would have taken:
            ``mean_concurrency``, at least 1. A server that answers one request sooner than many
            at once makes the true figure smaller. NaN where no attempt was made.
        speedup_basis: in words.
        cold_start_ms: by how many milliseconds the first wave was slower: the median service time
            of its good attempts less that of the other good ones. Negative where it was faster;
            NaN where either has none. See :func:`first_wave`.
        pauses: times in which the server's wish for a pause let no attempt start that had a place
            among the workers.
        paused_s: seconds that they lasted.
        limited_s: seconds in which a rate limit or a budget let no such attempt start.
        workers: workers that the run had; where their number was adaptive, the most it might have.
        limit: how many of them were allowed to work at the end of an adaptive run, else None.
        engine: ``"thread"`` or ``"async"``.
        samples: of each row; 1 where rows are not repeated.
        cut_off: rows that failed because their reply was cut off at a limit of tokens.
        truncated: rows whose text was cut there, and kept (``truncated="keep"``).
        outages: times that the server was away in the middle of the run.
        away_s: seconds that they lasted.
        paced_s: seconds in which no such attempt started because the server refused most of them.
    """

    total: int
    succeeded: int
    failed: int
    cancelled: int
    not_started: int
    from_store: int
    duplicates: int
    attempts: int
    retries: int
    wall_s: float
    rows_per_s: float
    mean_concurrency: float
    speedup_estimate: float
    speedup_basis: str
    cold_start_ms: float
    pauses: int
    paused_s: float
    limited_s: float
    workers: int
    limit: int | None
    engine: str
    samples: int = 1
    cut_off: int = 0
    truncated: int = 0
    outages: int = 0
    away_s: float = 0.0
    paced_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of all attempts, failed ones too, as the server counted them.

    Attributes:
        prompt_tokens, completion_tokens, total_tokens: None where no reply had a count.
        cost_usd: US dollars for them, request by request, by today's price; 0.0 for a model on
            one's own machine. None where the price, or what was used, is not known.
    """

    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cost_usd: float | None = None


class Waits(NamedTuple):
    """Seconds that each row waited, by what for; each of shape (rows,), NaN: never attempted.

    :attr:`revkit.ParallelResult.waiting` says what counts as which; limits are ``record.holds``.
    """

    queue: NDArray[np.float64]
    limit: NDArray[np.float64]
    backoff: NDArray[np.float64]


def service_times(record: Record) -> NDArray[np.float64]:
    """Seconds that each attempt took, from its request to its outcome; shape (attempts,)."""
    return np.subtract(record.end, record.start, dtype=np.float64)


def good(record: Record) -> NDArray[np.bool_]:
    """Which attempts gave their row its values; shape (attempts,)."""
    return np.equal(record.decision, _OK)


def good_ms(record: Record) -> NDArray[np.float64]:
    """Milliseconds that each good attempt took, in the order in which they ended."""
    return service_times(record)[good(record)] * 1e3


def first_wave(record: Record) -> NDArray[np.bool_]:
    """Which attempts were the first of their worker; shape (attempts,).

    They may pay for what is done once: loading the model, opening the connection.
    """
    first = np.zeros(len(record.worker), dtype=bool)
    # A worker runs one attempt at a time, so its first to end is its first to start.
    first[np.unique(record.worker, return_index=True)[1]] = True
    return first


def distribution(sample: NDArray[np.float64]) -> dict[str, float]:
    """Min, mean, percentiles and max of a sample of shape (n,); all NaN where it is empty.

    Percentiles interpolate linearly between order statistics (NumPy's default, type 7 of Hyndman
    and Fan, "Sample Quantiles in Statistical Packages", 1996).

    >>> distribution(np.arange(1.0, 102.0))
    {'min': 1.0, 'mean': 51.0, 'p50': 51.0, 'p90': 91.0, 'p95': 96.0, 'p99': 100.0, 'max': 101.0}
    """
    if not len(sample):
        return dict.fromkeys(FIGURES, float("nan"))
    figures = [sample.min(), sample.mean(), *np.percentile(sample, PERCENTILES), sample.max()]
    return dict(zip(FIGURES, map(float, figures), strict=True))


def latency(record: Record) -> dict[str, float]:
    """Service time of the good attempts, in milliseconds, as :func:`distribution` tells it."""
    return distribution(good_ms(record))


def waits(record: Record) -> Waits:
    """How long each row waited, and for what."""
    row = np.asarray(record.row, dtype=np.int64)
    start, end, due = (
        np.asarray(times, dtype=np.float64) - record.began
        for times in (record.start, record.end, record.due)
    )
    order = np.argsort(row, kind="stable")  # each row's attempts one after the other
    again = np.zeros(len(row), dtype=bool)
    again[order[1:]] = row[order[1:]] == row[order[:-1]]
    # Before each attempt a row waits: since the end of its last one, from when it is ready on for a
    # limit or for a worker.
    since = np.zeros(len(row))
    since[order] = np.where(again[order], np.roll(end[order], 1), 0.0)
    start = np.maximum(start, since)
    ready = np.clip(np.where(again & ~np.isnan(due), due, since), since, start)
    limit = np.clip(_held(record, start) - _held(record, ready), 0.0, start - ready)
    tried = np.bincount(row, minlength=record.total) > 0

    def by_row(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(tried, np.bincount(row, seconds, minlength=record.total), np.nan)

    return Waits(
        queue=by_row(start - ready - limit), limit=by_row(limit), backoff=by_row(ready - since)
    )


def wait_ms(record: Record) -> dict[str, NDArray[np.float64]]:
    """Milliseconds that each row waited, by what for and in all; each of shape (rows,)."""
    each = {name: seconds * 1e3 for name, seconds in waits(record)._asdict().items()}
    return each | {"total": each["queue"] + each["limit"] + each["backoff"]}


def last_attempts(record: Record) -> NDArray[np.int64]:
    """The place among the attempts of each row's last one, -1 where there was none."""
    last = np.full(record.total, -1)
    last[record.row] = np.arange(len(record.row))  # of repeated places, the last
    return last


def _held(record: Record, until: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of all holds before each of these times since the start of the run."""
    if not record.holds:
        return np.zeros(len(until))
    edges = np.array([(hold.start, hold.end) for hold in record.holds]).ravel() - record.began
    edges = np.maximum.accumulate(edges)  # where two holds overlap, the time counts once
    lengths = np.diff(edges, prepend=edges[0])
    lengths[::2] = 0.0  # from the end of a hold to the start of the next one
    return np.interp(until, edges, np.cumsum(lengths))


def metrics(record: Record) -> Metrics:
    """The counts and rates of a finished run."""
    counts = {status: record.status.count(status) for status in Status}
    wall = record.ended - record.began
    busy = float(service_times(record).sum())
    known = wall > 0 and len(record.row) > 0
    concurrency = busy / wall if known else float("nan")
    done = record.total - counts[Status.NOT_STARTED] - counts[Status.CANCELLED]

    def held(*kinds: HoldKind) -> list[float]:
        return [hold.end - hold.start for hold in record.holds if hold.kind in kinds]

    pauses, outages = held(HoldKind.PAUSE), held(HoldKind.OUTAGE)
    return Metrics(
        total=record.total,
        succeeded=counts[Status.OK],
        failed=counts[Status.ERROR],
        cancelled=counts[Status.CANCELLED],
        not_started=counts[Status.NOT_STARTED],
        from_store=record.source.count(_STORE),
        duplicates=record.source.count(_DUPLICATE),
        attempts=len(record.row),
        retries=int((np.asarray(record.decision) == _RETRY).sum()),
        wall_s=wall,
        rows_per_s=done / wall if wall > 0 else float("nan"),
        mean_concurrency=concurrency,
        speedup_estimate=max(1.0, concurrency) if known else float("nan"),
        speedup_basis=(
            "sum of service times / wall time; a server that answers one request sooner than "
            "many at once makes it less"
            if known
            else "no attempt was made"
        ),
        cold_start_ms=_cold_start(record),
        pauses=len(pauses),
        paused_s=math.fsum(pauses),
        limited_s=math.fsum(held(HoldKind.RATE_LIMIT, HoldKind.BUDGET)),
        workers=record.workers,
        limit=record.limits[-1][1] if record.limits else None,
        engine=record.engine,
        samples=record.samples,
        outages=len(outages),
        away_s=math.fsum(outages),
        paced_s=math.fsum(held(HoldKind.PACING)),
        cut_off=cut_off(record),
        truncated=sum(
            reply.truncated and record.status[row] is Status.OK
            for row, reply in record.replies.items()
        ),
    )


def cut_off(record: Record) -> int:
    """Rows that failed because their reply was cut off at a limit of tokens."""
    return sum(
        failure.type == CutOff.__name__ and record.status[row] is Status.ERROR
        for row, failure in record.failures.items()
    )


def _cold_start(record: Record) -> float:
    service, ok, first = service_times(record) * 1e3, good(record), first_wave(record)
    wave, rest = service[ok & first], service[ok & ~first]
    if not len(wave) or not len(rest):
        return float("nan")
    return float(np.median(wave) - np.median(rest))


def usage(record: Record, price: Price | None = None) -> Usage:
    """Tokens of all attempts of a finished run, and what they cost at that price."""

    def total(counts: Any) -> int | None:
        known = [count for count in counts if count >= 0]
        return sum(known) if known else None

    prompt, completion = total(record.prompt_tokens), total(record.completion_tokens)
    cost = None if price is None else _cost(record, price)
    return Usage(prompt, completion, add(prompt, completion), cost)


def costs(record: Record, price: Price) -> NDArray[np.float64]:
    """US dollars for each attempt; shape (attempts,), NaN where its tokens were not counted."""
    free = not price.cost(1, 1)
    return np.array(
        [
            price.cost(max(prompt, 0), max(completion, 0))
            if free or prompt >= 0 or completion >= 0
            else np.nan
            for prompt, completion in zip(
                record.prompt_tokens, record.completion_tokens, strict=True
            )
        ],
        dtype=np.float64,
    )


def _cost(record: Record, price: Price) -> float | None:
    each = costs(record, price)
    known = each[~np.isnan(each)]
    return None if len(each) and not len(known) else math.fsum(known)
