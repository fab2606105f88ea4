"""A real HTTP server on loopback for tests, which speaks Ollama's and OpenAI's protocols.

    with serve("positive") as server:                      # every reply says "positive"
        client = revkit.Ollama(host=server.url)             # or base_url=server.url + "/v1"
        ...
    server.requests        # what came in, parsed
    server.connections     # how many connections were made
    server.highest         # most requests that were in flight at the same time

After the block these hold all that clients have sent. Within it, what is not answered may be on
its way still: wait for it with ``server.await_requests(2)``.

What it answers is decided by a rule: a text, or ``rule(messages, body)`` that returns

- a ``str``: what the model says;
- a ``dict``: the whole JSON reply, as it is;
- a :class:`Status`: another status, such as ``Status(503, {"error": "busy"})``;
- a :class:`Raw`: bytes on the socket, for servers that do not behave. The usual ones are
  constants: ``RESET``, ``HALF_HEADER``, ``HANG``, …

Each connection has a thread, so a rule may block. Nothing sleeps: ``gate=3`` withholds every reply
until three requests are in flight, and ``gate=threading.Event()`` until the test sets it.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

#: Key and self-signed certificate of localhost, 127.0.0.1 and model.example, for these tests only.
CERTIFICATE = Path(__file__).with_name("loopback.pem")

_NUMBERS = itertools.count(1)

#: A gate that is never filled opens after so many seconds, with a reply that says so.
GATE_LIMIT = 20.0

#: Seconds between two bytes of a reply that drips.
DRIP_GAP = 0.05


@dataclass(frozen=True)
class Status:
    """An answer with its own status, body (JSON, unless bytes or text) and headers."""

    status: int
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """Bytes that go out as they are, and what happens to the connection then.

    ``hang`` and ``drip`` hold it until the client hangs up; ``drip`` sends a byte now and then.
    """

    chunks: Iterable[bytes] = ()
    then: Literal["close", "reset", "hang", "drip", "go on"] = "close"


def _http(head: str, body: bytes = b"") -> bytes:
    """A response that, as polite servers do, announces that the connection ends with it."""
    start = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return start + head.encode() + b"\r\n" + body


class _Endless:
    """A body that ends when the client hangs up."""

    def __iter__(self) -> Iterator[bytes]:
        yield _http("transfer-encoding: chunked\r\n")
        while True:
            yield b"10000\r\n" + b" " * 0x10000 + b"\r\n"


class _Bomb:
    """64 MiB of zeros, compressed when they are asked for: that takes a while."""

    def __iter__(self) -> Iterator[bytes]:
        body = gzip.compress(bytes(64 * 2**20))
        yield _http(f"content-encoding: gzip\r\ncontent-length: {len(body)}\r\n", body)


RESET = Raw((), "reset")
CLOSE = Raw(())
HANG = Raw((), "hang")
HALF_HEADER = Raw([b"HTTP/1.1 200 OK\r\ncontent-le"])
DRIP = Raw([_http("content-length: 100000\r\n", b"{")], "drip")
HEADER_THEN_HANG = Raw([_http("content-length: 100\r\n", b"{")], "hang")
NOT_HTTP = Raw([b"\x16\x03\x01 I do not speak HTTP\r\n\r\n"])
SHORT_BODY = Raw([_http("content-length: 1000\r\n", b'{"message": ')])
RESET_IN_BODY = Raw([_http("content-length: 1000\r\n", b'{"message": ')], "reset")
BAD_CHUNK = Raw([_http("transfer-encoding: chunked\r\n", b"zz\r\n{}\r\n0\r\n\r\n")])
HALF_CHUNK = Raw([_http("transfer-encoding: chunked\r\n", b"ff\r\n{")])
ANNOUNCED_HUGE = Raw([_http(f"content-length: {2**40}\r\n", b"{")], "hang")
ENDLESS = Raw(_Endless())
GZIP_BOMB = Raw(_Bomb())
NOT_GZIP = Raw([_http("content-encoding: gzip\r\ncontent-length: 2\r\n", b"{}")])
HALF_GZIP = Raw(
    [_http("content-encoding: gzip\r\ncontent-length: 20\r\n", gzip.compress(b"{}")[:20])]
)
OTHER_ENCODING = Raw([_http("content-encoding: br\r\ncontent-length: 2\r\n", b"{}")])

Answer = str | dict[str, Any] | Status | Raw
Rule = Callable[[list[dict[str, str]], dict[str, Any]], Answer]


@dataclass(frozen=True)
class Seen:
    """A request that came in. Header names are lower-case; ``target`` is as on the wire."""

    method: str
    target: str
    headers: dict[str, str]
    raw: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def body(self) -> Any:
        return json.loads(self.raw) if self.raw else None


def fitting(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
    """The default rule: an echo of the user, or the dullest JSON that fits the schema asked for."""
    schema = body.get("format") or body.get("response_format", {}).get("json_schema", {})
    schema = schema.get("schema", schema) if isinstance(schema, dict) else {}
    if "properties" not in schema:
        return messages[-1]["content"]
    dull = {"string": "text", "integer": 0, "number": 0.5, "boolean": False, "array": []}
    return json.dumps(
        {
            name: (at.get("enum") or [at.get("const", dull.get(at.get("type")))])[0]
            for name, at in schema["properties"].items()
        }
    )


class Listener:
    """Accepts connections on loopback, one thread each, until it is closed."""

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.connections = 0
        self.requests: list[Seen] = []
        self.closing = threading.Event()
        self._tls = tls
        self._lock = threading.Lock()
        self._came_in = threading.Condition(self._lock)
        self._last: Any = None  # where the connection comes from after which no other is accepted
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = self._start(self._accept)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def answer(self, seen: Seen, to: socket.socket) -> bool:
        """Answer a request; return whether the connection stays open."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it, and what is open; all that has come in until now is read before."""
        self.closing.set()
        with socket.socket() as last:  # connections are accepted in order
            last.bind(("127.0.0.1", 0))
            self._last = last.getsockname()
            last.connect(("127.0.0.1", self.port))
            self._accepting.join()
        self.hang_up()  # what they have sent can still be read
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def await_requests(self, count: int) -> None:
        """Wait until so many have come in, answered or not."""
        with self._came_in:
            assert self._came_in.wait_for(lambda: len(self.requests) >= count, GATE_LIMIT)

    def await_hang_ups(self) -> bool:
        """Wait until every client has closed its connection, also where a reply is withheld.

        False where one of them has not. Nothing is read: that is left to the connection's thread.
        """
        with self._lock:  # copies, because their own threads may close them meanwhile
            open_now = [connection.fileno() for connection in self._open]
            waiting = [os.dup(number) for number in open_now if number >= 0]
        try:
            return all(_hangs_up(connection) for connection in waiting)
        finally:
            for connection in waiting:
                os.close(connection)

    def hang_up(self) -> None:
        """Close the connections that are open now."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # below TLS, if there is any
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _start(self, target: Callable[..., None], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            connection, origin = self._listener.accept()
            if origin == self._last:
                connection.close()
                return
            with self._lock:
                self.connections += 1
                self._open.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        plain = connection
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                with self._lock:  # what is open has a file descriptor at any time
                    connection = self._tls.wrap_socket(
                        plain, server_side=True, do_handshake_on_connect=False
                    )
                    self._open = self._open - {plain} | {connection}
                connection.do_handshake()
            with connection.makefile("rb") as stream:
                if stream.peek(1)[:1] == b"\x16":  # a TLS hello; answered as Go's server does
                    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\nThis is HTTP.\n")
                    return
                while (seen := _read_request(stream)) is not None:
                    with self._came_in:
                        self.requests.append(seen)
                        self._came_in.notify_all()
                    if not self.answer(seen, connection):
                        break
        except (OSError, ValueError):  # the client went away, or this listener is closing
            pass
        finally:
            with self._lock:
                self._open -= {plain, connection}
            connection.close()
            plain.close()


def _read_request(stream: Any) -> Seen | None:
    line = stream.readline().decode("latin-1").split()
    if len(line) != 3:
        return None
    headers: dict[str, str] = {}
    while (header := stream.readline().decode("latin-1").strip()) != "":
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    length = int(headers.get("content-length", 0))
    raw = stream.read(length)
    if len(raw) < length:  # the client was gone before it had sent all
        return None
    return Seen(line[0], line[1], headers, raw)


class Server(Listener):
    """See the head of this file.

    Attributes:
        in_flight, highest: requests that are read and not yet answered: now, and at most ever.
        models: the models that the server has; None: any that it is asked for.
        slots: what it says of itself as llama.cpp's server does; None: it says nothing.
        context: what it says of its models' context as Ollama's server does; None: nothing.
    """

    def __init__(
        self,
        rule: str | Rule,
        *,
        gate: int | threading.Event | None,
        models: Iterable[str] | None,
        slots: int | None,
        context: int | None = None,
        key: str | None,
        tls: bool,
        port: int = 0,
    ) -> None:
        secure = None
        if tls:
            secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            secure.load_cert_chain(CERTIFICATE)
        self.rule: Rule = (lambda _messages, _body: rule) if isinstance(rule, str) else rule
        self.models = None if models is None else list(models)
        self.slots = slots
        self.context = context
        self.in_flight = 0
        self.highest = 0
        self._key = key
        self._needed = gate if isinstance(gate, int) else 0
        self._gate = gate if isinstance(gate, threading.Event) else threading.Event()
        if gate is None:
            self._gate.set()
        super().__init__(secure, port)

    @property
    def chats(self) -> list[Seen]:
        """The requests that asked for a reply."""
        return [seen for seen in self.requests if seen.method == "POST"]

    def answer(self, seen: Seen, to: socket.socket) -> bool:
        if seen.method == "GET":  # about the models, not one
            to.sendall(response_bytes(cast(Status, self._decide(seen))))
            return True
        with self._lock:
            self.in_flight += 1
            self.highest = max(self.highest, self.in_flight)
            if self._needed and self.in_flight >= self._needed:
                self._gate.set()
        try:
            opened = self._gate.wait(GATE_LIMIT)
            found = (
                self._decide(seen)
                if opened
                else Status(503, {"error": f"the gate did not fill: {self.highest} in flight"})
            )
        finally:
            # Before the reply goes out, so that the next request is never counted beside it.
            with self._lock:
                self.in_flight -= 1
        if isinstance(found, Raw):
            self._misbehave(found, to)
            return found.then == "go on"
        to.sendall(response_bytes(found))
        return True

    def close(self) -> None:
        self._gate.set()
        super().close()

    def _misbehave(self, raw: Raw, to: socket.socket) -> None:
        for chunk in raw.chunks:
            to.sendall(chunk)
        if raw.then == "hang":
            to.recv(1)
        elif raw.then == "drip":
            to.settimeout(DRIP_GAP)
            while not _hung_up(to):
                to.sendall(b" ")
        elif raw.then == "reset":  # closing with a linger of 0 sends RST
            to.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _decide(self, seen: Seen) -> Status | Raw:
        if self._key is not None and seen.headers.get("authorization") != f"Bearer {self._key}":
            return Status(
                401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}
            )
        match seen.method, seen.path:
            case "POST", "/api/chat":
                return self._chat(seen, _ollama_reply, _ollama_missing)
            case "POST", path if path.endswith("/v1/chat/completions"):  # below a gateway's, say
                return self._chat(seen, _openai_reply, _openai_missing)
            case "GET", "/api/tags":
                return Status(200, {"models": [_ollama_model(name) for name in self.models or []]})
            case "GET", "/v1/models":
                listed = [{"id": name, "object": "model"} for name in self.models or []]
                return Status(200, {"object": "list", "data": listed})
            case "GET", "/api/ps" if self.context is not None:
                loaded = [_ollama_model(name) for name in self.models or ["m:latest"]]
                return Status(
                    200, {"models": [m | {"context_length": self.context} for m in loaded]}
                )
            case "GET", "/props" if self.slots is not None:
                return Status(200, {"total_slots": self.slots, "model_path": "model.gguf"})
        return Status(404, b"404 page not found")

    def _chat(
        self,
        seen: Seen,
        reply: Callable[[str, dict[str, Any]], dict[str, Any]],
        missing: Callable[[str], Any],
    ) -> Status | Raw:
        body = seen.body
        if self.models is not None and body["model"] not in self.models:
            return Status(404, missing(body["model"]))
        found = self.rule(body["messages"], body)
        if isinstance(found, str):
            found = reply(found, body)
        if isinstance(found, dict):
            found = Status(200, found)
        if isinstance(found, Raw) or found.status >= 300:
            return found
        # As real servers do; a response that is like the one before looks like a copy of it.
        return replace(found, headers={"x-request-id": f"{next(_NUMBERS)}", **found.headers})


def _hangs_up(connection: int) -> bool:
    """Wait until the client has closed a connection, given by its file descriptor."""
    poll = select.poll()
    poll.register(connection, getattr(select, "POLLRDHUP", select.POLLHUP))  # Linux, or others
    return bool(poll.poll(GATE_LIMIT * 1000))


def _hung_up(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1)
    except TimeoutError:
        return False


def response_bytes(found: Status) -> bytes:
    body = found.body if isinstance(found.body, bytes) else json.dumps(found.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    head = "".join(f"{k}: {v}\r\n" for k, v in {**headers, **found.headers}.items())
    return f"HTTP/1.1 {found.status} Whatever\r\n{head}\r\n".encode() + body


def _tokens(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def _ollama_reply(text: str, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": body["model"],
        "created_at": "2025-01-01T00:00:00.000000Z",
        "message": {"role": "assistant", "content": text},
        "done": True,
        "done_reason": "stop",
        "total_duration": 5_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": _tokens(body["messages"]),
        "prompt_eval_duration": 2_000_000,
        "eval_count": len(text.split()),
        "eval_duration": 2_000_000,
    }


def _ollama_missing(model: str) -> Any:
    return {"error": f"model '{model}' not found"}


def _ollama_model(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": "2025-01-01T00:00:00.000000Z",
        "size": 2_000_000_000,
        "digest": "0" * 64,
        "details": {"format": "gguf", "family": "llama", "parameter_size": "3.2B"},
    }


def _openai_reply(text: str, body: dict[str, Any]) -> dict[str, Any]:
    prompt, completion = _tokens(body["messages"]), len(text.split())
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1735689600,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


def _openai_missing(model: str) -> Any:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return {
        "error": {"message": message, "type": "invalid_request_error", "code": "model_not_found"}
    }


@contextmanager
def serve(
    rule: str | Rule = fitting,
    *,
    gate: int | threading.Event | None = None,
    models: Iterable[str] | None = None,
    slots: int | None = None,
    context: int | None = None,
    key: str | None = None,
    tls: bool = False,
    port: int = 0,
) -> Iterator[Server]:
    """Run a server for the length of a ``with`` block.

    Args:
        rule: what it answers; see the head of this file.
        gate: withhold every reply until so many are in flight, or until the event is set.
        models: names of the models that it has; None: any.
        slots: what it says of itself under ``/props``, as llama.cpp's server; None: nothing.
        context: what it says of its models under ``/api/ps``, as Ollama's server; None: nothing.
        key: the API key that it asks for; None: none.
        tls: speak TLS, with :data:`CERTIFICATE`.
        port: where it listens; 0: where there is room.
    """
    server = Server(
        rule, gate=gate, models=models, slots=slots, context=context, key=key, tls=tls, port=port
    )
    try:
        yield server
    finally:
        server.close()


@contextmanager
def closed_port() -> Iterator[str]:
    """The URL of a port on which nobody listens, and nobody else will."""
    with socket.socket() as bound:  # bound, but not listening
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
