"""uvloop: the loop that calls run on where there is one, and a loop that users run on."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pandas as pd
import pytest

import revkit  # noqa: F401 - registers df.llm

uvloop = pytest.importorskip("uvloop", reason="not on Windows")


async def loop_name(row: object) -> str:
    await asyncio.sleep(0.0012)
    return type(asyncio.get_running_loop()).__module__


def test_calls_run_on_uvloop_and_awaited_ones_on_the_caller_s_loop() -> None:
    df = pd.DataFrame({"x": range(3)})
    df.llm.parallel_map(loop_name)
    assert set(df["response"]) == {"uvloop"}
    asyncio.run(df.llm.aparallel_map(loop_name))
    assert set(df["response"]) == {"asyncio.unix_events"}


def test_attempts_are_timed_more_exactly_than_uvloop_tells_the_time() -> None:
    df = pd.DataFrame({"x": range(50)})
    run = df.llm.parallel_map(loop_name, max_workers=10)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        awaited = runner.run(df.llm.aparallel_map(loop_name, max_workers=10))
    for attempts in (run.attempts, awaited.attempts):
        assert (attempts["service_ms"] > 0).all()
        assert (attempts["service_ms"] % 1 > 1e-6).any()  # whole milliseconds would not be


SCRIPT = """
import sys
sys.modules["uvloop"] = None  # as where it is not installed
import asyncio, pandas as pd, revkit

async def loop_name(row):
    return type(asyncio.get_running_loop()).__module__.split(".")[0]

df = pd.DataFrame({"x": range(3)})
print(df.llm.parallel_map(loop_name).frame["response"].tolist())
"""


def test_without_uvloop_calls_run_on_asyncio_s_loop() -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout == "['asyncio', 'asyncio', 'asyncio']\n"
