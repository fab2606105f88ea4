"""The scheduler lives through random histories beside an oracle that is a few plain lists."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from revkit.scheduling.events import CANCELLED, Attempt, Decision, Failure, Stop, StopKind, Success
from revkit.scheduling.pacing import Pacer
from revkit.scheduling.policy import Retry
from revkit.scheduling.refusals import Refusals, RowRefusals
from revkit.scheduling.scheduler import DONE, WAIT, Scheduler

GOOD = Success({"response": 1})
CORRECTABLE = Failure("BadOutput", "not a label", text="maybe", correctable=True)
FINAL = Failure("ZeroDivisionError", "division by zero")
ENDS_RUN = Failure("AccessDenied", "401", status=401, ends_run=True)
BROKEN = Failure("ConnectionFailed", "it broke", transient=True)


def busy(pause: float | None, status: int = 429) -> Failure:
    return Failure("ServerError", "busy", status=status, transient=True, pause=pause)


OUTCOMES: list[Any] = [
    *[GOOD] * 3,
    *[CORRECTABLE] * 3,
    *[BROKEN] * 4,
    *[FINAL] * 2,
    busy(2.0),
    busy(7.0, 503),
    busy(3.0, 500),
    busy(0.0),
    busy(None),
    CANCELLED,
    ENDS_RUN,
    busy(1000.0),
]


def is_trouble(outcome: Any) -> bool:
    asks = outcome.status == 429 and bool(outcome.pause)
    return outcome.transient and not asks and outcome.status not in (409,)


class Histories(RuleBasedStateMachine):
    """Workers take and settle in any order while time passes; the oracle says what must happen.

    The server is never away here: ``test_outage.py`` has histories of that.
    """

    @initialize(
        rows=st.lists(st.integers(0, 30), unique=True, max_size=12),
        max_workers=st.integers(1, 4),
        attempts=st.integers(1, 4),
        max_elapsed=st.sampled_from([0.0, 5.0, 1e6]),
        chance=st.sampled_from([0.0, 0.5, 1.0]),
        max_failures=st.sampled_from([None, None, None, 0, 2]),
        fail_fast=st.booleans(),
        later=st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3),
        commits=st.booleans(),
    )
    def start(
        self,
        rows: list[int],
        max_workers: int,
        attempts: int,
        max_elapsed: float,
        chance: float,
        max_failures: int | None,
        fail_fast: bool,
        later: list[list[int]],
        commits: bool,
    ) -> None:
        self.retry = Retry(attempts=attempts, max_elapsed=max_elapsed)
        self.chance, self.fail_fast = chance, fail_fast
        self.max_failures = 0 if fail_fast and max_failures is not None else max_failures
        self.scheduler = Scheduler(
            iter(rows),
            more=bool(later),
            commits=commits,
            max_workers=max_workers,
            retry=self.retry,
            max_failures=self.max_failures,
            fail_fast=fail_fast,
            chance=lambda: chance,
        )
        self.scheduler.decided = lambda fact: self.decided.append(fact.fact)
        self.now = 100.0
        # what the scheduler says of rows that were parked
        self.decided: list[Any] = []
        self.rows, self.max_workers = list(rows), max_workers
        # batches that are added later, with row numbers of their own
        self.later = [[100 + 10 * i + row for row in set(some)] for i, some in enumerate(later)]
        self.commits, self.uncommitted = commits, 0
        # the oracle: the four places of a row
        self.waiting = list(rows)
        self.again: dict[int, tuple[float, int, Failure]] = {}
        self.running: dict[int, Attempt] = {}
        self.settled: dict[int, Decision] = {}
        # rows whose last attempt is undecided, and when it ended
        self.parked: dict[int, float] = {}
        # when what runs has started, and what shows that the server may be away
        self.started: dict[int, float] = {}
        self.alive = False
        self.troubled: set[int] = set()
        # what a row has behind it
        self.began: dict[int, float] = {}
        self.failures: Counter[int] = Counter()
        self.shown: dict[int, Failure] = {}
        self.doubtful: set[int] = set()
        # what a refusal means is tested beside the module
        self.refusals = Refusals(self.retry, Pacer(), lambda: chance)
        self.refused: defaultdict[int, RowRefusals] = defaultdict(RowRefusals)
        # the run
        self.paused_until = -math.inf
        self.failed = 0
        self.stopped: tuple[StopKind, bool] | None = None

    def held_back(self) -> bool:
        """Rows that may yet fail would be too many: no other row is started meanwhile."""
        doubtful = self.failed + len(self.doubtful)
        return self.max_failures is not None and doubtful > self.max_failures

    def room(self) -> bool:
        return len(self.running) + self.uncommitted < self.max_workers

    def earliest(self) -> float:
        """When something can be taken if nothing else happens; inf: never."""
        if not self.room() or self.stopped is not None:
            return math.inf
        due = [self.now] if self.waiting and not self.held_back() else []
        due += [when for when, _, _ in self.again.values()]
        return max(min(due), self.paused_until, self.now) if due else math.inf

    @rule(worker=st.integers(0, 5))
    def take(self, worker: int) -> None:
        step = self.scheduler.take(worker, self.now)
        when = self.earliest()
        if isinstance(step, Attempt):
            assert when == self.now
            due = [(w, row) for row, (w, _, _) in self.again.items() if w <= self.now]
            if due:  # rows to be tried again come first, those that wait longest before others
                when_due, row = min(due)
                _, number, previous = self.again.pop(row)
                assert step == Attempt(row, number, worker, previous, when_due)
            else:
                assert step == Attempt(self.waiting.pop(0), 1, worker)
            self.running[step.row] = step
            self.started[step.row] = self.now
        elif isinstance(step, float):
            assert self.now < step == when
        elif step is WAIT:
            assert when == math.inf
            assert self.running or self.later or self.uncommitted
            assert self.stopped is None
        else:
            assert self.stopped is not None or self.all_done()

    def all_done(self) -> bool:
        return not (self.waiting or self.again or self.running or self.later)

    @precondition(lambda self: self.later)
    @rule()
    def add(self) -> None:
        self.add_rows()
        self.decide_the_rest()

    def add_rows(self) -> None:
        rows = self.later.pop(0)
        self.rows += rows
        self.waiting += rows
        self.scheduler.add(rows, more=bool(self.later))

    @precondition(lambda self: self.uncommitted)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        replies = data.draw(st.integers(1, self.uncommitted))
        self.uncommitted -= replies
        self.scheduler.committed(replies)

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0, 3.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def settle(self, data: st.DataObject, outcome: Any) -> None:
        row = data.draw(st.sampled_from(sorted(self.running)))
        most = max(3, len(self.running) + self.uncommitted)
        troubles = isinstance(outcome, Failure) and is_trouble(outcome) and self.alive
        if troubles and len({*self.troubled, row}) >= most:
            return  # it might be away
        attempt = self.running.pop(row)
        decision = self.scheduler.settle(attempt, outcome, self.now)
        if outcome is GOOD or outcome is CANCELLED:
            assert decision is (Decision.OK if outcome is GOOD else Decision.CANCEL)
            self.uncommitted += self.commits and outcome is GOOD
            self.doubtful.discard(row)
            self.settled[row] = decision
            if outcome is GOOD:
                self.refusals.succeeded(self.now)
                self.life(row)
            self.decide_the_rest()
            return
        if outcome.status in (401, 409):
            self.life(row)
        if outcome.ends_run:
            self.note_stop(StopKind.FATAL, cancels=True)
        oldest = min((self.started[one] for one in self.running), default=self.now)
        pause, wait, counts = self.refusals.judge(
            row,
            self.refused[row],
            outcome,
            start=self.started[row],
            now=self.now,
            oldest=oldest,
        )
        if pause:
            self.paused_until = max(self.paused_until, self.now + pause)
            if outcome.pause > self.retry.max_pause:
                self.note_stop(StopKind.PAUSE, cancels=False)
        was_stopped = self.stopped is not None
        when = None if was_stopped else self.next_try(row, outcome, wait, counts)
        if is_trouble(outcome) and self.alive and not was_stopped:
            if counts:
                self.troubled.add(row)
            if when is None and (self.waiting or self.again or self.running or self.later):
                assert decision is Decision.PARK
                self.doubtful.discard(row)
                self.parked[row] = self.now
                return
        if when is not None:
            assert decision is Decision.RETRY
            self.doubtful.add(row)
            self.again[row] = (when, attempt.number + 1, self.shown.get(row, outcome))
            return
        assert decision is Decision.FAIL
        self.doubtful.discard(row)
        self.fail(row)
        self.decide_the_rest()

    def life(self, row: int) -> None:
        """The server has answered: what began after a parked row's last attempt decides it."""
        self.alive = True
        self.troubled.clear()
        for one in [one for one, end in self.parked.items() if end <= self.started[row]]:
            self.give_up(one)

    def decide_the_rest(self) -> None:
        if self.all_done():
            for row in list(self.parked):
                self.give_up(row)
        assert not self.decided

    def give_up(self, row: int) -> None:
        del self.parked[row]
        fact = self.decided.pop(0)
        assert (fact.attempt.row, fact.decision) == (row, Decision.FAIL)
        self.fail(row)

    def fail(self, row: int) -> None:
        self.settled[row] = Decision.FAIL
        self.failed += 1
        if self.max_failures is not None and self.failed > self.max_failures:
            self.note_stop(StopKind.FAILURES, cancels=self.fail_fast)

    def next_try(self, row: int, outcome: Failure, wait: float, counts: bool) -> float | None:
        began = self.began.setdefault(row, self.now)
        if outcome.correctable:
            if row in self.shown or self.retry.attempts == 1:
                return None
            self.shown[row] = outcome
            return self.now
        if not outcome.transient:
            return None
        if not counts:
            when = self.now + wait
        else:
            self.failures[row] += 1
            if self.failures[row] == self.retry.attempts:
                return None
            backoff = self.chance * min(30.0, 0.5 * 2 ** (self.failures[row] - 1))
            when = self.now + max(wait, backoff)
        return when if when <= began + self.retry.max_elapsed else None

    @precondition(lambda self: len(self.settled) > 5)
    @rule(kind=st.sampled_from([StopKind.TIMEOUT, StopKind.CANCELLED]), cancels=st.booleans())
    def stop(self, kind: StopKind, cancels: bool) -> None:
        self.scheduler.due()  # a worker has asked for a row and got none
        if self.stopped is not None or not self.all_done():
            self.note_stop(kind, cancels=cancels)
        self.scheduler.stop(Stop(kind, "enough", cancels))

    def note_stop(self, kind: StopKind, *, cancels: bool) -> None:
        """The first reason stands; a later stop may still cancel what runs."""
        if self.stopped is not None:
            kind, before = self.stopped
            cancels = cancels or before
        self.stopped = (kind, cancels)

    @invariant()
    def each_row_is_in_one_place(self) -> None:
        if not hasattr(self, "rows"):
            return
        assert {one.attempt.row for one in self.scheduler.running} == set(self.running)
        places = [*self.waiting, *self.again, *self.running, *self.parked, *self.settled]
        assert sorted(places) == sorted(self.rows)
        assert len(self.running) <= self.max_workers
        stopped = self.scheduler.stopped
        assert (stopped and (stopped.kind, stopped.cancels)) == self.stopped

    @invariant()
    def waiting_workers_are_woken(self) -> None:
        if not hasattr(self, "rows"):
            return
        due = self.scheduler.due()
        if self.stopped is not None or (self.all_done() and self.room()):
            assert due == -math.inf
        else:
            assert max(due, self.now) == self.earliest()

    def teardown(self) -> None:
        """From wherever a history ended: who follows the times that are told reaches the end."""
        if not hasattr(self, "rows"):
            return
        for _ in range(6 * len(self.rows) + 90):
            step = self.scheduler.take(0, self.now)
            if step is DONE:
                break
            if isinstance(step, float):
                assert step > self.now
                self.now = step
                continue
            if step is WAIT:
                if self.uncommitted:
                    self.scheduler.committed(self.uncommitted)
                    self.uncommitted = 0
                    continue
                if self.later:
                    self.add_rows()
                    continue
                assert self.running, "a worker waits, and nothing runs that could wake it"
                row, step = self.running.popitem()
            else:
                row = step.row
                self.again.pop(row, None)
                self.waiting = [one for one in self.waiting if one != row]
            assert row not in self.settled
            self.settled[row] = self.scheduler.settle(step, GOOD, self.now)
            self.uncommitted += self.commits
        else:
            raise AssertionError("the scheduler never says that it is done")
        self.settled |= {fact.attempt.row: fact.decision for fact in self.decided}
        if self.scheduler.stopped is None:
            assert not self.running
            assert sorted(self.settled) == sorted(self.rows)


TestHistories = Histories.TestCase
TestHistories.settings = settings(examples(200), stateful_step_count=50)


@given(
    outcomes=st.lists(
        st.sampled_from(
            [BROKEN, CORRECTABLE, busy(0.0), busy(None), busy(0.1), busy(5.0, 503), busy(2.0, 500)]
        ),
        min_size=1,
        max_size=6,
    ),
    attempts=st.integers(1, 5),
    workers=st.integers(1, 3),
    service=st.sampled_from([0.0, 0.3]),
    chance=st.sampled_from([0.0, 1.0]),
)
def test_a_server_that_never_says_anything_good_costs_a_bounded_number_of_attempts(
    outcomes: list[Failure], attempts: int, workers: int, service: float, chance: float
) -> None:
    """No attempt ever succeeds; whatever the faults are, the run ends, and in bounded time."""
    retry = Retry(attempts=attempts, max_elapsed=30.0)
    scheduler = Scheduler(range(4), max_workers=workers, retry=retry, chance=lambda: chance)
    now, made = 0.0, 0
    running: list[Attempt] = []
    settled = []
    for _ in range(20_000):
        step = scheduler.take(len(running), now)
        if step is DONE:
            break
        if isinstance(step, Attempt):
            running.append(step)
            continue
        if running:
            now += service
            attempt = running.pop(0)
            outcome = outcomes[made % len(outcomes)]
            made += 1
            if scheduler.settle(attempt, outcome, now) is Decision.FAIL:
                settled.append(attempt.row)
        else:
            assert isinstance(step, float)
            assert step > now
            now = step
    else:
        raise AssertionError("it never ends")
    assert sorted(settled) == [0, 1, 2, 3]
    pauses = 30.0 / 0.1 + 1
    assert made <= 4 * (attempts + 1 + pauses)


def take(scheduler: Scheduler, worker: int = 0, now: float = 0.0) -> Attempt:
    step = scheduler.take(worker, now)
    assert isinstance(step, Attempt)
    return step


def test_rows_are_taken_lazily() -> None:
    taken = []

    def rows():
        for row in range(1000):
            taken.append(row)
            yield row

    scheduler = Scheduler(rows(), max_workers=2)
    assert taken == []
    scheduler.take(0, 0.0)
    assert taken == [0]


def test_waiters_are_not_woken_for_nothing() -> None:
    scheduler = Scheduler(range(2), max_workers=4)
    first, second = take(scheduler), take(scheduler)
    assert scheduler.take(2, 0.0) is WAIT
    scheduler.settle(first, GOOD, 1.0)
    assert scheduler.due() == math.inf  # one still runs, and there is no row to take
    scheduler.settle(second, GOOD, 1.0)
    assert scheduler.due() == -math.inf  # to hear that all is done


def test_rows_to_be_tried_again_come_first_and_in_order() -> None:
    scheduler = Scheduler(range(5), max_workers=3)
    attempts = [take(scheduler, worker) for worker in range(3)]
    for seconds, at in ((1.0, 1), (2.0, 0), (3.0, 2)):
        assert scheduler.settle(attempts[at], CORRECTABLE, seconds) is Decision.RETRY
    again = [scheduler.take(0, 3.0) for _ in range(3)]
    assert again == [
        Attempt(row, 2, 0, CORRECTABLE, due) for row, due in ((1, 1.0), (0, 2.0), (2, 3.0))
    ]


def test_a_row_that_waits_holds_no_worker() -> None:
    scheduler = Scheduler(range(3), max_workers=1, chance=lambda: 1.0)
    assert scheduler.settle(take(scheduler), BROKEN, 1.0) is Decision.RETRY  # again at 1.5
    assert take(scheduler, now=1.0).row == 1
    assert scheduler.settle(Attempt(1, 1, 0), GOOD, 1.4) is Decision.OK
    assert scheduler.settle(take(scheduler, now=1.4), GOOD, 1.45) is Decision.OK
    assert scheduler.take(0, 1.45) == 1.5
    assert scheduler.take(0, 1.5) == Attempt(0, 2, 0, BROKEN, 1.5)


def test_a_pause_is_everybodys_and_uses_no_attempt() -> None:
    scheduler = Scheduler(range(9), max_workers=3, retry=Retry(attempts=2))
    attempts = [take(scheduler, worker) for worker in range(3)]
    assert scheduler.settle(attempts[0], busy(10.0), 1.0) is Decision.RETRY
    assert scheduler.settle(attempts[1], GOOD, 2.0) is Decision.OK
    assert scheduler.take(1, 2.0) == 11.0  # rows are left, and none is started
    assert scheduler.settle(attempts[2], busy(3.0), 4.0) is Decision.RETRY
    assert scheduler.take(1, 7.0) == 11.0  # the longer pause holds
    for now in (11.0, 30.0, 50.0):  # no number of pauses uses up the two attempts
        again = take(scheduler, now=now)
        assert again.row == 2 or now > 11.0
        assert scheduler.settle(again, busy(10.0), now) is Decision.RETRY


def test_a_pause_asked_for_by_another_status_is_its_rows_own() -> None:
    scheduler = Scheduler(range(2), max_workers=1, chance=lambda: 1.0)
    assert scheduler.settle(take(scheduler), busy(9.0, 500), 1.0) is Decision.RETRY
    assert scheduler.settle(take(scheduler, now=1.0), GOOD, 2.0) is Decision.OK
    assert scheduler.take(0, 2.0) == 10.0  # and not after the backoff of 0.5 s


def test_a_pause_does_not_hold_up_the_end() -> None:
    retry = Retry(max_elapsed=5.0)
    scheduler = Scheduler(range(2), max_workers=1, retry=retry)
    assert scheduler.settle(take(scheduler), GOOD, 1.0) is Decision.OK
    assert scheduler.settle(take(scheduler, now=1.0), busy(50.0), 2.0) is Decision.FAIL
    assert scheduler.take(0, 2.0) is DONE


def test_a_pause_of_no_time_uses_an_attempt() -> None:
    scheduler = Scheduler(range(1), max_workers=1, retry=Retry(attempts=2, initial=0, maximum=0))
    assert scheduler.settle(take(scheduler), busy(0.0), 0.0) is Decision.RETRY
    assert scheduler.settle(take(scheduler), busy(0.0), 0.0) is Decision.FAIL


def test_what_was_wrong_is_shown_even_after_a_broken_connection() -> None:
    scheduler = Scheduler(range(1), max_workers=1, chance=lambda: 0.0)
    assert scheduler.settle(take(scheduler), BROKEN, 0.0) is Decision.RETRY
    second = take(scheduler)
    assert second.previous is BROKEN
    assert scheduler.settle(second, CORRECTABLE, 0.0) is Decision.RETRY
    third = take(scheduler)
    assert third.previous is CORRECTABLE
    assert scheduler.settle(third, BROKEN, 0.0) is Decision.RETRY
    assert take(scheduler).previous is CORRECTABLE


def test_waits_double_up_to_the_limit() -> None:
    retry = Retry(attempts=8, initial=1.0, maximum=10.0)
    scheduler = Scheduler([0], max_workers=1, retry=retry, chance=lambda: 1.0)
    now, waits = 0.0, []
    while scheduler.settle(take(scheduler, now=now), BROKEN, now) is Decision.RETRY:
        when = scheduler.take(0, now)
        assert isinstance(when, float)
        waits.append(when - now)
        now = when
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_no_row_is_tried_again_after_its_time() -> None:
    retry = Retry(attempts=100, initial=4.0, maximum=4.0, max_elapsed=10.0)
    scheduler = Scheduler([0], max_workers=1, retry=retry, chance=lambda: 1.0)
    now, made = 50.0, 1
    while scheduler.settle(take(scheduler, now=now), BROKEN, now) is Decision.RETRY:
        now += 4.0
        made += 1
    assert made == 3  # at 50, 54 and 58; the next would be at 62


def test_a_row_cannot_be_settled_twice() -> None:
    scheduler = Scheduler([0, 1], max_workers=1)
    attempt = take(scheduler)
    scheduler.settle(attempt, GOOD, 0.0)
    with pytest.raises(KeyError):
        scheduler.settle(attempt, GOOD, 0.0)


@pytest.mark.parametrize("outcome", [CORRECTABLE, BROKEN, busy(1.0)])
def test_a_retry_that_a_stop_forestalls_is_a_failure(outcome: Failure) -> None:
    scheduler = Scheduler([0], max_workers=1)
    attempt = take(scheduler)
    scheduler.stop(Stop(StopKind.CANCELLED, "enough", cancels=True))
    assert scheduler.settle(attempt, outcome, 0.0) is Decision.FAIL
    assert scheduler.take(0, 0.0) is DONE


def test_failures_that_came_before_count() -> None:
    scheduler = Scheduler([1, 2], max_workers=2, max_failures=0, fail_fast=True, failed=1)
    assert scheduler.stopped is not None
    assert scheduler.take(0, 0.0) is DONE


def test_a_later_stop_cancels_what_the_first_let_finish() -> None:
    scheduler = Scheduler([0, 1], max_workers=1)
    take(scheduler)
    scheduler.stop(Stop(StopKind.FAILURES, "too many", cancels=False))
    scheduler.stop(Stop(StopKind.TIMEOUT, "too late", cancels=True))
    assert scheduler.stopped == Stop(StopKind.FAILURES, "too many", cancels=True)


def test_a_stop_that_comes_when_all_is_done_is_none() -> None:
    scheduler = Scheduler([0], max_workers=1)
    scheduler.settle(take(scheduler), FINAL, 0.0)
    assert scheduler.take(0, 0.0) is DONE
    scheduler.stop(Stop(StopKind.TIMEOUT, "too late", cancels=True))
    assert scheduler.stopped is None
