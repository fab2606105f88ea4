"""Keys are taken out of everything that is shown or kept.

A server may repeat what it was sent. :class:`Redactor` takes a client's own keys out of whole
responses, before anything is read of them, and keys of any kind out of the text that messages
quote. Everything that decides what is a key lives here.
"""

from __future__ import annotations

import hashlib
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import one_line

if TYPE_CHECKING:
    from .http import UserHttp

__all__ = [
    "MAX_QUOTE",
    "Redactor",
    "digest_of",
    "is_secret",
    "keys_in_fields",
    "keys_in_headers",
    "keys_in_httpx",
    "keys_in_url",
    "public",
    "without_keys",
]

#: Characters of a server's own message that are shown.
MAX_QUOTE = 300
#: A key of fewer characters may be a word, such as the "ollama" that some libraries ask for: it
#: is taken out of messages, but the model's replies are left alone.
MIN_KEY = 16
#: The parts of a name: ``xAuthToken``, ``X-Auth-Token`` and ``X_AUTH_TOKEN`` have the same.
_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
#: A name that ends in one of these is a secret's.
_SECRETS = {
    *("key", "secret", "secrets", "password", "passwords", "passwd", "passphrase", "pwd"),
    *("auth", "oauth", "authorization", "authentication", "bearer", "jwt", "assertion"),
    *("credential", "credentials", "cookie", "cookies", "signature", "sig"),
    *("sessionid", "apikey", "apikeys", "authkey", "accesskey", "secretkey", "privatekey"),
    *("authtoken", "apitoken", "accesstoken", "refreshtoken", "bearertoken", "sessiontoken"),
    "clientsecret",
}
#: Before ``keys``, ``tokens`` or ``id`` one of these says that they are secrets. Alone, and after
#: any other word, ``tokens`` are counted.
_SECRET_KEYS = {
    *("api", "access", "auth", "secret", "private", "signing", "encryption", "subscription"),
    *("virtual", "provider", "service", "client", "account", "admin", "master", "ssh"),
}
_SECRET_TOKENS = {
    *("api", "access", "auth", "secret", "private", "bearer", "refresh", "session", "security"),
    *("csrf", "xsrf", "jwt", "oauth", "personal", "service", "client"),
}
#: Before ``token`` one of these says that a model's vocabulary is meant.
_VOCABULARY = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "stop", "start", "end", "max"}
#: Keys as they are commonly written, a masked one included.
_KEY = re.compile(r"(?i)\bbearer\s+[\w.~+/=*-]{8,}|\bsk-[\w.*-]{8,}")


def is_secret(name: str) -> bool:
    """Whether a value under this name must not be shown, stored or hashed.

    The last word of the name decides.

    >>> [is_secret(name) for name in ("X-Api-Key", "accessToken", "api_keys", "max_tokens")]
    [True, True, True, False]
    """
    found: list[str] = _PARTS.findall(name)
    words = ["", "", *map(str.lower, found)]
    before, last = words[-2:]
    if last == "keys":
        return before in _SECRET_KEYS or not before
    if last == "tokens":
        return before in _SECRET_TOKENS
    if last == "id":
        return before == "session"
    if last == "token":
        return before not in _VOCABULARY
    return last in _SECRETS


def without_keys(text: str) -> str:
    """A text without what is commonly written as a key.

    >>> without_keys("route to a, Bearer abcdefgh1234")
    'route to a, [key]'
    """
    return _KEY.sub("[key]", text)


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


class Redactor:
    """Replaces the keys of one client by ``[key]``.

    Args:
        secrets: what the client sends that must not be shown.
    """

    def __init__(self, secrets: Iterable[str]):
        secrets = set(secrets)
        keys = [secret for secret in secrets if len(secret) >= MIN_KEY]
        self._secrets, self._keys = _spellings(secrets), _spellings(keys)
        #: Without any of these words in it, a response holds no key.
        self._words = [_longest_word(key).encode() for key in keys]

    def body(self, body: bytes) -> bytes:
        """A whole response without the keys that were sent; the same object if it has none.

        Before anything is read of it, so that a key is never cut in two, and stands neither in a
        message nor in what a run keeps: a reply that repeats a key has "[key]" in its place.
        """
        if not any(word in body for word in self._words):
            return body
        text = body.decode("utf-8", "surrogateescape")
        return self._keys.sub("[key]", text).encode("utf-8", "surrogateescape")

    def quote(self, text: str) -> str:
        """A server's words as they may be shown: on one line, bounded, without keys."""
        text = text[: 64 * MAX_QUOTE]  # what comes later is not shown, and may be megabytes
        text = one_line(without_keys(self._secrets.sub("[key]", text)))
        return text if len(text) <= MAX_QUOTE else text[:MAX_QUOTE].rstrip() + " …"


def keys_in_url(parts: urllib.parse.SplitResult) -> Iterator[str]:
    """What is secret in a URL: the password, or a user without one, and what a query holds."""
    login = parts.password or parts.username
    if login:
        yield urllib.parse.unquote(login)
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if is_secret(name) or len(value) >= MIN_KEY:
            yield from (value, urllib.parse.unquote(value))


def keys_in_headers(headers: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Values of the headers that are secret, with and without their scheme."""
    for name, value in headers:
        if is_secret(name):
            yield from (value, value.rpartition(" ")[2])


def digest_of(headers: Iterable[tuple[str, str]], query: Iterable[tuple[str, str]]) -> str | None:
    """A digest of the headers and of the query that hold no secret; None where there are none.

    A gateway may choose the model by them. Keys within a value do not count either.
    """
    parts = [
        sorted(
            (name.lower(), without_keys(value)) for name, value in headers if not is_secret(name)
        ),
        sorted(
            ((name, without_keys(value)) for name, value in query if not is_secret(name)),
            key=lambda pair: pair[0],  # of one name, the order may count
        ),
    ]
    if not any(parts):
        return None
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def keys_in_httpx(http: UserHttp | None) -> Iterator[str]:
    """What a client of the user's adds to each request; auth other than ``Basic`` is its own."""
    if http is None:
        return
    import httpx

    if isinstance(http, httpx.Client | httpx.AsyncClient):
        yield from keys_in_headers(http.headers.items())
        yield from keys_in_fields(dict(http.params))
        yield from (cookie.value or "" for cookie in http.cookies.jar)
        if isinstance(http.auth, httpx.BasicAuth):
            request = next(http.auth.auth_flow(httpx.Request("POST", "http://localhost")))
            yield from keys_in_headers(request.headers.items())


def keys_in_fields(fields: Mapping[str, Any]) -> Iterator[str]:
    """Values of the fields that are secret, at any depth."""

    def below(value: Any, secret: bool) -> Iterator[str]:
        if isinstance(value, Mapping):
            for name, item in value.items():
                yield from below(item, secret or is_secret(name))
        elif isinstance(value, list | tuple):
            for item in value:
                yield from below(item, secret)
        elif isinstance(value, str) and secret:
            yield value

    yield from below(fields, False)


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
