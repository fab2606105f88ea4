"""The figures of a run, from its attempts: what each one means stands in its docstring."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .events import Decision, Source, Status
from .record import DECISIONS, SOURCES, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .tokens import Price

__all__ = ["PERCENTILES", "Metrics", "Usage", "latency", "metrics", "usage"]

PERCENTILES = (50, 90, 95, 99)

_OK = DECISIONS.index(Decision.OK)
_RETRY = DECISIONS.index(Decision.RETRY)
_STORE, _DUPLICATE = SOURCES.index(Source.STORE), SOURCES.index(Source.DUPLICATE)


@dataclass(frozen=True, slots=True)
class Metrics:
    """The counts and rates of a run.

    Attributes:
        total: rows.
        succeeded, failed, cancelled, not_started: rows by status; they add up to ``total``.
        from_store: rows whose reply was in the store.
        duplicates: rows that share the outcome of a row before them with the same prompt.
        attempts: attempts made.
        retries: attempts after which the row was tried again.
        wall_s: seconds from the start of the run to its end.
        rows_per_s: rows that were attempted or failed, per second of wall time; NaN for an
            instant run.
        mean_concurrency: sum of the service times of all attempts / wall time: how many attempts
            were running on average (Little's law).
        speedup_estimate: an upper bound of how many times longer one worker would have taken:
            ``mean_concurrency``, at least 1. A server that answers one request sooner than many
            at once makes the true figure smaller. NaN where no attempt was made.
        speedup_basis: in words.
        workers: workers that the run had; where their number was adaptive, the most it might have.
        limit: how many of them were allowed to work at the end of an adaptive run, else None.
        engine: ``"thread"`` or ``"async"``.
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
    workers: int
    limit: int | None
    engine: str


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


def service_times(record: Record) -> NDArray[np.float64]:
    """Seconds that each attempt took, from its request to its outcome; shape (attempts,)."""
    return np.subtract(record.end, record.start, dtype=np.float64)


def latency(record: Record) -> dict[str, float]:
    """Service time of the good attempts, in milliseconds: min, mean, percentiles, max.

    Percentiles interpolate linearly between order statistics (NumPy's default, type 7 of Hyndman
    and Fan, "Sample Quantiles in Statistical Packages", 1996). All NaN where no attempt was good.
    """
    good = service_times(record)[np.asarray(record.decision) == _OK] * 1e3
    names = ["min", "mean", *(f"p{q}" for q in PERCENTILES), "max"]
    if not len(good):
        return dict.fromkeys(names, float("nan"))
    figures = [good.min(), good.mean(), *np.percentile(good, PERCENTILES), good.max()]
    return dict(zip(names, map(float, figures), strict=True))


def metrics(record: Record) -> Metrics:
    """The counts and rates of a finished run."""
    counts = {status: record.status.count(status) for status in Status}
    wall = record.ended - record.began
    busy = float(service_times(record).sum())
    known = wall > 0 and len(record.row) > 0
    concurrency = busy / wall if known else float("nan")
    done = record.total - counts[Status.NOT_STARTED] - counts[Status.CANCELLED]
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
        workers=record.workers,
        limit=record.limits[-1][1] if record.limits else None,
        engine=record.engine,
    )


def usage(record: Record, price: Price | None = None) -> Usage:
    """Tokens of all attempts of a finished run, and what they cost at that price."""

    def total(counts: Any) -> int | None:
        known = [count for count in counts if count >= 0]
        return sum(known) if known else None

    prompt, completion = total(record.prompt_tokens), total(record.completion_tokens)
    both = None if prompt is None and completion is None else (prompt or 0) + (completion or 0)
    return Usage(prompt, completion, both, None if price is None else _cost(record, price))


def _cost(record: Record, price: Price) -> float | None:
    counts = zip(record.prompt_tokens, record.completion_tokens, strict=True)
    counted = [(max(p, 0), max(c, 0)) for p, c in counts if p >= 0 or c >= 0]
    if len(record.row) and not counted and price.cost(1, 1):
        return None
    return math.fsum(price.cost(*tokens) for tokens in counted)
