"""How fast attempts may start where the server refuses most of them and does not say how long.

A worker whose attempt is refused is free again at once, so that a server with a limit is flooded
with attempts that hit its limit again. Slower starts help there. They only cost time where the
server refuses at random, whatever runs. A :class:`Pacer` finds out which it is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = ["Pacer"]

_FEW: Final = 16  #: attempts to judge by
_MOST: Final = 0.4  #: where fewer than this share is accepted, most are refused
_WELL: Final = 0.8  #: the share that is accepted at a pace that fits
_FAIR: Final = 0.6  #: less than this share after so many cuts: slower starts do not help
_CUTS: Final = 15
_FADE: Final = 128  #: attempts after which older ones count half
_CALM: Final = 64  #: attempts without a refusal, or without a wait, after which all is well
_QUIET: Final = 400  #: attempts until the next trial, after one that did not help; then twice that
_PATIENCE: Final = 3.0  #: accepted is what was not refused in so many times a refusal takes
_FIRST: Final = 0.25  #: the fastest first pace, as a share of the starts before
_TRIAL: Final = 1.0  #: the slowest first pace, in starts a second
_SLOWEST: Final = 0.5  #: starts a second that are always tried
_SLOWER: Final = 0.7  #: the pace after a refusal
_FASTER: Final = 1.05  #: the pace after an attempt that was accepted
_MUCH_FASTER: Final = 1.25  #: after many in a row
_MANY: Final = 20
_SHUT: Final = 12  #: refusals in a row of a server that accepts nothing at present
_USELESS: Final = -3.0  #: log likelihood ratio, 1 to 20, at which a trial is given up
_USEFUL: Final = 6.0  #: the one, 400 to 1, at which its pace is kept


class _State(Enum):
    FREE = "free"  #: attempts start as they come, and are counted
    TRIAL = "trial"  #: they start at a fixed pace, to see whether more are accepted
    PACED = "paced"  #: that helps: the pace follows what is accepted


@dataclass(slots=True)
class _Start:
    at: float
    refused: bool | None = None  #: None: it may yet be


class Pacer:
    """Slows the starts of a run as long as that lowers the share of refused attempts.

    It does nothing before the first refusal. From then on it counts. Where most attempts are
    refused, it tries a quarter of the starts, in even intervals. Whether that helps is a sequential
    test (Wald 1945) of two hypotheses: the accepted share stays what it was, or it doubles. If it
    stays, the starts are left alone, for longer after each such trial.

    If it helps, a refusal makes the pace slower and an accepted attempt makes it a little faster,
    so that about one attempt in eight is refused. After many refusals in a row, one attempt is
    tried every other second. The first that is accepted lets the pace double with each one, until
    the next refusal.

    A reply takes long, a refusal does not. So an attempt counts as accepted when three times the
    time that a refusal takes has passed. Attempts are counted in the order of their starts.

    Attributes:
        on: there was a refusal lately; only then may the other methods but :meth:`refused` be
            called.
    """

    def __init__(self) -> None:
        self.on = False
        self._state = _State.FREE
        self._latency = 0.0  #: seconds that a refusal takes
        #: in the order of their starts, from the first one that may yet be refused
        self._starts: deque[_Start] = deque()
        self._running: dict[int, _Start] = {}  #: by row
        #: attempts before the next trial, and how many it will be after that
        self._pause, self._quiet = 0, _QUIET
        #: starts a second, the time of the next one, and since when that is so
        self._rate, self._next, self._changed = _TRIAL, 0.0, 0.0
        self._unheld = 0  #: starts since one had to wait
        self._is_shut = self._doubles = False
        self._if_accepted = self._if_refused = 0.0  #: what each is worth as evidence
        self._count_from(0.0)

    # -- what happens ---------------------------------------------------------------------------

    def refused(self, row: int, start: float, now: float) -> None:
        """An attempt was refused, without a word about how long to wait."""
        if not self.on:
            self.on, self._latency = True, now - start
            self._starts.clear()
            self._running.clear()
            self._count_from(now)
            return
        self._latency += (now - start - self._latency) / 8
        attempt = self._running.pop(row, None)
        if attempt is not None:
            attempt.refused = True
            if self._state is _State.PACED and start >= self._changed:
                self._slow_down(now)
        self._look(now)

    def ended(self, row: int, *, accepted: bool) -> None:
        """An attempt ended in another way; ``accepted``: the server had let it in."""
        attempt = self._running.pop(row, None)
        if attempt is not None:
            attempt.refused = False
            if not accepted:
                attempt.at = -math.inf  # not to be counted

    def started(self, row: int, now: float) -> None:
        """An attempt was started."""
        attempt = self._running[row] = _Start(now)
        self._starts.append(attempt)
        self._made += 1
        if self._state is _State.FREE:
            return
        self._next = max(self._next, now - 1 / self._rate) + 1 / self._rate
        self._unheld += 1
        if self._unheld > _CALM:  # the workers are slower than the pace
            self.on, self._state = False, _State.FREE

    def until(self, now: float) -> float:
        """When an attempt may start; a time that is past: now."""
        self._look(now)
        if self._state is _State.FREE or self._next <= now:
            return now
        self._unheld = 0
        return self._next

    # -- what follows ---------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Count attempts in the order of their starts, as far as their fate is known."""
        oldest = now - _PATIENCE * self._latency
        while self._starts:
            first = self._starts[0]
            if first.refused is None and first.at >= oldest:
                return
            self._starts.popleft()
            if first.at >= self._since:
                self._count(not first.refused, first.at, now)

    def _count_from(self, now: float) -> None:
        """Count from here on, and forget what was counted."""
        self._since, self._made = now, 0
        self._tried = self._accepted = self._evidence = 0.0
        self._in_a_row = 0  #: accepted; below 0: refused
        self._cuts, self._share = 0, 0.5

    def _count(self, accepted: bool, start: float, now: float) -> None:
        before = self._in_a_row
        self._in_a_row = max(before, 0) + 1 if accepted else min(before, 0) - 1
        self._tried += 1
        self._accepted += accepted
        if self._state is _State.FREE:
            self._pause -= 1
            if self._in_a_row > _CALM:
                self.on = False
            elif self._pause <= 0 and self._tried >= _FEW and self._accepted < 2:
                self._begin(now, (self._accepted + 1) / self._tried)
                self._steer(now)
            elif self._pause <= 0 and self._tried >= 2 * _FEW and self._is_bad:
                self._try(now)
            elif self._tried >= _FADE:
                self._tried, self._accepted = self._tried / 2, self._accepted / 2
                self._since, self._made = (self._since + now) / 2, self._made // 2
            return
        if self._in_a_row <= -_SHUT:
            self._steer(now)
            self._is_shut = True
        elif self._state is _State.TRIAL:
            self._evidence += self._if_accepted if accepted else self._if_refused
            if self._evidence > _USEFUL:
                self._steer(now)
            elif self._evidence < _USELESS or self._tried >= 2 * _FEW:
                self._leave(now)
        else:
            if accepted and start >= self._changed:
                self._speed_up(now)
            self._share += (accepted - self._share) / 8
            if self._share > _WELL:
                self._cuts = 0
            elif accepted and self._share < _FAIR and self._cuts > _CUTS and not self._is_shut:
                self._leave(now)

    @property
    def _is_bad(self) -> bool:
        return self._accepted < _MOST * self._tried

    def _begin(self, now: float, share: float) -> None:
        """Pace the starts from here on: this share of those that were made."""
        starts = self._made / max(now - self._since, 1e-6)
        self._rate = max(_TRIAL, share * starts)
        self._next, self._changed = now + 1 / self._rate, now
        self._unheld = 0
        self._is_shut = False

    def _try(self, now: float) -> None:
        """Slow the starts down, to see whether more of them are accepted."""
        share, tried = self._accepted / self._tried, self._tried
        first = min(_FIRST, 1.25 * share)
        self._begin(now, first)
        # Most are tried where few happen to be accepted, so the share may well be higher.
        before = share + 2 * math.sqrt(share * (1 - share) / tried)
        after = max(0.8 * min(1.0, share / first), 1.2 * before)
        self._if_accepted = math.log(after / before)
        self._if_refused = math.log((1 - after) / (1 - before))
        self._state = _State.TRIAL
        self._count_from(now)

    def _steer(self, now: float) -> None:
        """Let the pace follow what is accepted."""
        self._state, self._doubles = _State.PACED, False
        self._count_from(now)

    def _leave(self, now: float) -> None:
        """Leave the starts alone: slower ones did not help."""
        self._state = _State.FREE
        self._pause, self._quiet = self._quiet, 2 * self._quiet
        self._count_from(now)

    def _slow_down(self, now: float) -> None:
        """An attempt that was started at this pace was refused."""
        self._doubles = False
        self._cuts += 1
        self._rate = max(_SLOWEST, _SLOWER * self._rate)
        self._changed, self._next = now, max(self._next, now + 1 / self._rate)

    def _speed_up(self, now: float) -> None:
        """An attempt that was started at this pace was accepted."""
        if self._is_shut:
            self._is_shut, self._doubles = False, True
        faster = 2.0 if self._doubles else _MUCH_FASTER if self._in_a_row > _MANY else _FASTER
        self._rate *= faster
        self._next = min(self._next, now + 1 / self._rate)
