"""The one place where an HTTP status becomes an error, with what the server says about it."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING

from ..errors import AccessDenied, ModelMissing, QuotaUsedUp, ServerError
from .contract import Response
from .error_body import error_body
from .http import display_url
from .pause import asked_pause, latest_reset, should_retry

if TYPE_CHECKING:
    from .http_client import HttpClient

__all__ = ["status_error"]


def status_error(
    client: HttpClient, response: Response, status: int | None = None, *, answered: bool = False
) -> ServerError:
    """The error that a response stands for, as :meth:`HttpClient.failure` says."""
    status = response.status if status is None else status
    where = client.endpoint
    body = error_body(response.body)
    message = client.quote(body.words)
    quoted = f': "{message}"' if message else ""
    if 300 <= status < 400:
        target = _redirect_target(client, response)
        if target is None:
            location = client.quote(response.headers["location"].rpartition("@")[2])
            return ServerError(
                f'{where} redirects to "{location}" ({status}), which is no address of a server; '
                f"is {client.parameter}= right? If it is, see what stands before the server",
                status=status,
            )
        return ServerError(
            f"{where} redirects to {target} ({status}), and redirects are not followed, so "
            "that no key travels to another server; if that is the right address, pass it as "
            f"{client.parameter}=",
            status=status,
        )
    if client.is_quota_used_up(response, status):
        return QuotaUsedUp(
            f"{where} says that no quota or credit is left ({status}){quoted}; raise it at your "
            "provider, or use another key or model",
            status=status,
        )
    if body.is_bad_key(status):
        return _denied(client, status, quoted, key=True)
    if client.is_model_missing(response, status):
        return ModelMissing(
            f"{where} does not have the model {client.model!r}{quoted}; {client.model_hint()}",
            status=status,
        )
    if status == 403:
        return _denied(client, status, quoted, key=False, answered=answered)
    if body.is_too_large(status):
        return ServerError(
            f"{where} does not take a request of so many tokens ({status}){quoted}; shorten the "
            "row's text, lower max_tokens=, or ask your provider for more tokens a minute",
            status=status,
            retry=False,
        )
    if status == 404 and not answered:
        quoted += f"; is {client.parameter}= right?"
    code = f"{response.status} with an error {status}" if response.status < 300 else status
    return ServerError(
        f"{where} answered {code}{quoted}{_advice(status)}",
        status=status,
        pause=asked_pause(response, status),
        reset=latest_reset(response),
        retry=should_retry(response),
    )


def _denied(
    client: HttpClient, status: int, quoted: str, *, key: bool, answered: bool = False
) -> AccessDenied:
    """
    Args:
        key: the server does not accept the key, so that no row can go well; else it may be about
            this row's text.
        answered: others went well with this key.
    """
    hint = client.access_hint()
    if answered and not key:
        hint = "other rows were answered, so see this row's text"
    error = AccessDenied(
        f"{client.endpoint} denied access ({status}){quoted}; {hint}", status=status
    )
    error.denied = not key
    return error


def _redirect_target(client: HttpClient, response: Response) -> str | None:
    """Where a redirect points, as what the user would have to pass instead.

    None: it names no address that could be passed.
    """
    location = response.headers.get("location", "")
    if not location:
        return "nowhere"
    try:
        target = urllib.parse.urljoin(client.url(client.path), location)
        parts = urllib.parse.urlsplit(target)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            return None
    except ValueError:  # a broken IPv6 address, a port that is no number
        return None
    return client.quote(display_url(target).removesuffix(client.path))


def _advice(status: int) -> str:
    """What to do about a status."""
    if status == 429:
        return "; it wants fewer requests: use fewer workers (max_workers=)"
    if status in (400, 413, 422):
        return "; it did not take this request: see the row's text, and the client's options"
    return "; see the server's log" if status >= 500 else ""
