"""The arithmetic of a rate limit: a token bucket.

Pure, and for one caller at a time: :mod:`revkit.scheduling.limits` shares it between threads.
"""

from __future__ import annotations

__all__ = ["TokenBucket"]

#: Seconds by which a start may be early, to make up for late timers.
_SLACK = 0.02
#: The share of the limit that is used; see the bound in :class:`TokenBucket`.
_SHARE = 1 - _SLACK


class TokenBucket:
    """A token bucket that is refilled evenly, with hardly any burst.

    The Generic Cell Rate Algorithm in its virtual scheduling form (ITU-T Recommendation I.371,
    annex A), whose whole state is one time: when the bucket is full again. A start is allowed
    when it is full to within the slack, and takes its amount then, be it more than the bucket
    holds: the debt delays the next start. So no amount is too large to be ever allowed.

    The starts of any window of w seconds take at most 0.98 x limit x (w + 0.02) / 60, and the
    last one of them in addition. For every w of 1 or more that is at most limit x w / 60 and the
    last one; for 60 s and starts of 1 it is at most the limit, rounded up.

    Args:
        per_minute: the limit; None: unlimited, so it is always ready.

    >>> bucket = TokenBucket(per_minute=60)
    >>> bucket.take(1, now=100.0)
    >>> round(bucket.ready, 6)
    101.000408
    """

    def __init__(self, per_minute: float | None):
        self._seconds_each = 60 / (per_minute * _SHARE) if per_minute else 0.0
        #: when the bucket is full again
        self._full = float("-inf")

    @property
    def ready(self) -> float:
        """The earliest time of the next start; it may be over."""
        return self._full - _SLACK

    def take(self, amount: float, now: float) -> None:
        """Take an amount, or put back a negative one, of which a full bucket keeps nothing.

        ``now`` must not go back.
        """
        if self._seconds_each:
            self._full = max(now, self._full) + amount * self._seconds_each
