"""What a row costs, as the number of calls of revkit's own functions: noise cannot move it.

It stands for the CPU of a row, which ``benchmarks/`` measures. A coroutine that goes on after a
wait counts once more for each of its frames.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import pytest
from servers import serve

import revkit

HERE = os.path.dirname(revkit.__file__)


def calls(run: Callable[[pd.DataFrame], object], rows: int) -> int:
    """Calls of revkit's functions, in this thread and in those that it starts."""
    counted = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal counted
        if event == "call" and frame.f_code.co_filename.startswith(HERE):
            counted += 1

    df = pd.DataFrame({"review": [f"review {row}" for row in range(rows)]})
    before = sys.getprofile(), threading.getprofile()
    threading.setprofile(count)
    sys.setprofile(count)
    try:
        run(df)
    finally:
        sys.setprofile(before[0])
        threading.setprofile(before[1])
    return counted


def calls_per_row(run: Callable[[pd.DataFrame], object]) -> float:
    """Of each further row: what a run costs once is left out.

    The fewest of some tries: where the machine is busy, fewer rows are done at a time.
    """
    few, many = 200, 1_000
    run(pd.DataFrame({"review": ["warm up"]}))
    return min((calls(run, many) - calls(run, few)) / (many - few) for _ in range(3))


def plain(row: Any) -> str:
    return "positive"


async def coroutine(row: Any) -> str:
    return "positive"


@pytest.mark.parametrize(("task", "bound"), [(plain, 28), (coroutine, 26)])
def test_a_row_of_a_function_takes_few_calls(task: Any, bound: int) -> None:
    def run(df: pd.DataFrame) -> object:
        return asyncio.run(df.llm.aparallel_map(task, max_workers=16))

    assert calls_per_row(run) < bound


def test_a_row_of_a_model_takes_few_calls(tmp_path: Path) -> None:
    """With all that is on by default: typed output, a store, attempts recorded."""
    with serve(lambda messages, body: '{"sentiment": "positive"}') as server:
        model = revkit.OpenAICompatible("m", base_url=f"{server.url}/v1", api_key="none")
        stores = iter(range(100))

        def run(df: pd.DataFrame) -> object:
            store = tmp_path / f"{next(stores)}.sqlite"
            return asyncio.run(df.llm.aparallel_map(model=model, max_workers=16, store=store))

        assert calls_per_row(run) < 110  # with claims, and a look for doubled responses
