"""One task over chunk after chunk: memory holds one, and limits hold over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import revkit
from revkit import UsageError, map_chunks
from revkit.record.totals import ERRORS, Totals
from revkit.testing import FakeModel


def numbers(rows: int, start: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"n": range(start, start + rows)}, index=range(start, start + rows))


def double(row: Any) -> int:
    return int(row["n"]) * 2


def odd_fails(row: Any) -> int:
    if row["n"] % 2:
        raise ValueError("odd")
    return int(row["n"])


def sizes(results: Iterator[revkit.ParallelResult]) -> list[int]:
    return [len(result.frame) for result in results]


def test_a_frame_a_series_items_and_frames_become_chunks() -> None:
    frame = numbers(5)
    frames = [result.frame for result in map_chunks(frame, double, chunk_rows=2, output="twice")]
    assert [f.index.tolist() for f in frames] == [[0, 1], [2, 3], [4]]
    assert pd.concat(frames)["twice"].tolist() == [0, 2, 4, 6, 8]
    assert list(frame.columns) == ["n"]  # it is not written to
    assert sizes(map_chunks(frame["n"], str, chunk_rows=3)) == [3, 2]
    items = ({"n": n} for n in range(5))
    assert sizes(map_chunks(items, double, chunk_rows=2)) == [2, 2, 1]
    several = iter([numbers(3), numbers(1, 3), numbers(4, 4)])
    assert sizes(map_chunks(several, double)) == [3, 1, 4]
    assert sizes(map_chunks([numbers(3), numbers(4)], double, chunk_rows=2)) == [2, 1, 2, 2]
    assert sizes(map_chunks(iter([]), double)) == []
    assert sizes(map_chunks(numbers(0), double, chunk_rows=2)) == [0]


def test_the_chunks_of_a_parquet_file_have_the_index_that_the_frame_has(tmp_path: Path) -> None:
    frame = numbers(7, start=100)
    frame.to_parquet(tmp_path / "n.parquet", row_group_size=2)
    results = list(map_chunks(tmp_path / "n.parquet", double, chunk_rows=3, output="twice"))
    assert [len(result.frame) for result in results] == [3, 3, 1]
    whole = pd.concat([result.frame for result in results])
    assert whole.index.tolist() == frame.index.tolist()
    assert whole["twice"].tolist() == [2 * n for n in range(100, 107)]


def test_a_chunk_is_read_when_it_is_asked_for_and_not_before() -> None:
    read: list[int] = []

    def frames() -> Iterator[pd.DataFrame]:
        for start in range(0, 6, 2):
            read.append(start)
            yield numbers(2, start)

    results = map_chunks(frames(), double)
    next(results)
    assert read == [0]
    next(results)
    assert read == [0, 2]
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (numbers(3), {}, "chunk_rows= is needed"),
        ([1, 2], {}, "chunk_rows= is needed"),
        (numbers(3), {"chunk_rows": 0}, "at least 1"),
        (numbers(3), {"chunk_rows": True}, "at least 1"),
        ({"n": [1]}, {"chunk_rows": 1}, "got dict"),
        (3, {"chunk_rows": 1}, "got int"),
        ("nowhere.parquet", {}, "cannot be read"),
        (numbers(3), {"chunk_rows": 1, "progress": "live"}, "live"),
        (numbers(3), {"chunk_rows": 1, "timeout": 0}, "timeout"),
        (numbers(3), {"chunk_rows": 1, "timeout": True}, "timeout"),
        (numbers(3), {"chunk_rows": 1, "max_failures": -1}, "max_failures"),
        (iter([numbers(3)]), {"max_failures": 0.1}, "not known"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_at_the_call(
    source: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        map_chunks(source, double, **options)


def test_an_unknown_argument_is_refused_at_the_call() -> None:
    with pytest.raises(
        TypeError, match='map_chunks has no argument maxworkers=; did you mean "max'
    ):
        map_chunks(numbers(3), double, maxworkers=2)  # type: ignore[call-arg]


def test_failures_are_counted_over_all_chunks() -> None:
    results = map_chunks(numbers(20), odd_fails, chunk_rows=4, max_failures=5, max_workers=1)
    assert [next(results).metrics.failed for _ in range(2)] == [2, 2]
    with pytest.raises(revkit.RunFailed, match=r"6 rows failed, more than .* \(5\)") as stopped:
        next(results)
    assert "in chunk 3" in str(stopped.value)
    assert "6 of 20 rows are done and 6 failed" in str(stopped.value)
    assert "row 9: ValueError: odd" in str(stopped.value)
    assert stopped.value.result.metrics.total == 4
    share = map_chunks(numbers(20), odd_fails, chunk_rows=4, max_failures=0.5)
    assert len(list(share)) == 5
    with pytest.raises(revkit.RunFailed, match=r"more than max_failures allows \(8\)"):
        list(map_chunks(numbers(20), odd_fails, chunk_rows=4, max_failures=0.4, max_workers=1))


def test_fail_fast_stops_at_the_first_failure() -> None:
    results = map_chunks(numbers(6), odd_fails, chunk_rows=1, fail_fast=True)
    assert next(results).metrics.succeeded == 1
    with pytest.raises(revkit.RunFailed, match="fail_fast=True"):
        next(results)


def test_a_chunk_whose_rows_all_failed_does_not_stop_the_others() -> None:
    def late(row: Any) -> int:
        if row["n"] < 4:
            raise ValueError("early")
        return 1

    results = list(map_chunks(numbers(6), late, chunk_rows=2))
    assert [result.metrics.failed for result in results] == [2, 2, 0]

    def never(row: Any) -> int:
        raise ValueError("no")

    failing = map_chunks(numbers(4), never, chunk_rows=2)
    assert [next(failing).metrics.failed for _ in range(2)] == [2, 2]
    with pytest.raises(revkit.RunFailed, match="all 4 rows failed"):
        next(failing)


def test_the_timeout_is_one_for_all_chunks() -> None:
    model = FakeModel(lambda text: "ok", latency=4.0, clock="virtual")
    frame = pd.DataFrame({"text": list("abcd")})
    results = map_chunks(frame, "{text}", chunk_rows=1, model=model, timeout=10)
    assert [next(results).metrics.wall_s for _ in range(2)] == [4.0, 4.0]
    with pytest.raises(revkit.RunTimeout, match="timeout=10 s was over"):
        next(results)
    assert len(model.calls) == 3
    assert len(list(map_chunks(frame, "{text}", chunk_rows=1, model=model, timeout=17))) == 4


def test_a_budget_is_one_for_all_chunks() -> None:
    model = FakeModel(lambda text: "ok")
    model.max_tokens = 1
    frame = pd.DataFrame({"text": ["word"] * 80})
    budget = revkit.Budget(tokens=120)
    with pytest.raises(revkit.BudgetReached):
        list(map_chunks(frame, "{text}", chunk_rows=4, model=model, budget=budget))
    assert budget.spent_tokens <= 120
    assert len(model.calls) > 4


def test_progress_counts_over_all_chunks() -> None:
    told: list[tuple[int, int, int]] = []

    def note(completed: int, total: int, row: revkit.RowResult) -> None:
        told.append((completed, total, row.row))

    list(map_chunks(numbers(5), double, chunk_rows=2, progress=note, max_workers=1))
    assert told == [(n + 1, 5, n) for n in range(5)]
    told.clear()

    def raises(completed: int, total: int, row: revkit.RowResult) -> None:
        told.append((completed, total, row.row))
        raise ValueError("no")

    results = map_chunks(numbers(4), double, chunk_rows=2, progress=raises)
    with pytest.warns(UserWarning, match="the progress callback raised"):
        next(results)
    next(results)  # it is not called again, and nothing more is said
    assert len(told) == 1


def test_a_bar_goes_on_over_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from revkit.display import progress

    shown: list[tuple[int | None, int, int]] = []

    class Shown(progress.Bar):
        def update(self, record: progress.HowFar) -> None:
            shown.append((total, record.settled, record.failed))

    total: int | None = None

    def bar(rows: int | None) -> progress.Bar:
        nonlocal total
        total = rows
        return Shown()

    monkeypatch.setattr(progress, "bar", bar)
    list(map_chunks(numbers(6), odd_fails, chunk_rows=2, progress=True, max_workers=1))
    assert shown == [(6, n + 1, (n + 1) // 2) for n in range(6)]


def test_an_interrupt_says_how_far_the_whole_is() -> None:
    def press(completed: int, total: int, row: revkit.RowResult) -> None:
        if completed == 3:
            raise KeyboardInterrupt

    results = map_chunks(numbers(6), double, chunk_rows=2, progress=press, max_workers=1)
    next(results)
    with pytest.raises(revkit.Interrupted, match="in chunk 2: it was interrupted") as stopped:
        next(results)
    assert len(stopped.value.result.frame) == 2


def test_totals_of_parts_are_those_of_the_whole() -> None:
    model = FakeModel(
        lambda text: "ok" if int(text) % 3 else ValueError("no"),
        latency=lambda text: 1 + int(text) / 10,
        clock="virtual",
    )
    frame = pd.DataFrame({"n": range(100)})
    whole = frame.llm.parallel_map("{n}", model=model, max_workers=1, inplace=False)
    parts = Totals()
    for number, result in enumerate(
        map_chunks(frame, "{n}", chunk_rows=30, model=model, max_workers=1)
    ):
        part = Totals.of(result._record, None, first=30 * number)
        parts.add(Totals.from_json(part.to_json()))
    assert parts.runs == 4
    for name in ("total", "succeeded", "failed", "attempts", "retries", "from_store"):
        assert getattr(parts, name) == getattr(whole.metrics, name)
    assert parts.wall_s == pytest.approx(whole.metrics.wall_s)
    assert parts.mean_concurrency == pytest.approx(whole.metrics.mean_concurrency)
    assert parts.usage.total_tokens == whole.usage.total_tokens
    assert parts.usage.cost_usd is None
    assert parts.error_types == {"ValueError": 34}
    assert [row for row, *_ in parts.errors] == whole.errors["row"].tolist()[:ERRORS]
    for name, value in whole.latency.items():
        close = 1e-9 if name in ("min", "mean", "max") else 0.02
        assert parts.latency[str(name)] == pytest.approx(value, rel=close)
    assert Totals.from_json(Totals().to_json()).latency["p50"] != 0


def test_samples_of_repeated_rows_are_counted_over_all_chunks() -> None:
    told: list[tuple[int, int, int, int]] = []

    def note(completed: int, total: int, row: revkit.RowResult) -> None:
        told.append((completed, total, row.row, row.sample))

    results = list(
        map_chunks(numbers(3), double, chunk_rows=2, repeat=2, progress=note, max_workers=1)
    )
    assert told == [(n + 1, 6, n // 2, n % 2) for n in range(6)]
    assert [len(result.frame) for result in results] == [2, 1]
    with pytest.raises(revkit.RunFailed, match="row 1: ValueError: odd") as stopped:
        list(map_chunks(numbers(4), odd_fails, chunk_rows=1, repeat=2, max_failures=0.2))
    assert "2 of 8 samples are done" in str(stopped.value)
    with pytest.raises(TypeError, match="batch_key"):
        map_chunks(numbers(3), double, chunk_rows=1, batch_key="n")  # type: ignore[call-arg]
