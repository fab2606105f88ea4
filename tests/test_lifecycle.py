"""Three stops against three obstacles, through both doors: what is done stays, nothing hangs.

An obstacle is released only when the call has returned, so a run that waits for it hangs. Only the
caller's own loop is exempt: a coroutine that blocks that one is released when the stop has come.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest

import revkit
from revkit.api.prepare import prepare
from revkit.runtime.engines import Ended
from revkit.runtime.lifecycle import Call, Run, Wait
from revkit.runtime.options import RunOptions
from revkit.scheduling.events import Stop as RunStop
from revkit.scheduling.events import StopKind, Success
from revkit.testing import FakeModel

Stop = Literal["timeout", "cancel", "interrupt"]
Door = Literal["parallel_map", "aparallel_map"]

STOPS: tuple[Stop, ...] = ("timeout", "cancel", "interrupt")
DOORS: tuple[Door, ...] = ("parallel_map", "aparallel_map")
#: Row 0 is done before anything stands in the way.
ROWS = 6

LOCKER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
db.execute("ROLLBACK")
"""


class Scene:
    """A frame, and what stands in the way of its rows from the second one on."""

    def __init__(self, stop: Stop, door: Door) -> None:
        self.stop, self.door = stop, door
        self.frame = pd.DataFrame({"n": range(ROWS)})
        self.token = revkit.CancelToken()
        #: the call has returned, or what it may wait for has happened
        self.released = threading.Event()
        self.stopping = threading.Event()
        self._task: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def obstructed(self) -> None:
        """Called when the obstacle is there: the stop comes now."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        if self.stop == "cancel":
            self.token.cancel("enough")
        elif self.stop == "interrupt" and self.door == "parallel_map":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        elif self.stop == "interrupt":
            assert self._loop is not None
            assert self._task is not None
            self._loop.call_soon_threadsafe(self._task.cancel)

    def call(self, task: Any, **options: Any) -> BaseException:
        """The error that the run ends with."""
        if self.stop == "timeout":
            options["timeout"] = 1.0
        if self.stop == "cancel":
            options["cancel"] = self.token
        try:
            if self.door == "parallel_map":
                self.frame.llm.parallel_map(task, max_workers=2, **options)
            else:
                asyncio.run(self._awaited(task, options))
        except BaseException as error:  # noqa: BLE001 - it is the result
            return error
        finally:
            self.released.set()
        raise AssertionError("the stop became a success")

    async def _awaited(self, task: Any, options: dict[str, Any]) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        await self.frame.llm.aparallel_map(task, max_workers=2, **options)

    def check(self, error: BaseException) -> revkit.ParallelResult:
        """The right error, with a result in which each row is accounted for."""
        kinds: dict[tuple[Stop, Door], type[BaseException]] = {
            ("timeout", "parallel_map"): revkit.RunTimeout,
            ("timeout", "aparallel_map"): revkit.RunTimeout,
            ("cancel", "parallel_map"): revkit.RunCancelled,
            ("cancel", "aparallel_map"): revkit.RunCancelled,
            ("interrupt", "parallel_map"): revkit.Interrupted,
            ("interrupt", "aparallel_map"): asyncio.CancelledError,
        }
        assert type(error) is kinds[self.stop, self.door], repr(error)
        result = revkit.last_result()
        assert result is not None
        assert getattr(error, "result", result) is result
        status = result.rows["status"].tolist()
        assert status[0] == "ok"
        assert set(status[1:]) <= {"ok", "cancelled", "not_started"}
        assert {"cancelled", "not_started"} & set(status)
        assert result.rows["error"].isna().tolist() == [one == "ok" for one in status]
        assert self.frame["error"].isna().tolist() == [one == "ok" for one in status]
        return result


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revkit.runtime.lifecycle._GRACE", 0.1)
    monkeypatch.setattr("revkit.runtime.engines.beside._ANSWERS_WITHIN", 0.2)
    monkeypatch.setattr("revkit.store.file._PATIENCE", 0.2)


@pytest.fixture
def scene(stop: Stop, door: Door) -> Iterator[Scene]:
    made = Scene(stop, door)
    yield made
    made.released.set()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("stop", STOPS)
def test_a_thread_that_blocks(scene: Scene) -> None:
    def block(row: Any) -> int:
        if row["n"]:
            scene.obstructed()
            assert scene.released.wait(60)
        return int(row["n"])

    result = scene.check(scene.call(block))
    assert "cancelled" in result.rows["status"].tolist()  # at least the one that began
    assert scene.frame["response"].tolist()[0] == 0


@pytest.mark.parametrize("door", ["parallel_map"])
@pytest.mark.parametrize("stop", STOPS)
def test_a_coroutine_that_blocks_revkits_loop(scene: Scene) -> None:
    async def block(row: Any) -> int:
        if row["n"]:
            scene.obstructed()
            assert scene.released.wait(60)  # not awaited: nothing else runs on the loop
        return int(row["n"])

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        error = scene.call(block)
    result = scene.check(error)
    said = str(warned[0].message) if scene.stop == "interrupt" else str(error)
    assert "the coroutine of row 1 blocks revkit's event loop" in said
    assert result.rows["status"].tolist()[:2] == ["ok", "cancelled"]
    # The next run gets another loop, and need not wait for the blocked one.
    other = pd.DataFrame({"n": [1, 2]})
    scene.released.clear()

    async def double(row: Any) -> int:
        await asyncio.sleep(0)
        return 2 * int(row["n"])

    assert other.llm.parallel_map(double).frame["response"].tolist() == [2, 4]


@pytest.mark.parametrize("door", ["aparallel_map"])
@pytest.mark.parametrize("stop", STOPS)
def test_a_coroutine_that_blocks_the_callers_loop(scene: Scene) -> None:
    """Nothing can end that but the coroutine; yet the stop is no success."""
    timer = threading.Timer(1.5, scene.released.set)
    timer.start()

    async def block(row: Any) -> int:
        if row["n"]:
            scene.obstructed()
            assert scene.released.wait(60)
            await asyncio.sleep(0.01)
        return int(row["n"])

    scene.check(scene.call(block))
    timer.cancel()


@pytest.mark.parametrize("engine", ["async", "thread"])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("stop", STOPS)
def test_a_store_that_another_process_locks(scene: Scene, engine: str, tmp_path: Path) -> None:
    """The lock is never given back while the run goes on."""
    place = tmp_path / "replies.sqlite"
    lockers: list[subprocess.Popen[str]] = []
    one_at_a_time = threading.Lock()

    def answer(prompt: str) -> str:
        if prompt.endswith("0"):
            return "zero"
        with one_at_a_time:
            if not lockers:
                lockers.append(_lock(place))
                scene.obstructed()
        return "one"

    class Model(FakeModel):
        engines = (engine,)

    scene.frame.iloc[:1].llm.parallel_map(
        "Number {n}", model=Model(answer), store=place, output="word"
    )
    try:
        # The reply to row 1 cannot be committed; the others never come.
        model = Model(answer, latency=lambda prompt: 0.0 if prompt[-1] in "01" else 600.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that replies could not be kept, if there were some
            error = scene.call("Number {n}", model=model, store=place, output="word")
    finally:
        for locker in lockers:
            locker.communicate("\n", timeout=60)
    scene.check(error)


def _lock(place: Path) -> subprocess.Popen[str]:
    locker = subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert locker.stdout is not None
    assert locker.stdout.readline() == "locked\n"
    return locker


@pytest.mark.parametrize("answers_again", [False, True])
def test_another_run_on_the_abandoned_loop_is_told_why(answers_again: bool) -> None:
    waits, blocked = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    async def wait(row: Any) -> int:
        if row["n"]:
            waits.set()
            await asyncio.Event().wait()
        return int(row["n"])

    token = revkit.CancelToken()

    async def block(row: Any) -> int:
        token.cancel("enough")
        assert blocked.wait(60)
        return 0

    def other() -> None:
        try:
            pd.DataFrame({"n": [0, 1]}).llm.parallel_map(wait)
        except revkit.RunFailed as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    assert waits.wait(60)
    try:
        with pytest.raises(revkit.RunCancelled, match="the coroutine of row 0 blocks"):
            pd.DataFrame({"n": [0]}).llm.parallel_map(block, cancel=token)
        if answers_again:  # the loop ends its tasks, which the other run may see first
            blocked.set()
        thread.join(60)
        (error,) = errors
        assert re.search("another run or task block(s|ed) revkit's event loop", str(error))
        assert isinstance(error, revkit.RunFailed)
        assert error.result.rows["status"].tolist() == ["ok", "cancelled"]
    finally:
        blocked.set()


def test_attempt_timeout_sees_a_blocked_loop() -> None:
    blocked = threading.Event()

    async def block(row: Any) -> int:
        if row["n"] == 1:
            assert blocked.wait(60)
        return int(row["n"])

    frame = pd.DataFrame({"n": range(4)})
    try:
        with pytest.raises(revkit.RunFailed, match=r"attempt_timeout=0\.1.*coroutine of row 1"):
            frame.llm.parallel_map(block, attempt_timeout=0.1, max_workers=1)
    finally:
        blocked.set()
    assert frame["response"].tolist()[0] == 0


def test_a_rerun_names_the_row_that_blocks_by_its_place_in_the_frame() -> None:
    blocked, token = threading.Event(), revkit.CancelToken()
    failing = True

    async def block(row: Any) -> int:
        if row["n"] == 7 and not failing:
            token.cancel("enough")
            assert blocked.wait(60)
        if row["n"] in (5, 7) and failing:
            raise ValueError("not yet")
        return int(row["n"])

    frame = pd.DataFrame({"n": range(10)})
    run = frame.llm.parallel_map(block, cancel=token, max_workers=1)
    failing = False
    try:
        with pytest.raises(revkit.RunCancelled, match="the coroutine of row 7 blocks"):
            run.retry_failed()
    finally:
        blocked.set()


def test_a_cancel_while_observers_are_closed_is_not_lost() -> None:
    complete, release = threading.Event(), threading.Event()

    class Slow:
        def on_event(self, event: revkit.Event) -> None:
            if event.type == "parallel.complete":
                complete.set()
                assert release.wait(60)

    async def same(row: Any) -> int:
        return int(row["n"])

    async def main() -> None:
        frame = pd.DataFrame({"n": [1, 2]})
        task = asyncio.create_task(frame.llm.aparallel_map(same, observer=Slow()))
        await asyncio.to_thread(complete.wait, 60)
        task.cancel()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the observer was not through
            await task

    try:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(main())
    finally:
        release.set()
    result = revkit.last_result()
    assert result is not None
    assert result.metrics.succeeded == 2


def test_a_run_ends_when_the_last_of_its_instances_is_lost() -> None:
    release = threading.Event()

    def block(row: Any, context: revkit.Context) -> int:
        assert release.wait(60)
        return 0

    try:
        with pytest.raises(revkit.RunFailed, match="AttemptTimeout"):
            pd.DataFrame({"n": [0]}).llm.parallel_map(
                block, instances=[object()], attempt_timeout=0.1, retry=revkit.Retry(attempts=1)
            )
    finally:
        release.set()


def test_a_loop_that_was_abandoned_ends_when_it_can() -> None:
    blocked = threading.Event()
    seen: list[tuple[threading.Thread, asyncio.AbstractEventLoop]] = []
    token = revkit.CancelToken()

    async def block(row: Any) -> int:
        seen.append((threading.current_thread(), asyncio.get_running_loop()))
        token.cancel("enough")
        assert blocked.wait(60)
        return 0

    with pytest.raises(revkit.RunCancelled):
        pd.DataFrame({"n": [0]}).llm.parallel_map(block, cancel=token)
    ((thread, loop),) = seen
    blocked.set()
    thread.join(60)
    assert not thread.is_alive()
    assert loop.is_closed()


# -- the lifecycle alone, on a virtual clock -----------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Interrupts:
    error: BaseException | None = None
    again = False

    def hold(self) -> None: ...


class Engine:
    """Does nothing of its own accord, and writes down what it is told."""

    def __init__(self, run: Run, clock: Clock, log: list[str]) -> None:
        self.run, self.clock, self.log = run, clock, log

    def start(self) -> float:
        self.log.append("start")
        return self.clock()

    def stop(self, stop: Any) -> None:
        assert self.run.scheduler.stopped is not None  # it knows of the stop before the engine
        self.log.append(f"stop {stop.kind.value}")

    def apply(self, change: Any) -> None:
        change()

    def tick(self) -> None: ...

    def give_up(self) -> str | None:
        self.log.append("give up")
        return "a thing was left"

    def close(self) -> None:
        self.log.append("close")


def lifecycle(**options: Any) -> tuple[Run, Clock, Interrupts, list[str]]:
    """A run of three rows on an engine that nothing is heard of."""
    log: list[str] = []
    clock, interrupts = Clock(), Interrupts()
    frame = pd.DataFrame({"n": [1, 2, 3]})
    wiring = prepare(frame, lambda row: row["n"], RunOptions().replace(**options)).wiring()
    engine = lambda run: Engine(run, clock, log)  # noqa: E731
    run = Run(wiring, lambda: None, interrupts, engine, now=clock)
    return run, clock, interrupts, log


def steps(run: Run, clock: Clock, *, until: float) -> Iterator[Wait]:
    """Each wait of the run, as long as the clock is before ``until``; calls are made at once."""
    while clock.now < until and (step := run.advance()) is not None:
        if isinstance(step, Call):
            step.function()
            continue
        yield step
        clock.now += step.seconds


def test_a_timeout_gives_an_engine_its_grace_and_then_ends_without_it() -> None:
    run, clock, _, log = lifecycle(timeout=5.0)
    for _step in steps(run, clock, until=104.9):
        assert log == ["start"]
    for _step in steps(run, clock, until=200):
        pass
    assert run.is_over
    assert log == ["start", "stop timeout", "give up", "close"]
    assert 105.0 <= clock.now < 105.0 + 0.1 + 0.2 + 0.2  # a tick, the grace, and a tick
    stopped = run.record.stopped
    assert stopped is not None
    assert stopped.reason == "timeout=5 s was over; a thing was left"
    assert [status.value for status in run.record.status] == ["not_started"] * 3


def test_an_engine_that_ends_in_its_grace_is_not_given_up() -> None:
    run, clock, interrupts, log = lifecycle()
    for number, _step in enumerate(steps(run, clock, until=200)):
        if number == 3:
            interrupts.error = KeyboardInterrupt()
        if log[-1] == "stop interrupted":
            run.drain.emit(Ended(None, clock.now))
    assert log == ["start", "stop interrupted", "close"]
    assert isinstance(run.record.ended_by, KeyboardInterrupt)


def test_a_second_interrupt_ends_the_run_at_once() -> None:
    run, clock, interrupts, log = lifecycle()
    for number, _step in enumerate(steps(run, clock, until=200)):
        interrupts.error = KeyboardInterrupt()
        interrupts.again = number > 0
    assert log == ["start", "stop interrupted", "give up", "close"]
    assert clock.now < 100.5


def test_a_budget_stop_waits_for_the_attempts_that_run() -> None:
    run, clock, _, log = lifecycle()
    attempt = None
    for number, _step in enumerate(steps(run, clock, until=200)):
        if number == 0:
            attempt = run.scheduler.take(0, clock.now)
            run.scheduler.stop(RunStop(StopKind.BUDGET, "no room", cancels=False))
        if number == 500:  # long after any grace
            assert log == ["start"]
            run.drain.emit(run.scheduler.account(attempt, 100.0, Success({"response": 1}), 150.0))
            run.drain.emit(Ended(None, 150.0))
    assert log == ["start", "close"]
    assert [status.value for status in run.record.status] == ["ok", "not_started", "not_started"]


def test_what_a_step_raises_ends_the_run_and_keeps_its_record() -> None:
    run, clock, _, log = lifecycle()
    for number, _step in enumerate(steps(run, clock, until=200)):
        if number == 2:
            run.advance(KeyboardInterrupt())
    assert log == ["start", "stop interrupted", "give up", "close"]
    assert isinstance(run.record.ended_by, KeyboardInterrupt)
    assert run.is_over
