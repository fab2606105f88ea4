"""A response that a proxy writes twice costs no row its own reply, where that can be told."""

from __future__ import annotations

import asyncio
import itertools
import json
import queue
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pandas as pd
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from servers import Raw, Status, response_bytes, serve

import revkit
from revkit.clients.aiohttp_transport import AiohttpTransport
from revkit.clients.contract import Request, Response
from revkit.clients.doubled import DoubledResponses
from revkit.clients.httpx_transport import HttpxAsyncTransport, HttpxTransport

ROWS = 12
OPTIONS: dict[str, Any] = {"max_workers": 1, "store": False}


class Connection:
    pass


def reply(text: str, number: int | None) -> bytes:
    """A whole chat completion as it goes over the network, with an id unless it is None."""
    message = {"role": "assistant", "content": text}
    body: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    return response_bytes(Status(200, body if number is None else {"id": f"c-{number}"} | body))


def proxy(twice: int, when: str) -> Callable[..., Raw]:
    """Echoes the row. Response number ``twice`` comes twice: at once, or before the next one."""
    numbers = itertools.count(1)
    held: list[bytes] = []

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Raw:
        number = next(numbers)
        written = reply(messages[-1]["content"], number)
        before, held[:] = b"".join(held), []
        if number == twice and when == "at once":
            written += written
        elif number == twice:
            held.append(written)
        return Raw([before + written], "go on")

    return rule


def run_over(server: Any, engine: Any, *, of_the_user: bool = False) -> revkit.ParallelResult:
    df = pd.DataFrame({"t": [f"row {number}" for number in range(ROWS)]})

    def client(http: Any = None) -> Any:
        return revkit.OpenAICompatible("m", base_url=server.url + "/v1", http=http)

    async def on_the_users_loop() -> revkit.ParallelResult:
        async with httpx.AsyncClient(trust_env=False) as http:
            return await df.llm.aparallel_map("{t}", model=client(http), **OPTIONS)

    if not of_the_user:
        return df.llm.parallel_map("{t}", model=client(), engine=engine, **OPTIONS)
    if engine == "async":
        return asyncio.run(on_the_users_loop())
    with httpx.Client(trust_env=False) as http:
        return df.llm.parallel_map("{t}", model=client(http), **OPTIONS)


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("of_the_user", [False, True])
@pytest.mark.parametrize(("when", "requests"), [("at once", ROWS), ("later", ROWS + 1)])
def test_no_row_gets_the_reply_of_another(
    engine: str, of_the_user: bool, when: str, requests: int
) -> None:
    with serve(proxy(5, when)) as server:
        run = run_over(server, engine, of_the_user=of_the_user)
        assert run.frame["response"].tolist() == run.frame["t"].tolist()
        assert len(server.chats) == requests
        assert server.connections == 2
        assert run.rows["attempts"].tolist() == [1] * ROWS
        assert run.metrics.retries == 0


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("number", [None, 1])
def test_a_server_that_always_says_the_same_is_asked_once_more(
    engine: str, number: int | None
) -> None:
    same = Raw([reply("fine", number)], "go on")
    with serve(lambda *_: same) as server:
        run = run_over(server, engine)
        assert run.frame["response"].tolist() == ["fine"] * ROWS
        assert (len(server.chats), server.connections) == (ROWS + 1, 2)


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_an_error_that_comes_twice_is_not_another_rows(engine: str) -> None:
    refused = response_bytes(Status(400, {"error": {"message": "no"}}, {"x-request-id": "r-1"}))
    held: list[bytes] = []

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Raw:
        text = messages[-1]["content"]
        before, held[:] = b"".join(held), []
        if text == "row 3":
            held.append(refused)
            return Raw([refused], "go on")
        return Raw([before + reply(text, int(text[4:]))], "go on")

    with serve(rule) as server:
        run = run_over(server, engine)
    assert run.errors["row"].tolist() == [3]
    good = run.frame.drop(index=3)
    assert good["response"].tolist() == good["t"].tolist()


# -- bytes that arrive between two requests --------------------------------------------------


CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'


class Late:
    """Sends its first reply, and other bytes once they are asked for."""

    def __init__(self) -> None:
        self.asked: queue.Queue[bytes] = queue.Queue()
        self.sent = threading.Event()
        self.replies = iter(["first", "second"])

    def __call__(self, messages: Any, body: Any) -> Raw:
        text = next(self.replies)
        return Raw(self._first() if text == "first" else [reply(text, 2)], "go on")

    def _first(self) -> Any:
        yield reply("first", 1)
        yield self.asked.get(timeout=10)
        self.sent.set()


def text_of(response: Response) -> str:
    text: str = json.loads(response.body)["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(
    ("late", "is_read"),  # by the loop, before the next request
    [(reply("stray", 7), False), (reply("stray", 7), True), (b"HTTP/1.1 2", False)],
)
def test_bytes_before_a_request_are_not_its_response_on_the_loop(
    late: bytes, is_read: bool
) -> None:
    rule = Late()

    async def both(url: str) -> list[str]:
        transport = AiohttpTransport(url, max_workers=1)
        request = Request(url + "/v1/chat/completions", CHAT)
        try:
            first = await transport.send(request)
            rule.asked.put(late)
            assert rule.sent.wait(10)  # without the loop
            if is_read:
                for _ in range(3):
                    await asyncio.sleep(0)
            return [text_of(first), text_of(await transport.send(request))]
        finally:
            await transport.aclose()

    with serve(rule) as server:
        assert asyncio.run(both(server.url)) == ["first", "second"]
        assert server.connections == 2


@pytest.mark.parametrize("late", [reply("stray", 7), b"HTTP/1.1 2"])
def test_bytes_before_a_request_are_not_its_response_in_threads(late: bytes) -> None:
    rule = Late()
    with serve(rule) as server:
        transport = HttpxTransport(server.url)
        request = Request(server.url + "/v1/chat/completions", CHAT)
        first = transport.send(request)
        rule.asked.put(late)
        assert rule.sent.wait(10)
        assert [text_of(first), text_of(transport.send(request))] == ["first", "second"]
        assert server.connections == 2
        transport.close()


# -- the rule alone --------------------------------------------------------------------------


@examples(100)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40))
def test_each_copy_of_a_reply_with_an_id_is_found_and_nothing_else(
    steps: list[tuple[int, bool]],
) -> None:
    """Three connections, each of which brings new replies, or the last one again."""
    doubled = DoubledResponses()
    connections = [Connection() for _ in range(3)]
    last: dict[int, Response] = {}
    for number, (place, copied) in enumerate(steps):
        is_copy = copied and place in last
        if not is_copy:
            last[place] = Response(200, {}, b'{"id": %d}' % number)
        request = Request("", b"%d" % number)
        verdict = doubled.verdict(connections[place], request, last[place])
        assert verdict == ("ask again" if is_copy else None)
        if is_copy:  # it is closed
            del last[place]
            connections[place] = Connection()


@examples(100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=60))
def test_a_server_of_few_replies_is_asked_at_most_once_more_for_each(
    steps: list[tuple[int, int]],
) -> None:
    doubled = DoubledResponses()
    connections = [Connection() for _ in range(4)]
    again = 0
    for number, (place, said) in enumerate(steps):
        response = Response(200, {}, b"reply %d" % said)
        if doubled.verdict(connections[place], Request("", b"%d" % number), response):
            again += 1
            connections[place] = Connection()
    assert again <= 3


def test_what_other_connections_brought_is_no_copy() -> None:
    doubled, one, two = DoubledResponses(), Connection(), Connection()
    same = Response(200, {}, b"{}")
    found = [
        doubled.verdict(place, Request("", b"%d" % number), same)
        for number, place in enumerate([one, two, one, two, one])
    ]
    assert found == [None] * 5


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (Response(200, {}, b"{}"), Response(200, {}, b"{}"), "ask again"),
        (Response(200, {"date": "1"}, b"{}"), Response(200, {"date": "2"}, b"{}"), None),
        (Response(200, {}, b"{}"), Response(503, {}, b"{}"), None),
        (Response(503, {}, b'{"id": 1}'), Response(503, {}, b'{"id": 1}'), "close"),
        (Response(429, {}, b'{"id": 1}'), Response(429, {}, b'{"id": 1}'), "close"),
        (Response(400, {}, b"{}"), Response(400, {}, b"{}"), "close"),
        (Response(400, {}, b'{"requestId": 1}'), Response(400, {}, b'{"requestId": 1}'),
         "ask again"),
        (Response(400, {"cf-ray": "1"}, b""), Response(400, {"cf-ray": "1"}, b""), "ask again"),
    ],
)  # fmt: skip
def test_what_follows(first: Response, second: Response, verdict: str | None) -> None:
    doubled, connection = DoubledResponses(), Connection()
    assert doubled.verdict(connection, Request("", b"a"), first) is None
    assert doubled.verdict(connection, Request("", b"b"), second) == verdict
    assert doubled.verdict(connection, Request("", b"b"), first) is None or verdict is None


def test_a_copy_of_the_reply_to_the_same_request_closes_the_connection_only() -> None:
    doubled, connection = DoubledResponses(), Connection()
    same = Response(200, {}, b'{"id": 1}')
    assert doubled.verdict(connection, Request("", b"a"), same) is None
    assert doubled.verdict(connection, Request("", b"a"), same) == "close"


def test_a_mock_has_no_connection() -> None:
    same = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}
    asked = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=same)

    transport = HttpxTransport("http://box", http=httpx.MockTransport(handle))
    for number in range(3):
        transport.send(Request("http://box", b"%d" % number))
    assert len(asked) == 3
    on_loop = HttpxAsyncTransport("http://box", http=httpx.MockTransport(handle))
    asyncio.run(on_loop.send(Request("http://box", b"")))
    assert len(asked) == 4
