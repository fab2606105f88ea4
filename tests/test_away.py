"""A server that is away in the middle of a run: what becomes of the rows, and what a user sees.

The servers are real ones on loopback, and come back once they, or an observer, have seen enough:
nothing here depends on how long anything takes. Where time is looked at, it is virtual. The rule by
itself is in ``test_outage.py``.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from servers import CLOSE, RESET, Status, serve
from threads import join_workers

import revkit
from revkit import (
    Adaptive,
    Budget,
    CancelToken,
    Event,
    ParallelResult,
    RateLimit,
    Retry,
    RunCancelled,
    RunFailed,
    RunTimeout,
    ServerError,
)
from revkit.display import html, text
from revkit.errors import AccessDenied, AttemptTimeout, ConnectionFailed
from revkit.plot import timeline_of
from revkit.testing import FakeModel

ENGINES = ["thread", "async"]
#: Probes follow soon, so that the tests do not wait.
SOON = Retry(initial=0.02, maximum=0.05)
#: After such short waits a row could use up three attempts before enough others have failed.
PATIENT = Retry(attempts=9, initial=0.02, maximum=0.05)


def reviews(n: int) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"r{i}" for i in range(n)]})


def ollama(url: str) -> Any:
    return revkit.Ollama("m", host=url)


#: What a server says that restarts, or that is full: on a busy machine it may look like the latter.
FULL = Status(503, {"error": "restarting"})


class Down:
    """A rule that goes away after so many good answers, and comes back after so many bad ones."""

    def __init__(self, fault: Any, *, after: int, until: float):
        self.fault, self.after, self.until = fault, after, until
        self.good = self.bad = 0
        self.lock = threading.Lock()

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        with self.lock:
            if self.good >= self.after and self.bad < self.until:
                self.bad += 1
                return self.fault
            self.good += 1
        return messages[-1]["content"] + "!"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "fault",
    [RESET, CLOSE, FULL, Status(502, b"<html>bad gateway</html>")],
    ids=["reset", "closed", "503", "502"],
)
def test_all_rows_are_right_after_it_was_away_in_the_middle(fault: Any, engine: str) -> None:
    rule, df = Down(fault, after=700, until=45), reviews(3000)
    with serve(rule) as server:
        run = df.llm.parallel_map(
            "{review}", model=ollama(server.url), engine=engine, max_workers=16, retry=PATIENT
        )
    assert df["response"].tolist() == [f"r{i}!" for i in range(3000)]
    assert df["error"].isna().all()
    assert len(server.chats) == 3000 + 45
    assert run.metrics.retries == run.metrics.attempts - 3000 == 45
    if fault != FULL:
        assert run.metrics.outages == 1
        assert run.metrics.away_s > 0
    assert set(run.attempts["outcome"]) == {"ok", "retried"}


def echo(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
    return messages[-1]["content"] + "!"


@pytest.mark.parametrize("engine", ENGINES)
def test_all_rows_are_right_after_it_refused_connections(engine: str) -> None:
    df, first, second = reviews(3000), contextlib.ExitStack(), contextlib.ExitStack()
    server = first.enter_context(serve(echo))
    servers = [server]

    class Doorkeeper:
        """Starts the server again when the run has waited for it four times."""

        waits = 0

        def on_event(self, event: Event) -> None:
            if event.type == "worker.limited":
                assert event.data["reason"] == "outage"
                self.waits += 1
                if self.waits == 4:
                    servers.append(second.enter_context(serve(echo, port=server.port)))

    def progress(completed: int, total: int, row: Any) -> None:
        if completed == 700:
            first.close()

    with first, second:
        run = df.llm.parallel_map(
            "{review}",
            model=ollama(server.url),
            engine=engine,
            max_workers=16,
            retry=PATIENT,
            observer=Doorkeeper(),
            progress=progress,
        )
    assert df["response"].tolist() == [f"r{i}!" for i in range(3000)]
    assert df["error"].isna().all()
    assert run.metrics.outages == 1
    failed = run.attempts[run.attempts["outcome"] == "retried"]
    assert set(failed["error_type"]) == {"ConnectionFailed"}
    assert len(failed) < 100
    assert len(servers[1].chats) < 2320  # none is asked for a row that is done


@pytest.mark.parametrize(
    "fault", [RESET, Status(503, {"error": "restarting"})], ids=["reset", "503"]
)
def test_a_chunk_that_begins_while_it_is_away_waits(fault: Any) -> None:
    rule, df = Down(fault, after=100, until=45), reviews(200)
    with serve(rule) as server:
        results = list(
            revkit.map_chunks(
                df, "{review}", chunk_rows=100, model=ollama(server.url), retry=PATIENT, store=False
            )
        )
    whole = pd.concat([result.frame for result in results])
    assert whole["response"].tolist() == [f"r{i}!" for i in range(200)]
    assert [result.metrics.outages for result in results] == [0, 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_that_wait_for_others_get_them_from_the_store(engine: str, tmp_path: Path) -> None:
    """Two rows fail for good: only other rows can show whether the server is away."""

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        said = messages[-1]["content"]
        return RESET if said in ("r5", "r6") else said + "!"

    df = reviews(300)
    with serve(rule) as server:
        run = df.llm.parallel_map(
            "{review}",
            model=ollama(server.url),
            engine=engine,
            max_workers=1,
            retry=SOON,
            store=tmp_path / "replies.sqlite",
            timeout=60,
        )
    assert run.errors["row"].tolist() == [5, 6]
    assert run.metrics.succeeded == 298


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_was_never_started_fails_as_ever(engine: str) -> None:
    with serve(echo) as server:
        url = server.url
    with pytest.raises(RunFailed) as caught:
        reviews(40).llm.parallel_map(
            "{review}", model=ollama(url), engine=engine, max_workers=16, retry=SOON
        )
    run = caught.value.result
    assert set(run.rows["attempts"]) == {3}
    assert run.metrics.failed == 40
    assert run.metrics.outages == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_stays_away_stops_the_run_and_a_rerun_goes_on(
    engine: str, tmp_path: Path
) -> None:
    rule, df = Down(Status(503, {"error": "gone"}), after=30, until=float("inf")), reviews(100)
    retry = Retry(initial=0.02, maximum=0.05, max_outage=0.3)
    options: Any = {"engine": engine, "max_workers": 4, "store": tmp_path / "replies.sqlite"}
    with serve(rule) as server:
        model = ollama(server.url)
        with pytest.raises(RunFailed) as caught:
            df.llm.parallel_map("{review}", model=model, retry=retry, **options)
        assert type(caught.value) is RunFailed
        said, run = str(caught.value), caught.value.result
        assert "was away for longer than Retry(max_outage=0.3) seconds" in said
        assert "gone" in said
        assert Counter(run.rows["status"]) == {"ok": 30, "not_started": 70}
        assert run.errors.empty
        assert df["error"].notna().sum() == 70
        sent = run.rows.loc[(run.rows["attempts"] > 0) & (run.rows["status"] != "ok"), "error"]
        assert 0 < len(sent) < 70
        assert sent.str.contains("NotStarted: an attempt failed .*gone.* stopped before the").all()
        assert run.metrics.outages == 1
        rule.until = 0  # it is back
        run = df.llm.parallel_map("{review}", model=model, retry=retry, **options)
    assert run.metrics.from_store == 30
    assert df["response"].tolist() == [f"r{i}" + "!" for i in range(100)]


def test_retry_failed_runs_what_an_outage_has_left() -> None:
    down = [False]

    def answer(prompt: str) -> Any:
        if down[0] or prompt == "r20":
            down[0] = True
            return ConnectionFailed("refused")
        return "fine"

    fake = FakeModel(answer, latency=0.5, clock="virtual")
    with pytest.raises(RunFailed) as caught:
        reviews(60).llm.parallel_map("{review}", model=fake, max_workers=4)
    run = caught.value.result
    assert run.metrics.not_started == 60 - run.metrics.succeeded
    assert run.metrics.away_s == pytest.approx(600, abs=5)
    down[0] = False
    fake._answers = lambda prompt: "fine"
    again = run.retry_failed()
    assert again.metrics.succeeded == 60


# -- stops while it is away ----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["cancel", "interrupt"])
def test_a_stop_is_as_prompt_as_ever(engine: str, how: str) -> None:
    token = CancelToken()

    class Watcher:
        def on_event(self, event: Event) -> None:
            if event.type == "worker.limited":
                if how == "cancel":
                    token.cancel("enough")
                else:
                    signal.raise_signal(signal.SIGINT)

    # The next probe would come in five minutes.
    retry = Retry(initial=300.0, maximum=300.0)
    rule, df = Down(RESET, after=30, until=float("inf")), reviews(100)
    kind: Any = RunCancelled if how == "cancel" else revkit.Interrupted
    with serve(rule) as server, pytest.raises(kind) as caught:
        df.llm.parallel_map(
            "{review}",
            model=ollama(server.url),
            engine=engine,
            max_workers=4,
            retry=retry,
            cancel=token,
            observer=Watcher(),
        )
    join_workers()
    counts = Counter(caught.value.result.rows["status"])
    assert counts["ok"] == 30
    assert counts["error"] == 0
    assert counts["cancelled"] <= 3  # they were running when the stop came


def test_timeout_runs_on_while_it_is_away() -> None:
    fake = FakeModel(outage(), latency=0.5, clock="virtual")
    with pytest.raises(RunTimeout) as caught:
        reviews(60).llm.parallel_map("{review}", model=fake, max_workers=4, timeout=100)
    run = caught.value.result
    assert run.metrics.wall_s == 100
    assert run.metrics.failed == 0
    assert run.metrics.not_started + run.metrics.succeeded + run.metrics.cancelled == 60


def outage(after: int = 20, until: float = float("inf"), fault: Any = None) -> Any:
    """A rule: it is away after so many requests, until that many have failed."""
    seen = [0, 0]

    def answer(prompt: str) -> Any:
        seen[0] += 1
        if seen[0] > after and seen[1] < until:
            seen[1] += 1
            return ConnectionFailed("refused") if fault is None else fault
        return "fine"

    return answer


@pytest.mark.parametrize(
    "options",
    [
        {"max_workers": 1},
        {"max_workers": 2},
        {"fail_fast": True},
        {"max_failures": 0},
        {"max_workers": "adaptive"},
        {"max_workers": Adaptive(minimum=8, maximum=64)},
        {"rate_limit": RateLimit(requests_per_minute=600)},
        {"budget": Budget(tokens=100_000)},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:repeat=2 asks fake")  # the samples may well be equal
def test_no_option_loses_a_row(options: dict[str, Any]) -> None:
    fake = FakeModel(outage(until=12), latency=0.5, clock="virtual")
    fake.max_tokens = 5
    df = reviews(200)
    run = df.llm.parallel_map("{review}", model=fake, **{"max_workers": 4, **options})
    assert run.metrics.succeeded == run.metrics.total
    assert run.metrics.outages >= 1
    assert fake.most_in_flight <= 64
    if "budget" in options:
        assert "reserved" not in repr(options["budget"])


def test_rows_that_follow_a_row_that_waits_share_its_outcome(tmp_path: Path) -> None:
    rule = Down(RESET, after=8, until=20)
    df = pd.DataFrame({"review": [f"r{i // 2}" for i in range(120)]})
    with serve(rule) as server:
        run = df.llm.parallel_map(
            "{review}",
            model=revkit.Ollama("m", host=server.url, temperature=0),
            max_workers=4,
            retry=PATIENT,
            store=tmp_path / "replies.sqlite",
        )
    assert df["response"].tolist() == [f"r{i // 2}!" for i in range(120)]
    assert run.metrics.duplicates == 60


def test_timeouts_are_trouble_and_use_up_attempts() -> None:
    fault = AttemptTimeout("too late")
    fake = FakeModel(outage(until=10, fault=fault), latency=0.5, clock="virtual")
    run = reviews(100).llm.parallel_map("{review}", model=fake, max_workers=4)
    assert run.metrics.succeeded == 100
    assert run.metrics.outages == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_that_fail_by_themselves_end_as_ever(engine: str) -> None:
    """Also where they are the last ones: others went well since they failed for the first time."""

    def answer(prompt: str) -> Any:
        return ServerError("boom", status=500) if int(prompt[1:]) % 5 == 1 else "fine"

    df = reviews(23)
    run = df.llm.parallel_map(
        "{review}", model=FakeModel(answer), engine=engine, max_workers=4, retry=SOON
    )
    assert run.metrics.failed == 5
    assert run.metrics.outages == 0
    assert set(run.errors["attempts"]) == {3}


@pytest.mark.parametrize(
    ("fault", "outages"),
    [
        (ConnectionFailed("it broke"), 0),
        (ServerError("boom", status=500), 0),
        (AttemptTimeout("late"), 0),
        (ServerError("restarting", status=503), 1),
    ],
    ids=lambda value: str(value),
)
def test_last_rows_that_fail_wait_only_for_what_is_the_servers_fault(
    fault: Exception, outages: int
) -> None:
    """Five rows, of which the last three fail until their fifth attempts."""
    asked: Counter[str] = Counter()

    def answer(prompt: str) -> Any:
        asked[prompt] += 1
        return fault if prompt in ("r2", "r3", "r4") and asked[prompt] < 4 else "fine"

    fake = FakeModel(answer, latency=0.5, clock="virtual")
    run = reviews(5).llm.parallel_map("{review}", model=fake, max_workers=2)
    assert run.metrics.outages == outages
    assert run.metrics.failed == (0 if outages else 3)
    assert run.metrics.wall_s < 60


@pytest.mark.parametrize("engine", ENGINES)
def test_one_last_row_that_always_fails_ends_the_run(engine: str) -> None:
    fake = FakeModel(lambda prompt: ConnectionFailed("no") if prompt == "r29" else "fine")
    run = reviews(30).llm.parallel_map(
        "{review}", model=fake, engine=engine, max_workers=16, retry=SOON
    )
    assert run.errors["row"].tolist() == [29]
    assert run.attempts[run.attempts["row"] == 29]["outcome"].tolist() == ["retried"] * 2 + [
        "failed"
    ]
    assert run.metrics.outages == 0


# -- what a user sees ----------------------------------------------------------------------------


@pytest.fixture
def seen() -> tuple[ParallelResult, list[Event]]:
    """A run on a virtual clock whose server was away for 15 s."""
    events: list[Event] = []
    fake = FakeModel(outage(after=40, until=12), latency=0.5, clock="virtual")

    class Observer:
        def on_event(self, event: Event) -> None:
            events.append(event)

    run = reviews(100).llm.parallel_map(
        "{review}", model=fake, max_workers=4, observer=Observer(), retry=Retry(attempts=1)
    )
    return run, events


def test_figures_and_texts_say_how_long_it_was_away(
    seen: tuple[ParallelResult, list[Event]],
) -> None:
    run, _ = seen
    metrics = run.metrics
    assert metrics.outages == 1
    assert metrics.pauses == metrics.paused_s == metrics.limited_s == 0
    assert metrics.away_s == 95.5
    assert "server away, 1 min 36 s" in text(run)
    assert "server away, 1 min 36 s" in html(run)
    assert run.waiting.loc["limit", "max"] == pytest.approx(metrics.away_s * 1e3, rel=0.1)
    assert metrics.succeeded == 100
    assert set(run.attempts["outcome"]) == {"ok", "retried"}


def test_events_tell_each_wait_and_what_became_of_each_attempt(
    seen: tuple[ParallelResult, list[Event]],
) -> None:
    run, events = seen
    limited = [event.data for event in events if event.type == "worker.limited"]
    assert {data["reason"] for data in limited} == {"outage"}
    assert [round(data["delay_ms"] / 1e3, 1) for data in limited][:4] == [0.5, 1.0, 2.0, 4.0]
    ended = Counter(event.data["outcome"] for event in events if event.type == "worker.complete")
    retried = [event for event in events if event.type == "worker.retry"]
    assert ended["ok"] == 100
    assert ended["retried"] + ended["parked"] == len(retried) == run.metrics.retries
    assert ended["parked"] > 0
    settled = Counter(e.data["item_index"] for e in events if e.type == "row.settled")
    assert settled == dict.fromkeys(range(100), 1)


def test_a_parked_row_that_fails_after_all_is_told_once() -> None:
    events: list[Event] = []

    class Observer:
        def on_event(self, event: Event) -> None:
            events.append(event)

    told: list[int] = []
    fake = FakeModel(
        lambda prompt: ConnectionFailed("no") if prompt == "r9" else "fine",
        latency=0.5,
        clock="virtual",
    )
    run = reviews(30).llm.parallel_map(
        "{review}",
        model=fake,
        max_workers=4,
        retry=Retry(attempts=1),
        observer=Observer(),
        progress=lambda completed, total, row: told.append(row.row),
    )
    assert sorted(told) == list(range(30))
    mine = [event for event in events if event.data.get("item_index") == 9]
    kinds = ["worker.start", "worker.complete", "row.settled"]
    assert [event.type for event in mine] == kinds
    assert mine[1].data["outcome"] == "parked"
    assert mine[2].data["status"] == "error"
    assert run.attempts[run.attempts["row"] == 9]["outcome"].tolist() == ["failed"]


def test_the_timeline_has_a_band_and_the_trace_a_span(
    seen: tuple[ParallelResult, list[Event]], tmp_path: Path
) -> None:
    run, _ = seen
    ((kind, start, end),) = timeline_of(run._record, run.frame.index)["holds"]
    assert kind == "outage"
    assert end - start == pytest.approx(run.metrics.away_s)
    legends = [axes.get_legend() for axes in run.plot_timeline().figure.axes]
    labels = [one.get_text() for legend in legends if legend for one in legend.get_texts()]
    assert any(label.startswith("server away") for label in labels)
    trace = json.loads(run.to_trace(tmp_path / "run.json").read_text())
    spans = [e for e in trace["traceEvents"] if e.get("cat") == "hold"]
    assert [(e["name"], e["ph"]) for e in spans] == [("outage", "b"), ("outage", "e")]


def test_a_saved_result_is_read_back(
    seen: tuple[ParallelResult, list[Event]], tmp_path: Path
) -> None:
    run, _ = seen
    run.to_parquet(tmp_path / "run.parquet")
    again = ParallelResult.read_parquet(tmp_path / "run.parquet")
    assert again.metrics.outages == 1
    assert again.metrics.away_s == pytest.approx(run.metrics.away_s)
    pd.testing.assert_frame_equal(again.attempts, run.attempts)


# -- 403 -----------------------------------------------------------------------------------------

DENIED = Status(403, b"<html>Request blocked</html>")


class Firewall:
    """Denies some rows."""

    def __init__(self, *denied: str):
        self.denied = set(denied)

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        said = messages[-1]["content"]
        return DENIED if said in self.denied else said + "!"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_403_after_good_rows_is_that_rows_error(engine: str) -> None:
    with serve(Firewall("r1", "r4", "r7")) as server:
        run = reviews(10).llm.parallel_map(
            "{review}", model=ollama(server.url), engine=engine, max_workers=1
        )
    assert run.metrics.succeeded == 7
    assert run.errors["row"].tolist() == [1, 4, 7]
    assert set(run.errors["error_type"]) == {"AccessDenied"}
    assert set(run.errors["status"]) == {403}
    assert set(run.errors["attempts"]) == {1}
    assert (
        run.errors["message"].str.endswith("other rows were answered, so see this row's text").all()
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_403_before_any_good_reply_ends_the_run(engine: str) -> None:
    with serve(Firewall(*(f"r{i}" for i in range(10)))) as server, pytest.raises(RunFailed) as it:
        reviews(10).llm.parallel_map(
            "{review}", model=ollama(server.url), engine=engine, max_workers=1
        )
    assert Counter(it.value.result.rows["status"]) == {"error": 1, "not_started": 9}
    assert len(server.chats) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_three_403_one_after_the_other_end_the_run(engine: str) -> None:
    with (
        serve(Firewall(*(f"r{i}" for i in range(4, 99)))) as server,
        pytest.raises(RunFailed) as it,
    ):
        reviews(20).llm.parallel_map(
            "{review}", model=ollama(server.url), engine=engine, max_workers=1
        )
    rows = it.value.result.rows
    assert rows["status"].tolist() == ["ok"] * 4 + ["error"] * 3 + ["not_started"] * 13
    assert "3 rows were denied access, and no other got a reply" in str(it.value)


def test_as_many_403_as_workers_are_no_end() -> None:
    fake = FakeModel(
        lambda prompt: AccessDenied("no", status=403) if 8 <= int(prompt[1:]) < 13 else "fine",
        latency=1.0,
        clock="virtual",
    )
    run = reviews(40).llm.parallel_map("{review}", model=fake, max_workers=6)
    assert run.metrics.failed == 5


@pytest.mark.parametrize("engine", ENGINES)
def test_kept_replies_are_good_ones(engine: str, tmp_path: Path) -> None:
    firewall = Firewall("r1", "r4")
    options: Any = {"engine": engine, "max_workers": 1, "store": tmp_path / "replies.sqlite"}
    df = reviews(6)
    with serve(firewall) as server:
        model = ollama(server.url)
        first = df.llm.parallel_map("{review}", model=model, **options)
        again = df.llm.parallel_map("{review}", model=model, **options)
    assert first.metrics.failed == again.metrics.failed == 2
    assert again.metrics.from_store == 4


@pytest.mark.parametrize("engine", ENGINES)
def test_good_rows_of_the_first_run_count_for_retry_failed(engine: str) -> None:
    with serve(Firewall("r1", "r4")) as server:
        run = reviews(6).llm.parallel_map(
            "{review}", model=ollama(server.url), engine=engine, max_workers=1
        )
        again = run.retry_failed()
    assert again.metrics.failed == 2
    assert again.metrics.succeeded == 4


@pytest.mark.parametrize("engine", ENGINES)
def test_a_401_ends_the_run_at_once(engine: str) -> None:
    fake = FakeModel(
        lambda prompt: AccessDenied("bad key", status=401) if prompt == "r5" else "fine"
    )
    with pytest.raises(RunFailed) as caught:
        reviews(20).llm.parallel_map("{review}", model=fake, engine=engine, max_workers=1)
    assert caught.value.result.metrics.failed == 1
