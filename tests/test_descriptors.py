"""A process has few file descriptors: never more connections than fit, and no row pays for it."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import serve

import revkit
from revkit.clients import descriptors
from revkit.clients.descriptors import Limits, are_few, is_no_descriptor, make_room, room_for
from revkit.clients.transport_errors import TransportErrors, from_aiohttp, from_httpx
from revkit.scheduling.crowding import Crowding
from revkit.scheduling.events import Attempt, Decision, Failure, Success
from revkit.scheduling.policy import Retry
from revkit.scheduling.scheduler import WAIT, Scheduler
from revkit.testing import FakeModel

resource = pytest.importorskip("resource", reason="Windows has no such limit")
limits = st.integers(8, 5000) | st.just(math.inf)


@given(wanted=st.integers(1, 3000), soft=limits, hard=limits, used=st.integers(0, 3000))
def test_the_connections_fit_into_the_limit(
    wanted: int, soft: float, hard: float, used: int
) -> None:
    hard = max(soft, hard)
    room = room_for(wanted, Limits(soft, hard, used))
    now = soft if room.raise_to is None else room.raise_to
    assert soft <= now <= hard
    assert 1 <= room.connections <= wanted
    assert room.connections == 1 or used + room.connections < now
    assert room.connections == wanted or now == hard
    assert room.raise_to is None or now > soft


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The limits of a process that is not this one."""
    state = {"limits": Limits(256, 4096, 40), "allows": True}

    def raise_to(soft: int) -> bool:
        if state["allows"]:
            state["limits"] = state["limits"]._replace(soft=soft)  # type: ignore[attr-defined]
        return bool(state["allows"])

    monkeypatch.setattr(descriptors, "_limits", lambda: state["limits"])
    monkeypatch.setattr(descriptors, "_raise_to", raise_to)
    return state


def test_the_soft_limit_is_raised_once_and_the_run_says_so(process: dict[str, Any]) -> None:
    assert make_room(100) == (100, "")
    number, said = make_room(1000)
    assert (number, process["limits"].soft) == (1000, 1104)
    assert "raised this process's limit of open files from 256 to 1,104" in said
    assert make_room(1000) == (1000, "")


@pytest.mark.parametrize("allows", [True, False])
def test_the_workers_are_fewer_where_the_limit_cannot_be_raised(
    process: dict[str, Any], allows: bool
) -> None:
    process |= {"limits": Limits(256, 4096 if not allows else 256, 40), "allows": allows}
    number, said = make_room(1000)
    assert number == 152
    assert "may have 256 files and connections open: the run used 152 workers" in said
    assert "raise the limit (ulimit -n) before Python starts, or set max_workers=" in said


def test_a_system_without_limits_bounds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "resource", None)  # Windows
    assert make_room(10**6) == (10**6, "")
    assert not are_few()


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_run_uses_as_many_workers_as_connections_fit(
    process: dict[str, Any], engine: Any
) -> None:
    process["limits"] = Limits(100, 100, 70)
    df = pd.DataFrame({"review": ["good"] * 20})
    with serve("positive") as server, pytest.warns(UserWarning, match="run used 5 workers"):
        run = df.llm.parallel_map(
            model=revkit.Ollama("m", host=server.url), engine=engine, max_workers=20, store=False
        )
    assert (run.metrics.succeeded, run.metrics.workers) == (20, 5)
    assert server.connections <= 5
    fake = FakeModel(["positive"] * 20)  # opens no connection
    assert df.llm.parallel_map(model=fake, max_workers=20).metrics.workers == 20


CHILD = """
import errno, json, os, resource, sys
import pandas as pd
import revkit, revkit.runtime.wiring

url, engine = sys.argv[1:]
model = revkit.Ollama("m", host=url)
df = pd.DataFrame({"review": [f"review {i}" for i in range(60)]})
df.head(0).llm.parallel_map(model=model, engine=engine, store=False, progress=False)
revkit.runtime.wiring.make_room = lambda wanted: (wanted, "")  # others open files later

class Tell:
    told = False
    def on_event(self, event):
        if event.type == "worker.retry" and not self.told:
            self.told = True
            print("full", flush=True)

resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
try:  # as it may be in the middle of a run; the loop and its look-ups take a few
    held = [os.dup(0)]
    while True:
        held.append(os.dup(0))
except OSError as error:
    assert error.errno == errno.EMFILE
for one in held[-20:]:
    os.close(one)
run = df.llm.parallel_map(
    model=model, engine=engine, max_workers=40, store=False, progress=False, observer=Tell(),
    retry=revkit.Retry(attempts=1),
)
print(json.dumps([run.rows["status"].eq("ok").all().item(), list(run.errors["message"])]))
"""


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_row_waits_where_no_descriptor_is_left(engine: str) -> None:
    """No reply comes before the process has run out of descriptors."""
    gate = threading.Event()
    with serve("positive", gate=gate) as server:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, server.url, engine],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        first = child.stdout.readline()
        gate.set()
        out, err = child.communicate(timeout=60)
    assert (first, json.loads(out)) == ("full\n", [True, []]), err
    assert "put off because this process had too many open files and connections" in err
    assert server.highest <= 20


errors = TransportErrors("http://model.example/v1", proxy=None, timeout=9, hint="is it running?")


def _chained(*links: BaseException) -> Exception:
    """The last one, caused by the one before it, and so on."""
    for cause, error in itertools.pairwise(links):
        error.__cause__ = cause
    assert isinstance(links[-1], Exception)
    return links[-1]


@pytest.mark.parametrize("read", [from_httpx, from_aiohttp])
@pytest.mark.parametrize(
    "root",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENFILE, "Too many open files in system"),
        OSError(f"Multiple exceptions: [Errno {errno.EMFILE}] {os.strerror(errno.EMFILE)}"),
        socket.gaierror(errno.EMFILE, os.strerror(errno.EMFILE)),
        ExceptionGroup("all attempts", [OSError(errno.EMFILE, "Too many open files")]),
    ],
)
def test_it_is_told_from_a_server_that_is_away(read: Any, root: BaseException) -> None:
    found = read(_chained(root, OSError("cannot connect")), errors)
    assert (type(found), found.no_room, found.sent) == (revkit.ConnectionFailed, True, False)
    assert "too many open files" in str(found)
    assert "is it running?" not in str(found)


@pytest.mark.parametrize("read", [from_httpx, from_aiohttp])
def test_a_name_cannot_be_looked_up_where_descriptors_are_few(
    read: Any, process: dict[str, Any]
) -> None:
    lookup = _chained(socket.gaierror(socket.EAI_NONAME, "unknown"), OSError("cannot connect"))
    assert not read(lookup, errors).no_room
    process["limits"] = Limits(256, 256, 250)
    assert read(lookup, errors).no_room
    assert not is_no_descriptor(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))


# -- what the scheduler makes of it --------------------------------------------------------------

FULL = Failure("ConnectionFailed", "full", transient=True, sent=False, no_room=True)


def taken(scheduler: Scheduler, worker: int, now: float) -> Attempt:
    step = scheduler.take(worker, now)
    assert isinstance(step, Attempt), step
    return step


def test_an_attempt_without_room_uses_up_none_and_fewer_run() -> None:
    scheduler = Scheduler(range(4), max_workers=4, retry=Retry(attempts=1))
    first, second, third, fourth = (taken(scheduler, worker, 0.0) for worker in range(4))
    assert scheduler.settle(third, FULL, 0.0) is Decision.RETRY
    assert scheduler.settle(fourth, FULL, 0.0) is Decision.RETRY
    assert scheduler.take(2, 9.0) is WAIT  # two run, and no more may
    scheduler.settle(first, Success({}), 9.0)
    again = taken(scheduler, 0, 9.0)
    assert again.row == third.row
    scheduler.settle(second, Success({}), 9.0)  # both that might run did so: one more may
    scheduler.settle(again, Success({}), 9.0)
    assert scheduler.crowding.limit == 3
    assert scheduler.stopped is None


def test_a_row_without_room_fails_in_the_end() -> None:
    scheduler = Scheduler(range(1), max_workers=1, retry=Retry(max_elapsed=10))
    now, tries = 0.0, 0
    while True:
        tries += 1
        if scheduler.settle(taken(scheduler, 0, now), FULL, now) is Decision.FAIL:
            break
        step = scheduler.take(0, now)
        assert isinstance(step, float)
        now = step
    assert 9 <= now <= 10
    assert 10 < tries < 30
    assert scheduler.stopped is None


@given(most=st.integers(1, 50), steps=st.lists(st.none() | st.integers(0, 60), max_size=200))
def test_the_limit_falls_at_once_and_rises_slowly(most: int, steps: list[int | None]) -> None:
    crowding = Crowding(most)
    for others in steps:
        before = crowding.limit
        if others is None:
            crowding.succeeded()
            assert before <= crowding.limit <= before + 1
        else:
            assert 0 < crowding.crowded_out(others) <= 1.0
            assert crowding.limit == max(1, min(before, others))
        assert 1 <= crowding.limit <= most
    for _ in range(most * (most + 1)):
        crowding.succeeded()
    assert crowding.limit == most
