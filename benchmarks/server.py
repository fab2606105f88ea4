"""A chat model on loopback that does nothing but wait: the other end of ``calls.py``.

    python benchmarks/server.py [--latency 0.05]

It speaks OpenAI's ``POST /v1/chat/completions`` over connections that are kept alive, as a bare
protocol on uvloop in a process of its own, so that it is far from being the limit: see its
ceiling in ``README.md``. A prompt ends in its row's number, ``row #00000042``, and the reply
depends on it, so that who mixes rows up is found out. ``GET /stats`` tells what it has counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LABELS = ("positive", "neutral", "negative")
_MARK, _DIGITS = "row #", 8


def prompt(text: str, row: int) -> str:
    """A row's text, which no other row has."""
    return f"{text} {_MARK}{row:0{_DIGITS}}"


def label(row: int) -> str:
    """What the model says of a row."""
    return LABELS[row % len(LABELS)]


def _response(body: object) -> bytes:
    said = json.dumps(body).encode()
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    return b"%s%d\r\n\r\n%s" % (head.encode(), len(said), said)


def _completion(text: str) -> bytes:
    message = {"role": "assistant", "content": json.dumps({"sentiment": text})}
    return _response(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 150, "completion_tokens": 6, "total_tokens": 156},
        }
    )


def _vectorised(text: str) -> bytes:
    """A reply of ``POST /v1/responses`` to a batch of one row, as openaivec asks for it."""
    said = json.dumps({"assistant_messages": [{"id": 0, "body": text}]})
    content = {"type": "output_text", "text": said, "annotations": []}
    message = {"id": "msg-1", "type": "message", "role": "assistant", "status": "completed"}
    return _response(
        {
            "id": "resp-1",
            "object": "response",
            "created_at": 1_700_000_000,
            "model": "m",
            "status": "completed",
            "output": [{**message, "content": [content]}],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
        }
    )


_REPLIES = [_completion(text) for text in LABELS]
_OTHERS = [_vectorised(text) for text in LABELS]


class Counts:
    """What happened at the server since it was started."""

    def __init__(self) -> None:
        self.requests = self.running = self.most_running = 0
        self.connections = self.open = self.most_open = 0


class Model(asyncio.Protocol):
    """One connection."""

    def __init__(self, counts: Counts, latency: float):
        self._counts = counts
        self._latency = latency
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._later = asyncio.get_running_loop().call_later
        counts = self._counts
        counts.connections += 1
        counts.open += 1
        counts.most_open = max(counts.most_open, counts.open)

    def connection_lost(self, exc: Exception | None) -> None:
        self._counts.open -= 1

    def data_received(self, data: bytes) -> None:
        data = self._read + data if self._read else data
        while data:
            head = data.find(b"\r\n\r\n")
            if head < 0:
                break
            end = head + 4 + self._length(data[:head])
            if len(data) < end:
                break
            self._answer(data[:end])
            data = data[end:]
        self._read = data

    def _length(self, head: bytes) -> int:
        at = head.find(b"ontent-")  # of either case, as clients write it
        while at >= 0:
            if head[at + 7 : at + 14].lower() == b"length:":
                return int(head[at + 14 :].split(b"\r\n", 1)[0])
            at = head.find(b"ontent-", at + 7)
        return 0

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET"):
            told = {k: v for k, v in vars(self._counts).items() if k not in ("running", "open")}
            self._transport.write(_response(told))
            return
        counts = self._counts
        counts.requests += 1
        counts.running += 1
        counts.most_running = max(counts.most_running, counts.running)
        at = request.rfind(_MARK.encode()) + len(_MARK)
        replies = _OTHERS if request.startswith(b"POST /v1/responses") else _REPLIES
        reply = replies[int(request[at : at + _DIGITS]) % len(LABELS)]
        if self._latency:
            self._later(self._latency, self._reply, reply)
        else:
            self._reply(reply)

    def _reply(self, reply: bytes) -> None:
        self._counts.running -= 1
        self._transport.write(reply)


async def serve(latency: float) -> None:
    counts = Counts()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Model(counts, latency), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def serving(latency: float) -> Iterator[str]:
    """A server of its own, in another process; gives its base URL."""
    command = [sys.executable, __file__, "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def stats(url: str) -> dict[str, Any]:
    """What the server at ``url`` has counted so far; asking counts as a connection."""
    with urllib.request.urlopen(f"{url}/stats", timeout=10) as response:
        found: dict[str, Any] = json.load(response)
    return found


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds for each reply")
    uvloop.run(serve(parser.parse_args().latency))
