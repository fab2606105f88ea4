"""Functions, models and servers that do what they should not: it costs the attempt, the run ends
all the same, and so does the next one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import servers
from servers import Raw, Status, serve

import revkit
from revkit import Interrupted, Retry, RunFailed, Signature
from revkit.clients.contract import AsyncTransport, Client
from revkit.testing import FakeModel
from revkit.testing.clock import VirtualClockLoop


def frame(rows: int = 4) -> pd.DataFrame:
    return pd.DataFrame({"n": range(rows), "review": [f"review {i}" for i in range(rows)]})


async def fine(row: Any) -> int:
    return int(row["n"])


def works_again() -> None:
    assert frame().llm.parallel_map(fine).frame["response"].tolist() == [0, 1, 2, 3]


def test_a_model_that_raises_system_exit() -> None:
    run = frame().llm.parallel_map(
        model=FakeModel(["positive", SystemExit(3), "negative", "neutral"])
    )
    assert run.errors["error_type"].tolist() == ["SystemExit"]
    works_again()


def test_a_task_that_a_function_leaves_behind_raises_system_exit() -> None:
    async def spawns(row: Any) -> int:
        async def leaves() -> None:
            sys.exit(3)

        task = asyncio.get_running_loop().create_task(leaves())
        with pytest.raises(SystemExit):
            await task
        return int(row["n"])

    assert frame().llm.parallel_map(spawns, max_workers=1).metrics.succeeded == 4
    works_again()


def test_a_function_that_stops_the_loop() -> None:
    async def stops(row: Any) -> int:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return int(row["n"])

    assert frame().llm.parallel_map(stops).metrics.succeeded == 4
    works_again()


def test_functions_that_block_the_loop_still_take_turns() -> None:
    async def blocks(row: Any, context: revkit.Context) -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualClockLoop)
        loop._virtual.now += 0.002  # time passes, and it never awaits
        return context.worker

    df = frame(40)
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(df.llm.aparallel_map(blocks, max_workers=4))
    assert df["response"].nunique() == 4


def test_a_progress_function_that_exits_is_dropped() -> None:
    def leaves(done: int, total: int, row: revkit.RowResult) -> None:
        sys.exit(3)

    df = frame()
    with pytest.warns(UserWarning, match="progress callback raised SystemExit"):
        df.llm.parallel_map(fine, progress=leaves)
    assert df["response"].tolist() == [0, 1, 2, 3]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
def test_a_second_interrupt_loses_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revkit.runtime.lifecycle._GRACE", 0.1)
    df = frame()
    release = threading.Event()

    def twice(row: Any) -> int:
        if row["n"] == 0:
            return 0
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        release.wait()
        return 1

    try:
        with pytest.raises(Interrupted):
            df.llm.parallel_map(twice, max_workers=1)
    finally:
        release.set()
    assert df["response"].tolist()[:1] == [0]


class Broken(FakeModel):
    """A client whose transport cannot be opened."""

    def __init__(self, error: Exception):
        super().__init__(lambda text: "positive")
        self.error = error

    def transport(self, *, max_workers: int) -> Any:
        raise self.error

    async def async_transport(self, *, max_workers: int) -> AsyncTransport:
        raise self.error


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_transport_that_cannot_be_opened_ends_the_run_the_same_way(engine: Any) -> None:
    df = frame()
    with pytest.raises(revkit.UsageError, match="no such proxy"):
        df.llm.parallel_map(model=Broken(revkit.UsageError("no such proxy")), engine=engine)
    assert list(df.columns) == ["n", "review"]
    with pytest.raises(RunFailed, match="broke off: RuntimeError: broken") as failed:
        df.llm.parallel_map(model=Broken(RuntimeError("broken")), engine=engine)
    assert failed.value.result.metrics.not_started == 4
    works_again()


def test_a_coroutine_that_blocks_its_own_loop_by_way_of_a_thread_is_refused() -> None:
    def inner(row: Any) -> int:
        return frame(2).llm.parallel_map(fine).metrics.succeeded

    async def outer(row: Any) -> int:
        return frame(2).llm.parallel_map(inner).metrics.succeeded

    with pytest.raises(RunFailed, match="aparallel_map"):
        frame().llm.parallel_map(outer)
    works_again()


# -- servers -------------------------------------------------------------------------------------

RATE = Signature("Rate.", inputs="review", outputs={"mood": ["good", "bad"], "score": float})
FINE = '{"mood": "good", "score": 0.5}'
NO_JSON = "something else than a JSON object"
BROKE = "broke before the whole reply had arrived: "


def raw(head: str, body: bytes, then: Any = "close") -> Raw:
    """Bytes on a connection that is not announced to end with them."""
    return Raw([f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body], then)


#: What a server answers to one row, the type of the row's error, and its words.


class Flood:
    """Sends the same bytes again and again, as fast as the client takes them."""

    def __init__(self, head: bytes, again: bytes, share: int = 2000):
        self.head, self.again = head, again * share

    def __iter__(self) -> Any:
        yield self.head
        while True:
            yield self.again


FLOOD = "BadReply", "sent more than 524,288 bytes around the reply"
CHUNKED = servers._http("transfer-encoding: chunked\r\n")
FLUSH = b"5\r\n\x00\x00\x00\xff\xff\r\n"  # an empty block of deflate
PACKED = servers._http("transfer-encoding: chunked\r\ncontent-encoding: deflate\r\n")
MANY_VALUES = "BadReply", "more than 1,000,000 commas and brackets, more than any model's answer"
BAD: dict[str, tuple[Any, str, str]] = {
    # what the model says
    "empty": ("", "BadOutput", "the reply is empty"),
    "blank": (" \n\t", "BadOutput", "the reply is empty"),
    "truncated JSON": ('{"mood": "good", "sc', "BadOutput", "it is not JSON (EOF"),
    "other JSON": ('{"stars": 5}', "BadOutput", "mood: Field required; score: Field required"),
    "no object": ("[1, 2]", "BadOutput", "the reply does not fit"),
    "other label": ('{"mood": "meh", "score": 1}', "BadOutput", "should be 'good' or 'bad', not"),
    "NaN": ('{"mood": "good", "score": NaN}', "BadOutput", "the reply does not fit"),
    "infinity": ('{"mood": "good", "score": -Infinity}', "BadOutput", "the reply does not fit"),
    "overflow": ('{"mood": "good", "score": 1e999}', "BadOutput", "score: "),
    "deep": ("[" * 100_000, "BadOutput", "it is not JSON (recursion limit"),
    "deep value": ('{"mood": ' + "[" * 100_000, "BadOutput", "it is not JSON (recursion limit"),
    "deep objects": ('{"a":' * 100_000, "BadOutput", "it is not JSON (recursion limit"),
    "long": ("x" * 1_000_000, "BadOutput", "it is not JSON"),
    "half a character": ("\ud800", "BadOutput", "it is not JSON"),
    # what the protocol wraps it in
    "error, 200": ({"error": "out of memory"}, "BadReply", 'with an error: "out of memory"'),
    "error object, 200": ({"error": {"message": "full"}}, "BadReply", 'with an error: "full"'),
    "no message": ({}, "BadReply", "JSON that is not a "),
    "page": (Status(200, b"<html><h1>Log in</h1></html>"), "BadReply", f"{NO_JSON}: <html><h1>Log"),
    "nothing": (Status(200, b""), "BadReply", f"{NO_JSON}: nothing"),
    "array": (Status(200, b"[{}]"), "BadReply", NO_JSON),
    "invalid UTF-8": (Status(200, b'{"message": "\xff\xfe"}'), "BadReply", "JSON that is not a "),
    "NaN in JSON": (Status(200, b'{"message": NaN}'), "BadReply", NO_JSON),
    "infinity in JSON": (Status(200, b'{"message": Infinity}'), "BadReply", NO_JSON),
    "deep arrays": (Status(200, b"[" * 100_000), "BadReply", NO_JSON),
    "deep JSON": (Status(200, b'{"a":' * 100_000), "BadReply", NO_JSON),
    "deep error": (Status(500, b"[" * 100_000), "ServerError", "answered 500"),
    "empty lists": (Status(200, b'{"message":[' + b"[]," * 5_000_000 + b"0]}"), *MANY_VALUES),
    "empty objects": (Status(200, b"[" + b"{}," * 400_000 + b"[" * 400_000), *MANY_VALUES),
    "many numbers": (Status(500, b"[" + b"1," * 2_000_000 + b"1]"), *MANY_VALUES),
    # more and more
    "100 without end": (Raw(Flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n")), *FLOOD),
    "103 without end": (Raw(Flood(b"", b"HTTP/1.1 103 Hints\r\nlink: </a>\r\n\r\n")), *FLOOD),
    "headers": (Raw(Flood(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n")), "BadReply", "not valid HTTP"),
    "chunk extension": (Raw(Flood(CHUNKED + b"1;", b"a")), "BadReply", ""),
    "extended chunks": (Raw(Flood(CHUNKED, b"1;" + b"a" * 200 + b"\r\n \r\n")), *FLOOD),
    "tiny chunks": (Raw(Flood(CHUNKED, b"1\r\n \r\n")), *FLOOD),
    "empty blocks": (
        Raw(Flood(PACKED + b"2\r\n\x78\x9c\r\n", b"1000\r\n" + FLUSH[3:8] * 819 + b"\0\r\n", 9)),
        *("BadReply", ""),
    ),
    # how that travels
    "length too long": (raw("content-length: 999", b"{}"), "ConnectionFailed", BROKE),
    "length too short": (raw("content-length: 5", FINE.encode(), "go on"), "BadReply", ""),
    "no length": (raw("content-type: text/plain", b'{"mess'), "BadReply", NO_JSON),
    "huge": (servers.ANNOUNCED_HUGE, "BadReply", "larger than 16,777,216 bytes"),
    "endless": (servers.ENDLESS, "BadReply", "larger than 16,777,216 bytes"),
    "gzip bomb": (servers.GZIP_BOMB, "BadReply", "larger than 16,777,216 bytes"),
    "not gzip": (servers.NOT_GZIP, "BadReply", "not in the gzip format"),
    "reset": (servers.RESET, "ConnectionFailed", BROKE + "connection reset by peer"),
    "reset in the body": (servers.RESET_IN_BODY, "ConnectionFailed", BROKE),
    "closed": (servers.CLOSE, "ConnectionFailed", BROKE + "it was closed"),
    "half a header": (servers.HALF_HEADER, "ConnectionFailed", BROKE + "it was closed"),
    "endless header": (raw("x: " + "y" * 10**6, b"{}"), "BadReply", "not valid HTTP"),
    "not HTTP": (servers.NOT_HTTP, "BadReply", "not valid HTTP"),
}


def ollama(url: str, **options: Any) -> Client:
    return revkit.Ollama("m", host=url, **options)


def openai(url: str, **options: Any) -> Client:
    return revkit.OpenAICompatible("m", base_url=url + "/v1", **options)


@pytest.fixture(params=[ollama, openai])
def client(request: pytest.FixtureRequest) -> Callable[..., Client]:
    return request.param


def run_beside(
    answers: dict[str, Any], client: Client, server: servers.Server, **options: Any
) -> Any:
    """Rate five reviews, some of which get these answers; the others must be right."""
    server.rule = lambda messages, body: answers.get(messages[-1]["content"], FINE)
    df = frame(5)
    options = {"max_workers": 2, "retry": Retry(attempts=1)} | options
    run = df.llm.parallel_map(RATE, model=client, **options)
    good = [review not in answers for review in df["review"]]
    assert run.rows["status"].tolist() == ["ok" if ok else "error" for ok in good]
    assert df["score"].tolist() == [0.5 if ok else pd.NA for ok in good]
    assert df["mood"].notna().tolist() == good
    assert df["error"].isna().tolist() == good
    return run


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_reply_costs_its_row_only(client: Any, engine: Any, bad: str) -> None:
    answer, kind, words = BAD[bad]
    with serve() as server:
        run = run_beside({"review 2": answer}, client(server.url), server, engine=engine)
    assert run.errors["error_type"].tolist() == [kind]
    (said,) = run.frame["error"].dropna()
    assert said.startswith(f"{kind}: ")
    assert words in said
    assert len(said) < 700
    assert said.isprintable()
    if isinstance(answer, str) and kind == "BadOutput":
        kept = answer.replace("\ud800", "\ufffd")
        assert run.errors["text"].tolist() == [kept]  # as it came


class Drip:
    """Sends a byte, or another piece, at a time for as long as the server is up."""

    def __init__(self, server: servers.Server, head: bytes, piece: bytes = b" "):
        self.server, self.head, self.piece = server, head, piece

    def __iter__(self) -> Any:
        yield self.head
        while not self.server.closing.wait(0.01):
            yield self.piece


@pytest.mark.parametrize("limit", ["attempt_timeout", "timeout"])  # the latter is the client's
@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_server_that_takes_for_ever_costs_its_rows_only(
    client: Any, engine: Any, limit: str
) -> None:
    """It hangs, hangs in the body, and drips: all at once, because each takes the whole limit."""
    with serve() as server:
        answers = {
            "review 1": servers.HANG,
            "review 2": servers.HEADER_THEN_HANG,
            "review 3": Raw(Drip(server, servers._http("content-length: 99999\r\n"))),
        }
        of_client = {"timeout": 1.0} if limit == "timeout" else {}
        of_run = {} if of_client else {"attempt_timeout": 1.0}
        run = run_beside(
            answers, client(server.url, **of_client), server, engine=engine, max_workers=4, **of_run
        )
    assert run.errors["error_type"].tolist() == ["AttemptTimeout"] * 3
    words = {
        "attempt_timeout": "longer than attempt_timeout=1 s",
        "timeout": "within 1 s; raise the client's timeout=",
    }
    assert all(words[limit] in message for message in run.errors["message"])


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_header_that_drips_for_ever_costs_its_row_only(
    client: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("revkit.api.prepare._SLACK", 0.1)
    with serve() as server:
        answers = {"review 2": Raw(Drip(server, b"HTTP/1.1 200 OK\r\nx: "))}
        run = run_beside(answers, client(server.url, timeout=0.4), server, engine=engine)
    assert run.errors["error_type"].tolist() == ["AttemptTimeout"]


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_informational_responses_that_drip_for_ever_cost_their_row_only(
    client: Any, engine: Any
) -> None:
    with serve() as server:
        drip = Drip(server, b"", b"HTTP/1.1 102 Processing\r\n\r\n")
        run = run_beside(
            {"review 2": Raw(drip)}, client(server.url, timeout=0.4), server, engine=engine
        )
    assert run.errors["error_type"].tolist() == ["AttemptTimeout"]
    assert "no whole reply" in run.errors["message"][0]
    assert "within 0.4 s" in run.errors["message"][0]


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_trailers_without_end_cost_their_row_only(client: Any, engine: Any) -> None:
    """Which of two errors it is depends on how many of them come with the header."""
    flood = Raw(Flood(CHUNKED + b"2\r\n{}\r\n0\r\n", b"a: b\r\n"))
    with serve() as server:
        run = run_beside({"review 2": flood}, client(server.url), server, engine=engine)
    (error_type,) = run.errors["error_type"]
    assert error_type in ("BadReply", "ConnectionFailed")
