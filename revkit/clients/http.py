"""How requests travel: from threads over httpx, on the loop over aiohttp, or over the httpx client
that the user passes.

The layers are alike in every respect that a user can notice. One rule each:

- **Proxies** are read from the environment by ``network.proxy_for`` when a run opens its
  transport, and handed to the layer by name. Nothing else is taken from the environment, so
  ``.netrc`` is not read by one layer and ignored by another.
- **Redirects** are not followed: a key must not travel to another server. The response is
  returned, and the client makes it an error that names the target.
- **TLS** is always verified, with the certificates of ``network.tls_context``.
- **Compression**: gzip is asked for and unpacked by ``network.BoundedBody``, which bounds the
  body as it arrives.
- **Lengths**: what comes after the end of a response is no reply to anybody. httpx would take it
  for the next one, and so give a row the reply that a lying server made up; the connection is
  closed instead.
- **Time**: ``timeout`` bounds a whole exchange, ``CONNECT_TIMEOUT`` the making of a connection.
- **Connections**: at most one a worker, kept open between requests; cookies are dropped.
- **Faults**: never a library's exception, but ``ConnectionFailed`` (no connection, or it broke),
  ``AttemptTimeout`` or ``BadReply`` (not HTTP, too large), in the words of ``faults.Peer``.

A client or transport of httpx that the user passes keeps its own proxies, certificates, auth,
cookies and limits, and is never closed here; the other rules hold for it too. In threads httpx
bounds each wait for the network; the total is looked at whenever bytes of the body arrive.

On the loop a request is cancelled with its task. A thread cannot be cancelled, so
``HttpxTransport.abort`` shuts down the socket that it waits on. Three waits have none that could
be shut, and end by themselves, with nothing sent: for a name server (the system's limit), for a
connection that is being made where the system does not let it be shut down (not on Linux;
``CONNECT_TIMEOUT``), and for a place in the pool of a user's client that others keep busy
(``timeout``).
"""

from __future__ import annotations

import asyncio
import gc
import io
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

from .._version import __version__
from ..errors import UsageError
from .contract import Aborted, Request, Response
from .faults import Peer, from_aiohttp, from_httpx
from .network import BoundedBody, lower_headers, proxy_for, tls_context

if TYPE_CHECKING:
    import ssl

    import aiohttp
    import httpx

    UserHttp: TypeAlias = (
        httpx.Client | httpx.BaseTransport | httpx.AsyncClient | httpx.AsyncBaseTransport
    )

__all__ = ["AiohttpTransport", "HttpxAsyncTransport", "HttpxTransport", "engines_for"]

#: Seconds for making a connection, TLS included.
CONNECT_TIMEOUT = 10.0
#: Seconds after which an idle connection is not used again: less than the 5 s after which
#: uvicorn, and so vLLM, closes it, which would break the request that is just being sent.
KEEPALIVE = 4.0
#: Bytes of one body, decompressed.
MAX_BODY = 16 * 2**20
#: Bytes of a request's body that aiohttp sends in pieces, so that the loop does not stand still.
LONG_BODY = 2**20
#: Sent with every request, to proxies as well: no key may stand here.
HEADERS = {
    "accept": "application/json",
    "accept-encoding": "gzip",
    "user-agent": f"revkit/{__version__}",
}
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


def engines_for(http: UserHttp | None) -> tuple[str, ...]:
    """The engines that can use what the user passed as ``http=``, the preferred one first.

    Raises:
        UsageError: it is not a client or transport of httpx.
    """
    if http is None:
        return ("async", "thread")
    import httpx

    engines = []
    if isinstance(http, httpx.AsyncClient | httpx.AsyncBaseTransport):
        engines.append("async")
    if isinstance(http, httpx.Client | httpx.BaseTransport):
        engines.append("thread")
    if not engines:
        raise UsageError(
            "http= takes an httpx.Client, an httpx.AsyncClient or an httpx transport, not "
            f"{type(http).__name__}"
        )
    return tuple(engines)


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
        hint: str = "is the server running, and is the address right?",
    ):
        proxy = proxy_for(endpoint) if http is None else None
        self._peer = _peer(endpoint, proxy, timeout, hint)
        self._timeout = timeout
        self._max_body = max_body
        self._extensions = {**_waits(timeout), "trace": self._trace}
        self._http = http
        #: guards the two below
        self._lock = threading.RLock()  # httpcore may call back while garbage is collected
        self._aborted = False
        #: threads whose request may have a connection to itself
        self._at_work: set[int] = set()
        #: Ours, one for each thread: in a pool that threads share, httpcore may take a connection
        #: for idle that another thread has just begun to use, and close it under its hands.
        self._own = threading.local()
        self._opened: list[httpx.HTTPTransport] = []
        self._tls = _tls_for(endpoint) if http is None else None
        self._proxy = proxy

    def send(self, request: Request) -> Response:
        """Send one request and wait for the whole response. Raises ``ModelError`` kinds."""
        end = time.monotonic() + self._timeout
        with self._lock:
            self._at_work.add(threading.get_ident())
        try:
            self._go_on()
            with self._open(request) as (status, headers, chunks):
                body = BoundedBody(headers, limit=self._max_body, where=self._peer.where)
                for chunk in chunks:
                    if time.monotonic() > end:
                        raise self._peer.no_reply_in_time()
                    body.feed(chunk)
                return Response(status, headers, body.end())
        except Exception as error:  # noqa: BLE001 - what is not a library's comes back as it is
            self._go_on()
            raise from_httpx(error, self._peer) from None
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

    @contextmanager
    def _open(self, request: Request) -> Iterator[tuple[int, dict[str, str], Iterator[bytes]]]:
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
            yield response.status_code, lower_headers(response.headers.multi_items()), chunks
            if _has_more(response):
                response.extensions["network_stream"].close()

    def _of_this_thread(self) -> httpx.HTTPTransport:
        own: httpx.HTTPTransport | None = getattr(self._own, "http", None)
        if own is None:
            own = self._own.http = _own_http(self._proxy, self._tls)
            self._opened.append(own)
        return own

    def close(self) -> None:
        """Close the connections that were opened here; not those of a user's client.

        What is still on its way (for an attempt that was abandoned) is aborted.
        """
        self.abort()
        for own in self._opened:
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
        hint: str = "is the server running, and is the address right?",
    ):
        self._peer = _peer(endpoint, None, timeout, hint)
        self._timeout = timeout
        self._max_body = max_body
        self._waits = _waits(timeout)
        self._http = http

    async def send(self, request: Request) -> Response:
        """Send one request and wait for the whole response. Raises ``ModelError`` kinds."""
        try:
            async with asyncio.timeout(self._timeout):
                async with self._open(request) as (status, headers, chunks):
                    body = BoundedBody(headers, limit=self._max_body, where=self._peer.where)
                    async for chunk in chunks:
                        body.feed(chunk)
                    return Response(status, headers, body.end())
        except Exception as error:  # noqa: BLE001 - what is not a library's comes back as it is
            raise from_httpx(error, self._peer) from None

    @asynccontextmanager
    async def _open(
        self, request: Request
    ) -> AsyncIterator[tuple[int, dict[str, str], AsyncIterator[bytes]]]:
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
            yield response.status_code, lower_headers(response.headers.multi_items()), chunks
            if _has_more(response):
                await response.extensions["network_stream"].aclose()
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Nothing to close: the client is the user's."""


class AiohttpTransport:
    """Carries requests on the running loop, over aiohttp: a small part of the CPU of httpx's pool.

    Args: as for :class:`HttpxTransport`; and ``max_workers``, the most connections that are open
    at the same time.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        max_workers: int,
        timeout: float = 120.0,
        max_body: int = MAX_BODY,
        hint: str = "is the server running, and is the address right?",
    ):
        import aiohttp

        proxy = proxy_for(endpoint)
        self._peer = _peer(endpoint, proxy, timeout, hint)
        self._max_body = max_body
        self._proxy = proxy
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._deadline = _Deadline(timeout)
        self._urls: dict[str, Any] = {}  #: a run has one or two: parsing them is a tenth of a row
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=max_workers,
                keepalive_timeout=KEEPALIVE,
                ssl=_tls_for(endpoint) or True,
                socket_factory=self._socket,
            ),
            headers=HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def send(self, request: Request) -> Response:
        """Send one request and wait for the whole response. Raises ``ModelError`` kinds."""
        url = self._urls.get(request.url)
        if url is None:
            import yarl

            url = self._urls[request.url] = yarl.URL(request.url)
        task = asyncio.current_task()
        assert task is not None
        self._deadline.set(task)
        try:
            response = await self._session.request(
                "GET" if request.body is None else "POST",
                url,
                data=_payload(request.body),
                headers=request.headers,
                allow_redirects=False,
                proxy=self._proxy,
            )
            try:
                headers = lower_headers(response.headers.items())
                body = BoundedBody(headers, limit=self._max_body, where=self._peer.where)
                content = response.content
                body.feed(await content.readany())
                while not content.at_eof():
                    body.feed(await content.readany())
            except BaseException:
                response.release()  # at its end it is released by itself, and this costs time
                raise
            return Response(response.status, headers, body.end())
        except asyncio.CancelledError:
            if self._deadline.has_passed(task):
                raise self._peer.no_reply_in_time() from None
            raise
        except Exception as error:  # noqa: BLE001 - what is not a library's comes back as it is
            raise from_aiohttp(error, self._peer) from None
        finally:
            self._deadline.lift(task)

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        self._sockets.add(made)
        return made

    async def aclose(self) -> None:
        """Close the connections.

        Over TLS asyncio says goodbye on a connection that was broken off, and would wait half a
        minute for the server, which is busy, to say it too.
        """
        self._deadline.close()
        await self._session.close()
        for left in list(self._sockets):
            with suppress(OSError):  # it is closed
                left.shutdown(socket.SHUT_RDWR)


class _Deadline:
    """Cancels the task of a request that takes longer than ``seconds``.

    One timer serves all that are running. aiohttp's own, one for each request, and what goes with
    it take a twentieth of a row's CPU.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        #: by task, until when its request may run; who began first stands first
        self._running: dict[asyncio.Task[Any], float] = {}
        #: tasks that were cancelled here, and how many other cancellations they had before
        self._passed: dict[asyncio.Task[Any], int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def set(self, task: asyncio.Task[Any]) -> None:
        """Its request begins."""
        when = self._running[task] = time.monotonic() + self._seconds
        if self._timer is None:
            self._set_timer(when)

    def lift(self, task: asyncio.Task[Any]) -> None:
        """Its request is over, however it ended."""
        self._running.pop(task, None)
        if self._passed:
            self.has_passed(task)  # nobody has asked: it ended otherwise

    def has_passed(self, task: asyncio.Task[Any]) -> bool:
        """Whether a task was cancelled because of it, and for no other reason besides."""
        before = self._passed.pop(task, None)
        return before is not None and task.uncancel() <= before

    def _set_timer(self, when: float) -> None:
        delay = max(0.0, when - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        for task, when in list(self._running.items()):
            if when > now:
                self._set_timer(when)
                return
            del self._running[task]
            self._passed[task] = task.cancelling()
            task.cancel()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    """The body as aiohttp takes it without a warning, which it has for long bytes."""
    return body if body is None or len(body) <= LONG_BODY else io.BytesIO(body)


def _peer(endpoint: str, proxy: str | None, timeout: float, hint: str) -> Peer:
    return Peer(endpoint, proxy=proxy, timeout=timeout, connect_timeout=CONNECT_TIMEOUT, hint=hint)


def _tls_for(endpoint: str) -> ssl.SSLContext | None:
    return tls_context() if endpoint.startswith("https:") else None


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
