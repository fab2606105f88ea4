"""What both HTTP layers do alike: which proxy, which certificates, how large a body may be.

Pure but for reading the environment: nothing here opens a connection.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import urllib.parse
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..errors import BadReply, UsageError

if TYPE_CHECKING:
    import ssl

__all__ = ["BoundedBody", "display_url", "lower_headers", "proxy_for", "tls_context"]


def display_url(url: str) -> str:
    """The URL as it may be shown: without credentials, query and fragment, which can hold keys.

    >>> display_url("https://me:secret@example.com:8443/v1/?key=secret")
    'https://example.com:8443/v1'
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


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
        self._size = 0
        encoding = headers.get("content-encoding", "identity").strip().lower()
        self._unpack = None
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # finds the header by itself
        elif encoding not in ("identity", ""):
            raise BadReply(
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
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _too_large(self) -> BadReply:
        return BadReply(
            f"the reply of {self._where} is larger than {self._limit:,} bytes, more than any "
            "model's answer; is the address that of the model's server?"
        )
