"""One partition's part of the cluster's limits: what stands between a row of it and its start.

To the partition's own scheduler these are limits like any others
(:mod:`revkit.scheduling.throttle`); what they allow comes from the coordinator, a little ahead of
need, so that no attempt waits for a message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..scheduling.buckets import Refusal, Reservation
from ..scheduling.events import CANCELLED, Attempt, Failure, HoldKind, Outcome, Stop
from ..scheduling.limits import Spending
from ..scheduling.throttle import Refused, Throttle, as_load

if TYPE_CHECKING:
    from ..task.tokens import Price

__all__ = ["PurseShare", "Ration", "StartShare"]

#: A start that is so late (seconds) is lost: used late, it would crowd the next ones.
_STALE = 0.5
#: Seconds after which a row asks again that waits for a message.
_SOON = 0.02


class StartShare:
    """The partition's part of a rate limit: the times of its next starts.

    Args:
        ask: says that there is no start left; has more asked for at once.
    """

    def __init__(self, ask: Callable[[], object]):
        self._ask = ask
        self._lock = Lock()
        #: earliest first: times on this process's clock and on the coordinator's, and the tokens
        #: that were counted for each
        self._starts: list[tuple[float, float, int]] = []
        self._tokens = self._extra = 0

    def reserve(self, tokens: int, now: float) -> float | None:
        """Let a request of about so many tokens start; else the time to ask again."""
        with self._lock:
            self._tokens = tokens
            while self._starts and self._starts[0][0] < now - _STALE:
                self._extra -= self._starts.pop(0)[2]
            if self._starts:
                when, _, counted = self._starts[0]
                if when > now:
                    return when
                del self._starts[0]
                self._extra += tokens - counted
                return None
        self._ask()
        return now + _SOON

    def correct(self, estimated: int, used: int, now: float) -> None:
        """Count what a request used, where its estimate was counted."""
        with self._lock:
            self._extra += used - estimated

    def report(self, wanted: int, *, closing: bool) -> dict[str, Any]:
        """What the coordinator is told: how many more starts there should be, and what is left."""
        with self._lock:
            back = self._starts[wanted:] if not closing else self._starts
            self._starts = self._starts[:wanted] if not closing else []
            self._extra -= sum(counted for _, _, counted in back)
            said = {
                "starts": 0 if closing else wanted - len(self._starts),
                "tokens": self._tokens,
                "back": [when for _, when, _ in back],
                "extra": self._extra,
            }
            self._extra = 0
            return said

    def take(self, starts: list[float], tokens: int, *, offset: float) -> None:
        """Have more starts, at times on the coordinator's clock.

        Args:
            offset: seconds to be added to these for times on this process's clock.
        """
        with self._lock:
            self._starts += [(when + offset, when, tokens) for when in starts]
            self._starts.sort()


class PurseShare(Spending):
    """The partition's part of a budget.

    Args:
        ask: says that it does not do; has more asked for at once.
    """

    def __init__(self, ask: Callable[[], object]):
        super().__init__(0, 0)
        self._ask = ask
        #: the most that an attempt has needed so far; 0: none was made
        self._need = (0, 0)
        self._short = False

    def reserve(
        self, prompt: int, completion: int, price: Price | None = None
    ) -> Reservation | Refusal:
        """Reserve what one attempt may use at most; ``LATER`` where that has to be asked for."""
        tokens, pico = Reservation(prompt, completion, price).amounts
        with self._lock:
            self._need = max(self._need[0], tokens), max(self._need[1], pico)
        found = super().reserve(prompt, completion, price)
        if isinstance(found, Reservation):
            return found
        self._ask()
        return Refusal.LATER

    def report(self, wanted: int, *, closing: bool) -> dict[str, Any]:
        """What the coordinator is told: what it has and has spent of that, and for how many
        attempts there should be more. What is not in use goes back where others want it, and
        where it is less than an attempt."""
        with self._lock:
            accounts = (self._tokens, self._usd)
            idle = [max(0, (a.limit or 0) - a.spent - a.reserved) for a in accounts]
            rooms = [left // n for left, n in zip(idle, self._need, strict=True) if n]
            attempts = min(rooms, default=0)
            # The coordinator hands out whole attempts. It cannot make one of what is free there
            # and what is left over here, so a remainder that is less than an attempt goes back.
            if self._short or closing or attempts == 0:
                for account, amount in zip(accounts, idle, strict=True):
                    account.limit = (account.limit or 0) - amount
                attempts = 0
            said: dict[str, Any] = {
                "given": [a.limit for a in accounts],
                "spent": [a.spent for a in accounts],
            }
            if not closing and rooms and attempts < wanted:
                said |= {"need": list(self._need), "attempts": wanted - attempts}
            return said

    def take(self, given: tuple[int, int] | list[int], *, short: bool) -> None:
        with self._lock:
            self._short = short
            for account, amount in zip((self._tokens, self._usd), given, strict=True):
                account.limit = (account.limit or 0) + amount


class Ration(Throttle):
    """The limits of one partition, as the coordinator hands them out.

    Attributes:
        share: attempts that the partition may have running now.
        running: those that it has.
        stop: why nothing more may start.
        paused_until: nothing may start before this time: another partition's server asked for it.
    """

    def __init__(
        self,
        max_workers: int,
        *,
        starts: StartShare | None,
        purse: PurseShare | None,
        size: Callable[[int], int] | None,
        max_tokens: int | None,
        price: Price | None,
    ):
        super().__init__(
            max_workers,
            rate_limit=starts,
            budget=purse,
            size=size,
            max_tokens=max_tokens,
            price=price,
        )
        self.share = 0
        self.running = 0
        self.stop: Stop | None = None
        self.paused_until = float("-inf")
        #: what is to be told of attempts that have ended: (start, end, outcome)
        self._told: deque[tuple[float, float, str]] = deque()
        self._pause: tuple[float, float] | None = None
        self.tells_load = False
        self.urge: Callable[[], object] = lambda: None

    @property
    def limit(self) -> int:
        return min(self._max_workers, self.share)

    def admit(self, row: int, previous: Failure | None, now: float) -> Refused | Stop | None:
        if self.stop is not None:
            return self.stop
        if now < self.paused_until:
            return Refused(self.paused_until, HoldKind.PAUSE)
        refused = super().admit(row, previous, now)
        if refused is None:
            self.running += 1
        return refused

    def settled(
        self, attempt: Attempt, outcome: Outcome, *, start: float, end: float, running: int
    ) -> None:
        self.running -= 1
        super().settled(attempt, outcome, start=start, end=end, running=running)
        if outcome is CANCELLED:
            return
        if self.tells_load:
            self._told.append((start, end, as_load(outcome)))
        if isinstance(outcome, Failure) and outcome.run_pause:
            self._pause = (end, outcome.run_pause)
            self.urge()

    def close(self) -> None:
        super().close()
        self.running = 0

    def news(self, now: float) -> Mapping[str, Any]:
        """What is to be told of the attempts since the last time."""
        said: dict[str, Any] = {}
        pause, self._pause = self._pause, None
        if pause is not None and (left := pause[0] + pause[1] - now) > 0:
            said["pause"] = left
        ended = []
        while self._told:
            start, end, outcome = self._told.popleft()
            ended.append((now - start, now - end, outcome))
        if ended:
            said["ended"] = ended
        return said
