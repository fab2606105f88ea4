"""Whether the server was what limited a run: it worked on fewer requests at once than were sent.

It is told only where it is plain, for advice that is wrong does more harm than none. The
fit of :mod:`revkit.results.fitting` has to be much surer of a server with slots than a prediction
needs, there have to be at least twice as many workers as slots, and nothing else may have set the
pace: a rate limit, pauses, a server that turned requests away, idle workers, rows in the order of
how long they take, or the client's own work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..record.metrics import good
from ..record.record import Record
from ..scheduling.events import OVERLOADED
from .fitting import weighed
from .server import Attempts, base_times
from .whatif import idle_share

if TYPE_CHECKING:
    from .server import Floats

__all__ = ["Bottleneck", "find_bottleneck", "flat_from"]

#: Attempts that are looked at, from the start of the run: more add time, not certainty.
_LOOKED_AT = 2_000
#: Fewest attempts that tell something; and for each worker.
_FEWEST, _EACH = 40, 3
#: Workers for each slot from which on it is told. Fits of servers without any limit, of odd
#: latencies (a few huge ones, all slow at once), were seen to reach 1.5.
_WORKERS = 2.0
#: How much likelier the slots must make the run than no limit: e^20.
_EVIDENCE = 20.0
#: How many times as long replies took as the work on them.
_STRETCH = 1.5
#: Share of attempts that may have come to nothing, and of the time in which none might start.
_FAILED, _HELD = 0.1, 0.05
#: Share of their time from which on workers were idle.
_IDLE = 0.25
#: Share of attempts that an overloaded server may have rejected.
_TURNED_AWAY = 0.01
#: Seconds for a row at the server: below, the client's own work may have been the limit.
_PACE = 0.005
#: How many times as long the first replies may take as the work on those right after them.
_FIRST = 4.0
#: How much longer attempts may take in the end than in the beginning.
_GROWTH = 1.5

#: By how much more a server's throughput grows where it works on more requests at once.
_GROWS = 1.25


class Bottleneck(NamedTuple):
    """A server that worked on fewer requests at once than there were workers.

    Attributes:
        slots: how many requests it worked on at once, as fitted.
        workers: of the run.
        service_s: median service time of the good attempts in seconds, as the client saw it.
        base_s: median time in seconds that the server needed for one without the wait for a slot.
    """

    slots: int
    workers: int
    service_s: float
    base_s: float

    @property
    def stretch(self) -> float:
        """How many times as long replies took as the work on them."""
        return self.service_s / self.base_s


def find_bottleneck(record: Record) -> Bottleneck | None:
    """The server that limited a finished run; None where it did not, or that cannot be told.

    It is not told of functions, of adaptive runs (which stop at the server's limit by themselves),
    of runs on a cluster, and of fewer than 40 attempts, or 3 for each worker.
    """
    workers, made = record.workers, len(record.row)
    if not record.asks_model or record.limits or record.places is not None or workers < 2:
        return None
    if made < max(_FEWEST, _EACH * workers) or _turned_away(record) > _TURNED_AWAY * made:
        return None
    ok = good(record)
    held = sum(hold.end - hold.start for hold in record.holds)
    if ok.mean() < 1 - _FAILED or held > _HELD * (record.ended - record.began):
        return None
    every = Attempts.of(
        np.asarray(record.row), np.asarray(record.start), np.asarray(record.end), ok
    )
    if idle_share(record, every) > _IDLE:
        return None
    seen = Attempts(*(column[:_LOOKED_AT] for column in vars(every).values()))
    counted = _once_loaded(seen, workers)
    server, evidence = weighed(counted)
    slots = server.slots
    if slots is None or server.shares or workers < _WORKERS * slots:
        return None
    if not evidence > _EVIDENCE:  # it may be NaN
        return None
    took, base = seen.end - seen.start, base_times(seen, server)
    service_s, base_s = (float(np.median(times[counted.ok])) for times in (took, base))
    found = Bottleneck(slots, workers, service_s, base_s)
    if found.base_s < _PACE * slots or found.stretch < _STRETCH:
        return None
    return found if _began_as_a_queue(took[seen.ok], base[seen.ok], slots, workers) else None


def _turned_away(record: Record) -> int:
    """Attempts that the server did not take."""
    return sum(failure.status in OVERLOADED for failure in record.attempt_failures.values())


def _once_loaded(attempts: Attempts, workers: int) -> Attempts:
    """The attempts, of which only later ones count where the model had to be loaded first."""
    took, first = attempts.end - attempts.start, np.arange(len(attempts.end)) < workers
    if took[first].min() <= np.median(took[~first]):
        return attempts
    return dataclasses.replace(attempts, ok=attempts.ok & ~first)


def _began_as_a_queue(took: Floats, base: Floats, slots: int, workers: int) -> bool:
    """Whether the run began as it does at a queue, and did not slow down ever more.

    Rows that come in the order of how long they take end in the order in which they started, as
    those at a single slot do. But at a queue the first ones of all wait for nothing, and take no
    longer than the work on those behind them; or, where the model had to be loaded first, later
    ones are quicker than the last of the first wave. And times grow no more from then on.
    """
    wave, later = took[:workers], took[workers:]
    if len(later) < 3:
        return False
    third = len(later) // 3
    if np.median(later[-third:]) > _GROWTH * np.median(later[:third]):
        return False
    first, behind = np.median(base[:slots]), np.median(base[slots:workers])
    return bool(first <= _FIRST * behind or np.median(later) < wave.max())


def flat_from(rates: Mapping[int, float]) -> int | None:
    """From how many requests at once on a server's throughput no longer grows by a quarter.

    Args:
        rates: requests at once -> replies per second.

    Returns:
        The fewest that no higher number outdoes; None where only the highest one is it.

    >>> flat_from({1: 2.0, 2: 3.9, 4: 4.1, 8: 4.0})
    2
    >>> flat_from({1: 2.0, 2: 3.9, 4: 7.7, 8: 14.0}) is None
    True
    """
    levels = sorted(rates)
    for level in levels[:-1]:
        if all(rates[more] < _GROWS * rates[level] for more in levels if more > level):
            return level
    return None
