"""What revkit gives to users' own tests: a model that answers by rule, and a virtual clock."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from revkit import SENTIMENT, Reply, Retry, UsageError
from revkit.errors import ConnectionFailed, ServerError
from revkit.store import Store
from revkit.testing import NBVAL_SANITIZE, FakeModel
from revkit.testing.clock import VirtualClockLoop


def frame(n: int = 3) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"r{i}" for i in range(n)]})


def test_kinds_of_answers() -> None:
    whole = Reply("negative", prompt_tokens=5, completion_tokens=2, finish_reason="eos")
    fake = FakeModel(["positive", {"sentiment": "neutral"}, whole, ServerError("no", status=400)])
    df = frame(4)
    run = df.llm.parallel_map(model=fake, max_workers=1)
    assert df["sentiment"].tolist()[:3] == ["positive", "neutral", "negative"]
    assert df["error"].iloc[3] == "ServerError: no"
    assert run.errors["status"].tolist() == [400]
    assert run.rows["finish_reason"].tolist()[:3] == ["stop", "stop", "eos"]
    assert run.rows["prompt_tokens"].iloc[2] == 5
    words = sum(len(turn["content"].split()) for turn in fake.calls[0])
    assert run.rows["prompt_tokens"].iloc[0] == words
    assert run.model_name == "fake"


@pytest.mark.parametrize("workers", [1, 4])
def test_a_list_is_given_out_in_the_order_of_the_rows(workers: int) -> None:
    df = frame(20)
    df.llm.parallel_map("{review}", model=FakeModel([f"a{i}" for i in range(20)]), output="said",
                        max_workers=workers)  # fmt: skip
    assert df["said"].tolist() == [f"a{i}" for i in range(20)]


def test_a_list_that_is_too_short() -> None:
    df = frame(2)
    df.llm.parallel_map("{review}", model=FakeModel(["only"]), max_workers=1)
    assert df["error"].iloc[1] == "ModelError: the fake model has only 1 answers"


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_rule_may_return_or_raise_its_fault(engine: str) -> None:
    def rule(text: str) -> Any:
        if text == "r0":
            raise ConnectionFailed("raised")
        return ConnectionFailed("returned") if text == "r1" else "good"

    df = frame(3)
    retry = Retry(initial=0.001)
    df.llm.parallel_map("{review}", model=FakeModel(rule), engine=engine, retry=retry)
    assert df["error"].tolist()[:2] == ["ConnectionFailed: raised", "ConnectionFailed: returned"]
    assert df["response"].iloc[2] == "good"


def test_calls_are_the_messages() -> None:
    fake = FakeModel(lambda text: "positive")
    df = frame(2)
    df.llm.parallel_map(model=fake, max_workers=1)
    assert fake.calls == [SENTIMENT.messages({"review": text}) for text in ("r0", "r1")]


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_most_in_flight(engine: str) -> None:
    barrier = threading.Barrier(3)

    def rule(text: str) -> str:
        if engine == "thread":
            barrier.wait(30)
        return text

    fake = FakeModel(rule)
    assert fake.most_in_flight == 0
    frame(9).llm.parallel_map("{review}", model=fake, engine=engine, max_workers=3)
    assert fake.most_in_flight == 3
    assert fake._in_flight == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"answers": "text"}, "a function of the row's text, or a list"),
        ({"answers": {"r0": "a"}}, "a function of the row's text, or a list"),
        ({"answers": 3}, "a function of the row's text, or a list"),
        ({"answers": [], "clock": "fast"}, 'there are "real" and "virtual"'),
    ],
)
def test_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FakeModel(**arguments)


def test_latency_by_rule_on_the_virtual_clock() -> None:
    seconds = {"r0": 3600.0, "r1": 0.25, "r2": 86_400.0 * 30}
    fake = FakeModel(lambda text: text, latency=seconds.__getitem__, clock="virtual")
    run = frame(3).llm.parallel_map("{review}", model=fake, max_workers=2)
    assert run.attempts["row"].tolist() == [1, 0, 2]
    assert run.attempts["start_s"].tolist() == pytest.approx([0, 0, 0.25])
    assert run.attempts["end_s"].tolist() == pytest.approx([0.25, 3600, 0.25 + 86_400 * 30])


def test_virtual_time_does_not_pass_while_a_reply_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slow, and another reply would be the next thing to come."""
    put = Store.put

    def slowly(*args: Any, **kwargs: Any) -> bool:
        time.sleep(0.05)
        return put(*args, **kwargs)

    monkeypatch.setattr(Store, "put", slowly)
    seconds = {"a": 1.0, "b": 0.25, "c": 0.25}
    fake = FakeModel(lambda text: text, latency=seconds.__getitem__, clock="virtual")
    run = pd.DataFrame({"text": list(seconds)}).llm.parallel_map(
        "{text}", model=fake, max_workers=2, store=tmp_path / "replies.sqlite"
    )
    assert run.attempts["row"].tolist() == [1, 2, 0]
    assert run.attempts["start_s"].tolist() == [0.0, 0.25, 0.0]


def test_virtual_time_does_not_pass_while_many_replies_are_stored(tmp_path: Path) -> None:
    """The drain takes more steps than those that the loop asks for: it looks rows up as well."""
    fake = FakeModel(lambda text: text, latency=0.25, clock="virtual")
    run = frame(600).llm.parallel_map(
        "{review}", model=fake, max_workers=8, store=tmp_path / "replies.sqlite", timeout=1000
    )
    assert run.metrics.wall_s == 600 / 8 * 0.25


def test_each_run_starts_its_virtual_clock_anew() -> None:
    fake = FakeModel(lambda text: text, latency=5, clock="virtual")
    for _ in range(2):
        run = frame(2).llm.parallel_map("{review}", model=fake, max_workers=1, inplace=False)
        assert run.metrics.wall_s == 10.0
        assert run.latency.tolist() == [5000.0] * 7


def test_virtual_loop_keeps_the_order_of_its_timers() -> None:
    happened: list[tuple[str, float]] = []

    async def later(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        happened.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(later("c", 3e6))
            group.create_task(later("a", 1))
            group.create_task(later("b", 2.5))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())
        assert [name for name, _ in happened] == ["a", "b", "c"]
        assert [at for _, at in happened] == pytest.approx([1, 2.5, 3e6])
        assert runner.get_loop().time() == pytest.approx(3e6 + 10)


def test_virtual_time_waits_for_other_threads() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[str] = loop.create_future()
        thread = threading.Thread(
            target=loop.call_soon_threadsafe, args=(answered.set_result, "hello")
        )
        loop.call_soon(thread.start)
        assert await answered == "hello"
        thread.join()
        return loop.time()

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        assert runner.run(main()) == 0.0


def test_the_sanitising_file_is_there() -> None:
    with open(NBVAL_SANITIZE, encoding="utf-8") as file:
        assert "regex:" in file.read()
