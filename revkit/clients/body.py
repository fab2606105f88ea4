"""Request and response bodies, as the JSON protocols write and read them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..errors import UsageError
from ..task.chat import Message

__all__ = ["decoded", "encode", "static_body"]


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

    Half of a surrogate pair, raw or escaped, becomes U+FFFD, and so do bytes that are no UTF-8:
    that costs a character, not the row.
    """
    try:
        return orjson.loads(body)
    except ValueError:
        pass
    try:
        return _mended(json.loads(_text(body), parse_constant=_no_number))
    except (ValueError, RecursionError):
        return None


def _text(body: bytes) -> str:
    """The text of a body, in which halves of surrogate pairs stand as they are."""
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode("utf-8", "surrogatepass")
    except ValueError:
        return body.decode("utf-8", "replace")


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
