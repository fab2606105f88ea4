"""What an attempt's exception comes to: a failure of its row."""

from __future__ import annotations

import threading

from ..errors import RowFailure, message_of, type_of
from ..scheduling.events import Failure
from ..task.chat import Reply, with_known_counts

__all__ = ["Failures"]

_OTHER_LOOP = ("bound to a different event loop", "attached to a different loop")


class Failures:
    """Turns exceptions into failures; the first one keeps its traceback, for the user to read.

    Args:
        max_pause: a longer pause that a function asks for is not kept, in seconds.
    """

    def __init__(self, *, max_pause: float = 0.0) -> None:
        self._max_pause = max_pause
        self._lock = threading.Lock()
        self._kept = False

    def of(self, error: BaseException, unfit: Reply | None = None) -> Failure:
        """
        Args:
            unfit: the reply that the task could not read. The model may do better when it is
                told why, which it will not where the protocol gave the reply up.
        """
        with self._lock:
            first, self._kept = not self._kept, True
        if not first:
            # A traceback holds every local variable of every frame: thousands would add up.
            for name in ("__traceback__", "__context__", "__cause__"):
                BaseException.__setattr__(error, name, None)  # a frozen dataclass refuses its own
        message = message_of(error)
        if issubclass(type(error), RuntimeError) and any(words in message for words in _OTHER_LOOP):
            message += (
                " - the function uses an object of the notebook's own event loop: call "
                '`await df.llm.aparallel_map(...)`, or pass loop="notebook"'
            )
        if issubclass(type(error), RowFailure):
            assert isinstance(error, RowFailure)
            return Failure(
                type_of(error),
                message,
                status=error.status,
                text=error.text if unfit is None else unfit.text,
                reply=unfit
                or (with_known_counts(error.reply) if isinstance(error.reply, Reply) else None),
                correctable=error.correctable and unfit is not None,
                transient=error.transient,
                pause=error.pause,
                reset=error.reset,
                sent=error.sent,
                ends_run=error.ends_run,
                denied=error.denied,
                no_room=error.no_room,
                cause=error,
            )
        text = None if unfit is None else unfit.text
        return Failure(type_of(error), message, reply=unfit, text=text, cause=error)

    def of_function(self, error: BaseException, unfit: Reply | None = None) -> Failure:
        """:meth:`of` for what the user's own code raised: it is never more than its row's error.

        One of revkit's own errors may have the row tried again, after a pause that the run would
        keep; it ends no run. A class that was made from one may have anything in its fields.
        """
        try:
            failure = self.of(error, unfit)
        except BaseException:  # noqa: BLE001 - out of a property of a class of the user's
            return Failure(type_of(error), message_of(error), reply=unfit, cause=error)
        fits = _is_plain(failure) and (failure.pause or 0.0) <= self._max_pause
        if not fits:
            failure = Failure(failure.type, failure.message, reply=unfit, cause=error)
        # What would end a run is not mended by another attempt.
        transient = failure.transient and not failure.ends_run
        return failure._replace(transient=transient, ends_run=False, denied=False)


def _is_plain(failure: Failure) -> bool:
    """Whether the fields of a failure are of the types that they should be."""
    seconds = (failure.pause, failure.reset)
    flags = (failure.transient, failure.sent, failure.correctable, failure.no_room)
    return (
        type(failure.status) in (int, type(None))
        and type(failure.text) in (str, type(None))
        and all(type(flag) is bool for flag in flags)
        and all(type(s) in (int, float, type(None)) and (s is None or s == s) for s in seconds)
    )
