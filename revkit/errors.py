"""Every error that revkit raises or writes down; each says what happened, whose fault it was,
and what to do next.

    RevkitError
    ├── UsageError (ValueError)      yours: refused before anything was sent
    │   ├── MissingColumn            an input is bound to a column that is not there
    │   ├── ColumnExists             an output would overwrite a column that is not its own
    │   ├── NoModel                  no model is configured for this task
    │   └── MissingExtra             an optional package is not installed
    ├── RowFailure                   one attempt at one row failed; the run goes on
    │   ├── MissingInput             an input of the row is NA: nothing was sent
    │   ├── BadOutput                a reply arrived, but is not what the task asked for
    │   │   ├── CutOff               the reply ended at a limit of tokens, not where it should
    │   │   ├── ContentFiltered      the server's content filter withheld the reply
    │   │   └── ModelRefused         the model refused to answer
    │   ├── FactoryFailed            a worker's state could not be made: ends the run
    │   └── ModelError               the model's server could not be asked, or said no
    │       ├── ConnectionFailed     no connection, or it broke
    │       ├── AttemptTimeout       no whole reply in time
    │       ├── BadReply             what arrived is not a reply of this protocol
    │       ├── PromptTooLong        the prompt does not fit into the model's context
    │       │   └── PromptTruncated  the server dropped a part of the prompt, and answered the rest
    │       ├── ServerError          an HTTP status other than success (``.status``)
    │       ├── ModelMissing         the server does not have the model: ends the run
    │       ├── AccessDenied         401 (ends the run) or 403 (may be about one row's text)
    │       └── QuotaUsedUp          no quota or money left, and no waiting helps: ends the run
    ├── ModelUnavailable             the embedded model could not be fetched or started
    └── RunFailed                    the run as a whole; ``.result`` holds what is done
        ├── RunTimeout               ``timeout=`` was over
        ├── BudgetReached            its Budget has no room for another attempt
        └── RunCancelled             its CancelToken was cancelled

    Interrupted (KeyboardInterrupt)  the user stopped the run; ``.result`` holds what is done

An exception out of a user's callable needs no class of its own: it is written down under the
name of its own type.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Hashable, Iterable
from types import FrameType
from typing import Any, Protocol

__all__ = [
    "AccessDenied",
    "AttemptTimeout",
    "BadOutput",
    "BadReply",
    "BudgetReached",
    "ColumnExists",
    "ConnectionFailed",
    "ContentFiltered",
    "CutOff",
    "FactoryFailed",
    "Interrupted",
    "MissingColumn",
    "MissingExtra",
    "MissingInput",
    "ModelError",
    "ModelMissing",
    "ModelRefused",
    "ModelUnavailable",
    "NoModel",
    "PromptTooLong",
    "PromptTruncated",
    "QuotaUsedUp",
    "RevkitError",
    "RowFailure",
    "RunCancelled",
    "RunFailed",
    "RunTimeout",
    "ServerError",
    "UsageError",
    "message_of",
    "nearest",
    "one_line",
    "plural",
    "said",
    "type_of",
    "warn",
]


class HasText(Protocol):
    """A model's reply, as far as an error knows it (:class:`revkit.Reply`)."""

    @property
    def text(self) -> str: ...


class RevkitError(Exception):
    """Base of all errors of revkit."""


class UsageError(RevkitError, ValueError):
    """The call cannot be carried out as it was written; nothing was sent."""


class MissingColumn(UsageError):
    """An input is bound to a column that does not exist.

    Attributes:
        column: its label.
    """

    def __init__(self, message: str, *, column: Hashable = None):
        super().__init__(message)
        self.column = column


class ColumnExists(UsageError):
    """An output would overwrite a column that the same task did not write."""


class NoModel(UsageError):
    """The task needs a language model and none is configured."""


class MissingExtra(UsageError):
    """A feature needs an optional package that is not installed."""


class RowFailure(RevkitError):
    """One attempt at one row failed. Its message is one line, whatever it quotes.

    Attributes:
        status: HTTP status of the reply, or None where there was none.
        text: what the model had said, or None where it said nothing.
        reply: the whole reply that was of no use, tokens and all, or None.
        transient: True where the same attempt may go well a little later.
        pause: seconds for which the server asked not to be asked again, or None.
        reset: seconds after which the server is certain to accept requests again, or None.
        sent: False where no request went out, so that nothing can have been billed.
        ends_run: True where every other row must fail in the same way, so that going on
            would only cost time or money.
        denied: True where the server denied access, which may be about this row's text alone.
        no_room: True where this process had no file descriptor left for the connection.
        correctable: True where the model may do better when it is shown the message.
    """

    transient = False
    pause: float | None = None
    reset: float | None = None
    sent = True
    ends_run = False
    denied = False
    no_room = False
    correctable = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        text: str | None = None,
        reply: HasText | None = None,
    ):
        super().__init__(one_line(message))
        self.status = status
        self.text = text if reply is None else reply.text
        self.reply = reply


class MissingInput(RowFailure):
    """An input of the row is missing (NA); nothing was sent."""


class BadOutput(RowFailure):
    """The model replied, but not with what the task asked for; ``text`` is what it said."""

    correctable = True


class CutOff(BadOutput):
    """The reply ended at a limit of tokens before the model had finished; ``text`` is its part."""

    correctable = False


class ContentFiltered(BadOutput):
    """The server's content filter withheld the reply, or a part of it."""

    correctable = False


class ModelRefused(BadOutput):
    """The model refused to answer; ``text`` is what it said instead."""

    correctable = False


class FactoryFailed(RowFailure):
    """``factory=`` could not make the state of a worker; nothing was sent."""

    sent = False
    ends_run = True


class ModelError(RowFailure):
    """The model's server could not be asked, or refused."""


class ConnectionFailed(ModelError):
    """No connection could be made, or it broke before the whole reply had arrived."""

    transient = True


class AttemptTimeout(ModelError):
    """The whole reply did not arrive in time."""

    transient = True


class BadReply(ModelError):
    """What arrived is not a reply of the protocol that the client speaks."""

    transient = True


class PromptTooLong(ModelError):
    """The prompt does not fit into the model's context; the server refused it."""


class PromptTruncated(PromptTooLong):
    """The server dropped a part of the prompt, and the model answered the rest."""


#: Statuses with which a server says that it may answer a little later; and all from 500 on.
_TRANSIENT = frozenset({408, 409, 425, 429})


class ServerError(ModelError):
    """The server answered with a status that is not success.

    Args:
        pause: seconds for which it asked not to be asked again (``Retry-After``), or None.
        reset: seconds until the limit that was reached is full again, or None: an upper bound.
        retry: what it says about trying again (``x-should-retry``); None: its status decides.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        pause: float | None = None,
        reset: float | None = None,
        retry: bool | None = None,
    ):
        super().__init__(message, status=status)
        self.pause, self.reset = pause, reset
        if retry is not None:
            self.transient = retry
        elif status is not None:
            self.transient = status in _TRANSIENT or status >= 500


class ModelMissing(ServerError):
    """The server does not have the model that was asked for."""

    ends_run = True


class AccessDenied(ServerError):
    """The server did not accept the key (401), or denied it this request (403)."""

    ends_run = True

    def __init__(self, message: str, *, status: int | None = None, pause: float | None = None):
        super().__init__(message, status=status, pause=pause)
        self.denied = status == 403


class QuotaUsedUp(ServerError):
    """The account behind the key has no quota left: waiting does not help."""

    ends_run = True


class ModelUnavailable(RevkitError):
    """The embedded model could not be fetched, checked or started."""


class RunFailed(RevkitError):
    """The run failed as a whole; every row that was done is in ``result``.

    Attributes:
        result: the whole partial result of the run; None where it is on a Dask worker.
        results: of a chain: the result of each step so far, the partial one last; else None.
    """

    results: Any = None

    def __init__(self, message: str, result: Any = None):
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (str(self),)  # the result stays where it is


class RunTimeout(RunFailed):
    """The time that ``timeout=`` gave to the whole run was over."""


class BudgetReached(RunFailed):
    """The run's :class:`~revkit.Budget` has no room for another attempt."""


class RunCancelled(RunFailed):
    """The run's :class:`~revkit.CancelToken` was cancelled."""


class Interrupted(KeyboardInterrupt):
    """The run was interrupted; what was done is in the columns and in ``result``.

    A ``KeyboardInterrupt``, so that "run all cells" and scripts stop too. ``results`` is that of
    :class:`RunFailed`.
    """

    results: Any = None

    def __init__(self, message: str, result: Any = None):
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (str(self),)  # the result stays where it is


def one_line(text: str) -> str:
    """Foreign text on one line, control characters made visible.

    >>> one_line("one\\ntwo \\x1b[31mred")
    'one two \\\\x1b[31mred'
    """
    # Joiners are invisible too, but many scripts and emoji need them. Lone surrogates are not
    # printable, so what is left can be encoded.
    return "".join(
        c if c.isprintable() or c in "\u200c\u200d" else c.encode("unicode_escape").decode()
        for c in " ".join(text.split())
    )


#: An error message may quote a whole reply; a column of them should stay readable.
_MESSAGE_BOUND = 2_000


def message_of(error: BaseException) -> str:
    """What an exception says, on one line that any column can hold.

    Its class may be anyone's: whatever ``__str__`` raises, and whatever it returns.
    """
    try:
        return one_line(str.__str__(str(error))[:_MESSAGE_BOUND])
    except BaseException as broken:  # noqa: BLE001 - it may raise anything
        return f"(its message cannot be read: {type_of(broken)})"


def type_of(error: BaseException) -> str:
    """The name of an exception's class, whatever its metaclass does."""
    return one_line(type.__dict__["__name__"].__get__(type(error))[:_MESSAGE_BOUND])


def said(error: BaseException) -> str:
    """An exception as one line: its class, and what it says.

    >>> said(ValueError("two\\nlines"))
    'ValueError: two lines'
    """
    return f"{type_of(error)}: {message_of(error)}"


def plural(count: int, what: str, then: str = "") -> str:
    """So many of what is counted, and what is said of it: ``then`` has the plural's verb.

    >>> plural(1, "row"), plural(1200, "row")
    ('1 row', '1,200 rows')
    >>> plural(1, "row", "are done"), plural(2, "row", "are done")
    ('1 row is done', '2 rows are done')
    >>> plural(1, "reply"), plural(3, "reply")
    ('1 reply', '3 replies')
    """
    many = f"{what[:-1]}ies" if what.endswith("ply") else f"{what}s"
    words = f"{count:,} {what if count == 1 else many}"
    if not then:
        return words
    verb, _, rest = then.partition(" ")
    verb = _SINGULAR.get(verb, verb) if count == 1 else verb
    return f"{words} {verb} {rest}".rstrip()


_SINGULAR = {"are": "is", "were": "was", "have": "has"}


def nearest(name: str, known: Iterable[str]) -> str:
    """Close the sentence about an unknown name: the nearest known ones, or all of them.

    >>> nearest("reveiw", ["id", "review"])
    'did you mean "review"?'
    >>> nearest("zzz", ["id", "review"])
    'there are "id", "review".'
    """
    import difflib

    names = [one_line(str(k)) for k in known]
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    if not close:
        folded = {k.casefold(): k for k in names}
        close = [folded[str(name).casefold()]] if str(name).casefold() in folded else []
    if close:
        return "did you mean " + " or ".join(f'"{c}"' for c in close) + "?"
    if not names:
        return "there are none."
    shown = ", ".join(f'"{k}"' for k in names[:12])
    return f"there are {shown}" + (f" and {len(names) - 12} more." if len(names) > 12 else ".")


#: Packages that may stand between revkit and the line of the user's that a warning points to.
_PASSED_OVER = {"revkit", "pandas", "dask", "distributed", *sys.stdlib_module_names}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that led here.

    A background thread has no such line. There the warning points to the caller of this function.
    """
    caller = sys._getframe(1)
    frame: FrameType | None = caller
    while frame is not None and _package(frame) in _PASSED_OVER:
        frame = frame.f_back
    place = frame or caller
    warnings.warn_explicit(
        message,
        category,
        place.f_code.co_filename,
        place.f_lineno,
        place.f_globals.get("__name__"),
        place.f_globals.setdefault("__warningregistry__", {}),
    )


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
