"""The server that explains the attempts of a run best.

It has the likeliest number of slots, if base times are log-normal and independent of how many
attempts were running. A wrong number shows: too many leave a wait in the base times, too few take
away what was work, and either spreads them. (A slow drift along the run is allowed for: rows may be
sorted by length.) If no number explains the run clearly better than a server without a limit,
nothing waited, and the slots cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from .server import Attempts, Recovered, Running, Server, recover

if TYPE_CHECKING:
    from .server import Bools, Floats

__all__ = ["fit", "weighed"]

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
    running = Running(attempts)
    most = running.most()
    seen = Attempts(*(column[:_FITTED] for column in vars(attempts).values()))
    if not seen.ok.any() or most == 1 or (slots or 0) >= most:
        return Server(slots), 0.0
    took = seen.end - seen.start
    typical = float(np.median(took[seen.ok])) or 1e-9
    resolution = max(_NOISE * typical, _JITTER)

    @cache
    def evidence(server: Server) -> float:
        recovered = recover(seen, server, running)
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
