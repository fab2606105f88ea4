"""A server that is away: when the run waits for it, when it probes, and how it goes on.

Everything that decides this is here. The scheduler carries it out: it holds rows, and gives them
their attempts back.

- *Life* is an HTTP response below 500, except 408, 425 and 429.
- *Trouble* is a transient failure without a reply: a connection that was refused or broke, a
  timeout, a reply that makes no sense, 408, 425, 429, and all from 500 on.
- A 429 that asks for a pause is neither: all workers pause, and that is all. A 429, 503 or 529 that
  uses up no attempt (:mod:`revkit.scheduling.refusals`) is no trouble: the server is merely busy.

Before the first life of a call, ordinary retries decide: the server may never have been started.
Later, it is away once ``max(3, attempts running)`` different rows had trouble with no life between.
When every unfinished row has failed, some of that may be the rows' own fault, and a run must not
wait for rows that can only fail. Then trouble counts only where the server itself cannot be reached
or says so (502, 503, 504, 529), and not of a row that had trouble before the last life.
Then one attempt at a time probes it, after 0.5, 1, 2 … 30 seconds, or the pause that it asks for:
each time another row, and first those that have not failed yet.
A reply to a probe ends that. A reply to an older request does not, for a server that shuts down
finishes what it has. But it brings the next probe at once, for the server may have been full.

A server that answers probes with errors of its own (500 and others, but not 502, 503, 504 and 529)
may have something against these very rows: too long for its memory, say. After so many such probes
one after the other, each of another row, it is not away, and such errors count no more in this run.

When the server is back, as many attempts may run as were answered since: 1, 2, 4 … Trouble before
all workers run again uses up attempts for good, even if the server is found away once more: it may
be too slow for so many, and else the run would swing for ever.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Final

from .events import Away, Failure, Stop, StopKind

if TYPE_CHECKING:
    from .policy import Retry

__all__ = ["Outage", "Sign", "is_answer", "is_servers", "is_timeout", "sign_of"]

#: Fewest rows whose trouble shows that the server is away, rather than something about them.
_FEWEST: Final = 3
#: Probes in a row that the server answers with an error of its own: then it is not away.
_ANSWERED: Final = 6
#: Shortest wait before a probe, in seconds, whatever ``Retry`` says.
_SHORTEST: Final = 0.05
#: Statuses below 500 that say nothing but "later".
_LATER: Final = frozenset({408, 425, 429})
#: Statuses of a server that is not available, whatever it is asked.
_UNAVAILABLE: Final = frozenset({502, 503, 504, 529})


class Sign(Enum):
    """What the outcome of an attempt shows of the server."""

    LIFE = "life"
    TROUBLE = "trouble"


def sign_of(failure: Failure) -> Sign | None:
    """What a failure shows of the server; None where it shows nothing.

    >>> sign_of(Failure("ServerError", "no such path", status=404))
    <Sign.LIFE: 'life'>
    >>> sign_of(Failure("ConnectionFailed", "it was closed", transient=True))
    <Sign.TROUBLE: 'trouble'>
    """
    status = failure.status
    if failure.no_room:
        return None
    if failure.reply is not None:
        return Sign.LIFE
    if not failure.transient:
        return None if status is None or status in _LATER or status >= 500 else Sign.LIFE
    if status == 429 and (failure.run_pause or failure.reset):
        return None
    if status is None or status < 400 or status in _LATER or status >= 500:
        return Sign.TROUBLE
    return Sign.LIFE


def is_timeout(failure: Failure) -> bool:
    """Whether the attempt took too long, which may be the fault of its row."""
    return failure.type == "AttemptTimeout"


def is_answer(failure: Failure) -> bool:
    """Whether a server that is there said so itself: an error of its own, 500, say."""
    status = failure.status
    return status is not None and status >= 500 and status not in _UNAVAILABLE


def is_servers(failure: Failure) -> bool:
    """Whether trouble cannot be the fault of a row: nobody was there, or a gateway says so."""
    return not failure.sent or failure.status in _UNAVAILABLE


class Outage:
    """Whether the server of one run is away. Times are in seconds on one clock.

    Args:
        retry: its backoff gives the waits between probes; ``max_outage`` limits them all.

    Attributes:
        is_calm: life was the last sign, and any number of attempts may run.
        is_alive: there was life in this run, or in another run of the same call.
        is_away: the run waits for the server, and probes it.
        is_narrow: it is away, or is not trusted with all workers yet.
        rows: those that had trouble since the last sign of life.
        since: when the first of them had.
        believes_answers: errors that the server answers with are trouble.
        epoch: changes with a sign of life that comes after trouble.
        next_probe: nothing starts before this time; minus infinity while it is not away.
    """

    def __init__(self, retry: Retry):
        self._retry = retry
        self.is_calm = self.is_alive = self.is_away = self.is_narrow = False
        self.rows: set[int] = set()
        self.since = math.inf
        self.believes_answers = True
        self.epoch = 0
        #: attempts that were running when it was found away
        self._found_by = 0
        #: those of ``rows`` that count
        self._witnesses: set[int] = set()
        self.next_probe = -math.inf
        #: when the server came back, the last time that it did
        self._back = -math.inf
        self._failed_probes = 0
        #: of them in a row, those that the server answered itself
        self._answered_probes = 0
        #: answers since it came back
        self._answers = 0
        #: rows of running attempts that started since it was found away
        self._trials: set[int] = set()
        #: the last thing that it said
        self._said: Failure | None = None

    @property
    def away(self) -> Away | None:
        """Since when the server is away, and when it is probed next; None while it is not."""
        return Away(self.since, self.next_probe) if self.is_away else None

    @property
    def deadline(self) -> float:
        """When the run stops if the server is still away; infinity while it is not."""
        return self.since + self._retry.max_outage if self.is_away else math.inf

    @property
    def forgives(self) -> bool:
        """Whether rows get the attempts back that trouble has used up."""
        return not self.is_narrow

    @property
    def room(self) -> int:
        """How many attempts more the server is trusted with, while :attr:`is_narrow`."""
        return (1 if self.is_away else self._answers) - len(self._trials)

    def covers(self, start: float) -> bool:
        """Whether trouble of an attempt is of an outage that is known already."""
        return self.is_away or start < self._back

    def started(self, row: int) -> None:
        """An attempt has started while :attr:`is_narrow`."""
        self._trials.add(row)

    def ended(self, row: int) -> None:
        """An attempt has ended, and shows nothing of the server."""
        self._trials.discard(row)

    def life(self, row: int, now: float, *, workers: int) -> bool:
        """There was a sign of life; says whether it ends an outage.

        Args:
            workers: attempts that may run when all is well.
        """
        is_trial = row in self._trials
        self._trials.discard(row)
        if self.is_away and not is_trial:
            self.next_probe = min(self.next_probe, now)
            return False
        came_back = self.is_away
        self.is_alive = True
        self.epoch += 1
        self.rows.clear()
        self._witnesses.clear()
        if came_back:
            self.is_away, self._back, self._answers = False, now, 0
            self.next_probe = -math.inf
        if self.is_narrow and is_trial:
            self._answers += 1
            if self._answers >= workers:
                self.is_narrow = False
                self._answers = 0
                self._trials.clear()
        self.is_calm = not self.is_narrow
        return came_back

    def trouble(
        self, row: int, failure: Failure, now: float, *, counts: bool, running: int, is_free: bool
    ) -> bool:
        """A row had trouble while the server was not away; says whether it is away now.

        Args:
            counts: it cannot be the row's own fault, or another row will show that soon.
            running: attempts that were running until now, this one included.
            is_free: it uses up no attempt, because the server is busy with others.
        """
        self._trials.discard(row)
        self.is_calm = False
        if not self.is_alive or is_free or (is_answer(failure) and not self.believes_answers):
            return False
        self._said = failure
        if not self.rows:
            self.since = now
        self.rows.add(row)
        if counts:
            self._witnesses.add(row)
        if self.is_narrow:
            # With few attempts running, trouble at random would soon look like an outage.
            running = max(running, self._found_by)
        if len(self._witnesses) < max(_FEWEST, running):
            return False
        self._found_by = running
        return True

    def begin(self, failure: Failure, now: float) -> None:
        """The server is away: hold all rows, and probe it."""
        self.is_away = self.is_narrow = True
        self._failed_probes = self._answered_probes = 0
        self._trials.clear()
        self._plan_probe(failure, now)

    def lasts(self, row: int, failure: Failure, now: float) -> bool:
        """There was trouble while the server is away: of a probe, or of an older attempt.

        Returns:
            Whether the server is not away after all: it answers, and only with errors.
        """
        self._said = failure
        if row not in self._trials:
            return False
        self._trials.discard(row)
        self._failed_probes += 1
        self._answered_probes = self._answered_probes + 1 if is_answer(failure) else 0
        if self._answered_probes < _ANSWERED:
            self._plan_probe(failure, now)
            return False
        self.believes_answers = False
        self.is_away = self.is_narrow = False
        self.next_probe = -math.inf
        self._back = now
        self.rows.clear()
        self._witnesses.clear()
        self._trials.clear()
        return True

    def _plan_probe(self, failure: Failure, now: float) -> None:
        backoff = self._retry.wait(self._failed_probes + 1, chance=1.0)
        wait = max(_SHORTEST, backoff, failure.pause or 0.0)
        self.next_probe = min(now + wait, self.deadline)

    def stop(self) -> Stop:
        """The stop of a run whose server was away for too long. Running attempts may finish."""
        reason = (
            f"the model's server was away for longer than Retry(max_outage="
            f"{self._retry.max_outage:g}) seconds; it last said: {self._said}; when it is back, "
            "run the remaining rows"
        )
        return Stop(StopKind.OUTAGE, reason, cancels=False)
