"""A rate limit that runs on a cluster share: one place plans when attempts may start."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from ..scheduling.buckets import TokenBucket

__all__ = ["SharedRateLimit"]

#: Starts are planned so far ahead (seconds).
_HORIZON = 1.0


class SharedRateLimit:
    """Plans the starts of all sessions whose runs share a :class:`~revkit.RateLimit`.

    Args:
        requests, tokens: in a minute; None: unlimited.

    >>> limit = SharedRateLimit(requests=120, tokens=None)
    >>> [round(start, 2) for start in limit.plan(9, tokens=50, now=10.0)]
    [10.0, 10.49]
    """

    def __init__(self, requests: float | None, tokens: float | None):
        self._requests = TokenBucket(requests)
        self._tokens = TokenBucket(tokens)
        #: a heap of planned starts that sessions have returned
        self._unused: list[float] = []

    def plan(self, starts: int, *, tokens: int, now: float) -> list[float]:
        """The times of the next starts: so many, or those within the horizon.

        Args:
            tokens: that one of them may need.
        """
        planned: list[float] = []
        while len(planned) < starts:
            earliest = max(self._tokens.ready, now)
            while self._unused and self._unused[0] < earliest:
                heapq.heappop(self._unused)
            when = self._unused[0] if self._unused else max(self._requests.ready, earliest)
            if when > now + _HORIZON:
                break
            if self._unused:
                heapq.heappop(self._unused)
            else:
                self._requests.take(1, when)
            self._tokens.take(tokens, when)
            planned.append(when)
        return planned

    def update(self, *, unused: Iterable[float], extra: int, now: float) -> None:
        """Take back starts that a session does not use, and count ``extra`` tokens.

        A returned start keeps its own time, and is lost once that has passed: an earlier start
        in its place would crowd those in between.
        """
        for start in unused:
            heapq.heappush(self._unused, start)
        self._tokens.take(extra, now)
