"""Transports over httpx: for threads, and for the httpx client that the user passes.

The rules that they share with aiohttp's stand in ``http``.

On the loop a request is cancelled with its task. A thread cannot be cancelled, so
``HttpxTransport.abort`` shuts down the socket that it waits on. Three waits have no socket that
could be shut down. They end by themselves, with nothing sent: for a name server (the system's
limit), for a connection that is being made where the system does not let it be shut down (not on
Linux; ``CONNECT_TIMEOUT``), and for a place in the pool of a user's client that others keep busy
(``timeout``).
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..errors import RowFailure
from .contract import Aborted, Request, Response
from .doubled import DoubledResponses, Verdict
from .http import (
    CONNECT_TIMEOUT,
    HEADERS,
    HINT,
    KEEPALIVE,
    MAX_BODY,
    BoundedBody,
    lower_headers,
    proxy_for,
    tls_for,
)
from .transport_errors import TransportErrors, from_httpx

if TYPE_CHECKING:
    import ssl

    import httpx

    from .httpcore_stream import Exchanged

__all__ = ["HttpxAsyncTransport", "HttpxTransport"]

#: Held while garbage collection is off; reentrant, for a collection may just be closing a client.
_COLLECTOR = threading.RLock()
#: Steps of httpcore that an aborted request does not take any more. A TLS handshake is not among
#: them, for httpcore would leave its socket open; nor is the body, for it may be there already.
_STEPS = frozenset(
    {
        "connect_tcp.started",
        "connect_unix_socket.started",
        "send_request_headers.started",
        "receive_response_headers.started",
    }
)


class HttpxTransport:
    """Carries requests from threads.

    Args:
        endpoint: URL of the server that all requests go to.
        http: the user's client or transport; None: each thread opens a connection of its own.
        timeout: seconds for one whole exchange.
        max_body: bytes of one decompressed body.
        hint: what to do where no connection can be made.

    Raises:
        UsageError: the environment names a proxy or certificates that cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        http: httpx.Client | httpx.BaseTransport | None = None,
        timeout: float = 120.0,
        max_body: int = MAX_BODY,
        hint: str = HINT,
    ):
        proxy = proxy_for(endpoint) if http is None else None
        self._errors = TransportErrors(endpoint, proxy=proxy, timeout=timeout, hint=hint)
        self._timeout = timeout
        self._max_body = max_body
        self._extensions = {**_waits(timeout), "trace": self._trace}
        self._http = http
        self._doubled = DoubledResponses()
        #: guards the two below
        self._lock = threading.RLock()  # httpcore may call back while garbage is collected
        self._aborted = False
        #: threads whose request may have a connection to itself
        self._at_work: set[int] = set()
        #: Ours, one for each thread: in a pool that threads share, httpcore may take a connection
        #: for idle that another thread has just begun to use, and close it under its hands.
        self._own = threading.local()
        self._opened: list[tuple[int, httpx.HTTPTransport]] = []
        self._tls = tls_for(endpoint) if http is None else None
        self._proxy = proxy

    def send(self, request: Request) -> Response:
        """Send one request and wait for the whole response. Raises ``ModelError`` kinds."""
        end = time.monotonic() + self._timeout
        exchanged = self._exchanged()
        with self._lock:
            self._at_work.add(threading.get_ident())
        try:
            while True:
                self._go_on()
                response, verdict = self._exchange(request, end, exchanged)
                if verdict != "ask again":
                    return response
        except Exception as error:  # noqa: BLE001 - what is not a library's comes back as it is
            self._go_on()
            failure = from_httpx(error, self._errors)
            if isinstance(failure, RowFailure) and failure.no_room:
                self._close_idle()
            raise failure from None
        finally:
            self._is_through()

    def abort(self) -> None:
        """Shut down the sockets on which requests wait, and send nothing more.

        Which socket that is, only the thread's stack tells: httpx gives it away for a new
        connection, not for one that is used again; and while a connection is made, not at all.
        Closing it would not wake the thread. A thread that is between two waits is met by the
        next call.
        """
        with self._lock:  # with which no connection goes back to a pool that others use
            self._aborted = True
            frames = _frames()
            for thread in list(self._at_work):
                found = _socket_in(frames.get(thread))
                if found is not None:
                    with suppress(OSError):  # not connected yet, or not any more
                        # Not its own method, which would take TLS off under the reader's hands.
                        socket.socket.shutdown(found, socket.SHUT_RDWR)

    def _go_on(self) -> None:
        if self._aborted:
            raise Aborted from None

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Called by httpcore, in the thread of a request, before and after each of its steps."""
        step = event.partition(".")[2]
        if step == "response_closed.started":  # from here on the connection may be another's
            self._is_through()
        elif step in _STEPS:
            with self._lock:
                self._go_on()
                self._at_work.add(threading.get_ident())  # again, where auth sends it twice

    def _is_through(self) -> None:
        with self._lock:
            self._at_work.discard(threading.get_ident())

    def _exchange(
        self, request: Request, end: float, exchanged: Exchanged
    ) -> tuple[Response, Verdict | None]:
        """The next response, and what :class:`DoubledResponses` says of it."""
        exchanged.begin(end)
        with self._open(request) as (response, chunks):
            headers = lower_headers(response.headers.multi_items())
            body = BoundedBody(headers, limit=self._max_body, where=self._errors.where)
            for chunk in chunks:
                if time.monotonic() > end:
                    raise self._errors.no_reply_in_time()
                exchanged.body += len(chunk)
                body.feed(chunk)
            received = Response(response.status_code, headers, body.end())
            verdict = _verdict(self._doubled, request, response, received)
            if verdict or _has_more(response):
                response.extensions["network_stream"].close()
            return received, verdict

    @contextmanager
    def _open(self, request: Request) -> Iterator[tuple[httpx.Response, Iterator[bytes]]]:
        import httpx

        http = self._http or self._of_this_thread()
        if isinstance(http, httpx.Client):
            built = _build(http, request, self._extensions)
            response = http.send(built, stream=True, follow_redirects=False)
        else:
            response = http.handle_request(_build(None, request, self._extensions))
        with closing(response):
            if response.is_stream_consumed:  # a hook or a mock has read, and unpacked, it
                response.headers.pop("content-encoding", None)
                chunks = iter([response.content])
            else:
                chunks = response.iter_raw()
            yield response, chunks

    def _exchanged(self) -> Exchanged:
        """What this thread has got of its response."""
        found: Exchanged | None = getattr(self._own, "exchanged", None)
        if found is None:
            from .httpcore_stream import Exchanged

            found = self._own.exchanged = Exchanged()
        return found

    def _close_idle(self) -> None:
        """Close the connections of threads that wait for a row: they hold file descriptors."""
        with self._lock:  # with which no thread begins a request
            for thread, own in self._opened:
                if thread not in self._at_work:
                    own.close()  # it opens another one with its next request

    def _of_this_thread(self) -> httpx.HTTPTransport:
        own: httpx.HTTPTransport | None = getattr(self._own, "http", None)
        if own is None:
            from .httpcore_stream import BoundedBackend

            own = self._own.http = _own_http(self._proxy, self._tls)
            own._pool._network_backend = BoundedBackend(self._exchanged(), self._errors.flooded)
            self._opened.append((threading.get_ident(), own))
        return own

    def close(self) -> None:
        """Close the connections that were opened here; not those of a user's client.

        What is still on its way (for an attempt that was abandoned) is aborted.
        """
        self.abort()
        for _, own in self._opened:
            own.close()


def _frames() -> dict[int, FrameType]:
    """What every thread does now.

    Python 3.11 holds the lock of its list of threads meanwhile. A garbage collection within it may
    let another thread run, which waits for that lock when it starts or ends a thread, and keeps
    all others from running: the process hangs (python/cpython#106883, fixed in 3.11.12; later
    versions do not collect here).
    """
    if sys.version_info >= (3, 12):
        return sys._current_frames()
    with _COLLECTOR:
        enabled = gc.isenabled()
        try:
            gc.disable()
            return sys._current_frames()
        finally:
            if enabled:
                gc.enable()


def _socket_in(frame: FrameType | None) -> socket.socket | None:
    """The innermost socket that a thread holds which is in :meth:`HttpxTransport.send`."""
    while frame is not None and frame.f_code is not HttpxTransport.send.__code__:
        for value in list(frame.f_locals.values()):
            kind = type(value)  # to ask the value itself might run code of its own
            if hasattr(kind, "get_extra_info"):  # a network stream
                value = value.get_extra_info("socket")
                kind = type(value)
            if issubclass(kind, socket.socket):
                found: socket.socket = value
                return found
        frame = frame.f_back
    return None


def _own_http(proxy: str | None, tls: ssl.SSLContext | None) -> httpx.HTTPTransport:
    """A transport, for a client would log each URL, in which there may be a key."""
    import httpx

    return httpx.HTTPTransport(
        proxy=proxy,
        # Without TLS no certificates are needed, and loading them takes time.
        verify=tls or False,
        limits=httpx.Limits(
            max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE
        ),
        trust_env=False,
    )


def _has_more(response: httpx.Response) -> bool:
    """Whether bytes have come after the end of the response.

    Only h11 knows, and httpx does not pass it on; where it stands elsewhere, as in a mock, there
    is nothing to find.
    """
    link: Any = response.stream
    while link is not None and not hasattr(link, "_h11_state"):
        links = (
            getattr(link, name, None) for name in ("_stream", "_httpcore_stream", "_connection")
        )
        link = next(filter(None, links), None)
    return link is not None and bool(link._h11_state.trailing_data[0])


def _verdict(
    doubled: DoubledResponses, request: Request, response: httpx.Response, received: Response
) -> Verdict | None:
    """What is said of a response on its connection.

    HTTP/2 numbers its responses, and a mock has no connection.
    """
    connection = response.extensions.get("network_stream")
    if connection is None or response.extensions.get("http_version") == b"HTTP/2":
        return None
    return doubled.verdict(connection, request, received)


class HttpxAsyncTransport:
    """Carries requests on the running loop, over the user's ``AsyncClient`` or transport.

    Args: as for :class:`HttpxTransport`.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        http: httpx.AsyncClient | httpx.AsyncBaseTransport,
        timeout: float = 120.0,
        max_body: int = MAX_BODY,
        hint: str = HINT,
    ):
        self._errors = TransportErrors(endpoint, proxy=None, timeout=timeout, hint=hint)
        self._timeout = timeout
        self._max_body = max_body
        self._waits = _waits(timeout)
        self._http = http
        self._doubled = DoubledResponses()

    async def send(self, request: Request) -> Response:
        """Send one request and wait for the whole response. Raises ``ModelError`` kinds."""
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    response, verdict = await self._exchange(request)
                    if verdict != "ask again":
                        return response
        except Exception as error:  # noqa: BLE001 - what is not a library's comes back as it is
            raise from_httpx(error, self._errors) from None

    async def _exchange(self, request: Request) -> tuple[Response, Verdict | None]:
        """The next response, and what :class:`DoubledResponses` says of it."""
        async with self._open(request) as (response, chunks):
            headers = lower_headers(response.headers.multi_items())
            body = BoundedBody(headers, limit=self._max_body, where=self._errors.where)
            async for chunk in chunks:
                body.feed(chunk)
            received = Response(response.status_code, headers, body.end())
            verdict = _verdict(self._doubled, request, response, received)
            if verdict or _has_more(response):
                await response.extensions["network_stream"].aclose()
            return received, verdict

    @asynccontextmanager
    async def _open(
        self, request: Request
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[bytes]]]:
        import httpx

        if isinstance(self._http, httpx.AsyncClient):
            built = _build(self._http, request, self._waits)
            response = await self._http.send(built, stream=True, follow_redirects=False)
        else:
            response = await self._http.handle_async_request(_build(None, request, self._waits))
        try:
            if response.is_stream_consumed:  # a hook or a mock has read, and unpacked, it
                response.headers.pop("content-encoding", None)
                chunks = _once(response.content)
            else:
                chunks = response.aiter_raw()
            yield response, chunks
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Nothing to close: the client is the user's."""


def _waits(timeout: float) -> dict[str, dict[str, float]]:
    """The request extension by which httpx takes its four timeouts."""
    connect = min(timeout, CONNECT_TIMEOUT)
    return {"timeout": {"connect": connect, "read": timeout, "write": timeout, "pool": timeout}}


def _build(
    client: httpx.Client | httpx.AsyncClient | None,
    request: Request,
    extensions: dict[str, Any],
) -> httpx.Request:
    import httpx

    return (client.build_request if client is not None else httpx.Request)(
        "GET" if request.body is None else "POST",
        request.url,
        content=request.body,
        headers=HEADERS | dict(request.headers),
        extensions=extensions,
    )


async def _once(chunk: bytes) -> AsyncIterator[bytes]:
    yield chunk
