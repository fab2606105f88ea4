"""The live display: what it says, how often, that it stays one output, and harms no run."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import Page
from records import empty_record

import revkit
import revkit.plot
import revkit.testing
from revkit.display.live import INTERVAL_S, SHARE, Live, Pace, live
from revkit.display.progress import Bar
from revkit.errors import ConnectionFailed, ModelError
from revkit.record.record import DECISIONS, Record
from revkit.scheduling.events import (
    Attempt,
    Attempted,
    Away,
    Decision,
    Failure,
    Hold,
    HoldKind,
    Success,
)
from revkit.testing import FakeModel

PNG = b"\x89PNG of a timeline"
HOSTILE = '<script>alert("1")</script> \x1b[31mred {braces} %s \u202eturned\nnew line'


class Cell:
    """Stands for a notebook's cell: takes what ``IPython.display.display`` would be given."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, str]] = []  #: as they stand now
        self.states: list[dict[str, str]] = []  #: all that stood there, one after another
        self.fails: Callable[[], bool] = lambda: False

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id is True
        place = len(self.outputs)
        self.outputs.append({})

        def update(data: dict[str, str], *, raw: bool) -> None:
            assert raw
            self._take(place, data)

        self._take(place, data)
        return SimpleNamespace(update=update)

    def _take(self, place: int, data: dict[str, str]) -> None:
        if self.fails():
            raise RuntimeError("no cell")
        assert set(data) == {"text/plain", "text/html"}
        self.outputs[place] = data
        self.states.append(data)

    @property
    def plain(self) -> str:
        """The one output as plain text."""
        (output,) = self.outputs
        return output["text/plain"]

    @property
    def page(self) -> Page:
        """The one output as a browser reads it."""
        (output,) = self.outputs
        return Page(output["text/html"])

    @property
    def times(self) -> str:
        """What nbval does not compare."""
        (output,) = self.outputs
        (span,) = re.findall(r'<span class="revkit-time">([^<]*)</span>', output["text/html"])
        return str(span)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """The process is a notebook's kernel, and runs this cell."""
    cell = Cell()
    shell = SimpleNamespace(kernel=object())
    ipython = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=cell.display))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return cell


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What was to be drawn, instead of the pictures."""
    asked: list[SimpleNamespace] = []

    def draw(worker: Any, start_s: Any, end_s: Any, decision: Any, **given: Any) -> bytes:
        asked.append(
            SimpleNamespace(worker=worker, start=start_s, end=end_s, decision=decision, **given)
        )
        return PNG

    monkeypatch.setattr(revkit.plot, "live_png", draw)
    return asked


def reviews(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"r{row}" for row in range(rows)]})


def record(
    total: int = 10, *, ok: int = 0, failed: int = 0, seconds: float = 0.0, workers: int = 2
) -> Record:
    """The record of a run that has come so far; its attempts began one after another."""
    made = empty_record(total, ("response",))
    made.workers = workers
    made.began, made.ended = 1000.0, 1000.0 + seconds
    for row in range(ok + failed):
        attempt(made, row, Failure("ValueError", "no") if row >= ok else Success({"response": 1}))
    return made


def attempt(made: Record, row: int, outcome: Any, decision: Decision | None = None) -> None:
    if decision is None:
        decision = Decision.OK if isinstance(outcome, Success) else Decision.FAIL
    began = made.began + row
    made.attempted(Attempted(Attempt(row, 1, row % 2), began, began + 1, outcome, decision))


def shown(cell: Cell, record: Record, *, over: bool = False) -> Cell:
    """The cell, when the record was shown in it."""
    display = Live(record.total, draw=lambda *args, **given: PNG, show=cell.display)
    display.update(record)
    if over:
        display.close()
    return cell


# -- the pace -------------------------------------------------------------------------------------


@given(
    redraws=st.lists(
        st.tuples(st.floats(0, 5), st.floats(0, 30)), min_size=1, max_size=60
    )  # seconds that each takes; seconds for which nobody asks after it is due
)
def test_a_redraw_that_takes_no_more_than_twice_the_one_before_is_within_the_share(
    redraws: list[tuple[float, float]],
) -> None:
    pace, spent, last, began = Pace(0.0), 0.0, float("-inf"), 0.0
    longest = 0.0
    for number, (took, late) in enumerate(redraws):
        now = pace.due + late
        assert number == 0 or now - began >= INTERVAL_S - 1e-9
        assert spent <= SHARE * now + 1e-9  # so it is in all the time between two redraws
        pace.drew(now, now + took)
        spent, began = spent + took, now
        if number and took <= 2 * last:
            assert spent <= SHARE * (now + took) + 1e-9
        last, longest = took, max(longest, took)
    assert pace.due <= max(began + INTERVAL_S, (spent + 2 * longest) / SHARE) + 1e-9  # it goes on


@given(took=st.floats(0, 3))
def test_steady_redraws_are_as_frequent_as_they_may_be(took: float) -> None:
    pace, drawn = Pace(0.0), 0
    while pace.due < 200:
        now = pace.due
        pace.drew(now, now + took)
        drawn += 1
    assert drawn >= min(200 / INTERVAL_S, 200 * SHARE / max(took, 1e-9)) - 3


def test_it_is_drawn_once_a_second_and_slow_drawing_puts_it_off(cell: Cell) -> None:
    now, took = 50.0, 0.001

    def draw(*args: Any, **given: Any) -> bytes:
        nonlocal now
        now += took
        return PNG

    display = Live(10, draw=draw, show=cell.display, clock=lambda: now)
    made = record(10, ok=1)

    def redraws(seconds: float) -> int:
        nonlocal now
        before, end = len(cell.states), now + seconds
        while now < end:
            display.update(made)
            now += 0.01
        return len(cell.states) - before

    assert redraws(20.0) == 20
    took = 0.5  # a loaded machine
    assert redraws(100.0) in range(9, 12)
    display.close()
    assert len(cell.outputs) == 1


# -- what it says ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("pictures")
def test_a_run_is_one_output_whose_last_state_says_all(cell: Cell) -> None:
    model = FakeModel(lambda text: "positive", latency=1.0, clock="virtual")
    run = reviews(12).llm.parallel_map(model=model, max_workers=4, progress="live")
    assert Page(cell.states[0]["text/html"]).text.startswith("0 of 12 rows")
    tokens = f"{run.usage.total_tokens:,}"
    assert cell.plain == f"12 of 12 rows, {tokens} tokens"
    assert cell.times == "3.00 s · 4 rows/s"
    assert cell.page.text == f"12 of 12 rows · {tokens} tokens 3.00 s · 4 rows/s"
    assert cell.page.tags[-1] == "img"
    assert "script" not in cell.page.tags


def test_the_picture_gets_all_attempts_in_seconds_of_the_run(
    cell: Cell, pictures: list[SimpleNamespace]
) -> None:
    said = [ModelError("no"), "a", "b", ConnectionFailed("broke"), "c"]
    run = reviews(4).llm.parallel_map(
        "{review}", progress="live", max_workers=2, retry=revkit.Retry(initial=1e-6),
        model=FakeModel(said, latency=2.0, clock="virtual"),
    )  # fmt: skip
    last = pictures[-1]
    assert last.worker.tolist() == run.attempts["worker"].tolist()
    assert last.start.tolist() == pytest.approx(run.attempts["start_s"].tolist())
    assert last.end.tolist() == pytest.approx(run.attempts["end_s"].tolist())
    assert [DECISIONS[code] for code in last.decision] == run.attempts["outcome"].tolist()
    assert (last.lanes, last.now_s, last.limits, last.holds) == (2, run.metrics.wall_s, [], [])
    assert cell.plain.startswith("4 of 4 rows, 1 failed, 1 retry, ")


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_every_state_is_that_of_one_moment(
    cell: Cell, pictures: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch, clock: Any
) -> None:
    monkeypatch.setattr(revkit.display.live, "INTERVAL_S", 0.0)
    monkeypatch.setattr(revkit.display.live, "SHARE", 1e9)
    model = FakeModel(lambda text: "positive", latency=0.02, clock=clock)
    run = reviews(40).llm.parallel_map(model=model, max_workers=4, progress="live")
    assert len(pictures) > 2
    *moments, last = [picture.now_s for picture in pictures]
    assert moments == sorted(moments)
    assert last == run.metrics.wall_s
    assert all(0 <= picture.end.max() <= picture.now_s for picture in pictures)
    done = [int(re.match(r"\d+", state["text/plain"]).group()) for state in cell.states]  # type: ignore[union-attr]
    assert (done, done[-1]) == (sorted(done), 40)


@pytest.mark.usefixtures("cell")
def test_the_picture_shows_the_path_of_an_adaptive_run(pictures: list[SimpleNamespace]) -> None:
    model = FakeModel(lambda text: "positive", latency=0.5, clock="virtual")
    run = reviews(300).llm.parallel_map(model=model, max_workers="adaptive", progress="live")
    assert [limit for _, limit in pictures[-1].limits][-1] == run.metrics.limit
    assert pictures[-1].lanes == 1  # and more where they were used


@pytest.mark.usefixtures("cell")
def test_the_picture_shows_holds_up_to_now(pictures: list[SimpleNamespace]) -> None:
    said: list[Any] = [revkit.ServerError("busy", status=429, pause=5.0), "a", "b"]
    model = FakeModel(said, latency=1.0, clock="virtual")
    run = reviews(2).llm.parallel_map("{review}", model=model, max_workers=1, progress="live")
    holds = pictures[-1].holds
    assert holds == [("pause", 1.0, 6.0)]
    assert run.metrics.wall_s == 8.0
    early = record(seconds=3.0, ok=1)
    early.holds = [Hold(HoldKind.PAUSE, 1001.0, 1060.0)]
    revkit.display.live._drawn(early, revkit.plot.live_png)
    assert pictures[-1].holds == [("pause", 1.0, 3.0)]


def test_the_real_picture_is_one(cell: Cell) -> None:
    model = FakeModel(lambda text: "positive", latency=1.0, clock="virtual")
    reviews(12).llm.parallel_map(model=model, max_workers=4, progress="live")
    (output,) = cell.outputs
    assert 'src="data:image/png;base64,iVBORw0KGgo' in output["text/html"]


def test_what_is_drawn_does_not_keep_attempts_from_being_added(cell: Cell) -> None:
    kept: list[Any] = []

    def draw(*arrays: Any, **given: Any) -> bytes:
        kept.extend(arrays)
        return PNG

    made = record(ok=1)
    Live(10, draw=draw, show=cell.display).update(made)
    attempt(made, 1, Success({"response": 1}))
    assert [len(array) for array in kept] == [1] * 4
    assert all(isinstance(array, np.ndarray) for array in kept)


def test_the_time_left_is_that_of_rows_that_ask(cell: Cell) -> None:
    made = record(100, ok=10, seconds=20.0)
    made.settled += 30
    made.from_store = 30
    assert shown(cell, made).times == "20.0 s · 2 rows/s · about 2 min 00 s left"


def test_rates_are_numbers_that_people_read(cell: Cell) -> None:
    made = record(9999, ok=5000, seconds=2.0)
    assert shown(cell, made).times.startswith("2.00 s · 2,500 rows/s")


def test_nothing_is_left_when_it_is_over(cell: Cell) -> None:
    made = record(100, ok=10, seconds=20.0)
    assert "left" in shown(cell, made).times
    cell.outputs.clear()
    assert "left" not in shown(cell, made, over=True).times
    assert "90 not started" in cell.plain


def test_errors_are_grouped_by_type_in_five_lines_at_most(cell: Cell) -> None:
    made = record(40, seconds=1.0)
    for row in range(20, 0, -1):  # the last one in time is the first by position
        attempt(made, row, Failure("ServerError", f"row {row}", status=500))
    for at in range(6):
        attempt(made, 30 + at, Failure(f"Error{at}", f"rare {at}"))
    text = shown(cell, made).page.text
    assert "20 × ServerError: row 1" in text
    assert text.index("20 × ServerError") < text.index("1 × Error0: rare 0")
    assert "1 × Error2: rare 2" in text
    assert "rare 3" not in text
    assert "3 more types of error: run.errors" in text
    assert "row 2" not in text.replace("row 20", "")


def test_a_row_that_is_to_be_tried_again_is_no_error(cell: Cell) -> None:
    made = record(seconds=1.0)
    attempt(made, 0, Failure("ServerError", "busy", transient=True), Decision.RETRY)
    assert shown(cell, made).plain == "0 of 10 rows, 1 retry"
    assert "busy" not in cell.page.text


def test_a_server_that_is_away_is_named_while_it_is(cell: Cell) -> None:
    made = record(seconds=22.0)
    attempt(made, 0, Success({}))
    made.away = Away(since=made.began + 10.0, next_probe=made.began + 26.0)
    made.holds = [Hold(HoldKind.OUTAGE, made.began + 11.0, float("inf"))]
    assert "server away for 12 s, next try in 4 s" in shown(cell, made).page.text


def test_a_server_that_is_back_is_not_named(cell: Cell) -> None:
    made = record(seconds=22.0)
    attempt(made, 0, Success({}))
    made.holds = [Hold(HoldKind.OUTAGE, made.began + 11.0, made.began + 20.0)]
    assert "server away for" not in shown(cell, made).page.text


@pytest.mark.usefixtures("pictures")
def test_text_of_rows_replies_and_errors_is_text(cell: Cell) -> None:
    def answer(row: Any) -> str:
        raise type(HOSTILE, (ValueError,), {})(HOSTILE)

    with pytest.raises(revkit.RunFailed):
        reviews(2).llm.parallel_map(answer, progress="live", fail_fast=True, max_workers=1)
    page = cell.page
    assert set(page.tags) == {"div", "style", "p", "b", "span", "img"}
    assert '<script>alert("1")</script> \\x1b[31mred {braces} %s \\u202eturned new' in page.text
    (output,) = cell.outputs
    assert "<script" not in output["text/html"]
    assert "\x1b" not in output["text/html"] + output["text/plain"]
    assert "script" not in output["text/plain"]


def test_rows_from_the_store_are_counted(
    cell: Cell, pictures: list[SimpleNamespace], tmp_path: Path
) -> None:
    model = FakeModel(lambda text: "positive")
    model.keeps_replies = True
    df = reviews(700)  # more than are looked up at once
    options: dict[str, Any] = {"model": model, "store": tmp_path / "replies.sqlite"}
    df.llm.parallel_map(**options)
    df.llm.parallel_map(**options, progress="live")
    assert cell.plain.startswith("700 of 700 rows, 700 from the store")
    assert not pictures  # nothing was attempted
    assert "img" not in cell.page.tags


def test_an_empty_frame_shows_that_it_is_empty(cell: Cell) -> None:
    reviews(0).llm.parallel_map(lambda row: 1, progress="live")
    assert cell.plain == "0 of 0 rows"
    assert "nan" not in cell.page.text


@pytest.mark.usefixtures("pictures")
def test_rows_that_are_tried_again_are_a_run_of_their_own(cell: Cell) -> None:
    model = FakeModel(["a", ModelError("no"), "c", "now"], latency=1.0, clock="virtual")
    run = reviews(3).llm.parallel_map("{review}", model=model, max_workers=1, progress="live")
    assert cell.plain.startswith("3 of 3 rows, 1 failed")
    cell.outputs.clear()
    run.retry_failed()
    assert cell.plain.startswith("1 of 1 row, ")


# -- how a run ends -------------------------------------------------------------------------------


@pytest.mark.usefixtures("pictures")
def test_an_interrupt_leaves_the_last_state(cell: Cell) -> None:
    async def task(row: Any) -> str:
        if row["review"] == "r0":
            return "done"
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(revkit.Interrupted):
        reviews(5).llm.parallel_map(task, max_workers=1, progress="live")
    assert cell.plain == "1 of 5 rows, 1 cancelled, 3 not started"
    last = revkit.last_result()
    assert last is not None
    rate = float(re.findall(r"([\d.,]+) rows/s", cell.times)[0].replace(",", ""))
    assert rate == pytest.approx(last.metrics.rows_per_s, rel=0.01)
    assert "stopped: it was interrupted" in cell.page.text


@pytest.mark.usefixtures("pictures")
def test_a_cancelled_await_leaves_the_last_state(cell: Cell) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def task(row: Any) -> str:
            if row["review"] == "r0":
                return "done"
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        run = reviews(5).llm.aparallel_map(task, max_workers=1, progress="live")
        running = asyncio.ensure_future(run)
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert cell.plain == "1 of 5 rows, 1 cancelled, 3 not started"


@pytest.mark.usefixtures("pictures")
def test_a_stop_says_why_and_counts_every_row(cell: Cell) -> None:
    model = FakeModel([ModelError("no")], latency=1.0, clock="virtual")
    with pytest.raises(revkit.RunFailed):
        reviews(9).llm.parallel_map(
            "{review}", model=model, max_workers=1, progress="live", fail_fast=True
        )
    assert cell.plain.startswith("1 of 9 rows, 1 failed, 8 not started")
    assert "stopped: a row failed, and fail_fast=True" in cell.page.text
    assert "1 × ModelError: no" in cell.page.text


def test_closing_twice_and_updating_after_it_do_no_harm(cell: Cell) -> None:
    display = Live(10, draw=lambda *args, **given: PNG, show=cell.display)
    display.close()  # nothing was ever shown
    assert cell.outputs == []
    display.update(record(ok=1))
    display.close()
    display.close()
    display.update(record(ok=2))
    assert len(cell.states) == 2


# -- what must not harm the run -------------------------------------------------------------------


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("door", ["parallel_map", "aparallel_map"])
@pytest.mark.parametrize("last_only", [False, True])
def test_a_display_that_raises_is_dropped_and_the_run_goes_on(
    cell: Cell, door: str, last_only: bool
) -> None:
    df, states = reviews(4), cell.states
    cell.fails = lambda: len(states) == 1 if last_only else True
    call = functools.partial(getattr(df.llm, door), length, max_workers=2, progress="live")
    said = "the progress display raised RuntimeError: no cell; it was not drawn again"
    with pytest.warns(UserWarning, match=said) as told:
        run = call() if door == "parallel_map" else asyncio.run(call())
    assert len(told) == 1
    assert run.metrics.succeeded == 4
    assert df["response"].tolist() == [2] * 4


async def length(row: Any) -> int:
    return len(row["review"])


@pytest.mark.usefixtures("cell")
def test_a_picture_that_cannot_be_drawn_costs_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*args: Any, **given: Any) -> bytes:
        raise OSError("no font")

    monkeypatch.setattr(revkit.plot, "live_png", draw)
    with pytest.warns(UserWarning, match="the progress display raised OSError: no font"):
        run = reviews(4).llm.parallel_map(length, progress="live")
    assert run.metrics.succeeded == 4


@pytest.mark.usefixtures("cell", "pictures")
def test_a_display_that_cannot_be_opened_is_not_opened_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = FakeModel(lambda text: "positive")
    model.keeps_replies = True
    options: dict[str, Any] = {"model": model, "store": tmp_path / "replies.sqlite"}
    reviews(700).llm.parallel_map(**options)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace())
    with pytest.warns(UserWarning, match="the progress display raised ImportError") as told:
        run = reviews(700).llm.parallel_map(**options, progress="live")
    assert len(told) == 1
    assert run.metrics.from_store == 700


@pytest.mark.usefixtures("cell", "pictures")
def test_what_is_reported_after_the_end_does_not_change_it() -> None:
    heard: list[Any] = []
    with pytest.raises(revkit.RunTimeout) as stopped:
        reviews(2).llm.parallel_map(
            "{review}",
            model=FakeModel(
                [revkit.ServerError("busy", status=429, pause=30.0)], latency=1.0, clock="virtual"
            ),
            max_workers=1,
            timeout=10.0,
            progress="live",
            observer=SimpleNamespace(on_event=heard.append),
        )
    assert heard
    record = stopped.value.result._record
    assert [hold.end for hold in record.holds] == [record.ended] == [10.0]


@pytest.mark.usefixtures("cell", "pictures")
def test_the_result_is_that_of_a_run_without() -> None:
    heard: list[Any] = []
    observer = SimpleNamespace(on_event=heard.append)
    runs = [
        reviews(9).llm.parallel_map(
            "{review}",
            model=FakeModel(["a", revkit.ServerError("busy", status=429, pause=9.0), *"bcdefghi"],
                            latency=1.0, clock="virtual"),
            max_workers=2, retry=revkit.Retry(initial=1e-9), **options,
        )
        for options in ({}, {"progress": "live"}, {"progress": "live", "observer": observer})
    ]  # fmt: skip
    assert heard
    one, *others = runs
    for other in others:
        assert other.metrics == one.metrics
        pd.testing.assert_frame_equal(other.attempts, one.attempts)
        assert other._record.holds == one._record.holds


# -- where it is shown ----------------------------------------------------------------------------


def test_elsewhere_there_is_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert isinstance(live(3), Bar)
    code = (
        "import sys, pandas as pd, revkit\n"
        "run = pd.DataFrame({'n': [1]}).llm.parallel_map(lambda row: 1, progress='live')\n"
        "assert not {'matplotlib', 'IPython'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.usefixtures("pictures")
def test_tqdm_disable_leaves_the_last_state_alone(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    reviews(4).llm.parallel_map(length, progress="live")
    assert len(cell.states) == 1
    assert cell.plain == "4 of 4 rows"


@pytest.mark.parametrize("given", ["bar", "Live", 1, None])
def test_other_values_are_refused(given: Any) -> None:
    with pytest.raises(revkit.UsageError, match=r'progress=.*"live" for a display'):
        reviews(1).llm.parallel_map(length, progress=given)


# -- in a real kernel -----------------------------------------------------------------------------

CELLS = """
import asyncio, os, random, signal
import pandas as pd
import revkit
from revkit.testing import FakeModel
reviews = pd.DataFrame({"review": ["it fits"] * 9 + ["a treat"] * 2 + ["a kettle"]})
def answer(text):
    if "kettle" in text:
        raise ValueError("<b>no</b>")
    return "positive" if "treat" in text else "neutral"
model = FakeModel(answer, latency=lambda text: random.uniform(0.001, 0.3))
---
run = reviews.llm.parallel_map(model=model, max_workers=random.randint(1, 12), progress="live")
---
run = await reviews.llm.aparallel_map(model=model, progress="live")
---
async def task(row):
    if row["n"] == 0:
        return 1
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()
---
pd.DataFrame({"n": [0, 1, 2]}).llm.parallel_map(task, max_workers=1, progress="live")
"""


def executed() -> Any:
    """The cells as a notebook, run in a kernel, as a saved notebook would keep it."""
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS.split("---")]
    cells[-1].metadata["tags"] = ["raises-exception"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    return notebook


@pytest.fixture(scope="module")
def moving() -> Any:
    """The notebook as it is saved where displays move."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TQDM_DISABLE", raising=False)
        return executed()


@pytest.mark.kernel
def test_a_saved_notebook_keeps_one_output_with_the_last_state(moving: Any) -> None:
    for cell in moving.cells[1:3]:
        (output,) = cell.outputs  # no second display, no bar, no warning
        assert output.output_type == "display_data"
        assert output.data["text/plain"].startswith("12 of 12 rows, 1 failed, ")
        page = Page(output.data["text/html"])
        assert "1 × ValueError: <b>no</b>" in page.text
        assert "img" in page.tags


@pytest.mark.kernel
def test_an_interrupted_cell_keeps_the_last_state_above_the_error(moving: Any) -> None:
    display, error = moving.cells[-1].outputs
    assert display.data["text/plain"] == "1 of 3 rows, 1 cancelled, 1 not started"
    assert error.ename == "Interrupted"


@pytest.mark.kernel
@pytest.mark.parametrize("authored", ["moving", "still"])
def test_it_passes_strict_nbval(
    authored: str, moving: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    notebook = moving if authored == "moving" else executed()
    path = tmp_path / "notebook.ipynb"
    nbformat.write(notebook, path)
    nbval = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path)]
    nbval += ["--nbval", "--nbval-current-env", str(path)]
    nbval += [f"--nbval-sanitize-with={revkit.testing.NBVAL_SANITIZE}"]
    strict = subprocess.run(nbval, capture_output=True, text=True)
    assert strict.returncode == 0, strict.stdout
