"""The rules that decide from numbers alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revkit.errors import UsageError
from revkit.scheduling.events import Failure, Stop, StopKind
from revkit.scheduling.policy import Retry, failure_limit, failure_stop, worker_count

seconds = st.floats(0, 1e6)
chances = st.floats(0, 1)


@given(seconds, seconds, st.integers(1, 5000), chances)
def test_a_wait_stays_within_its_bounds(
    initial: float, maximum: float, failures: int, chance: float
) -> None:
    wait = Retry(initial=initial, maximum=maximum).wait(failures, chance=chance)
    assert 0 <= wait <= maximum
    assert wait <= initial * 2.0 ** min(failures - 1, 1000)


@given(seconds, seconds, st.integers(1, 100), chances, chances)
def test_a_wait_grows_with_chance_and_failures(
    initial: float, maximum: float, failures: int, one: float, other: float
) -> None:
    retry = Retry(initial=initial, maximum=maximum)
    low, high = sorted([one, other])
    assert retry.wait(failures, chance=low) <= retry.wait(failures, chance=high)
    assert retry.wait(failures, chance=one) <= retry.wait(failures + 1, chance=one)
    assert retry.wait(failures, chance=0.0) == 0.0


def test_the_limit_of_a_wait_doubles() -> None:
    waits = [Retry(initial=0.5, maximum=30).wait(n, chance=1.0) for n in range(1, 9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    "arguments",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"attempts": 2.0},
        {"attempts": True},
        {"attempts": None},
        {"initial": -0.1},
        {"maximum": math.nan},
        {"maximum": math.inf},
        {"initial": math.inf},
        {"max_pause": "60"},
        {"max_pause": math.nan},
        {"max_elapsed": -1},
        {"max_elapsed": True},
    ],
)
def test_impossible_retries_are_refused(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(UsageError, match=rf"Retry\({name}="):
        Retry(**arguments)


def test_pauses_without_end_may_be_allowed() -> None:
    assert Retry(max_pause=math.inf, max_elapsed=math.inf).max_pause == math.inf


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_number_of_failures_is_that_number(limit: int, rows: int) -> None:
    assert failure_limit(limit, fail_fast=False, rows=rows) == limit


@given(st.integers(2, 10_000), st.data())
def test_a_share_is_exceeded_by_the_first_row_above_it(rows: int, data: st.DataObject) -> None:
    allowed = data.draw(st.integers(1, rows - 1))
    assert failure_limit(allowed / rows, fail_fast=False, rows=rows) == allowed


def test_a_share_of_few_rows_allows_none() -> None:
    assert failure_limit(0.05, fail_fast=False, rows=10) == 0
    assert failure_limit(0.29, fail_fast=False, rows=100) == 29  # whose product is 28.99…
    assert failure_limit(0.5, fail_fast=False, rows=0) == 0


def test_fail_fast_allows_none() -> None:
    assert failure_limit(None, fail_fast=True, rows=100) == 0
    assert failure_limit(None, fail_fast=False, rows=100) is None
    with pytest.raises(UsageError, match="leave max_failures= out"):
        failure_limit(3, fail_fast=True, rows=100)


@pytest.mark.parametrize("value", [-1, 0.0, 1.0, 1.5, -0.1, True, math.nan, math.inf, "3"])
def test_impossible_limits_of_failures_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="max_failures="):
        failure_limit(value, fail_fast=False, rows=100)


@given(st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_a_run_stops_above_its_limit_of_failures(failed: int, limit: int, fail_fast: bool) -> None:
    stop = failure_stop(failed, limit, fail_fast=fail_fast)
    assert (stop is not None) == (failed > limit)
    assert stop is None or (stop.kind, stop.cancels) == (StopKind.FAILURES, fail_fast)
    assert failure_stop(failed, None, fail_fast=fail_fast) is None


@pytest.mark.parametrize("cancels", [(False, False), (False, True), (True, False), (True, True)])
def test_the_first_reason_to_stop_stays_and_any_stop_may_cancel(cancels: tuple[bool, bool]) -> None:
    first = Stop(StopKind.BUDGET, "it is spent", cancels[0])
    later = Stop(StopKind.CANCELLED, "enough", cancels[1])
    assert first.after(None) == first
    assert later.after(first) == first._replace(cancels=any(cancels))


@pytest.mark.parametrize(
    ("status", "pause", "run_pause"),
    [(429, 2.5, 2.5), (503, 1.0, 1.0), (429, None, 0.0), (429, 0.0, 0.0), (500, 2.5, 0.0)],
)
def test_only_an_overloaded_server_pauses_the_run(
    status: int, pause: float | None, run_pause: float
) -> None:
    assert Failure("ServerError", "busy", status=status, pause=pause).run_pause == run_pause


@given(
    st.integers(0, 1000),
    st.integers(1, 256),
    st.none() | st.integers(1, 1000),
    st.integers(1, 64),
)
def test_workers_are_never_more_than_rows_nor_fewer_than_one(
    rows: int, cpus: int, asked: int | None, cap: int
) -> None:
    found = worker_count(rows, cpus, max_workers=asked, worker_cap=cap)
    wanted = min(2 * cpus, cap) if asked is None else asked
    assert found == max(1, min(wanted, rows))
