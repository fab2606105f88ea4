"""Rows that take no time, among rows that do: no thread is missing when it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from test_stops import Clock, clock

import revkit

__all__ = ["clock"]  # a fixture

QUICK = 2_000  #: rows that take no time
WORKERS = 8
PATIENCE = 60.0


def together(rows: Callable[[int], bool]) -> Callable[[Any], int]:
    """A function in which those rows wait until ``WORKERS`` of them are in it at once."""
    barrier = threading.Barrier(WORKERS, timeout=PATIENCE)

    def function(row: Any) -> int:
        if rows(row["x"]):
            barrier.wait()
        return int(row["x"])

    return function


def frame(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"x": range(rows)})


@pytest.mark.parametrize(
    "slow",
    [
        pytest.param(lambda x: x < WORKERS, id="before the quick ones"),
        pytest.param(lambda x: x >= QUICK, id="after them"),
        pytest.param(lambda x: x % 250 == 249 and x < 4 * WORKERS * 250, id="among them"),
    ],
)
def test_all_workers_are_in_flight_where_rows_wait_for_each_other(
    slow: Callable[[int], bool],
) -> None:
    df = frame(QUICK + WORKERS)
    assert sum(map(slow, df["x"])) % WORKERS == 0
    run = df.llm.parallel_map(together(slow), max_workers=WORKERS)
    assert df["response"].tolist() == df["x"].tolist()
    assert (run.rows["status"] == "ok").all()


def test_a_row_that_overruns_among_quick_ones_is_abandoned_and_the_rest_is_done(
    clock: Clock,
) -> None:
    over = threading.Event()

    def function(row: Any) -> int:
        if row["x"] == QUICK:
            over.wait(PATIENCE)
        return int(row["x"])

    def progress(done: int, total: int, row: revkit.RowResult) -> None:
        if done == total - 1:  # only that one is left
            clock.now += 100.0

    df = frame(QUICK + 500)
    try:
        run = df.llm.parallel_map(
            function,
            max_workers=WORKERS,
            attempt_timeout=99.0,
            retry=revkit.Retry(attempts=1),
            progress=progress,
        )
    finally:
        over.set()
    failed = run.rows[run.rows["status"] != "ok"]
    assert failed.index.tolist() == [QUICK]
    assert df["response"].drop(QUICK).tolist() == df["x"].drop(QUICK).tolist()
    assert "attempt_timeout" in df["error"][QUICK]


def test_fail_fast_stops_quick_rows_and_calls_no_function_after_that() -> None:
    called: list[int] = []

    def function(row: Any) -> float:
        called.append(row["x"])
        return 1 / (row["x"] - QUICK)

    df = frame(50 * QUICK)
    with pytest.raises(revkit.RunFailed, match=f"The first was row {QUICK}: ZeroDivisionError"):
        df.llm.parallel_map(function, max_workers=WORKERS, fail_fast=True)
    run = revkit.last_result()
    assert run is not None
    status = run.rows["status"]
    assert status[QUICK] == "error"
    assert sorted(called) == status.index[status != "not_started"].tolist()
    assert len(called) < len(df)


def test_a_callback_hears_of_every_quick_row() -> None:
    told: list[int] = []
    df = frame(QUICK)
    df.llm.parallel_map(
        lambda row: row["x"],
        max_workers=WORKERS,
        progress=lambda done, total, row: told.append(row.row),
    )
    assert sorted(told) == list(range(QUICK))
