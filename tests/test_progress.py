"""The progress bar: which kind is shown where, what it says, how often, and what it leaves."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from records import empty_record

from revkit.display import progress
from revkit.display.progress import Bar, bar
from revkit.record.record import Record
from revkit.scheduling.events import Away


class Drawn:
    """Stands for a tqdm: notes every time it is drawn."""

    def __init__(self) -> None:
        self.n = 0
        self.postfix = ""
        self.states: list[tuple[int, str]] = []
        self.closed = self.refreshed = 0

    def set_postfix_str(self, text: str, *, refresh: bool) -> None:
        assert not refresh  # would draw a second time
        self.postfix = text

    def update(self, n: int) -> None:
        self.n += n
        self.states.append((self.n, self.postfix))

    def refresh(self) -> None:
        self.refreshed += 1

    def close(self) -> None:
        self.closed += 1
        self.states.append((self.n, self.postfix))


def at(settled: int, failed: int = 0, tokens: int = 0) -> Record:
    """The record of a run that has come so far."""
    record = empty_record(2000, asks_model=True)
    record.settled, record.failed, record.tokens = settled, failed, tokens
    return record


def test_the_bar_says_that_the_server_is_away() -> None:
    drawn, times = Drawn(), iter([0.0, 1.0, 2.0])
    shown = Bar(drawn, clock=lambda: next(times))
    record = at(3)
    record.away, record.ended = Away(since=10.0, next_probe=26.0), 22.0
    shown.update(record)
    assert drawn.postfix == "0 failed, server away for 12 s, next try in 4 s"
    record.ended = 26.5
    shown.update(record)
    assert drawn.postfix == "0 failed, server away for 16 s, trying now"
    record.away = None
    shown.update(record)
    assert drawn.postfix == "0 failed"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a kernel, whatever the tests run in."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def widgets(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)


# -- which kind -----------------------------------------------------------------------------------


def test_a_log_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    shown = bar(3)
    shown.update(at(3, 0, 9))
    shown.close()
    assert log.getvalue() == ""


def test_a_process_without_standard_error_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert progress._kind() is None


def test_a_terminal_gets_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert progress._kind() == "terminal"


@pytest.mark.usefixtures("kernel")
def test_a_notebook_gets_the_widget_only_where_ipywidgets_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widgets(monkeypatch, installed=True)
    assert progress._kind() == "widget"
    widgets(monkeypatch, installed=False)
    assert progress._kind() == "text"


def test_ipython_in_a_terminal_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace()  # has no kernel
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert progress._kind() == "terminal"


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("value", "shown"), [("1", False), ("true", False), ("0", True), ("", True)]
)
def test_tqdm_disable_is_honoured(monkeypatch: pytest.MonkeyPatch, value: str, shown: bool) -> None:
    monkeypatch.setenv("TQDM_DISABLE", value)
    assert (progress._kind() is not None) is shown


# -- what it says ---------------------------------------------------------------------------------


def test_it_is_drawn_at_most_ten_times_a_second_and_at_the_end() -> None:
    now, drawn = 100.0, Drawn()
    shown = Bar(drawn, clock=lambda: now)
    for done in range(1, 1001):
        now += 0.001
        shown.update(at(done, done // 500, 10 * done))
    assert len(drawn.states) == 10
    shown.close()
    assert drawn.states[-1] == (1000, "2 failed, 10,000 tokens")


def test_it_counts_no_tokens_where_there_are_none() -> None:
    drawn = Drawn()
    shown = Bar(drawn)
    shown.update(at(1))
    assert drawn.states == [(1, "0 failed")]


def test_a_redraw_in_which_nothing_moved_is_no_update() -> None:
    """It would restart the time by which tqdm measures its rate."""
    now, drawn = 100.0, Drawn()
    shown = Bar(drawn, clock=lambda: now)
    for done in (1, 1, 1, 2):
        shown.update(at(done))
        now += 1.0
    assert drawn.states == [(1, "0 failed"), (2, "0 failed")]
    assert drawn.refreshed == 2


def test_closing_twice_and_updating_after_it_do_no_harm() -> None:
    drawn = Drawn()
    shown = Bar(drawn)
    shown.close()
    shown.close()
    shown.update(at(1))
    assert drawn.closed == 1


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("terminal", [False, True])
def test_it_is_one_line_that_does_not_scroll(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    widgets(monkeypatch, installed=False)
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    shown = bar(40)
    for done in range(1, 41):
        shown.update(at(done, done // 20, 37 * done))
    shown.close()
    assert out.getvalue().count("\n") == 1  # the one that ends it
    last = out.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith("rows: 100%")
    assert "40/40" in last
    assert "rows/s, 2 failed, 1,480 tokens" in last


@pytest.mark.usefixtures("kernel")
def test_it_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    widgets(monkeypatch, installed=False)
    before: set[Any] = set(threading.enumerate())
    shown = bar(2)
    shown.update(at(1))
    shown.close()
    assert set(threading.enumerate()) <= before


def test_tqdm_is_imported_only_where_a_bar_is_drawn() -> None:
    code = (
        "import sys; from revkit.display.progress import bar\n"
        "bar(3); assert 'tqdm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, stderr=subprocess.PIPE)
