"""``ddf.llm.parallel_map`` on a distributed cluster of two processes."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import shutil
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from failing import TASK, number_in, right, said
from servers import Answer, Status, serve

import revkit
import revkit.dask
from revkit.dask.coordinator import Coordinator

ROWS = 24
ASKED = list[dict[str, str]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as made,
        Client(made) as client,
    ):
        yield client


def reviews(names: list[str], npartitions: int = 4) -> Any:
    return dd.from_pandas(pd.DataFrame({"review": names}), npartitions=npartitions)


def many() -> Any:
    return reviews([f"review {row}" for row in range(ROWS)])


def until(condition: Callable[[], bool]) -> None:
    """Wait for what is going to be so, or fail."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to be so")


class Gate:
    """A rule for a server that holds some rows' replies back until it is opened."""

    def __init__(self, holds: Callable[[int], bool]):
        self._holds = holds
        self._lock = threading.Lock()
        self.killing = threading.Lock()
        self.opened = threading.Event()
        self.asked: Counter[int] = Counter()
        self.held: set[int] = set()
        self.running = self.most = 0
        self.at: Callable[[], object] = lambda: None

    def __call__(self, messages: ASKED, body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        with self._lock:
            self.asked[row] += 1
            self.running += 1
            self.most = max(self.most, self.running)
            held = self._holds(row) and not self.opened.is_set()
            if held:
                self.held.add(row)
        if held:
            self.at()
            self.opened.wait(30)
        with self._lock:
            self.running -= 1
        return said(row)


def test_it_gives_what_one_machine_gives_and_collects_from_all(cluster: Client) -> None:
    heard: list[revkit.Event] = []

    class Hears:
        def on_event(self, event: revkit.Event) -> None:
            heard.append(event)

    gate = Gate(lambda row: row % 6 == 0)
    gate.at = lambda: gate.opened.set() if len(gate.held) == 2 else None
    with serve(gate) as server:
        model = revkit.Ollama("m", host=server.url)
        out = many().llm.parallel_map(
            TASK, model=model, store=False, max_workers=3, observer=Hears()
        )
        run = revkit.collect(out)
    assert all(right(run.frame))
    assert run.frame["review"].tolist() == [f"review {row}" for row in range(ROWS)]
    assert gate.most <= 3
    assert run.metrics.workers == 3
    assert run.attempts["process"].nunique() == 2
    assert (run.attempts["start_s"] >= 0).all()
    assert (run.attempts["end_s"] <= run.metrics.wall_s + 1e-6).all()
    assert {event.data["partition"] for event in heard} == {0, 1, 2, 3}


class Hears:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[revkit.Event] = []

    def on_event(self, event: revkit.Event) -> None:
        self.heard.append(event)

    @property
    def complete(self) -> int:
        return [event.type for event in self.heard].count("parallel.complete")

    @property
    def settled(self) -> list[tuple[int, int]]:
        """Partition and row of each row that was settled."""
        return sorted(
            (event.data["partition"], event.data["item_index"])
            for event in self.heard
            if event.type == "row.settled"
        )


EVERY_ROW = [(partition, row) for partition in range(4) for row in range(ROWS // 4)]


def test_observers_hear_of_a_plain_compute(cluster: Client) -> None:
    given, made = Hears(), Hears()
    revkit.register_observer("hears on a cluster", lambda: made)
    out = many().llm.parallel_map(len, meta=int, observer=[given, "hears on a cluster"])
    out.compute()
    # All is on its way to them when it is computed; theirs are threads of their own.
    until(lambda: given.complete == made.complete == 4)
    assert given.settled == made.settled == EVERY_ROW
    until(lambda: cluster.run_on_scheduler(begun) == 0)  # else it would have the results yet
    kept = cluster.compute(out)  # nobody waits in this thread, or has the frame
    del out
    gc.collect()
    kept.result(30)
    until(lambda: given.complete == made.complete == 8)
    assert given.settled == sorted(2 * EVERY_ROW)


@contextlib.contextmanager
def warned() -> Iterator[list[str]]:
    """What is said in whatever thread."""
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest: said.append(str(message))  # type: ignore[assignment]
        yield said


def test_observers_that_cannot_hear_are_told_of_before_it_starts(cluster: Client) -> None:
    hears = Hears()
    with cluster.as_current(), dask.config.set(scheduler="threads"):
        out = many().llm.parallel_map(len, meta=int, observer=hears)
    with warned() as said:
        out.compute(scheduler=cluster)
        until(lambda: bool(said))
    assert "observer= gets no events of this run" in said[0]
    assert not hears.heard
    revkit.collect(out)
    assert hears.settled == EVERY_ROW


def test_what_a_run_has_to_say_reaches_the_user(cluster: Client) -> None:
    with serve(lambda messages, body: Status(400, {"error": "no such thing"})) as server:
        model = revkit.Ollama("m", host=server.url)
        with warned() as said:
            out = many().llm.parallel_map(TASK, model=model)
            assert "each compute() asks the model" in said.pop()
            out.compute()
            until(lambda: bool(said))
            assert f"all {ROWS} rows of a run on Dask failed" in said[0]
            assert "no such thing" in said.pop()
            until(lambda: cluster.run_on_scheduler(begun) == 0)
            kept = out.persist()  # which keeps its tasks
            until(lambda: len(said) == 2)
            assert "computed again" in said[0]
            assert f"all {ROWS} rows" in said[1]
            del kept


def test_a_worker_that_is_killed_costs_its_calls_in_flight(cluster: Client, tmp_path: Path) -> None:
    store = tmp_path / "replies"
    gate = Gate(lambda row: row % 6 > 1)
    with serve(gate) as server:
        model = revkit.Ollama("m", host=server.url)
        out = many().llm.parallel_map(TASK, model=model, store=store, max_workers=4)
        future = cluster.compute(out)

        def parts() -> list[Path]:
            return sorted(store.glob("*.jsonl"))

        def stands_still() -> bool:
            kept = sum(len(part.read_bytes().splitlines()) for part in parts())
            return len(gate.held) == 4 and kept > 0 and kept == len(gate.asked) - 4

        until(stands_still)  # four calls are in flight, and all other replies are on the disk
        kept = set(gate.asked) - gate.held
        os.kill(int(parts()[0].name.split("-")[-2]), signal.SIGKILL)
        gate.opened.set()
        frame = future.result(60)
        assert all(right(frame))
        asked = gate.asked.copy()
        assert set(asked) == set(range(ROWS))
        repeated = {row for row, times in asked.items() if times > 1}
        assert repeated <= gate.held
        assert repeated.isdisjoint(kept)
        assert max(asked.values()) <= 2
        out.compute()
        assert gate.asked == asked  # nothing is paid for again


def test_attempts_of_a_worker_that_is_killed_are_told_of(cluster: Client, tmp_path: Path) -> None:
    cluster.wait_for_workers(2, timeout=30)
    gate = Gate(lambda row: row % 6 > 1)
    lost: list[int] = []

    def kill() -> None:
        """Once four are held, and the scheduler has been told so."""
        with gate.killing:
            if len(gate.held) == 4 and not lost:
                until(lambda: sum(cluster.run_on_scheduler(running).values()) == 4)
                worker, count = cluster.run_on_scheduler(running).popitem()
                lost.append(count)
                os.kill(cluster.run(os.getpid)[worker], signal.SIGKILL)
                gate.opened.set()

    gate.at = kill
    with serve(gate) as server:
        model = revkit.Ollama("m", host=server.url)
        out = many().llm.parallel_map(TASK, model=model, store=tmp_path / "replies", max_workers=4)
        with pytest.warns(UserWarning, match="made, or running, on Dask workers that died") as told:
            run = revkit.collect(out)
    counted = re.match(r"about (\d+) attempt", str(told[0].message))
    assert counted is not None
    assert int(counted[1]) >= lost[0]  # and those that the worker had made before
    assert all(right(run.frame))


def test_a_store_that_is_removed_during_a_run_is_begun_anew(
    cluster: Client, tmp_path: Path
) -> None:
    cluster.wait_for_workers(2, timeout=30)
    store = tmp_path / "replies"
    gate = Gate(lambda row: row % 6 == 5)
    with serve(gate) as server:
        model = revkit.Ollama("m", host=server.url)
        out = many().llm.parallel_map(TASK, model=model, store=store, max_workers=4)
        future = cluster.compute(out)

        def stands_still() -> bool:
            kept = sum(len(part.read_bytes().splitlines()) for part in store.glob("*.jsonl"))
            return len(gate.held) == 2 and kept == len(gate.asked) - 2

        until(stands_still)  # each process is at a last row, and has kept the others
        shutil.rmtree(store)
        with warned() as told:
            gate.opened.set()
            assert all(right(future.result(60)))
            until(lambda: bool(told))
        assert "was removed or replaced while it was in use" in told[0]
        out.compute()
    assert gate.asked == Counter(range(ROWS))  # nothing is paid for again


def test_two_workers_do_not_pay_for_the_same_row(cluster: Client, tmp_path: Path) -> None:
    gate = Gate(lambda row: True)
    gate.at = lambda: gate.opened.set()
    with serve(gate) as server:
        model = revkit.Ollama("m", host=server.url)
        names = [f"review {row % 3}" for row in range(ROWS)]
        frame = (
            reviews(names).llm.parallel_map(TASK, model=model, store=tmp_path / "replies").compute()
        )
    assert frame["number"].tolist() == [row % 3 for row in range(ROWS)]
    assert gate.asked == {0: 1, 1: 1, 2: 1}


def heard(monkeypatch: pytest.MonkeyPatch, what: str) -> Callable[[], int]:
    """How many sessions obey what they were told; 0 while another one may not yet.

    The scheduler of a LocalCluster is in this process. Whoever reports has obeyed the last answer.
    """
    told_to: Counter[str] = Counter()
    coordinators: list[Coordinator] = []
    exchange = Coordinator.exchange

    def listens(self: Coordinator, name: str, report: Any, *, now: float) -> Any:
        told = exchange(self, name, report, now=now)
        coordinators.append(self)
        told_to[name] += what in told
        return told

    def obey() -> int:
        sessions = list(coordinators[-1]._sessions) if coordinators else []
        return len(sessions) if all(told_to[name] >= 2 for name in sessions) else 0

    monkeypatch.setattr(Coordinator, "exchange", listens)
    return obey


def test_a_pause_that_one_worker_is_asked_for_is_kept_by_the_other(
    cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.wait_for_workers(2, timeout=30)
    paused = heard(monkeypatch, "pause")
    gate = Gate(lambda row: row % 6 == 0)
    both = threading.Barrier(2)
    busy = Status(429, {"error": "busy"}, {"retry-after": "50"})

    def one_is_busy(messages: ASKED, body: dict[str, Any]) -> Answer:
        if number_in(messages) % 6 == 0 and both.wait(30) == 0:
            return busy
        return gate(messages, body)

    with serve(one_is_busy) as server:
        model = revkit.Ollama("m", host=server.url)
        out = many().llm.parallel_map(TASK, model=model, store=False, max_workers=2)
        future = cluster.compute(out)
        until(lambda: paused() == 2)
        asked = len(server.chats)
        gate.opened.set()  # the other worker is free
        until(lambda: cluster.run_on_scheduler(running) == {})
        paused = heard(monkeypatch, "pause")
        until(lambda: paused() == 2)  # and has looked for a row to start
        assert len(server.chats) == asked < ROWS / 2
        future.cancel()
        until(lambda: cluster.run_on_scheduler(open_sessions) == 0)
        assert len(server.chats) == asked


def test_failures_on_two_workers_are_counted_together_and_stop_both(
    cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.wait_for_workers(2, timeout=30)
    stopped = heard(monkeypatch, "stop")
    before: list[int] = []
    both = threading.Barrier(2, lambda: before.append(len(server.chats)))

    def fails(messages: ASKED, body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        if row % 6 == 0 and not before:
            both.wait(30)  # the first rows of two workers, which are all that may run
            return Status(400, {"error": "no such thing"})
        if before:
            until(lambda: stopped() > 0)
        return said(row)

    with serve(fails) as server:
        model = revkit.Ollama("m", host=server.url)
        out = many().llm.parallel_map(TASK, model=model, store=False, max_workers=2, max_failures=1)
        with pytest.raises(revkit.RunFailed, match=r"max_failures allows \(1\)") as caught:
            revkit.collect(out)
    run = caught.value.result
    failed = run.attempts[run.attempts["outcome"] == "failed"]
    assert failed["process"].nunique() == run.metrics.failed == 2
    assert len(server.chats) <= before[0] + 2
    assert run.metrics.not_started == ROWS - len(server.chats)


def test_one_budget_and_one_rate_for_all_processes(cluster: Client) -> None:
    cluster.wait_for_workers(2, timeout=30)
    budget = revkit.Budget(tokens=800)
    gate = Gate(lambda row: row % 6 == 0)
    gate.at = lambda: gate.opened.set() if len(gate.held) == 2 else None
    with serve(gate) as server:
        model = revkit.Ollama("m", host=server.url, max_tokens=20)
        out = many().llm.parallel_map(
            TASK,
            model=model,
            store=False,
            budget=budget,
            rate_limit=revkit.RateLimit(requests_per_minute=3_000),
        )
        with pytest.raises(revkit.BudgetReached, match="more than is left of Budget") as caught:
            revkit.collect(out)
    run = caught.value.result
    assert run.attempts["process"].nunique() == 2
    assert 0 < run.usage.total_tokens == budget.spent_tokens <= 800
    assert len(server.chats) == run.metrics.succeeded < ROWS


def test_the_pace_of_a_rate_limit_is_that_of_all_processes(cluster: Client) -> None:
    """By the server's clock. A busy machine has a request come later than its start was planned
    for, and never earlier."""
    cluster.wait_for_workers(2, timeout=30)
    came: list[float] = []
    gate = Gate(lambda row: row % 6 == 0)
    gate.at = lambda: gate.opened.set() if len(gate.held) == 2 else None

    def notes(messages: ASKED, body: dict[str, Any]) -> Answer:
        came.append(time.monotonic())
        return gate(messages, body)

    limit = revkit.RateLimit(requests_per_minute=900)  # one in 1/15 s
    with serve(notes) as server:
        model = revkit.Ollama("m", host=server.url)
        out = many().llm.parallel_map(
            TASK, model=model, store=False, max_workers=8, rate_limit=limit
        )
        before = time.monotonic()
        run = revkit.collect(out)
    assert run.attempts["process"].nunique() == 2
    assert all(right(run.frame))
    late = [at - before - place * 0.95 / 15 for place, at in enumerate(sorted(came))]
    assert len(late) == ROWS
    assert min(late) >= 0


def test_a_limit_that_is_found_by_trying_is_one_for_all_processes(cluster: Client) -> None:
    cluster.wait_for_workers(2, timeout=30)
    gate = Gate(lambda row: row % 6 == 0)
    gate.at = lambda: gate.opened.set() if len(gate.held) == 2 else None
    with serve(gate) as server:
        model = revkit.Ollama("m", host=server.url)
        out = many().llm.parallel_map(
            TASK, model=model, store=False, max_workers=revkit.Adaptive(minimum=2, maximum=3)
        )
        run = revkit.collect(out)
    assert all(right(run.frame))
    assert run.attempts["process"].nunique() == 2
    assert gate.most <= run.metrics.workers == 3
    assert {limit for _, limit in run._record.limits} <= {2, 3}
    assert run._record.limits


def test_an_interrupt_stops_the_run_and_not_the_cluster(cluster: Client) -> None:
    gate = Gate(lambda row: True)
    gate.at = lambda: os.kill(os.getpid(), signal.SIGINT) if len(gate.held) == 2 else None
    with serve(gate) as server:
        model = revkit.Ollama("m", host=server.url)
        out = many().llm.parallel_map(TASK, model=model, store=False, max_workers=2)
        with pytest.raises(KeyboardInterrupt):
            out.compute()
        until(lambda: cluster.run_on_scheduler(open_sessions) == 0)
        gate.opened.set()
        assert len(gate.asked) == 2
    assert cluster.submit(len, "four").result(30) == 4
    assert len(cluster.scheduler_info()["workers"]) == 2


def test_an_interrupt_of_collect_gives_what_is_done(cluster: Client) -> None:
    gate = Gate(lambda row: row in (10, 11))
    gate.at = lambda: os.kill(os.getpid(), signal.SIGINT) if len(gate.held) == 2 else None
    with serve(gate) as server:
        model = revkit.Ollama("m", host=server.url)
        out = many().llm.parallel_map(TASK, model=model, store=False, max_workers=3)
        with pytest.raises(revkit.Interrupted, match=f"interrupted: .* of {ROWS} rows") as caught:
            revkit.collect(out)
        assert server.await_hang_ups()
        asked = len(gate.asked)
        gate.opened.set()
        assert len(gate.asked) == asked
        assert all(right(out.compute()))
    metrics = caught.value.result.metrics
    assert metrics.total == ROWS
    assert metrics.succeeded + metrics.cancelled == asked
    assert 2 <= metrics.cancelled <= 3
    assert metrics.not_started == ROWS - asked
    assert cluster.run_on_scheduler(open_sessions) == 0
    assert cluster.submit(len, "four").result(30) == 4


def test_a_key_in_the_clear_is_refused_before_anything_is_sent(cluster: Client) -> None:
    model = revkit.OpenAICompatible("m", base_url="http://127.0.0.1:9/v1", api_key="sk-in-clear")
    with pytest.raises(revkit.UsageError, match=r"revkit\.Secret"):
        many().llm.parallel_map(TASK, model=model, store=False)


def test_a_row_that_kills_its_worker_does_not_cost_what_the_others_have(cluster: Client) -> None:
    def fatal(row: Any) -> int:
        if row["review"] == "r3":
            os._exit(1)
        return 1

    def patience(failures: int, dask_scheduler: Any) -> None:
        dask_scheduler.allowed_failures = failures

    out = reviews([f"r{row}" for row in range(4)]).llm.parallel_map(fatal, output="one")
    cluster.run_on_scheduler(patience, 0)
    try:
        with (
            warnings.catch_warnings(action="ignore", category=UserWarning),
            pytest.raises(revkit.RunFailed, match="the run broke off: KilledWorker") as caught,
        ):
            revkit.collect(out)
    finally:
        cluster.run_on_scheduler(patience, 3)
    result = caught.value.result
    assert result is not None
    assert result is revkit.last_result()
    assert set(result.frame["review"]) <= {"r0", "r1", "r2"}
    assert result.frame["one"].dropna().eq(1).all()


def open_sessions(dask_scheduler: Any) -> int:
    return len(dask_scheduler.plugins["revkit"].coordinator._sessions)


def running(dask_scheduler: Any) -> dict[str, int]:
    """Attempts that each worker is at, as far as the coordinator knows."""
    counts: Counter[str] = Counter()
    for session in dask_scheduler.plugins["revkit"].coordinator._sessions.values():
        counts[session.worker] += session.running
    return dict(+counts)


def begun(dask_scheduler: Any) -> int:
    return len(dask_scheduler.plugins["revkit"].coordinator._begun)
