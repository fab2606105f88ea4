"""Several threads that run their own tasks on one frame: no column is lost, and each is its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

import revkit

THREADS, ROWS = 8, 40


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("trial", range(3))
def test_each_thread_finds_its_own_columns(trial: int) -> None:
    frame = pd.DataFrame({"number": range(ROWS)})
    begin = threading.Barrier(THREADS)

    def run(thread: int) -> revkit.ParallelResult:
        begin.wait()
        return frame.llm.parallel_map(
            lambda row: row["number"] * 100 + thread,
            on="number",
            output=f"of_{thread}",
            error=f"error_{thread}",
            max_workers=2,
        )

    with ThreadPoolExecutor(THREADS) as pool:
        runs = list(pool.map(run, range(THREADS)))
    for thread, result in enumerate(runs):
        expected = [n * 100 + thread for n in range(ROWS)]
        assert frame[f"of_{thread}"].tolist() == expected
        assert frame[f"error_{thread}"].isna().all()
        assert result.frame[f"of_{thread}"].tolist() == expected
    assert len(frame.columns) == frame.columns.nunique() == 1 + 2 * THREADS
    noted = frame.attrs["revkit"]
    assert noted.keys() == {*frame.columns} - {"number"}


def test_a_column_that_another_task_replaced_meanwhile_stays_as_it_is() -> None:
    frame = pd.DataFrame({"number": range(3)})

    def first(row: dict[str, int]) -> int:
        if row["number"] == 1 and replaced.is_set():
            frame.llm.parallel_map(
                lambda row: "other", output="of", error="other_error", overwrite=True
            )
        return row["number"]

    replaced = threading.Event()
    frame.llm.parallel_map(first, on="number", output="of")
    replaced.set()
    with pytest.warns(UserWarning, match='"of" was replaced while the run went on'):
        run = frame.llm.parallel_map(first, on="number", output="of")
    assert frame["of"].tolist() == ["other"] * 3
    assert run.frame["of"].tolist() == [0, 1, 2]
