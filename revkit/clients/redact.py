"""Keys are taken out of everything that is shown or kept.

A server may repeat what it was sent. :class:`Redactor` takes a client's own keys out of whole
responses, before anything is read of them, and keys of any kind out of the text that messages
quote. Everything that decides what is a key lives here.
"""

from __future__ import annotations

import base64
import functools
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
    "keys_in_path",
    "keys_in_url",
    "public",
    "without_keys",
    "without_secrets",
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
    *("credential", "credentials", "cookie", "cookies", "signature", "sig", "passcode", "otp"),
    *("pat", "sas", "dsn", "csrf", "xsrf"),
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
#: A letter, digit or the like that JSON, a URL or a page spells in another way. Quotes and
#: backslashes are none of them: a body stays JSON when they are written plainly.
_ESCAPED = re.compile(
    r"\\{1,8}u00(?!22|5c)([2-7][0-9a-f])|%(?!22|5c)([2-7][0-9a-f])"
    r"|&#0{0,8}(?!34|92)([3-9]\d|1[01]\d|12[0-6]);|&#x0{0,8}(?!22|5c)([2-7][0-9a-f]);",
    re.IGNORECASE,
)
#: How the names of variables begin that package clients read.
_PACKAGE_CLIENTS = ("PIP_", "UV_", "NETRC")
#: Fields that name the header or variable whose value stands beside them.
_NAMES = ("name", "key", "header", "header_name")
#: A part of a URL's path that is a key, as providers write theirs.
_PATH_KEY = re.compile(
    r"(?:sk|pk|rk|key)[-_](?=.*\d)[\w.*~-]{5,}|(?:xai|nvapi|pplx|glpat)-[\w-]{10,}"
    r"|(?:gsk|hf|gh[a-z]|github_pat|r8|fw|tgp|lsv2)_\w{10,}|AIza[\w-]{20,}|AKIA[A-Z0-9]{12,}"
    r"|eyJ[\w-]+(?:\.[\w-]*){2,}",
    re.IGNORECASE | re.ASCII,
)
_URL_SAFE = str.maketrans("+/", "-_")
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
    if words[-1] in ("value", "header"):  # of what is named before
        del words[-1]
    before, last = words[-2:]
    if last == "string":
        return before == "connection"
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
        if isinstance(value, list | tuple):
            return [*map(shown, value)]
        return without_keys(value) if isinstance(value, str) else value

    secret = _secret_fields(fields)
    return {name: shown(value) for name, value in fields.items() if name not in secret}


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program that needs no key: without the variables that hold one.

    What package clients are told of their own index stays; a keyring of theirs needs the session's
    address, which no secret name has.

    >>> without_secrets({"OPENAI_API_KEY": "k", "PIP_INDEX_URL": "https://me:k@host", "HOME": "/"})
    {'PIP_INDEX_URL': 'https://me:k@host', 'HOME': '/'}
    """
    return {
        name: value
        for name, value in environment.items()
        if name.upper().startswith(_PACKAGE_CLIENTS)
        or not (is_secret(name) or _PATH_KEY.fullmatch(value) or _KEY.fullmatch(value))
    }


def _secret_fields(fields: Mapping[str, Any]) -> set[str]:
    """Names of the fields that are secret.

    >>> _secret_fields({"name": "Authorization", "value": "Bearer me"})
    {'value'}
    """
    secret = {name for name in fields if is_secret(name)}
    if any(isinstance(said := fields.get(name), str) and is_secret(said) for name in _NAMES):
        secret.update({"value", "values"}.intersection(fields))
    return secret


class Redactor:
    """Replaces the keys of one client by ``[key]``.

    Args:
        secrets: what the client sends that must not be shown.
    """

    def __init__(self, secrets: Iterable[str]):
        given = {secret for secret in secrets if secret}
        self._all = given.union(map(_unescaped, given))
        long = [secret for secret in self._all if len(secret) >= MIN_KEY]
        bare = [secret for secret in long if " " not in secret]  # without a scheme before it
        self._long = [*long, *(part for secret in bare for part in _within_base64(secret))]
        #: Without any of these words in it, a response holds no key.
        self._words = list({_longest_word(key) for key in self._long})
        self._as_bytes = [word.encode() for word in self._words]

    # Compiled where they are needed: most runs never see a key come back, and some keys are long.

    @functools.cached_property
    def _secrets(self) -> re.Pattern[str]:
        return _spellings(self._all.union(self._long))

    @functools.cached_property
    def _keys(self) -> re.Pattern[str]:
        return _spellings(self._long)

    def body(self, body: bytes) -> bytes:
        """A whole response without the keys that were sent; the same object if it has none.

        Before anything is read of it, so that a key is never cut in two, and stands neither in a
        message nor in what a run keeps: a reply that repeats a key has "[key]" in its place.
        """
        if not self._words:
            return body
        if b"\\u00" not in body and b"%" not in body and b"&#" not in body:
            if not any(word in body for word in self._as_bytes):
                return body
            text = body.decode("utf-8", "surrogateescape")
        else:
            text = _unescaped(body.decode("utf-8", "surrogateescape"))
            if not any(word in text for word in self._words):
                return body
        text, found = self._keys.subn("[key]", text)
        return text.encode("utf-8", "surrogateescape") if found else body

    def url(self, url: str) -> str:
        """An address without the keys."""
        found = any(word in url for word in self._words)
        return self._keys.sub("[key]", url) if found else url

    def quote(self, text: str) -> str:
        """A server's words as they may be shown: on one line, bounded, without keys."""
        text = text[: 64 * MAX_QUOTE]  # what comes later is not shown, and may be megabytes
        hushed, found = self._secrets.subn("[key]", _unescaped(text))
        text = one_line(without_keys(hushed if found else text))
        return text if len(text) <= MAX_QUOTE else text[:MAX_QUOTE].rstrip() + " …"


def keys_in_url(parts: urllib.parse.SplitResult) -> Iterator[str]:
    """What is secret in a URL: the password, or a user without one; keys in path and query."""
    login = parts.password or parts.username
    if login:
        yield urllib.parse.unquote(login)
    yield from keys_in_path(parts.path)
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if is_secret(name) or len(value) >= MIN_KEY:
            yield from (value, urllib.parse.unquote(value))


def keys_in_path(path: str) -> Iterator[str]:
    """The parts of a URL's path that are keys: by their form, or by the part before them.

    >>> list(keys_in_path("/v1/sk-abc123/chat")), list(keys_in_path("/token/n7Yxq3Wb/v1"))
    (['sk-abc123'], ['n7Yxq3Wb'])
    """
    before = ""
    for part in path.split("/"):
        named = is_secret(before) and len(part) >= 8 and re.search(r"\d", part)
        if named or _PATH_KEY.fullmatch(urllib.parse.unquote(part)):
            yield part
        before = part


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
            names = _secret_fields(value)
            for name, item in value.items():
                yield from below(item, secret or name in names)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from below(item, secret)
        elif isinstance(value, str):
            yield from [value] if secret else (found[0] for found in _KEY.finditer(value))

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


def _within_base64(secret: str) -> Iterator[str]:
    """How a text of which the secret is a part, such as ``user:key``, holds it in base64.

    Three bytes make four characters, so there are three ways, by the length of what is before it.

    >>> login = base64.b64encode(b"user:a-long-secret").decode()
    >>> [part in login for part in _within_base64("a-long-secret")]
    [False, False, True]
    """
    for before in range(3):
        held = bytes(before) + secret.encode("utf-8", "surrogatepass")
        start, end = (before * 8 + 5) // 6, len(held) * 8 // 6
        part = base64.b64encode(held).decode()[start:end]
        yield from {part, part.translate(_URL_SAFE)}


def _unescaped(text: str) -> str:
    """The text with all of ASCII as it is, but for quotes and backslashes.

    >>> _unescaped("k%65y, &#107;ey, &#x6b;ey, %22")
    'key, key, key, %22'
    """

    def plain(found: re.Match[str]) -> str:
        decimal = found[3]
        return chr(int(decimal) if decimal else int(found[found.lastindex or 0], 16))

    return _ESCAPED.sub(plain, text)


def _longest_word(secret: str) -> str:
    """A part that all spellings share."""
    words: list[str] = re.findall("[A-Za-z0-9]*", secret)
    return max(words, key=len)
