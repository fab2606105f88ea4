"""What decides about a cluster, on a virtual clock: shares, starts, budgets, claims, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st

from revkit.dask.claims import Claims
from revkit.dask.coordinator import TICK, UNKNOWN, Coordinator
from revkit.dask.partition_limits import PartitionBudget, PartitionRateLimit
from revkit.dask.shared_budget import SharedBudget
from revkit.dask.shared_rate_limit import SharedRateLimit
from revkit.dask.shares import fair
from revkit.scheduling.accounts import Amounts, Reservation
from revkit.scheduling.events import StopKind

Terms = dict[str, Any]


def begin(coordinator: Coordinator, key: str = "k", now: float = 0.0, **terms: Any) -> str:
    run = coordinator.begin(key, {"job": key, **terms}, threads=4, now=now)
    return str(run["run"])


def report(**said: Any) -> Terms:
    return {"limit": 0, "running": 0, "demand": 0, **said}


# -- shares ----------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.lists(st.integers(0, 20), max_size=12))
def test_shares_are_fair(total: int, demands: list[int]) -> None:
    shares = fair(total, demands)
    assert sum(shares) == min(total, sum(demands))
    assert all(share <= demand for share, demand in zip(shares, demands, strict=True))
    # Who has less than was asked for has no less than others, but for what does not divide; and
    # that went to those who came first.
    for place, (share, demand) in enumerate(zip(shares, demands, strict=True)):
        if share < demand:
            assert share >= max(shares[:place], default=0) - 1
            assert share >= max(shares[place:])


class Partition:
    """One partition as a worker works it off, with nothing but what it was told."""

    def __init__(self, coordinator: Coordinator, run: str, number: int, rows: int, now: float):
        self.coordinator, self.left, self.running, self.number = coordinator, rows, 0, number
        told = coordinator.open(run, worker=f"w{number}", partition=number, rows=rows, now=now)
        self.name, self.limit = told["session"], told["limit"]

    @property
    def may_run(self) -> int:
        """Attempts that it has running, or might start before it hears again."""
        return max(self.limit, self.running)

    def work(self, ends: int) -> None:
        """Some attempts end, and others start."""
        ended = min(ends, self.running)
        self.running, self.left = self.running - ended, self.left - ended
        self.running = max(self.running, min(self.limit, self.left))

    def exchange(self, now: float, *, heard: bool = True) -> Terms:
        said = report(limit=self.limit, running=self.running, demand=self.left)
        told = self.coordinator.exchange(self.name, said, now=now)
        if heard:  # else the answer was lost on its way
            self.limit = told["limit"]
        return told


STEPS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["open", "work", "exchange", "exchange", "unheard", "lost", "close"]),
        st.integers(1, 9),
    ),
    max_size=60,
)


@given(st.integers(1, 6), STEPS)
def test_shares_never_sum_above_max_workers(
    workers: int, steps: list[tuple[int, str, int]]
) -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=workers)
    sessions: dict[int, Partition] = {}
    for step, (number, what, amount) in enumerate(steps):
        now, session = float(step), sessions.get(number)
        if what == "open" and session is None:
            sessions[number] = Partition(coordinator, run, number, amount, now)
        elif session is None:
            continue
        elif what == "work":
            session.work(amount)
        elif what == "exchange":
            session.exchange(now)
        elif what == "unheard":
            session.exchange(now, heard=False)
        elif what == "lost":
            coordinator.worker_died(f"w{number}")
            del sessions[number]
        elif what == "close" and not session.left:
            coordinator.close(session.name, report(), now=now)
            del sessions[number]
        assert sum(session.may_run for session in sessions.values()) <= workers


@given(st.integers(1, 5), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.randoms())
def test_every_partition_with_rows_gets_its_share_in_the_end(
    workers: int, rows: list[int], chance: Any
) -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=workers)
    open_ = [Partition(coordinator, run, number, left, 0.0) for number, left in enumerate(rows)]
    # Each turn all report, in any order; of what runs one at least ends.
    for turn in range(4 * sum(rows) + 4 * len(rows)):
        chance.shuffle(open_)
        for session in list(open_):
            session.work(chance.randint(1, 3))
            session.exchange(turn * TICK)
            if not session.left:
                coordinator.close(session.name, report(), now=turn * TICK)
                open_.remove(session)
        if not open_:
            return
    raise AssertionError([(session.number, session.left, session.limit) for session in open_])


def test_one_that_only_waits_for_others_has_no_share() -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=1)
    first = coordinator.open(run, worker="one", partition=0, rows=5, now=0.0)
    other = coordinator.open(run, worker="two", partition=1, rows=1, now=0.0)
    assert (first["limit"], other["limit"]) == (1, 0)
    coordinator.exchange(first["session"], report(demand=0), now=0.1)
    told = coordinator.exchange(other["session"], report(demand=1), now=0.2)
    assert told["limit"] == 1


def test_the_leases_of_a_worker_that_is_gone_are_free_at_once() -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=2)
    dead = coordinator.open(run, worker="dead", partition=0, rows=9, now=0.0)
    alive = coordinator.open(run, worker="alive", partition=1, rows=9, now=0.0)
    assert alive["limit"] == 0
    assert alive["tick"] < TICK  # it waits for its share
    coordinator.worker_died("dead")
    told = coordinator.exchange(alive["session"], report(demand=9), now=0.1)
    assert told["limit"] == 2
    assert told["tick"] == TICK
    late = report(limit=2, running=2, demand=9)
    assert coordinator.exchange(dead["session"], late, now=0.2) == {"error": UNKNOWN}
    assert coordinator.close(dead["session"], late, now=0.2) == {"error": UNKNOWN}


def test_a_limit_that_is_found_by_trying_is_shared_out() -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=64, adaptive=[1, 64])
    one = coordinator.open(run, worker="one", partition=0, rows=10_000, now=0.0)
    two = coordinator.open(run, worker="two", partition=1, rows=10_000, now=0.0)
    assert (one["limit"], two["limit"]) == (4, 0)
    limits = {one["session"]: 4, two["session"]: 0}
    highest = 0
    for turn in range(1, 200):
        for session, limit in list(limits.items()):
            ended = [(0.05, 0.0, "ok")] * limit
            said = report(limit=limit, running=limit, demand=5_000, ended=ended)
            limits[session] = coordinator.exchange(session, said, now=turn * TICK)["limit"]
        highest = max(highest, sum(limits.values()))
    assert highest == 64  # a server that is never slower can use them all
    said = report(limit=32, running=32, demand=5_000, ended=[(0.05, 0.0, "overloaded")] * 64)
    assert coordinator.exchange(one["session"], said, now=100.0)["limit"] < 32


# -- failures, pauses and stops --------------------------------------------------------------------


def test_failures_are_counted_together_and_once() -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=2, max_failures=3)

    def open_(worker: str, partition: int) -> str:
        told = coordinator.open(run, worker=worker, partition=partition, rows=9, now=0.0)
        return str(told["session"])

    def fail(session: str, failed: int) -> Any:
        return coordinator.exchange(session, report(demand=5, failed=failed), now=1.0).get("stop")

    one, two = open_("one", 0), open_("two", 1)
    assert fail(one, 2) is None
    coordinator.close(one, report(failed=2), now=1.0)
    assert fail(two, 1) is None
    coordinator.worker_died("two")  # its partition is done anew, and fails as before
    again = open_("three", 1)
    assert fail(again, 1) is None
    anew = open_("three", 0)  # so is one whose result was on a worker that died
    assert fail(anew, 2) is None
    stop = fail(again, 2)
    assert stop is not None
    assert (StopKind(stop[0]), stop[2]) == (StopKind.FAILURES, False)
    assert "4 rows failed, more than max_failures allows (3)" in stop[1]
    assert fail(anew, 2) == stop


def test_failures_on_a_worker_that_died_count_when_they_come_again() -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=2, max_failures=3)
    dead = coordinator.open(run, worker="dead", partition=0, rows=9, now=0.0)["session"]
    alive = coordinator.open(run, worker="alive", partition=1, rows=9, now=0.0)["session"]
    coordinator.exchange(dead, report(demand=7, failed=2), now=0.1)
    coordinator.worker_died("dead")
    assert "stop" not in coordinator.exchange(alive, report(demand=6, failed=3), now=0.2)


def test_attempts_of_workers_that_died_are_counted_whether_or_not_they_had_ended() -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=9)

    def open_(worker: str, partition: int) -> Any:
        return coordinator.open(run, worker=worker, partition=partition, rows=9, now=0.0)["session"]

    done, half = open_("dead", 0), open_("dead", 1)
    coordinator.close(done, report(ok=9, made=10), now=0.1)
    coordinator.exchange(half, report(demand=7, running=2, ok=2, made=3), now=0.1)
    coordinator.worker_died("dead")
    again = open_("alive", 1)
    assert coordinator.close(again, report(ok=9, made=9), now=0.2)["lost"] == 2 + 3
    anew = open_("alive", 0)  # its result was on the worker that died
    assert coordinator.close(anew, report(ok=9, made=9), now=0.3)["lost"] == 2 + 3 + 10


def test_a_stop_that_cancels_comes_on_top_of_one_that_does_not() -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=2)
    session = coordinator.open(run, worker="one", partition=0, rows=9, now=0.0)["session"]
    stop = [StopKind.BUDGET.value, "it is spent", False]
    assert coordinator.exchange(session, report(stop=stop), now=0.1)["stop"] == stop
    coordinator.stop("k", (StopKind.CANCELLED.value, "enough", True))
    assert coordinator.exchange(session, report(), now=0.2)["stop"] == [*stop[:2], True]


def test_fail_fast_cancels_what_runs_elsewhere() -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=2, max_failures=0, fail_fast=True)
    one = coordinator.open(run, worker="one", partition=0, rows=9, now=0.0)["session"]
    two = coordinator.open(run, worker="two", partition=1, rows=9, now=0.0)["session"]
    coordinator.exchange(one, report(demand=9, failed=1), now=0.1)
    kind, reason, cancels = coordinator.exchange(two, report(demand=9), now=0.1)["stop"]
    assert (kind, cancels) == (StopKind.FAILURES.value, True)
    assert "fail_fast=True" in reason


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.1, 60)), min_size=1, max_size=9))
def test_the_longest_pause_that_a_server_asked_for_holds_for_all(
    pauses: list[tuple[int, float]],
) -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=3)
    sessions = [
        coordinator.open(run, worker=str(n), partition=n, rows=9, now=0.0)["session"]
        for n in range(3)
    ]
    until, now = 0.0, 0.0
    for number, pause in pauses:
        now += 0.5
        until = max(until, now + pause)
        told = coordinator.exchange(sessions[number], report(demand=9, pause=pause), now=now)
        assert told["pause"] == pytest.approx(until - now)
        for session in sessions:
            told = coordinator.exchange(session, report(demand=9), now=now)
            assert told["pause"] == pytest.approx(until - now)
    late = coordinator.exchange(sessions[0], report(demand=9), now=until + 0.001)
    assert "pause" not in late


def test_the_timeout_counts_from_the_beginning_of_the_run() -> None:
    coordinator = Coordinator()
    run = begin(coordinator, now=100.0, timeout=60.0)
    first = coordinator.open(run, worker="one", partition=0, rows=1, now=100.0)
    late = coordinator.open(run, worker="two", partition=1, rows=1, now=150.0)
    over = coordinator.open(run, worker="three", partition=2, rows=1, now=200.0)
    assert (first["timeout"], late["timeout"], over["timeout"]) == (60.0, 10.0, 0.0)


def test_a_run_that_nobody_waits_for_is_stopped_and_forgotten() -> None:
    told: list[Any] = []
    coordinator = Coordinator(told.append)
    run = begin(coordinator, max_workers=2)
    session = coordinator.open(run, worker="one", partition=0, rows=9, now=0.0)["session"]
    coordinator.abandoned("k")
    stop = coordinator.exchange(session, report(demand=9), now=0.1)["stop"]
    assert (stop[0], stop[2]) == (StopKind.INTERRUPTED.value, True)
    coordinator.close(session, report(), now=0.2)
    assert told == [{"job": "k"}]
    refused = coordinator.open(run, worker="one", partition=1, rows=9, now=0.3)
    assert refused == {"error": "nobody waits for this run any more"}


# -- the life of a run -----------------------------------------------------------------------------


def test_a_task_that_begins_again_finds_its_run_unless_it_was_submitted_again() -> None:
    coordinator = Coordinator()

    def begin_again() -> tuple[str, bool]:
        reply = coordinator.begin("k", {"job": "j"}, threads=4, now=0.0)
        return reply["run"], reply["again"]

    coordinator.resubmitted(["k"])  # which has no run yet
    first, again = begin_again()
    assert not again
    assert begin_again() == (first, False)
    coordinator.resubmitted(["k", "other"])
    second, again = begin_again()
    assert again
    assert second != first
    assert begin_again() == (second, False)
    for run, is_there in ((first, False), (second, True)):
        reply = coordinator.open(run, worker="one", partition=0, rows=1, now=0.0)
        assert ("session" in reply) == is_there
        if is_there:
            coordinator.close(reply["session"], report(), now=0.0)
    coordinator.abandoned("k")
    assert "error" in coordinator.open(second, worker="one", partition=0, rows=1, now=0.0)
    third, again = begin_again()
    assert again
    assert third not in (first, second)


def test_only_the_next_run_of_a_job_is_collected() -> None:
    coordinator = Coordinator()

    def is_collected() -> bool:
        coordinator.resubmitted(["k"])
        run = begin(coordinator)
        opened = coordinator.open(run, worker="one", partition=0, rows=1, now=0.0)
        return bool(opened["collected"])

    assert not is_collected()
    coordinator.collect("k")
    assert is_collected()
    assert not is_collected()
    coordinator.collect("k")
    coordinator.stop("k", ("interrupted", "enough", True))
    assert not is_collected()


def test_the_end_of_a_run_is_reported_once_when_all_its_partitions_are_finished() -> None:
    summaries: list[Any] = []
    coordinator = Coordinator(summaries.append)
    run = begin(coordinator)
    coordinator.finished("another")
    for partition in range(2):
        opened = coordinator.open(run, worker="one", partition=partition, rows=2, now=0.0)
        coordinator.finished("k")
        assert summaries == []
        last = report(failed=1, ok=1, error=f"error {partition}")
        coordinator.close(opened["session"], last, now=1.0)
    summary = {"job": "k", "failed": 2, "ok": 2, "error": "error 0"}
    coordinator.finished("k")
    assert summaries == [summary]
    coordinator.finished("k")
    coordinator.abandoned("k")
    assert summaries == [summary]


def test_a_collected_run_reports_only_that_it_ended() -> None:
    summaries: list[Any] = []
    coordinator = Coordinator(summaries.append)
    coordinator.collect("k")
    run = begin(coordinator)
    opened = coordinator.open(run, worker="one", partition=0, rows=2, now=0.0)
    coordinator.close(opened["session"], report(failed=2), now=1.0)
    coordinator.finished("k")
    assert summaries == [{"job": "k"}]


def test_requests_are_handled_by_name_and_with_the_time_where_it_matters() -> None:
    coordinator = Coordinator()
    run = begin(coordinator, timeout=5.0)
    message = {"run": run, "worker": "one", "partition": 0, "rows": 1}
    opened = coordinator.handle("open", message, now=2.0)
    assert (opened["now"], opened["timeout"]) == (2.0, 3.0)
    assert coordinator.handle("spent", {"budget": "unknown"}, now=2.0) == {"value": (0, 0)}
    assert coordinator.handle("collect", {"job": "k"}, now=2.0) == {"value": None}


def test_many_sessions_report_less_often() -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=100)
    ticks = [
        coordinator.open(run, worker="one", partition=number, rows=1, now=0.0)["tick"]
        for number in range(100)
    ]
    assert ticks[49] == TICK
    assert ticks[99] == pytest.approx(0.2)  # 500 reports a second together


# -- the rate limit --------------------------------------------------------------------------------


@given(
    st.integers(6, 6_000),
    st.lists(
        st.tuples(st.floats(0.0, 2.0), st.integers(0, 20), st.integers(0, 5)),
        min_size=1,
        max_size=60,
    ),
)
def test_no_window_has_more_starts_than_the_rate_allows(
    per_minute: int, steps: list[tuple[float, int, int]]
) -> None:
    """Starts that are given back as unused must not make a burst of later ones."""
    rate = SharedRateLimit(per_minute, None)
    now, starts = 0.0, list[float]()
    for wait, wanted, back in steps:
        now += wait
        unused = starts[-2 * back :: 2] if back else []
        rate.update(unused=unused, extra=0, now=now)
        starts = [start for start in starts if start not in unused]
        planned = rate.plan(wanted, tokens=0, now=now)
        assert all(now <= start <= now + 1.0 for start in planned)
        starts = sorted(starts + planned)
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            window = starts[last] - starts[first]
            assert last - first + 1 <= per_minute * (window + 0.05) / 60 + 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=40))
def test_a_rate_is_shared_by_runs_and_partitions(asked: list[tuple[int, int]]) -> None:
    limit = {"id": "r", "requests": 600.0, "tokens": None}
    coordinator = Coordinator()
    sessions = []
    for number in range(3):
        run = begin(coordinator, key=f"k{number % 2}", max_workers=9, rate_limit=limit)
        told = coordinator.open(run, worker=str(number), partition=number, rows=99, now=0.0)
        sessions.append(told["session"])
    starts: list[float] = []
    for turn, (number, wanted) in enumerate(asked):
        now = turn * TICK
        told = coordinator.exchange(sessions[number], report(demand=9, starts=wanted), now=now)
        starts += told.get("starts", ())
    assert starts
    gaps = [later - start for start, later in pairwise(starts)]
    assert all(gap >= 0.1 - 0.021 for gap in gaps)


def test_tokens_and_unused_starts_are_reported_with_the_next_exchange() -> None:
    coordinator = Coordinator()
    limit = {"id": "r", "requests": None, "tokens": 600}
    run = begin(coordinator, max_workers=9, rate_limit=limit)
    session = coordinator.open(run, worker="one", partition=0, rows=99, now=0.0)["session"]

    def starts(now: float, **said: Any) -> Any:
        told = coordinator.exchange(session, report(starts=1, tokens=4, **said), now=now)
        return told["starts"]

    assert starts(0.0) == [0.0]
    assert starts(0.1, unused=[], extra=100) == []  # ten seconds' worth
    assert starts(10.0, unused=[], extra=0) == pytest.approx([10.6], abs=0.1)


def test_a_start_that_was_returned_is_planned_again_at_its_own_time() -> None:
    limit = SharedRateLimit(600, None)
    first, second, third = limit.plan(3, tokens=0, now=0.0)
    limit.update(unused=[third, second], extra=0, now=0.0)
    planned = limit.plan(2, tokens=0, now=second)
    assert planned == [second, third]
    limit.update(unused=[second], extra=0, now=0.15)  # which is over
    assert limit.plan(1, tokens=0, now=0.15)[0] > third > first


def test_tokens_that_are_counted_afterwards_delay_the_next_starts() -> None:
    rate = SharedRateLimit(None, 600)
    assert rate.plan(9, tokens=4, now=0.0)[:2] == pytest.approx([0.0, 0.388], abs=0.01)
    rate = SharedRateLimit(None, 600)
    rate.plan(1, tokens=4, now=0.0)
    rate.update(unused=[], extra=100, now=0.1)  # ten seconds' worth
    assert rate.plan(9, tokens=4, now=5.0) == []
    assert rate.plan(1, tokens=4, now=10.0) == pytest.approx([10.6], abs=0.1)


def test_a_start_that_is_not_used_is_given_back_or_lost() -> None:
    asked: list[int] = []
    share = PartitionRateLimit(lambda: asked.append(1))
    share.add([1000.0, 1005.0, 1000.1], tokens=10, offset=-1000.0)
    assert share.reserve(8, now=2.0) == 5.0  # two of them are too late
    said = share.report(3, closing=False)
    assert (said["starts"], said["unused"], said["extra"]) == (2, [], -20)
    assert share.reserve(8, now=5.1) is None
    share.correct(8, 50, now=5.2)
    assert not asked
    again = share.reserve(8, now=5.3)
    assert again is not None
    assert again > 5.3
    assert asked
    share.add([1006.0, 1007.0, 1008.0], tokens=8, offset=-1000.0)
    said = share.report(2, closing=False)  # only two are wanted any more
    assert (said["starts"], said["unused"], said["extra"]) == (0, [1008.0], -2 + 42 - 8)
    said = share.report(2, closing=True)
    assert (said["starts"], said["unused"], said["extra"]) == (0, [1006.0, 1007.0], -16)


# -- the budget ------------------------------------------------------------------------------------


class Spender:
    """One partition that spends what it is given."""

    def __init__(self, coordinator: Coordinator, run: str, number: int):
        self.coordinator, self.worker = coordinator, f"w{number}"
        told = coordinator.open(run, worker=self.worker, partition=number, rows=99, now=0.0)
        self.name = told["session"]
        self.share = PartitionBudget(lambda: None)
        self.running: list[Reservation] = []
        self.billed = 0

    def start(self, size: int) -> None:
        found = self.share.reserve(size, 0)
        if isinstance(found, Reservation):
            self.running.append(found)

    def end(self, used: float) -> None:
        if self.running:
            reservation = self.running.pop()
            spent = int(reservation.prompt * used)
            self.billed += spent
            self.share.settle(reservation, spent, 0)

    def exchange(self, now: float, *, lost: str = "") -> Terms:
        said = report(limit=3, running=len(self.running), demand=9)
        said |= self.share.report(3, closing=False)
        if lost == "report":
            return {}
        told = self.coordinator.exchange(self.name, said, now=now)
        if lost != "answer":
            self.share.add(Amounts(*told.get("granted", ())), short=bool(told.get("short")))
        return told

    @property
    def at_most(self) -> int:
        """What it has spent and may yet spend, without asking anybody."""
        return int(self.share._granted.tokens)


@example(10, [(0, "start", 4), (0, "exchange", 1)] + [(0, "start", 1)] * 5)
@given(
    st.integers(10, 400),
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["start", "end", "exchange", "exchange", "report", "answer", "lost"]),
            st.integers(1, 60),
        ),
        max_size=60,
    ),
)
def test_a_budget_is_never_handed_out_twice(limit: int, steps: list[tuple[int, str, int]]) -> None:
    coordinator = Coordinator()
    budget = {"id": "b", "tokens": limit, "pico": None, "spent": [0, 0]}
    run = begin(coordinator, max_workers=9, budget=budget)
    made = 3
    sessions = {number: Spender(coordinator, run, number) for number in range(made)}
    gone = 0  #: what workers that are dead may have spent
    for step, (number, what, amount) in enumerate(steps):
        session = sessions[number]
        if what == "start":
            session.start(amount)
        elif what == "end":
            session.end(amount / 60)
        elif what == "lost":
            gone += session.at_most
            coordinator.worker_died(session.worker)
            sessions[number], made = Spender(coordinator, run, made), made + 1
        else:
            session.exchange(float(step), lost="" if what == "exchange" else what)
        most = gone + sum(session.at_most for session in sessions.values())
        assert most <= limit
        assert coordinator.spent("b")[0] >= gone + sum(
            session.billed for session in sessions.values()
        )
    # Messages that were lost have cost nothing: what is not spent can be had by who is left.
    last = sessions.pop(0)
    for session in sessions.values():
        while session.running:
            session.end(0.5)
        coordinator.close(session.name, report(**session.share.report(0, closing=True)), now=99.0)
    last.exchange(100.0)
    left = limit - coordinator.spent("b")[0] + last.at_most - last.share._account.spent.tokens
    held = sum(reservation.prompt for reservation in last.running)
    if 0 < last.share._need[0] <= left - held:
        last.exchange(101.0)
        assert isinstance(last.share.reserve(last.share._need[0], 0), Reservation)


def test_a_remainder_too_small_for_an_attempt_is_used_with_what_is_free() -> None:
    """Two tokens are left here and two there: together one more attempt of four."""
    coordinator = Coordinator()
    budget = {"id": "b", "tokens": 10, "pico": None, "spent": [0, 0]}
    only = Spender(coordinator, begin(coordinator, max_workers=9, budget=budget), 0)
    only.start(4)
    only.exchange(0.1)
    assert only.at_most == 8  # two attempts
    for used in (1.0, 0.5):
        only.start(4)
        only.end(used)
    assert "stop" not in only.exchange(0.2)  # 6 are spent, and 4 are left
    only.start(4)
    assert len(only.running) == 1
    assert only.at_most == 10


def test_who_asks_in_vain_comes_before_who_asks_for_more() -> None:
    coordinator = Coordinator()
    budget = {"id": "b", "tokens": 100, "pico": None, "spent": [10, 0]}
    run = begin(coordinator, max_workers=9, budget=budget)
    one, two = Spender(coordinator, run, 0), Spender(coordinator, run, 1)
    one.start(20)
    assert "short" in one.exchange(0.1)
    assert one.at_most == 60  # for three attempts
    one.start(20)
    two.start(40)
    assert "granted" not in two.exchange(0.2)  # 30 are left
    assert one.exchange(0.3)["short"]
    one.exchange(0.4)  # gives back what it does not use
    assert one.at_most == 20
    two.exchange(0.5)
    assert two.at_most == 40
    two.start(40)
    one.end(1.0)
    one.start(20)
    one.exchange(0.6)
    assert one.at_most == 40
    one.start(20)
    one.start(20)
    assert "stop" not in one.exchange(0.7)  # what is in flight may come back
    two.end(1.0)
    told = two.exchange(0.8)  # 70 are spent, and 20 are in flight
    assert told["stop"][0] == StopKind.BUDGET.value
    assert "may need 40 tokens, more than is left of Budget(tokens=100, " in told["stop"][1]


def test_what_a_dead_worker_had_of_a_budget_counts_as_spent() -> None:
    budget = SharedBudget((100, None))
    budget.grant("dead", Amounts(30), attempts=2)
    budget.update("dead", granted=Amounts(60), spent=Amounts(10))
    budget.grant("alive", Amounts(30), attempts=1)
    budget.update("alive", granted=Amounts(30), spent=Amounts(10))
    budget.close("dead", lost=True)
    budget.close("alive", lost=False)
    assert budget.spent == budget.granted == Amounts(70)


@pytest.mark.parametrize(
    "leave",
    [
        lambda budget: budget.close("two", lost=False),
        lambda budget: budget.close("two", lost=True),
        lambda budget: budget.grant("two", Amounts(60), attempts=0),
    ],
    ids=["it is closed", "its worker dies", "it needs no more"],
)
def test_a_session_that_no_longer_waits_for_a_budget_blocks_nobody(
    leave: Callable[[SharedBudget], object],
) -> None:
    budget = SharedBudget((100, None))
    assert budget.grant("one", Amounts(60), attempts=1) == Amounts(60)
    assert budget.grant("two", Amounts(60), attempts=1) is None
    assert budget.is_short_for("one")
    assert budget.grant("one", Amounts(20), attempts=1) is None  # the other one comes first
    leave(budget)
    assert not budget.is_short_for("one")
    assert budget.grant("one", Amounts(20), attempts=1) == Amounts(20)


def test_who_waited_for_a_budget_gets_one_attempt_while_others_wait() -> None:
    budget = SharedBudget((100, None))
    budget.grant("one", Amounts(100), attempts=1)
    for session in ("two", "three"):
        assert budget.grant(session, Amounts(10), attempts=3) is None
    budget.update("one", granted=Amounts(40), spent=Amounts(40))
    assert budget.grant("three", Amounts(10), attempts=3) is None  # the other one asked before
    assert budget.grant("two", Amounts(10), attempts=3) == Amounts(10)
    assert budget.grant("three", Amounts(10), attempts=3) == Amounts(30)


def test_a_worker_that_dies_while_it_waits_for_a_budget_blocks_nobody() -> None:
    coordinator = Coordinator()
    budget = {"id": "b", "tokens": 100, "pico": None, "spent": [0, 0]}
    run = begin(coordinator, max_workers=9, budget=budget)
    one, two = Spender(coordinator, run, 0), Spender(coordinator, run, 1)
    for spender in (one, two):
        spender.start(40)
        spender.exchange(0.1)
    assert (one.at_most, two.at_most) == (80, 0)
    for _ in range(2):
        one.start(40)
    assert "granted" not in two.exchange(0.2)
    coordinator.worker_died(two.worker)
    one.end(0.5)
    one.start(40)
    told = one.exchange(0.3)
    assert (told["granted"], told["short"]) == ([40, 0], False)


def test_a_budget_that_the_user_raised_is_raised_for_the_next_run() -> None:
    coordinator = Coordinator()
    for run, limit in enumerate((100, 200)):
        budget = {"id": "b", "tokens": limit, "pico": None, "spent": [0, 0]}
        only = Spender(coordinator, begin(coordinator, f"k{run}", budget=budget), 0)
        only.start(60)
        only.exchange(0.1)
        assert only.at_most == (60, 120)[run]
        only.start(60)
        only.end(1.0)
        coordinator.close(only.name, report(**only.share.report(0, closing=True)), now=1.0)
    assert coordinator.spent("b") == Amounts(120)


def test_dollars_are_counted_as_tokens_are() -> None:
    budget = SharedBudget((None, 100))
    assert budget.grant("a", Amounts(10**9, 40), attempts=9) == (2 * 10**9, 80)
    assert budget.grant("b", Amounts(10**9, 40), attempts=9) is None
    assert budget.exhausted(Amounts(10**9, 40)) is None
    budget.update("a", granted=Amounts(2 * 10**9, 80), spent=Amounts(10**9, 61))
    assert budget.exhausted(Amounts(10**9, 40)) is not None


# -- claims ----------------------------------------------------------------------------------------


@examples(200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(["claim", "claim", "release", "hear", "close"]),
            st.sets(st.sampled_from([b"1", b"2", b"3"]), min_size=1),
        ),
        max_size=60,
    )
)
def test_a_key_has_one_owner_and_who_waits_hears_when_it_is_free(
    steps: list[tuple[str, str, set[bytes]]],
) -> None:
    claims = Claims()
    owns: dict[str, set[bytes]] = {session: set() for session in "abc"}
    waits: dict[str, set[bytes]] = {session: set() for session in "abc"}
    for session, what, keys in steps:
        if what == "claim":
            taken = set(claims.claim(session, "store", sorted(keys)))
            owns[session] |= keys - taken
            waits[session] = (waits[session] - keys) | taken
        elif what == "release":
            claims.release(session, "store", keys)
            owns[session] -= keys
        elif what == "hear":
            waits[session] -= set(claims.freed(session))
        elif what == "close":
            claims.close(session)
            owns[session], waits[session] = set(), set()
        counts = Counter(key for mine in owns.values() for key in mine)
        assert all(times == 1 for times in counts.values())
    for session in "abc":
        claims.close(session) if not waits[session] else None
        owns[session] = owns[session] if waits[session] else set()
    for session in "abc":  # whoever still owns something lets it go: then nobody waits any more
        claims.release(session, "store", owns[session])
    for session in "abc":
        assert waits[session] <= set(claims.freed(session)), (session, waits[session])
    for session in "abc":
        claims.claim(session, "store", [b"1"])
    for session in "bac":  # one that waits, its owner, and one that was told of it by then
        claims.close(session)
        assert claims.freed(session) == []
    assert not any(vars(claims).values())  # of who is gone nothing is kept


def test_a_session_that_stops_waiting_does_not_end_the_wait_of_others() -> None:
    claims = Claims()
    for session in "abc":
        claims.claim(session, "store", [b"1"])
    claims.close("b")
    claims.release("a", "store", [b"1"])
    assert claims.freed("b") == []
    assert claims.freed("c") == [b"1"]
    claims.claim("c", "store", [b"1"])
    claims.claim("a", "store", [b"1"])
    claims.close("a")  # the only one that waits
    claims.close("c")
    assert not any(vars(claims).values())


def test_stores_do_not_share_their_claims() -> None:
    claims = Claims()
    assert claims.claim("one", "here", [b"1"]) == []
    assert claims.claim("two", "there", [b"1"]) == []
    claims.release("two", "here", [b"1"])  # which is not its own
    assert claims.claim("three", "here", [b"1"]) == [b"1"]
    assert list(claims.parts("here", "a.jsonl", known=0)) == ["a.jsonl"]
    assert list(claims.parts("here", "b.jsonl", known=1)) == ["b.jsonl"]
    assert list(claims.parts("there", "b.jsonl", known=0)) == ["b.jsonl"]


@pytest.mark.parametrize(
    "ends",
    [
        lambda coordinator, session: coordinator.worker_died("one"),
        lambda coordinator, session: coordinator.close(session, report(), now=0.2),
        lambda coordinator, session: coordinator.exchange(
            session, report(released=[("store", [b"key"])]), now=0.2
        ),
    ],
    ids=["its worker dies", "it is closed", "it lets go"],
)
def test_a_claim_that_is_given_up_is_told(ends: Callable[[Coordinator, str], object]) -> None:
    coordinator = Coordinator()
    run = begin(coordinator, max_workers=2)
    one = coordinator.open(run, worker="one", partition=0, rows=9, now=0.0)["session"]
    two = coordinator.open(run, worker="two", partition=1, rows=9, now=0.0)["session"]

    def claim(session: str) -> Any:
        return coordinator.claim(session, "store", [b"key"], parts=0, part=f"{session}.jsonl")[
            "taken"
        ]

    assert claim(one) == []
    assert claim(two) == [b"key"]
    assert "freed" not in coordinator.exchange(two, report(demand=9), now=0.1)
    ends(coordinator, one)
    assert coordinator.exchange(two, report(demand=9), now=0.3)["freed"] == [b"key"]
    assert "freed" not in coordinator.exchange(two, report(demand=9), now=0.4)
    assert claim(two) == []
    assert coordinator.claim("nobody", "store", [b"key"], parts=0, part="x") == {"error": UNKNOWN}
