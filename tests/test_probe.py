"""``revkit doctor --parallel``: few requests, only when asked for, and what they come to."""

from __future__ import annotations

import asyncio
import heapq
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import Status, closed_port, serve

import revkit
from revkit.__main__ import main
from revkit.cli.probe import REQUESTS, Probe, probe
from revkit.results.bottleneck import flat_from
from revkit.testing import FakeModel


def on_slots(slots: int, seconds: float = 0.5, loading: float = 20.0) -> FakeModel:
    """A model on so many slots, which has to be loaded; each run's clock starts anew."""
    free: list[float] = []
    loaded: list[int] = []

    def latency(text: str) -> float:
        now = asyncio.get_running_loop().time()
        if model._in_flight == 1:  # nobody else is there
            free[:] = [now] * slots
        took = seconds if loaded else seconds + loading
        loaded.append(1)
        done = max(now, heapq.heappop(free)) + took
        heapq.heappush(free, done)
        return done - now

    model = FakeModel(lambda text: "some words", latency=latency, clock="virtual")
    return model


# -- the decision ----------------------------------------------------------------------------


@given(slots=st.sampled_from([1, 2, 4]), base=st.floats(0.01, 100))
def test_throughput_is_flat_from_the_slots_on(slots: int, base: float) -> None:
    assert flat_from({level: min(level, slots) / base for level in (1, 2, 4, 8)}) == slots


@given(base=st.floats(0.01, 100), slower=st.floats(0.0, 0.3))
def test_where_it_grows_to_the_end_nothing_is_said(base: float, slower: float) -> None:
    rates = {level: level ** (1 - slower) / base for level in (1, 2, 4, 8)}
    assert flat_from(rates) is None


def test_a_stumble_on_the_way_is_no_end() -> None:
    assert flat_from({1: 2.0, 2: 2.1, 4: 7.0, 8: 7.2}) == 4
    assert flat_from({1: 2.0}) is None


# -- the rounds ------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_it_finds_the_slots_with_few_requests(slots: int) -> None:
    model = on_slots(slots)
    found = probe(model)
    assert found.problem is None
    assert found.slots == slots
    assert found.rates[1] == pytest.approx(2.0)
    assert found.rates[8] == pytest.approx(2.0 * slots)
    assert len(model.calls) == REQUESTS == 31
    assert model.most_in_flight == 8
    assert len({call[-1]["content"] for call in model.calls}) == REQUESTS
    assert found.lines()[-1].startswith(f"throughput is flat from {slots} at once")


def test_more_slots_than_are_tried_are_called_that_many_or_more() -> None:
    found = probe(on_slots(64))
    assert (found.slots, found.problem) == (None, None)
    assert found.lines()[-1] == "throughput still grew at 8 at once: it takes 8 or more"


def test_a_failure_ends_it_and_is_told() -> None:
    answers: list[Any] = ["yes", "yes", "yes", revkit.ConnectionFailed("the line broke")]
    model = FakeModel([*answers, *["yes"] * 40], latency=1.0, clock="virtual")
    found = probe(model)
    assert list(found.rates) == [1]
    assert "the line broke" in str(found.problem)
    assert len(model.calls) <= 7
    assert "no more can be told" in found.lines()[-1]


def test_replies_that_take_no_time_tell_nothing() -> None:
    found = probe(FakeModel(lambda text: "yes", latency=0.001, clock="virtual"))
    assert found.slots is None
    assert "so quick" in str(found.problem)


def test_the_words_of_a_probe() -> None:
    assert Probe({1: 2.0, 2: 4.0}, None, "it broke").lines() == [
        "1 at once: 2.00 replies a second, 500 ms each",
        "2 at once: 4.00 replies a second, 500 ms each",
        "no more can be told: it broke",
    ]
    assert Probe({1: 0.2, 2: 0.2}, 1, "it was too long").lines() == [
        "1 at once: 0.20 replies a second, 5.00 s each",
        "2 at once: 0.20 replies a second, 10.0 s each",
        "it ended there: it was too long",
        "throughput is flat from 1 at once: more workers than that cannot help",
    ]


# -- the command -----------------------------------------------------------------------------


def test_the_doctor_asks_no_model_for_a_reply_unasked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(models=["m"]) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("REVKIT_MODEL", "openai:m")
        assert main(["doctor"]) == 0
        assert server.chats == []
    assert "at once" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "setting"), [("ollama:m", "OLLAMA_NUM_PARALLEL"), ("openai:m", "--max-num-seqs")]
)
def test_it_sends_few_short_requests_to_the_model_that_is_named(
    model: str,
    setting: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it finds slots, on this machine and now, is left open."""
    monkeypatch.setattr("revkit.cli.probe._QUICKEST", 0.0)
    with serve("one two three", models=["m"]) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        main(["doctor", "--parallel", model])
        assert len(server.chats) == REQUESTS
        assert server.highest <= 8
        for seen in server.chats:
            limit = seen.body.get("max_tokens") or seen.body["options"]["num_predict"]
            assert limit == 16
            assert len(seen.raw) < 500
    said = capsys.readouterr().out
    assert f"sending 31 short requests to {server.url}" in said
    assert "8 at once: " in said
    assert "throughput" in said
    assert (setting in said) is ("flat from" in said)


@pytest.mark.parametrize("content", ["", "One two three"])
def test_a_model_that_uses_up_its_tokens_has_replied_too(
    content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = {"role": "assistant", "content": content, "reasoning": "a number"}
    silent = {"choices": [{"index": 0, "message": message, "finish_reason": "length"}]}
    monkeypatch.setattr("revkit.cli.probe._QUICKEST", 0.0)
    with serve(lambda messages, body: silent) as server:
        found = probe(revkit.OpenAICompatible("m", base_url=f"{server.url}/v1"))
        assert len(server.chats) == REQUESTS
    assert list(found.rates) == [1, 2, 4, 8]


def test_a_llama_cpp_server_is_asked_rather_than_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(models=["m"], slots=6) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        assert main(["doctor", "--parallel", "openai:m"]) == 0
        assert server.chats == []
    said = capsys.readouterr().out
    assert "has m; it works on 6 at once (llama.cpp: --parallel)" in said
    assert "6, as the server itself says" in said


def test_the_embedded_model_is_not_asked_either(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--parallel", "local"]) == 0
    assert "4, as revkit.Local(slots=4) has it; nothing was sent" in capsys.readouterr().out


def test_a_server_that_cannot_be_asked_is_told_with_its_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closed_port() as url:
        monkeypatch.setenv("OLLAMA_HOST", url)
        assert main(["doctor", "--parallel", "ollama:m"]) == 1
    assert "ollama serve" in capsys.readouterr().out
    with serve(lambda messages, body: Status(401, {"error": "no"})) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        assert main(["doctor", "--parallel", "ollama:m"]) == 1
        assert len(server.chats) == 1
    assert "denied access" in capsys.readouterr().out


def test_a_model_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--parallel", "olama:m"]) == 2
    assert "did you mean" in capsys.readouterr().err
