"""What many runs come to together, in memory that does not grow with their rows.

Counts and sums are exact. Of service times only a histogram is kept, whose bins are 2 % wide, so
that percentiles are right to 1 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import metrics as figures
from .join import add, counted
from .record import Record

if TYPE_CHECKING:
    from ..task.tokens import Price

__all__ = ["ERRORS", "Totals"]

#: Rows that failed, of which the error is kept.
ERRORS = 20
#: A bin of the histogram reaches from x to 1.02 x; the first one begins at a microsecond.
_RATIO, _FIRST = 1.02, 1e-6


def _cost(ours: float | None, theirs: float | None) -> float | None:
    """Known where both are."""
    return None if ours is None or theirs is None else ours + theirs


#: Field -> how its value and that of later runs become one.
_RULES: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("total", "succeeded", "failed", "from_store", "duplicates"), add),
    **dict.fromkeys(("cut_off", "truncated"), add),
    **dict.fromkeys(("attempts", "retries", "runs", "wall_s", "busy_s"), add),
    **dict.fromkeys(("prompt_tokens", "completion_tokens", "good", "good_s"), add),
    **dict.fromkeys(("error_types", "bins"), counted),
    "cost_usd": _cost,
    "errors": lambda ours, theirs: [*ours, *theirs][:ERRORS],
    "samples": max,
    "least_s": min,
    "most_s": max,
}


@dataclass
class Totals:
    """Sums over runs.

    Attributes:
        total, succeeded, failed, from_store, duplicates, attempts, retries, cut_off, truncated: as
            in :class:`revkit.Metrics`.
        samples: of each row; where it is more than 1 they are what is counted.
        runs: how many there were.
        wall_s: seconds that they took, one after the other.
        busy_s: sum of the service times of all attempts.
        prompt_tokens, completion_tokens: of all attempts; None where none was counted.
        cost_usd: None where the cost of a run is not known.
        errors: of the first rows that failed: row, error type, message.
        error_types: failed rows by type of error.
        good: good attempts.
        good_s, least_s, most_s: sum, minimum and maximum of their service times.
        bins: how many of them are in which bin of the histogram.
    """

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    from_store: int = 0
    duplicates: int = 0
    attempts: int = 0
    retries: int = 0
    samples: int = 1
    runs: int = 0
    wall_s: float = 0.0
    busy_s: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = 0.0
    errors: list[tuple[int, str, str]] = field(default_factory=list)
    error_types: dict[str, int] = field(default_factory=dict)
    good: int = 0
    good_s: float = 0.0
    least_s: float = math.inf
    most_s: float = -math.inf
    bins: dict[int, int] = field(default_factory=dict)
    cut_off: int = 0
    truncated: int = 0

    @classmethod
    def of(cls, record: Record, price: Price | None, *, first: int = 0) -> Totals:
        """Of one run.

        Args:
            first: number of its first row among all.
        """
        counts, usage = figures.metrics(record), figures.usage(record, price)
        service = figures.service_times(record)
        good = service[figures.good(record)]
        place = np.log(np.maximum(good, _FIRST) / _FIRST) / math.log(_RATIO)
        bins, sizes = np.unique(place.astype(np.int64), return_counts=True)
        failed = sorted(row for row in record.failures if record.error(row) is not None)
        return cls(
            total=counts.total,
            succeeded=counts.succeeded,
            failed=counts.failed,
            from_store=counts.from_store,
            duplicates=counts.duplicates,
            attempts=counts.attempts,
            retries=counts.retries,
            samples=counts.samples,
            runs=1,
            wall_s=counts.wall_s,
            busy_s=float(service.sum()),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cost_usd=usage.cost_usd,
            errors=[
                (
                    first + row // record.samples,
                    record.failures[row].type,
                    record.failures[row].message,
                )
                for row in failed[:ERRORS]
            ],
            error_types=dict(Counter(record.failures[row].type for row in failed)),
            good=len(good),
            good_s=float(good.sum()),
            least_s=float(good.min()) if len(good) else math.inf,
            most_s=float(good.max()) if len(good) else -math.inf,
            bins=dict(zip(bins.tolist(), sizes.tolist(), strict=True)),
            cut_off=counts.cut_off,
            truncated=counts.truncated,
        )

    def add(self, other: Totals) -> None:
        """Add runs that came after these."""
        for name, rule in _RULES.items():
            setattr(self, name, rule(getattr(self, name), getattr(other, name)))

    @property
    def is_whole(self) -> bool:
        """Whether each row is ok or has failed."""
        return self.succeeded + self.failed == self.total

    @property
    def rows_per_s(self) -> float:
        """Rows per second of wall time; NaN where it took none."""
        return self.total / self.wall_s if self.wall_s > 0 else math.nan

    @property
    def mean_concurrency(self) -> float:
        """``busy_s / wall_s``: how many attempts were running on average."""
        return self.busy_s / self.wall_s if self.wall_s > 0 else math.nan

    @property
    def usage(self) -> figures.Usage:
        """Tokens of all attempts, and their cost."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return figures.Usage(prompt, completion, add(prompt, completion), self.cost_usd)

    @property
    def latency(self) -> dict[str, float]:
        """Service time of the good attempts in ms, as of one run; percentiles to 1 %.

        >>> one, two = Totals(good=1, good_s=2, least_s=2, most_s=2, bins={732: 1}), Totals()
        >>> one.add(two)
        >>> one.latency["p50"]
        2000.0
        """
        if not self.good:
            return dict.fromkeys(figures.FIGURES, math.nan)
        bins = sorted(self.bins)
        upto = np.cumsum([self.bins[place] for place in bins])
        ranks = [max(1, math.ceil(q / 100 * self.good)) for q in figures.PERCENTILES]
        middles = [_FIRST * _RATIO ** (bins[int(np.searchsorted(upto, r))] + 0.5) for r in ranks]
        seconds = [self.least_s, self.good_s / self.good]
        seconds += [min(max(middle, self.least_s), self.most_s) for middle in middles]
        return dict(zip(figures.FIGURES, [s * 1e3 for s in [*seconds, self.most_s]], strict=True))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, for :meth:`from_json`."""
        fields = asdict(self)
        if not self.good:
            fields["least_s"] = fields["most_s"] = None
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Totals:
        """What :meth:`to_json` gave."""
        totals = cls(**fields)
        totals.least_s = math.inf if totals.least_s is None else totals.least_s
        totals.most_s = -math.inf if totals.most_s is None else totals.most_s
        totals.errors = [(row, kind, message) for row, kind, message in totals.errors]
        totals.bins = {int(place): count for place, count in totals.bins.items()}
        return totals
