"""The adaptive limit finds the knee of simulated servers, in virtual time and with fixed seeds."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from revkit.errors import UsageError
from revkit.scheduling.adaptive import Adaptive, AdaptiveLimit

PATH = Path(__file__).parents[1] / "benchmarks" / "adaptive.py"
SPEC = importlib.util.spec_from_file_location("simulated", PATH)
assert SPEC is not None
assert SPEC.loader is not None
simulated = importlib.util.module_from_spec(SPEC)
sys.modules["simulated"] = simulated  # its dataclasses look themselves up there
SPEC.loader.exec_module(simulated)
Change, Fixed, Server = simulated.Change, simulated.Fixed, simulated.Server
judge, simulate = simulated.judge, simulated.simulate


def judged(server: dict[str, Any], rows: int, change: Any = None, *, seeds: int = 3) -> list[Any]:
    return [judge(server, rows, seed, change) for seed in range(seeds)]


def missed(verdicts: list[Any], within: float = 0.2) -> list[float]:
    """Ratios of settled limits to the knee that are further off."""
    return [r for told in verdicts for r in told.ratio if abs(r - 1) > within]


@pytest.mark.parametrize(("slots", "rows"), [(4, 3_000), (32, 8_000), (200, 20_000)])
def test_it_settles_at_the_knee_and_again_when_half_the_server_is_gone(
    slots: int, rows: int
) -> None:
    verdicts = judged({"slots": slots}, rows, Change(slots // 2), seeds=10)
    # Of 20 settled limits at most one is off: with 4 slots the next limit, 3 or 5, is off by 25 %.
    assert len(missed(verdicts)) <= 1
    near = [share for told in verdicts for share in told.near]
    assert sum(near) / len(near) > 0.65
    times = sorted(time for told in verdicts for time in told.time)
    assert times[len(times) // 2] < 60  # mean service times
    assert all(told.failed < 0.001 for told in verdicts)


def test_the_verdict_on_a_limit_far_from_the_knee_is_a_bad_one() -> None:
    path = [(0.0, 8)]
    assert simulated.median_limit(path, 0, 100) == 8
    assert simulated.near(path, 0, 100, 4) == 0
    assert simulated.settling_time(path, 0, 100, 4) == float("inf")
    assert missed(judged({"slots": 4}, 40)) == []  # it starts there
    assert missed(judged({"slots": 32}, 40)) != []  # too few rows to get there


@pytest.mark.parametrize(
    ("server", "rows", "later"),
    [
        pytest.param({"slots": 32, "queues": False}, 8_000, 16, id="429 instead of a queue"),
        pytest.param({"slots": 32, "growth": 0.5}, 8_000, 16, id="batching"),
        pytest.param({"slots": 32, "sigma": 0}, 8_000, 16, id="constant latency"),
        pytest.param({"slots": 32, "words": "bimodal"}, 8_000, 16, id="bimodal lengths"),
        pytest.param({"slots": 32, "refused": 0.1}, 8_000, 16, id="a tenth is refused at random"),
        pytest.param({"slots": 16}, 8_000, 32, id="doubles"),
    ],
)
def test_it_settles_at_the_knee_of_other_servers(
    server: dict[str, Any], rows: int, later: int
) -> None:
    verdicts = judged(server, rows, Change(later))
    assert len(missed(verdicts)) <= 1
    assert missed(verdicts, within=0.4) == []


def test_a_slower_server_with_the_same_knee_keeps_its_limit() -> None:
    assert missed(judged({"slots": 32}, 8_000, Change(32, slower=3))) == []


def test_where_a_queue_is_refused_few_rows_pay_for_the_search() -> None:
    for told in judged({"slots": 32, "queues": False, "refused": 0}, 8_000, Change(16)):
        assert told.refused < 0.08
        assert told.failed < 0.001


@pytest.mark.parametrize("sigma", [0.5, 0.0])
def test_it_reaches_the_maximum_where_nothing_limits_it(sigma: float) -> None:
    for told in judged({"slots": 10**9, "sigma": sigma}, 6_000):
        assert told.settled == [256]


def test_a_short_run_is_as_fast_as_with_four_workers() -> None:
    for seed in range(5):
        control = AdaptiveLimit(Adaptive())
        assert simulate(control, Server(32), 12, seed) == simulate(Fixed(4), Server(32), 12, seed)
        assert control.path == [(0.0, 4)]


def feed(control: AdaptiveLimit, times: int, **given: Any) -> None:
    """Attempts of a second that end at once, as many as may run."""
    for _ in range(times):
        now = control.path[-1][0] + 1.0
        told = {"start": now, "end": now + 1, "running": control.limit, "outcome": "ok", **given}
        control.settled(**told)


def test_nothing_is_learnt_where_the_limit_is_not_what_decides() -> None:
    control = AdaptiveLimit(Adaptive())
    feed(control, 1000, running=3)
    assert control.path == [(0.0, 4)]
    feed(control, 44)
    assert control.path == [(0.0, 4), (2.0, 8)]


@pytest.mark.parametrize(("later", "sought"), [(4, 0.5), (64, 2)])
def test_a_changed_server_is_searched_anew_in_the_right_direction(
    later: int, sought: float
) -> None:
    control, now = AdaptiveLimit(Adaptive()), 0.0

    def answer(times: int, slots: int) -> None:
        nonlocal now
        for _ in range(times):
            latency, running = max(1.0, control.limit / slots), control.limit
            now += latency / running
            control.settled(start=now - latency, end=now, running=running, outcome="ok")

    answer(1000, slots=8)
    known = len(control.path)
    answer(400, slots=later)
    limits = [limit for _, limit in control.path[known - 1 :]]
    steps = [after / before for before, after in itertools.pairwise(limits)]
    assert next(step for step in steps if not 0.7 < step < 1.5) == sought


def test_where_all_is_overloaded_it_goes_down_and_comes_up_again() -> None:
    control = AdaptiveLimit(Adaptive())
    feed(control, 100, outcome="overloaded")
    assert control.limit <= 2
    feed(control, 20_000)
    assert control.limit > 200


@pytest.mark.parametrize("refused", [1, 3])
def test_a_server_that_refuses_at_random_does_not_hold_the_limit_down(refused: int) -> None:
    control = AdaptiveLimit(Adaptive())
    for _ in range(4_000):
        feed(control, refused, outcome="overloaded")
        feed(control, 1)
    assert min(limit for _, limit in control.path) == 1  # it looked whether fewer are refused there
    assert control.limit > 200


def test_a_server_that_refuses_at_random_no_more_is_watched_again() -> None:
    control = AdaptiveLimit(Adaptive())
    for _ in range(500):
        feed(control, 1, outcome="overloaded")
        feed(control, 1)
    feed(control, 2_000)
    before = control.limit
    feed(control, 9, outcome="overloaded")
    assert control.limit < before


def test_failures_of_rows_do_not_rule_a_limit_out() -> None:
    control = AdaptiveLimit(Adaptive())
    feed(control, 1000, outcome="other")
    assert control.path == [(0.0, 4)]


def test_a_refusal_of_what_was_started_under_another_limit_does_not_count() -> None:
    control = AdaptiveLimit(Adaptive())
    feed(control, 44)
    assert control.limit == 8
    feed(control, 1000, outcome="overloaded", start=0.5)
    assert control.limit == 8
    feed(control, 9, outcome="overloaded")
    assert control.limit < 8


bounds = st.tuples(st.integers(1, 300), st.integers(1, 300)).map(sorted)
attempts = st.tuples(
    st.sampled_from([0.0, 0.0, 1e-9, 0.01, 1.0, 1e6]),  # since the last one
    st.sampled_from([0.0, 0.0, 1e-9, 0.5, 7.0, 1e9]),  # latency
    st.sampled_from([0, 0, 0, 0, 1, -1, 5]),  # more running than the limit
    st.sampled_from(["ok", "ok", "ok", "overloaded", "other"]),
    st.integers(1, 100),  # so often
)


@given(bounds, st.lists(attempts, max_size=60))
def test_the_limit_stays_within_its_bounds_whatever_happens(
    bounds: list[int], history: list[tuple[float, float, int, Any, int]]
) -> None:
    minimum, maximum = bounds
    control, now = AdaptiveLimit(Adaptive(minimum, maximum)), 0.0
    for pause, latency, more, outcome, times in history:
        for _ in range(times):
            now += pause
            running = max(1, control.limit + more)
            control.settled(start=now - latency, end=now, running=running, outcome=outcome)
            assert minimum <= control.limit <= maximum
    assert control.path[0] == (0.0, min(max(4, minimum), maximum))
    assert control.path[-1][1] == control.limit
    assert control.path == sorted(control.path, key=lambda one: one[0])
    assert all(one[1] != other[1] for one, other in itertools.pairwise(control.path))


@examples(25)
@given(bounds)
def test_every_limit_that_may_be_tried_can_be_reached(bounds: list[int]) -> None:
    minimum, maximum = bounds
    control = AdaptiveLimit(Adaptive(minimum, maximum))
    feed(control, 8_000)
    assert max(limit for _, limit in control.path) == maximum


@pytest.mark.parametrize(
    "wrong",
    [
        {"minimum": 0},
        {"maximum": 0},
        {"minimum": 1.5},
        {"maximum": True},
        {"maximum": None},
        {"minimum": 5, "maximum": 4},
    ],
)
def test_impossible_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="Adaptive"):
        Adaptive(**wrong)
