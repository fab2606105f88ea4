"""A partition's side of the cluster: what it is told in bad moments, and rows that wait for others.

On Dask's scheduler in this process, where the coordinator can be listened to.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from failing import TASK, number_in, said
from servers import Answer, Status, serve

import revkit
import revkit.dask
from revkit.dask import session as sessions
from revkit.dask.claiming import ClaimingStore
from revkit.dask.coordinator import Coordinator
from revkit.dask.job import Job
from revkit.dask.links import RunHandle
from revkit.dask.partition_limits import PartitionLimits
from revkit.dask.session import PartitionSession
from revkit.scheduling.events import Stop, StopKind
from revkit.store import StoreWarning
from revkit.store.shared import SharedStore
from revkit.task.chat import Reply

#: Seconds after which a run that hangs is over, so that its test fails.
LONG = 60.0
#: A partition whose rows are all done, and that reports so often all the same, hangs.
ENOUGH = 100
ASKED = list[dict[str, str]]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with dask.config.set(scheduler="threads", num_workers=2):
        yield


Answered = Callable[[Mapping[str, Any], dict[str, Any]], object]


def listen(monkeypatch: pytest.MonkeyPatch, heard: Answered) -> None:
    """Have all reports of sessions heard, with the answers to them."""
    exchange = Coordinator.exchange

    def heard_exchange(self: Coordinator, name: str, report: Any, *, now: float) -> Any:
        told = exchange(self, name, report, now=now)
        heard(report, told)
        return told

    monkeypatch.setattr(Coordinator, "exchange", heard_exchange)


def after(event: threading.Event, frame: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """A partition that is there when the event is."""
    assert event.wait(LONG)
    return frame


def two_partitions(first: list[int], second: list[int], begin: threading.Event) -> Any:
    """A frame whose second partition is begun later than the first one."""
    rows = dask.delayed(lambda rows: pd.DataFrame({"n": rows}))
    late = dask.delayed(lambda rows: after(begin, pd.DataFrame({"n": rows})))
    meta = pd.DataFrame({"n": pd.Series(dtype="int64")})
    return dd.from_delayed([rows(first), late(second)], meta=meta)


def test_a_partition_ends_when_its_last_row_takes_its_share_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its workers have no place then; they must hear that all is done, and not wait for one."""
    taken, after_all = threading.Event(), []

    def heard(report: Mapping[str, Any], told: dict[str, Any]) -> None:
        if report["ok"] == 2:
            after_all.append(report)
            if len(after_all) == ENOUGH:
                told["limit"] = 2  # it hangs, and is let go
        if report["running"] == 1:
            told["limit"] = 0  # as if others came before
            if report["limit"] == 0:  # it has heard of that
                taken.set()

    listen(monkeypatch, heard)

    def work(row: Any) -> int:
        assert row["n"] == 0 or taken.wait(LONG)
        return int(row["n"])

    ddf = dd.from_pandas(pd.DataFrame({"n": [0, 1]}), npartitions=1)
    out = ddf.llm.parallel_map(work, max_workers=2)
    assert out.compute()["response"].tolist() == [0, 1]
    assert len(after_all) < ENOUGH


class Telling:
    """A link to a coordinator that says what a test says."""

    host = worker = name = "w"

    def __init__(self, **first: Any):
        self.first = {"limit": 0, "now": 0.0, "tick": LONG, "workers": 2, "began": 0.0} | first
        self.first |= {"session": "s", "collected": False, "timeout": None}
        self.answers: list[Any] = []
        self.reports: list[Mapping[str, Any]] = []
        self.asked = threading.Semaphore(0)

    def call(self, request: str, **message: Any) -> dict[str, Any]:
        if request == "open":
            return self.first
        self.reports.append(message["report"])
        if request == "close":
            return {}
        answer = self.answers.pop(0)
        self.asked.release()
        if isinstance(answer, Exception):
            raise answer
        return {"limit": 0, "now": 0.0, "tick": LONG, **answer}

    def begin(self, terms: Any, clients: Any) -> Any: ...
    def send(self, job: str, message: Any) -> None: ...


def opened(link: Telling, rows: int = 2) -> PartitionSession:
    job = cast("Job", SimpleNamespace(id="job", terms={}, observed=False))
    session = PartitionSession(link, RunHandle("run"), job, 0, rows)
    none: Any = dict.fromkeys(("rate_limit", "budget", "size", "max_tokens", "price"))
    limits = PartitionLimits(2, **none, reports_load=False, report_now=session.report_now)
    session.begin(limits)
    return session


def test_a_share_that_came_while_the_engine_started_wakes_it() -> None:
    session, told = opened(Telling(limit=2)), []
    session.started(lambda stop: None, lambda change: told.append(change()))
    assert told
    session.close()


def test_what_may_have_been_lost_on_its_way_is_said_again() -> None:
    link = Telling()
    link.answers = [ConnectionError("gone"), {"freed": [b"other"]}]
    session = opened(link)
    session.release("store", [b"key"])
    session.report_now()
    assert link.asked.acquire(timeout=LONG)
    session.news.wait(LONG)
    assert session.freed() is None  # any key may be free, and nobody has said so
    session.report_now()
    assert link.asked.acquire(timeout=LONG)
    session.news.wait(LONG)
    assert session.freed() == {b"other"}
    assert session.freed() == set()
    session.close()
    lets = [report.get("released") for report in link.reports]
    assert lets == [[("store", [b"key"])], [("store", [b"key"])], None]


def test_a_scheduler_that_is_silent_for_long_stops_the_partition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "_SILENCE", -1.0)
    link = Telling()
    link.answers = [ConnectionError("gone")]
    session, stops = opened(link), []
    session.started(stops.append, lambda change: change())
    session.report_now()
    session.news.wait(LONG)
    session.close()
    assert stops == [
        Stop(StopKind.INTERRUPTED, "the Dask scheduler does not answer: gone", cancels=True)
    ]


def test_a_stop_wakes_who_waits_for_another_partition() -> None:
    link = Telling()
    link.answers = [{"stop": ["cancelled", "enough", True]}]
    session, stops = opened(link), []
    session.started(stops.append, lambda change: change())
    waits = threading.Thread(target=session.news.wait, args=(10 * LONG,))
    waits.start()
    session.report_now()
    waits.join(LONG)
    assert not waits.is_alive()
    assert stops == [Stop(StopKind.CANCELLED, "enough", cancels=True)]
    session.close()


# -- rows that wait for another partition's reply --------------------------------------------------


class Held:
    """A server's rule: one row's first reply is held back until the gate is open."""

    def __init__(self, row: int, reply: Answer | None = None):
        self.row, self.reply = row, reply
        self.gate, self.came = threading.Event(), threading.Event()
        self.asked: Counter[int] = Counter()
        self.lock = threading.Lock()

    def __call__(self, messages: ASKED, body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        with self.lock:
            self.asked[row] += 1
            first = self.asked[row] == 1
        if row == self.row and first:
            self.came.set()
            assert self.gate.wait(LONG)
            return said(row) if self.reply is None else self.reply
        return said(row)


def test_the_reply_to_a_claim_that_was_released_is_found_at_once(tmp_path: Path) -> None:
    here, there = SharedStore(tmp_path), SharedStore(tmp_path)
    keys = [b"came", b"mine", b"taken"]

    class Asked:
        """A session; between its first look and its claim, another one has kept a reply."""

        def claim(self, store: str, keys: list[bytes], **known: Any) -> dict[str, Any]:
            there.put([(b"came", Reply("good"))], task="a task", model="a model")
            return {"taken": [b"taken"], "parts": [there.part]}

    store = ClaimingStore(here, cast("PartitionSession", Asked()), "replies")
    assert store.get(keys) == {}
    before = store.version
    taken, after = store.claim(keys)
    assert taken == {b"taken"}
    assert before != after
    assert store.get(keys) == {b"came": Reply("good")}
    here.close()
    there.close()


def test_what_could_not_be_written_is_tried_again_when_a_partition_is_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedStore(tmp_path)
    store = ClaimingStore(shared, opened(Telling()), "replies")

    def full(file: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.warns(StoreWarning, match="cannot be written at present"):
            assert not store.put([(b"key", Reply("good"))], task="a task", model="a model")
    assert store.problem is not None
    store.close()
    assert store.problem is None
    shared.close()
    store._session.close()


def texts(ddf: Any) -> Any:
    def review(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"review": [f"review {n}" for n in frame["n"]]}, index=frame.index)

    return ddf.map_partitions(review, meta={"review": "str"})


@pytest.mark.parametrize("second", [[7], [7, 7, 8]], ids=["has nothing else", "has other rows"])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_row_waits_for_another_partitions_reply_and_holds_no_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, second: list[int], workers: int
) -> None:
    rule, waiting = Held(7), threading.Event()
    asks = Counter[int]()
    claim = Coordinator.claim

    def counted(self: Coordinator, name: str, store: str, keys: Any, **rest: Any) -> Any:
        asks[threading.get_ident()] += 1
        return claim(self, name, store, keys, **rest)

    monkeypatch.setattr(Coordinator, "claim", counted)
    other = len(set(second)) - 1
    # With one worker for all, the row that is held has it: nothing else can be done meanwhile.
    done = 0 if workers == 1 else other
    reports = []

    def heard(report: Mapping[str, Any], told: dict[str, Any]) -> None:
        if report["running"] == 0 and report["ok"] == done and rule.came.is_set():
            reports.append(report)
            if len(reports) == 5:  # it has been waiting for a while
                waiting.set()
                rule.gate.set()

    listen(monkeypatch, heard)
    with serve(rule) as server:
        out = texts(two_partitions([7], second, rule.came)).llm.parallel_map(
            TASK,
            model=revkit.Ollama("m", host=server.url),
            store=tmp_path / "replies",
            max_workers=workers,
            timeout=LONG,
        )
        frame = out.compute()
    assert frame["number"].tolist() == [7, *second]
    assert waiting.is_set()
    assert rule.asked == Counter({7, *second})
    assert asks.total() <= 4  # it was told when the row was free, and did not ask again and again


def test_a_row_whose_other_failed_is_asked_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rule = Held(7, Status(400, {"error": "no"}))

    def heard(report: Mapping[str, Any], told: dict[str, Any]) -> None:
        if report["running"] == report["demand"] == 0 and rule.came.is_set():
            rule.gate.set()  # the second one waits

    listen(monkeypatch, heard)
    with serve(rule) as server:
        out = texts(two_partitions([7], [7, 7], rule.came)).llm.parallel_map(
            TASK,
            model=revkit.Ollama("m", host=server.url),
            store=tmp_path / "replies",
            max_workers=1,
            timeout=LONG,
        )
        frame = out.compute()
    assert frame["error"].notna().tolist() == [True, False, False]
    assert frame["number"].dropna().tolist() == [7, 7]
    assert rule.asked == {7: 2}
