"""What aiohttp is told of its connections beyond its own rules.

Imported late, with aiohttp.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import aiohttp

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

__all__ = ["CarriedResponse", "CleanConnector"]


class CleanConnector(aiohttp.TCPConnector):
    """Closes a connection with unread bytes instead of using it again.

    aiohttp would take a response that arrived before the request for the request's own.
    """

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        #: how to see whether bytes have arrived, for connections that were used before
        self._used: WeakKeyDictionary[ResponseHandler, Callable[[int], object]] = (
            WeakKeyDictionary()
        )

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - theirs
    ) -> Connection:
        """A connection for a request; see :class:`aiohttp.BaseConnector`."""
        while True:
            connection = await super().connect(req, traces, timeout)
            carrier = connection.protocol
            assert carrier is not None
            has_more = self._used.get(carrier)
            if has_more is None:  # TLS may have sent tickets over a new one
                self._used[carrier] = _readable(carrier.transport)
                return connection
            if not carrier.should_close and not has_more(0):
                return connection
            connection.close()


class CarriedResponse(aiohttp.ClientResponse):
    """A response that knows its connection to the end.

    Attributes:
        carrier: the connection; aiohttp itself forgets it with the last byte.
    """

    carrier: ResponseHandler

    def start(self, connection: Connection) -> Coroutine[Any, Any, aiohttp.ClientResponse]:
        """Read the head; called by aiohttp."""
        assert connection.protocol is not None
        self.carrier = connection.protocol
        return super().start(connection)


def _readable(transport: asyncio.BaseTransport | None) -> Callable[[int], object]:
    """A function that says whether bytes, or the end, have arrived that the loop has not read yet.

    It takes the milliseconds to wait, 0. Without ``poll``, on Windows, the loop has a read under
    way at any time.
    """
    found = None if transport is None else transport.get_extra_info("socket")
    if found is None or found.fileno() < 0 or not hasattr(select, "poll"):
        return lambda wait: False
    poll = select.poll()
    poll.register(found.fileno(), select.POLLIN)
    return poll.poll
