"""How many attempts may run at once: found by trying, while the run goes on."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from ..errors import UsageError
from .policy import check_count

__all__ = ["Adaptive", "AdaptiveLimit"]

_START: Final = 4  #: the first limit
_STEP: Final = 1.1  #: from one limit to the next higher one
_SAMPLE: Final = 40  #: fewest answers in a sample
_MEMORY: Final = 3  #: samples that a score is the mean of; older ones fade
_THROUGHPUT: Final = 3.0  #: weight of throughput against latency: the exponent a of power
_BURST: Final = 8.0  #: overloaded attempts in the bucket that rule a limit out
_LEAK: Final = 1 / 3  #: overloaded attempts that an answer takes out of the bucket, at least
_RULED_OUT: Final = -1e3  #: score of such a limit
_PROBES: Final = (0, 0, 0, 0, 2, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1)  #: steps away from the best limit
_SURPRISE: Final = 3.5  #: standard errors between two samples of one server
_JITTER: Final = 0.05  #: difference of scores that is none, however sure: 5 % of latency
_SHORTEST: Final = 1e-6  #: latency that shorter ones are taken for, in seconds


@dataclass(frozen=True, slots=True)
class Adaptive:
    """As many workers as the server can use, found while the run goes on.

    Args:
        minimum: fewest attempts that may run at once.
        maximum: most attempts that may run at once.

    Raises:
        UsageError: a number below 1, something that is not a whole number, or a minimum above
            the maximum.

    >>> Adaptive(maximum=64)
    Adaptive(minimum=1, maximum=64)
    """

    minimum: int = 1
    maximum: int = 256

    def __post_init__(self) -> None:
        for name in ("minimum", "maximum"):
            number = getattr(self, name)
            check_count(number, f"Adaptive({name}={number!r})")
        if self.minimum > self.maximum:
            raise UsageError(
                f"Adaptive(minimum={self.minimum}, maximum={self.maximum}): the minimum is above "
                "the maximum"
            )


Ending = Literal["ok", "overloaded", "other"]


class _Score(NamedTuple):
    mean: float
    answers: int  #: that it is the mean of


@dataclass(slots=True)
class _Sample:
    """What happens under one limit."""

    size: int  #: answers that make it whole
    under_way: int  #: answers to come before it begins: to what was running when the limit was set
    answers: int = 0
    failed: int = 0
    good: int = 0  #: all answers since it began
    burst: float = 0.0  #: a leaky bucket of overloaded attempts
    sum: float = 0.0  #: of log latencies
    squares: float = 0.0

    @property
    def mean(self) -> float:
        return self.sum / self.size

    @property
    def variance(self) -> float:
        return max(0.0, self.squares / self.size - self.mean**2)


class AdaptiveLimit:
    """Finds the concurrency beyond which a server's throughput stops growing: its knee.

    Hill climbing with a memory. A limit is held for a *sample* of attempts: until twice as many
    answers have come as it lets run, after those that were under way when it was set. They give
    the limit a score. The next sample is taken

    - where the best limit so far is the highest one tried, at its double (the "slow start" of
      TCP, Jacobson 1988); where it is the lowest, at its half;
    - else at the next limit above or below it (a tenth away), if that is unknown;
    - else at the best limit itself, and now and then at a probe a little above or below.

    A score unlike the one remembered means that the server has changed: all else is forgotten,
    and the search starts anew from there. A limit is ruled out at once by a burst of overloaded
    attempts: more than one to three answers, in a leaky bucket. Fewer lower the score of all
    limits alike, so that 429s at random change nothing, where AIMD would halve at each. A burst at
    the lowest limit is none of concurrency: so many are refused whatever runs. They then do not
    count, and the search starts again.

    The score is the logarithm of Kleinrock's power, throughput^a / latency ("Power and
    deterministic rules of thumb for probabilistic problems in computer communications", 1979),
    divided by a + 1, with a = 3. Throughput is limit / latency (Little's law), so that power
    grows as long as 1 % more concurrency gives 1/(a + 1) = 0.25 % more throughput. The mean is
    taken of log latencies: rows of unlike length disturb it little, and a queue, which lengthens
    short answers by most, stands out.

    Hill climbing on throughput: Hellerstein, Morrison and Eilebrecht, "Applying control theory
    in the real world" (the .NET thread pool), 2009. Trying limits and comparing what they yield
    instead of reacting to single losses: Dong et al., "PCC: re-architecting congestion control
    for consistent high performance", 2015.

    Args:
        adaptive: the bounds.
        now: when the run begins, in seconds on the clock of all other times.

    Attributes:
        limit: how many attempts may run now.
        path: (time in seconds, limit) at the beginning and at each change.

    >>> control, now = AdaptiveLimit(Adaptive()), 0.0
    >>> for _ in range(400):  # a server that answers 8 at a time, in a second each
    ...     latency = max(1.0, control.limit / 8)
    ...     now += latency / control.limit
    ...     control.settled(start=now - latency, end=now, running=control.limit, outcome="ok")
    >>> [limit for _, limit in control.path]
    [4, 8, 16, 9, 7, 8]
    """

    limit: int

    def __init__(self, adaptive: Adaptive, *, now: float = 0.0):
        #: what may be tried, in ascending order
        self._limits = [adaptive.minimum]
        while (last := self._limits[-1]) < adaptive.maximum:
            self._limits.append(min(adaptive.maximum, max(last + 1, round(last * _STEP))))
        self._scores: dict[int, _Score] = {}  #: of the limits tried, by their place in ``_limits``
        self._probes = itertools.cycle(_PROBES)
        self._leak = _LEAK
        self.path: list[tuple[float, int]] = []
        self._set(self._place(_START), now)

    def settled(self, *, start: float, end: float, running: int, outcome: Ending) -> None:
        """Learn from an attempt that has ended.

        Args:
            start: when it was started, in seconds.
            end: when it ended, which is now.
            running: attempts that were running until now, this one included.
            outcome: "overloaded" is a 429, a 503 or a timeout of the attempt, "other" any other
                failure.
        """
        sample = self._sample
        if outcome == "ok":
            sample.burst = max(0.0, sample.burst - self._leak)
            sample.good += 1
            if 0.9 * self.limit <= running <= self.limit:  # else the limit was not what decided
                self._answered(math.log(max(end - start, _SHORTEST)), end)
        elif start >= self._since:
            sample.failed += 1
            if outcome == "overloaded":
                sample.burst += 1
                if sample.burst > _BURST * self._leak / _LEAK:
                    self._burst(end)

    def _burst(self, now: float) -> None:
        """Many attempts were overloaded under this limit."""
        sample = self._sample
        if self._at or not sample.good:
            self._learn(_RULED_OUT, 0.0, now)
            return
        self._leak = max(self._leak, 2 * sample.failed / sample.good)
        self._scores.clear()
        self._set(self._place(_START), now)

    def _answered(self, log_latency: float, now: float) -> None:
        sample = self._sample
        if sample.under_way:
            sample.under_way -= 1
            return
        sample.answers += 1
        sample.sum += log_latency
        sample.squares += log_latency * log_latency
        if sample.answers == sample.size:
            if sample.failed < sample.good / 4:
                self._leak = _LEAK
            failed = sample.failed if self._leak == _LEAK else 0  # else they fail at any limit
            goodput = self.limit * sample.size / (sample.size + failed)
            score = _THROUGHPUT / (_THROUGHPUT + 1) * math.log(goodput) - sample.mean
            self._learn(score, sample.variance, now)

    def _learn(self, score: float, variance: float, now: float) -> None:
        """Take in the score of the sample, and begin the next one."""
        at, size = self._at, self._sample.size
        old = self._scores.get(at)
        if old is None:
            self._scores[at] = _Score(score, size)
        else:
            error = math.sqrt(variance * (1 / size + 1 / old.answers))
            if abs(score - old.mean) > _SURPRISE * error + _JITTER:
                self._scores = {at: _Score(score, size)}
                factor = 2 if score > old.mean else 0.5
                self._set(self._place(self.limit * factor), now)
                return
            answers = min(old.answers + size, _MEMORY * size)
            self._scores[at] = _Score(old.mean + (score - old.mean) * size / answers, answers)
        self._set(self._next(), now)

    def _next(self) -> int:
        """The place in ``_limits`` of the limit to be tried next."""
        scores, last = self._scores, len(self._limits) - 1
        best = max(sorted(scores), key=lambda place: scores[place].mean)  # the lowest of equals
        wanted = [best + 1, best - 1]
        if best == min(scores):
            wanted.insert(0, self._place(self._limits[best] / 2))
        if best == max(scores) and scores[best].mean > _RULED_OUT:
            wanted.insert(0, self._place(self._limits[best] * 2))
        for place in wanted:
            if 0 <= place <= last and place not in scores:
                return place
        return min(max(best + next(self._probes), 0), last)

    def _place(self, limit: float) -> int:
        """The place of the first limit that is not below ``limit``, else the last place."""
        return min(bisect_left(self._limits, limit), len(self._limits) - 1)

    def _set(self, place: int, now: float) -> None:
        """Begin a sample of the limit at ``place``."""
        limit, under_way = self._limits[place], 0
        if not self.path or limit != self.limit:
            self._at, self._since = place, now
            self.limit = under_way = limit
            self.path.append((now, limit))
        self._sample = _Sample(max(_SAMPLE, 2 * limit), under_way)
