"""The events of a run: their order, and that they alone rebuild what the result says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import tempfile
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from calls import Run, awaited, awaited_in_threads, by_loop, by_thread
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from threads import join_workers

import revkit
from revkit import CancelToken, Event, Interrupted, Retry, RunFailed
from revkit.runtime.engines.threads import ThreadEngine
from revkit.testing import FakeModel


class Ear:
    """An observer that keeps all it hears."""

    def __init__(self, on_event: Callable[[Event], object] = lambda event: None) -> None:
        self.events: list[Event] = []
        self._also = on_event

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        self._also(event)

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [event.data for event in self.events if event.type == kind]

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]


ENGINES = [by_thread, by_loop, awaited, awaited_in_threads]
every_engine = pytest.mark.parametrize("run_on", ENGINES)


def reviews(*texts: str | None) -> pd.DataFrame:
    return pd.DataFrame({"review": list(texts)}, index=[7] * len(texts))


# -- what the stream says, read without revkit -----------------------------------------------------


class Rebuilt:
    """A run as its events tell it."""

    def __init__(self, events: list[Event]) -> None:
        first, *middle, last = [json.loads(event.to_json()) for event in events]
        assert first["type"] == "parallel.start"
        assert last["type"] == "parallel.complete"
        assert len({event.run_id for event in events}) == 1
        self.started, self.completed = first["data"], last["data"]
        self.attempts: list[tuple[int, int, int, str]] = []
        self.status: dict[int, str] = {}
        self.source: dict[int, str] = {}
        self.service_s = 0.0
        self.highest = 0
        self.retries = 0
        self.tokens: Counter[str] = Counter()
        busy: dict[int, tuple[int, int]] = {}  # worker -> row and attempt
        tried: defaultdict[int, int] = defaultdict(int)
        due: dict[int, int] = {}
        for event in middle:
            kind, data = event["type"], event["data"]
            row, worker = data.get("item_index"), data.get("worker_id")
            match kind:
                case "worker.start":
                    assert worker not in busy, "a worker does one thing at a time"
                    assert row not in self.status, "a row that is settled is not tried again"
                    assert data["attempt"] == tried[row] + 1
                    assert due.pop(row, data["attempt"]) == data["attempt"]
                    busy[worker] = (row, data["attempt"])
                    self.highest = max(self.highest, len(busy))
                case "worker.complete":
                    assert busy.pop(worker) == (row, data["attempt"])
                    tried[row] += 1
                    assert (data["error"] is None) == (data["outcome"] in ("ok", "cancelled"))
                    self.attempts.append((row, data["attempt"], worker, data["outcome"]))
                    self.service_s += data["service_ms"] / 1e3
                    for name in ("prompt_tokens", "completion_tokens"):
                        self.tokens[name] += data[name] or 0
                case "worker.retry":
                    assert self.attempts[-1] == (row, data["attempt"] - 1, worker, "retried")
                    assert data["delay_ms"] >= 0
                    due[row] = data["attempt"]
                    self.retries += 1
                case "worker.limited":
                    assert data["reason"] in ("pause", "rate_limit", "budget")
                    assert data["delay_ms"] > 0
                case "row.settled":
                    assert row not in self.status, "a row is settled once"
                    assert row not in [row for row, _ in busy.values()]
                    assert data["attempts"] == tried[row]
                    assert (data["error"] is None) == (data["status"] == "ok")
                    self.status[row], self.source[row] = data["status"], data["source"]
                case "store.write":
                    assert data["replies"] > 0
                    assert data["duration_ms"] >= 0
                case _:
                    raise AssertionError(kind)
        assert not busy, "every attempt that was started ends"


def check(ear: Ear, run: revkit.ParallelResult) -> Rebuilt:
    """The events say all that the result says."""
    told, metrics = Rebuilt(ear.events), run.metrics
    assert told.started["item_count"] == metrics.total == len(told.status)
    assert told.started["worker_count"] == metrics.workers
    assert [told.status[row] for row in range(metrics.total)] == run.rows["status"].tolist()
    assert [told.source[row] for row in range(metrics.total)] == run.rows["source"].tolist()
    counts = Counter(told.status.values())
    assert counts["ok"] == metrics.succeeded == told.completed["items_processed"]
    assert counts["error"] == metrics.failed == told.completed["items_failed"]
    assert counts["cancelled"] == metrics.cancelled == told.completed["items_cancelled"]
    assert counts["not_started"] == metrics.not_started == told.completed["items_not_started"]
    sources = Counter(told.source.values())
    assert sources["store"] == metrics.from_store == told.completed["from_store"]
    assert sources["duplicate"] == metrics.duplicates == told.completed["duplicates"]
    assert told.retries == metrics.retries == told.completed["retries"]
    assert metrics.attempts == len(told.attempts) == told.completed["attempts"]
    frame = run.attempts
    columns = [frame[name].tolist() for name in ("row", "attempt", "worker", "outcome")]
    assert Counter(told.attempts) == Counter(zip(*columns, strict=True))
    assert told.highest <= metrics.workers
    assert told.service_s == pytest.approx(frame["service_ms"].sum() / 1e3)
    wall = told.completed["wall_s"]
    assert wall == metrics.wall_s
    if wall > 0 and told.attempts:
        assert told.service_s / wall == pytest.approx(metrics.mean_concurrency)
    usage = run.usage
    assert told.tokens["prompt_tokens"] == (usage.prompt_tokens or 0)
    assert told.tokens["completion_tokens"] == (usage.completion_tokens or 0)
    return told


# -- any run at all --------------------------------------------------------------------------------

OUTCOMES = {
    "ok": "positive",
    "unfit": "nonsense",
    "broken": revkit.ConnectionFailed("gone"),
    "refused": revkit.ModelError("no reply"),
    "pause": revkit.ServerError("slow down", status=429, pause=0.002),
    "denied": revkit.AccessDenied("no"),
}
likely = st.sampled_from(["ok"] * 6 + ["unfit", "broken", "broken", "refused", "pause", "pause"])
scripts = st.lists(likely | st.sampled_from(["ok", "ok", "denied"]), max_size=4)


@examples(80)
@given(
    rows=st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", None]), max_size=14),
    scripts=st.fixed_dictionaries(dict.fromkeys("abcdef", scripts)),
    known=st.none() | st.sets(st.sampled_from("abcdef")),
    engine=st.sampled_from([*ENGINES, "virtual"]),
    max_workers=st.integers(1, 4),
    stop=st.sampled_from(
        [{}, {}, {}, {"fail_fast": True}, {"max_failures": 1}, "cancel", "interrupt", "budget"]
    ),
    limited=st.booleans(),
)
def test_the_stream_alone_rebuilds_the_run(
    rows: list[str | None],
    scripts: dict[str, list[str]],
    known: set[str] | None,
    engine: Any,
    max_workers: int,
    stop: Any,
    limited: bool,
) -> None:
    told: Counter[str] = Counter()
    lock = threading.Lock()

    def rule(text: str) -> Any:
        name = text.splitlines()[0][:1]
        with lock:
            told[name] += 1
            script = scripts.get(name, [])
            return OUTCOMES[script[told[name] - 1] if told[name] <= len(script) else "ok"]

    virtual = engine == "virtual"
    model = FakeModel(
        rule,
        latency=(lambda text: 0.1 + len(text) % 7) if virtual else 0.0,
        clock="virtual" if virtual else "real",
    )
    options: dict[str, Any] = {"retry": Retry(initial=0.001, maximum=0.002)}
    if isinstance(stop, dict):
        options |= stop
    if stop == "cancel":
        token = options["cancel"] = CancelToken()
        options["progress"] = lambda done, total, row: done > 2 and token.cancel()
    if stop == "budget":
        options["budget"] = revkit.Budget(tokens=900)
        model.max_tokens = 10
    if stop == "interrupt":

        def press(done: int, total: int, row: object) -> None:
            if done > 2:
                raise KeyboardInterrupt

        options["progress"] = press
    if limited:
        options["rate_limit"] = revkit.RateLimit(requests_per_minute=60 if virtual else 60_000)
    ear, df = Ear(), reviews(*rows)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        if known is not None:
            options["store"] = Path(folder) / "replies.sqlite"
            warnings.simplefilter("ignore")  # the bar of nothing kept
            sure = FakeModel(lambda text: "positive")
            reviews(*known).llm.parallel_map(model=sure, store=options["store"])
        run_on = by_loop if virtual else engine
        with contextlib.suppress(RunFailed, Interrupted, asyncio.CancelledError):
            run_on(df, model=model, max_workers=max_workers, observer=ear, **options)
    run = revkit.last_result()
    assert run is not None
    rebuilt = check(ear, run)
    assert (rebuilt.completed["stopped"] is not None) == (run.stopped is not None)


# -- one by one ------------------------------------------------------------------------------------


def seconds(event: Event) -> float:
    return datetime.fromisoformat(event.timestamp).timestamp()


def test_first_a_wave_of_starts_then_pairs_then_a_wave_of_completions() -> None:
    model = FakeModel(lambda text: "positive", latency=lambda text: ord(text), clock="virtual")
    ear = Ear()
    reviews(*"abcdef").llm.parallel_map(model=model, max_workers=2, observer=ear)
    workers = [kind for kind in ear.types if kind.startswith("worker.")]
    start, complete = "worker.start", "worker.complete"
    assert workers == [start, start, *[complete, start] * 4, complete, complete]
    assert ear.types.count("row.settled") == 6
    assert ear.of("parallel.start")[0] == {
        "item_count": 6,
        "worker_count": 2,
        "engine": "async",
        "fail_fast": False,
        "max_failures": None,
        "adaptive": False,
        "task": "review -> sentiment",
        "model": "fake",
        "provider": None,
        "samples": 1,
        "has_progress": False,
        "store": False,
    }


def test_times_are_those_of_the_run() -> None:
    """UTC, and as far apart as on the clock of the run, here a virtual one."""
    ear, model = Ear(), FakeModel(lambda text: "positive", latency=1.5, clock="virtual")
    run = reviews(*"abcd").llm.parallel_map(model=model, max_workers=2, observer=ear)
    first = next(event for event in ear.events if event.type == "worker.start")
    at = [round(seconds(e) - seconds(first), 3) for e in ear.events if e.type == "worker.complete"]
    assert at == [1.5, 1.5, 3.0, 3.0]
    assert [data["service_ms"] for data in ear.of("worker.complete")] == [1500.0] * 4
    assert all(event.timestamp.endswith("+00:00") for event in ear.events)
    assert all(event.source == "revkit.parallel_map" for event in ear.events)
    assert ear.of("parallel.complete")[0]["wall_s"] == run.metrics.wall_s == 3.0


@every_engine
def test_a_run_without_rows_starts_and_completes(run_on: Run) -> None:
    ear = Ear()
    run_on(reviews(), model=FakeModel(lambda text: "positive"), observer=ear)
    assert ear.types == ["parallel.start", "parallel.complete"]
    assert ear.of("parallel.complete")[0]["error"] is None


@every_engine
def test_an_unknown_name_is_refused_before_anything_is_sent(run_on: Run) -> None:
    model = FakeModel(lambda text: "positive")
    with pytest.raises(revkit.UsageError, match='no observer "jsonk"; did you mean "jsonl"'):
        run_on(reviews("a"), model=model, observer="jsonk")
    assert model.calls == []


@every_engine
def test_a_reply_is_in_the_store_before_its_row_is_said_to_be_settled(
    run_on: Run, tmp_path: Path
) -> None:
    ear, place = Ear(), tmp_path / "replies.sqlite"
    run_on(reviews("a", "b", "a"), model=FakeModel(lambda text: "positive"), observer=ear,
           store=place)  # fmt: skip
    written = 0
    for event in ear.events:
        if event.type == "store.write":
            written += event.data["replies"]
        elif event.type == "row.settled" and event.data["source"] == "model":
            written -= 1
            assert written >= 0
    assert written == 0
    again = Ear()
    run_on(reviews("a", "b", "a"), model=FakeModel({}.__getitem__), observer=again, store=place)
    assert set(again.types) == {"parallel.start", "row.settled", "parallel.complete"}
    assert [data["source"] for data in again.of("row.settled")] == ["store", "store", "store"]


def test_a_row_that_is_held_back_says_so_once() -> None:
    busy = revkit.ServerError("slow down", status=429, pause=2.0)
    answers = iter([busy])
    model = FakeModel(lambda text: next(answers, "positive"), latency=0.5, clock="virtual")
    ear = Ear()
    run = reviews(*"abc").llm.parallel_map(model=model, max_workers=1, observer=ear)
    assert ear.of("worker.limited") == [
        {"worker_id": 0, "item_index": 1, "reason": "pause", "delay_ms": 2000.0}
    ]
    assert ear.of("worker.retry")[0]["delay_ms"] == 2000.0
    assert run._record.holds == [("pause", 0.5, 2.5)]


def test_a_rate_limit_says_which_row_it_holds() -> None:
    model = FakeModel(lambda text: "positive", latency=0.1, clock="virtual")
    ear = Ear()
    limit = revkit.RateLimit(requests_per_minute=60)
    reviews(*"abcd").llm.parallel_map(model=model, max_workers=2, observer=ear, rate_limit=limit)
    assert [data["item_index"] for data in ear.of("worker.limited")] == [1, 2, 3]
    assert {data["reason"] for data in ear.of("worker.limited")} == {"rate_limit"}


def test_rows_that_are_tried_again_keep_their_number() -> None:
    answers = iter(["positive", revkit.ModelError("no"), "positive", revkit.ModelError("no")])
    ear, numbers = Ear(), []
    run = reviews(*"abcd").llm.parallel_map(
        model=FakeModel(lambda text: next(answers, "positive")),
        max_workers=1,
        observer=ear,
        progress=lambda done, total, row: numbers.append(row.row),
    )
    first, heard = ear.events[0].run_id, len(ear.events)
    run.retry_failed()
    again = ear.events[heard:]
    assert {event.run_id for event in again}.isdisjoint({first})
    assert [e.data["item_index"] for e in again if e.type == "row.settled"] == [1, 3]
    assert numbers == [0, 1, 2, 3, 1, 3]


@every_engine
def test_an_observer_that_raises_is_dropped_and_the_run_goes_on(run_on: Run) -> None:
    def fail(event: Event) -> None:
        if event.type == "worker.complete":
            raise ZeroDivisionError("no")

    broken, well = Ear(fail), Ear()
    with pytest.warns(UserWarning, match="the observer Ear raised ZeroDivisionError: no"):
        run = run_on(
            reviews("a", "b"), model=FakeModel(lambda text: "positive"), observer=[broken, well]
        )
    assert run.metrics.succeeded == 2
    check(well, run)
    assert broken.types[-1] == "worker.complete"


def test_an_observer_that_blocks_is_left_behind() -> None:
    release = threading.Event()
    blocked = Ear(lambda event: release.wait())
    answers = iter(["positive"])

    def stop(done: int, total: int, row: object) -> None:
        raise KeyboardInterrupt

    with (
        pytest.warns(UserWarning, match="the observer Ear was not through"),
        pytest.raises(Interrupted),
    ):
        reviews("a").llm.parallel_map(
            model=FakeModel(lambda text: next(answers)), observer=blocked, progress=stop
        )
    release.set()
    assert blocked.types == ["parallel.start"]


def test_an_attempt_that_does_not_end_counts_as_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An async function that holds on to its place when it is cancelled."""
    monkeypatch.setattr("revkit.runtime.lifecycle._GRACE", 0.1)
    ear, release, token = Ear(), threading.Event(), CancelToken()
    begun: list[str] = []

    async def stubborn(row: Mapping[str, Any]) -> str:
        begun.append(row["review"])
        if len(begun) == 2:
            token.cancel()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return "late"

    with pytest.raises(revkit.RunCancelled) as caught:
        reviews("a", "b", "c").llm.parallel_map(stubborn, max_workers=2, cancel=token, observer=ear)
    release.set()
    assert caught.value.result is not None
    told = check(ear, caught.value.result)
    assert sorted(told.status.values()) == ["cancelled", "cancelled", "not_started"]
    assert caught.value.result.attempts["outcome"].tolist() == ["cancelled", "cancelled"]


class NeverReady(FakeModel):
    def ready(self, task: Any, *, max_workers: int) -> None:
        raise revkit.ModelUnavailable("it does not start")


@every_engine
def test_a_run_that_never_starts_says_so(run_on: Run) -> None:
    ear = Ear()
    with pytest.raises(revkit.ModelUnavailable):
        run_on(reviews("a", None), model=NeverReady(lambda text: "positive"), observer=ear)
    assert ear.types == ["parallel.start", *["row.settled"] * 2, "parallel.complete"]
    assert [data["status"] for data in ear.of("row.settled")] == ["error", "not_started"]
    assert ear.of("parallel.complete")[0]["error"] == "ModelUnavailable: it does not start"


def test_a_reply_that_could_not_be_written_is_not_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("revkit.store.file._PATIENCE", 0.0)
    place, ear = tmp_path / "replies.sqlite", Ear()
    reviews("a").llm.parallel_map(model=FakeModel(lambda text: "positive"), store=place)
    other = sqlite3.connect(place, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = reviews("b", "c").llm.parallel_map(
                model=FakeModel(lambda text: "positive"), store=place, observer=ear
            )
    finally:
        other.close()
    assert run.metrics.succeeded == 2
    assert run.store_problem is not None
    assert ear.of("store.write") == []


def test_a_run_ends_when_its_last_worker_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when all that follows has been done."""
    now = 0.0
    monkeypatch.setattr(ThreadEngine, "clock", staticmethod(lambda: now))

    def much_later(done: int, total: int, row: object) -> None:
        nonlocal now
        join_workers()
        now += 100.0

    run = pd.DataFrame({"n": [1, 2, 3]}).llm.parallel_map(lambda row: 1, progress=much_later)
    assert now == 300.0
    assert run.metrics.wall_s == 0.0


def test_a_result_that_was_retried_goes_by_the_name_of_its_last_run() -> None:
    answers = iter([revkit.ModelError("no")])
    ear = Ear()
    run = reviews("a", "b").llm.parallel_map(
        model=FakeModel(lambda text: next(answers, "positive")), max_workers=1, observer=ear
    )
    again = run.retry_failed()
    assert [run.provenance["run_id"], again.provenance["run_id"]] == list(
        dict.fromkeys(event.run_id for event in ear.events)
    )


def test_without_an_observer_there_is_no_thread_and_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from revkit.observers.stream import EventStream

    monkeypatch.setattr(EventStream, "__init__", None)
    started: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda self: (started.append(self.name), start(self))[1]
    )
    reviews("a", "b").llm.parallel_map(model=FakeModel(lambda text: "positive"), engine="thread")
    assert started
    assert all(name.startswith("revkit-worker") for name in started)


def test_no_text_of_a_row_or_reply_is_in_an_event() -> None:
    ear = Ear()
    reviews("my secret diary").llm.parallel_map(
        "Say it again: {review}", model=FakeModel(lambda text: "quite a story"), observer=ear
    )
    told = "".join(event.to_json() for event in ear.events)
    assert "diary" not in told
    assert "story" not in told


def test_functions_have_events_too() -> None:
    ear = Ear()

    def halve(row: Mapping[str, Any]) -> float:
        return 1 / row["n"]

    run = pd.DataFrame({"n": [1, 0, 2]}).llm.parallel_map(halve, max_workers=1, observer=ear)
    check(ear, run)
    failed = next(data for data in ear.of("worker.complete") if data["error"] is not None)
    assert failed["error_type"] == "ZeroDivisionError"
    assert failed["item_index"] == 1
    assert ear.of("parallel.start")[0]["model"] is None


@pytest.mark.parametrize("kind", ["jsonl", "logging"])
def test_the_ones_that_come_with_revkit_hear_a_run(
    kind: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "revkit")
    reviews("a", "b").llm.parallel_map(model=FakeModel(lambda text: "positive"), observer=kind)
    if kind == "jsonl":
        types = [json.loads(line)["type"] for line in capsys.readouterr().out.splitlines()]
    else:
        types = [record.revkit_event["type"] for record in caplog.records]  # type: ignore[attr-defined]
    assert types[0] == "parallel.start"
    assert types[-1] == "parallel.complete"
    assert types.count("row.settled") == 2


@pytest.mark.parametrize(
    "unseen", ["\x1b[31m", "\x7f", "\x9b31m", "\u202e", "\u2066", "\u200f", "\u2028", "\U000e0041"]
)
def test_a_line_of_json_holds_nothing_that_a_terminal_obeys(unseen: str) -> None:
    data = {"model": f"a{unseen}b", "text": "é 日本 \U0001f469\u200d\U0001f4bb"}
    line = revkit.Event("row.settled", "2026", "revkit", "7c", data).to_json()
    assert line.replace("\u200d", "").isprintable()
    assert "é 日本 \U0001f469\u200d\U0001f4bb" in line
    assert json.loads(line)["data"] == data
