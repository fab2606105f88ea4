"""The server is called the limit of a run where it was, and nowhere else."""

from __future__ import annotations

import asyncio
import heapq
import random
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from records import empty_record
from test_display import result, sanitized

import revkit
from revkit import display
from revkit.record.record import DECISIONS, Record
from revkit.results.bottleneck import Bottleneck, find_bottleneck
from revkit.scheduling.events import Decision, Failure, Hold, HoldKind
from revkit.testing import FakeModel

Work = Callable[[float], float]  # what a row takes that the server begins at that time


def _loaded_at(loading: float, took: float) -> Work:
    return lambda begun: took + max(0.0, loading - begun)


def _slow_for_a_while(took: float) -> Work:
    return lambda begun: took * (4 if 10 < begun < 20 else 1)


def _with_stalls(took: float) -> Work:
    return lambda begun: took + (5 - begun % 5 if begun % 10 > 5 else 0)


def lasting(seconds: Any) -> list[Work]:
    return [_loaded_at(0.0, float(took)) for took in seconds]


def record_of(
    work: list[Work], workers: int, slots: int | None = None, *, failing: Any = ()
) -> Record:
    """A run on a server of so many slots, first come first served, worked out by hand."""
    free, places = [(0.0, number) for number in range(workers)], [0.0] * (slots or len(work))
    ended = []
    for row, seconds in enumerate(work):
        start, worker = heapq.heappop(free)
        begun = max(start, heapq.heappop(places))
        end = begun + seconds(begun)
        heapq.heappush(places, end)
        heapq.heappush(free, (end, worker))
        ended.append((end, start, row, worker))
    record = empty_record(len(work), asks_model=True)
    ended.sort()
    end_at, start_at, row_of, worker_of = zip(*ended, strict=True)
    record.end, record.start = array("d", end_at), array("d", start_at)
    record.row, record.worker = array("q", row_of), array("q", worker_of)
    record.decision = array("b", [DECISIONS.index(Decision.OK)] * len(ended))
    for row, failure in failing:
        place = list(record.row).index(row)
        record.decision[place] = DECISIONS.index(Decision.FAIL)
        record.attempt_failures[place] = failure
    record.workers, record.ended = workers, max(record.end)
    return record


def log_normal(seed: int, rows: int, sigma: float = 0.6) -> Any:
    return np.random.default_rng(seed).lognormal(0, sigma, rows)


# -- where it was ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "workers"),
    [(1, 16), (2, 16), (4, 16), (1, 32), (4, 32), (16, 32), (1, 64), (2, 64), (4, 64), (16, 64)],
)
def test_a_server_with_fewer_slots_than_workers_is_the_limit(slots: int, workers: int) -> None:
    found = find_bottleneck(record_of(lasting(log_normal(slots, 400)), workers, slots))
    assert found is not None
    assert found.slots == pytest.approx(slots, rel=0.07)
    assert found.workers == workers
    assert found.stretch == pytest.approx(workers / slots, rel=0.4)


@examples(25)
@given(
    seed=st.integers(0, 10_000),
    slots=st.integers(1, 8),
    sigma=st.floats(0.05, 0.8),
    loading=st.sampled_from([0.0, 3.0, 30.0]),
)
def test_it_is_found_whatever_rows_take_and_while_the_model_was_loaded_first(
    seed: int, slots: int, sigma: float, loading: float
) -> None:
    """Of four times as many workers. A miss would be no fault, but the slots may not be wrong."""
    work = log_normal(seed, 300, sigma)
    waits: list[Work] = [_loaded_at(loading, float(took)) for took in work]
    found = find_bottleneck(record_of(waits, 4 * slots, slots))
    assert found is None or found.slots == pytest.approx(slots, abs=1)
    plain = find_bottleneck(record_of(lasting(work), 8 * slots, slots))
    assert plain is None or plain.slots == pytest.approx(slots, abs=1)


def test_a_model_that_is_loaded_first_does_not_hide_it() -> None:
    work = log_normal(3, 300)
    work[0] += 20.0
    assert find_bottleneck(record_of(lasting(work), 16, 1)) is not None


# -- where it was not ------------------------------------------------------------------------


KINDS = [
    *("log-normal", "wide", "gamma", "constant", "nearly constant", "even", "some very long"),
    *("long ones together", "heavy tail", "slow start", "shortest first", "longest first"),
    *("in order and alike", "in order and growing", "slower for a while", "stalls", "loading"),
]


def _of(kind: str, chance: np.random.Generator, rows: int, workers: int) -> list[Work]:
    usual = chance.lognormal(0, 0.6, rows)
    if kind == "slower for a while":
        return [*map(_slow_for_a_while, usual)]
    if kind == "stalls":
        return [*map(_with_stalls, usual)]
    if kind == "loading":
        return [_loaded_at(20.0, took) for took in usual]
    return lasting(
        {
            "log-normal": usual,
            "wide": chance.lognormal(0, 1.2, rows),
            "gamma": chance.gamma(2, 0.5, rows),
            "constant": np.ones(rows),
            "nearly constant": chance.normal(1, 0.002, rows),
            "even": chance.uniform(0.5, 1.5, rows),
            "some very long": np.where(chance.random(rows) < 0.3, 10, 1) * usual,
            "long ones together": np.where(np.arange(rows) // 20 % 2, 10, 1) * usual,
            "heavy tail": 1 + chance.pareto(1.5, rows),
            "slow start": usual + np.where(np.arange(rows) < workers, 20, 0),
            "shortest first": np.sort(usual),
            "longest first": np.sort(usual)[::-1],
            "in order and alike": np.linspace(1, 1.3, rows),
            "in order and growing": np.linspace(0.1, 3, rows),
        }[kind]
    )


@examples(60)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([(60, 16), (150, 8), (200, 32), (400, 16), (400, 64)]),
    kind=st.sampled_from(KINDS),
)
def test_a_server_with_a_slot_for_each_worker_is_never_called_the_limit(
    seed: int, size: tuple[int, int], kind: str
) -> None:
    rows, workers = size
    work = _of(kind, np.random.default_rng(seed), rows, workers)
    assert find_bottleneck(record_of(work, workers)) is None
    assert find_bottleneck(record_of(work, workers, workers)) is None


def limited(**changed: Any) -> Record:
    record = record_of(lasting(log_normal(1, 300)), 16, 2)
    for name, value in changed.items():
        setattr(record, name, value)
    return record


def test_nothing_is_said_of_a_run_that_something_else_held_back() -> None:
    assert find_bottleneck(limited()) is not None
    assert find_bottleneck(limited(asks_model=False)) is None
    assert find_bottleneck(limited(limits=[(0.0, 16)])) is None
    assert find_bottleneck(limited(places=[("host", "1")] * 16)) is None
    assert find_bottleneck(limited(workers=1)) is None
    assert find_bottleneck(limited(workers=101)) is None  # too few rows for so many
    for kind in HoldKind:
        assert find_bottleneck(limited(holds=[Hold(kind, 10.0, 50.0)])) is None
    assert find_bottleneck(limited(workers=32)) is None  # half of them idle


def test_nothing_is_said_where_requests_were_turned_away_or_came_to_nothing() -> None:
    work = lasting(log_normal(1, 300))

    def found(rows: range, status: int) -> Bottleneck | None:
        failing = [(row, Failure("ServerError", "no", status=status)) for row in rows]
        return find_bottleneck(record_of(work, 16, 2, failing=failing))

    assert found(range(100, 102), 429) is not None
    assert found(range(100, 110), 429) is None
    assert found(range(100, 110), 400) is not None
    assert found(range(100, 200), 400) is None


def test_nothing_is_said_where_the_clients_own_work_may_have_been_the_limit() -> None:
    assert find_bottleneck(record_of(lasting(log_normal(1, 300) * 0.002), 16, 1)) is None
    assert find_bottleneck(record_of(lasting(log_normal(1, 300) * 0.05), 16, 1)) is not None


@pytest.mark.parametrize("rows", [0, 1, 5, 40, 48])
def test_a_short_run_of_any_kind_is_looked_at_without_harm(rows: int) -> None:
    record = record_of(lasting(np.ones(rows)), 4) if rows else empty_record(0, asks_model=True)
    assert find_bottleneck(record) is None


# -- a whole run -----------------------------------------------------------------------------


def run_on(slots: int, **options: Any) -> revkit.ParallelResult:
    free = [0.0] * slots

    def latency(text: str) -> float:
        now = asyncio.get_running_loop().time()
        done = max(now, heapq.heappop(free)) + random.Random(text).lognormvariate(0, 0.5)
        heapq.heappush(free, done)
        return done - now

    model = FakeModel(lambda text: "positive", latency=latency, clock="virtual")
    frame = pd.DataFrame({"review": [f"review {n}" for n in range(200)]})
    run: revkit.ParallelResult = frame.llm.parallel_map(model=model, **options)
    return run


def test_the_report_and_the_cell_say_so(tmp_path: Any) -> None:
    run = run_on(4, max_workers=32)
    assert run.bottleneck is not None
    report = run.report()
    assert "  the server    was the limit: 32 workers, but it worked on about 4 at a time" in report
    assert max(map(len, report.splitlines())) <= 100
    assert "32 workers, but it worked on about 4 at a time" in run._repr_html_()
    run.to_parquet(tmp_path / "run.parquet")
    again = revkit.ParallelResult.read_parquet(tmp_path / "run.parquet")
    assert again.bottleneck == run.bottleneck
    assert again.report() == report


def test_a_run_that_was_not_limited_says_nothing() -> None:
    for run in (run_on(32, max_workers=32), run_on(4, max_workers="adaptive")):
        assert run.bottleneck is None
        assert "the server" not in run.report()
    limit = revkit.RateLimit(requests_per_minute=120)
    assert run_on(4, max_workers=32, rate_limit=limit).bottleneck is None


@pytest.mark.parametrize(
    ("protocol", "setting"),
    [
        ("ollama", "OLLAMA_NUM_PARALLEL"),
        ("openai", "--parallel; vLLM: --max-num-seqs"),
        ("local", "revkit.Local(slots=...)"),
        (None, "its number of parallel requests"),
    ],
)
def test_the_setting_that_helps_is_named(protocol: str | None, setting: str) -> None:
    run = result()
    run.bottleneck = Bottleneck(slots=4, workers=64, service_s=3.2, base_s=0.2)
    run.provenance = {"model": {"settings": {"protocol": protocol}} if protocol else None}
    report = " ".join(display.text(run).split())
    assert "64 workers, but it worked on about 4 at a time" in report
    assert "a reply took 16.0 x as long as the work on it (3.20 s instead of 200 ms)" in report
    assert "More workers cannot help; 4 would be about as fast" in report
    assert setting in report


def test_nbval_compares_neither_that_it_is_said_nor_how() -> None:
    quiet, told = result(), result()
    told.bottleneck = Bottleneck(slots=4, workers=64, service_s=3.2, base_s=0.2)
    assert sanitized(display.text(told)) == sanitized(display.text(quiet))
    assert sanitized(display.html(told)) == sanitized(display.html(quiet))
