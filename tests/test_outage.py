"""A server that is away: the rule by itself, on a virtual clock.

``simulate`` lets workers live through a run against a server that is a function of time. What users
see of it is in ``test_away.py``.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from revkit import RateLimit
from revkit.scheduling.adaptive import Adaptive, AdaptiveLimit
from revkit.scheduling.events import (
    CANCELLED,
    Attempt,
    Decided,
    Decision,
    Failure,
    Held,
    HoldKind,
    Outcome,
    Started,
    Stop,
    StopKind,
    Success,
)
from revkit.scheduling.outage import Sign, sign_of
from revkit.scheduling.policy import Retry
from revkit.scheduling.scheduler import DONE, WAIT, Scheduler
from revkit.scheduling.throttle import Throttle
from revkit.task.chat import Reply

GOOD = Success({"response": 1})
REFUSED = Failure("ConnectionFailed", "connection refused", transient=True, sent=False)
BROKEN = Failure("ConnectionFailed", "it broke", transient=True)
TIMEOUT = Failure("AttemptTimeout", "too late", transient=True)
BUSY = Failure("ServerError", "busy", status=503, transient=True)
GARBLED = Failure("BadReply", "half a JSON", status=200, transient=True)
LIMITED = Failure("ServerError", "slow down", status=429, transient=True)
BAD = Failure("ServerError", "bad request", status=400)
MODES = [REFUSED, BROKEN, BUSY, GARBLED]

#: Says how long an attempt at a row takes that starts now, and what comes of it.
Server = Callable[[int, float], tuple[float, Outcome]]


@dataclass
class Seen:
    """What happened in a simulation."""

    settled: dict[int, Decision] = field(default_factory=dict)
    attempts: Counter[int] = field(default_factory=Counter)
    starts: list[tuple[float, int]] = field(default_factory=list)  #: (when, row)
    probes: list[tuple[float, int]] = field(default_factory=list)  #: of them, while away
    highest: int = 0  #: most attempts at once
    now: float = 0.0


def simulate(
    scheduler: Scheduler,
    server: Server,
    workers: int,
    *,
    stop_at: float = math.inf,
    steps: int = 200_000,
) -> Seen:
    """Let workers take and settle until there is nothing left."""
    seen = Seen()
    running: list[tuple[float, int, Attempt, Outcome]] = []
    trials: set[int] = set()

    def settle(row: int, decision: Decision) -> None:
        assert row not in seen.settled, f"row {row} is settled twice"
        seen.settled[row] = decision

    def decided(told: Decided) -> None:
        if told.fact.decision is Decision.FAIL:
            settle(told.fact.attempt.row, Decision.FAIL)
        else:
            assert told.fact.decision is Decision.RETRY

    scheduler.decided = decided
    order = 0
    for _ in range(steps):
        steps_due = math.inf
        while len(running) < workers:
            due = scheduler.due()
            step = scheduler.take(len(running), seen.now)
            if not isinstance(step, Attempt):
                # ``due`` is what wakes the workers that wait.
                if step is DONE:
                    assert due <= seen.now
                    steps_due = -math.inf
                elif step is WAIT:
                    assert due == math.inf
                else:
                    assert isinstance(step, float)
                    assert seen.now < step
                    assert due <= step
                    steps_due = step
                break
            assert due <= seen.now
            if scheduler.away is not None:
                assert not trials, "two probes at once"
                trials.add(step.row)
                seen.probes.append((seen.now, step.row))
            seen.starts.append((seen.now, step.row))
            seen.attempts[step.row] += 1
            took, outcome = server(step.row, seen.now)
            order += 1
            heapq.heappush(running, (seen.now + took, order, step, outcome))
            seen.highest = max(seen.highest, len(running))
        if not running and steps_due == -math.inf:
            return seen
        waits_until = math.inf if steps_due == -math.inf else steps_due
        then = min(running[0][0] if running else math.inf, waits_until)
        assert then < math.inf, "nothing will ever happen"
        seen.now = then
        if then >= stop_at and scheduler.stopped is None:
            scheduler.stop(Stop(StopKind.TIMEOUT, "late", cancels=True))
        while running and running[0][0] <= seen.now:
            _, _, attempt, outcome = heapq.heappop(running)
            if scheduler.stopped is not None and scheduler.stopped.cancels:
                outcome = CANCELLED
            decision = scheduler.settle(attempt, outcome, seen.now)
            trials.discard(attempt.row)
            if decision not in (Decision.RETRY, Decision.PARK):
                settle(attempt.row, decision)
    raise AssertionError("it never ends")


def away_between(
    begin: float,
    end: float,
    mode: Failure = REFUSED,
    *,
    service: float = 0.2,
    fails_in: float = 0.0,
) -> Server:
    """A server that is away for a time; what it was at when it went away breaks."""

    def server(row: int, now: float) -> tuple[float, Outcome]:
        if begin <= now < end:
            return fails_in, mode
        if now < begin < now + service:
            return begin - now, BROKEN
        return service, GOOD

    return server


def scheduler_of(rows: int, workers: int, **options: Any) -> Scheduler:
    chance = random.Random(0).random
    return Scheduler(range(rows), max_workers=workers, chance=chance, **options)


# -- signs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "sign"),
    [
        *[(mode, Sign.TROUBLE) for mode in (*MODES, TIMEOUT, LIMITED)],
        *[
            (Failure("ServerError", "", status=code, transient=True), Sign.TROUBLE)
            for code in (408, 425, 500, 502, 503, 504, 529)
        ],
        (BUSY._replace(pause=3.0), Sign.TROUBLE),
        *[(Failure("ServerError", "", status=code), Sign.LIFE) for code in (400, 401, 403, 413)],
        (Failure("ServerError", "", status=409, transient=True), Sign.LIFE),
        (Failure("BadReply", "not ours", status=200), Sign.LIFE),
        (Failure("BadOutput", "", reply=Reply("?"), correctable=True), Sign.LIFE),
        (LIMITED._replace(pause=3.0), None),
        (Failure("QuotaUsedUp", "", status=429, ends_run=True), None),
        (Failure("ValueError", "of a function"), None),
        (Failure("MissingInput", "", sent=False), None),
    ],
)
def test_what_each_failure_shows_of_the_server(failure: Failure, sign: Sign | None) -> None:
    assert sign_of(failure) is sign


# -- the server goes away, and comes back ----------------------------------------------------------


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.type} {mode.status}")
@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("workers", [1, 2, 3, 16])
def test_no_row_is_lost_and_few_requests_are_made(
    mode: Failure, attempts: int, workers: int
) -> None:
    scheduler = scheduler_of(3000, workers, retry=Retry(attempts=attempts))
    seen = simulate(scheduler, away_between(2.0, 102.0, mode), workers)
    assert set(seen.settled.values()) == {Decision.OK}
    assert len(seen.settled) == 3000
    assert seen.highest <= workers
    during = [row for at, row in seen.starts if 2.0 <= at < 102.0]
    times = [at for at, _ in seen.probes]
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert gaps == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0])
    assert len(during) <= 2 * max(3, workers) + len(times)
    # Another row each time.
    assert all(one != other for (_, one), (_, other) in itertools.pairwise(seen.probes))
    (hold,) = scheduler.holds
    assert hold.kind is HoldKind.OUTAGE
    assert 2.0 <= hold.start < 8.0
    assert hold.end == pytest.approx(times[-1] + 0.2)


def test_rows_that_have_not_failed_yet_probe_first() -> None:
    """Three rows in a row that always fail look like a server that is away, but for a moment."""
    bad = {20, 21, 22}
    scheduler = scheduler_of(60, 1, retry=Retry(attempts=1))
    seen = simulate(scheduler, lambda row, now: (0.1, BUSY if row in bad else GOOD), 1)
    assert {row for row, decision in seen.settled.items() if decision is Decision.FAIL} == bad
    assert seen.probes[0] == (pytest.approx(2.8), 23)
    assert [row for _, row in seen.probes] == [23, 24, 25, 26]
    assert max(seen.attempts.values()) == 4


def test_it_reopens_for_one_two_four_attempts() -> None:
    scheduler = scheduler_of(400, 16)
    seen = simulate(scheduler, away_between(2.0, 9.0), 16)
    back = scheduler.holds[-1].end
    later = Counter(round(at - back, 6) for at, _ in seen.starts if at >= back)
    assert [later[round(0.2 * wave, 6)] for wave in range(5)] == [1, 2, 4, 8, 16]


def test_a_server_that_was_never_started_fails_as_quickly_as_ever() -> None:
    scheduler = scheduler_of(40, 16)
    seen = simulate(scheduler, away_between(0.0, math.inf), 16)
    assert set(seen.settled.values()) == {Decision.FAIL}
    assert set(seen.attempts.values()) == {3}
    assert seen.now < 3.0
    assert not scheduler.holds


@pytest.mark.parametrize("workers", [1, 16])
def test_one_last_row_that_always_fails_ends_by_itself(workers: int) -> None:
    scheduler = scheduler_of(30, workers)
    seen = simulate(scheduler, lambda row, now: (0.2, BUSY if row == 29 else GOOD), workers)
    assert seen.settled.pop(29) is Decision.FAIL
    assert set(seen.settled.values()) == {Decision.OK}
    assert seen.attempts[29] == 3
    assert not scheduler.holds


def test_two_rows_are_too_few_to_tell() -> None:
    scheduler = scheduler_of(2, 2)
    server = iter([(0.1, BAD), *[(0.0, REFUSED)] * 9])
    seen = simulate(scheduler, lambda row, now: next(server), 2)
    assert set(seen.settled.values()) == {Decision.FAIL}
    assert sum(seen.attempts.values()) == 1 + 3


def test_a_reply_to_an_older_request_does_not_end_it() -> None:
    """A server that shuts down finishes what it has, one after the other, and refuses the rest."""
    took = iter([0.1, *(0.5 + 0.3 * n for n in range(15))])

    def server(row: int, now: float) -> tuple[float, Outcome]:
        if now < 0.1 or now >= 60.0:
            return next(took, 0.2), GOOD
        return 0.05, REFUSED

    scheduler = scheduler_of(200, 16, retry=Retry(attempts=1))
    seen = simulate(scheduler, server, 16)
    assert set(seen.settled.values()) == {Decision.OK}
    assert len(scheduler.holds) == 1


def test_it_waits_for_the_pause_that_is_asked_for() -> None:
    scheduler = scheduler_of(100, 4)
    busy = BUSY._replace(pause=20.0)
    seen = simulate(scheduler, away_between(2.0, 50.0, busy), 4)
    assert set(seen.settled.values()) == {Decision.OK}
    times = [at for at, _ in seen.probes]
    assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([20.0] * 3)


def test_a_server_that_is_away_for_too_long_stops_the_run() -> None:
    scheduler = scheduler_of(100, 4, retry=Retry(max_outage=60.0))
    seen = simulate(scheduler, away_between(1.9, math.inf), 4)
    assert set(seen.settled.values()) == {Decision.OK}
    assert len(seen.settled) == 36  # the others are not started
    assert seen.now == pytest.approx(61.9)
    stop = scheduler.stopped
    assert stop is not None
    assert stop.kind is StopKind.OUTAGE
    assert "max_outage=60" in stop.reason
    assert "connection refused" in stop.reason
    assert scheduler.away is not None


def test_a_probe_that_hangs_does_not_delay_the_stop() -> None:
    def server(row: int, now: float) -> tuple[float, Outcome]:
        return (0.2, GOOD) if now < 2 else (0.0, REFUSED) if now < 3 else (500.0, TIMEOUT)

    scheduler = scheduler_of(100, 4, retry=Retry(max_outage=60.0))
    stopped: list[float] = []

    def watched(row: int, now: float) -> tuple[float, Outcome]:
        assert not stopped
        return server(row, now)

    seen = simulate(scheduler, watched, 4)
    assert scheduler.stopped is not None
    assert scheduler.stopped.kind is StopKind.OUTAGE
    assert Decision.FAIL not in seen.settled.values()


def test_timeouts_are_trouble_but_use_up_attempts() -> None:
    scheduler = scheduler_of(60, 4)
    seen = simulate(scheduler, away_between(2.0, 400.0, TIMEOUT, fails_in=10.0), 4)
    assert len(scheduler.holds) == 1
    assert max(seen.attempts.values()) <= 4
    timeouts = Counter(row for at, row in seen.starts if 2.0 <= at < 400.0)
    failed = {row for row, decision in seen.settled.items() if decision is Decision.FAIL}
    assert failed == {row for row, count in timeouts.items() if count == 3}


def test_max_failures_does_not_count_parked_rows() -> None:
    for options in ({"max_failures": 0}, {"max_failures": 0, "fail_fast": True}):
        for workers in (1, 16):
            retry = Retry(attempts=1)
            scheduler = scheduler_of(300, workers, retry=retry, **options)
            seen = simulate(scheduler, away_between(2.0, 40.0), workers)
            assert scheduler.stopped is None
            assert set(seen.settled.values()) == {Decision.OK}


def test_fail_fast_stops_once_the_server_proves_well() -> None:
    scheduler = scheduler_of(300, 4, max_failures=0, fail_fast=True)
    seen = simulate(scheduler, lambda row, now: (0.2, BUSY if row == 20 else GOOD), 4)
    assert scheduler.stopped is not None
    assert scheduler.stopped.kind is StopKind.FAILURES
    assert seen.settled[20] is Decision.FAIL
    assert len(seen.settled) < 60


def test_max_elapsed_does_not_count_the_time_away() -> None:
    scheduler = scheduler_of(300, 4, retry=Retry(max_elapsed=5.0))
    seen = simulate(scheduler, away_between(2.0, 300.0), 4)
    assert set(seen.settled.values()) == {Decision.OK}


def test_a_stop_while_it_is_away_is_prompt() -> None:
    scheduler = scheduler_of(300, 4)
    seen = simulate(scheduler, away_between(2.0, math.inf), 4, stop_at=20.0)
    assert scheduler.stopped is not None
    assert scheduler.stopped.kind is StopKind.TIMEOUT
    assert Decision.FAIL not in seen.settled.values()
    assert scheduler.take(0, seen.now) is DONE


def test_uncommitted_replies_keep_their_places() -> None:
    scheduler = scheduler_of(9, 3, commits=True)
    attempts = [scheduler.take(worker, 0.0) for worker in range(3)]
    assert all(isinstance(one, Attempt) for one in attempts)
    for attempt in attempts:
        assert isinstance(attempt, Attempt)
        scheduler.settle(attempt, GOOD, 0.1)
    assert scheduler.take(0, 0.1) is WAIT
    scheduler.committed(3)
    for worker in range(3):
        step = scheduler.take(worker, 0.2)
        assert isinstance(step, Attempt)
        scheduler.settle(step, REFUSED, 0.2)
    assert scheduler.away is not None
    probe = scheduler.take(0, 0.7)
    assert isinstance(probe, Attempt)
    assert scheduler.take(1, 0.7) == 0.2 + 600.0  # one probe at a time
    scheduler.settle(probe, GOOD, 0.8)
    assert isinstance(scheduler.take(0, 0.8), Attempt)  # one, beside the reply
    assert scheduler.take(1, 0.8) is WAIT


def test_a_correction_that_waits_is_not_lost() -> None:
    shown = Failure("BadOutput", "not a label", reply=Reply("maybe"), correctable=True)
    scheduler = scheduler_of(20, 1)
    said: list[Attempt] = []
    outcomes: Any = iter([GOOD, shown, *[REFUSED] * 3])

    def server(row: int, now: float) -> tuple[float, Outcome]:
        return 0.1, next(outcomes, GOOD)

    scheduler.listener = lambda fact: (
        said.append(fact.attempt) if isinstance(fact, Started) else None
    )
    seen = simulate(scheduler, server, 1)
    assert set(seen.settled.values()) == {Decision.OK}
    last = [attempt for attempt in said if attempt.row == 1][-1]
    assert last.previous is shown


def test_each_row_that_waits_is_told_once() -> None:
    held: list[Held] = []
    scheduler = scheduler_of(80, 4)
    scheduler.listener = lambda fact: held.append(fact) if isinstance(fact, Held) else None
    seen = simulate(scheduler, away_between(2.0, 20.0), 4)
    assert {fact.kind for fact in held} == {HoldKind.OUTAGE}
    assert [(fact.until, fact.row) for fact in held] == seen.probes


# -- no false alarm, and no swinging -------------------------------------------------------------


@pytest.mark.parametrize("service", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("slots", [4, 12])
def test_a_server_that_is_full_is_not_away(slots: int, service: float) -> None:
    for seed in range(3):
        chance = random.Random(seed)
        busy: list[float] = []

        def server(row: int, now: float) -> tuple[float, Outcome]:
            busy[:] = [end for end in busy if end > now]  # noqa: B023
            if len(busy) >= slots:  # noqa: B023
                return 0.005 * chance.lognormvariate(0, 0.5), BUSY  # noqa: B023
            took = service * chance.lognormvariate(0, 0.3)  # noqa: B023
            busy.append(now + took)  # noqa: B023
            return took, GOOD

        scheduler = scheduler_of(300, 16)
        seen = simulate(scheduler, server, 16)
        assert list(seen.settled.values()).count(Decision.FAIL) <= 1
        assert sum(one.kind is HoldKind.OUTAGE for one in scheduler.holds) <= 1
        assert seen.attempts.total() <= 1200
        assert seen.now <= 2 * 300 * service / slots + 10


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("mode", [BUSY, REFUSED, BROKEN])
def test_a_server_that_fails_at_random_is_seldom_away(share: float, mode: Failure) -> None:
    held = 0.0
    for seed in range(5):
        chance = random.Random(seed)

        def server(row: int, now: float) -> tuple[float, Outcome]:
            took = chance.uniform(0.04, 0.06)  # noqa: B023
            return took, mode if chance.random() < share else GOOD  # noqa: B023

        scheduler = scheduler_of(300, 16)
        simulate(scheduler, server, 16)
        held += sum(one.end - one.start for one in scheduler.holds if one.kind is HoldKind.OUTAGE)
    assert held / 5 < (200 if share > 0.7 else 1)


def test_rows_that_fail_always_among_good_ones_fail_by_themselves() -> None:
    for mode in (BUSY, BROKEN, BUSY._replace(status=500)):
        scheduler = scheduler_of(1000, 16)
        chance = random.Random(7)

        def server(row: int, now: float, mode: Failure = mode) -> tuple[float, Outcome]:
            took = chance.uniform(0.1, 0.9)  # noqa: B023
            return took, mode if row % 10 == 3 and row < 900 else GOOD

        seen = simulate(scheduler, server, 16)
        assert HoldKind.OUTAGE not in {hold.kind for hold in scheduler.holds}
        failed = [row for row, decision in seen.settled.items() if decision is Decision.FAIL]
        assert sorted(failed) == list(range(3, 900, 10))
        if mode is BUSY:  # the server may be full, until others show that it is not
            assert max(seen.attempts.values()) <= 15
        else:
            assert {seen.attempts[row] for row in failed} == {3}
            assert not scheduler.holds


CRASHED = Failure("ServerError", "out of memory", status=500, transient=True)


@pytest.mark.parametrize(
    "bad", [range(20, 45), range(700, 1000)], ids=["in the middle", "at the end"]
)
def test_rows_that_the_server_fails_at_one_after_the_other_do_not_hold_the_run(bad: range) -> None:
    scheduler = scheduler_of(1000, 4)
    seen = simulate(scheduler, lambda row, now: (0.03, CRASHED if row in bad else GOOD), 4)
    failed = [row for row, decision in seen.settled.items() if decision is Decision.FAIL]
    assert sorted(failed) == list(bad)
    assert len(seen.settled) == 1000
    assert sum(one.kind is HoldKind.OUTAGE for one in scheduler.holds) == 1
    assert sum(one.end - one.start for one in scheduler.holds) < 35


def test_a_server_that_fails_at_all_for_a_while_is_waited_for() -> None:
    scheduler = scheduler_of(1000, 16)
    seen = simulate(scheduler, away_between(5.0, 20.0, CRASHED), 16)
    assert set(seen.settled.values()) == {Decision.OK}


def test_a_row_that_kills_the_server_does_not_keep_the_run_for_ever() -> None:
    down = [-1.0]

    def server(row: int, now: float) -> tuple[float, Outcome]:
        if now < down[0]:
            return 0.0, REFUSED
        if row == 50:
            down[0] = now + 10.0
            return 0.0, BROKEN
        return 0.2, GOOD

    scheduler = scheduler_of(300, 4)
    seen = simulate(scheduler, server, 4)
    assert seen.settled[50] is Decision.FAIL
    assert len(seen.settled) == 300
    # Rows that were running beside it each time may fail with it.
    assert list(seen.settled.values()).count(Decision.FAIL) <= 4
    assert seen.attempts[50] <= 12


def test_trouble_before_all_workers_run_again_gives_no_attempts_back() -> None:
    """It answers for half a second in between, which is too short to be trusted."""

    def server(row: int, now: float) -> tuple[float, Outcome]:
        is_down = 2.0 <= now < 5.4 or 6.0 <= now < 60.0
        return (0.0, REFUSED) if is_down else (0.2, GOOD)

    scheduler = scheduler_of(200, 8, retry=Retry(attempts=1))
    seen = simulate(scheduler, server, 8)
    failed = {row for row, decision in seen.settled.items() if decision is Decision.FAIL}
    assert len(scheduler.holds) == 2
    assert len(seen.settled) == 200
    assert 3 <= len(failed) <= 8
    assert failed <= {row for at, row in seen.starts if at >= 6.0}


def test_a_failure_after_the_time_away_is_not_too_late() -> None:
    again: Counter[int] = Counter()
    conflict = Failure("ServerError", "conflict", status=409, transient=True)

    def server(row: int, now: float) -> tuple[float, Outcome]:
        if 2.0 <= now < 300.0:
            again[row] += 1
            return 0.0, REFUSED
        if now >= 300.0 and again[row]:
            again[row] = 0
            return 0.1, conflict
        return 0.2, GOOD

    scheduler = scheduler_of(200, 4, retry=Retry(max_elapsed=5.0))
    seen = simulate(scheduler, server, 4)
    assert set(seen.settled.values()) == {Decision.OK}


# -- limits --------------------------------------------------------------------------------------


def test_an_adaptive_limit_learns_nothing_from_the_time_away() -> None:
    def path_of(server: Server) -> list[int]:
        throttle = Throttle(128, adaptive=AdaptiveLimit(Adaptive(minimum=64, maximum=128)))
        scheduler = scheduler_of(4000, 128, throttle=throttle)
        seen = simulate(scheduler, server, 128)
        assert set(seen.settled.values()) == {Decision.OK}
        return [limit for _, limit in throttle.path]

    well = path_of(lambda row, now: (0.2, GOOD))
    for mode in (REFUSED, BUSY):
        assert path_of(away_between(1.0, 40.0, mode)) == well
    # What was running when it went away is answered 503 as well.
    assert path_of(lambda row, now: (0.2, BUSY if 0.95 <= now < 40.0 else GOOD)) == well


def test_rate_limit_and_budget_get_back_what_probes_did_not_use() -> None:
    limit = RateLimit(requests_per_minute=1200)
    throttle = Throttle(4, rate_limit=limit)
    scheduler = scheduler_of(200, 4, throttle=throttle)
    seen = simulate(scheduler, away_between(2.0, 100.0), 4)
    assert set(seen.settled.values()) == {Decision.OK}
    assert throttle.running == 0
    outages = [hold for hold in scheduler.holds if hold.kind is HoldKind.OUTAGE]
    assert len(outages) == 1
    edges = [at for hold in scheduler.holds for at in (hold.start, hold.end)]
    assert edges == sorted(edges)  # no two holds overlap


# -- anything goes -------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 120),
    workers=st.integers(1, 20),
    attempts=st.integers(1, 4),
    mode=st.sampled_from(MODES),
    begin=st.floats(0.5, 5.0),
    longer=st.floats(0.1, 500.0),
    service=st.floats(0.01, 0.4),
    fails_in=st.floats(0.0, 2.0),
    max_failures=st.sampled_from([None, 0, 3]),
    seed=st.integers(0, 2**16),
)
@examples(150)
def test_a_server_that_comes_back_and_stays_well_loses_no_row(
    rows: int,
    workers: int,
    attempts: int,
    mode: Failure,
    begin: float,
    longer: float,
    service: float,
    fails_in: float,
    max_failures: int | None,
    seed: int,
) -> None:
    scheduler = Scheduler(
        range(rows),
        max_workers=workers,
        retry=Retry(attempts=attempts),
        max_failures=max_failures,
        chance=random.Random(seed).random,
    )
    # Long enough that three rows fail, one after the other, after the last reply; where no failure
    # is allowed, two of them use up their attempts before the next one starts.
    backoff = 2 * 0.5 * (2 ** (attempts - 1) - 1)
    end = begin + service + (2 * attempts + 2) * fails_in + backoff + longer
    left = set(range(rows))

    def server(row: int, now: float) -> tuple[float, Outcome]:
        # The last rows are too few to tell: it is never away for them.
        few = len(left) < 3 + workers
        if begin <= now < end and not few:
            return fails_in, mode
        left.discard(row)
        return service, GOOD

    seen = simulate(scheduler, server, workers)
    assert set(seen.settled) == set(range(rows))
    assert set(seen.settled.values()) == {Decision.OK}
    assert seen.highest <= workers


_WEATHER = st.lists(
    st.tuples(
        st.floats(0.05, 40.0),  # how long it lasts
        st.sampled_from([GOOD, BAD, *MODES, TIMEOUT, LIMITED, LIMITED._replace(pause=1.5)]),
        st.sampled_from([0.0, 0.01, 0.3, 3.0]),  # how long a reply takes
        st.sampled_from([0.0, 0.0, 0.3, 1.0]),  # the share that goes well all the same
    ),
    min_size=1,
    max_size=12,
)


@given(
    weather=_WEATHER,
    rows=st.integers(1, 60),
    workers=st.integers(1, 8),
    retry=st.builds(
        Retry,
        attempts=st.integers(1, 4),
        max_outage=st.sampled_from([0.0, 20.0, 600.0, math.inf]),
        max_elapsed=st.sampled_from([0.0, 5.0, 600.0]),
    ),
    max_failures=st.sampled_from([None, None, 0, 5]),
    stop_at=st.sampled_from([math.inf, math.inf, 7.0, 60.0]),
    seed=st.integers(0, 2**16),
)
@examples(300)
def test_whatever_the_server_does_each_row_is_settled_once(
    weather: list[tuple[float, Outcome, float, float]],
    rows: int,
    workers: int,
    retry: Retry,
    max_failures: int | None,
    stop_at: float,
    seed: int,
) -> None:
    chance = random.Random(seed)
    scheduler = Scheduler(
        range(rows),
        max_workers=workers,
        retry=retry,
        max_failures=max_failures,
        chance=chance.random,
    )

    def server(row: int, now: float) -> tuple[float, Outcome]:
        until = 0.0
        for lasts, outcome, took, well in weather:
            until += lasts
            if now < until:
                return took, GOOD if chance.random() < well else outcome
        return 0.2, GOOD  # in the end it is well

    seen = simulate(scheduler, server, workers, stop_at=stop_at)
    assert seen.highest <= workers
    assert all(hold.start <= hold.end for hold in scheduler.holds)
    if scheduler.stopped is None:
        assert set(seen.settled) == set(range(rows))
    else:
        assert set(seen.settled) <= set(range(rows))
    total = sum(lasts for lasts, *_ in weather)
    probes = len(weather) * 12 + total / 0.05
    assert sum(seen.attempts.values()) <= rows * retry.attempts * 4 + probes + 10 * workers


@given(workers=st.integers(1, 32), seed=st.integers(0, 2**16), attempts=st.integers(1, 4))
@examples(60)
def test_a_server_that_fails_at_random_ends(workers: int, seed: int, attempts: int) -> None:
    chance = random.Random(seed)
    scheduler = Scheduler(
        range(400), max_workers=workers, retry=Retry(attempts=attempts), chance=chance.random
    )

    def server(row: int, now: float) -> tuple[float, Outcome]:
        return chance.uniform(0.05, 0.3), BUSY if chance.random() < 0.3 else GOOD

    seen = simulate(scheduler, server, workers)
    assert len(seen.settled) == 400
    assert sum(seen.attempts.values()) < 400 * 2.5
    assert max(seen.attempts.values()) <= attempts + 8
