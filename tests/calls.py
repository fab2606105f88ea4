"""The ways in which a frame's rows are run: on either engine, by either call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pandas as pd

import revkit

Run = Callable[..., revkit.ParallelResult]


def by_thread(df: pd.DataFrame, *args: Any, **options: Any) -> revkit.ParallelResult:
    return df.llm.parallel_map(*args, engine="thread", **options)


def by_loop(df: pd.DataFrame, *args: Any, **options: Any) -> revkit.ParallelResult:
    return df.llm.parallel_map(*args, engine="async", **options)


def awaited(df: pd.DataFrame, *args: Any, **options: Any) -> revkit.ParallelResult:
    return asyncio.run(df.llm.aparallel_map(*args, **options))


def awaited_in_threads(df: pd.DataFrame, *args: Any, **options: Any) -> revkit.ParallelResult:
    return awaited(df, *args, engine="thread", **options)
