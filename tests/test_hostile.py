"""Functions and models that do what they should not: the run ends all the same, and so does the
next one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from typing import Any

import pandas as pd
import pytest

import revkit
from revkit import Interrupted, RunFailed
from revkit.clients.base import AsyncTransport
from revkit.testing import FakeModel


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
        time.sleep(0.002)  # noqa: ASYNC251 - what is tested: it never awaits
        return context.worker

    run = frame(40).llm.parallel_map(blocks, max_workers=4)
    assert run.frame["response"].nunique() == 4


def test_a_progress_function_that_exits_is_dropped() -> None:
    def leaves(done: int, total: int, row: revkit.RowResult) -> None:
        sys.exit(3)

    df = frame()
    with pytest.warns(UserWarning, match="progress callback raised SystemExit"):
        df.llm.parallel_map(fine, progress=leaves)
    assert df["response"].tolist() == [0, 1, 2, 3]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
def test_a_second_interrupt_loses_nothing_either() -> None:
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
