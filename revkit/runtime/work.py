"""What a worker does in one attempt: call a user's function, or ask a model and read its reply.

The engines know nothing of tasks and clients; they call :class:`Work`. Nothing that goes wrong in
an attempt leaves it as an exception: it becomes the outcome.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from typing import Any, Protocol, cast

from ..clients.contract import (
    Aborted,
    AsyncTransport,
    Client,
    Exchange,
    Request,
    Response,
    Transport,
)
from ..errors import RowFailure
from ..scheduling.events import CANCELLED, Attempt, Outcome, Success
from ..tables.rows import Rows
from ..task.answer import Answers
from ..task.chat import Message, Reply
from ..task.kinds import CallableTask, ModelTask
from ..task.returned import HUGE, values_of
from .cancel import CancelToken, is_interrupt, may_be_the_engines, works_for
from .failures import Failures
from .prompts import Prompts
from .state import States

__all__ = ["CallableWork", "Context", "ModelWork", "Work", "adrive", "drive"]

#: Bytes of a response, or characters of a text, from which on a loop has it read in another thread:
#: the other rows would wait meanwhile.
_LONG = 2**18


@dataclass(frozen=True, slots=True)
class Context:
    """What a callable with a parameter named ``context`` is told.

    Attributes:
        worker: number of the worker, from 0.
        row: position of the row, from 0.
        sample: number of the sample of the row, from 0 (``repeat=``).
        attempt: number of the attempt at this row and sample, from 1.
        cancel: cancelled when the run is stopped and cancels what is running (an interrupt, a
            timeout, ``fail_fast``, the caller's own token). A thread cannot be ended from
            outside: a function that takes long should look at ``cancel.cancelled``, or wait with
            ``cancel.wait(seconds)``, and return.
        state: what ``factory`` made for this worker, or its one of ``instances``; else None.
    """

    worker: int
    row: int
    sample: int
    attempt: int
    cancel: CancelToken
    state: Any = None


#: Makes an attempt, as one worker does it.
Attempts = Callable[[Attempt], Outcome]
AsyncAttempts = Callable[[Attempt], Awaitable[Outcome]]


class Work(Protocol):
    """One kind of attempt. The thread engine uses the first methods, the loop the others.

    A worker enters ``worker`` once, on its own thread, and makes all its attempts by what that
    gives.

    Attributes:
        replaceable: a worker that was abandoned in an attempt can be replaced.
    """

    replaceable: bool

    def open(self, max_workers: int) -> None: ...
    def worker(self, worker: int) -> AbstractContextManager[Attempts]: ...
    def close(self) -> None: ...

    async def aopen(self, max_workers: int) -> None: ...
    def aworker(self, worker: int) -> AbstractAsyncContextManager[AsyncAttempts]: ...
    async def aclose(self) -> None: ...

    def abort(self, reason: str) -> None:
        """Let what runs end, where it can be reached; it may be called again."""


class CallableWork:
    """Calls a user's function with each row.

    Args:
        states: what its workers work with; None: nothing.
        place: the caller's number of a row, and that of its sample.
        max_pause: a longer pause that the function asks for is not kept, in seconds.
    """

    def __init__(
        self,
        task: CallableTask,
        rows: Rows,
        states: States | None = None,
        place: Callable[[int], tuple[int, int]] = lambda row: (row, 0),
        *,
        max_pause: float = 0.0,
    ):
        self._task = task
        self._call = self._call_with_context if task.wants_context else self._call_plainly
        self._item = rows.item
        self._failures = Failures(max_pause=max_pause)
        self._states = states
        self._place = place
        self._cancel = CancelToken()
        self.replaceable = states is None or states.replaceable

    def open(self, max_workers: int) -> None: ...
    def close(self) -> None: ...
    async def aopen(self, max_workers: int) -> None: ...
    async def aclose(self) -> None: ...

    def abort(self, reason: str) -> None:
        self._cancel.cancel(reason)  # nothing else stops a function of the user's

    def worker(self, worker: int) -> AbstractContextManager[Attempts]:
        return self._in_thread(worker)

    @contextmanager
    def _in_thread(self, worker: int) -> Iterator[Attempts]:
        with works_for(self._cancel):
            if self._states is None:
                yield self._attempt
                return
            with self._states.of(worker) as get:
                yield lambda attempt: self._attempt(attempt, get)

    def aworker(self, worker: int) -> AbstractAsyncContextManager[AsyncAttempts]:
        return nullcontext(self._aattempt) if self._states is None else self._with_astate(worker)

    @asynccontextmanager
    async def _with_astate(self, worker: int) -> AsyncIterator[AsyncAttempts]:
        assert self._states is not None
        async with self._states.aof(worker) as get:
            yield lambda attempt: self._aattempt(attempt, get)

    def _attempt(self, attempt: Attempt, get: Callable[[], Any] | None = None) -> Outcome:
        try:
            state = None if get is None else get()
        except BaseException as error:  # noqa: BLE001 - without a state no row can be run
            return self._failures.of(error)
        try:
            return Success(self._values(self._call(attempt, state)))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is this row's error
            if type(error) is Aborted and self._cancel.cancelled:  # the wait of a Conversation
                return CANCELLED
            return self._failures.of_function(error)

    async def _aattempt(
        self, attempt: Attempt, get: Callable[[], Awaitable[Any]] | None = None
    ) -> Outcome:
        try:
            state = None if get is None else await get()
        except BaseException as error:
            if may_be_the_engines(error):
                raise
            return self._failures.of(error)
        try:
            return Success(self._values(await self._call(attempt, state)))
        except BaseException as error:
            if may_be_the_engines(error):
                raise
            return self._failures.of_function(error)

    def _call_plainly(self, attempt: Attempt, state: Any) -> Any:
        return self._task.fn(self._item(attempt.row))

    def _call_with_context(self, attempt: Attempt, state: Any) -> Any:
        row, sample = self._place(attempt.row)
        context = Context(attempt.worker, row, sample, attempt.number, self._cancel, state)
        return self._task.fn(self._item(attempt.row), context=context)

    def _values(self, value: Any) -> Mapping[str, Any]:
        kind = type(value)
        if (
            kind is str
            or (kind is int and -HUGE < value < HUGE)
            or (kind is float and value == value)
            or kind is bool
        ):
            return {self._task.output: value}  # nearly always, and the rest costs more
        return values_of(value, self._task.output, self._task.name)


class ModelWork:
    """Asks a model about each row."""

    replaceable = True

    def __init__(self, task: ModelTask, client: Client, prompts: Prompts, answers: Answers):
        self._task = task
        self._client = client
        self._prompts = prompts
        self._answers = answers
        self._failures = Failures()
        self._session = client.session(task)
        # On a virtual clock, waiting for a thread would take hours.
        self._long = _LONG if client.loop_factory is None else math.inf
        # What all rows share is made now, not in the service time of the first one.
        _ = task.prefix, task.outputs.json_schema
        self._transport: Transport | None = None
        self._async_transport: AsyncTransport | None = None

    def open(self, max_workers: int) -> None:
        self._transport = self._client.transport(max_workers=max_workers)

    def worker(self, worker: int) -> AbstractContextManager[Attempts]:
        return nullcontext(self._attempt)

    def aworker(self, worker: int) -> AbstractAsyncContextManager[AsyncAttempts]:
        return nullcontext(self._aattempt)

    def abort(self, reason: str) -> None:
        abort = getattr(self._transport, "abort", None)  # a user's own may have none
        if abort is not None:
            abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def aopen(self, max_workers: int) -> None:
        self._async_transport = await self._client.async_transport(max_workers=max_workers)

    async def aclose(self) -> None:
        if self._async_transport is not None:
            await self._async_transport.aclose()

    def _attempt(self, attempt: Attempt) -> Outcome:
        assert self._transport is not None
        try:
            messages = self._messages(attempt)
        except BaseException as error:  # noqa: BLE001 - out of a value of the user's own
            return self._failures.of_function(error)._replace(sent=False)
        try:
            reply = drive(self._session.exchange(messages), self._transport.send)
        except Aborted:
            return CANCELLED
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is this row's error
            return self._failures.of(error)
        return self._read(reply, messages)

    async def _aattempt(self, attempt: Attempt) -> Outcome:
        assert self._async_transport is not None
        try:
            messages = self._messages(attempt)
        except BaseException as error:
            if is_interrupt(error):
                raise
            return self._failures.of_function(error)._replace(sent=False)  # of the user's own value
        try:
            reply = await adrive(
                self._session.exchange(messages), self._async_transport.send, self._long
            )
        except BaseException as error:
            if may_be_the_engines(error):
                raise
            return self._failures.of(error)
        if len(reply.text) < self._long:
            return self._read(reply, messages)
        import asyncio

        return await asyncio.to_thread(self._read, reply, messages)

    def _messages(self, attempt: Attempt) -> list[Message]:
        messages = self._prompts.of(attempt.row)
        before = attempt.previous
        if before is not None and before.correctable:
            again = f"{before.message}. {self._task.outputs.describe()}".strip()
            messages = [
                *messages,
                # Some servers refuse an empty turn.
                {"role": "assistant", "content": before.text or "(empty)"},
                {"role": "user", "content": again},
            ]
        return messages

    def _read(self, reply: Reply, sent: list[Message]) -> Outcome:
        reply = self._answers.split(reply, sent)
        try:
            return Success(*self._answers.read(reply))
        except BaseException as error:  # out of a validator of the user's own, say
            if is_interrupt(error):
                raise
            return self._failures.of_function(error, reply)


def drive(exchange: Exchange, send: Callable[[Request], Response]) -> Reply:
    """Carry an exchange's requests until it has its reply."""
    try:
        request = next(exchange)
        while True:
            try:
                response = send(request)
            except RowFailure as error:  # the protocol may have a better word for it
                request = exchange.throw(error)
            except StopIteration as error:  # would read as the end of the exchange
                raise RuntimeError("the transport raised StopIteration") from error
            else:
                request = exchange.send(response)
    except StopIteration as end:
        reply: Reply = end.value
        return reply
    finally:
        exchange.close()


async def adrive(
    exchange: Exchange, send: Callable[[Request], Awaitable[Response]], long: float = _LONG
) -> Reply:
    """:func:`drive` for a transport that is awaited.

    Args:
        long: bytes of a response from which on another thread reads it.
    """
    aside = False
    try:
        request = next(exchange)
        while True:
            try:
                response = await send(request)
            except RowFailure as error:
                request = exchange.throw(error)
                continue
            if len(response.body) < long:
                request = exchange.send(response)
                continue
            import asyncio

            aside = True
            is_over, found = await asyncio.to_thread(_resumed, exchange, response)
            aside = False
            if is_over:
                return cast(Reply, found)
            request = cast(Request, found)
    except StopIteration as end:
        reply: Reply = end.value
        return reply
    finally:
        if not aside:  # else a thread still reads, or the exchange has raised
            exchange.close()


def _resumed(exchange: Exchange, response: Response) -> tuple[bool, Request | Reply]:
    """Go on with an exchange; no thread can raise StopIteration. Says whether that was its end."""
    try:
        return False, exchange.send(response)
    except StopIteration as end:
        return True, end.value
