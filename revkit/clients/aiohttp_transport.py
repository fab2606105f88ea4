"""The transport over aiohttp, for the event loop: a fraction of the CPU that httpx's pool takes.

The rules that it shares with httpx's stand in ``http``.
"""

from __future__ import annotations

import asyncio
import io
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from .contract import Request, Response
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
from .transport_errors import TransportErrors, from_aiohttp

if TYPE_CHECKING:
    import aiohttp

__all__ = ["AiohttpTransport"]

#: Bytes of a request's body that aiohttp sends in pieces, so that the loop does not stand still.
LONG_BODY = 2**20


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
        hint: str = HINT,
    ):
        import aiohttp

        from .aiohttp_connections import CarriedResponse, CleanConnector
        from .aiohttp_protocol import bound

        proxy = proxy_for(endpoint)
        self._errors = TransportErrors(endpoint, proxy=proxy, timeout=timeout, hint=hint)
        self._max_body = max_body
        self._proxy = proxy
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._deadline = _Deadline(timeout)
        self._doubled = DoubledResponses()
        self._urls: dict[str, Any] = {}  #: a run has one or two: parsing them is a tenth of a row
        connector = CleanConnector(
            limit=max_workers,
            keepalive_timeout=KEEPALIVE,
            ssl=tls_for(endpoint) or True,
            socket_factory=self._socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            response_class=CarriedResponse,
            headers=HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        bound(connector, self._errors.flooded)

    async def send(self, request: Request) -> Response:
        """Send one request and wait for the whole response. Raises ``ModelError`` kinds."""
        task = asyncio.current_task()
        assert task is not None
        self._deadline.set(task)
        try:
            while True:
                response, verdict = await self._exchange(request)
                if verdict != "ask again":
                    return response
        except asyncio.CancelledError:
            if self._deadline.has_passed(task):
                raise self._errors.no_reply_in_time() from None
            raise
        except Exception as error:  # noqa: BLE001 - what is not a library's comes back as it is
            raise from_aiohttp(error, self._errors) from None
        finally:
            self._deadline.lift(task)

    def _parsed(self, url: str) -> Any:
        import yarl

        found = self._urls[url] = yarl.URL(url)
        return found

    async def _exchange(self, request: Request) -> tuple[Response, Verdict | None]:
        """The next response, and what :class:`DoubledResponses` says of it."""
        response: Any = await self._session.request(
            "GET" if request.body is None else "POST",
            self._urls.get(request.url) or self._parsed(request.url),
            data=_payload(request.body),
            headers=request.headers,
            allow_redirects=False,
            proxy=self._proxy,
        )
        try:
            headers = lower_headers(response.headers.items())
            body = BoundedBody(headers, limit=self._max_body, where=self._errors.where)
            content = response.content
            body.feed(await content.readany())
            while not content.at_eof():
                body.feed(await content.readany())
        except BaseException:
            response.release()  # at its end it is released by itself, and this costs time
            raise
        received = Response(response.status, headers, body.end())
        verdict = self._doubled.verdict(response.carrier, request, received)
        if verdict:
            response.carrier.close()
        return received, verdict

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
