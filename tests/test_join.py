"""Records that become one: the parts of a split record give the whole, in any grouping."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st
from records import empty_record

from revkit.record.join import COLUMNS, MADE_WITH, Position, join
from revkit.record.record import Record
from revkit.record.totals import Totals
from revkit.scheduling.events import (
    Attempt,
    Attempted,
    Decision,
    Failure,
    Hold,
    HoldKind,
    Status,
    Stop,
    StopKind,
    Success,
)
from revkit.task.chat import Reply

BAD = Failure("BadOutput", "no label")
#: What becomes of a row: the decisions on its attempts, or what it comes to without one.
FATES: list[Any] = [
    [Decision.OK],
    [Decision.FAIL],
    [Decision.RETRY, Decision.OK],
    [Decision.RETRY, Decision.RETRY, Decision.FAIL],
    [Decision.CANCEL],
    *("kept", "refused", "not started"),
]
fates = st.sampled_from(FATES)


class Run(NamedTuple):
    """A run to be told again: what becomes of its rows, and what is known beside them."""

    fates: list[Any]
    began: int
    holds: list[int]
    visits: list[int]
    limits: list[int]
    warnings: list[str]
    problems: list[str]
    stop: str | None
    store: str | None


few = st.lists(st.integers(0, 50), max_size=3)
words = st.lists(st.sampled_from("abc"), max_size=2)
runs = st.builds(
    Run,
    fates=st.lists(fates, min_size=1, max_size=6),
    began=st.integers(0, 100),
    holds=few,
    visits=few,
    limits=few,
    warnings=words,
    problems=words,
    stop=st.none() | st.sampled_from("xy"),
    store=st.none() | st.sampled_from("st"),
)


def record_of(run: Run, part: range | None = None, *, late: float = 0.0, swap: int = 0) -> Record:
    """Two workers in turn; the attempts end one second after the other.

    Args:
        part: only these rows are told of; what is not of a row is told where the first one is.
        late: seconds that the clock is ahead.
        swap: 1 gives each worker the number of the other.
    """
    part = range(len(run.fates)) if part is None else part
    record, began = empty_record(len(part), ["out"], asks_model=True), run.began + late
    record.began, clock = began, began
    for row, fate in enumerate(run.fates):
        here = row - part.start
        if fate == "kept" and row in part:
            record.kept(here, {"out": f"kept {row}"}, Reply("kept", 3, 1))
        elif fate == "refused" and row in part:
            record.refused(here, Failure("UsageError", f"no text in {row}"))
        for number, decision in enumerate(fate if isinstance(fate, list) else [], 1):
            start, clock = clock, clock + 1
            outcome: Any = BAD
            if decision is Decision.OK:
                outcome = Success({"out": f"value {row}"}, Reply(f"reply {row}", 10 + row, 1))
            attempt = Attempt(here, number, row % 2 ^ swap, due=None if number == 1 else start)
            if row in part:
                record.attempted(Attempted(attempt, start, clock, outcome, decision))
    record.workers, record.engine = 2, "async"
    if part.start == 0:
        record.holds = [Hold(HoldKind.PAUSE, began + at, began + at + 1) for at in run.holds]
        record.visits = [(began + at, 1) for at in run.visits]
        record.limits = [(began + at, at) for at in run.limits]
    stop = None if run.stop is None else Stop(StopKind.CANCELLED, run.stop, cancels=True)
    record.close(ended=clock + 60, stopped=stop)
    record.warnings = list(dict.fromkeys(run.warnings))
    record.store_problem = "; ".join(dict.fromkeys(run.problems)) or None
    record.store = run.store
    record.facts = {} if run.store is None else {"weights": run.store}
    return record


def known(record: Record) -> dict[str, Any]:
    """All of a record; a time that is not there equals itself."""
    return {name: repr(value) for name, value in sorted(vars(record).items())}


def beside(records: Sequence[Record]) -> Record:
    """The records as partitions of a whole that began at 0; each has workers of its own."""
    whole = empty_record(sum(record.total for record in records), ["out"], asks_model=True)
    first = lanes = 0
    for record in records:
        rows, lane = range(first, first + record.total), range(lanes, lanes + 100)
        join(whole, record, Position(rows, seconds=-record.began, worker=lane.__getitem__))
        first, lanes = rows.stop, lanes + 1 + max(record.worker, default=-1)
    whole.count_rows()
    return whole


def test_each_attribute_has_one_rule() -> None:
    assert set(vars(empty_record(1))) == {*COLUMNS, *MADE_WITH}
    assert not MADE_WITH & set(COLUMNS)


@given(run=runs, cuts=st.sets(st.integers(1, 5)))
def test_the_parts_of_a_record_give_the_whole(run: Run, cuts: set[int]) -> None:
    whole = record_of(run)
    edges = sorted({0, *(cut for cut in cuts if cut < whole.total), whole.total})
    joined = empty_record(whole.total, ["out"], asks_model=True)
    joined.began = whole.began
    for first, end in itertools.pairwise(edges):
        rows, late = range(first, end), 1000.0 - first
        part = record_of(run, rows, late=late, swap=1)
        join(joined, part, Position(rows, seconds=-late, worker=lambda worker: 1 - worker))
    joined.count_rows()
    joined.sort_attempts()
    assert known(joined) == known(whole)


@given(one=runs, two=runs, three=runs)
def test_partitions_may_be_joined_in_any_grouping(one: Run, two: Run, three: Run) -> None:
    records = [record_of(run) for run in (one, two, three)]
    first, second = beside(records[:2]), beside(records[1:])
    left, right = beside([first, records[2]]), beside([records[0], second])
    assert known(left) == known(right) == known(beside(records))


@given(first=runs, data=st.data())
def test_reruns_may_be_joined_in_any_grouping(first: Run, data: st.DataObject) -> None:
    one = record_of(first)
    two, rows_of_two = data.draw(reruns(one))
    three, rows_of_three = data.draw(reruns(two))
    left = one.continued(two, rows_of_two)
    left = left.continued(three, [rows_of_two[row] for row in rows_of_three])
    right = one.continued(two.continued(three, rows_of_three), rows_of_two)
    assert known(left) == known(right)


@st.composite
def reruns(draw: st.DrawFn, before: Record) -> tuple[Record, list[int]]:
    """The record of a run of some of the rows, and which they are."""
    run = draw(runs)
    rows = draw(st.permutations(range(before.total)))[: len(run.fates)]
    return record_of(run._replace(fates=run.fates[: len(rows)])), sorted(rows)


@given(one=runs, data=st.data())
def test_a_rerun_replaces_what_became_of_its_rows(one: Run, data: st.DataObject) -> None:
    before = record_of(one)
    again, rows = data.draw(reruns(before))
    both = before.continued(again, rows)
    for row in range(both.total):
        latest, at = (again, rows.index(row)) if row in rows else (before, row)
        assert both.status[row] is latest.status[at]
        assert both.source[row] == latest.source[at]
        assert both.values["out"][row] == latest.values["out"][at]
        assert both.failures.get(row) == latest.failures.get(at)
        assert both.replies.get(row) == latest.replies.get(at, before.replies.get(row))
        numbers = [n for n, r in zip(both.number, both.row, strict=True) if r == row]
        assert numbers == list(range(1, len(numbers) + 1))
    assert list(both.end) == sorted(both.end)
    assert (both.began, both.ended - both.began) == (
        before.began,
        before.ended - before.began + again.ended - again.began,
    )
    assert both.failed == both.status.count(Status.ERROR)
    assert both.warnings == again.warnings
    assert both.store == again.store
    assert (both.stopped, both.facts) == (again.stopped, again.facts)
    shift = before.ended - again.began
    due_again = [again.began if math.isnan(due) else due for due in again.due]
    assert list(both.due)[len(before.due) :] == [due + shift for due in due_again]
    assert both.store_problem == again.store_problem
    assert [hold.kind for hold in both.holds] == [HoldKind.PAUSE] * len(before.holds + again.holds)


@given(one=runs, data=st.data())
def test_a_rerun_after_a_cluster_has_workers_of_its_own(one: Run, data: st.DataObject) -> None:
    before = record_of(one)
    before.places = [("node", "0"), ("node", "1"), ("node", "2")]
    again, rows = data.draw(reruns(before))
    both = before.continued(again, rows)
    others = [None] * (1 + max(again.worker, default=-1))
    assert both.places == [*before.places, *others]
    assert list(both.worker) == [*before.worker, *(3 + worker for worker in again.worker)]


@given(runs=st.lists(runs, min_size=2, max_size=2))
def test_partitions_have_what_the_last_one_knows(runs: list[Run]) -> None:
    one, two = records = [record_of(run) for run in runs]
    whole = beside(records)
    assert whole.store == (two.store or one.store)
    assert whole.facts == (two.facts or one.facts)
    assert whole.tokens == one.tokens + two.tokens
    assert whole.from_store == one.from_store + two.from_store


@given(runs=st.lists(runs, min_size=3, max_size=3))
def test_totals_may_be_added_in_any_grouping(runs: list[Run]) -> None:
    parts = [Totals.of(record_of(run), None) for run in runs]

    def added(*totals: Totals) -> Totals:
        whole = Totals()
        for one in totals:
            whole.add(one)
        return whole

    one, two, three = parts
    left, right = added(added(one, two), three), added(one, added(two, three))
    assert asdict(left) == asdict(right)
    assert left.good == sum(left.bins.values())
    of_each = sum(sum(part.error_types.values()) for part in parts)
    assert of_each == sum(left.error_types.values())
    assert left.total == sum(len(run.fates) for run in runs)
    assert left.attempts == sum(
        len(fate) for run in runs for fate in run.fates if isinstance(fate, list)
    )


@given(one=runs)
def test_nothing_added_changes_nothing(one: Run) -> None:
    alone = Totals.of(record_of(one), None)
    whole = Totals()
    whole.add(alone)
    assert asdict(whole) == asdict(alone)
