"""The records of partitions as one record: rows, attempts, lanes, holds and what was said."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import NOON, empty_record

from revkit.dask.merge import Place, merge
from revkit.dask.partition import Part
from revkit.record.record import Record
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


def good(
    row: int,
    start: float,
    end: float,
    *,
    worker: int = 0,
    number: int = 1,
    due: float | None = None,
) -> Attempted:
    reply = Reply(f"reply {row}", 10 + row, 1)
    outcome = Success({"label": f"value {row}"}, reply)
    return Attempted(Attempt(row, number, worker, None, due), start, end, outcome, Decision.OK)


def bad(row: int, start: float, end: float, *, worker: int = 0, again: bool = False) -> Attempted:
    decision = Decision.RETRY if again else Decision.FAIL
    return Attempted(Attempt(row, 1, worker), start, end, BAD, decision)


def part(
    number: int,
    facts: Sequence[Attempted] = (),
    *,
    rows: int = 2,
    at: float = 0.0,
    ended: float = 9.0,
    stopped_at: float | None = None,
    **known: Any,
) -> Part:
    """A partition that began ``at`` on a clock ``offset`` seconds behind the coordinator's."""
    record = empty_record(rows, ["label"], asks_model=True)
    record.began, record.engine = at, "async"
    for fact in facts:
        record.attempted(fact)
    record.close(ended=ended, stopped=None)
    record.stopped_at = stopped_at
    where = {"host": "node", "process": "0", "workers": 4}
    return Part(number, pd.DataFrame(index=range(rows)), record, **where | known)


def merged(*parts: Part) -> Record:
    return merge(parts, ["label"], asks_model=True, run_id="", now=NOON)


def test_rows_stand_behind_those_of_the_partitions_before() -> None:
    one = part(0, [good(0, 0, 1), bad(1, 1, 2)])
    two = part(1, rows=3)
    two.record.kept(1, {"label": "kept"}, Reply("kept", 7, 2))
    two.record.refused(2, Failure("UsageError", "no text"))
    three = part(2, rows=1)
    three.record.refused(0, Failure("UsageError", "nor here"))
    whole = merged(one, two, three)
    assert whole.total == 6
    assert whole.status == [
        *(Status.OK, Status.ERROR),
        *(Status.NOT_STARTED, Status.OK, Status.ERROR),
        Status.ERROR,
    ]
    assert bytes(whole.source) == bytes(one.record.source + two.record.source + three.record.source)
    assert whole.values == {"label": ["value 0", None, None, "kept", None, None]}
    assert set(whole.failures) == {1, 4, 5}
    assert {row: reply.text for row, reply in whole.replies.items()} == {0: "reply 0", 3: "kept"}
    assert whole.first_refused == (4, Failure("UsageError", "no text"))
    assert (whole.settled, whole.failed, whole.from_store) == (5, 3, 1)
    assert whole.tokens == one.record.tokens + two.record.tokens == 11


def test_attempts_are_told_in_order_on_one_clock_and_failures_stay_with_theirs() -> None:
    one = part(
        0, [bad(0, 5, 6, again=True), good(0, 8, 9, number=2, due=7)], offset=100.0, began=90.0
    )
    two = part(1, [good(1, 51, 52), bad(0, 52, 53)], offset=55.0, began=90.0, process="1")
    whole = merged(one, two)
    assert list(whole.row) == [0, 3, 2, 0]
    assert list(whole.start) == [15.0, 16.0, 17.0, 18.0]
    assert list(whole.end) == [16.0, 17.0, 18.0, 19.0]
    assert list(whole.number) == [1, 1, 1, 2]
    assert math.isnan(whole.due[0])
    assert whole.due[3] == 17.0
    assert list(whole.prompt_tokens) == [-1, 11, -1, 10]
    assert list(whole.completion_tokens) == [-1, 1, -1, 1]
    assert set(whole.attempt_failures) == {0, 2}
    assert (whole.began, whole.ended) == (0.0, 19.0)


def test_a_partition_of_functions_has_no_tokens() -> None:
    record = empty_record(1, ["label"])
    record.attempted(good(0, 0, 1))
    record.close(ended=1.0, stopped=None)
    one = Part(0, pd.DataFrame(index=[0]), record, host="node", process="0", workers=1)
    whole = merge([one], ["label"], asks_model=False, run_id="", now=NOON)
    assert not len(whole.prompt_tokens)
    assert not len(whole.completion_tokens)


def test_lanes_are_numbered_host_by_host_and_dask_worker_by_number() -> None:
    places = [("b", "0"), ("a", "10"), ("a", "9"), ("a", "tcp://1")]
    parts = [
        part(number, [good(0, 0, 1)], host=host, process=process)
        for number, (host, process) in enumerate(places)
    ]
    whole = merged(*parts)
    assert whole.places == [
        Place(*place) for place in [("a", "tcp://1"), ("a", "9"), ("a", "10"), ("b", "0")]
    ]
    assert [whole.worker[list(whole.row).index(2 * n)] for n in range(4)] == [3, 2, 1, 0]


def test_a_lane_is_used_again_when_its_partition_is_through() -> None:
    one = part(0, [good(0, 0, 1), good(1, 0, 2, worker=5)], ended=3.0)
    beside = part(1, [good(0, 1, 2)], at=1.0)
    later = part(2, [good(0, 4, 5, worker=2)], at=3.0)
    whole = merged(one, beside, later)
    worker = dict(zip(whole.row, whole.worker, strict=True))
    assert worker == {0: 0, 1: 1, 2: 2, 4: 0}
    assert whole.places == [Place("node", "0")] * 3


def test_lanes_are_chosen_in_the_order_in_which_partitions_began_for_all() -> None:
    early = part(0, [good(0, 50, 51)], at=50.0, ended=51.0)
    late = part(1, [good(0, 1, 2)], at=1.0, ended=2.0, offset=60.0)
    whole = merged(early, late)
    assert whole.places == [Place("node", "0")]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),  # where
            st.floats(0, 50),  # began
            st.floats(0.5, 20),  # took
            st.integers(1, 3),  # workers
        ),
        max_size=8,
    )
)
def test_no_two_attempts_are_in_one_lane_at_a_time(
    partitions: list[tuple[int, float, float, int]],
) -> None:
    parts = []
    for number, (where, began, took, workers) in enumerate(partitions):
        facts = [good(w, began, began + took, worker=w) for w in range(workers)]
        parts.append(part(number, facts, rows=3, at=began, ended=began + took, process=str(where)))
    whole = merged(*parts)
    lanes = defaultdict(list)
    for row, worker, start, end in zip(
        whole.row, whole.worker, whole.start, whole.end, strict=True
    ):
        assert whole.places is not None
        assert whole.places[worker] == Place("node", str(partitions[row // 3][0]))
        lanes[worker].append((start, end))
    for spans in lanes.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert sum(map(len, lanes.values())) == sum(workers for *_, workers in partitions)


def test_holds_that_touch_are_one_where_they_are_of_one_kind() -> None:
    one, two = part(0), part(1, offset=1.0)
    one.record.holds = [
        *(Hold(HoldKind.RATE_LIMIT, 0, 2), Hold(HoldKind.PAUSE, 5, 6)),
        Hold(HoldKind.RATE_LIMIT, 3, 3.5),
    ]
    two.record.holds = [Hold(HoldKind.RATE_LIMIT, 1, 3), Hold(HoldKind.PAUSE, 0, 1)]
    assert merged(one, two).holds == [
        Hold(HoldKind.RATE_LIMIT, 0, 4),
        Hold(HoldKind.PAUSE, 1, 2),
        Hold(HoldKind.PAUSE, 5, 6),
    ]


def test_visits_are_in_order_of_time() -> None:
    one, two = part(0), part(1, offset=1.0)
    one.record.visits, two.record.visits = [(3.0, 2), (5.0, 1)], [(1.0, 4)]
    assert merged(one, two).visits == [(2.0, 4), (3.0, 2), (5.0, 1)]


def test_what_several_partitions_say_is_said_once() -> None:
    one, two, three = part(0, lost=3), part(1, lost=1), part(2)
    for each in (one, two, three):
        each.record.warnings = ["the disk is full"]
    two.record.warnings.append("and slow")
    one.record.store, one.record.store_problem = "place", "it is full"
    two.record.store_problem = three.record.store_problem = "it was removed"
    one.record.facts = {"weights": "a digest"}
    whole = merged(one, two, three)
    assert whole.warnings[0].startswith("about 3 attempts were made, or running,")
    assert whole.warnings[1:] == ["the disk is full", "and slow"]
    assert whole.store == "place"
    assert whole.store_problem == "it is full; it was removed"
    assert whole.facts == {"weights": "a digest"}
    assert merged(part(0)).store_problem is None
    assert merged(part(0, lost=1)).warnings[0].startswith("about 1 attempt was made")


@pytest.mark.parametrize("finished", [False, True])
def test_a_stop_is_told_unless_all_rows_are_ok(finished: bool) -> None:
    stop = Stop(StopKind.BUDGET, "it is used up", cancels=False)
    other = Stop(StopKind.FAILURES, "too many", cancels=False)
    facts = [good(0, 0, 1), good(1, 1, 2)]
    one = part(0, facts, stop=stop, stopped_at=4.0, offset=2.0)
    two = part(1, facts if finished else facts[:1], stop=other, stopped_at=3.0)
    whole = merged(one, two, part(2, facts))
    assert whole.stopped == (None if finished else stop)
    assert whole.stopped_at == (None if finished else 3.0)


def test_a_stop_that_no_partition_has_a_time_of_came_at_the_end() -> None:
    stop = Stop(StopKind.CANCELLED, "enough", cancels=True)
    assert merged(part(0, stop=stop, ended=5.0)).stopped_at == 5.0


def test_the_run_began_when_its_coordinator_says() -> None:
    """Its first partition may have begun later; what began before stands at the run's beginning."""
    one = part(0, at=30.0, ended=40.0, offset=70.0, began=90.0)
    two = part(1, at=30.0, ended=40.0, offset=65.0, began=90.0)
    whole = merged(one, two)
    assert whole.started_at == NOON - timedelta(seconds=10)
    assert whole.ended == 20.0


def test_limits_and_workers_are_those_of_the_run_and_times_since_it_began() -> None:
    path = ((10.0, 2), (12.0, 4))
    one, two = (part(n, limits=path[: n + 1], workers=2 * n, began=10.0) for n in range(2))
    whole = merged(one, two)
    assert whole.limits == [(0.0, 2), (2.0, 4)]
    assert (whole.workers, whole.engine) == (2, "async")


def test_partitions_that_ran_nowhere_have_rows_and_no_lanes() -> None:
    whole = merged(part(0, host="", process="", workers=0))
    assert (whole.total, whole.places, whole.workers, whole.ended) == (2, [], 1, 0.0)


def test_lanes_are_chosen_by_when_partitions_began_not_by_their_number() -> None:
    """On one clock, their own clocks' offsets added; workers in the order of their numbers."""
    whole = merged(part(0, [good(0, 3, 4)], at=3.0, ended=5.0), part(1, [good(0, 1, 2)], ended=3.0))
    assert whole.places == [Place("node", "0")]
    whole = merged(part(0, [good(0, 1, 2)]), part(1, [good(0, 1, 2)], offset=9.0))
    assert whole.places == [Place("node", "0")]
    whole = merged(part(0, [good(0, 1, 2)], offset=5.0), part(1, [good(0, 11, 12)], at=10.0))
    assert whole.places == [Place("node", "0")] * 2
    whole = merged(part(0, [good(0, 1, 2, worker=8), good(1, 1, 2, worker=1)]))
    assert dict(zip(whole.row, whole.worker, strict=True)) == {0: 1, 1: 0}


def test_times_count_from_when_the_run_began_for_the_first_partition() -> None:
    stop = Stop(StopKind.BUDGET, "it is used up", cancels=False)
    one = part(0, began=90.0, offset=90.0)
    two = part(1, [good(0, 1, 2)], began=95.0, offset=94.0, stop=stop, stopped_at=3.0)
    whole = merged(one, two)
    assert (list(whole.start), whole.ended) == ([5.0], 13.0)
    assert (whole.stopped, whole.stopped_at) == (stop, 7.0)
    assert merged(part(0)).started_at == NOON
    assert merged(part(0, at=2.0, began=5.0)).started_at == NOON  # clocks differ a little
    assert merged(part(0, at=5.0, began=2.0)).started_at == NOON - timedelta(seconds=3)


def test_nothing_is_said_of_partitions_that_never_ran() -> None:
    whole = merged(part(0, host=""))
    assert (whole.warnings, whole.samples, whole.started_at) == ([], 1, NOON)
    assert merged(part(0, lost=2)).warnings[0].startswith("about 2 attempts were made")
