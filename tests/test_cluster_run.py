"""A run on a cluster and its sessions: what each may have running, and what reports change."""

from __future__ import annotations

from typing import Any, cast

import pytest

from revkit.dask.cluster_run import ClusterRun, Session
from revkit.dask.coordinator import Coordinator
from revkit.scheduling.adaptive import AdaptiveLimit


def cluster_run(workers: int = 4, adaptive: Any = None) -> ClusterRun:
    return ClusterRun(
        name="run",
        key="k",
        terms={"job": "j"},
        began=0.0,
        workers=workers,
        collected=False,
        adaptive=cast("AdaptiveLimit | None", adaptive),
    )


def reported(run: ClusterRun, session: Session, limit: int, running: int, demand: int = 9) -> int:
    run.update(session, {"limit": limit, "running": running, "demand": demand}, now=10.0)
    return run.grant(session)[0]


def test_a_session_gets_no_more_than_its_rows() -> None:
    run = cluster_run()
    few = run.open("few", "w1", 0, rows=1)
    many = run.open("many", "w2", 1, rows=100)
    assert run.grant(few) == (1, 1)
    assert run.grant(many) == (3, 3)


@pytest.mark.parametrize(
    ("limit", "running", "others"),
    [
        (3, 1, 1),  # it has been told that it may have three
        (1, 3, 1),  # three are running yet, though it may have one
        (2, 2, 2),
    ],
)
def test_what_a_session_may_be_using_is_given_to_nobody_else(
    limit: int, running: int, others: int
) -> None:
    run = cluster_run()
    one = run.open("one", "w1", 0, rows=9)
    run.grant(one)
    two = run.open("two", "w2", 1, rows=9)
    assert run.grant(two)[0] == 0
    run.update(one, {"limit": limit, "running": running, "demand": 9}, now=1.0)
    assert run.grant(two)[0] == others


def test_a_session_keeps_what_it_may_be_using_when_a_reply_is_lost() -> None:
    run = cluster_run()
    one = run.open("one", "w1", 0, rows=9)
    assert run.grant(one)[0] == 4
    two = run.open("two", "w2", 1, rows=9)
    assert reported(run, one, limit=4, running=4) == 2  # which it does not hear
    assert run.grant(two)[0] == 0
    assert reported(run, one, limit=2, running=2) == 2
    assert run.grant(two)[0] == 2


def test_attempts_are_learnt_from_on_the_coordinators_clock() -> None:
    class Recorder:
        limit = 3

        def __init__(self) -> None:
            self.seen: list[dict[str, Any]] = []

        def settled(self, **attempt: Any) -> None:
            self.seen.append(attempt)

    recorder = Recorder()
    run = cluster_run(workers=9, adaptive=recorder)
    sessions = [run.open(name, "w", number, rows=9) for number, name in enumerate("ab")]
    said = {"limit": 2, "running": 2, "demand": 9}
    run.update(sessions[0], said, now=9.0)
    run.update(sessions[1], said | {"ended": [(3.0, 1.0, "ok")]}, now=10.0)
    assert recorder.seen == [{"start": 7.0, "end": 9.0, "running": 3, "outcome": "ok"}]


@pytest.mark.parametrize("ends", ["finished", "abandoned"])
def test_rows_of_a_partition_that_ran_again_count_once(ends: str) -> None:
    summaries: list[Any] = []
    coordinator = Coordinator(summaries.append)
    run = coordinator.begin("k", {"job": "j", "max_workers": 2}, threads=4, now=0.0)["run"]
    report = {"limit": 0, "running": 0, "demand": 0, "failed": 1, "ok": 2, "error": "no"}
    for _ in range(2):
        opened = coordinator.open(run, worker="one", partition=0, rows=3, now=0.0)
        coordinator.close(opened["session"], report, now=1.0)
    getattr(coordinator, ends)("k")
    assert summaries == [{"job": "j", "failed": 1, "ok": 2, "error": "no"}]
