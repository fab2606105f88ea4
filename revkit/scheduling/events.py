"""The vocabulary of a run.

A *row* is one unit of work. An *attempt* is one try at a row by one *worker*. It ends in an
*outcome*: a :class:`Success`, a :class:`Failure`, or :data:`CANCELLED`. The scheduler makes a
*decision* about the outcome, and the worker reports all of that as one *fact*: :class:`Attempted`.
A *hold* is a time in which the server or a limit lets no attempt start.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from ..task.chat import Reply

__all__ = [
    "CANCELLED",
    "DONE",
    "OVERLOADED",
    "WAIT",
    "Attempt",
    "Attempted",
    "Away",
    "Cancelled",
    "Decided",
    "Decision",
    "Failure",
    "Held",
    "Hold",
    "HoldKind",
    "Outcome",
    "Source",
    "Started",
    "Status",
    "Step",
    "Stop",
    "StopKind",
    "Success",
]


#: HTTP statuses of a server that has too much to do at the moment.
OVERLOADED: Final = frozenset({429, 503, 529})


class Status(StrEnum):
    """The state of a row."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"
    NOT_STARTED = "not_started"


class Source(StrEnum):
    """Where the outcome of a row came from."""

    NONE = "none"
    MODEL = "model"  #: an attempt of its own, of a function as well
    STORE = "store"  #: a cached reply
    DUPLICATE = "duplicate"  #: the row before it that has the same prompt


class Decision(StrEnum):
    """The scheduler's decision about an attempt; its values are those of ``run.attempts``.

    There is no :attr:`PARK` there: each such attempt is retried or failed in the end.
    """

    OK = "ok"
    RETRY = "retried"
    FAIL = "failed"
    CANCEL = "cancelled"
    #: undecided: whether the row has failed depends on whether the server is away
    PARK = "parked"


class Attempt(NamedTuple):
    """A try at a row, handed to a worker."""

    row: int
    number: int  #: from 1
    worker: int
    previous: Failure | None = None  #: shown to the model, else the last failure
    due: float | None = None  #: when it might start; None: as soon as the run did


class _Word(Enum):
    WAIT = "wait"
    DONE = "done"


#: Nothing to take now; something may come when a running attempt is settled.
WAIT: Final = _Word.WAIT
#: Nothing to take any more.
DONE: Final = _Word.DONE

#: What a worker gets that asks for an attempt: one, the time to ask again, or a word.
Step = Attempt | float | Literal[_Word.WAIT, _Word.DONE]


class Success(NamedTuple):
    """The row has its values."""

    values: Mapping[str, Any]
    reply: Reply | None = None  #: None where no model was asked


class Failure(NamedTuple):
    """The attempt did not give the row its values.

    Attributes:
        type: name of the error's type, such as ``"BadOutput"`` or ``"ZeroDivisionError"``.
        message: what happened and what to do.
        status: HTTP status, if there was one.
        reply: of the model, if there was one.
        text: of that reply.
        correctable: the model may succeed when it is shown the message.
        transient: the same attempt may succeed a little later.
        pause: seconds after which the server lets this request be repeated, or None.
        sent: a request went out, which may have been billed.
        ends_run: every other row must fail in the same way.
        denied: the server denied access (403), which may be about this row's text alone.
        no_room: this machine had no room for it (``crowding``), which uses up no attempt.
        cause: the exception, without its traceback but for the first one of a run.
        reset: seconds after which the server is certain to accept requests again, or None: a
            pause need not be longer.
    """

    type: str
    message: str
    status: int | None = None
    reply: Reply | None = None
    text: str | None = None
    correctable: bool = False
    transient: bool = False
    pause: float | None = None
    sent: bool = True
    ends_run: bool = False
    denied: bool = False
    no_room: bool = False
    cause: BaseException | None = None
    reset: float | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type

    @property
    def run_pause(self) -> float:
        """Seconds for which the server asks all workers to pause; 0 if it does not."""
        return max(0.0, self.pause or 0.0) if self.status in OVERLOADED else 0.0


class Cancelled(Enum):
    """The attempt was cancelled before it had an outcome."""

    CANCELLED = "cancelled"


CANCELLED: Final = Cancelled.CANCELLED

Outcome = Success | Failure | Cancelled


class StopKind(StrEnum):
    """Why a run ended before its last row."""

    FAILURES = "failures"  #: ``fail_fast`` or ``max_failures``
    FATAL = "fatal"  #: a failure that every other row would share
    PAUSE = "pause"  #: the server asked for a longer pause than ``Retry.max_pause``
    OUTAGE = "outage"  #: the server was away for longer than ``Retry.max_outage``
    BUDGET = "budget"  #: the budget has no room for another attempt
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"  #: by a CancelToken
    INTERRUPTED = "interrupted"  #: by the user, or by a fault of revkit


class Stop(NamedTuple):
    """A stop of the run: it starts nothing more.

    Attributes:
        reason: continues the sentence "the run was stopped:".
        cancels: running attempts are cancelled; else they may finish.
    """

    kind: StopKind
    reason: str
    cancels: bool

    def after(self, earlier: Stop | None) -> Stop:
        """The stop of a run that may have been stopped before.

        The first reason stays, but a later stop may cancel the running attempts.
        """
        return (
            self if earlier is None else earlier._replace(cancels=earlier.cancels or self.cancels)
        )


class Started(NamedTuple):
    """One attempt, begun. Times are in seconds on the engine's monotonic clock."""

    attempt: Attempt
    start: float


class Attempted(NamedTuple):
    """One attempt, ended."""

    attempt: Attempt
    start: float
    end: float
    outcome: Outcome
    decision: Decision
    again: float | None = None  #: when the row is due to be tried again, if it is


class Decided(NamedTuple):
    """What became of a row that was parked."""

    #: its last attempt, now with the decision: it is retried, or it has failed
    fact: Attempted


class Away(NamedTuple):
    """The server is away. Times are on the engine's clock."""

    since: float
    next_probe: float


class HoldKind(StrEnum):
    """The reason of a hold."""

    OUTAGE = "outage"  #: the server is away
    PAUSE = "pause"  #: the server asked for it
    RATE_LIMIT = "rate_limit"
    PACING = "pacing"  #: the server refused most attempts
    BUDGET = "budget"  #: attempts in flight have reserved the rest


class Hold(NamedTuple):
    """A time in which no attempt might start."""

    kind: HoldKind
    start: float
    end: float


class Held(NamedTuple):
    """A row has to wait because of a hold; reported once for each such row."""

    kind: HoldKind
    row: int
    worker: int
    start: float
    until: float  #: when it may start, if nothing changes
