"""A session with a model that remembers, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from typing import Any

import pytest
from servers import Server, Status, serve

import revkit
from revkit import Conversation, NoModel, Ollama, OpenAICompatible, UsageError
from revkit.testing import FakeModel


def echo(messages: Any, body: Any) -> str:
    return f"heard {len(messages)}: {messages[-1]['content']}"


def client(server: Server, kind: str = "openai") -> Any:
    if kind == "ollama":
        return Ollama("m", host=server.url)
    return OpenAICompatible("m", base_url=server.url + "/v1", api_key="k")


def shown(server: Server) -> list[list[str]]:
    """What the model was shown with each question."""
    return [[m["content"] for m in request.body["messages"]] for request in server.requests]


@pytest.mark.parametrize("kind", ["openai", "ollama"])
def test_the_model_is_shown_what_was_said(kind: str) -> None:
    with serve(echo) as server, Conversation(client(server, kind), system="Echo.") as talk:
        assert talk.ask("a") == "heard 2: a"
        assert talk.ask("b") == "heard 4: b"
        assert [m["role"] for m in talk.messages] == ["system"] + ["user", "assistant"] * 2
        assert talk.prompt_tokens > 0
        assert talk.completion_tokens > 0
        talk.reset()
        assert talk.ask("c") == "heard 2: c"
        assert repr(talk).endswith(", 1 turn)")
        assert server.connections == 1
    assert shown(server)[1] == ["Echo.", "a", "heard 2: a", "b"]


def test_only_the_last_turns_are_shown() -> None:
    with serve(echo) as server, Conversation(client(server), max_turns=1) as talk:
        for text in "abc":
            talk.ask(text)
    assert shown(server)[2] == ["b", "heard 3: b", "c"]
    with serve(echo) as server, Conversation(client(server), max_turns=0) as talk:
        talk.ask("a")
        talk.ask("b")
        assert talk.messages == []


def test_what_failed_is_not_remembered() -> None:
    answers = iter([Status(503, {"error": "busy"}), "fine"])
    with serve(lambda *_: next(answers)) as server, Conversation(client(server)) as talk:
        with pytest.raises(revkit.ServerError):
            talk.ask("a")
        assert talk.messages == []
        assert talk.ask("b") == "fine"
    assert shown(server)[1] == ["b"]


def test_awaited_on_any_loop() -> None:
    async def main(server: Server) -> list[str]:
        async with Conversation(client(server)) as talk:
            return [await talk.aask("a"), await talk.aask("b")]

    with serve(echo) as server:
        assert asyncio.run(main(server)) == ["heard 1: a", "heard 3: b"]
        assert server.await_hang_ups()
        assert server.connections == 1


def test_a_conversation_for_each_worker() -> None:
    """No worker's rows are seen by another; every connection is closed at the end."""

    def plain(word: str, context: revkit.Context) -> str:
        return str(context.state.ask(f"{context.worker} {word}"))

    async def awaited(word: str, context: revkit.Context) -> str:
        return str(await context.state.aask(f"{context.worker} {word}"))

    for task in (plain, awaited):
        with serve(echo, gate=3) as server:
            model = client(server)
            run = revkit.parallel_map(
                [f"w{n}" for n in range(9)],
                task,
                factory=lambda worker, model=model: Conversation(model, max_turns=None),
                max_workers=3,
            )
            assert run.metrics.succeeded == 9
            assert server.await_hang_ups()
            assert server.connections == 3
        for messages in shown(server):
            asked = [text.removeprefix("heard ").split(": ")[-1] for text in messages]
            assert len({text.split()[0] for text in asked}) == 1
    gc.collect()


def test_faults_are_tried_again_as_those_of_any_row() -> None:
    answers = iter([Status(500, {"error": "no"}), "fine"])

    def task(word: str, context: revkit.Context) -> str:
        return str(context.state.ask(word))

    with serve(lambda *_: next(answers)) as server:
        run = revkit.parallel_map(
            ["a"],
            task,
            factory=lambda _: Conversation(client(server)),
            retry=revkit.Retry(initial=0.0, maximum=0.0),
        )
    assert run.frame["response"].tolist() == ["fine"]
    assert run.metrics.retries == 1


def test_what_is_refused() -> None:
    with pytest.raises(NoModel):
        Conversation()
    for turns in (-1, 1.5, True, "2"):
        with pytest.raises(UsageError, match="max_turns="):
            Conversation(FakeModel(["x"]), max_turns=turns)  # type: ignore[arg-type]
    with (
        contextlib.closing(Conversation(FakeModel(["x"]))) as talk,
        pytest.raises(UsageError, match="can only be awaited"),
    ):
        talk.ask("a")
    with pytest.raises(UsageError, match="asks a text, not int"):
        Conversation(FakeModel(lambda text: text)).ask(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [False, True])
def test_a_stop_ends_the_wait_of_a_conversation_in_a_thread(shared: bool) -> None:
    """No reply ever comes, and the client would wait for two minutes."""
    token = revkit.CancelToken()

    with serve(gate=threading.Event()) as server:
        own = Conversation(client(server))

        def ask(row: Any, context: Any) -> str:
            return (own if shared else context.state).ask(str(row))

        canceller = threading.Thread(
            target=lambda: (server.await_requests(1 if shared else 2), token.cancel("enough"))
        )
        canceller.start()
        factory = None if shared else lambda worker: Conversation(client(server))
        with pytest.raises(revkit.RunCancelled) as caught:
            revkit.parallel_map(
                ["a", "b"], ask, max_workers=1 if shared else 2, cancel=token, factory=factory
            )
        canceller.join()
        assert server.await_hang_ups()
        rows = caught.value.result.rows
        assert rows["status"].tolist() == ["cancelled", "not_started" if shared else "cancelled"]
        for thread in threading.enumerate():
            if thread.name.startswith("revkit-worker"):
                thread.join(10)
                assert not thread.is_alive()


def test_a_conversation_can_be_used_again_after_a_stop() -> None:
    token, gate = revkit.CancelToken(), threading.Event()
    with serve(echo, gate=gate) as server, Conversation(client(server)) as talk:

        def ask(row: Any) -> str:
            return talk.ask(str(row))

        canceller = threading.Thread(target=lambda: (server.await_requests(1), token.cancel()))
        canceller.start()
        with pytest.raises(revkit.RunCancelled):
            revkit.parallel_map(["a"], ask, cancel=token)
        canceller.join()
        gate.set()
        assert talk.messages == []
        assert talk.ask("b") == "heard 1: b"
