"""Request bodies and numbers in replies, as the JSON protocols write and read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..errors import UsageError
from ..task.chat import Message

__all__ = ["count", "decoded", "encode", "static_body"]

#: A higher number of tokens is none: no prompt and no reply has a billion.
_MOST_TOKENS = 10**9


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


def decoded(body: bytes) -> Any:
    """The JSON value in a response; None where there is none.

    Half of a surrogate pair, raw or escaped, becomes U+FFFD: it costs a character, not the row.
    """
    try:
        return orjson.loads(body)
    except ValueError:
        pass
    try:
        return _mended(json.loads(body.decode("utf-8", "surrogatepass"), parse_constant=_no_number))
    except (ValueError, RecursionError):
        return None


def _no_number(name: str) -> Any:
    raise ValueError(name)


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else _whole(value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_whole(name): _mended(item) for name, item in value.items()}
    return value


def _whole(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def count(found: Any) -> int | None:
    """A number of tokens out of a reply, None where it is not one."""
    if isinstance(found, bool) or not isinstance(found, int):
        return None
    return found if 0 <= found <= _MOST_TOKENS else None
