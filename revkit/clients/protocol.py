"""What the protocols over HTTP share: a client with an address and headers, JSON in and out, and
the one place where a status becomes an error.

A server may repeat what it was sent. So each response goes through :meth:`HttpClient.received`,
which takes the client's own keys out of it, and what is quoted of it through
:meth:`HttpClient.quote`, which takes out what else may be a key and bounds the length.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import math
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import (
    AccessDenied,
    BadReply,
    ModelError,
    ModelMissing,
    QuotaUsedUp,
    ServerError,
    UsageError,
    one_line,
)
from ..task.chat import Message
from .contract import AsyncTransport, Client, Request, Response, Transport
from .network import display_url
from .secret import Secret

if TYPE_CHECKING:
    from ..scheduling.limits import RateLimit
    from .http import UserHttp

__all__ = ["HttpClient", "count", "encode", "is_secret"]

#: Characters of a server's own message that are shown.
MAX_QUOTE = 300
#: Seconds; clocks and sockets cannot count for ever.
MAX_TIMEOUT = 1_000_000
#: Seconds for a question on the side.
_SHORT_TIMEOUT = 5.0
#: A key of fewer characters may be a word, such as the "ollama" that some libraries ask for: it
#: is taken out of messages, but the model's replies are left alone.
MIN_KEY = 16
#: Names of headers and options whose values are secrets.
_SECRET_NAME = re.compile(
    r"(?i)(^|[-_])((api[-_]?)?key|auth|authorization|token|secret|password|cookie|signature|sig)$"
)
#: Keys as they are commonly written, a masked one included.
_KEY = re.compile(r"(?i)\bbearer\s+[\w.~+/=*-]{8,}|\bsk-[\w.*-]{8,}")


def is_secret(name: str) -> bool:
    """Whether what goes by this name must not be shown or stored.

    >>> [is_secret(name) for name in ("X-Api-Key", "Authorization", "max_tokens")]
    [True, True, False]
    """
    return _SECRET_NAME.search(name) is not None


def public(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those that are secrets, at any depth.

    >>> public({"top_p": 1, "api_key": "k", "providers": [{"name": "n", "token": "t"}]})
    {'top_p': 1, 'providers': [{'name': 'n'}]}
    """

    def shown(value: Any) -> Any:
        if isinstance(value, Mapping):
            return public(value)
        return [*map(shown, value)] if isinstance(value, list | tuple) else value

    return {name: shown(value) for name, value in fields.items() if not is_secret(name)}


class HttpClient(Client):
    """Base of the clients that speak JSON over HTTP.

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

    timeout: float

    def __init__(
        self,
        *,
        name: str,
        model: str,
        url: str,
        headers: Mapping[str, str | Secret],
        body: Mapping[str, Any] | None,
        http: UserHttp | None,
        timeout: float,
        rate_limit: RateLimit | None,
        parameter: str,
        hint: str,
    ):
        from .http import engines_for

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
        #: As it may be shown and stored: without credentials and query.
        self.endpoint = self.provider = display_url(url)
        self._http = http
        self._parameter = parameter
        self._hint = hint
        self._query = f"?{parts.query}" if parts.query else ""
        self._headers = {"content-type": "application/json"}
        if parts.username is not None:
            pair = f"{parts.username}:{parts.password or ''}"
            login = base64.b64encode(urllib.parse.unquote_to_bytes(pair)).decode()
            self._headers["authorization"] = f"Basic {login}"
        for key, value in headers.items():
            read = value.read() if isinstance(value, Secret) else value
            self._headers[key.lower()] = _header(key, read)
        secrets = {
            *_of_url(parts),
            *_of_headers(self._headers.items()),
            *_of_httpx(http),
            *_of_fields(body or {}),
        }
        keys = [secret for secret in secrets if len(secret) >= MIN_KEY]
        self._secrets, self._keys = _spellings(secrets), _spellings(keys)
        #: Without any of these words in it, a response holds no key.
        self._words = [_longest_word(key).encode() for key in keys]

    def arguments(self) -> dict[str, Any]:
        """What another process needs to make the same client; may hold keys."""
        raise TypeError(f"{type(self).__name__} does not implement arguments()")

    def __reduce__(self) -> tuple[Any, ...]:
        """A client travels by its arguments, and without a key: what reads one travels.

        Raises:
            UsageError: an argument holds a key in the clear, or connections of this process.
        """
        arguments = self.arguments()
        if arguments.pop("http", None) is not None:
            raise UsageError(
                f"{self!r} was given http=, which holds connections of this process and cannot be "
                "sent to another one; leave http= out"
            )
        for name, value in arguments.items():
            if _in_clear(name, value, self._parameter):
                raise UsageError(
                    f"{self!r} was given a key in {name}=, and keys are not sent to other "
                    'processes: say where each finds it, with revkit.Secret(env="…") or '
                    'revkit.Secret(file="…") in api_key= or headers=; OPENAI_API_KEY is read '
                    "where it is used anyway"
                )
        return _made_again, (type(self), arguments)

    def __copy__(self) -> HttpClient:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: Any) -> HttpClient:
        return self.__copy__()

    def url(self, path: str) -> str:
        """Absolute URL of a path under the endpoint."""
        return f"{self.endpoint}{path}{self._query}"

    def transport(self, *, max_workers: int) -> Transport:
        import httpx

        from .http import HttpxTransport

        if self._http is None or isinstance(self._http, httpx.Client | httpx.BaseTransport):
            return HttpxTransport(
                self.endpoint,
                http=self._http,
                timeout=self.timeout,
                hint=self._hint,
            )
        raise UsageError(
            'an httpx.AsyncClient given as http= runs on engine="async"; for threads, give an '
            "httpx.Client"
        )

    async def async_transport(self, *, max_workers: int) -> AsyncTransport:
        from .http import AiohttpTransport, HttpxAsyncTransport

        if self._http is None:
            return AiohttpTransport(
                self.endpoint, max_workers=max_workers, timeout=self.timeout, hint=self._hint
            )
        import httpx

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
        asking = copy.copy(self)
        asking.timeout = min(self.timeout, _SHORT_TIMEOUT)
        try:
            with contextlib.closing(asking.transport(max_workers=1)) as transport:
                return self.decode(transport.send(Request(self.url(path), headers=self._headers)))
        except ModelError:
            return {}

    # -- reading responses --------------------------------------------------------------------

    def received(self, response: Response) -> Response:
        """The response without the keys that were sent, for the server may have repeated them.

        Before anything is read of it, so that a key is never cut in two, and stands neither in a
        message nor in what a run keeps: a reply that repeats a key has "[key]" in its place.
        """
        if not any(word in response.body for word in self._words):
            return response
        text = response.body.decode("utf-8", "surrogateescape")
        body = self._keys.sub("[key]", text).encode("utf-8", "surrogateescape")
        return response._replace(body=body)

    def quote(self, text: str) -> str:
        """A server's words as they may be shown: on one line, bounded, without keys."""
        text = text[: 64 * MAX_QUOTE]  # what comes later is not shown, and may be megabytes
        text = one_line(_KEY.sub("[key]", self._secrets.sub("[key]", text)))
        return text if len(text) <= MAX_QUOTE else text[:MAX_QUOTE].rstrip() + " …"

    def decode(self, response: Response) -> dict[str, Any]:
        """The JSON object of a successful response.

        Raises:
            ServerError: the status is not success.
            BadReply: there is no JSON object.
        """
        if not 200 <= response.status < 300:
            raise self.failure(response)
        try:
            found = orjson.loads(response.body)
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        said = self.quote(response.body[: 4 * MAX_QUOTE].decode("utf-8", "replace"))
        raise BadReply(
            f"{self.endpoint} answered with something else than a JSON object: "
            f"{said or 'nothing'}; is it the address of the model's server?",
            status=response.status,
        )

    def failure(self, response: Response, *, status: int | None = None) -> ServerError:
        """The error that a response stands for; ``status`` overrides the response's own."""
        status = response.status if status is None else status
        where = self.endpoint
        said = self.quote(error_message(response.body))
        quoted = f': "{said}"' if said else ""
        if 300 <= status < 400:
            target = self._redirect(response.headers.get("location", ""))
            return ServerError(
                f"{where} redirects to {target} ({status}), and redirects are not followed, so "
                "that no key travels to another server; if that is the right address, pass it as "
                f"{self._parameter}=",
                status=status,
            )
        if status in (401, 403):
            return AccessDenied(
                f"{where} denied access ({status}){quoted}; {self.access_hint()}", status=status
            )
        if status == 429 and self.is_quota_used_up(response):
            return QuotaUsedUp(
                f"{where} says that the quota is used up{quoted}; raise it at your provider, or "
                "use another key or model",
                status=status,
            )
        if self.is_model_missing(response, status):
            return ModelMissing(
                f"{where} does not have the model {self.model!r}{quoted}; {self.model_hint()}",
                status=status,
            )
        if status == 404:
            quoted += f"; is {self._parameter}= right?"
        return ServerError(
            f"{where} answered {status}{quoted}{_advice(status)}",
            status=status,
            pause=asked_pause(response),
        )

    def _redirect(self, location: str) -> str:
        """Where a redirect points, as what the user would have to pass instead."""
        if not location:
            return "nowhere"
        target = display_url(urllib.parse.urljoin(self.url(self.path), location))
        return self.quote(target.removesuffix(self.path))

    # -- what a protocol fills in -------------------------------------------------------------

    #: The path of chat requests under the endpoint.
    path: str

    def is_model_missing(self, response: Response, status: int) -> bool:
        """Whether an error response says that the server does not have the model."""
        if status != 404:
            return False
        said = error_message(response.body).lower()
        return "model" in said and ("not found" in said or "not exist" in said)

    def is_quota_used_up(self, response: Response) -> bool:
        """Whether a 429 says that no waiting helps."""
        return False

    def model_hint(self) -> str:
        """What to do where the model is missing."""
        return "see which models the server has"

    def access_hint(self) -> str:
        """What to do where access is denied."""
        return "pass what the server asks for in headers="


def _made_again(kind: type[HttpClient], arguments: dict[str, Any]) -> HttpClient:
    return kind(**arguments)


def _in_clear(name: str, value: Any, url: str) -> bool:
    """Whether an argument of a client holds a key itself."""
    if name == url:
        return any(_of_url(_split(value, name)))
    if name == "api_key":
        return isinstance(value, str) and bool(value)
    if isinstance(value, Mapping):
        return any(_of_fields({k: v for k, v in value.items() if not isinstance(v, Secret)}))
    return False


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


def _of_url(parts: urllib.parse.SplitResult) -> Iterator[str]:
    """What is secret in a URL: the password, or a user without one, and what a query holds."""
    login = parts.password or parts.username
    if login:
        yield urllib.parse.unquote(login)
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if is_secret(name) or len(value) >= MIN_KEY:
            yield from (value, urllib.parse.unquote(value))


def _of_headers(headers: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Values of the headers that are secret, with and without their scheme."""
    for name, value in headers:
        if is_secret(name):
            yield from (value, value.rpartition(" ")[2])


def _of_httpx(http: UserHttp | None) -> Iterator[str]:
    """What a client of the user's adds to each request; auth other than ``Basic`` is its own."""
    if http is None:
        return
    import httpx

    if isinstance(http, httpx.Client | httpx.AsyncClient):
        yield from _of_headers(http.headers.items())
        yield from _of_fields(dict(http.params))
        yield from (cookie.value or "" for cookie in http.cookies.jar)
        if isinstance(http.auth, httpx.BasicAuth):
            request = next(http.auth.auth_flow(httpx.Request("POST", "http://localhost")))
            yield from _of_headers(request.headers.items())


def _of_fields(fields: Mapping[str, Any]) -> Iterator[str]:
    """Values of the fields that are secret, at any depth."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _of_fields(value)
        elif isinstance(value, list | tuple):
            yield from _of_fields({str(place): item for place, item in enumerate(value)})
        elif isinstance(value, str) and is_secret(name):
            yield value


def _spellings(secrets: Iterable[str]) -> re.Pattern[str]:
    """Finds the secrets, longest first, however a server spells them: libraries on the way quote
    the same URL in different ways, and JSON may stand in JSON.

    >>> _spellings(["a/b+c"]).sub("[key]", r"a/b+c a%2fb+c a/b%2Bc a\\/b+c a\\u002fb+c")
    '[key] [key] [key] [key] [key]'
    """

    def spelt(char: str) -> str:
        if char.isascii() and char.isalnum():
            return char
        quoted = urllib.parse.quote(char, safe="")
        quoted = quoted if "%" in quoted else f"%{ord(char):02x}"
        # So many backslashes and no more: a body of nothing else would be read at each of them.
        slashes = r"\\{0,8}"
        return rf"(?:{slashes}{re.escape(char)}|(?i:{quoted})|(?i:{slashes}u{ord(char):04x}))"

    longest_first = sorted(filter(None, secrets), key=len, reverse=True)
    return re.compile("|".join("".join(map(spelt, secret)) for secret in longest_first) or r"\b\B")


def _longest_word(secret: str) -> str:
    """A part that all spellings share."""
    words: list[str] = re.findall("[A-Za-z0-9]*", secret)
    return max(words, key=len)
