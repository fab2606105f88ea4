"""A partition's part of a cluster's limits: what it lets start, and what it reports."""

from __future__ import annotations

from typing import Any

import pytest

from revkit.dask.partition_limits import PartitionBudget, PartitionLimits, PartitionRateLimit
from revkit.scheduling.accounts import Amounts, Refusal
from revkit.scheduling.events import (
    CANCELLED,
    Attempt,
    Failure,
    HoldKind,
    Outcome,
    Stop,
    StopKind,
    Success,
)
from revkit.scheduling.throttle import Refused

GOOD = Success({})
STOP = Stop(StopKind.CANCELLED, "enough", cancels=True)


class Reports:
    """Counts how often a report was requested."""

    def __init__(self) -> None:
        self.requested = 0

    def __call__(self) -> None:
        self.requested += 1


def limits(report_now: Reports | None = None, **given: Any) -> PartitionLimits:
    chosen: dict[str, Any] = dict.fromkeys(("rate_limit", "budget", "size", "max_tokens", "price"))
    chosen |= {"reports_load": True, "report_now": report_now or Reports()}
    return PartitionLimits(3, **chosen | given)


def end(limits: PartitionLimits, row: int, outcome: Outcome, *, at: float) -> None:
    limits.settled(Attempt(row, 1, 0), outcome, end=at)
    if outcome is not CANCELLED:
        limits.learn(outcome, start=at - 1, end=at, running=1)


def test_nothing_starts_without_a_share_or_above_max_workers() -> None:
    one = limits()
    assert one.limit == 0
    one.share = 2
    assert one.limit == 2
    one.share = 5
    assert one.limit == 3


def test_a_pause_and_a_stop_of_the_run_let_nothing_start() -> None:
    one = limits()
    assert one.admit(0, None, 0.0) is None
    one.paused_until = 2.0
    assert one.admit(1, None, 1.9) == Refused(2.0, HoldKind.PAUSE)
    assert one.admit(1, None, 2.0) is None
    assert one.running == 2
    one.stop = STOP
    assert one.admit(2, None, 2.0) == STOP
    assert one.running == 2


def test_attempts_are_running_until_they_end_or_the_run_does() -> None:
    one = limits()
    for row in range(3):
        one.admit(row, None, 0.0)
    end(one, 0, GOOD, at=1.0)
    end(one, 1, CANCELLED, at=1.0)
    assert one.running == 1
    one.close()
    assert one.running == 0
    end(one, 2, GOOD, at=1.0)
    assert one.running == 0


def test_how_attempts_ended_is_reported_once_and_not_for_those_that_were_cancelled() -> None:
    one = limits()
    outcomes = [GOOD, CANCELLED, Failure("ServerError", "busy", status=503)]
    for row, outcome in enumerate(outcomes):
        one.admit(row, None, 0.0)
        end(one, row, outcome, at=2.0 + row)
    assert one.report(10.0) == {"ended": [(9.0, 8.0, "ok"), (7.0, 6.0, "overloaded")]}
    assert one.report(10.0) == {}
    quiet = limits(reports_load=False)
    quiet.admit(0, None, 0.0)
    end(quiet, 0, GOOD, at=1.0)
    assert quiet.report(10.0) == {}


def test_a_pause_is_reported_at_once_and_for_the_time_that_is_left() -> None:
    reports = Reports()
    one = limits(reports, reports_load=False)
    one.paused(5.0, 1.0)
    assert reports.requested == 1
    one.paused(5.0, 2.0)
    assert one.report(4.0) == {"pause": 3.0}
    assert one.report(4.0) == {}
    one.paused(5.0, 4.0)
    assert one.report(9.0) == {}  # it is over


def test_tokens_are_settled_where_they_were_reserved() -> None:
    budget = PartitionBudget(Reports())
    budget.add(Amounts(1000), short=False)
    one = limits(budget=budget, size=lambda row: 10, max_tokens=100)
    one.admit(0, None, 0.0)
    assert budget.report(0, closing=True)["granted"][0] > 100
    end(one, 0, Failure("ServerError", "no", status=400), at=1.0)  # which is not billed
    assert budget.report(0, closing=True) == {"granted": [0, 0], "spent": [0, 0]}


def test_a_budget_requests_what_does_not_fit() -> None:
    reports = Reports()
    budget = PartitionBudget(reports)
    assert budget.report(5, closing=False) == {"granted": [0, 0], "spent": [0, 0]}
    assert budget.reserve(30, 10) is Refusal.LATER
    assert reports.requested == 1
    report = budget.report(5, closing=False)
    assert report == {"granted": [0, 0], "spent": [0, 0], "need": [40, 0], "attempts": 5}
    budget.add(Amounts(120), short=False)
    assert budget.reserve(20, 10) is not Refusal.LATER
    assert reports.requested == 1
    report = budget.report(3, closing=False)  # 90 are left, for two attempts of the largest size
    assert (report["granted"], report["need"], report["attempts"]) == ([120, 0], [40, 0], 1)
    assert "need" not in budget.report(2, closing=False)


@pytest.mark.parametrize("short", [False, True])
def test_a_budget_returns_what_it_does_not_use_only_if_others_need_it(short: bool) -> None:
    budget = PartitionBudget(Reports())
    budget.add(Amounts(100), short=short)
    budget.reserve(30, 0)
    report = budget.report(4, closing=False)
    assert report["granted"] == [30 if short else 100, 0]
    assert report["attempts"] == (4 if short else 2)  # two more fit into what it keeps


def test_a_start_is_used_from_its_time_on_until_half_a_second_later() -> None:
    reports = Reports()
    rate = PartitionRateLimit(reports)
    rate.add([1.0, 2.0], tokens=4, offset=0.0)
    assert rate.reserve(7, now=0.9) == 1.0
    assert rate.reserve(7, now=1.5) is None
    assert rate.report(1, closing=False) == {
        "starts": 0,
        "tokens": 7,
        "unused": [],
        "extra": 3,
    }
    again = rate.reserve(7, now=2.6)
    assert again is not None
    assert again > 2.6
    assert reports.requested == 1
    assert rate.report(1, closing=False)["extra"] == -4  # the lost start counts no tokens
