"""The bound on what a response may have beside its body, on the connections of aiohttp.

aiohttp reads on for as long as bytes come: informational responses, or chunk headers. A server that
sends them as fast as it can would keep the loop to itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from .http import MAX_OVERHEAD

__all__ = ["bound"]


def bound(connector: aiohttp.BaseConnector, flooded: Callable[[], Exception]) -> None:
    """Bound the responses on a connector's connections.

    Args:
        flooded: makes the error where too much came that is no body.
    """
    make: Callable[..., ResponseHandler] = _Protocol
    connector._factory = partial(make, flooded, asyncio.get_running_loop())


class _Protocol(ResponseHandler):
    def __init__(self, flooded: Callable[[], Exception], loop: asyncio.AbstractEventLoop):
        super().__init__(loop)
        self._flooded = flooded
        self._wire = 0  #: bytes that came since the last request

    def set_response_params(self, **options: Any) -> None:
        """A request begins."""
        self._wire = 0
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wire += len(data)
        if self._wire > MAX_OVERHEAD:
            self._look()

    def _look(self) -> None:
        payload = self._payload
        if self._wire - (0 if payload is None else payload.total_bytes) <= MAX_OVERHEAD:
            return
        error = self._flooded()
        if self.transport is not None:
            self.transport.abort()
        self.set_exception(error)
        if payload is not None and payload.exception() is None:
            payload.set_exception(error)
            self._payload = None  # else it gets another error when the connection is lost
