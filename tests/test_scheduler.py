"""The scheduler lives through random histories beside an oracle that is a few plain lists."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from revkit.events import CANCELLED, Attempt, Decision, Failure, Success
from revkit.scheduler import DONE, WAIT, Scheduler

GOOD = Success({"response": 1})
CORRECTABLE = Failure("BadOutput", "not a label", correctable=True)
FINAL = Failure("ZeroDivisionError", "division by zero")
ENDS_RUN = Failure("AccessDenied", "401", ends_run=True)


class Histories(RuleBasedStateMachine):
    """Workers take and settle in any order; the oracle says what has to happen."""

    @initialize(
        rows=st.lists(st.integers(0, 30), unique=True, max_size=12),
        max_workers=st.integers(1, 4),
        max_attempts=st.integers(1, 3),
    )
    def start(self, rows: list[int], max_workers: int, max_attempts: int) -> None:
        self.scheduler = Scheduler(iter(rows), max_workers=max_workers, max_attempts=max_attempts)
        self.rows, self.max_workers, self.max_attempts = rows, max_workers, max_attempts
        # the oracle: the four places of a row
        self.waiting = list(rows)
        self.again: list[tuple[int, int]] = []
        self.running: dict[int, Attempt] = {}
        self.settled: dict[int, Decision] = {}
        self.first_stop: str | None = None

    @rule(worker=st.integers(0, 5))
    def take(self, worker: int) -> None:
        step = self.scheduler.take(worker)
        if self.first_stop is not None:
            assert step is DONE
        elif len(self.running) == self.max_workers:
            assert step is WAIT
        elif self.again:
            row, number = self.again.pop(0)
            assert isinstance(step, Attempt)
            assert step[:3] == (row, number, worker)
            assert step.previous is CORRECTABLE
            self.running[row] = step
        elif self.waiting:
            assert step == Attempt(self.waiting.pop(0), 1, worker)
            self.running[step.row] = step
        elif self.running:
            assert step is WAIT
        else:
            assert step is DONE

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(
            [CORRECTABLE] * 6 + [GOOD] * 3 + [FINAL] * 2 + [CANCELLED, ENDS_RUN]
        ),
    )
    def settle(self, data: st.DataObject, outcome: object) -> None:
        row = data.draw(st.sampled_from(sorted(self.running)))
        attempt = self.running.pop(row)
        decision = self.scheduler.settle(attempt, outcome)
        more = attempt.number < self.max_attempts and self.first_stop is None
        if outcome is CORRECTABLE and more:
            assert decision is Decision.RETRY
            self.again.append((row, attempt.number + 1))
            return
        wanted = {id(GOOD): Decision.OK, id(CANCELLED): Decision.CANCEL}
        assert decision is wanted.get(id(outcome), Decision.FAIL)
        self.settled[row] = decision
        if outcome is ENDS_RUN and self.first_stop is None:
            self.first_stop = str(ENDS_RUN)

    @rule(reason=st.sampled_from(["too many failures", "interrupted"]))
    @precondition(lambda self: len(self.settled) > 5)
    def stop(self, reason: str) -> None:
        self.scheduler.stop(reason)
        if self.first_stop is None:
            self.first_stop = reason

    @invariant()
    def each_row_is_in_one_place(self) -> None:
        if not hasattr(self, "rows"):
            return
        assert self.scheduler.running == frozenset(self.running)
        places = [*self.waiting, *(r for r, _ in self.again), *self.running, *self.settled]
        assert sorted(places) == sorted(self.rows)
        assert len(self.running) <= self.max_workers
        assert self.scheduler.stopped == self.first_stop

    @invariant()
    def waiting_workers_are_woken(self) -> None:
        if not hasattr(self, "rows"):
            return
        room = len(self.running) < self.max_workers
        could_take = room and bool(self.again or self.waiting)
        all_done = not (self.again or self.waiting or self.running)
        if self.first_stop is not None or could_take or all_done:
            assert self.scheduler.waiters_due

    def teardown(self) -> None:
        """From wherever a history ended, the run comes to an end and misses no row."""
        if not hasattr(self, "rows"):
            return
        for _ in range(2 * len(self.rows) + len(self.running) + 1):
            step = self.scheduler.take(0)
            if step is DONE:
                break
            if step is WAIT:
                assert self.running, "a worker waits, and nothing runs that could wake it"
                row, step = self.running.popitem()
            else:
                row = step.row
                self.again = [one for one in self.again if one[0] != row]
                self.waiting = [one for one in self.waiting if one != row]
            self.settled[row] = self.scheduler.settle(step, GOOD)
        else:
            raise AssertionError("the scheduler never says that it is done")
        if self.first_stop is None:
            assert not self.running
            assert sorted(self.settled) == sorted(self.rows)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_rows_are_taken_lazily() -> None:
    taken = []

    def rows():
        for row in range(1000):
            taken.append(row)
            yield row

    scheduler = Scheduler(rows(), max_workers=2)
    assert taken == []
    scheduler.take(0)
    assert taken == [0]


def test_waiters_are_not_woken_for_nothing() -> None:
    scheduler = Scheduler(range(2), max_workers=4)
    first, second = scheduler.take(0), scheduler.take(1)
    assert scheduler.take(2) is WAIT
    assert isinstance(first, Attempt)
    assert isinstance(second, Attempt)
    scheduler.settle(first, GOOD)
    assert not scheduler.waiters_due  # one still runs, and there is no row to take
    scheduler.settle(second, GOOD)
    assert scheduler.waiters_due  # to hear that all is done


def test_rows_to_be_tried_again_come_first_and_in_order() -> None:
    scheduler = Scheduler(range(5), max_workers=3)
    attempts = [scheduler.take(worker) for worker in range(3)]
    for attempt in (attempts[1], attempts[0], attempts[2]):
        assert isinstance(attempt, Attempt)
        assert scheduler.settle(attempt, CORRECTABLE) is Decision.RETRY
    again = [scheduler.take(0) for _ in range(3)]
    assert again == [Attempt(row, 2, 0, CORRECTABLE) for row in (1, 0, 2)]


def test_a_row_cannot_be_settled_twice() -> None:
    scheduler = Scheduler([0, 1], max_workers=1)
    attempt = scheduler.take(0)
    assert isinstance(attempt, Attempt)
    scheduler.settle(attempt, GOOD)
    with pytest.raises(KeyError):
        scheduler.settle(attempt, GOOD)


def test_a_retry_that_a_stop_forestalls_is_a_failure() -> None:
    scheduler = Scheduler([0], max_workers=1)
    attempt = scheduler.take(0)
    assert isinstance(attempt, Attempt)
    scheduler.stop("interrupted")
    assert scheduler.settle(attempt, CORRECTABLE) is Decision.FAIL
    assert scheduler.take(0) is DONE
