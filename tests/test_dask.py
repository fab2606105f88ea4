"""``ddf.llm.parallel_map`` on Dask's schedulers of one process, and what of it travels."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from failing import TASK, number_in, right, right_answer, said
from pydantic import BaseModel
from servers import GATE_LIMIT, RESET, Answer, Server, Status, serve

import revkit
import revkit.dask
from revkit.dask import links
from revkit.dask.links import link_here
from revkit.store.shared import MARK, SharedStore
from revkit.testing import FakeModel

ROWS = 24


@pytest.fixture(params=["synchronous", "threads"])
def scheduler(request: pytest.FixtureRequest) -> Iterator[str]:
    with dask.config.set(scheduler=request.param, num_workers=3):
        yield request.param


def reviews(rows: int = ROWS, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"review {row}" for row in range(rows)], **columns})


def many(rows: int = ROWS, npartitions: int = 4, **columns: Any) -> Any:
    return dd.from_pandas(reviews(rows, **columns), npartitions=npartitions)


def model(server: Server) -> revkit.Client:
    return revkit.Ollama("m", host=server.url)


# -- what is computed ------------------------------------------------------------------------------


def test_it_is_lazy_and_keeps_index_divisions_and_order(scheduler: str) -> None:
    df = reviews().set_index(pd.Index(sorted("abcdef" * 4), name="letter"))
    ddf = dd.from_pandas(df, npartitions=4)
    with serve(right_answer) as server:
        out = ddf.llm.parallel_map(TASK, model=model(server), store=False)
        assert server.requests == []
        assert out.divisions == ddf.divisions
        assert out.known_divisions
        frame = out.compute()
        assert len(server.chats) == ROWS
    assert frame.index.equals(df.index)
    assert frame["review"].tolist() == df["review"].tolist()
    assert all(right(frame.reset_index()))
    assert frame["error"].isna().all()


def test_meta_is_what_is_computed(scheduler: str) -> None:
    task = revkit.Signature(
        "Judge.",
        inputs="review",
        outputs={
            "mood": revkit.Field(["low", "high"], ordered=True),
            "stars": int,
            "share": float,
            "sure": bool,
            "words": list[str],
            "reason": str,
        },
    )
    said = '{"mood": "high", "stars": 3, "share": 0.5, "sure": true, "words": ["a"], "reason": "b"}'
    with serve(said) as server:
        out = many(6, 3).llm.parallel_map(task, model=model(server), store=False, prefix="llm_")
        frame = out.compute()
        alone = reviews(6).llm.parallel_map(task, model=model(server), store=False, prefix="llm_")
    made = alone.frame.columns[1:]
    assert list(out.columns) == list(frame.columns) == ["review", *made]
    assert out.dtypes.to_dict() == frame.dtypes.to_dict()
    assert {name: frame[name].dtype for name in made} == alone.frame[made].dtypes.to_dict()
    assert out._meta["llm_mood"].cat.categories.tolist() == ["low", "high"]
    assert out._meta["llm_mood"].cat.ordered


def test_what_dask_has_goes_on_from_it(scheduler: str, tmp_path: Path) -> None:
    with serve(right_answer) as server:
        out = many().llm.parallel_map(TASK, model=model(server), store=False)
        mean = out.groupby("label", observed=True)["number"].mean().compute()
        assert mean.sort_index().tolist() == [
            np.mean([n for n in range(ROWS) if n % 3 == place]) for place in range(3)
        ]
        doubled = out.map_partitions(lambda part: part.assign(twice=part["number"] * 2))
        assert doubled["twice"].compute().tolist() == [2 * row for row in range(ROWS)]
        out.to_parquet(tmp_path / "out", write_index=False)
        assert len(server.chats) == 3 * ROWS
        out.partitions[1].compute()
        assert len(server.chats) == 3 * ROWS + ROWS // 4
    back = pd.read_parquet(tmp_path / "out").sort_values("number", ignore_index=True)
    assert back["number"].tolist() == list(range(ROWS))


def test_empty_partitions_and_frames(scheduler: str) -> None:
    with serve(right_answer) as server:
        ddf = many()
        none = ddf[ddf["review"] == "there is none"]
        out = none.llm.parallel_map(TASK, model=model(server), store=False)
        frame = out.compute()
        assert len(frame) == 0
        assert frame.dtypes.to_dict() == out.dtypes.to_dict()
        some = ddf[ddf["review"] == "review 7"].llm.parallel_map(
            TASK, model=model(server), store=False
        )
        assert some.compute()["number"].tolist() == [7]
        run = revkit.collect(none.llm.parallel_map(TASK, model=model(server), store=False))
    assert run.metrics.total == 0
    assert len(server.chats) == 1


def test_functions(scheduler: str) -> None:
    ddf = many(n=range(ROWS))

    def square(row: Any) -> int:
        return int(row["n"] ** 2)

    async def name(row: Any) -> str:
        return f"row {row['n']}"

    def both(row: Any) -> dict[str, Any]:
        return {"half": row["n"] / 2} if row["n"] % 2 else {"half": 0, "odd": False}

    out = ddf.llm.parallel_map(square)
    assert (out.dtypes["response"], out.compute()["response"].tolist()) == (
        "Int64",
        [n**2 for n in range(ROWS)],
    )
    assert ddf.llm.parallel_map(name, output="name").compute()["name"].tolist()[3] == "row 3"
    out = ddf.llm.parallel_map(both, meta={"half": float, "odd": "boolean"}, prefix="x_")
    frame = out.compute()
    assert frame.dtypes.to_dict() == out.dtypes.to_dict()
    assert frame["x_half"].tolist() == [n / 2 if n % 2 else 0 for n in range(ROWS)]
    assert frame["x_odd"].isna().sum() == ROWS // 2
    out = ddf.llm.parallel_map(lambda row: [row["n"]], output="list")
    assert str(out.dtypes["list"]) == "object"
    assert out.compute()["list"].tolist() == [[n] for n in range(ROWS)]


def same(frame: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Text of the user's own has Dask's type for it; all else is the same."""
    assert frame.columns.tolist() == expected.columns.tolist()
    own, *made = expected.columns
    assert frame[own].tolist() == expected[own].tolist()
    pd.testing.assert_frame_equal(frame[made], expected[made])


def test_rows_are_repeated_as_on_one_machine(scheduler: str) -> None:
    lock, asked = threading.Lock(), 0

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        nonlocal asked
        row = number_in(messages)
        with lock:
            asked += 1
        return Status(400, {"error": "no"}) if row == 5 else said(row)

    options: dict[str, Any] = {"store": False, "repeat": 3, "max_workers": 2, "prefix": "llm_"}
    with serve(rule) as server:
        asks = revkit.Ollama("m", host=server.url, options={"temperature": 1})
        out = many().llm.parallel_map(TASK, model=asks, **options)
        frame = out.compute()
        assert asked == 3 * ROWS
        alone = reviews().llm.parallel_map(TASK, model=asks, **options)
        run = revkit.collect(out)
    assert out.dtypes.to_dict() == frame.dtypes.to_dict()
    same(frame, alone.frame)
    same(run.frame, alone.frame)
    assert frame["llm_label_agreement"].dropna().eq(1).all()
    assert run.metrics.total == 3 * ROWS
    assert run.metrics.failed == 3
    names = ["row", "sample", "status", "label"]
    pd.testing.assert_frame_equal(run.rows[names], alone.rows[names])


def test_a_series_goes_the_same_way(scheduler: str) -> None:
    index = pd.Index(range(10, 10 + ROWS), name="id")
    for name in ("review", None):
        series = pd.Series(reviews()["review"].to_numpy(), index=index, name=name)
        asked = dd.from_pandas(series, npartitions=4)
        with serve(right_answer) as server:
            out = asked.llm.parallel_map(TASK, model=model(server), store=False)
            alone = series.llm.parallel_map(TASK, model=model(server), store=False)
            same(out.compute(), alone.frame)
            same(revkit.collect(out).frame, alone.frame)
        assert out.divisions == asked.divisions
        lengths = asked.llm.parallel_map(len, meta=int).compute()
        assert lengths["response"].tolist() == [len(text) for text in series]


def test_an_output_that_was_not_announced_is_an_error() -> None:
    def more(row: Any) -> Any:
        return {"a": 1, "b": 2}

    out = many(4, 2).llm.parallel_map(more, meta={"a": int})
    with pytest.raises(revkit.UsageError, match=r'returned the output "b".*meta='):
        out.compute(scheduler="synchronous")
    out = many(4, 2).llm.parallel_map(lambda row: "text", meta=int)
    with pytest.raises(revkit.UsageError, match="is not Int64"):
        out.compute(scheduler="synchronous")


def test_rows_that_fail_have_their_error(scheduler: str) -> None:
    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        return Status(400, {"error": "no"}) if row % 5 == 0 else said(row)

    df = reviews()
    df.loc[3, "review"] = None
    ddf = dd.from_pandas(df, npartitions=4)
    with serve(rule) as server:
        frame = ddf.llm.parallel_map(TASK, model=model(server), store=False).compute()
    failed = frame["error"].notna()
    assert frame.index[failed].tolist() == [0, 3, 5, 10, 15, 20]
    assert frame["error"][3].startswith("MissingInput")
    assert frame["error"][5].startswith("ServerError")
    assert frame["number"].isna().tolist() == failed.tolist()


# -- limits are those of all partitions ----------------------------------------------------------


def test_max_workers_is_for_all_partitions_together() -> None:
    lock, running, most = threading.Lock(), 0, 0
    enough = threading.Barrier(3)

    def work(row: Any) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if row["n"] < 3:
            enough.wait(20)  # all three are used, whichever partitions have them
        with lock:
            running -= 1
        return 0

    ddf = many(n=[row % 6 for row in range(ROWS)])
    ddf.llm.parallel_map(work, max_workers=3).compute(scheduler="threads", num_workers=4)
    assert most == 3


def test_failures_are_counted_together(scheduler: str) -> None:
    def fail(row: Any) -> int:
        raise ZeroDivisionError

    out = many(n=range(ROWS)).llm.parallel_map(fail, max_failures=2, max_workers=1)
    with pytest.raises(revkit.RunFailed, match=r"more than max_failures allows \(2\)"):
        out.compute()
    run = failed(out)
    assert run.metrics.failed == 3
    assert run.stopped is not None
    assert run.metrics.not_started == ROWS - 3


def failed(out: Any) -> revkit.ParallelResult:
    with pytest.raises(revkit.RunFailed) as caught:
        revkit.collect(out)
    return caught.value.result


def test_a_fatal_failure_stops_all_partitions(scheduler: str) -> None:
    with serve(right_answer, models=["another"]) as server:
        out = many().llm.parallel_map(TASK, model=model(server), store=False, max_workers=1)
        run = failed(out)
        assert run.metrics.total == ROWS
        assert run.metrics.failed == 1
        assert len(server.chats) == 1
    assert run.frame["error"].str.startswith("NotStarted").sum() == ROWS - 1


def test_a_budget_is_kept_by_all_partitions(scheduler: str) -> None:
    budget = revkit.Budget(tokens=2_000)
    with serve(right_answer) as server:
        asked = revkit.Ollama("m", host=server.url, max_tokens=20)
        out = many(60, 6).llm.parallel_map(TASK, model=asked, store=False, budget=budget)
        with pytest.raises(revkit.BudgetReached, match="more than is left of Budget"):
            revkit.collect(out)
    run = revkit.last_result()
    assert run is not None
    assert 0 < run.usage.total_tokens == budget.spent_tokens <= 2_000
    assert len(server.chats) == run.metrics.succeeded < 60


def test_one_that_asks_for_a_pause_pauses_all() -> None:
    lock = threading.Lock()
    times: list[int] = []

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        with lock:
            times.append(row)
            first = len(times) == 1
        return Status(429, {"error": "busy"}, {"retry-after": "0.3"}) if first else said(row)

    with serve(rule) as server, dask.config.set(scheduler="threads", num_workers=2):
        out = many(8, 2).llm.parallel_map(TASK, model=model(server), store=False, max_workers=1)
        run = revkit.collect(out)
    assert run.metrics.succeeded == 8
    attempts = run.attempts
    assert attempts["outcome"].tolist().count("retried") == 1
    retried = attempts[attempts["outcome"] == "retried"]["end_s"].item()
    others = attempts[attempts["outcome"] == "ok"]["start_s"]
    assert (others >= retried + 0.25).all()


# -- what the user hears of it -------------------------------------------------------------------


class Hears:
    """An observer that keeps what it is told."""

    def __init__(self, heard: list[revkit.Event]):
        self.heard = heard

    def on_event(self, event: revkit.Event) -> None:
        self.heard.append(event)


def settled(heard: list[revkit.Event]) -> list[tuple[int, int]]:
    """Partition and row of each row that was settled."""
    return sorted(
        (event.data["partition"], event.data["item_index"])
        for event in heard
        if event.type == "row.settled"
    )


EVERY_ROW = [(partition, row) for partition in range(4) for row in range(ROWS // 4)]


def test_observers_hear_of_whatever_computes_it(scheduler: str, tmp_path: Path) -> None:
    given: list[revkit.Event] = []
    made: list[Hears] = []

    def make() -> Hears:
        made.append(Hears([]))
        return made[-1]

    revkit.register_observer("hears", make)
    out = many(n=range(ROWS)).llm.parallel_map(
        len, output="n2", meta=int, observer=[Hears(given), "hears"]
    )
    assert not given
    assert not made
    out.compute()
    assert settled(given) == EVERY_ROW
    assert len(made) == 4  # one for each partition's run, of which it hears all
    for one in made:
        assert [event.type for event in one.heard][:: len(one.heard) - 1] == [
            "parallel.start",
            "parallel.complete",
        ]
        assert len({event.run_id for event in one.heard}) == 1
    given.clear()
    out.to_parquet(tmp_path / "out", write_index=False)
    assert settled(given) == EVERY_ROW
    given.clear()
    run = revkit.collect(out)
    assert settled(given) == EVERY_ROW
    assert run.metrics.succeeded == ROWS
    assert len(made) == 12


def test_an_observer_that_raises_is_dropped_and_said(scheduler: str) -> None:
    class Raises:
        def on_event(self, event: revkit.Event) -> None:
            raise ZeroDivisionError

    def fails() -> Any:
        raise ZeroDivisionError

    revkit.register_observer("fails", fails)
    out = many().llm.parallel_map(len, observer=Raises())
    with pytest.warns(UserWarning, match="Raises raised ZeroDivisionError") as told:
        frame = out.compute()
    assert len(told) == 1
    assert frame["error"].isna().all()
    out = many().llm.parallel_map(len, observer="fails")
    with pytest.warns(UserWarning, match="factory .* raised ZeroDivisionError") as told:
        frame = out.compute()
    assert len(told) == 1
    assert frame["error"].isna().all()


def test_a_second_compute_says_that_it_pays_again(scheduler: str, tmp_path: Path) -> None:
    with serve(right_answer) as server:
        with pytest.warns(UserWarning, match=r"each compute\(\) asks the model"):
            out = many().llm.parallel_map(TASK, model=model(server))
        out.compute()  # which was said
        for compute in (out.compute, lambda: revkit.collect(out)):
            asked = len(server.chats)
            before: list[int] = []
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = lambda *told, seen=before: seen.append(len(server.chats))
                compute()
            assert before == [asked]  # nothing was sent before it was said
            assert len(server.chats) == asked + ROWS
        for options in ({"store": False}, {"store": tmp_path / "replies"}):
            again = many().llm.parallel_map(TASK, model=model(server), **options)
            again.compute()
            again.compute()


def test_a_run_of_which_no_row_is_ok_says_so(scheduler: str) -> None:
    with serve(lambda messages, body: Status(400, {"error": "no such thing"})) as server:
        out = many().llm.parallel_map(TASK, model=model(server), store=False)
        with pytest.warns(UserWarning, match=f"all {ROWS} rows of a run on Dask failed") as told:
            frame = out.compute()
        assert "ServerError" in str(told[0].message)
        assert frame["error"].str.startswith("ServerError").all()
        assert failed(out).metrics.failed == ROWS

    def but_one(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        return said(3) if number_in(messages) == 3 else Status(400, {"error": "no"})

    with serve(but_one) as server:
        out = many().llm.parallel_map(TASK, model=model(server), store=False)
        assert out.compute()["error"].isna().sum() == 1


# -- one result for all ---------------------------------------------------------------------------


def test_a_collected_result_keeps_its_places_in_a_file(scheduler: str, tmp_path: Path) -> None:
    run = revkit.collect(many().llm.parallel_map(len, meta=int, max_workers=2))
    (host,), (process,) = run.attempts["host"].unique(), run.attempts["process"].unique()
    assert (host, process) == (socket.gethostname(), f"pid {os.getpid()}")
    run.to_parquet(tmp_path / "run.parquet")
    again = revkit.ParallelResult.read_parquet(tmp_path / "run.parquet")
    pd.testing.assert_frame_equal(again.attempts, run.attempts)
    assert again.metrics == run.metrics
    trace = json.loads(run.to_trace(tmp_path / "run.json").read_text())
    assert trace == json.loads(again.to_trace(tmp_path / "again.json").read_text())
    events = trace["traceEvents"]
    names = {e["args"]["name"]: e["pid"] for e in events if e["name"] == "process_name"}
    dask_worker = f"{process} on {host}"
    assert list(names) == ["revkit", dask_worker]
    assert {e["pid"] for e in events if e["ph"] == "X"} == {names[dask_worker]}
    labels = [label.get_text() for label in run.plot_timeline().get_yticklabels()]
    used = run.attempts["worker"].nunique()
    assert labels[:used] == [f"{process}: {lane}" for lane in range(used)]


class Judged(BaseModel):
    mood: Literal["good", "bad"]


@pytest.mark.parametrize(
    ("task", "options", "column"),
    [
        ("Judge: {review}", {"output": "mood"}, "mood"),
        (Judged, {"instructions": "Judge.", "on": "review"}, "mood"),
        (Judged, {"instructions": "Judge.", "on": ["review", "shop"]}, "mood"),
        (len, {"output": "size", "meta": int}, "size"),
    ],
)
def test_every_kind_of_task_is_collected(
    scheduler: str, task: Any, options: dict[str, Any], column: str
) -> None:
    model = None if task is len else FakeModel(lambda text: '{"mood": "good"}')
    out = many(4, 2, shop="north").llm.parallel_map(
        task, model=model, store=False, max_workers=2, **options
    )
    run = revkit.collect(out)
    same(run.frame, out.compute())
    assert run.frame[column].notna().all()


def test_a_collected_result_retries_as_was_asked_for(tmp_path: Path) -> None:
    lock, running, most, broken = threading.Lock(), 0, 0, True

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        nonlocal running, most
        row = number_in(messages)
        with lock:
            running += 1
            most = max(most, running)
        failing = broken and row % 3 == 0
        with lock:
            running -= 1
        return Status(400, {"error": "no"}) if failing else said(row)

    store = tmp_path / "replies"
    with serve(rule) as server, dask.config.set(scheduler="synchronous"):
        out = many().llm.parallel_map(TASK, model=model(server), store=store, max_workers=1)
        run = revkit.collect(out)
        assert run.metrics.failed == ROWS // 3
        assert run.provenance["options"]["max_workers"] == 1
        broken = False
        again = run.retry_failed()
        assert again.metrics.succeeded == ROWS
        assert most == 1
        assert again.attempts["process"].isna().sum() == ROWS // 3
        asked = len(server.chats)
        assert out.compute()["error"].isna().all()
        assert len(server.chats) == asked  # those of the second run were kept as well
    again.to_parquet(tmp_path / "run.parquet")
    read = revkit.ParallelResult.read_parquet(tmp_path / "run.parquet")
    pd.testing.assert_frame_equal(read.attempts, again.attempts)


# -- an interrupt --------------------------------------------------------------------------------


def press_stop() -> None:
    """To this thread, so that it wakes: one that waits in another may be given the signal."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def press_stop_until(happened: threading.Event) -> None:
    """A signal that comes just when that thread begins to wait is seen with the next one only."""
    press_stop()
    while not happened.wait(0.5):
        press_stop()


class Holds:
    """A rule that holds two rows of the second partition back, and then presses stop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = 0
        self.release = threading.Event()

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        if row in (10, 11) and not self.release.is_set():
            with self._lock:
                self._held += 1
                both = self._held == 2
            if both:
                press_stop()
            self.release.wait(GATE_LIMIT)
        return said(row)


def test_an_interrupt_of_collect_gives_what_is_done(scheduler: str) -> None:
    rule = Holds()
    with serve(rule) as server:
        out = many().llm.parallel_map(TASK, model=model(server), store=False, max_workers=3)
        with pytest.raises(revkit.Interrupted, match=f"interrupted: .* of {ROWS} rows") as caught:
            revkit.collect(out)
        assert server.await_hang_ups()  # before it is released
        asked = len(server.chats)
        rule.release.set()
        assert out.compute()["error"].isna().all()
    run = caught.value.result
    metrics = run.metrics
    assert len(run.frame) == metrics.total == ROWS
    assert metrics.succeeded + metrics.cancelled == asked
    assert metrics.succeeded >= (ROWS // 4 if scheduler == "synchronous" else 1)
    assert 2 <= metrics.cancelled <= 3
    assert metrics.not_started == ROWS - asked
    done = run.frame[run.frame["error"].isna()]
    assert done["review"].tolist() == [f"review {number}" for number in done["number"]]
    assert run.stopped == "it was interrupted"


def test_an_interrupt_of_a_plain_compute_stops_its_calls(scheduler: str) -> None:
    rule = Holds()
    with serve(rule) as server:
        out = many().llm.parallel_map(TASK, model=model(server), store=False, max_workers=3)
        with pytest.raises(KeyboardInterrupt):
            out.compute()
        assert server.await_hang_ups()  # before it is released
        rule.release.set()
        asked = len(server.chats)
        assert out.compute()["error"].isna().all()
        assert len(server.chats) == asked + ROWS


def test_a_second_interrupt_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Dask is at, and no run of revkit's, cannot be stopped."""
    through, release = threading.Event(), threading.Event()

    def read(part: int) -> pd.DataFrame:
        if part:
            through.wait(GATE_LIMIT)
            press_stop_until(signalled)
            press_stop_until(left)
            release.wait(GATE_LIMIT)
        return pd.DataFrame({"n": [2 * part, 2 * part + 1]})

    signalled, left = threading.Event(), threading.Event()

    class Last:
        def on_event(self, event: revkit.Event) -> None:
            if event.type == "parallel.complete":
                through.set()

    parts = [dask.delayed(read, pure=False)(part) for part in range(2)]
    ddf = dd.from_delayed(parts, meta={"n": "int64"}, verify_meta=False)
    out = ddf.llm.parallel_map(lambda row: row["n"], output="n2", observer=Last())
    coordinator = links._process_link()._coordinator
    stop = coordinator.stop

    def stops(*args: Any, **named: Any) -> None:
        stop(*args, **named)
        (left if threading.current_thread() is threading.main_thread() else signalled).set()

    monkeypatch.setattr(coordinator, "stop", stops)
    with (
        dask.config.set(scheduler="threads", num_workers=2),
        pytest.warns(UserWarning, match="1 of 2 partitions had not arrived"),
        pytest.raises(revkit.Interrupted) as caught,
    ):
        revkit.collect(out)
    release.set()
    assert caught.value.result.frame["n2"].tolist() == [0, 1]


# -- what is refused -----------------------------------------------------------------------------


def test_what_cannot_be_carried_out_is_refused_at_the_call(tmp_path: Path) -> None:
    ddf, fake = many(), FakeModel(lambda text: "positive")
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"on": "reviw"}, revkit.MissingColumn, 'did you mean "review"'),
        ({"loop": "notebook"}, TypeError, "no argument loop="),
        ({"progress": True}, TypeError, r"no argument progress=; use Dask's own: .*ProgressBar"),
        ({"cancel": revkit.CancelToken()}, TypeError, "no argument cancel=; cancel the future"),
        ({"instances": [1]}, TypeError, "no argument instances=; .* factory="),
        ({"max_worker": 1}, TypeError, 'did you mean "max_workers"'),
        ({"max_failures": 0.5}, revkit.UsageError, "give a number of rows"),
        ({"meta": {"a": int}}, revkit.UsageError, "meta= is for functions"),
        ({"store": "s3://bucket/replies"}, revkit.UsageError, "is a URL"),
        ({"store": True}, revkit.UsageError, "name a directory"),
        ({"store": tmp_path / "x.sqlite"}, revkit.UsageError, "name a directory"),
        ({"model": FakeModel(lambda text: "x", clock="virtual")}, revkit.UsageError, "clock"),
    ]
    for options, kind, words in refused:
        with pytest.raises(kind, match=words):
            ddf.llm.parallel_map(**{"model": fake, **options})

    def several(row: Any) -> dict[str, int]:
        return {}

    with pytest.raises(revkit.UsageError, match=r"meta=\{"):
        ddf.llm.parallel_map(several)
    with pytest.raises(revkit.UsageError, match="repeat=3 on Dask is for tasks that ask a model"):
        ddf.llm.parallel_map(len, repeat=3)
    with pytest.raises(TypeError, match="no argument on="):
        ddf["review"].llm.parallel_map(model=fake, on="review")
    with pytest.raises(revkit.ColumnExists):
        ddf.assign(sentiment="x").llm.parallel_map(model=fake)
    with pytest.raises(revkit.UsageError, match="as it is"):
        revkit.collect(ddf)
    again = ddf.llm.parallel_map(model=fake)
    with pytest.raises(revkit.UsageError, match="as it is"):
        revkit.collect(again[["sentiment"]])


def test_processes_without_a_scheduler_are_refused() -> None:
    with pytest.raises(revkit.UsageError, match="LocalCluster"):
        link_here(("this host", 1))


def test_without_a_shared_store_it_says_that_each_compute_pays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ollama = revkit.Ollama("m", host="127.0.0.1:9")
    with pytest.warns(UserWarning, match=r"each compute\(\) asks the model for every row") as told:
        many().llm.parallel_map(TASK, model=ollama)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many().llm.parallel_map(TASK, model=ollama, store=False)
        many().llm.parallel_map(TASK, model=ollama, store=tmp_path / "replies")
        many().llm.parallel_map(len)


# -- how it comes about --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imports", "loads"),
    [
        ("import dask.dataframe, revkit", True),
        ("import revkit.dask", True),
        ("import revkit", False),
    ],
)
def test_dask_is_imported_only_by_who_uses_it(imports: str, loads: bool) -> None:
    script = f"{imports}\nimport sys\nassert ('dask' in sys.modules) == {loads}"
    if loads:
        script += "\nimport dask.dataframe as dd\nassert dd.DataFrame.llm"
        script += "\nassert 'distributed' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_collect_is_found_at_the_top() -> None:
    import revkit.dask

    assert revkit.collect is revkit.dask.collect


def test_clients_tasks_and_policies_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-very-secret-key")
    things = [
        revkit.Ollama("m", host="box", options={"num_ctx": 10}, seed=3, keep_alive="1m"),
        revkit.OpenAICompatible("m", base_url="http://box/v1", max_tokens=5),
        revkit.OpenAICompatible("m", api_key="sk-a-very-secret-key"),
        revkit.Local(n_ctx=512),
        revkit.load_agent(revkit.data_file("config.llama.json")),
        revkit.SENTIMENT_WITH_REASON,
        TASK,
        revkit.Retry(attempts=2),
        revkit.RateLimit(requests_per_minute=3),
        revkit.Budget(tokens=10),
        FakeModel(["positive"]),
    ]
    assert TASK.outputs.model is not None  # which was made of its outputs, and is no one's to find
    for thing in things:
        data = pickle.dumps(thing)
        assert b"very-secret" not in data
        again = pickle.loads(data)
        assert repr(again) == repr(thing)
        if isinstance(thing, revkit.Client):
            assert again.settings() == thing.settings()
    assert pickle.loads(pickle.dumps(TASK)) == TASK
    client = pickle.loads(pickle.dumps(things[2]))
    assert client._headers["authorization"] == "Bearer sk-a-very-secret-key"
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(revkit.UsageError, match=r"OPENAI_API_KEY.*not set here"):
        pickle.loads(pickle.dumps(things[2]))


def test_a_key_in_the_clear_does_not_travel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import httpx

    secret = "sk-a-very-secret-key"
    clear = [
        revkit.OpenAICompatible("m", api_key=secret),
        revkit.OpenAICompatible("m", base_url=f"http://me:{secret}@box/v1"),
        revkit.OpenAICompatible("m", headers={"X-Api-Key": secret}),
        revkit.OpenAICompatible("m", extra_body={"token": secret}),
        revkit.Ollama("m", host="box", headers={"Authorization": secret}),
    ]
    for client in clear:
        with pytest.raises(revkit.UsageError, match=r"revkit\.Secret") as caught:
            pickle.dumps(client)
        assert secret not in str(caught.value)
    with httpx.Client() as http, pytest.raises(revkit.UsageError, match="leave http= out"):
        pickle.dumps(revkit.Ollama("m", host="box", http=http))
    (tmp_path / "key").write_text(f"{secret}\n")
    monkeypatch.setenv("GATEWAY", secret)
    for place in (revkit.Secret(env="GATEWAY"), revkit.Secret(file=str(tmp_path / "key"))):
        for client in (
            revkit.OpenAICompatible("m", api_key=place),
            revkit.Ollama("m", host="box", headers={"X-Api-Key": place}),
        ):
            data = pickle.dumps(client)
            assert secret.encode() not in data
            assert secret in pickle.loads(data)._headers.values() or (
                pickle.loads(data)._headers["authorization"] == f"Bearer {secret}"
            )
    with pytest.raises(revkit.UsageError, match="give env="):
        revkit.Secret()
    with pytest.raises(revkit.UsageError, match="is not set here"):
        revkit.Secret(env="NOT_THERE").read()


def test_errors_of_runs_pickle() -> None:
    for kind in (revkit.RunFailed, revkit.BudgetReached, revkit.Interrupted):
        assert str(pickle.loads(pickle.dumps(kind("why")))) == "why"


def test_two_processes_may_begin_a_shared_store_at_once(tmp_path: Path) -> None:
    (tmp_path / f"{MARK}.of-another-process").write_text("")
    SharedStore(tmp_path).close()
    SharedStore(tmp_path).close()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "letter.txt").write_text("mine")
    with pytest.raises(revkit.UsageError, match="is no store, and is not empty"):
        SharedStore(tmp_path / "strange")


def test_a_partition_that_begins_while_the_server_is_away_waits() -> None:
    asked = 0

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        nonlocal asked
        asked += 1
        return RESET if 50 < asked <= 70 else messages[-1]["content"] + "!"

    retry = revkit.Retry(attempts=9, initial=0.02, maximum=0.05)
    with serve(rule) as server, dask.config.set(scheduler="synchronous"):
        done = (
            many(100, npartitions=2)
            .llm.parallel_map(
                "{review}", model=model(server), max_workers=4, retry=retry, store=False
            )
            .compute()
        )
    assert done["response"].tolist() == [f"review {row}!" for row in range(100)]
    assert asked == 120
