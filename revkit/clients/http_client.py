"""The base of the clients that speak JSON over HTTP: an address, headers, and JSON in and out.

A server may repeat what it was sent. So each response goes through :meth:`HttpClient.received`,
which takes the client's own keys out of it, and text for messages through
:meth:`HttpClient.quote`. ``redact`` has the rules, and ``status`` the errors.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import inspect
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from ..errors import BadReply, ModelError, UsageError
from .body import decoded
from .contract import AsyncTransport, Client, Finding, Request, Response, Transport
from .error_body import error_body
from .http import HINT, added_by, base_url, display_url, engines_for
from .redact import (
    MAX_QUOTE,
    Redactor,
    digest_of,
    is_secret,
    keys_in_fields,
    keys_in_headers,
    keys_in_httpx,
    keys_in_url,
)
from .secret import Secret
from .status import status_error
from .too_long import too_long

if TYPE_CHECKING:
    from ..scheduling.limits import RateLimit
    from .http import UserHttp

__all__ = ["HttpClient"]

#: Seconds; clocks and sockets cannot count for ever.
MAX_TIMEOUT = 1_000_000
#: Seconds for a question on the side.
_SHORT_TIMEOUT = 5.0
#: Models that are named of one server.
_LISTED = 8


class HttpClient(Client):
    """Base of the clients that speak JSON over HTTP.

    A subclass defines ``path``, ``session()`` and ``settings()``; ``docs/clients.md`` has one. The
    arguments of its constructor have names, by which it is pickled.

    Args:
        name: what reports call the model.
        model: the model's name at the server.
        url: where the server is; credentials in it become a ``Basic`` header, and a query is sent
            with every request. Neither is ever shown.
        headers: sent with every request; one of the user's goes before one of ours.
        body: the user's own fields of each request's body, which may hold keys as well.
        http: an httpx client or transport of the user's, which carries the requests.
        timeout: seconds for one whole exchange.
        rate_limit: of all runs that use the client.
        parameter: the name under which the user gave ``url``, for messages.
        hint: what to do where no connection can be made.

    Raises:
        UsageError: the URL, a header, ``http`` or ``timeout`` cannot be used.
    """

    #: The path of chat requests under the endpoint.
    path: str
    #: Where the server lists its models: path, field of the list, field of a name. None: nowhere.
    model_list: tuple[str, str, str] | None = None
    timeout: float
    #: Its address as it may be shown, and the argument it came from; a traceback may ask for its
    #: repr before it is made.
    endpoint = ""
    parameter = "base_url"
    #: The arguments as they were given: a client is pickled as these.
    _given: tuple[tuple[Any, ...], dict[str, Any]]
    #: Arguments that are pickled in another form, such as one that the environment decided.
    _fixed: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self._given, self._fixed = (args, kwargs), {}
        return self

    def __init__(
        self,
        *,
        name: str,
        model: str,
        url: str,
        headers: Mapping[str, str | Secret] | None = None,
        body: Mapping[str, Any] | None = None,
        http: UserHttp | None = None,
        timeout: float = 120.0,
        rate_limit: RateLimit | None = None,
        parameter: str = "base_url",
        hint: str = HINT,
    ):
        if not model or not isinstance(model, str):
            raise UsageError('model= is the model\'s name at the server, such as "llama3.2:3b"')
        if not (isinstance(timeout, int | float) and 0 < timeout <= MAX_TIMEOUT):
            raise UsageError(
                f"timeout= is a number of seconds above 0 and up to {MAX_TIMEOUT:,}, "
                f"not {timeout!r}"
            )
        self.name = name
        self.model = model
        self.engines = engines_for(http)
        self.timeout = float(timeout)
        self.rate_limit = rate_limit
        parts = _split(url, parameter)
        self._base = base_url(url)
        self._http = http
        self.parameter = parameter
        self._hint = hint
        self._query = f"?{parts.query}" if parts.query else ""
        self._headers = {"content-type": "application/json"}
        if parts.username is not None:
            pair = f"{parts.username}:{parts.password or ''}"
            login = base64.b64encode(urllib.parse.unquote_to_bytes(pair)).decode()
            self._headers["authorization"] = f"Basic {login}"
        shown = []
        for key, value in (headers or {}).items():
            read = value.read() if isinstance(value, Secret) else value
            self._headers[key.lower()] = _header(key, read)
            if not isinstance(value, Secret):
                shown.append((key, read))
        query = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
        added = added_by(http)
        self._routing = digest_of([*shown, *added.headers], [*query, *added.query])
        self._redactor = Redactor(
            {
                *keys_in_url(parts),
                *keys_in_headers(self._headers.items()),
                *keys_in_httpx(http),
                *keys_in_fields(body or {}),
            }
        )
        #: As it may be shown and stored: without keys, credentials and query.
        self.endpoint = self.provider = self._redactor.url(display_url(url))

    def key_settings(self) -> dict[str, Any]:
        """:meth:`settings`, and a digest of the user's headers and query without keys, if any."""
        settings = self.settings()
        return settings if self._routing is None else {"routing": self._routing, **settings}

    def arguments(self) -> dict[str, Any]:
        """The arguments that make the same client in another process, by name; may hold keys."""
        args, kwargs = self._given
        signature = inspect.signature(type(self))
        arguments = signature.bind(*args, **kwargs).arguments
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name, {})
        return arguments | {k: v for k, v in self._fixed.items() if k in signature.parameters}

    def replace(self, **changes: Any) -> Self:
        """The same client with other arguments. Raises UsageError if it does not take them."""
        arguments = self.arguments() | changes
        try:
            inspect.signature(type(self)).bind(**arguments)
        except TypeError as error:
            raise UsageError(f"{self!r}: {error}") from None
        return type(self)(**arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        """A client is pickled as its arguments, without a key; a :class:`Secret` is pickled.

        Raises:
            UsageError: an argument holds a key in the clear, or connections of this process.
        """
        if self._http is not None:
            raise UsageError(
                f"{self!r} was given http=, which holds connections of this process and cannot be "
                "sent to another one; leave http= out"
            )
        # Not in variables of this function, which tracebacks may show.
        for name in [name for name, value in self.arguments().items() if _holds_key(name, value)]:
            raise UsageError(
                f"{self!r} was given a key in {name}=, and keys are not sent to other "
                'processes: say where each finds it, with revkit.Secret(env="…") or '
                'revkit.Secret(file="…") in api_key= or headers=; OPENAI_API_KEY is read '
                "where it is used anyway"
            )
        arguments = self.arguments()
        arguments.pop("http", None)
        return _with_arguments, (type(self), arguments)

    def __copy__(self) -> HttpClient:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: Any) -> HttpClient:
        return self.__copy__()

    def url(self, path: str) -> str:
        """Absolute URL of a path under the endpoint."""
        return f"{self._base}{path}{self._query}"

    def request(self, path: str, body: bytes | None = None) -> Request:
        """A request to a path under the endpoint, with the client's headers."""
        return Request(self.url(path), body, self._headers)

    def transport(self, *, max_workers: int) -> Transport:
        import httpx

        from .httpx_transport import HttpxTransport

        if self._http is None or isinstance(self._http, httpx.Client | httpx.BaseTransport):
            return HttpxTransport(
                self.endpoint, http=self._http, timeout=self.timeout, hint=self._hint
            )
        raise UsageError(
            'an httpx.AsyncClient given as http= runs on engine="async"; for threads, give an '
            "httpx.Client"
        )

    async def async_transport(self, *, max_workers: int) -> AsyncTransport:
        if self._http is None:
            from .aiohttp_transport import AiohttpTransport

            return AiohttpTransport(
                self.endpoint, max_workers=max_workers, timeout=self.timeout, hint=self._hint
            )
        import httpx

        from .httpx_transport import HttpxAsyncTransport

        if isinstance(self._http, httpx.AsyncClient | httpx.AsyncBaseTransport):
            return HttpxAsyncTransport(
                self.endpoint, http=self._http, timeout=self.timeout, hint=self._hint
            )
        raise UsageError(
            'an httpx.Client given as http= runs on engine="thread"; for the event loop, give an '
            "httpx.AsyncClient"
        )

    def get(self, path: str) -> dict[str, Any]:
        """What the server says of itself; empty where it says nothing in a few seconds.

        A client that was given an ``httpx.AsyncClient`` does not ask.
        """
        if "thread" not in self.engines:
            return {}
        try:
            return self.ask(path)
        except ModelError:
            return {}

    def ask(self, path: str) -> dict[str, Any]:
        """What the server answers to ``GET path`` within a few seconds.

        Raises:
            ModelError: its kinds.
            UsageError: the client was given an ``httpx.AsyncClient``.
        """
        asking = copy.copy(self)
        asking.timeout = min(self.timeout, _SHORT_TIMEOUT)
        with contextlib.closing(asking.transport(max_workers=1)) as transport:
            return self.decode(self.received(transport.send(self.request(path))))

    def check(self) -> Finding:
        """Ask the server which models it has."""
        if self.model_list is None:
            return super().check()
        path, field, name = self.model_list
        try:
            listed = self.ask(path).get(field)
        except (ModelError, UsageError) as error:
            return Finding(False, str(error))
        models = [
            self.quote(str(model[name]))
            for model in (listed if isinstance(listed, list) else ())
            if isinstance(model, dict) and name in model
        ]
        if not models:
            return Finding(
                False, f"{self.endpoint} answers, and has no models", self.no_models_hint()
            )
        more = f" and {len(models) - _LISTED} more" if len(models) > _LISTED else ""
        return Finding(
            True, f"{self.endpoint} has {', '.join(models[:_LISTED])}{more}", models=models
        )

    # -- reading responses --------------------------------------------------------------------

    def received(self, response: Response) -> Response:
        """The response without the keys that were sent (:meth:`Redactor.body`)."""
        body = self._redactor.body(response.body)
        return response if body is response.body else replace(response, body=body)

    def quote(self, text: str) -> str:
        """A server's words as they may be shown (:meth:`Redactor.quote`)."""
        return self._redactor.quote(text)

    def decode(self, response: Response) -> dict[str, Any]:
        """The JSON object of a successful response.

        Raises:
            ServerError: the status is not success.
            BadReply: there is no JSON object.
        """
        if not 200 <= response.status < 300:
            raise self.failure(response)
        found = decoded(response.body)
        if isinstance(found, dict):
            return found
        raise BadReply(
            f"{self.not_an_object(response)}; is it the address of the model's server?",
            status=response.status,
        )

    def not_an_object(self, response: Response) -> str:
        """What a response is that should have been a JSON object, for an error."""
        text = self.quote(response.body[: 4 * MAX_QUOTE].decode("utf-8", "replace"))
        return (
            f"{self.endpoint} answered with something else than a JSON object: {text or 'nothing'}"
        )

    def failure(
        self, response: Response, *, status: int | None = None, answered: bool = False
    ) -> ModelError:
        """The error that a response stands for.

        Args:
            status: overrides the response's own.
            answered: the server has given good replies before, so that its address is right.
        """
        refused = too_long(
            response.status if status is None else status,
            response.body,
            max_tokens=self.max_tokens,
            is_ollama=self.provider == "ollama",
        )
        return refused or status_error(self, response, status, answered=answered)

    # -- what a protocol fills in -------------------------------------------------------------

    def is_model_missing(self, response: Response, status: int) -> bool:
        """Whether an error response says that the server does not have the model."""
        return error_body(response.body).is_model_missing(status, self.model)

    def is_quota_used_up(self, response: Response, status: int) -> bool:
        """Whether an error response says that no quota or no money is left."""
        return error_body(response.body).is_out_of_credit(status)

    def model_hint(self) -> str:
        """What to do where the model is missing."""
        return "see which models the server has"

    def no_models_hint(self) -> str:
        """What to do where the server has no models."""
        return "the server has no model loaded; load one there"

    def access_hint(self) -> str:
        """What to do where access is denied."""
        return "pass what the server asks for in headers="

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, {self.parameter}={self.endpoint!r})"


def _with_arguments(kind: type[HttpClient], arguments: dict[str, Any]) -> HttpClient:
    return kind(**arguments)


def _holds_key(name: str, value: Any) -> bool:
    """Whether an argument of a client holds a key itself, rather than a :class:`Secret`."""
    if isinstance(value, str):
        in_url = "://" in value and any(keys_in_url(urllib.parse.urlsplit(value)))
        return in_url or (bool(value) and is_secret(name))
    if isinstance(value, Mapping):
        return any(keys_in_fields({k: v for k, v in value.items() if not isinstance(v, Secret)}))
    return False


def _split(url: str, parameter: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is not a number, a broken IPv6 address
        usable = False
    if not usable:
        # Where it cannot be read, a password in it may stand anywhere before the last "@".
        shown = re.split("[?#]", url.rpartition("@")[2])[0]
        hint = "; in a password, write / as %2F, ? as %3F and # as %23" if "@" in url else ""
        raise UsageError(
            f"{parameter}= is not a URL such as http://127.0.0.1:8000/v1: {shown!r}{hint}"
        )
    return parts


def _header(name: str, value: Any) -> str:
    """Check one header; a value is never shown."""
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise UsageError(f"the header {name!r} must be one line of ASCII text")
    if not re.fullmatch(r"[!#$%&'*+.^`|~\w-]+", name, re.ASCII):
        raise UsageError(f"{name!r} is not a name of a header")
    return value
