"""Runs that are stopped: by failures, time, a token. Each row is accounted for, whatever ran.

Time is virtual where it matters: a model's (``FakeModel``), a loop's (``VirtualClockLoop``), or
the thread engine's clock, which a row moves. What never ends waits for an event that the test
sets when it is over.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
from threads import join_workers

import revkit
from revkit import CancelToken, ParallelResult, Retry, RunCancelled, RunFailed, RunTimeout
from revkit.errors import ConnectionFailed, ModelError, ServerError
from revkit.runtime.engines.threads import ThreadEngine
from revkit.testing import FakeModel
from revkit.testing.clock import VirtualClockLoop

ENGINES = ["thread", "async"]
DOORS = ["parallel_map", "aparallel_map"]
ONCE = Retry(attempts=1)
AT_ONCE = Retry(initial=0, maximum=0)


def numbers(n: int = 6) -> pd.DataFrame:
    return pd.DataFrame({"n": range(n)})


def run(df: pd.DataFrame, task: Any, door: str = "parallel_map", **options: Any) -> ParallelResult:
    if door == "parallel_map":
        return df.llm.parallel_map(task, **options)
    return asyncio.run(df.llm.aparallel_map(task, **options))


def stopped(
    df: pd.DataFrame, task: Any, door: str = "parallel_map", kind: Any = RunFailed, **options: Any
) -> tuple[RunFailed, ParallelResult]:
    """Run what must be stopped; the result is whole, and in the frame."""
    with pytest.raises(RunFailed) as caught:
        run(df, task, door, **options)
    assert type(caught.value) is kind
    check_whole(caught.value.result, df)
    return caught.value, caught.value.result


def check_whole(result: ParallelResult, df: pd.DataFrame, *, heeded: bool = True) -> None:
    """``heeded``: every coroutine ended when it was cancelled."""
    assert revkit.last_result() is result
    rows, metrics = result.rows, result.metrics
    assert set(rows["status"]) <= {"ok", "error", "cancelled", "not_started"}
    counts = (metrics.succeeded, metrics.failed, metrics.cancelled, metrics.not_started)
    assert sum(counts) == metrics.total == len(df)
    ok = (rows["status"] == "ok").tolist()
    assert df["error"].isna().tolist() == rows["error"].isna().tolist() == ok
    if "response" in df.columns:
        assert df["response"].notna().tolist() == ok
    else:
        assert not any(ok)
    pd.testing.assert_frame_equal(result.frame, df)
    started = {"ok", "cancelled"} if heeded else {"ok"}
    assert all(rows["source"][rows["status"].isin(started)] == "model")
    assert all(rows["source"][rows["status"] == "not_started"] == "none")
    assert len(result.errors) == metrics.failed
    words = {"cancelled": "Cancelled: ", "not_started": "NotStarted: "}
    for status, error in zip(rows["status"], rows["error"], strict=True):
        if status in words:
            assert error.startswith(words[status])


def statuses(result: ParallelResult) -> list[str]:
    return result.rows["status"].tolist()


Rule = Callable[[int], Any]


def on_virtual_clock(
    door: str, rule: Rule, latency: Rule, n: int = 6, **options: Any
) -> tuple[pd.DataFrame, Callable[[], ParallelResult]]:
    """A run of ``rule(row)``, which takes ``latency(row)`` virtual seconds, at either door."""
    if door == "parallel_map":
        df = pd.DataFrame({"n": [str(i) for i in range(n)]})
        fake = FakeModel(
            lambda text: rule(int(text)), latency=lambda text: latency(int(text)), clock="virtual"
        )
        return df, lambda: df.llm.parallel_map("{n}", model=fake, **options)

    async def answer(row: Any) -> Any:
        found = None
        try:
            found = rule(row["n"])
        except Exception as error:  # noqa: BLE001 - raised when its time has passed
            found = error
        await asyncio.sleep(latency(row["n"]))
        if isinstance(found, BaseException):
            raise found
        return found

    df = numbers(n)

    def go() -> ParallelResult:
        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            return runner.run(df.llm.aparallel_map(answer, **options))

    return df, go


def stopped_on_virtual_clock(
    door: str, rule: Rule, latency: Rule, kind: Any = RunFailed, **options: Any
) -> tuple[RunFailed, ParallelResult]:
    df, go = on_virtual_clock(door, rule, latency, **options)
    with pytest.raises(RunFailed) as caught:
        go()
    assert type(caught.value) is kind
    check_whole(caught.value.result, df)
    return caught.value, caught.value.result


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What blocked functions wait for; set when the test is over, and their threads end."""
    event = threading.Event()
    yield event
    event.set()
    join_workers()


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Threads that never end are not waited for; coroutines end when they are cancelled."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is None or callspec.params.get("engine", "thread") == "thread":
        monkeypatch.setattr("revkit.runtime.lifecycle._GRACE", 0.0)


class Clock:
    """The thread engine's clock; a row moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ThreadEngine, "clock", staticmethod(clock))
    return clock


# -- fail_fast -----------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_fail_fast_cancels_what_runs(door: str) -> None:
    error, result = stopped_on_virtual_clock(
        door,
        lambda n: ModelError("no") if n == 1 else "yes",
        lambda n: [5.0, 1.0, 9.0, 1.0, 1.0, 1.0][n],
        fail_fast=True,
        max_workers=3,
    )
    assert statuses(result) == ["cancelled", "error", "cancelled"] + ["not_started"] * 3
    assert result.metrics.wall_s == pytest.approx(1.0)
    assert sorted(result.attempts["outcome"]) == ["cancelled", "cancelled", "failed"]
    assert str(error).startswith(
        "the run was stopped: a row failed, and fail_fast=True; of 6 rows 0 are done, 1 failed "
        "and 5 were not finished. The first was row 1: ModelError: no"
    )
    assert isinstance(error.__cause__, ModelError)
    assert result.rows["error"][0] == (
        "Cancelled: this row was running when the run was stopped: a row failed, and fail_fast=True"
    )


@pytest.mark.parametrize("door", DOORS)
def test_fail_fast_waits_for_the_last_try(door: str) -> None:
    """A row that is to be tried again has not failed yet."""
    left = [ConnectionFailed("first"), ConnectionFailed("second")]

    def rule(n: int) -> Any:
        return left.pop(0) if n == 0 and left else "yes"

    df, go = on_virtual_clock(
        door, rule, lambda n: 1.0, fail_fast=True, max_workers=2, retry=AT_ONCE
    )
    result = go()
    assert statuses(result) == ["ok"] * 6
    assert result.rows["attempts"].tolist() == [3, 1, 1, 1, 1, 1]
    check_whole(result, df)


@pytest.mark.parametrize("door", DOORS)
def test_fail_fast_abandons_threads_that_never_end(
    door: str, release: threading.Event, no_grace: None
) -> None:
    blocked = threading.Barrier(3)

    def task(row: Any) -> str:
        if row["n"] > 3:
            return "never reached"
        blocked.wait(30)  # three rows are running
        if row["n"] == 1:
            raise KeyError("no")
        release.wait(30)
        return "too late"

    df = numbers(9)
    _, result = stopped(df, task, door, fail_fast=True, max_workers=3)
    assert statuses(result) == ["cancelled", "error", "cancelled"] + ["not_started"] * 6
    before = df.copy()
    release.set()
    pd.testing.assert_frame_equal(df, before)


# -- max_failures --------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_max_failures_lets_what_runs_finish(door: str) -> None:
    """Their results count, good and bad ones."""
    error, result = stopped_on_virtual_clock(
        door,
        lambda n: ModelError(f"no {n}") if n in (1, 2) else "yes",
        lambda n: [5.0, 1.0, 7.0, 1.0, 1.0, 1.0][n],
        max_failures=0,
        max_workers=3,
    )
    assert statuses(result) == ["ok", "error", "error"] + ["not_started"] * 3
    assert result.metrics.wall_s == pytest.approx(7.0)
    lines = str(error).splitlines()
    assert lines[0] == (
        "the run was stopped: 1 row failed, more than max_failures allows (0); of 6 rows 1 is "
        "done, 2 failed and 3 were not finished. The first was row 1: ModelError: no 1"
    )
    assert lines[1] == "  1 x ModelError: no 2"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("limit", "done"), [(0, 1), (2, 3), (0.3, 4), (0.05, 1)])
def test_max_failures_counts_rows_or_is_a_share_of_all(
    engine: str, door: str, limit: float, done: int
) -> None:
    df = numbers(10)
    _, result = stopped(df, fails(engine, lambda n: True), door, max_failures=limit, max_workers=1)
    assert statuses(result) == ["error"] * done + ["not_started"] * (10 - done)


def fails(engine: str, which: Callable[[int], bool]) -> Any:
    def plain(row: Any) -> str:
        if which(row["n"]):
            raise ValueError(f"no {row['n'] % 3}")
        return "yes"

    async def awaited(row: Any) -> str:
        return plain(row)

    return plain if engine == "thread" else awaited


@pytest.mark.parametrize("engine", ENGINES)
def test_as_many_failures_as_are_allowed_stop_nothing(engine: str) -> None:
    result = run(numbers(), fails(engine, lambda n: n < 3), max_failures=3)
    assert statuses(result) == ["error"] * 3 + ["ok"] * 3
    result = run(numbers(), fails(engine, lambda n: n < 3), max_failures=0.5)
    assert result.metrics.failed == 3


def test_the_first_failure_stands_first_and_the_others_are_grouped() -> None:
    df = numbers(30)
    error, _ = stopped(df, fails("thread", lambda n: n > 3), max_failures=9, max_workers=1)
    lines = str(error).splitlines()
    assert "10 rows failed, more than max_failures allows (9)" in lines[0]
    assert lines[0].endswith("The first was row 4: ValueError: no 1")
    assert sorted(lines[1:4]) == [
        "  3 x ValueError: no 0",
        "  3 x ValueError: no 2",
        "  4 x the same",
    ]
    assert lines[4] == (
        "The partial result is in .result of this error, and in revkit.last_result()."
    )


@pytest.mark.parametrize("door", DOORS)
def test_the_first_failure_is_the_first_in_time(door: str) -> None:
    error, _ = stopped_on_virtual_clock(
        door,
        lambda n: ModelError(f"no {n}"),
        lambda n: [9.0, 5.0, 1.0][n],
        n=3,
        max_failures=1,
        max_workers=3,
    )
    assert "The first was row 2: ModelError: no 2" in str(error)


def test_a_limit_that_the_last_row_exceeds_is_told() -> None:
    df = numbers(3)
    error, result = stopped(df, fails("thread", lambda n: n == 2), fail_fast=True, max_workers=1)
    assert statuses(result) == ["ok", "ok", "error"]
    assert "and 0 were not finished" in str(error)


@pytest.mark.parametrize("door", DOORS)
def test_what_may_finish_is_cancelled_when_the_time_is_over(door: str) -> None:
    error, result = stopped_on_virtual_clock(
        door,
        lambda n: ModelError("no") if n == 0 else "yes",
        lambda n: [1.0, 4.0, 1000.0][n],
        n=3,
        max_failures=0,
        max_workers=3,
        timeout=10.0,
    )
    assert statuses(result) == ["error", "ok", "cancelled"]
    assert result.metrics.wall_s == pytest.approx(10.0)
    assert "max_failures allows (0)" in str(error)  # the first reason stands


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_may_finish_is_cancelled_by_a_token(
    engine: str, door: str, release: threading.Event, no_grace: None
) -> None:
    token = CancelToken()

    def progress(done: int, total: int, row: revkit.RowResult) -> None:
        token.cancel("enough")

    task = first_fails_others_block(engine, release)
    _, result = stopped(
        numbers(4), task, door, max_failures=0, max_workers=2, cancel=token, progress=progress
    )
    assert statuses(result) == ["error", "cancelled", "not_started", "not_started"]


def first_fails_others_block(engine: str, release: threading.Event) -> Any:
    """Row 0 fails once row 1 runs; row 1 never ends."""
    second_runs, second_awaited = threading.Event(), asyncio.Event()

    def plain(row: Any) -> str:
        if row["n"] == 0:
            second_runs.wait(30)
            raise ValueError("no")
        second_runs.set()
        release.wait(30)
        return "late"

    async def awaited(row: Any) -> str:
        if row["n"] == 0:
            await second_awaited.wait()
            raise ValueError("no")
        second_awaited.set()
        await asyncio.Event().wait()
        return "late"

    return plain if engine == "thread" else awaited


# -- missing inputs are failures -----------------------------------------------------------------


@pytest.mark.parametrize("missing", [[2], [0, 1, 2, 3]])
def test_a_missing_input_is_a_failure_before_anything_is_sent(missing: list[int]) -> None:
    df = pd.DataFrame({"n": ["a", "b", "c", "d"]})
    df.loc[missing, "n"] = None
    fake = FakeModel(lambda text: text)
    told: list[int] = []
    _, result = stopped(
        df,
        "{n}",
        model=fake,
        fail_fast=True,
        progress=lambda done, total, row: told.append(row.row),
    )
    assert fake.calls == []
    assert told == missing
    assert [i for i, s in enumerate(statuses(result)) if s == "error"] == missing
    assert result.metrics.not_started == 4 - len(missing)
    assert set(result.errors["error_type"]) == {"MissingInput"}


def test_a_missing_input_counts_among_the_failures() -> None:
    df = pd.DataFrame({"n": ["a", None, None, "d"]})
    fake = FakeModel(lambda text: text)
    assert run(df.copy(), "{n}", model=fake, max_failures=2).metrics.succeeded == 2
    _, result = stopped(df, "{n}", model=fake, max_failures=1)
    assert statuses(result) == ["not_started", "error", "error", "not_started"]
    assert len(fake.calls) == 2


# -- timeout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_timeout_cancels_what_runs(door: str) -> None:
    error, result = stopped_on_virtual_clock(
        door, lambda n: "yes", lambda n: 10.0, RunTimeout, timeout=25.0, max_workers=1
    )
    assert statuses(result) == ["ok", "ok", "cancelled"] + ["not_started"] * 3
    assert result.metrics.wall_s == pytest.approx(25.0)
    assert "timeout=25 s was over; of 6 rows 2 are done, 0 failed" in str(error)
    assert error.__cause__ is None
    assert result.rows["error"][5].endswith("before this row: timeout=25 s was over")


@pytest.mark.parametrize("door", DOORS)
def test_timeout_of_threads(
    door: str, clock: Clock, release: threading.Event, no_grace: None
) -> None:
    def task(row: Any) -> str:
        if row["n"] == 2:
            clock.now = 100.0
            release.wait(30)
        return "yes"

    df = numbers()
    _, result = stopped(df, task, door, RunTimeout, timeout=99.0, max_workers=1)
    assert statuses(result) == ["ok", "ok", "cancelled"] + ["not_started"] * 3


@pytest.mark.parametrize("door", DOORS)
def test_a_run_that_ends_in_time(door: str) -> None:
    df, go = on_virtual_clock(
        door,
        lambda n: ModelError("no") if n == 5 else "yes",
        lambda n: 10.0,
        timeout=60.001,
        max_workers=1,
    )
    result = go()
    assert statuses(result) == ["ok"] * 5 + ["error"]
    check_whole(result, df)


@pytest.mark.parametrize("door", DOORS)
def test_rows_that_wait_to_be_tried_again_keep_their_failure(door: str) -> None:
    busy = ServerError("busy", status=429, pause=50.0)
    _, result = stopped_on_virtual_clock(
        door,
        lambda n: busy if n == 0 else "yes",
        lambda n: 1.0 + n,
        RunTimeout,
        timeout=20.0,
        max_workers=2,
    )
    assert statuses(result) == ["error", "ok"] + ["not_started"] * 4
    assert result.rows["error"][0] == "ServerError: busy"
    assert result.attempts["outcome"].tolist() == ["retried", "ok"]
    assert result.rows["attempts"].tolist() == [1, 1, 0, 0, 0, 0]


# -- attempt_timeout -----------------------------------------------------------------------------


def test_an_attempt_that_overruns_is_tried_again() -> None:
    slow = [50.0, 50.0, 3.0]
    df, go = on_virtual_clock(
        "parallel_map",
        lambda n: "yes",
        lambda n: slow.pop(0) if n == 1 else 2.0,
        n=3,
        attempt_timeout=10.0,
        max_workers=1,
        retry=AT_ONCE,
    )
    result = go()
    check_whole(result, df)
    assert statuses(result) == ["ok"] * 3
    assert result.rows["attempts"].tolist() == [1, 3, 1]
    assert result.metrics.wall_s == pytest.approx(2 + 10 + 10 + 3 + 2)
    kinds = result.attempts["error_type"].dropna().tolist()
    assert kinds == ["AttemptTimeout", "AttemptTimeout"]
    assert result.attempts["service_ms"].max() == pytest.approx(10_000)


@pytest.mark.parametrize("door", DOORS)
def test_an_attempt_that_always_overruns_is_that_rows_error(door: str) -> None:
    df, go = on_virtual_clock(
        door,
        lambda n: "yes",
        lambda n: 50.0 if n == 1 else 2.0,
        n=3,
        attempt_timeout=10.0,
        max_workers=1,
        retry=Retry(attempts=2, initial=0, maximum=0),
    )
    result = go()
    check_whole(result, df)
    assert statuses(result) == ["ok", "error", "ok"]
    assert result.rows["attempts"].tolist() == [1, 2, 1]
    assert result.rows["error"][1] == (
        "AttemptTimeout: the attempt took longer than attempt_timeout=10 s"
    )


@pytest.mark.parametrize("door", DOORS)
def test_a_thread_that_overruns_is_abandoned_and_replaced(
    door: str, clock: Clock, release: threading.Event
) -> None:
    tried: list[int] = []
    abandoned: list[threading.Thread] = []

    def task(row: Any) -> str:
        tried.append(row["n"])
        if tried.count(1) == 1 and row["n"] == 1:
            abandoned.append(threading.current_thread())
            clock.now += 100.0
            release.wait(30)
            return "late"
        if row["n"] == 2:  # its late result comes while the run goes on
            release.set()
            abandoned[0].join(30)
            assert not abandoned[0].is_alive()
        return "in time"

    df = numbers(4)
    result = run(df, task, door, attempt_timeout=99.0, max_workers=1, retry=AT_ONCE)
    check_whole(result, df)
    assert statuses(result) == ["ok"] * 4
    assert tried == [0, 1, 1, 2, 3]
    assert result.rows["attempts"].tolist() == [1, 2, 1, 1]
    assert df["response"].tolist() == ["in time"] * 4  # the late result is ignored


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("workers", [1, 3])
def test_threads_are_replaced_at_most_as_often_as_there_are_workers(
    door: str, workers: int, clock: Clock, release: threading.Event, no_grace: None
) -> None:
    """Every row blocks for ever: the run ends all the same."""
    threads: set[int] = set()
    lock = threading.Lock()

    def task(row: Any) -> str:
        with lock:
            threads.add(threading.get_ident())
            if len(threads) % workers == 0:  # this wave is complete
                clock.now += 100.0
        release.wait(30)
        return "late"

    df = numbers(20)
    error, result = stopped(df, task, door, attempt_timeout=99.0, max_workers=workers, retry=ONCE)
    assert len(threads) == 2 * workers
    assert "overran attempt_timeout=99" in str(error)
    assert "no more are started" in str(error)
    assert result.metrics.failed >= workers + 1
    assert result.metrics.failed + result.metrics.cancelled == 2 * workers
    assert result.metrics.not_started == 20 - 2 * workers
    assert set(result.errors["error_type"]) == {"AttemptTimeout"}


def test_an_attempt_that_overruns_after_a_stop_is_not_tried_again() -> None:
    _, result = stopped_on_virtual_clock(
        "parallel_map",
        lambda n: ModelError("no") if n == 0 else "yes",
        lambda n: [1.0, 500.0][n],
        n=2,
        max_failures=0,
        max_workers=2,
        attempt_timeout=100.0,
    )
    assert statuses(result) == ["error", "error"]
    assert result.rows["attempts"].tolist() == [1, 1]


# -- CancelToken ---------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_token_cancelled_before_the_run_lets_nothing_start(engine: str, door: str) -> None:
    token = CancelToken()
    token.cancel("the user left")
    called: list[int] = []

    def plain(row: Any) -> int:
        called.append(row["n"])
        return 1

    async def awaited(row: Any) -> int:
        return plain(row)

    df = numbers(50)
    error, result = stopped(
        df, plain if engine == "thread" else awaited, door, RunCancelled, cancel=token
    )
    assert called == []
    assert statuses(result) == ["not_started"] * 50
    assert str(error).startswith(
        "the run was stopped: the user left; of 50 rows 0 are done, 0 failed and 50 were not"
    )


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("engine", ENGINES)
def test_once_cancel_has_returned_nothing_starts(engine: str, door: str) -> None:
    """Cancelled by a row itself: its own success is late, and kept."""
    token = CancelToken()

    def plain(row: Any) -> str:
        if row["n"] == 2:
            token.cancel()
        return "yes"

    async def awaited(row: Any) -> str:
        return plain(row)

    df = numbers()
    error, result = stopped(
        df,
        plain if engine == "thread" else awaited,
        door,
        RunCancelled,
        cancel=token,
        max_workers=1,
    )
    assert statuses(result) == ["ok"] * 3 + ["not_started"] * 3
    assert "its CancelToken was cancelled" in str(error)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("engine", ENGINES)
def test_cancel_from_another_thread(
    engine: str, door: str, release: threading.Event, no_grace: None
) -> None:
    token = CancelToken()
    entered = threading.Semaphore(0)

    def plain(row: Any) -> str:
        if row["n"] == 0:
            return "yes"
        entered.release()
        release.wait(30)
        return "late"

    async def awaited(row: Any) -> str:
        if row["n"] == 0:
            return "yes"
        entered.release()
        await asyncio.Event().wait()
        return "late"

    def other() -> None:
        for _ in range(3):
            entered.acquire()
        token.cancel("from outside")

    thread = threading.Thread(target=other)
    thread.start()
    df = numbers(9)
    _, result = stopped(
        df,
        plain if engine == "thread" else awaited,
        door,
        RunCancelled,
        cancel=token,
        max_workers=3,
    )
    thread.join()
    assert statuses(result) == ["ok"] + ["cancelled"] * 3 + ["not_started"] * 5
    assert result.rows["error"][1].endswith("when the run was stopped: from outside")


def test_a_token_ends_every_run_that_has_it() -> None:
    token = CancelToken()
    ended: list[type[BaseException]] = []

    waiting = threading.Barrier(3)

    async def task(row: Any) -> str:
        await asyncio.to_thread(waiting.wait, 30)
        await asyncio.Event().wait()
        return "never"

    def one() -> None:
        try:
            revkit.parallel_map([{"n": 1}], task, cancel=token)
        except RunFailed as error:
            ended.append(type(error))

    threads = [threading.Thread(target=one) for _ in range(2)]

    for thread in threads:
        thread.start()
    waiting.wait(30)
    token.cancel()
    for thread in threads:
        thread.join(30)
    assert ended == [RunCancelled, RunCancelled]


def test_a_token_keeps_nothing_of_a_finished_run() -> None:
    token = CancelToken()
    run(numbers(), fails("thread", lambda n: False), cancel=token)
    run(numbers(), fails("async", lambda n: False), "aparallel_map", cancel=token)
    assert token._callbacks == []
    token.cancel()
    assert token.wait(0)
    token.cancel("again")
    assert token.reason == "its CancelToken was cancelled"  # it is cancelled once


@pytest.mark.parametrize("door", DOORS)
def test_cancel_when_all_is_done_stops_nothing(door: str) -> None:
    token = CancelToken()

    def progress(done: int, total: int, row: revkit.RowResult) -> None:
        if done == total:
            token.cancel()

    result = run(numbers(), fails("async", lambda n: False), door, cancel=token, progress=progress)
    assert result.metrics.succeeded == 6


# -- late successes ------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("option", [{"fail_fast": True}, {"max_failures": 0}])
def test_a_success_of_a_thread_after_the_stop_is_kept(
    door: str, option: dict[str, Any], release: threading.Event
) -> None:
    """Row 1 ends only after the drain has been told of row 0, which stopped the run."""

    def progress(done: int, total: int, row: revkit.RowResult) -> None:
        release.set()

    df = numbers(4)
    task = first_fails_others_block("thread", release)
    _, result = stopped(df, task, door, max_workers=2, progress=progress, **option)
    assert statuses(result) == ["error", "ok", "not_started", "not_started"]
    assert df["response"].tolist()[1] == "late"


@pytest.mark.parametrize("door", DOORS)
def test_a_success_of_a_coroutine_that_was_cancelled_is_kept(door: str) -> None:
    second_runs = asyncio.Event()

    async def task(row: Any) -> str:
        if row["n"] == 0:
            await second_runs.wait()
            raise ValueError("no")
        second_runs.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return "saved"
        return "never"

    df = numbers(4)
    _, result = stopped(df, task, door, fail_fast=True, max_workers=2)
    assert statuses(result) == ["error", "ok", "not_started", "not_started"]
    assert df["response"].tolist()[1] == "saved"


def test_a_coroutine_that_cannot_be_cancelled_does_not_hold_up_the_end(no_grace: None) -> None:
    second_runs, over = asyncio.Event(), threading.Event()

    async def task(row: Any) -> str:
        if row["n"] == 0:
            await second_runs.wait()
            raise ValueError("no")
        second_runs.set()
        while not over.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue
        return "never"

    try:
        df = numbers(4)
        with pytest.raises(RunFailed) as caught:
            run(df, task, fail_fast=True, max_workers=2)
        check_whole(caught.value.result, df, heeded=False)
        assert statuses(caught.value.result)[:2] == ["error", "cancelled"]
    finally:
        over.set()


# -- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_progress_reaches_what_was_settled(door: str) -> None:
    told: list[tuple[int, int, revkit.RowResult]] = []
    _, result = stopped_on_virtual_clock(
        door,
        lambda n: ModelError("no") if n == 3 else "yes",
        lambda n: [1.0, 9.0, 2.0, 1.5, 1.0, 1.0][n],
        fail_fast=True,
        max_workers=2,
        progress=lambda done, total, row: told.append((done, total, row)),
    )
    assert statuses(result) == ["ok", "cancelled", "ok", "error", "not_started", "not_started"]
    assert [done for done, _, _ in told] == [1, 2, 3, 4]
    assert [(row.row, row.status) for _, _, row in told] == [
        (0, "ok"),
        (2, "ok"),
        (3, "error"),
        (1, "cancelled"),
    ]
    for _, total, row in told:
        assert total == 6
        assert (row.error is None) == row.ok
        if not row.ok:
            assert row.error == result.rows["error"][row.row]


# -- what is no stop -----------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_a_cancellation_of_the_functions_own_is_its_rows_error(door: str) -> None:
    async def task(row: Any) -> str:
        if row["n"] == 1:
            raise asyncio.CancelledError("my own")
        return "yes"

    df = numbers()
    result = run(df, task, door, max_workers=2)
    check_whole(result, df)
    assert statuses(result) == ["ok", "error"] + ["ok"] * 4
    assert result.rows["error"][1] == "CancelledError: my own"


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_frame_is_stopped_by_nothing(engine: str) -> None:
    token = CancelToken()
    result = run(
        numbers(0),
        fails(engine, lambda n: True),
        fail_fast=True,
        timeout=1e-9,
        attempt_timeout=1e-9,
        cancel=token,
    )
    assert result.metrics.total == 0


@pytest.mark.parametrize("limit", [{"max_failures": 3}, {"fail_fast": True}])
def test_rows_that_may_yet_fail_hold_back_others(limit: dict[str, Any]) -> None:
    """Else most rows of a server that is down would have failed before the run stops."""
    model = FakeModel(lambda text: revkit.ConnectionFailed("down"), latency=0.1, clock="virtual")
    df = pd.DataFrame({"review": [f"review {i}" for i in range(500)]})
    with pytest.raises(RunFailed) as stopped:
        df.llm.parallel_map(model=model, max_workers=8, **limit)
    metrics = stopped.value.result.metrics
    assert metrics.failed + metrics.cancelled <= 3 + 8
    assert metrics.not_started >= 500 - 3 - 8


def test_what_a_token_stopped_can_be_tried_again() -> None:
    token = revkit.CancelToken()
    df = pd.DataFrame({"n": range(5)})

    def cancels(row: Any) -> int:
        if row["n"] == 2:
            token.cancel()
        return int(row["n"])

    with pytest.raises(revkit.RunCancelled) as stopped:
        df.llm.parallel_map(cancels, cancel=token, max_workers=1)
    assert "stopped: its CancelToken was cancelled" in stopped.value.result.report()
    assert stopped.value.result.retry_failed().metrics.succeeded == 5
