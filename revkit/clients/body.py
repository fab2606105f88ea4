"""Request bodies and numbers in replies, as the JSON protocols write and read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..errors import UsageError
from ..task.chat import Message

__all__ = ["count", "encode", "static_body"]


def encode(static: bytes, messages: Sequence[Message]) -> bytes:
    """A request body: the JSON object ``static``, with the messages put in last."""
    try:
        encoded = orjson.dumps(messages)
    except TypeError:
        # Half of a surrogate pair, as files read with errors="surrogateescape" hold it, cannot
        # be sent in UTF-8; it is replaced as a browser would.
        encoded = orjson.dumps([{k: _whole(str(v)) for k, v in m.items()} for m in messages])
    return b'%b,"messages":%b}' % (static[:-1], encoded)


def static_body(fields: Mapping[str, Any], what: str) -> bytes:
    """Encode what is the same in every request of a run.

    Raises:
        UsageError: ``fields``, which the user gave as ``what``, are not JSON.
    """
    try:
        return orjson.dumps(fields)
    except TypeError:
        try:  # integers beyond 64 bits
            return json.dumps(fields, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise UsageError(f"{what} cannot be written as JSON: {error}") from None


def _whole(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def count(found: Any) -> int | None:
    """A number of tokens out of a reply, None where it is not one."""
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None
