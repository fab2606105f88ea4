"""Processes that are killed, interrupted or run side by side: what was paid for is not paid for
again, and no row gets another one's answer."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from failing import kept, number_in, ollama, right_answer, said
from kills import Child, Told, history, random_moments
from servers import HANG, Answer, serve

from revkit import store

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9")

ROWS = 300
WORKERS = 8
ALL = list(range(ROWS))


@pytest.fixture(params=["thread", "async"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replies.sqlite"


def test_a_kill_loses_at_most_what_was_in_flight(engine: str, path: Path) -> None:
    moments = random_moments(seed=6, kills=10, most=40)
    lives = history(path, moments, rows=ROWS, workers=WORKERS, engine=engine)
    assert [life.told for life in lives[:-1]] == [None] * 10
    assert lives[-1].told == Told("done", ALL, ROWS)
    before: set[int] = set()
    lost: list[int] = []
    for life in lives:
        assert life.kept == {row: said(row) for row in life.kept}
        assert len(life.asked) == len(set(life.asked))
        assert before.isdisjoint(life.asked)  # nothing that was kept is asked for again
        assert before <= set(life.kept) <= before.union(life.asked)
        before = set(life.kept)
        lost.append(len(set(life.asked) - before))
    assert max(lost) <= WORKERS
    assert lost[-1] == 0
    assert sum(len(life.asked) for life in lives) - ROWS == sum(lost)
    assert store.info(path).replies == ROWS


def test_a_kill_after_the_store_was_removed_loses_at_most_what_was_in_flight(
    engine: str, path: Path
) -> None:
    lock = threading.Lock()
    asked: list[int] = []

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        with lock:
            asked.append(row)
            if len(asked) == 100:
                for name in ("", "-wal", "-shm"):
                    Path(f"{path}{name}").unlink()
            if len(asked) == 200:
                child.send_signal(signal.SIGKILL)
        return said(row)

    with serve(rule) as server:
        child = Child(server.url, path, rows=ROWS, workers=WORKERS, engine=engine)
        child.go()
        assert child.told() is None
        found = kept(path, ollama(server.url), ROWS)
    assert found == {row: said(row) for row in found}
    assert len(asked) == len(set(asked))
    assert len(set(asked) - set(found)) <= WORKERS


def test_an_interrupted_run_goes_on_from_there(engine: str, path: Path) -> None:
    answered = 50
    lock = threading.Lock()
    asked: list[int] = []

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        with lock:
            asked.append(row)
            if len(asked) == answered + WORKERS:  # so all replies that went out are in the store
                child.send_signal(signal.SIGINT)
            hangs = answered < len(asked) <= answered + WORKERS
        return HANG if hangs else said(row)

    with serve(rule) as server:
        child = Child(server.url, path, rows=ROWS, workers=WORKERS, engine=engine)
        child.go()
        told = child.told()
        assert told is not None
        assert told.end == "Interrupted KeyboardInterrupt"
        assert told.succeeded == answered
        first = asked[:answered]
        assert told.numbers == [row if row in first else None for row in ALL]
        assert kept(path, ollama(server.url), ROWS) == {row: said(row) for row in first}
        assert len(asked) == answered + WORKERS

        child = Child(server.url, path, rows=ROWS, workers=WORKERS, engine=engine)
        child.go()
        assert child.told() == Told("done", ALL, ROWS)
        assert sorted(first + asked[answered + WORKERS :]) == ALL
    assert store.info(path).replies == ROWS


def test_two_processes_share_a_store_and_keep_each_reply_once(engine: str, path: Path) -> None:
    rows = 600
    both_ask = 2 * WORKERS
    with serve(right_answer, gate=both_ask) as server:
        children = [
            Child(server.url, path, rows=rows, workers=WORKERS, engine=engine) for _ in range(2)
        ]
        for child in children:
            child.go()
        for child in children:
            assert child.told() == Told("done", list(range(rows)), rows)
        assert server.highest == both_ask
        assert len(server.chats) == rows
        assert kept(path, ollama(server.url), rows) == {row: said(row) for row in range(rows)}
        assert store.info(path).replies == rows
        asked = len(server.chats)
        again = Child(server.url, path, rows=rows, workers=WORKERS, engine=engine)
        again.go()
        assert again.told() == Told("done", list(range(rows)), rows)
        assert len(server.chats) == asked
