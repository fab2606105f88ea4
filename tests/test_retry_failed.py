"""``run.retry_failed()``: what is not ok is run once more, and both runs are one result."""

from __future__ import annotations

import asyncio
from typing import Any

import pandas as pd
import pytest

import revkit
from revkit import RunFailed
from revkit.testing import FakeModel


def reviews(rows: int = 6) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"review {i}" for i in range(rows)]}, index=[3] * rows)


def odd_ones_are_down(down: list[bool]) -> FakeModel:
    def answer(text: str) -> Any:
        if down[0] and int(text.split()[1]) % 2:
            return revkit.ModelError("garbage")
        return {"sentiment": "positive" if down[0] else "negative"}

    return FakeModel(answer, latency=1.0, clock="virtual")


def test_only_what_failed_is_asked_again_and_the_results_are_one() -> None:
    down, df = [True], reviews()
    fake = odd_ones_are_down(down)
    run = df.llm.parallel_map(model=fake, max_workers=2)
    assert (run.metrics.succeeded, run.metrics.failed) == (3, 3)
    down[0], asked = False, len(fake.calls)
    both = run.retry_failed()
    assert len(fake.calls) == asked + 3
    assert df["sentiment"].tolist() == ["positive", "negative"] * 3
    assert df["error"].isna().all()
    assert both.metrics.succeeded == 6
    assert both.rows["attempts"].tolist() == [1, 2] * 3
    assert both.attempts["attempt"].tolist()[-3:] == [2, 2, 2]
    assert both.metrics.wall_s == run.metrics.wall_s + 2.0
    assert both.attempts["start_s"].tolist()[-3:] == [3.0, 3.0, 4.0]
    assert both.usage.prompt_tokens > run.usage.prompt_tokens
    assert run.metrics.failed == 3  # the first result is as it was
    assert run.frame["error"].notna().sum() == 3


def test_what_was_never_started_is_started_then() -> None:
    down, df = [True], reviews()
    with pytest.raises(RunFailed) as failed:
        df.llm.parallel_map(model=odd_ones_are_down(down), max_workers=1, fail_fast=True)
    assert failed.value.result.metrics.not_started == 4
    down[0] = False
    both = failed.value.result.retry_failed()
    assert both.metrics.succeeded == 6
    assert df["error"].isna().all()


def test_rows_with_a_missing_input_are_left_alone() -> None:
    down, df = [True], reviews()
    df.iloc[0, 0] = None
    fake = odd_ones_are_down(down)
    run = df.llm.parallel_map(model=fake)
    down[0] = False
    both = run.retry_failed()
    assert both.errors["error_type"].tolist() == ["MissingInput"]
    assert both.errors["row"].tolist() == [0]


def test_nothing_to_do() -> None:
    df = reviews(2)
    run = df.llm.parallel_map(lambda row: 1)
    assert run.retry_failed().metrics.attempts == 2


def test_a_second_failure_is_told_by_its_own_row() -> None:
    df = reviews(3)
    run = df.llm.parallel_map(lambda row: 1 // int(row["review"].split()[1]))
    both = run.retry_failed()
    assert both.errors["row"].tolist() == [0]
    assert both.errors["attempts"].tolist() == [2]
    assert df["response"].isna().tolist() == [True, False, False]


def test_it_can_be_awaited() -> None:
    loops: list[Any] = []

    async def once(row: Any) -> int:
        loops.append(asyncio.get_running_loop())
        if len(loops) == 1:
            raise ValueError("once")
        return 1

    async def main() -> None:
        run = await reviews(2).llm.aparallel_map(once, max_workers=1)
        both = await run.aretry_failed()
        assert both.metrics.succeeded == 2
        assert set(loops) == {asyncio.get_running_loop()}

    asyncio.run(main())


def test_a_frame_that_was_changed_in_between_is_not_written_to() -> None:
    down, df = [True], reviews()
    run = df.llm.parallel_map(model=odd_ones_are_down(down))
    df.drop(df.index[:1], inplace=True) if pd.__version__ < "3" else df.__setitem__("review", "x")
    down[0] = False
    with pytest.warns(UserWarning, match="its rows were changed"):
        both = run.retry_failed()
    assert both.frame["error"].isna().all()
