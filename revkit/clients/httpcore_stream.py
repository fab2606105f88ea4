"""The bounds on one response, on the connections that threads open over httpcore.

httpcore reads on for as long as bytes come: informational responses, a header, or chunk headers.
Each of its waits may take the whole timeout anew.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Any

import httpcore

from .http import MAX_OVERHEAD

__all__ = ["BoundedBackend", "Exchanged"]


class Exchanged:
    """What has come of the response that a thread waits for.

    Attributes:
        end: until when it may come, on the monotonic clock.
        wire: bytes that were read from the connection.
        body: bytes of the body among them, as far as they were taken.
    """

    def __init__(self) -> None:
        self.begin(0.0)

    def begin(self, end: float) -> None:
        self.end = end
        self.wire = self.body = 0


class BoundedBackend(httpcore.NetworkBackend):
    """Makes the connections of one thread.

    Args:
        exchanged: of that thread.
        flooded: makes the error where too much came that is no body.
    """

    def __init__(self, exchanged: Exchanged, flooded: Callable[[], Exception]):
        self._inner = httpcore.SyncBackend()
        self._exchanged = exchanged
        self._flooded = flooded

    def connect_tcp(self, *args: Any, **options: Any) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(*args, **options)
        return _BoundedStream(stream, self._exchanged, self._flooded)


class _BoundedStream(httpcore.NetworkStream):
    def __init__(
        self,
        inner: httpcore.NetworkStream,
        exchanged: Exchanged,
        flooded: Callable[[], Exception],
    ):
        self._inner = inner
        self._exchanged = exchanged
        self._flooded = flooded

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        exchanged = self._exchanged
        left = exchanged.end - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout
        if exchanged.wire - exchanged.body > MAX_OVERHEAD:
            raise self._flooded()
        data = self._inner.read(max_bytes, left if timeout is None else min(timeout, left))
        exchanged.wire += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        secure = self._inner.start_tls(ssl_context, server_hostname, timeout)
        return _BoundedStream(secure, self._exchanged, self._flooded)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
