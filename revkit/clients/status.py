"""The one place where an HTTP status becomes an error, with what the server says about it."""

from __future__ import annotations

import math
import re
import urllib.parse
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson

from ..errors import AccessDenied, ModelMissing, QuotaUsedUp, ServerError
from .contract import Response
from .http import display_url
from .redact import MAX_QUOTE

if TYPE_CHECKING:
    from .http_client import HttpClient

__all__ = ["asked_pause", "error_message", "status_error"]


def status_error(client: HttpClient, response: Response, status: int | None = None) -> ServerError:
    """The error that a response stands for; ``status`` overrides the response's own."""
    status = response.status if status is None else status
    where = client.endpoint
    message = client.quote(error_message(response.body))
    quoted = f': "{message}"' if message else ""
    if 300 <= status < 400:
        target = _redirect_target(client, response)
        return ServerError(
            f"{where} redirects to {target} ({status}), and redirects are not followed, so "
            "that no key travels to another server; if that is the right address, pass it as "
            f"{client.parameter}=",
            status=status,
        )
    if status in (401, 403):
        return AccessDenied(
            f"{where} denied access ({status}){quoted}; {client.access_hint()}", status=status
        )
    if status == 429 and client.is_quota_used_up(response):
        return QuotaUsedUp(
            f"{where} says that the quota is used up{quoted}; raise it at your provider, or "
            "use another key or model",
            status=status,
        )
    if client.is_model_missing(response, status):
        return ModelMissing(
            f"{where} does not have the model {client.model!r}{quoted}; {client.model_hint()}",
            status=status,
        )
    if status == 404:
        quoted += f"; is {client.parameter}= right?"
    return ServerError(
        f"{where} answered {status}{quoted}{_advice(status)}",
        status=status,
        pause=asked_pause(response),
    )


def _redirect_target(client: HttpClient, response: Response) -> str:
    """Where a redirect points, as what the user would have to pass instead."""
    location = response.headers.get("location", "")
    if not location:
        return "nowhere"
    target = display_url(urllib.parse.urljoin(client.url(client.path), location))
    return client.quote(target.removesuffix(client.path))


def _advice(status: int) -> str:
    """What to do about a status."""
    if status == 429:
        return "; it wants fewer requests: use fewer workers (max_workers=)"
    if status in (400, 413, 422):
        return "; it did not take this request: see the row's text, and the client's options"
    return "; see the server's log" if status >= 500 else ""


def asked_pause(response: Response) -> float | None:
    """Seconds for which a response asks not to be asked again, None where it does not say.

    ``retry-after-ms`` is OpenAI's; ``Retry-After`` has seconds or a date (RFC 9110, 10.2.3). A
    date is read against the response's own ``Date``, so that the two clocks need not agree.

    >>> asked_pause(Response(429, {"retry-after": "2.5"}, b""))
    2.5
    """
    headers = response.headers
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    when, now = _date(headers.get("retry-after")), _date(headers.get("date"))
    if when is None:
        return None
    now = datetime.now(UTC) if now is None else now
    return max(0.0, (when - now).total_seconds())


def _date(text: str | None) -> datetime | None:
    if not text:
        return None
    import email.utils  # late: few servers ask for a pause, and it takes milliseconds

    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter from a time zone without end
        return None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def error_message(body: bytes) -> str:
    """The message in an error response: of the common shapes of JSON, else the text itself.

    >>> error_message(b'{"error": {"message": "no such model", "code": 404}}')
    'no such model'
    """
    text = body[: 16 * MAX_QUOTE].decode("utf-8", "replace")
    try:
        found = orjson.loads(body)
    except ValueError:
        return re.sub(r"(?s)<(style|script).*?</\1>|<[^>]*>", " ", text)
    while isinstance(found, dict):
        found = next(
            (found[key] for key in ("error", "message", "detail", "msg") if found.get(key)), None
        )
    return found if isinstance(found, str) else text
