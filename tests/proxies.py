"""A real HTTP proxy on loopback for tests."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from servers import Listener, Seen, Server, Status, response_bytes


class Proxy(Listener):
    """An HTTP proxy that takes everything, whatever its name, to one server on loopback.

    So a request for a name that cannot be resolved arrives only if it went through the proxy.
    ``refuse`` is a status that is given instead.
    """

    def __init__(self, target_port: int, refuse: int | None) -> None:
        self._target = ("127.0.0.1", target_port)
        self._refuse = refuse
        super().__init__()

    def answer(self, seen: Seen, to: socket.socket) -> bool:
        if self._refuse is not None:
            to.sendall(response_bytes(Status(self._refuse, b"no")))
            return False
        with socket.create_connection(self._target) as target:
            if seen.method == "CONNECT":
                to.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                _pump(to, target)
                return False
            path = "/" + seen.target.split("/", 3)[3]
            kept = {k: v for k, v in seen.headers.items() if k != "proxy-authorization"}
            head = "".join(f"{k}: {v}\r\n" for k, v in {**kept, "connection": "close"}.items())
            target.sendall(f"{seen.method} {path} HTTP/1.1\r\n{head}\r\n".encode() + seen.raw)
            if target not in select.select([target, to], [], [])[0]:
                return False  # the client has hung up
            with target.makefile("rb") as stream:
                to.sendall(_one_response(stream))
        return True


def _one_response(stream: Any) -> bytes:
    head, length = b"", 0
    while (line := stream.readline()) not in (b"\r\n", b""):
        head += line
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head + b"\r\n" + stream.read(length)


def _pump(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until either side closes."""
    to = {one: other, other: one}
    while True:
        for ready in select.select([one, other], [], [])[0]:
            data = ready.recv(65536)
            if not data:
                return
            to[ready].sendall(data)


@contextmanager
def proxy(server: Server, *, refuse: int | None = None) -> Iterator[Proxy]:
    """Run an HTTP proxy in front of ``server`` for the length of a ``with`` block."""
    found = Proxy(server.port, refuse)
    try:
        yield found
    finally:
        found.close()
