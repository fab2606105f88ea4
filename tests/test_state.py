"""What each worker works with: made once, used by no other, closed where it was used."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from test_stops import Clock, clock, no_grace, release

import revkit
from revkit import Context, RunFailed, UsageError

__all__ = ["clock", "no_grace", "release"]  # fixtures

ENGINES = ["thread", "async"]
#: Seconds after which a test that waits for others has failed.
LONG = 30


class State:
    """Knows who uses it, and when it is used by two at once."""

    def __init__(self, worker: int):
        self.worker = worker
        self.rows: list[int] = []
        self.closed = 0
        self._in_use = threading.Lock()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        assert self._in_use.acquire(blocking=False), "used by two at once"
        yield
        self._in_use.release()

    def close(self) -> None:
        self.closed += 1


def of(engine: str, function: Callable[[Any, Context], Any]) -> Any:
    """The function, for that engine; on the loop it lets others run first."""

    def plain(row: Any, context: Context) -> Any:
        return function(row, context)

    async def awaited(row: Any, context: Context) -> Any:
        await asyncio.sleep(0)
        return function(row, context)

    return plain if engine == "thread" else awaited


@pytest.mark.parametrize("engine", ENGINES)
def test_each_worker_has_a_state_of_its_own(engine: str) -> None:
    made: list[State] = []
    all_at_work = threading.Barrier(3)

    def factory(worker: int) -> State:
        made.append(State(worker))
        return made[-1]

    def task(row: int, context: Context) -> int:
        with context.state.used():
            context.state.rows.append(row)
            if engine == "thread" and len(context.state.rows) == 1:
                all_at_work.wait(LONG)  # no worker does all the work
            assert context.state.closed == 0
            assert context.state.worker == context.worker
        return len(context.state.rows)

    run = revkit.parallel_map(range(30), of(engine, task), factory=factory, max_workers=3)
    assert run.metrics.succeeded == 30
    assert sorted(state.worker for state in made) == [0, 1, 2]
    assert sorted(row for state in made for row in state.rows) == list(range(30))
    assert [state.closed for state in made] == [1, 1, 1]


def test_a_state_is_made_used_and_closed_on_one_thread() -> None:
    """An SQLite connection refuses all other threads, and ResourceWarning tells of an open one."""

    def task(n: int, context: Context) -> int:
        return int(context.state.execute("select ? + 1", (n,)).fetchone()[0])

    run = revkit.parallel_map(
        range(20), task, factory=lambda worker: sqlite3.connect(":memory:"), max_workers=4
    )
    assert run.frame["response"].tolist() == list(range(1, 21))
    gc.collect()


def test_states_of_tasks_may_be_made_and_closed_by_coroutines() -> None:
    told: list[str] = []

    class Session:
        async def close(self) -> None:
            await asyncio.sleep(0)
            told.append("closed")

    class Stream(Session):
        async def aclose(self) -> None:
            told.append("aclosed")

    async def factory(worker: int) -> Any:
        await asyncio.sleep(0)
        return Session() if worker == 0 else Stream()

    async def task(n: int, context: Context) -> str:
        await asyncio.sleep(0)
        return type(context.state).__name__

    run = revkit.parallel_map([1, 2], task, factory=factory, max_workers=2)
    assert sorted(run.frame["response"]) == ["Session", "Stream"]
    assert sorted(told) == ["aclosed", "closed"]

    async def main() -> Any:
        return await revkit.aparallel_map([1, 2], task, factory=factory, max_workers=2)

    assert asyncio.run(main()).metrics.succeeded == 2
    assert len(told) == 4


@pytest.mark.parametrize("engine", ENGINES)
def test_a_context_manager_is_entered_and_left(engine: str) -> None:
    told: list[str] = []

    @contextlib.contextmanager
    def plain(worker: int) -> Iterator[str]:
        told.append("entered")
        yield f"state {worker}"
        told.append("left")

    @contextlib.asynccontextmanager
    async def awaited(worker: int) -> AsyncIterator[str]:
        told.append("entered")
        yield f"state {worker}"
        told.append("left")

    for factory in [plain] if engine == "thread" else [plain, awaited]:
        told.clear()
        run = revkit.parallel_map(
            [1, 2], of(engine, lambda n, context: context.state), factory=factory, max_workers=1
        )
        assert run.frame["response"].tolist() == ["state 0"] * 2
        assert told == ["entered", "left"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_factory_that_fails_ends_the_run_and_says_so(engine: str) -> None:
    def factory(worker: int) -> Any:
        raise FileNotFoundError("vocabulary.txt")

    asked: list[int] = []
    with pytest.raises(RunFailed, match="every other row would fail") as raised:
        revkit.parallel_map(
            range(5),
            of(engine, lambda n, context: asked.append(n)),
            factory=factory,
            max_workers=1,
        )
    assert "FactoryFailed: factory(0) raised FileNotFoundError: vocabulary.txt" in str(raised.value)
    rows = raised.value.result.rows
    assert rows["status"].tolist() == ["error"] + ["not_started"] * 4
    assert rows["error_type"].tolist()[0] == "FactoryFailed"
    assert isinstance(raised.value.__cause__, revkit.FactoryFailed)
    assert asked == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_factory_or_a_close_that_exits_ends_no_process(engine: str) -> None:
    def leave(worker: int) -> Any:
        raise SystemExit(3)

    class Leaves:
        def close(self) -> None:
            raise SystemExit(5)

    task = of(engine, lambda n, context: n)
    with pytest.raises(RunFailed, match="FactoryFailed: factory"):
        revkit.parallel_map(range(5), task, factory=leave, max_workers=1)
    with pytest.warns(UserWarning, match="could not be closed: SystemExit"):
        run = revkit.parallel_map([1, 2], task, factory=lambda _: Leaves(), max_workers=1)
    assert run.metrics.succeeded == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_factory_that_gives_two_workers_one_object_is_refused(engine: str) -> None:
    shared = State(0)
    both = threading.Barrier(2)
    entered: list[int] = []

    def task(row: int, context: Context) -> int:
        entered.append(row)
        return row

    def factory(worker: int) -> State:
        if engine == "thread":
            both.wait(LONG)  # both workers have asked for theirs
        return shared

    with pytest.raises(RunFailed, match="an object that another worker has") as raised:
        revkit.parallel_map(range(50), of(engine, task), factory=factory, max_workers=2)
    assert "FactoryFailed" in str(raised.value)
    run = revkit.parallel_map([1, 2], of(engine, task), factory=lambda _: "plain", max_workers=2)
    assert run.metrics.succeeded == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_that_cannot_be_closed_costs_nothing_but_a_warning(engine: str) -> None:
    class Broken:
        def close(self) -> None:
            raise OSError("disk gone")

    with pytest.warns(UserWarning, match="worker 0 could not be closed: OSError: disk gone"):
        run = revkit.parallel_map(
            [1, 2], of(engine, lambda n, context: n), factory=lambda _: Broken(), max_workers=1
        )
    assert run.frame["response"].tolist() == [1, 2]


@pytest.mark.parametrize("engine", ENGINES)
def test_there_are_as_many_workers_as_instances_and_they_stay_open(engine: str) -> None:
    states = [State(number) for number in range(3)]
    all_at_work = threading.Barrier(3)

    def task(row: int, context: Context) -> int:
        with context.state.used():
            context.state.rows.append(row)
            if engine == "thread" and len(context.state.rows) == 1:
                all_at_work.wait(LONG)
        return int(context.state.worker)

    run = revkit.parallel_map(range(30), of(engine, task), instances=states)
    assert run.metrics.workers == 3
    assert sorted(row for state in states for row in state.rows) == list(range(30))
    assert [state.closed for state in states] == [0, 0, 0]
    again = revkit.parallel_map(range(3), of(engine, lambda n, context: n), instances=states)
    assert again.metrics.succeeded == 3


def test_the_state_of_an_abandoned_attempt_is_not_used_again(
    clock: Clock, release: threading.Event
) -> None:
    made: list[State] = []

    def factory(worker: int) -> State:
        made.append(State(worker))
        return made[-1]

    def task(row: int, context: Context) -> int:
        if row == 1 and context.attempt == 1:
            clock.now += 100.0
            release.wait(LONG)
        context.state.rows.append(row)
        return row

    run = revkit.parallel_map(
        range(4),
        task,
        factory=factory,
        max_workers=1,
        attempt_timeout=99.0,
        retry=revkit.Retry(initial=0.0, maximum=0.0),
    )
    assert run.metrics.succeeded == 4
    assert [state.rows for state in made] == [[0], [1, 2, 3]]
    assert [state.closed for state in made] == [0, 1]  # the first one is still in use
    release.set()


def test_an_abandoned_instance_takes_its_worker_with_it(
    clock: Clock, release: threading.Event, no_grace: None
) -> None:
    states = [State(0), State(1)]
    others = threading.Event()

    def task(row: int, context: Context) -> int:
        if row == 0:
            assert others.wait(LONG)
            clock.now += 100.0
            release.wait(LONG)
        context.state.rows.append(row)
        return row

    run = revkit.parallel_map(
        range(5),
        task,
        instances=states,
        attempt_timeout=99.0,
        retry=revkit.Retry(attempts=1),
        progress=lambda done, total, row: others.set() if done == 4 else None,
    )
    assert run.rows["error_type"].tolist()[0] == "AttemptTimeout"
    assert run.metrics.succeeded == 4
    assert sorted(state.rows for state in states) == [[], [1, 2, 3, 4]]


def test_where_every_instance_is_lost_the_run_stops(
    clock: Clock, release: threading.Event, no_grace: None
) -> None:
    def task(row: int, context: Context) -> int:
        clock.now += 100.0
        release.wait(LONG)
        return row

    with pytest.raises(RunFailed, match="no worker is left") as raised:
        revkit.parallel_map(range(5), task, instances=[State(0)], attempt_timeout=99.0)
    assert raised.value.result.metrics.not_started == 4


@pytest.mark.parametrize("engine", ENGINES)
def test_a_function_is_told_that_the_run_is_cancelled(engine: str) -> None:
    told: list[str] = []

    def plain(row: int, context: Context) -> int:
        if row == 1:
            raise KeyError("no")
        assert context.cancel.wait(LONG)
        told.append(context.cancel.reason)
        return row

    async def awaited(row: int, context: Context) -> int:
        if row == 1:
            raise KeyError("no")
        try:
            await asyncio.sleep(LONG)
        finally:
            assert context.cancel.cancelled
            told.append(context.cancel.reason)
        return row

    task = plain if engine == "thread" else awaited
    with pytest.raises(RunFailed):
        revkit.parallel_map([0, 1], task, max_workers=2, fail_fast=True)
    assert told == ["a row failed, and fail_fast=True"]


def test_a_retry_tells_the_callers_number_of_the_row() -> None:
    broken = {2, 4}

    def task(n: int, context: Context) -> int:
        if n in broken:
            raise ValueError("not yet")
        return context.row

    run = revkit.parallel_map(range(5), task)
    broken.clear()
    assert run.retry_failed().frame["response"].tolist() == [0, 1, 2, 3, 4]


def plain(row: Any, context: Context) -> Any:
    return context.state


async def awaited(row: Any, context: Context) -> Any:
    return context.state


async def make(worker: int) -> int:
    return worker


ONE = State(0)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        (len, {"factory": State}, "would never see"),
        ("Say {item}", {"factory": State}, "has none. Write a function"),
        (plain, {"factory": State, "instances": [ONE]}, "not both"),
        (plain, {"factory": 3}, "give a function that makes a state"),
        (plain, {"factory": make}, "is a coroutine function, and plain runs in threads"),
        (plain, {"instances": []}, "takes a list of states"),
        (plain, {"instances": "ab"}, "takes a list of states"),
        (plain, {"instances": [ONE, ONE]}, "the same object twice"),
        (plain, {"instances": [ONE], "max_workers": 2}, "as many workers as instances"),
        (awaited, {"instances": [ONE], "max_workers": "adaptive"}, "as many workers as instances"),
    ],
)
def test_what_is_refused(task: Any, options: dict[str, Any], words: str) -> None:
    from revkit.testing import FakeModel

    if isinstance(task, str):
        options = {**options, "model": FakeModel(["x"])}
    with pytest.raises(UsageError, match=words):
        revkit.parallel_map(["a", "b", "c"], task, **options)
