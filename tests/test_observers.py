"""Observers: how they are chosen, what they get, and that none of them can harm a run."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revkit import Event, MissingExtra, UsageError, observers, register_observer
from revkit.observers import Observers, resolve
from revkit.observers.built_in import JsonLines

LIMIT = 60  # seconds after which a thread that says nothing has failed
DOCS = Path(__file__).parent.parent / "docs" / "observers.md"


def event(type_: str = "store.write", **data: Any) -> Event:
    return Event(type_, "2026-01-31T12:00:00.000000+00:00", "revkit.parallel_map", "7c9e", data)


#: One of each type, with everything that the contract puts into it.
EVENTS = [
    event("parallel.start", item_count=2, worker_count=2, engine="async", fail_fast=False,
          max_failures=None, adaptive=False, task="sentiment", model="llama3.2:3b",
          provider="ollama", has_progress=False, store=True),
    event("worker.start", worker_id=0, item_index=1, total_items=2, attempt=1),
    event("worker.limited", worker_id=0, item_index=1, reason="rate_limit", delay_ms=40.0),
    event("worker.retry", worker_id=0, item_index=1, attempt=2, delay_ms=500.0,
          error_type="ServerError", error="503: busy"),
    event("worker.complete", worker_id=0, item_index=1, total_items=2, attempt=2,
          outcome="failed", service_ms=1234.56, error="BadOutput: not\na label",
          error_type="BadOutput", http_status=None, prompt_tokens=9, completion_tokens=2,
          finish_reason="stop"),
    event("row.settled", item_index=1, status="error", source="model", attempts=2,
          error="BadOutput: not a label"),
    event("row.settled", item_index=0, status="ok", source="store", attempts=0, error=None),
    event("store.write", replies=1, duration_ms=0.25),
    event("parallel.complete", items_processed=1, items_failed=1, items_cancelled=0,
          items_not_started=0, from_store=1, duplicates=0, attempts=2, retries=1, wall_s=1.5,
          prompt_tokens=9, completion_tokens=2, stopped=None, error=None),
]  # fmt: skip


class Notes:
    """Notes what it is told; it may fail at one event, or wait at the first until let go."""

    def __init__(
        self, fails_at: int = 0, error: BaseException | None = None, *, waits: bool = False
    ):
        self.events: list[Event] = []
        self.closed = 0
        self.thread: threading.Thread | None = None
        self.reached, self.go = threading.Event(), threading.Event()
        self._fails_at, self._error, self._waits = fails_at, error, waits

    def on_event(self, event: Event) -> None:
        self.thread = threading.current_thread()
        self.reached.set()
        if self._waits:
            assert self.go.wait(LIMIT)
        if len(self.events) + 1 == self._fails_at:
            raise self._error or ValueError("no")
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1


class Flushed(Notes):
    """Notes how many events it had at each flush."""

    def __init__(self, *, waits: bool = False) -> None:
        super().__init__(waits=waits)
        self.flushes: list[int] = []

    def flush(self) -> None:
        self.flushes.append(len(self.events))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    names: dict[str, Any] = {}
    monkeypatch.setattr(observers, "_registered", names)
    return names


def told(chosen: Any, events: list[Event], **options: Any) -> list[str]:
    """Let observers have events as a run does; gives the warnings."""
    all_of_them = Observers(resolve(chosen), **options)
    for one in events:
        all_of_them.send(lambda one=one: one)
    return all_of_them.close(timeout=LIMIT)


# -- an event ------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@given(st.text(), st.dictionaries(st.text(), JSON, max_size=5))
def test_an_event_is_one_json_object_on_one_line(type_: str, data: dict[str, Any]) -> None:
    line = Event(type_, "t", "s", "r", data).to_json()
    assert "\n" not in line
    assert "\r" not in line
    read = json.loads(line)
    assert list(read) == ["type", "timestamp", "source", "run_id", "data"]
    assert read["type"] == type_
    assert read["data"] == data


def test_a_dict_of_an_event_is_its_own() -> None:
    one = event(replies=1)
    one.to_dict()["data"]["replies"] = 2
    assert one.data == {"replies": 1}


# -- which observers -----------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, "noop", [], (), ["noop"]])
def test_no_observer_is_no_thread_and_makes_no_event(nothing: Any) -> None:
    before = threading.active_count()
    none = Observers(resolve(nothing))
    none.send(lambda: pytest.fail("an event was made"))
    assert not none.active
    assert threading.active_count() == before
    assert none.close(timeout=0) == []


class Async:
    async def on_event(self, event: Event) -> None: ...


@pytest.mark.parametrize(
    ("observer", "message"),
    [
        ("json", r'no observer "json"; did you mean "jsonl"\?'),
        ("zzz", r'there are "noop", "jsonl", "logging", "otel", "mine"\.'),
        (["jsonl", "jsnol"], r'"jsnol"; did you mean "jsonl"'),
        (3, r"int has no method on_event\(event\)"),
        (print, r"no method on_event"),
        ([None], r"NoneType has no method on_event"),
        (Notes, r"Notes is a class: give an object, Notes\(\)"),
        (Async(), r"on_event of the observer Async is async"),
        (["jsonl", "jsonl"], r'"jsonl" is in the list twice'),
    ],
)
def test_what_is_no_observer_is_refused(observer: Any, message: str) -> None:
    register_observer("mine", Notes)
    with pytest.raises(UsageError, match=message):
        resolve(observer)


def test_an_object_may_not_be_given_twice() -> None:
    one = Notes()
    with pytest.raises(UsageError, match="Notes is in the list twice"):
        resolve([one, one])
    assert len(resolve([one, Notes()])) == 2


@pytest.mark.parametrize(
    ("name", "factory", "message"),
    [
        ("jsonl", Notes, "revkit's own"),
        ("noop", Notes, "revkit's own"),
        ("", Notes, "is a text"),
        (3, Notes, "is a text, not 3"),
        ("mine", Notes(), "cannot be called"),
        ("mine", Async().on_event, "is async"),
    ],
)
def test_what_cannot_be_registered_is_refused(name: Any, factory: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        register_observer(name, factory)


def test_a_registered_observer_is_made_for_each_run_and_closed() -> None:
    made: list[Notes] = []

    def factory() -> Notes:
        made.append(Notes())
        return made[-1]

    register_observer("mine", lambda: pytest.fail("the old factory"))
    register_observer("mine", factory)
    assert resolve("mine")
    assert made == []
    for _ in range(2):
        assert told("mine", EVENTS) == []
    assert [(one.events, one.closed) for one in made] == [(EVENTS, 1), (EVENTS, 1)]


def test_an_object_of_the_users_is_not_closed() -> None:
    notes = Notes()
    assert told(notes, EVENTS) == []
    assert (notes.events, notes.closed) == (EVENTS, 0)


def test_a_factory_that_fails_is_refused_before_the_run_and_leaves_nothing_open() -> None:
    first = Notes()
    register_observer("first", lambda: first)
    register_observer("broken", lambda: 1 / 0)
    register_observer("odd", lambda: "an observer?")
    with pytest.raises(UsageError, match='"broken" raised ZeroDivisionError: division by zero'):
        Observers(resolve(["first", "broken"]))
    assert first.closed == 1
    with pytest.raises(UsageError, match=r'"odd" has no method on_event\(event\), where a str'):
        Observers(resolve("odd"))


def test_a_missing_extra_says_so_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "revkit.observers.otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingExtra, match=r'pip install "revkit\[otel\]"'):
        resolve("otel")


# -- how they get their events -------------------------------------------------------------------


@given(
    st.integers(0, 30),
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
)
def test_each_gets_all_in_order_up_to_where_it_fails(count: int, fails_at: list[int]) -> None:
    sent = [event(n=n) for n in range(count)]
    noting = [Notes(n) for n in fails_at]
    warnings = told(list(noting), sent)
    failing = [n for n in fails_at if 0 < n <= count]
    for notes, n in zip(noting, fails_at, strict=True):
        assert notes.events == (sent[: n - 1] if n in failing else sent)
    assert sorted(warnings) == sorted(
        f'the observer Notes raised ValueError: no at the event "store.write" and was dropped '
        f"after {n - 1} events; the run went on"
        for n in failing
    )


def test_each_has_a_daemon_thread_of_its_own_in_the_callers_context() -> None:
    here = contextvars.ContextVar("here", default="elsewhere")
    here.set("in the run")
    seen: list[str] = []

    class Looks(Notes):
        def on_event(self, event: Event) -> None:
            super().on_event(event)
            seen.append(here.get())
            here.set("changed")

    noting = [Looks(), Looks()]
    told(list(noting), EVENTS[:1])
    assert seen == ["in the run"] * 2
    threads = {notes.thread for notes in noting}
    assert len(threads) == 2
    assert {thread.name for thread in threads if thread} == {"revkit-observer-Looks"}
    assert all(thread.daemon for thread in threads if thread)
    assert here.get() == "in the run"


def test_an_event_is_made_on_the_observers_thread_and_shared() -> None:
    noting = [Notes(waits=True), Notes()]
    made: list[threading.Thread] = []

    def make() -> Event:
        made.append(threading.current_thread())
        return Event("t", "t", "s", "r", {})

    both = Observers(resolve(list(noting)))
    both.send(EVENTS[0])  # one that is made already
    assert noting[0].reached.wait(LIMIT)
    both.send(make)
    noting[0].go.set()
    assert both.close(LIMIT) == []
    assert threading.current_thread() not in made
    if len(made) == 1:  # they did not need it at the same time
        assert noting[0].events[1] is noting[1].events[1]
    assert noting[0].events == noting[1].events


def test_flush_is_called_while_the_run_goes_on() -> None:
    flushed = Flushed()
    one = Observers(resolve(flushed))
    one.send(EVENTS[0])
    assert until(lambda: flushed.flushes == [1])
    assert one.close(LIMIT) == []


def test_flush_is_not_called_while_events_wait() -> None:
    flushed = Flushed(waits=True)
    one = Observers(resolve(flushed))
    for sent in EVENTS:
        one.send(sent)
    flushed.go.set()
    assert one.close(LIMIT) == []
    assert set(flushed.flushes) == {len(EVENTS)}  # the first event waited until all were there


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), ValueError("bad\nluck")])
def test_whatever_one_raises_the_others_go_on(error: BaseException) -> None:
    bad, good = Notes(2, error), Notes()
    (warning,) = told([bad, good], EVENTS)
    assert "\n" not in warning
    assert f"raised {type(error).__name__}" in warning
    assert '"worker.start" and was dropped after 1 events' in warning
    assert good.events == EVENTS
    assert len(bad.events) == 1


def test_an_error_whose_message_cannot_be_read_is_told_too() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise KeyError

    (warning,) = told(Notes(1, Odd()), EVENTS)
    assert "Odd: (its message cannot be read: KeyError)" in warning


def test_one_that_is_dropped_is_closed_and_what_fails_in_close_is_told() -> None:
    class Sour(Notes):
        def close(self) -> None:
            super().close()
            raise OSError("disk full")

    bad, sour = Notes(1), Sour()
    register_observer("bad", lambda: bad)
    register_observer("sour", lambda: sour)
    warnings = sorted(told(["bad", "sour"], EVENTS))
    assert (bad.closed, sour.closed) == (1, 1)
    assert len(warnings) == 2
    assert '"sour" raised OSError: disk full in close()' in warnings[1]
    assert sour.events == EVENTS


# -- slow ones -----------------------------------------------------------------------------------


def test_one_that_falls_behind_is_dropped_and_the_others_have_all() -> None:
    slow, quick = Notes(waits=True), Notes()
    both = Observers(resolve([slow, quick]), backlog=3, patience=0)
    both.send(EVENTS[0])
    assert slow.reached.wait(LIMIT)
    for n in range(20):  # no more than fits before the quick one has had it
        both.send(event(n=n))
        assert until(lambda n=n: len(quick.events) == n + 2)
    assert both.active
    slow.go.set()
    (warning,) = both.close(LIMIT)
    assert warning.startswith("the observer Notes fell behind by 3 events and was dropped after 0")
    assert len(slow.events) == 1
    assert len(quick.events) == 21


def until(holds: Callable[[], bool]) -> bool:
    """Let the other threads run until it holds."""
    gate = threading.Event()
    return any(holds() or gate.wait(0.001) for _ in range(LIMIT * 1000)) or holds()


def test_one_that_makes_progress_is_waited_for() -> None:
    notes = Notes()
    assert told(notes, [event(n=n) for n in range(500)], backlog=20, patience=LIMIT) == []
    assert [one.data["n"] for one in notes.events] == list(range(500))


def test_nobody_listens_when_the_last_one_is_dropped() -> None:
    bad = Notes(1)
    one = Observers(resolve(bad))
    assert one.active
    one.send(EVENTS[0])
    assert until(lambda: not one.active)
    one.send(lambda: pytest.fail("an event was made"))
    assert len(one.close(LIMIT)) == 1


def test_one_that_blocks_is_left_behind_and_never_called_again() -> None:
    stuck = Notes(waits=True)
    register_observer("stuck", lambda: stuck)
    one = Observers(resolve("stuck"))
    for sent in EVENTS:
        one.send(sent)
    assert stuck.reached.wait(LIMIT)
    (warning,) = one.close(timeout=0.01)
    assert warning == (
        'the observer "stuck" was not through with its events when the run was over, and was '
        "dropped after 0; the run went on"
    )
    one.send(EVENTS[0])
    assert one.close(timeout=0) == []  # told once
    stuck.go.set()
    assert stuck.thread is not None
    stuck.thread.join(LIMIT)
    assert not stuck.thread.is_alive()
    assert (len(stuck.events), stuck.closed) == (1, 0)


def test_a_process_ends_though_an_observer_blocks() -> None:
    script = """
import threading
from revkit import Event
from revkit.observers import Observers, resolve
class Stuck:
    def on_event(self, event):
        threading.Event().wait()
never_closed = Observers(resolve(Stuck()))
never_closed.send(Event("t", "t", "s", "r", {}))
closed = Observers(resolve(Stuck()))
closed.send(Event("t", "t", "s", "r", {}))
print(closed.close(timeout=0.1))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert "was not through with its events" in done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_does_not_hang_on_it() -> None:
    script = """
import os
from revkit import Event
from revkit.observers import Observers, resolve
class Quick:
    def on_event(self, event): pass
one = Observers(resolve(Quick()), backlog=2, patience=0)
child = os.fork()
for _ in range(5):
    one.send(Event("t", "t", "s", "r", {}))
told = one.close(timeout=0.1 if child == 0 else 30)  # the child has no such thread
if child == 0:
    os._exit(len(told))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True, text=True, timeout=LIMIT, check=True,
    )  # fmt: skip
    assert done.stdout == "1\n"


# -- JSON lines ----------------------------------------------------------------------------------


def test_jsonl_writes_a_line_each_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert told("jsonl", EVENTS) == []
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [one.to_dict() for one in EVENTS]


def test_jsonl_writes_many(capsys: pytest.CaptureFixture[str]) -> None:
    lines = JsonLines()
    for n in range(2500):
        lines.on_event(event(n=n))
    assert capsys.readouterr().out.count("\n") == 2000  # it keeps no more than a thousand back
    lines.close()
    assert capsys.readouterr().out.count("\n") == 500
    assert told("jsonl", [event(n=n) for n in range(3500)]) == []
    written = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["data"]["n"] for line in written] == list(range(3500))


def test_jsonl_writes_what_a_narrow_encoding_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert told("jsonl", [event(error="naïve 🙂")]) == []
    assert json.loads(raw.getvalue().decode("ascii"))["data"] == {"error": "naïve 🙂"}


def test_jsonl_keeps_the_stdout_that_the_run_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", first)
    one = Observers(resolve("jsonl"))
    monkeypatch.setattr(sys, "stdout", second)
    one.send(EVENTS[0])
    assert one.close(LIMIT) == []
    assert first.getvalue() == EVENTS[0].to_json() + "\n"
    assert second.getvalue() == ""


def test_jsonl_without_a_stdout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(UsageError, match="which this process lacks"):
        Observers(resolve("jsonl"))


def test_jsonl_is_dropped_where_nobody_reads_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    raw = io.FileIO(write, "w")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))  # type: ignore[type-var]
    (warning,) = told("jsonl", EVENTS)
    assert '"jsonl" raised BrokenPipeError' in warning
    raw.close()


@pytest.mark.kernel
def test_jsonl_arrives_in_the_running_cell() -> None:
    cell = nbformat.v4.new_code_cell(
        "from revkit import Event\n"
        "from revkit.observers import Observers, resolve\n"
        "def run(n):\n"
        "    one = Observers(resolve('jsonl'))\n"
        "    one.send(Event('t', 't', 's', 'r', {'n': n}))\n"
        "    print(one.close(timeout=30))\n"
        "run(1)"
    )
    again = nbformat.v4.new_code_cell("run(2)")
    book = nbformat.v4.new_notebook(cells=[cell, again])
    nbclient.NotebookClient(book, timeout=LIMIT).execute()
    for n, done in enumerate(book.cells, start=1):
        text = "".join(output["text"] for output in done.outputs)
        assert sorted(text.splitlines()) == sorted(
            ["[]", f'{{"type":"t","timestamp":"t","source":"s","run_id":"r","data":{{"n":{n}}}}}']
        )


# -- logging -------------------------------------------------------------------------------------


def test_logging_says_each_event_on_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="revkit")
    assert told("logging", EVENTS) == []
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "[7c9e] parallel.start: sentiment by llama3.2:3b, 2 rows, 2 workers, "
                 "async engine"),
        ("DEBUG", "[7c9e] worker.start: row 1, attempt 1, worker 0"),
        ("INFO", "[7c9e] worker.limited: row 1 waits 40 ms for its rate_limit"),
        ("WARNING", "[7c9e] worker.retry: row 1, attempt 2 in 500 ms: ServerError: 503: busy"),
        ("DEBUG", "[7c9e] worker.complete: row 1, attempt 2, worker 0: failed after 1,234.6 ms: "
                  "BadOutput: not a label"),
        ("WARNING", "[7c9e] row.settled: row 1 error (model), attempts: 2: BadOutput: not a label"),
        ("DEBUG", "[7c9e] row.settled: row 0 ok (store), attempts: 0"),
        ("DEBUG", "[7c9e] store.write: 1 reply in 0.2 ms"),
        ("INFO", "[7c9e] parallel.complete: 1 ok, 1 failed, 0 cancelled, 0 not started in 1.50 s"),
    ]  # fmt: skip
    assert [record.__dict__["revkit_event"] for record in caplog.records] == [
        one.to_dict() for one in EVENTS
    ]


def test_logging_makes_no_line_that_nobody_reads(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="revkit")
    assert told("logging", EVENTS) == []
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_logging_says_an_error_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    data = {**EVENTS[-1].data, "stopped": "timeout", "error": "timeout=1 s was over"}
    assert told("logging", [event("parallel.complete", **data)]) == []
    assert caplog.records[-1].levelname == "ERROR"
    assert caplog.records[-1].getMessage().endswith("in 1.50 s: timeout=1 s was over")


def test_logging_adds_no_handler_but_a_null_handler() -> None:
    told("logging", EVENTS)
    told("logging", EVENTS)
    handlers = logging.getLogger("revkit").handlers
    assert [type(handler) for handler in handlers] == [logging.NullHandler]


# -- the page about it ---------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("events.jsonl").write_text("".join(one.to_json() + "\n" for one in EVENTS), "utf-8")
    return DOCS.read_text(encoding="utf-8")


def test_every_type_and_field_stands_in_the_docs(page: str) -> None:
    rows = dict(re.findall(r"^\| `([a-z.]+)` \|[^|]*\| (.*) \|$", page, flags=re.M))
    for one in EVENTS:
        assert set(re.findall(r"`(\w+)`", rows[one.type])) >= set(one.data), one.type
    assert set(rows) == {one.type for one in EVENTS}


def test_the_examples_of_the_docs_run(page: str, registered: dict[str, Any]) -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    for block in blocks:
        without_runs = re.sub(r"^.*parallel_map\(.*\n", "", block, flags=re.M)
        exec(without_runs, names)
    failures = names["failures"]
    assert told(failures, EVENTS) == []
    assert failures.by_type == {"BadOutput": 1}
    assert told("file", EVENTS) == []
    assert [
        json.loads(line) for line in Path("run-7c9e.jsonl").read_text("utf-8").splitlines()
    ] == [one.to_dict() for one in EVENTS]
    assert isinstance(names["events"], pd.DataFrame)
    assert names["settled"]["data.status"].tolist() == ["error", "ok"]
    assert names["worker"]["type"].tolist() == [
        "worker.start", "worker.limited", "worker.retry", "worker.complete",
    ]  # fmt: skip
    assert names["errors"]["type"].tolist() == ["worker.retry", "worker.complete", "row.settled"]
