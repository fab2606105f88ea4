"""Runs in processes of their own, which are killed at a chosen request or reply.

The children are forked from a process that has imported everything, so that ten of them start in
a second.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import threading
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from failing import TASK, kept, number_in, ollama, reviews, right_answer
from servers import GATE_LIMIT, Seen, Server

import revkit

#: What a run imports, by far the slowest part of a child's start.
IMPORTED = [
    *(
        "aiohttp",
        "httpcore",
        "pydantic",
        "sqlite3",
        "revkit.clients.aiohttp_transport",
        "revkit.clients.httpx_transport",
        "revkit.api.accessor",
    ),
    *(
        "revkit.runtime.engines.loop",
        "revkit.runtime.engines.threads",
        "revkit.store",
        "pyarrow.pandas_compat",
    ),
]

#: A child that says nothing for so many seconds has got stuck.
LIMIT = 120.0

Numbers = list[int | None]


class Told(NamedTuple):
    """How a run in a child ended: the kind of its end, and the number that each row got."""

    end: str
    numbers: Numbers
    succeeded: int


class Child:
    """A process with one run in it, which starts at :meth:`go`."""

    def __init__(self, url: str, path: Path, *, rows: int, workers: int, engine: str):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        self._mine, theirs = context.Pipe()
        call = (url, str(path), rows, workers, engine)
        self._process: BaseProcess = context.Process(target=_run, args=(theirs, *call), daemon=True)
        self._process.start()
        theirs.close()
        assert self._mine.recv() == "ready"

    def go(self) -> None:
        self._mine.send("go")

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def told(self) -> Told | None:
        """Wait for its end; gives how its run ended, None where it was killed."""
        assert self._mine.poll(LIMIT), "the child hangs"
        try:
            found: Told | None = self._mine.recv()
        except (EOFError, ConnectionResetError):
            found = None
        self._process.join()
        self._mine.close()
        assert self._process.exitcode == (0 if found is not None else -signal.SIGKILL)
        return found


def _run(tell: Connection, url: str, path: str, rows: int, workers: int, engine: Any) -> None:
    warnings.simplefilter("error")
    df = reviews(rows)
    tell.send("ready")
    tell.recv()
    try:
        run = df.llm.parallel_map(
            TASK, model=ollama(url), engine=engine, max_workers=workers, store=path
        )
    except BaseException as error:
        if not isinstance(error, revkit.Interrupted):
            raise
        tell.send(Told(_kinds(error), _numbers(df), error.result.metrics.succeeded))
    else:
        tell.send(Told("done", _numbers(df), run.metrics.succeeded))


def _kinds(error: BaseException) -> str:
    return " ".join(kind.__name__ for kind in type(error).__mro__[:2])


def _numbers(frame: pd.DataFrame) -> Numbers:
    return [None if pd.isna(number) else int(number) for number in frame["number"]]


class Moment(NamedTuple):
    """When a child is killed: at the ``number``-th request that came in, or reply that went out.

    Before the kill at a request, no reply to the last of them goes out: as many are in flight as
    the child has workers.
    """

    what: Literal["request", "reply"]
    number: int


class KillingServer(Server):
    """Says what is right, and kills the child that asks at a chosen moment."""

    def __init__(self, *, workers: int) -> None:
        self._workers = workers
        self._moment: Moment | None = None
        self._victim: Child | None = None
        self._dead = threading.Event()
        self._counted = {"request": 0, "reply": 0}
        super().__init__(right_answer, gate=None, models=None, key=None, tls=False, slots=None)

    def aim(self, victim: Child, moment: Moment | None) -> None:
        """Kill ``victim`` at ``moment``, which is counted from now on; None: let it live."""
        self._victim, self._moment = victim, moment
        self._dead.clear()
        self._counted = {"request": 0, "reply": 0}

    def answer(self, seen: Seen, to: socket.socket) -> bool:
        number, moment = self._count("request"), self._moment
        if moment is not None and moment.what == "request":
            withheld = number > moment.number - self._workers
            if withheld:
                self._dead.wait(GATE_LIMIT)
                raise ConnectionAbortedError
        stays_open = super().answer(seen, to)
        self._count("reply")
        return stays_open

    def _count(self, what: Literal["request", "reply"]) -> int:
        with self._lock:
            self._counted[what] += 1
            if not self._dead.is_set() and self._moment == (what, self._counted[what]):
                assert self._victim is not None
                self._victim.send_signal(signal.SIGKILL)
                self._dead.set()
            if self._dead.is_set():
                raise ConnectionAbortedError  # nothing more goes out
            return self._counted[what]

    def rows_asked(self, first: int) -> list[int]:
        """The rows of the requests from the ``first`` on, of a child that is dead.

        Waits until all is read that it has sent: connections are accepted in order, so one of our
        own comes after all of its, and their threads end by themselves.
        """
        with socket.create_connection(("127.0.0.1", self.port)) as own:
            own.shutdown(socket.SHUT_WR)
            assert own.recv(1) == b""
        for thread in self._threads[1:]:
            thread.join()
        return [number_in(seen.body["messages"]) for seen in self.chats[first:]]


@dataclass(frozen=True)
class Life:
    """One child of a history.

    Attributes:
        asked: rows that it sent requests for.
        kept: what the store held for each row after its end.
        told: how its run ended, None where it was killed.
    """

    asked: list[int]
    kept: dict[int, str]
    told: Told | None


def random_moments(seed: int, kills: int, most: int) -> list[Moment]:
    """Kills at the 1st to ``most``-th request or reply."""
    chance = random.Random(seed)
    return [
        Moment(chance.choice(["request", "reply"]), chance.randint(1, most)) for _ in range(kills)
    ]


def history(
    path: Path, moments: Sequence[Moment], *, rows: int, workers: int, engine: str
) -> list[Life]:
    """Run the rows, kill the run at each of the moments and begin it again; the last one ends."""
    lives: list[Life] = []
    with closing(KillingServer(workers=workers)) as server:
        for moment in [*moments, None]:
            child = Child(server.url, path, rows=rows, workers=workers, engine=engine)
            first = len(server.chats)
            server.aim(child, moment)
            child.go()
            told = child.told()
            asked = server.rows_asked(first)
            lives.append(Life(asked, kept(path, ollama(server.url), rows), told))
    return lives
