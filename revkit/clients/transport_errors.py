"""Errors of connections, the same for every HTTP library.

Each library has its own tree of exceptions and its own words for the same fault. Here each fault
has one class and one sentence, which says whose fault it is and what to do.
"""

from __future__ import annotations

import os
import socket
from typing import TypeVar

from ..errors import AttemptTimeout, BadReply, ConnectionFailed, ModelError, RevkitError
from .descriptors import are_few, is_no_descriptor
from .http import CONNECT_TIMEOUT, MAX_OVERHEAD, display_url

__all__ = ["TransportErrors", "from_aiohttp", "from_httpx"]


class TransportErrors:
    """Makes the errors of connections to one server.

    Messages never quote the server or a library: either might repeat a key.

    Args:
        endpoint: its URL; shown without credentials and query.
        proxy: the proxy on the way, if any.
        timeout: seconds for one whole exchange.
        hint: what to do where no connection can be made.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        proxy: str | None,
        timeout: float,
        hint: str,
    ):
        self.where = display_url(endpoint)
        self._through = f" through the proxy {display_url(proxy)}" if proxy else ""
        self._timeout = timeout
        self._connect_timeout = min(timeout, CONNECT_TIMEOUT)
        self._hint = hint

    def no_descriptor(self) -> ConnectionFailed:
        failure = ConnectionFailed(
            f"no connection to {self.where}{self._through}: this process has too many open files "
            "and connections; raise its limit (ulimit -n), or set max_workers= to fewer"
        )
        failure.no_room = True
        return _unsent(failure)

    def unreachable(self, error: BaseException) -> ConnectionFailed:
        reason, hint = _reason(error)
        return _unsent(
            ConnectionFailed(
                f"cannot connect to {self.where}{self._through}: {reason}; {hint or self._hint}"
            )
        )

    def refused_by_proxy(self) -> ConnectionFailed:
        return _unsent(
            ConnectionFailed(
                f"cannot connect to {self.where}{self._through}: the proxy refused; check its "
                "address and password, or name the server in NO_PROXY"
            )
        )

    def broken(self, error: BaseException) -> ConnectionFailed:
        reason, _ = _reason(error, otherwise="it was closed")
        return ConnectionFailed(
            f"the connection to {self.where}{self._through} broke before the whole reply had "
            f"arrived: {reason}; the server or the network dropped it, so see the server's log"
        )

    def no_connection_in_time(self) -> AttemptTimeout:
        return _unsent(
            AttemptTimeout(
                f"no connection to {self.where}{self._through} within {self._connect_timeout:g} s; "
                f"{self._hint}"
            )
        )

    def no_reply_in_time(self) -> AttemptTimeout:
        return AttemptTimeout(
            f"no whole reply from {self.where}{self._through} within {self._timeout:g} s; raise "
            "the client's timeout=, or use fewer workers if the server is overloaded"
        )

    def flooded(self) -> BadReply:
        return BadReply(
            f"{self.where}{self._through} sent more than {MAX_OVERHEAD:,} bytes around the reply: "
            "informational responses, headers or tiny chunks without end; see the server's log"
        )

    def not_http(self) -> BadReply:
        return BadReply(f"what {self.where}{self._through} sent is not valid HTTP")

    def wrong_loop(self, error: BaseException) -> ConnectionFailed:
        failure = ConnectionFailed(
            f"the httpx.AsyncClient given as http= belongs to another event loop ({error}); use "
            "await df.llm.aparallel_map(...), which runs on the loop of the caller, or "
            'parallel_map(..., loop="notebook")'
        )
        failure.ends_run = True  # every other row would fail in the same way
        return _unsent(failure)

    def other(self, error: BaseException) -> ConnectionFailed:
        words = str(error) if isinstance(error, RuntimeError) else ""  # it holds no URL
        return _unsent(
            ConnectionFailed(
                f"the request to {self.where}{self._through} could not be sent "
                f"({': '.join(filter(None, [type(error).__name__, words]))}); "
                "check the address, the headers and the client given as http="
            )
        )


_E = TypeVar("_E", bound=ModelError)


def _unsent(error: _E) -> _E:
    """The error, of a request that did not go out."""
    error.sent = False
    return error


def _reason(error: BaseException, *, otherwise: str = "") -> tuple[str, str]:
    """Why the operating system said no, and a hint of its own, out of any library's error.

    Libraries word and nest the same fault differently, so the words come from its root.
    """
    import ssl

    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    for link in reversed(chain):
        if isinstance(link, ssl.SSLCertVerificationError):
            return (
                f"its TLS certificate was not accepted ({link.verify_message})",
                "if it is a certificate of your own, name its authority in SSL_CERT_FILE",
            )
        if isinstance(link, ssl.SSLError):
            return f"TLS failed ({link.reason})", "is it http:// rather than https://?"
        if isinstance(link, socket.gaierror):
            return "its name cannot be resolved", ""
        if isinstance(link, OSError) and link.errno and not isinstance(link, TimeoutError):
            return os.strerror(link.errno).lower(), ""
    return otherwise or "no connection", ""


def from_httpx(error: Exception, errors: TransportErrors) -> Exception:
    """One of our errors for one of httpx, or of httpcore where a transport lets it through."""
    return _without_frames(error, _from_httpx(error, errors))


def from_aiohttp(error: Exception, errors: TransportErrors) -> Exception:
    """One of our errors for one of aiohttp."""
    return _without_frames(error, _from_aiohttp(error, errors))


def _without_frames(error: Exception, made: Exception) -> Exception:
    """The error that was made of another one, without the library's frames.

    Requests, URLs and headers stand in their variables, and so does the key: tools that show a
    traceback with its variables would show it.
    """
    if isinstance(made, RevkitError):
        link: BaseException | None = error
        while link is not None and link.__traceback__ is not None:
            link.__traceback__ = None
            link = link.__cause__ or link.__context__
    return made


def _from_httpx(error: Exception, errors: TransportErrors) -> Exception:
    names = {cls.__name__ for cls in type(error).__mro__}
    if _is_out_of_descriptors(error):
        return errors.no_descriptor()
    if "ConnectTimeout" in names:
        return errors.no_connection_in_time()
    if "TimeoutException" in names or isinstance(error, TimeoutError):
        return errors.no_reply_in_time()
    if "ProxyError" in names:
        return errors.refused_by_proxy()
    if "ConnectError" in names:
        return errors.unreachable(error)
    if "NetworkError" in names:
        return errors.broken(error)
    if "RemoteProtocolError" in names:
        # h11 has one class for a connection that closed early and for bytes that are not HTTP.
        message = str(error)
        early = ("disconnected without", "closed connection without", "ConnectionClosed")
        return (
            errors.broken(error) if any(words in message for words in early) else errors.not_http()
        )
    if "DecodingError" in names:
        return errors.not_http()
    return _from_any(error, errors)


def _from_aiohttp(error: Exception, errors: TransportErrors) -> Exception:
    import aiohttp

    if _is_out_of_descriptors(error):
        return errors.no_descriptor()
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return errors.no_connection_in_time()
    if isinstance(error, TimeoutError):
        return errors.no_reply_in_time()
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return errors.refused_by_proxy()
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError):
        return errors.unreachable(error)
    if isinstance(error, aiohttp.ClientResponseError):
        return errors.not_http()
    if isinstance(error, aiohttp.ClientPayloadError):
        return errors.broken(error)
    if isinstance(error, aiohttp.ClientConnectionError):
        return errors.broken(error)
    return _from_any(error, errors)


def _is_out_of_descriptors(error: Exception) -> bool:
    """Whether there was no file descriptor for a connection.

    A look-up of a name fails without a word of it, as if there were no such name.
    """
    if isinstance(error, RevkitError):
        return False
    return is_no_descriptor(error) or (_is_lookup(error) and are_few())


def _is_lookup(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None


def _from_any(error: Exception, errors: TransportErrors) -> Exception:
    if isinstance(error, RevkitError):
        return error
    wrong_loop = ("different event loop", "different loop", "Event loop is closed")
    if isinstance(error, RuntimeError) and any(words in str(error) for words in wrong_loop):
        return errors.wrong_loop(error)
    if isinstance(error, OSError):
        return errors.broken(error)
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, RuntimeError) or library in ("aiohttp", "httpcore", "httpx"):
        return errors.other(error)
    return error  # out of the user's own transport, hook or mock: theirs to see as it is
