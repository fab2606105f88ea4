"""A rate limit that runs share: when attempts may start, planned in one place."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from ..scheduling.buckets import TokenBucket

__all__ = ["Rate"]

#: Starts are planned so far ahead (seconds).
_HORIZON = 1.0
#: No limit, per minute.
_ANY = 1e12


class Rate:
    """Plans the starts of all seats whose runs have the same :class:`~revkit.RateLimit`.

    Args:
        requests, tokens: in a minute; None: any number.

    >>> rate = Rate(requests=120, tokens=None)
    >>> [round(start, 2) for start in rate.plan(9, tokens=50, now=10.0)]
    [10.0, 10.49]
    """

    def __init__(self, requests: float | None, tokens: float | None):
        self._requests = TokenBucket(requests or _ANY)
        self._tokens = TokenBucket(tokens or _ANY)
        #: a heap of planned starts that nobody will use
        self._back: list[float] = []

    def plan(self, starts: int, *, tokens: int, now: float) -> list[float]:
        """The times of the next starts, as many as are asked for and near enough.

        Args:
            tokens: that one of them may need.
        """
        planned: list[float] = []
        while len(planned) < starts:
            earliest = max(self._tokens.ready, now)
            while self._back and self._back[0] < earliest:
                heapq.heappop(self._back)
            when = self._back[0] if self._back else max(self._requests.ready, earliest)
            if when > now + _HORIZON:
                break
            if self._back:
                heapq.heappop(self._back)
            else:
                self._requests.take(1, when)
            self._tokens.take(tokens, when)
            planned.append(when)
        return planned

    def hear(self, *, back: Iterable[float], extra: int, now: float) -> None:
        """Take starts back that a seat will not use, and count ``extra`` tokens.

        A start comes back as itself, at its own time, and is lost when that is over: to let another
        one start earlier for it would crowd those between.
        """
        for start in back:
            heapq.heappush(self._back, start)
        self._tokens.take(extra, now)
