"""A long reply is read beside the others' replies, not before them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Annotated, Any

import orjson
import pandas as pd
import pydantic
import pytest
from servers import Server, serve

import revkit
from revkit.clients import http_session
from revkit.clients.body import decoded
from revkit.clients.http import MAX_VALUES, BoundedBody

LIMIT = 10.0
ROWS = 6
LONG = "long " * 2**16


def rule(messages: Any, body: Any) -> Any:
    """The first row's reply is long."""
    return LONG if messages[-1]["content"].endswith("row 0") else "short"


def run_of(server: Server, task: Any = "{text}", **options: Any) -> revkit.ParallelResult:
    df = pd.DataFrame({"text": [f"row {i}" for i in range(ROWS)]})
    model = revkit.Ollama("m", host=server.url)
    options = {"engine": "async", "max_workers": 2, "store": False, "on": "text"} | options
    return df.llm.parallel_map(task, model=model, **options)


def waits_for_the_others(server: Server) -> Callable[[str | bytes], None]:
    """What a reader calls: a long reply is not read before all other rows were asked."""

    def wait(text: str | bytes) -> None:
        if len(text) >= len(LONG):
            server.await_requests(ROWS)

    return wait


def test_the_others_go_on_while_a_long_response_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(rule) as server:
        wait = waits_for_the_others(server)

        def slowly(body: bytes) -> Any:
            wait(body)
            return decoded(body)

        monkeypatch.setattr(http_session, "decoded", slowly)
        run = run_of(server)
    assert run.frame["response"].tolist() == [LONG.strip(), *["short"] * (ROWS - 1)]


def test_the_others_go_on_while_a_long_text_is_read() -> None:
    with serve(lambda messages, body: orjson.dumps({"x": rule(messages, body)}).decode()) as server:
        wait = waits_for_the_others(server)

        def slowly(text: str) -> str:
            wait(text)
            return text[:5]

        class Answer(pydantic.BaseModel):
            x: Annotated[str, pydantic.AfterValidator(slowly)]

        run = run_of(server, Answer, instructions="Answer.")
    assert run.frame["x"].tolist() == ["long ", *["short"] * (ROWS - 1)]


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_run_can_be_stopped_while_a_long_response_is_decoded(
    monkeypatch: pytest.MonkeyPatch, engine: Any
) -> None:
    token, go_on, left = revkit.CancelToken(), threading.Event(), threading.Event()

    def slowly(body: bytes) -> Any:
        if len(body) >= len(LONG):
            token.cancel()
            assert go_on.wait(LIMIT)
            left.set()
        return decoded(body)

    monkeypatch.setattr(http_session, "decoded", slowly)
    monkeypatch.setattr("revkit.runtime.lifecycle._GRACE", 0.2)
    with serve(rule) as server:
        with pytest.raises(revkit.RunCancelled) as caught:
            run_of(server, cancel=token, engine=engine)
        go_on.set()
        assert left.wait(LIMIT)
        assert caught.value.result.rows["status"][0] == "cancelled"
        monkeypatch.undo()
        assert run_of(server).metrics.succeeded == ROWS


def test_a_reply_may_have_as_many_values_as_the_bound() -> None:
    def read(values: int, around: tuple[bytes, bytes]) -> bytes:
        body = BoundedBody({}, limit=2**24, where="here")
        body.feed(around[0] + b",1" * values + around[1])
        return body.end()

    assert len(read(MAX_VALUES - 1, (b"[1", b"]")))
    with pytest.raises(revkit.BadReply, match="more than 1,000,000 commas") as caught:
        read(MAX_VALUES, (b"[1", b"]"))
    assert not caught.value.transient
