"""Steps in sequence: each parallel over rows, the later ones on the columns of the earlier ones."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import revkit
from revkit import RunFailed, Step, UsageError, chain
from revkit.testing import FakeModel

TRIAGE = revkit.Signature(
    "Sort a ticket.", inputs="ticket", outputs={"topic": ["billing", "delivery"]}
)


def tickets(rows: int = 6) -> pd.DataFrame:
    return pd.DataFrame({"ticket": [f"ticket {row}" for row in range(rows)]}, index=[7] * rows)


def topics(text: str) -> str:
    return "billing" if int(text.split()[-1]) % 2 else "delivery"


class Counting:
    """A function that counts its calls by row, and fails where it is told to."""

    def __init__(self, column: str, fails: Callable[[Any], bool] = lambda value: False):
        self.column, self.fails = column, fails
        self.calls: Counter[Any] = Counter()
        self._lock = threading.Lock()

    def __call__(self, row: Any) -> str:
        value = row[self.column]
        with self._lock:
            self.calls[value] += 1
        if self.fails(value):
            raise ValueError(f"no {value}")
        return f"{value}!"


def test_a_later_step_sees_the_columns_of_the_earlier_ones() -> None:
    model = FakeModel(lambda text: topics(text) if "Answer" not in text else f"re: {text}")

    def shout(row: Any) -> str:
        return str(row["reply"]).upper()

    pipeline = chain(
        [TRIAGE, Step("Answer a {topic} ticket: {ticket}", name="reply"), shout], model=model
    )
    frame = tickets()
    results = pipeline.run(frame)
    assert list(frame.columns) == ["ticket"]  # it is not written to
    assert results.names == ["topic", "reply", "shout"]
    assert [len(result.frame.columns) for result in results] == [3, 5, 7]
    done = results.frame
    assert done.index.tolist() == [7] * 6
    assert done["topic"].cat.categories.tolist() == ["billing", "delivery"]
    assert done["shout"].tolist()[1] == "RE: ANSWER A BILLING TICKET: TICKET 1"
    assert done[["topic_error", "reply_error", "shout_error"]].isna().all(axis=None)
    assert results["topic"] is results[0]
    assert results[1:].names == ["reply", "shout"]
    assert results["topic"].summary()["count"].tolist() == [3, 3]
    assert "reply: 6 rows, 6 ok" in repr(results)
    assert "reply" in results._repr_html_()
    with pytest.raises(KeyError, match='did you mean "topic"'):
        results["topics"]


def test_a_row_that_failed_is_a_missing_input_of_the_next_step_and_is_not_sent() -> None:
    def first(row: Any) -> str:
        if row["ticket"].endswith("2"):
            raise ValueError("no two")
        return str(row["ticket"])

    model = FakeModel(lambda text: "seen")
    results = chain([first, Step("Read {first}", output="read")], model=model).run(tickets(4))
    assert results["read"].frame["read_error"].notna().tolist() == [*(False, False, True, False)]
    assert results["read"].errors["error_type"].tolist() == ["MissingInput"]
    assert len(model.calls) == 3


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        ([TRIAGE, Step("About {topik}", output="x")], revkit.MissingColumn, 'mean "topic"'),
        ([TRIAGE, Step(len, on="reply", output="x")], revkit.MissingColumn, "reply"),
        ([TRIAGE, Step(TRIAGE, name="again")], revkit.ColumnExists, "topic"),
        ([TRIAGE, Step(str, name="x", error="topic_error")], revkit.ColumnExists, "topic_error"),
        ([TRIAGE, Step(str, name="x", max_workers=0)], UsageError, "max_workers"),
        ([TRIAGE, Step(str, name="x", model="openai:x")], UsageError, "model="),
        ([TRIAGE, Step("{ticket}", output="x", model="oops:x")], UsageError, "oops"),
        ([Step(str, output="x"), Step("About {y}", output="z")], revkit.MissingColumn, '"y"'),
    ],
)
def test_what_can_be_refused_is_refused_before_the_first_step(
    steps: list[Any], error: type[Exception], message: str
) -> None:
    model = FakeModel(topics)
    with pytest.raises(error, match=message) as refused:
        chain(steps, model=model).run(tickets())
    assert model.calls == []
    assert any("step 2" in note for note in refused.value.__notes__)


def test_no_model_for_a_later_step_is_refused_before_the_first() -> None:
    calls = Counting("ticket")
    with pytest.raises(revkit.NoModel):
        chain([Step(calls, name="calls"), "About {ticket}"]).run(tickets())
    assert not calls.calls


def test_a_chain_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        chain([])
    with pytest.raises(UsageError, match="two steps"):
        chain([TRIAGE, TRIAGE])
    with pytest.raises(UsageError, match="list of steps"):
        chain("About {ticket}")
    with pytest.raises(TypeError, match='mean "model"'):
        chain([TRIAGE], modle="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Step"):
        chain([TRIAGE], timeout=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="outptu"):
        chain([Step(str, name="x", outptu="y")]).run(tickets())  # type: ignore[call-arg]


def test_outputs_of_a_function_that_names_them_itself_are_columns_for_later_steps() -> None:
    def split(row: Any) -> dict[str, str]:
        word, number = row["ticket"].split()
        return {"word": word, "number": number}

    results = chain([split, Step(lambda row: row["number"], on="number", name="n")]).run(tickets())
    assert results.frame["n"].tolist() == list("012345")
    later = Step(lambda row: row["sum"], on="sum", name="n")
    pipeline = chain([split, later])
    with pytest.raises(revkit.MissingColumn, match="sum") as missing:
        pipeline.run(tickets())
    assert "step 2 of 2" in missing.value.__notes__[0]
    assert pipeline.results is not None
    assert pipeline.results.names == ["split"]


def test_a_chain_goes_on_at_the_step_and_row_where_it_stopped() -> None:
    broken = True
    first = Counting("ticket")
    second = Counting("first", lambda value: broken and value.startswith("ticket 3"))
    third = Counting("second")
    pipeline = chain(
        [
            Step(first, name="first"),
            Step(second, name="second", fail_fast=True, max_workers=1),
            Step(third, name="third"),
        ]
    )
    with pytest.raises(RunFailed) as stopped:
        pipeline.run(tickets())
    assert stopped.value.results is not None
    assert stopped.value.results.names == ["first", "second"]
    assert stopped.value.results[-1] is stopped.value.result
    assert stopped.value.result.metrics.succeeded == 3
    assert 'step 2 of 3 of the chain, "second"' in stopped.value.__notes__[0]
    with pytest.raises(RunFailed):  # still broken: what is ok stays
        pipeline.run(tickets())
    broken = False
    results = pipeline.run(tickets())
    assert [len(result.frame) for result in results] == [6, 6, 6]
    assert results.frame["third"].tolist() == [f"ticket {row}!!!" for row in range(6)]
    assert set(first.calls.values()) == {1}
    assert [second.calls[f"ticket {row}!"] for row in range(6)] == [1, 1, 1, 3, 1, 1]
    assert set(third.calls.values()) == {1}
    pipeline.run(tickets())  # it had come to its end
    assert set(first.calls.values()) == {2}


def test_other_rows_start_anew() -> None:
    first = Counting("ticket")
    second = Counting("first", lambda value: value.startswith("ticket 3"))
    pipeline = chain([Step(first, name="first"), Step(second, name="second", fail_fast=True)])
    with pytest.raises(RunFailed):
        pipeline.run(tickets())
    results = pipeline.run(tickets(3))
    assert results.frame["second"].tolist() == [f"ticket {row}!!" for row in range(3)]
    assert [first.calls[f"ticket {row}"] for row in range(6)] == [2, 2, 2, 1, 1, 1]


def test_an_interrupt_keeps_what_is_done() -> None:
    first, second = Counting("ticket"), Counting("first")
    pressed = False

    def press(completed: int, total: int, row: revkit.RowResult) -> None:
        nonlocal pressed
        if completed == 2 and not pressed:
            pressed = True
            raise KeyboardInterrupt

    pipeline = chain(
        [Step(first, name="first"), Step(second, name="second", max_workers=1, progress=press)]
    )
    with pytest.raises(revkit.Interrupted) as stopped:
        pipeline.run(tickets(200))
    assert stopped.value.results is not None
    assert stopped.value.results.names == ["first", "second"]
    done = stopped.value.result.metrics.succeeded
    assert done >= 2
    results = pipeline.run(tickets(200))
    assert results["second"].metrics.succeeded == 200
    assert set(first.calls.values()) == {1}
    assert set(second.calls.values()) == {1}


def test_a_new_chain_goes_on_from_the_store(tmp_path: Path) -> None:
    def answers(text: str) -> str:
        if "Answer" not in text:
            return topics(text)
        if broken and text.endswith("3"):
            raise revkit.AccessDenied("no", status=401)
        return "yes"

    broken = True
    model = FakeModel(answers)

    def run() -> revkit.ChainResult:
        steps = [TRIAGE, Step("Answer {topic} {ticket}", output="reply", max_workers=1)]
        return chain(steps, model=model, store=tmp_path / "replies.sqlite").run(tickets())

    with pytest.raises(RunFailed):
        run()
    assert len(model.calls) == 6 + 4
    broken = False
    results = run()
    assert len(model.calls) == 10 + 3
    assert [result.metrics.from_store for result in results] == [6, 3]


def test_awaited_it_does_the_same_and_goes_on_after_a_cancellation() -> None:
    calls: Counter[str] = Counter()

    async def main() -> None:
        gate, reached = asyncio.Event(), asyncio.Event()

        async def first(row: Any) -> str:
            calls["first"] += 1
            return str(row["ticket"])

        async def second(row: Any) -> str:
            calls[row["first"]] += 1
            if row["first"] == "ticket 2":
                reached.set()
                await gate.wait()
            return "done"

        pipeline = chain([first, Step(second, max_workers=1)])
        running = asyncio.create_task(pipeline.arun(tickets()))
        await reached.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert pipeline.results is not None
        assert pipeline.results.names == ["first", "second"]
        assert pipeline.results[-1].metrics.succeeded == 2
        gate.set()
        results = await pipeline.arun(tickets())
        assert results.frame["second"].tolist() == ["done"] * 6
        assert calls["first"] == 6
        assert [calls[f"ticket {row}"] for row in range(6)] == [1, 1, 2, 1, 1, 1]
        # One chain on several frames at once: they do not know of each other.
        both = await asyncio.gather(pipeline.arun(tickets(2)), pipeline.arun(tickets(3)))
        assert [len(results.frame) for results in both] == [2, 3]

    asyncio.run(main())


def test_items_of_a_list_go_through_it() -> None:
    results = chain(
        [Step(lambda n: n * n, output="square"), Step(lambda row: -row["square"], output="minus")]
    ).run(iter([1, 2, 3]))
    assert results.frame["minus"].tolist() == [-1, -4, -9]
    assert chain([Step(lambda n: n, output="same")]).run([]).frame["same"].tolist() == []


def test_what_is_given_to_the_chain_is_shared_and_a_step_may_differ() -> None:
    budget = revkit.Budget(tokens=10_000)
    model, other = FakeModel(topics), FakeModel(lambda text: "other")
    model.max_tokens = other.max_tokens = 5
    results = chain(
        [TRIAGE, Step("{ticket}", output="x", model=other), Step(str, name="text")],
        model=model,
        budget=budget,
        max_workers=2,
    ).run(tickets())
    assert results.frame["x"].tolist() == ["other"] * 6
    used = [result.usage.total_tokens for result in results[:2]]
    assert budget.spent_tokens == sum(tokens or 0 for tokens in used)
    assert [result.metrics.workers for result in results] == [2, 2, 2]


def test_a_step_may_repeat_its_rows_and_the_next_sees_how_far_the_samples_agree() -> None:
    model = FakeModel(["billing", "billing", "delivery"] * 2)
    unsure = Step(lambda row: 1 - row["topic_agreement"], name="doubt")
    results = chain([Step(TRIAGE, repeat=3, max_workers=1), unsure], model=model).run(tickets(2))
    assert results.frame["topic"].tolist() == ["billing"] * 2
    assert results.frame["doubt"].tolist() == pytest.approx([1 / 3] * 2)
    needs = Step("{topic_agreement} {ticket}", name="x")
    with pytest.raises(revkit.MissingColumn, match="topic_agreement"):
        chain([TRIAGE, needs], model=model).run(tickets(2))
