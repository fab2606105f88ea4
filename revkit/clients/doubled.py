"""Responses that a proxy wrote twice.

HTTP/1.1 tells responses apart by their order alone. If one is written twice, each later request on
that connection gets the response to the request before it, and every row a wrong answer. Bytes
that arrive before the next request is sent close the connection. A copy that arrives later looks
like the next response; :class:`DoubledResponses` recognises it.

It cannot recognise a copy that differs from the original, nor one of a response that the server
gives to many requests: without an id or a time in them, two equal replies are no sign of anything.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

from .contract import Request, Response

__all__ = ["DoubledResponses", "Verdict"]

Verdict = Literal["close", "ask again"]

#: Headers and fields in which a response has its own number.
_ID_HEADER = re.compile(r"request-?id$|trace-?id$|^cf-ray$")
_ID = re.compile(rb'"(?i:(?:request|trace)?[_-]?id)"\s*:')


class DoubledResponses:
    """Finds responses that are byte for byte the one before them on their connection.

    Each body is suspected once: where the server gives it again, on another connection, it is what
    the server says to many requests. So a server that always says the same costs one request more.

    Any thread may call it. Connections are any objects that can be weakly referenced.

    >>> class Connection: ...
    >>> doubled, one, two = DoubledResponses(), Connection(), Connection()
    >>> reply = Response(200, {}, b'{"id": 1}')
    >>> doubled.verdict(one, Request("", b"a"), reply)
    >>> doubled.verdict(one, Request("", b"b"), reply)
    'ask again'
    >>> doubled.verdict(two, Request("", b"b"), reply)
    >>> doubled.verdict(two, Request("", b"c"), reply)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: by connection: its last request, a digest of the response, and the response's headers
        self._last: WeakKeyDictionary[Any, tuple[bytes | None, int, Mapping[str, str]]]
        self._last = WeakKeyDictionary()
        #: digests of responses that are not suspected any more
        self._common: set[int] = set()

    def verdict(self, connection: Any, request: Request, response: Response) -> Verdict | None:
        """Note the next response of a connection.

        Returns:
            None: it is no copy of the one before. ``"close"``: it is; close the connection.
            ``"ask again"``: close it, and send the request again on another one, because the row
            would get another row's reply.
        """
        # Python's own hash is keyed, and takes a microsecond for a usual reply.
        digest = hash((response.status, response.body))
        with self._lock:
            before = self._last.get(connection)
            self._last[connection] = request.body, digest, response.headers
            if before is None or before[1] != digest or before[2] != response.headers:
                return None
            if digest in self._common:
                return None
            self._common.add(digest)
            for other, (_, last, _) in self._last.items():
                if last == digest and other is not connection:
                    return None
        # A copy of the reply to the same request fits it as well.
        if before[0] == request.body or not _settles(response):
            return "close"
        return "ask again"


def _settles(response: Response) -> bool:
    """Whether a response would settle its row, and wrongly if it is another row's.

    An error without an id may be the server's answer to many requests, and most are retried.
    """
    return response.status < 300 or (
        response.status < 500
        and response.status not in (408, 409, 425, 429)
        and (
            any(_ID_HEADER.search(name) for name in response.headers)
            or _ID.search(response.body) is not None
        )
    )
