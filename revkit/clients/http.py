"""What all HTTP transports do alike: proxies, TLS, bodies, limits.

Requests travel from threads over httpx, on the loop over aiohttp, or over the httpx client that
the user passes. A user cannot tell the transports apart. One rule each:

- **Proxies**: a run reads them from the environment (``proxy_for``) when it opens its transport.
  Nothing else comes from the environment, so no transport reads ``.netrc``.
- **Redirects** are not followed, because a key must not travel to another server. The client
  turns the response into an error that names the target.
- **TLS** is always verified, with the certificates of ``tls_context``.
- **Compression**: transports ask for gzip. ``BoundedBody`` unpacks it, and bounds the body as it
  arrives, and how many values are in it.
- **Floods**: a response has at most ``MAX_OVERHEAD`` bytes beside its body.
- **Lengths**: bytes after the end of a response close the connection, also those that arrive while
  it is idle. Either library would take them for the next response, so a row could get a reply that
  was not meant for it. ``DoubledResponses`` recognises what arrives later still.
- **Time**: ``timeout`` bounds a whole exchange, ``CONNECT_TIMEOUT`` the making of a connection.
- **Connections**: at most one a worker, kept open between requests; cookies are dropped.
- **Faults** are ``ConnectionFailed`` (no connection, or it broke), ``AttemptTimeout`` or
  ``BadReply`` (not HTTP, too large), never a library's exception. ``TransportErrors`` words them.

An httpx client or transport that the user passes keeps its own proxies, certificates, auth,
cookies and limits, and is never closed here. The other rules hold for it too, but that on floods.
In threads it bounds each wait for the network; the total is checked whenever bytes of the body
arrive.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import urllib.parse
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .._version import __version__
from ..errors import BadReply, UsageError
from .redact import keys_in_path

if TYPE_CHECKING:
    import ssl

    import httpx

    UserHttp: TypeAlias = (
        httpx.Client | httpx.BaseTransport | httpx.AsyncClient | httpx.AsyncBaseTransport
    )

__all__ = [
    "Added",
    "BoundedBody",
    "added_by",
    "base_url",
    "display_url",
    "engines_for",
    "lower_headers",
    "proxy_for",
    "tls_context",
    "tls_for",
]

#: Seconds for making a connection, TLS included.
CONNECT_TIMEOUT = 10.0
#: Seconds after which an idle connection is not used again: less than the 5 s after which
#: uvicorn, and so vLLM, closes it, which would break the request that is just being sent.
KEEPALIVE = 4.0
#: Bytes of one body, decompressed.
MAX_BODY = 16 * 2**20
#: Bytes of one response that are not its body: informational responses, headers, chunk headers. Of
#: a gateway that sends each token as a chunk, they are enough for 60,000 tokens.
MAX_OVERHEAD = 2**19
#: Commas and opening brackets of one body: at most so many values are made of it. A reply with 20
#: log-probabilities of each of 6,000 tokens has as many. Empty lists would take 40 times their
#: bytes, and keep the interpreter from all other threads while they are made.
MAX_VALUES = 1_000_000
#: Sent with every request, to proxies as well: no key may stand here.
HEADERS = {
    "accept": "application/json",
    "accept-encoding": "gzip",
    "user-agent": f"revkit/{__version__}",
}
#: What to do where no connection can be made, if the client does not know better.
HINT = "is the server running, and is the address right?"


def engines_for(http: UserHttp | None) -> tuple[str, ...]:
    """The engines that can use what the user passed as ``http=``, the preferred one first.

    Raises:
        UsageError: it is not a client or transport of httpx.
    """
    if http is None:
        return ("async", "thread")
    import httpx

    engines = []
    if isinstance(http, httpx.AsyncClient | httpx.AsyncBaseTransport):
        engines.append("async")
    if isinstance(http, httpx.Client | httpx.BaseTransport):
        engines.append("thread")
    if not engines:
        raise UsageError(
            "http= takes an httpx.Client, an httpx.AsyncClient or an httpx transport, not "
            f"{type(http).__name__}"
        )
    return tuple(engines)


class Added(NamedTuple):
    """What a user's httpx client adds to each request."""

    headers: Sequence[tuple[str, str]] = ()
    query: Sequence[tuple[str, str]] = ()


#: httpx sends these by itself.
_OF_HTTPX = {"accept", "accept-encoding", "connection", "user-agent"}


def added_by(http: UserHttp | None) -> Added:
    """The headers and the query that the user set on an httpx client."""
    if http is None:
        return Added()
    import httpx

    if not isinstance(http, httpx.Client | httpx.AsyncClient):
        return Added()
    headers = [(name, value) for name, value in http.headers.items() if name not in _OF_HTTPX]
    return Added(headers, http.params.multi_items())


def display_url(url: str) -> str:
    """The URL as it may be shown: without credentials, query and fragment, and keys in the path.

    >>> display_url("https://me:secret@example.com:8443/v1/?key=secret")
    'https://example.com:8443/v1'
    >>> display_url("https://example.com/v1/sk-abc123/chat")
    'https://example.com/v1/[key]/chat'
    """
    parts = urllib.parse.urlsplit(url)
    keys = set(keys_in_path(parts.path))
    path = "/".join("[key]" if part in keys else part for part in parts.path.split("/"))
    return f"{parts.scheme}://{_host(parts)}{path.rstrip('/')}"


def base_url(url: str) -> str:
    """The URL as requests begin: without credentials, query and fragment."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{_host(parts)}{parts.path.rstrip('/')}"


def _host(parts: urllib.parse.SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for ``url``, or None.

    ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` in either case, and the system's
    settings on macOS and Windows. Loopback is never asked for through a proxy: the proxy's
    loopback is another machine's.

    Raises:
        UsageError: the proxy is not an HTTP proxy.
    """
    import urllib.request  # which loads ssl

    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    found = urllib.request.getproxies()
    proxy = found.get(parts.scheme) or found.get("all")
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = "http://" + proxy
    if not proxy.startswith("http://"):
        raise UsageError(
            f"the environment names the proxy {display_url(proxy)}, and revkit itself speaks to "
            "http:// proxies only: set NO_PROXY for this server, or pass as http= an httpx client "
            "that has the proxy"
        )
    return proxy


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def tls_context() -> ssl.SSLContext:
    """Certificates of ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``, else certifi's; always verified."""
    return _tls_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


def tls_for(endpoint: str) -> ssl.SSLContext | None:
    """The TLS settings for a server, None for one without TLS."""
    return tls_context() if endpoint.startswith("https:") else None


@functools.lru_cache(maxsize=4)  # loading a bundle takes some 20 ms
def _tls_context(cafile: str | None, capath: str | None) -> ssl.SSLContext:
    import ssl

    import certifi

    if not cafile and not capath:
        cafile = certifi.where()
    try:
        context = ssl.create_default_context(cafile=cafile or None, capath=capath or None)
    except OSError as error:
        raise UsageError(
            f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read: {error}"
        ) from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def lower_headers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by lower-case name; repeated ones joined by a comma.

    >>> lower_headers([("Via", "a"), ("Date", "today"), ("VIA", "b")])
    {'via': 'a, b', 'date': 'today'}
    """
    headers: dict[str, str] = {}
    for name, value in pairs:
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


class BoundedBody:
    """Collects the body of one response, decompressed, and never holds more than ``limit`` bytes.

    Layers hand in the bytes as they came over the network: decompressing here is what bounds a
    small body that would unpack to gigabytes, and it is the same for both layers.

    Raises (from any method): BadReply.
    """

    def __init__(self, headers: Mapping[str, str], *, limit: int, where: str):
        self._limit = limit
        self._where = where
        self._parts: list[bytes] = []
        self._size = self._packed = 0
        encoding = headers.get("content-encoding", "identity").strip().lower()
        self._unpack = None
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # finds the header by itself
        elif encoding not in ("identity", ""):
            raise _final(
                f"the reply of {where} is encoded in a way that was not asked for "
                "(Content-Encoding other than gzip); see what stands between"
            )
        announced = headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced[:19]) > limit:
            raise self._too_large()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        if self._unpack is not None:
            if self._unpack.eof and chunk:
                raise BadReply(f"the reply of {self._where} has bytes after its compressed end")
            self._packed += len(chunk)
            if self._packed > self._limit:  # of which little comes, or nothing
                raise self._too_large()
            try:
                chunk = self._unpack.decompress(chunk, self._limit - self._size + 1)
            except zlib.error:
                raise BadReply(f"the reply of {self._where} is not in the gzip format") from None
        self._size += len(chunk)
        if self._size > self._limit:
            self._parts.clear()
            raise self._too_large()
        self._parts.append(chunk)

    def end(self) -> bytes:
        """The whole body, once the last bytes have been fed."""
        if self._unpack is not None and not self._unpack.eof and self._size:
            raise BadReply(f"the compressed reply of {self._where} breaks off")
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if len(body) > MAX_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise _final(
                f"the reply of {self._where} has more than {MAX_VALUES:,} commas and brackets, "
                "more than any model's answer"
            )
        return body

    def _too_large(self) -> BadReply:
        return _final(
            f"the reply of {self._where} is larger than {self._limit:,} bytes, more than any "
            "model's answer"
        )


def _final(message: str) -> BadReply:
    """The error for a reply that would be the same the next time."""
    error = BadReply(message)
    error.transient = False
    return error
