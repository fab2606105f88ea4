"""Runs as a whole: both engines, failures, figures, interrupts. Nothing here waits for a clock."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pandas as pd
import pydantic
import pytest
from threads import join_workers

import revkit
from revkit import BadOutput, Interrupted, RunFailed, Signature, UsageError
from revkit.errors import (
    AccessDenied,
    ConnectionFailed,
    FactoryFailed,
    ModelError,
    ModelMissing,
    QuotaUsedUp,
    ServerError,
)
from revkit.runtime.engines import beside
from revkit.runtime.plan import available_cpus
from revkit.scheduling.policy import worker_count
from revkit.testing import FakeModel

NUMBER = Signature("Count.", inputs="review", outputs={"n": int})
ENGINES = ["thread", "async"]
SOON = revkit.Retry(initial=0.001)


def reviews(n: int = 3) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"r{i}" for i in range(n)]})


def run_with(engine: str, function: Any, n: int = 3, **options: Any) -> Any:
    """Run a plain function of a row number on either engine."""
    df = pd.DataFrame({"n": range(n)})
    if engine == "thread":
        return df.llm.parallel_map(lambda row: function(row["n"]), **options)

    async def awaited(row: Any) -> Any:
        return function(row["n"])

    return df.llm.parallel_map(awaited, **options)


# -- both engines --------------------------------------------------------------------------------


def scenario(text: str) -> Any:
    """Good ones, faults, and replies that do not fit, one after the other."""
    row = int(text[1:]) if text.startswith("r") else None
    if row is None:
        return {"n": -1} if "bad 2" in text or "not 7" in text else "still bad"
    # A conflict is retried, and is a sign of life: whether the server is away, time would decide.
    conflict = ServerError("conflict", status=409)
    return [{"n": row}, conflict, "bad 2", {"n": "seven"}, KeyError("k")][row % 5]


def test_engines_agree() -> None:
    frames, attempts, usages, calls = [], [], [], []
    for engine in ENGINES:
        fake = FakeModel(scenario)
        df = reviews(23)
        df.loc[4, "review"] = None
        run = df.llm.parallel_map(NUMBER, model=fake, engine=engine, max_workers=4, retry=SOON)
        assert run.metrics.engine == engine
        frames.append(df)
        timeline = run.attempts.sort_values(["row", "attempt"], ignore_index=True)
        assert (timeline["end_s"] >= timeline["start_s"]).all()
        assert set(timeline["worker"]) <= set(range(4))
        attempts.append(timeline[["row", "attempt", "outcome", "error_type", "error"]])
        rows = run.rows[["n", "status", "source", "attempts", "text", "finish_reason", "error"]]
        attempts.append(rows)
        usages.append(run.usage)
        calls.append(sorted(str(call) for call in fake.calls))
    pd.testing.assert_frame_equal(frames[0], frames[1])
    pd.testing.assert_frame_equal(attempts[0], attempts[2])
    pd.testing.assert_frame_equal(attempts[1], attempts[3])
    assert usages[0] == usages[1]
    assert calls[0] == calls[1]
    assert frames[0]["n"].notna().sum() >= 5


def test_engines_agree_on_callables() -> None:
    def function(n: int) -> Any:
        if n % 4 == 1:
            raise ValueError(f"no {n}")
        return {"n2": n * n, "text": None if n % 4 == 2 else str(n)}

    plain, awaited = (run_with(engine, function, 20) for engine in ENGINES)
    pd.testing.assert_frame_equal(plain.frame, awaited.frame)
    pd.testing.assert_frame_equal(plain.errors, awaited.errors)
    for name in ("total", "succeeded", "failed", "attempts", "retries"):
        assert getattr(plain.metrics, name) == getattr(awaited.metrics, name)


def test_auto_picks_the_engine() -> None:
    assert run_with("thread", abs).metrics.engine == "thread"
    assert run_with("async", abs).metrics.engine == "async"
    run = reviews().llm.parallel_map("{review}", model=FakeModel(lambda text: text))
    assert run.metrics.engine == "async"


async def coroutine(row: Any) -> int:
    return 1


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        (coroutine, {"loop": "mine"}, 'there are "background" and "notebook"'),
        (lambda row: 1, {"loop": "notebook"}, "for the async engine"),
        (coroutine, {"loop": "notebook"}, "no event loop is running here; leave loop= out"),
    ],
)
def test_refused_loops(task: Any, options: dict[str, Any], words: str) -> None:
    df = reviews()
    with pytest.raises(UsageError, match=words):
        df.llm.parallel_map(task, **options)
    assert list(df.columns) == ["review"]


def test_a_model_on_a_virtual_clock_runs_on_a_loop_only() -> None:
    fake = FakeModel(lambda text: text, clock="virtual")

    async def main() -> None:
        await reviews().llm.aparallel_map("{review}", model=fake)

    with pytest.raises(UsageError, match="call parallel_map"):
        asyncio.run(main())


# -- how many at once ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_exactly_max_workers_threads_at_once(workers: int) -> None:
    barrier = threading.Barrier(workers)  # opens only where so many wait at the same time
    lock = threading.Lock()
    inside = most = 0

    def meet(row: Any) -> int:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        barrier.wait(30)
        with lock:
            inside -= 1
        return 1

    run = pd.DataFrame({"n": range(workers * 3)}).llm.parallel_map(meet, max_workers=workers)
    assert run.metrics.succeeded == workers * 3
    assert most == workers == run.metrics.workers


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_exactly_max_workers_coroutines_at_once(workers: int) -> None:
    inside = most = 0
    barriers: list[asyncio.Barrier] = []

    async def meet(row: Any) -> int:
        nonlocal inside, most
        if not barriers:
            barriers.append(asyncio.Barrier(workers))
        inside += 1
        most = max(most, inside)
        async with asyncio.timeout(30):
            await barriers[0].wait()
        inside -= 1
        return 1

    run = pd.DataFrame({"n": range(workers * 3)}).llm.parallel_map(meet, max_workers=workers)
    assert run.metrics.succeeded == workers * 3
    assert most == workers == run.metrics.workers


@pytest.mark.parametrize("workers", [1, 7])
def test_exactly_max_workers_requests_at_once(workers: int) -> None:
    fake = FakeModel(lambda text: text, latency=1, clock="virtual")
    run = reviews(40).llm.parallel_map("{review}", model=fake, max_workers=workers)
    assert fake.most_in_flight == workers
    assert run.metrics.wall_s == pytest.approx(-(-40 // workers))


def test_worker_count() -> None:
    assert worker_count(100, 4, max_workers=None) == 8
    assert worker_count(100, 64, max_workers=None) == 16
    assert worker_count(100, 64, max_workers=None, worker_cap=30) == 30
    assert worker_count(100, 1, max_workers=64, worker_cap=16) == 64
    assert worker_count(5, 4, max_workers=None) == 5
    assert worker_count(5, 4, max_workers=6) == 5
    assert worker_count(0, 4, max_workers=None) == 1
    automatic = reviews(200).llm.parallel_map(lambda row: 1).metrics.workers
    assert automatic == min(2 * available_cpus(), 16)
    df = pd.DataFrame({"review": ["a", None, None]})
    run = df.llm.parallel_map("{review}", model=FakeModel(["x"]), max_workers=3)
    assert run.metrics.workers == 1  # rows without an input need none


# -- context -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_context_tells_worker_row_and_attempt(engine: str) -> None:
    def plain(row: Any, context: revkit.Context) -> Any:
        return {"row": context.row, "worker": context.worker, "attempt": context.attempt}

    async def awaited(row: Any, *, context: revkit.Context) -> Any:
        return plain(row, context)

    df = pd.DataFrame({"n": range(9)}, index=[0] * 9)
    run = df.llm.parallel_map(plain if engine == "thread" else awaited, max_workers=3)
    assert df["row"].tolist() == list(range(9))
    assert df["attempt"].tolist() == [1] * 9
    workers = run.attempts.set_index("row")["worker"].sort_index()
    assert df["worker"].tolist() == workers.tolist()


word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="nothing")


@pytest.mark.parametrize("engine", ENGINES)
def test_context_variables_reach_callables(engine: str) -> None:
    token = word.set("hello")
    try:
        run = run_with(engine, lambda n: word.get(), 9, max_workers=3)
    finally:
        word.reset(token)
    assert run.frame["response"].tolist() == ["hello"] * 9
    assert run_with(engine, lambda n: word.get()).frame["response"].tolist() == ["nothing"] * 3


def test_context_variables_reach_awaited_callables() -> None:
    async def main() -> Any:
        word.set("awaited")

        async def said(row: Any) -> str:
            return word.get()

        plain = await reviews().llm.aparallel_map(lambda row: word.get(), inplace=False)
        return plain.frame, (await reviews().llm.aparallel_map(said)).frame

    for frame in asyncio.run(main()):
        assert frame["response"].tolist() == ["awaited"] * 3


# -- callables that go wrong ---------------------------------------------------------------------


class Frozen(Exception):
    """Refuses to have any attribute set, as an exception that is a frozen dataclass does."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def saying(raised: type[BaseException]) -> BaseException:
    """An exception that raises another one when it is read."""

    class Saying(Exception):
        def __str__(self) -> str:
            raise raised("no words")

        __repr__ = __str__

    return Saying()


class Nameless(type):
    @property
    def __name__(cls) -> str:
        raise SystemExit


class Closed(Exception, metaclass=Nameless):
    """Nothing of it can be read."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


class Text(str):
    def __getitem__(self, key: Any) -> str:
        raise SystemExit


class SaysText(Exception):
    def __str__(self) -> str:
        return Text("words")


class OddFields(revkit.RowFailure):
    """What is made from an error of revkit may have anything in its fields."""

    status, pause, transient = "x", "soon", 7  # type: ignore[assignment]

    def __init__(self) -> None:
        Exception.__init__(self, "odd")


class Own(BaseException):
    pass


RAISED = [
    (ValueError("no"), "ValueError: no"),
    (ValueError(), "ValueError"),
    (StopIteration("over"), "StopIteration: over"),
    (SystemExit(3), "SystemExit: 3"),
    (KeyboardInterrupt("stop"), "KeyboardInterrupt: stop"),
    (asyncio.CancelledError("mine"), "CancelledError: mine"),
    (Own("own"), "Own: own"),
    (Frozen("cold"), "Frozen: cold"),
    (Unreadable(), "Unreadable: (its message cannot be read: RuntimeError)"),
    (BadOutput("not mine to retry"), "BadOutput: not mine to retry"),
    (GeneratorExit("closed"), "GeneratorExit: closed"),
    (StopAsyncIteration("over"), "StopAsyncIteration: over"),
    (saying(SystemExit), "Saying: (its message cannot be read: SystemExit)"),
    (saying(KeyboardInterrupt), "Saying: (its message cannot be read: KeyboardInterrupt)"),
    (saying(GeneratorExit), "Saying: (its message cannot be read: GeneratorExit)"),
    (Closed, "Closed"),  # its class: pytest would read it
    (SaysText(), "SaysText: words"),
    (OddFields(), "OddFields: odd"),
    (AccessDenied("not a server's word", status=401), "AccessDenied: not a server's word"),
    (AccessDenied("not a server's word", status=403), "AccessDenied: not a server's word"),
    (QuotaUsedUp("not the account", status=429), "QuotaUsedUp: not the account"),
    (ModelMissing("no model", status=404), "ModelMissing: no model"),
    (FactoryFailed("no factory"), "FactoryFailed: no factory"),
    (ServerError("busy", status=429, pause=1e6), "ServerError: busy"),
    (ServerError("busy", status=429, pause=float("nan")), "ServerError: busy"),
    (RunFailed("another run"), "RunFailed: another run"),
    (revkit.Interrupted("another run"), "Interrupted: another run"),
    (UsageError("another call"), "UsageError: another call"),
    (RuntimeError("can't start new thread"), "RuntimeError: can't start new thread"),
    (MemoryError(), "MemoryError"),
    (ExceptionGroup("two", [ValueError("a"), ValueError("b")]), "ExceptionGroup: two (2 sub-e"),
    (ValueError("x" * 10_000), "ValueError: " + "x" * 1000),
]


@pytest.mark.parametrize(("error", "words"), RAISED, ids=[words[:40] for _, words in RAISED])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_callable_raises_is_that_rows_error(engine: str, error: Any, words: str) -> None:
    if isinstance(error, StopIteration) and engine == "async":
        words = "RuntimeError: coroutine raised StopIteration"  # Python's own doing

    def raises_at_first_and_last(n: int) -> int:
        if n in (0, 8):
            raise error
        return n

    run = run_with(engine, raises_at_first_and_last, 9, max_workers=2)
    errors = run.frame["error"]
    assert errors.iloc[0].startswith(words)
    assert len(errors.iloc[0]) < 2200
    assert errors.iloc[8].startswith(words)
    assert run.frame["response"].tolist()[1:8] == list(range(1, 8))
    assert run.metrics.attempts == 9  # nothing of a callable is tried again
    assert run_with(engine, abs).metrics.succeeded == 3  # whatever it was, the next run runs


@pytest.mark.parametrize("error", [GeneratorExit("mine"), asyncio.CancelledError("mine")])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_factory_that_raises_what_ends_tasks_has_failed(
    engine: str, error: BaseException
) -> None:
    def factory(worker: int) -> Any:
        raise error

    def plain(n: int, context: Any) -> int:
        raise AssertionError

    async def awaited(n: int, context: Any) -> int:
        raise AssertionError

    with pytest.raises(RunFailed) as failed:
        revkit.parallel_map([1, 2], plain if engine == "thread" else awaited, factory=factory)
    assert "FactoryFailed: factory(" in str(failed.value)
    assert f"raised {type(error).__name__}: mine" in str(failed.value)


@pytest.mark.parametrize("error", [GeneratorExit("mine"), asyncio.CancelledError("mine")])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_that_cannot_be_closed_costs_no_row(engine: str, error: BaseException) -> None:
    class State:
        def close(self) -> None:
            raise error

    def plain(n: int, context: Any) -> int:
        return n

    async def awaited(n: int, context: Any) -> int:
        return n

    function = plain if engine == "thread" else awaited
    with pytest.warns(UserWarning, match=f"could not be closed: {type(error).__name__}: mine"):
        run = revkit.parallel_map([1, 2], function, factory=lambda worker: State(), max_workers=1)
    assert run.metrics.succeeded == 2


@pytest.mark.parametrize("given", [1, 3])
def test_fewer_threads_than_workers_run_all_rows(
    monkeypatch: pytest.MonkeyPatch, given: int
) -> None:
    """The system gives some threads and then no more."""
    start, left = threading.Thread.start, given

    def limited(thread: threading.Thread) -> None:
        nonlocal left
        if thread.name.startswith("revkit-worker"):
            if not left:
                raise RuntimeError("can't start new thread")
            left -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.warns(UserWarning, match="could not start another thread") as warned:
        run = revkit.parallel_map(range(50), lambda n: n, max_workers=8)
    assert f"had {given} worker" in str(warned[0].message)
    assert run.frame["response"].tolist() == list(range(50))
    assert run.metrics.workers == given


def test_without_any_thread_each_row_has_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with (
        pytest.warns(UserWarning, match="had 0 workers instead of 2"),
        pytest.raises(RunFailed, match="can't start new thread") as failed,
    ):
        revkit.parallel_map(range(5), lambda n: n, max_workers=2)
    assert failed.value.result.metrics.not_started == 5


def test_a_thread_that_cannot_be_replaced_leaves_fewer_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, left = threading.Thread.start, 2
    release, refused = threading.Event(), threading.Event()

    def limited(thread: threading.Thread) -> None:
        nonlocal left
        if thread.name.startswith("revkit-worker"):
            if not left:
                refused.set()
                raise RuntimeError("can't start new thread")
            left -= 1
        start(thread)

    def function(n: int) -> int:
        if n == 0:
            release.wait(30)
        refused.wait(0.02)  # the other worker is not through before that
        return n

    monkeypatch.setattr(threading.Thread, "start", limited)
    once = revkit.Retry(attempts=1)
    with pytest.warns(UserWarning, match="had 1 worker instead of 2"):
        run = revkit.parallel_map(
            range(500), function, max_workers=2, attempt_timeout=0.3, retry=once
        )
    release.set()
    assert run.metrics.succeeded == 499
    assert run.frame["error"].iloc[0].startswith("AttemptTimeout")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "returned None: return a value, or {'response': None}"),
        ({}, "returned an empty mapping"),
    ],
)
def test_no_value_is_an_error(engine: str, value: Any, words: str) -> None:
    run = run_with(engine, lambda n: value if n else 1)
    assert run.frame["error"].notna().tolist() == [False, True, True]
    assert run.frame["error"].iloc[1].startswith("BadOutput: ")
    assert words in run.frame["error"].iloc[1]


def test_none_said_on_purpose_is_a_value() -> None:
    run = run_with("thread", lambda n: {"response": None} if n else {"response": 5})
    assert run.frame["response"].tolist() == [5, pd.NA, pd.NA]
    assert run.frame["error"].isna().all()
    assert run.metrics.succeeded == 3


def test_a_plain_function_that_returns_a_coroutine() -> None:
    with pytest.raises(RunFailed, match=r"returned an awaitable.*async def"):
        reviews().llm.parallel_map(lambda row: coroutine(row))  # no "never awaited" warning


@pytest.mark.parametrize("value", [np.int64(3), np.float32(0.5), np.bool_(True), np.str_("x")])
def test_numpy_scalars(value: Any) -> None:
    run = run_with("thread", lambda n: value)
    assert run.frame["response"].tolist() == [value] * 3
    assert run.frame["response"].dtype == (
        {"i": "Int64", "f": "Float64", "b": "boolean"}.get(value.dtype.kind)
        or run.frame["response"].dtype
    )


def test_an_awaited_object_of_another_loop_is_explained() -> None:
    with pytest.raises(RunFailed, match=r'aparallel_map\(\.\.\.\)`, or pass loop="notebook"'):
        asyncio.run(other_loop())


async def other_loop() -> Any:
    event = asyncio.Event()

    async def bound(row: Any) -> int:
        await event.wait()
        return 1

    waiter = asyncio.create_task(event.wait())  # binds the event to this loop
    await asyncio.sleep(0)
    try:
        return await asyncio.to_thread(reviews(2).llm.parallel_map, bound)
    finally:
        event.set()
        await waiter


# -- replies that do not fit ---------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_reply_that_does_not_fit_is_shown_its_error_once(engine: str) -> None:
    def answer(text: str) -> Any:
        return {"n": "many"} if text == "r0" else {"n": 7}

    fake = FakeModel(answer)
    df = reviews(1)
    run = df.llm.parallel_map(NUMBER, model=fake, engine=engine)
    assert df["n"].tolist() == [7]
    assert df["error"].isna().all()
    first, second = fake.calls
    assert second[: len(first)] == first
    said, told = second[len(first) :]
    assert said == {"role": "assistant", "content": '{"n":"many"}'}
    assert told["role"] == "user"
    assert "n: Input should be a valid integer" in told["content"]
    assert NUMBER.outputs.describe() in told["content"]
    assert run.attempts["outcome"].tolist() == ["retried", "ok"]
    assert run.attempts["error_type"].isna().tolist() == [False, True]
    assert run.metrics.retries == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_reply_that_never_fits_is_kept(engine: str) -> None:
    fake = FakeModel(lambda text: {"n": 1} if text == "r1" else f"{len(fake.calls)} is all I say")
    df = reviews(2)
    run = df.llm.parallel_map(NUMBER, model=fake, engine=engine, max_workers=1)
    assert df["error"].iloc[0].startswith("BadOutput: the reply does not fit")
    assert run.rows["text"].iloc[0] == run.errors["text"].iloc[0] == "2 is all I say"
    assert run.rows["attempts"].tolist() == [2, 1]
    assert run.attempts["outcome"].tolist() == ["retried", "failed", "ok"]
    assert run.rows["finish_reason"].tolist() == ["stop", "stop"]
    assert run.usage.completion_tokens == 5 + 5 + 1


def test_a_reply_cut_off_says_what_to_do() -> None:
    cut = revkit.Reply('{"n": ', finish_reason="length")
    with pytest.raises(RunFailed, match=r"CutOff: the reply was cut off.*: raise max_tokens="):
        reviews(1).llm.parallel_map(NUMBER, model=FakeModel([cut, cut]))


class Strict(pydantic.BaseModel):
    n: int

    @pydantic.field_validator("n")
    @classmethod
    def not_zero(cls, n: int) -> int:
        return 100 // n


@pytest.mark.parametrize("engine", ENGINES)
def test_a_validator_that_breaks_costs_its_row_only(engine: str) -> None:
    fake = FakeModel(lambda text: {"n": int(text[1:])})
    df = reviews(3)
    run = df.llm.parallel_map(
        Strict, instructions="x", on="review", model=fake, engine=engine, max_workers=1
    )
    assert df["n"].tolist() == [pd.NA, 100, 50]
    assert df["error"].iloc[0] == "ZeroDivisionError: integer division or modulo by zero"
    assert run.errors["text"].tolist() == ['{"n":0}']
    assert run.usage.completion_tokens == 3  # its tokens were paid for as well


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rule_that_runs_out_is_an_error_of_its_rows(engine: str) -> None:
    answers = iter(["a", "b"])
    fake = FakeModel(lambda text: next(answers))
    run = reviews(4).llm.parallel_map("{review}", model=fake, engine=engine, max_workers=1)
    assert run.frame["response"].isna().tolist() == [False, False, True, True]
    assert run.errors["error_type"].tolist() == ["RuntimeError", "RuntimeError"]


# -- failures of the run -------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ModelMissing, AccessDenied])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_must_fail_for_every_row_ends_the_run(engine: str, error: Any) -> None:
    def answer(text: str) -> Any:
        return error("do this") if text == "r2" else {"n": 1}

    fake = FakeModel(answer)
    df = reviews(50)
    with pytest.raises(RunFailed) as failed:
        df.llm.parallel_map(NUMBER, model=fake, engine=engine, max_workers=1)
    run = failed.value.result
    assert len(fake.calls) == 3
    assert run.rows["status"].tolist() == ["ok", "ok", "error"] + ["not_started"] * 47
    assert run.rows["source"].tolist() == ["model"] * 3 + ["none"] * 47
    assert df["n"].tolist() == [1, 1] + [pd.NA] * 48
    assert df["error"].isna().tolist() == [True, True] + [False] * 48
    assert df["error"].iloc[2] == f"{error.__name__}: do this"
    assert df["error"].iloc[3] == (
        f"NotStarted: the run was stopped before this row: {error.__name__}: do this"
    )
    assert str(failed.value).startswith(
        "the run was stopped: every other row would fail too; of 50 rows 2 are done, 1 failed and "
        f"47 were not finished. The first was row 2: {error.__name__}: do this"
    )
    assert isinstance(failed.value.__cause__, error)
    metrics = run.metrics
    assert (metrics.succeeded, metrics.failed, metrics.not_started) == (2, 1, 47)
    assert revkit.last_result() is run


def test_what_runs_when_every_row_must_fail_is_cancelled() -> None:
    latency = {"r0": 5.0, "r1": 1.0, "r2": 9.0}
    fake = FakeModel(
        lambda text: ModelMissing("pull it") if text == "r1" else text,
        latency=lambda text: latency.get(text, 1),
        clock="virtual",
    )
    with pytest.raises(RunFailed) as failed:
        reviews(6).llm.parallel_map("{review}", model=fake, max_workers=3)
    rows = failed.value.result.rows
    assert rows["status"].tolist() == ["cancelled", "error", "cancelled"] + ["not_started"] * 3
    assert failed.value.result.metrics.wall_s == 1.0


def test_the_first_failure_in_time_stands_first() -> None:
    latency = {"r0": 9.0, "r1": 2.0, "r2": 5.0}
    faults = {
        "r0": ConnectionFailed("late"),
        "r1": ConnectionFailed("early"),
        "r2": ModelError("other"),
        "r3": ConnectionFailed("early"),
    }
    fake = FakeModel(faults.__getitem__, latency=lambda t: latency.get(t, 20), clock="virtual")
    df = reviews(4)
    with pytest.raises(RunFailed) as failed:
        df.llm.parallel_map("{review}", model=fake, max_workers=4, retry=revkit.Retry(attempts=1))
    lines = str(failed.value).splitlines()
    assert lines[0] == ("all 4 rows failed. The first was row 1: ConnectionFailed: early")
    assert sorted(lines[1:4]) == [
        "  1 x ConnectionFailed: late",
        "  1 x ModelError: other",
        "  2 x the same",
    ]
    assert failed.value.__cause__ is faults["r1"]
    assert "response" in df.columns
    assert df["error"].notna().all()
    assert failed.value.result.completions.empty


def test_a_row_without_its_input_is_not_the_first_failure() -> None:
    """It says nothing of the model."""

    def fails(text: str) -> str:
        raise ValueError("no")

    with pytest.raises(
        RunFailed, match=r"The first was row 1: .*ValueError: no\n  1 x MissingInput"
    ):
        pd.DataFrame({"review": [None, "a"]}).llm.parallel_map("{review}", model=FakeModel(fails))


def test_a_row_that_recovered_is_not_the_first_failure() -> None:
    fake = FakeModel(["nonsense", {"n": 1}, ModelMissing("pull it")], latency=1, clock="virtual")
    with pytest.raises(RunFailed, match="The first was row 1: ModelMissing: pull it"):
        reviews(3).llm.parallel_map(NUMBER, model=fake, max_workers=1)


def test_many_kinds_of_failure_are_summed_up() -> None:
    with pytest.raises(RunFailed) as failed:
        run_with("thread", lambda n: [][n], 1)
    assert str(failed.value).startswith("the only row failed. The first was row 0: IndexError")

    def each_its_own(n: int) -> Any:
        raise ValueError(f"no {n}")

    with pytest.raises(RunFailed) as failed:
        run_with("thread", each_its_own, 30, max_workers=1)
    lines = str(failed.value).splitlines()
    assert lines[0].endswith("row 0: ValueError: no 0")
    assert lines[1:6] == [f"  1 x ValueError: no {n}" for n in range(1, 6)]
    assert lines[6] == "  24 x others, of 24 kinds"
    assert len(lines) == 8


def test_one_good_row_is_enough() -> None:
    run = run_with("thread", lambda n: 1 if n == 5 else [][n], 9)
    assert run.metrics.succeeded == 1
    assert run.metrics.failed == 8


def test_only_the_first_failure_keeps_its_traceback() -> None:
    def fails(n: int) -> Any:
        raise ValueError(n)

    with pytest.raises(RunFailed) as failed:
        run_with("thread", fails, 3, max_workers=1)
    cause = failed.value.__cause__
    assert cause is not None
    frames = []
    step = cause.__traceback__
    while step is not None:
        frames.append(step.tb_frame.f_code.co_name)
        step = step.tb_next
    assert frames[-1] == "fails"


# -- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_progress_tells_each_settled_row_once(engine: str) -> None:
    told: list[tuple[int, int, revkit.RowResult]] = []
    thread = set()

    def progress(done: int, total: int, row: revkit.RowResult) -> None:
        thread.add(threading.get_ident())
        told.append((done, total, row))

    df = reviews(12)
    df.loc[3, "review"] = None
    fake = FakeModel(scenario)
    df.llm.parallel_map(
        NUMBER, model=fake, engine=engine, max_workers=3, progress=progress, retry=SOON
    )
    assert [done for done, _, _ in told] == list(range(1, 13))
    assert {total for _, total, _ in told} == {12}
    assert sorted(row.row for _, _, row in told) == list(range(12))
    assert thread == {threading.get_ident()}
    for _, _, row in told:
        assert row.ok == (row.status == "ok") == pd.isna(df["error"].iloc[row.row])
        assert (row.error is None) == row.ok
        if row.ok:
            assert row.values == {"n": df["n"].iloc[row.row]}
        if row.row == 3:
            assert (row.attempts, row.worker, row.service_s) == (0, None, None)
        else:
            assert row.attempts >= 1
            assert row.worker in range(3)
            assert row.service_s is not None


def test_progress_in_settling_order() -> None:
    told: list[Any] = []
    latency = {"r0": 4.0, "r1": 3.0, "r2": 2.0, "r3": 1.0}
    fake = FakeModel(lambda text: text, latency=latency.__getitem__, clock="virtual")
    reviews(4).llm.parallel_map(
        "{review}",
        model=fake,
        max_workers=4,
        progress=lambda done, total, row: told.append((row.row, row.service_s)),
    )
    assert told == [(3, 1.0), (2, 2.0), (1, 3.0), (0, 4.0)]


@pytest.mark.parametrize("engine", ENGINES)
def test_progress_that_raises_is_dropped(engine: str) -> None:
    told = []

    def progress(done: int, total: int, row: revkit.RowResult) -> None:
        told.append(done)
        raise ValueError("in the callback")

    with pytest.warns(UserWarning, match="callback raised ValueError: in the callback"):
        run = run_with(engine, lambda n: n, 9, progress=progress)
    assert told == [1]
    assert run.metrics.succeeded == 9


def test_progress_of_an_awaited_run() -> None:
    told = []

    async def main() -> None:
        await reviews(5).llm.aparallel_map(
            coroutine, progress=lambda done, total, row: told.append((done, total))
        )

    asyncio.run(main())
    assert told == [(n, 5) for n in range(1, 6)]


# -- loops and threads ---------------------------------------------------------------------------


def test_the_background_loop_stays() -> None:
    seen: list[Any] = []

    async def where(row: Any) -> str:
        seen.append(asyncio.get_running_loop())
        return threading.current_thread().name

    for _ in range(2):
        run = reviews().llm.parallel_map(where)
        assert set(run.frame["response"]) == {"revkit-loop"}
    assert len(set(seen)) == 1
    assert beside.background().loop is seen[0]


def test_runs_at_once_from_several_threads() -> None:
    together = threading.Barrier(3)

    async def meet(row: Any) -> int:
        await asyncio.to_thread(together.wait, 30)
        return row["n"]

    results: list[Any] = []

    def run() -> None:
        results.append(pd.DataFrame({"n": [1, 2]}).llm.parallel_map(meet, max_workers=1))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [r.frame["response"].tolist() for r in results] == [[1, 2]] * 3


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_inside_a_running_loop(engine: str) -> None:
    """As a notebook's cell does: the call blocks the loop that it is called on."""

    async def cell() -> Any:
        return run_with(engine, lambda n: n)

    assert asyncio.run(cell()).frame["response"].tolist() == [0, 1, 2]


def test_a_run_inside_a_run() -> None:
    def outer(row: Any) -> int:
        inner = pd.DataFrame({"n": range(row["n"])}).llm.parallel_map(lambda r: r["n"])
        return int(inner.frame["response"].sum())

    run = pd.DataFrame({"n": [3, 4]}).llm.parallel_map(outer)
    assert run.frame["response"].tolist() == [3, 6]


def test_no_thread_of_a_run_stays() -> None:
    run_with("thread", abs)
    fake = FakeModel(lambda text: text, clock="virtual")
    reviews().llm.parallel_map("{review}", model=fake)
    join_workers("revkit-loop-of-a-run")


# -- on the caller's own loop --------------------------------------------------------------------


def test_awaited_runs_run_on_the_callers_loop_and_beside_each_other() -> None:
    async def main() -> list[Any]:
        barrier = asyncio.Barrier(4)
        loop = asyncio.get_running_loop()

        async def meet(row: Any) -> int:
            assert asyncio.get_running_loop() is loop
            await barrier.wait()
            return row["n"]

        frames = [pd.DataFrame({"n": [i, i + 1]}) for i in range(2)]
        runs = [df.llm.aparallel_map(meet, max_workers=2) for df in frames]
        runs.append(revkit.aparallel_map([1, 2], lambda x: x * 2))
        runs.append(pd.Series([3, 4]).llm.aparallel_map("{x}", model=FakeModel(["a", "b"])))
        async with asyncio.timeout(30):
            return await asyncio.gather(*runs)

    found = [run.frame["response"].tolist() for run in asyncio.run(main())]
    assert found == [[0, 1], [1, 2], [2, 4], ["a", "b"]]


def test_an_awaited_run_leaves_the_loop_to_others() -> None:
    async def main() -> int:
        beats = 0
        done = asyncio.Event()

        async def heart() -> None:
            nonlocal beats
            while not done.is_set():
                beats += 1
                await asyncio.sleep(0)

        beating = asyncio.create_task(heart())
        reached = threading.Event()

        def waits_for_the_loop(row: Any) -> int:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(30)
            reached.set()
            return 1

        loop = asyncio.get_running_loop()
        run = await reviews().llm.aparallel_map(waits_for_the_loop)
        done.set()
        await beating
        assert reached.is_set()
        assert run.metrics.succeeded == 3
        return beats

    assert asyncio.run(main()) > 1


def test_loop_is_not_for_awaited_runs() -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="runs on the loop that awaits it"):
            await reviews().llm.aparallel_map(coroutine, loop="notebook")

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancel", "wait_for"])
def test_cancelled_awaited_run_saves_what_is_done(how: str) -> None:
    df = reviews(6)
    cancelled: list[int] = []

    async def main() -> None:
        blocked = asyncio.Event()

        async def some(row: Any, context: revkit.Context) -> str:
            if context.row < 2:
                return row["review"]
            try:
                await blocked.wait()
            except asyncio.CancelledError:
                cancelled.append(context.row)
                raise
            return "never"

        settled = asyncio.Event()

        def progress(done: int, total: int, row: revkit.RowResult) -> None:
            if done == 2:
                settled.set()

        running = asyncio.create_task(df.llm.aparallel_map(some, max_workers=2, progress=progress))
        await settled.wait()
        await asyncio.sleep(0)
        running.cancel()
        if how == "wait_for":
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(running, 30)
        else:
            with pytest.raises(asyncio.CancelledError):
                await running
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, "a worker outlived its run"

    asyncio.run(main())
    assert df["response"].tolist()[:2] == ["r0", "r1"]
    result = revkit.last_result()
    assert result is not None
    assert result.rows["status"].tolist() == ["ok"] * 2 + ["cancelled"] * 2 + ["not_started"] * 2
    assert sorted(cancelled) == [2, 3]
    assert df["error"].isna().tolist() == [True] * 2 + [False] * 4
    assert df["error"].iloc[2].startswith("Cancelled: ")
    assert df["error"].iloc[5].startswith("NotStarted: ")


def test_cancelled_run_of_a_model_saves_what_is_done() -> None:
    df = reviews(5)

    async def main() -> None:
        told = asyncio.Event()
        latency = {"r0": 0.0}
        fake = FakeModel(lambda text: text, latency=lambda text: latency.get(text, 3600))
        running = asyncio.create_task(
            df.llm.aparallel_map(
                "{review}", model=fake, max_workers=2, progress=lambda *a: told.set()
            )
        )
        await told.wait()
        while len(fake.calls) < 3:  # noqa: ASYNC110 - a model has no event to wait for
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len(fake.calls) == 3

    asyncio.run(main())
    assert df["response"].tolist()[0] == "r0"
    assert df["response"].isna().tolist() == [False] + [True] * 4


# -- interrupts: a process of its own, which says when it is blocked ------------------------------

INTERRUPTED = """
import asyncio, signal, threading
import pandas as pd
import revkit
from revkit.testing import FakeModel

df = pd.DataFrame({"review": [f"r{i}" for i in range(20)]}, index=[0] * 20)
started = []
five = threading.Event()

def start(row):
    started.append(row)
    if len(started) == 5:
        five.set()

def progress(done, total, row):
    if done == 3:
        five.wait()  # now three rows are done, two run and never end, and the rest waits
        print("blocked", flush=True)

release = threading.Event()

def plain(row, context):
    start(context.row)
    if context.row >= 3:
        release.wait()
    return row["review"]

cancelled = []

async def awaited(row, context):
    start(context.row)
    if context.row < 3:
        return row["review"]
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        cancelled.append(context.row)
        raise

def latency(text):
    start(text)
    return 0 if text in ("r0", "r1", "r2") else 1e6

fake = FakeModel(lambda text: text, latency=latency)
options = {"max_workers": 2, "progress": progress}
try:
    CALL
except revkit.Interrupted as stop:
    assert isinstance(stop, KeyboardInterrupt)
    assert "3 of 20 rows are done" in str(stop), str(stop)
    run = stop.result
    assert run is revkit.last_result()
    assert df["response"].tolist()[:3] == ["r0", "r1", "r2"], df
    assert df["error"].isna().tolist() == [True] * 3 + [False] * 17, df
    statuses = run.rows["status"].tolist()
    assert statuses == ["ok"] * 3 + ["cancelled"] * 2 + ["not_started"] * 15, statuses
    release.set()  # a thread that was left behind ends, and starts nothing more
    for thread in threading.enumerate():
        if thread.name.startswith("revkit-worker"):
            thread.join()
    assert len(started) == 5, started
    AFTER
    assert df["response"].notna().sum() == 3, df
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = df.llm.parallel_map(lambda row: 1, output="again", error=None)
    assert again.metrics.succeeded == 20
    print("saved", flush=True)
else:
    raise SystemExit("the run went on")
"""

CALLS = {
    "thread": ("df.llm.parallel_map(plain, **options)", "pass"),
    "async": (
        "df.llm.parallel_map(awaited, **options)",
        "assert sorted(cancelled) == [3, 4], cancelled",
    ),
    "model": (
        'df.llm.parallel_map("{review}", model=fake, **options)',
        "assert fake._in_flight == 0",
    ),
}

#: A script that hangs tells where, and ends.
WATCHED = "import faulthandler\nfaulthandler.dump_traceback_later(60, exit=True)\n"


def interrupt(script: str, *, told: str = "saved") -> None:
    """Run a script, send it SIGINT when it says that it is blocked, and see it end well."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WATCHED + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "blocked\n", process.communicate()[1]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert out.splitlines() == [told], err


@pytest.mark.skipif(os.name == "nt", reason="SIGINT is sent to one process")
@pytest.mark.parametrize(("call", "after"), CALLS.values(), ids=CALLS)
def test_interrupt(call: str, after: str) -> None:
    interrupt(INTERRUPTED.replace("CALL", call).replace("AFTER", after))


@pytest.mark.skipif(os.name == "nt", reason="SIGINT is sent to one process")
def test_interrupt_of_asyncio_run_saves_what_is_done() -> None:
    interrupt(
        """
import asyncio
import pandas as pd
import revkit

df = pd.DataFrame({"review": ["a", "b", "c"]})

async def work(row):
    if row["review"] == "a":
        return "done"
    if row["review"] == "c":  # the last one that is started
        print("blocked", flush=True)
    await asyncio.Event().wait()

try:
    asyncio.run(df.llm.aparallel_map(work, max_workers=2))
except KeyboardInterrupt:
    assert df["response"].tolist()[0] == "done"
    assert revkit.last_result().rows["status"].tolist() == ["ok", "cancelled", "cancelled"]
    print("saved")
"""
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_a_loop_of_its_own() -> None:
    script = """
    import os, warnings
    import pandas as pd
    import revkit
    from revkit.runtime.engines import beside

    async def work(row):
        return row["n"]

    df = pd.DataFrame({"n": [1, 2]})
    df.llm.parallel_map(work)
    parents = beside.background()
    warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what we do
    child = os.fork()
    if child == 0:
        run = df.llm.parallel_map(work)
        good = run.frame["response"].tolist() == [1, 2] and beside.background() is not parents
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    df.llm.parallel_map(work)
    assert beside.background() is parents
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


# -- figures -------------------------------------------------------------------------------------


def test_latency_is_exactly_what_was_told() -> None:
    rng = np.random.default_rng(7)
    told = rng.integers(1, 4000, 101) / 1000
    latency = {f"r{i}": seconds for i, seconds in enumerate(told)}
    answers = dict.fromkeys(latency, "ok") | {"r3": ModelError("no"), "r50": ModelError("no")}
    fake = FakeModel(answers.__getitem__, latency=latency.__getitem__, clock="virtual")
    run = reviews(101).llm.parallel_map("{review}", model=fake, max_workers=7)
    good = np.delete(told, [3, 50]) * 1e3
    assert run.latency.dtype == "float64"
    assert run.latency.index.tolist() == ["min", "mean", "p50", "p90", "p95", "p99", "max"]
    wanted = [good.min(), good.mean(), *np.percentile(good, [50, 90, 95, 99]), good.max()]
    np.testing.assert_allclose(run.latency, wanted, rtol=1e-9)
    by_row = run.attempts.sort_values("row")
    np.testing.assert_allclose(by_row["service_ms"], told * 1e3, rtol=1e-9)
    np.testing.assert_allclose(run.rows["service_ms"], told * 1e3, rtol=1e-9)
    metrics = run.metrics
    assert metrics.mean_concurrency == pytest.approx(told.sum() / metrics.wall_s)
    assert metrics.rows_per_s == pytest.approx(101 / metrics.wall_s)
    assert metrics.wall_s == pytest.approx(run.attempts["end_s"].max())
    assert 6 < metrics.mean_concurrency <= 7
    assert metrics.speedup_estimate == pytest.approx(metrics.mean_concurrency)
    assert metrics.speedup_basis


def test_waiting_is_told_apart_from_service() -> None:
    fake = FakeModel(["bad", "no", {"n": 1}, {"n": 2}], latency=2, clock="virtual")
    run = reviews(2).llm.parallel_map(NUMBER, model=fake, max_workers=1)
    assert run.attempts["row"].tolist() == [0, 0, 1, 1][: len(run.attempts)]
    assert run.rows["service_ms"].tolist() == [2000.0, 2000.0]
    assert run.rows["wait_ms"].tolist() == [0.0, 4000.0]


def test_figures_of_runs_in_which_nothing_was_good() -> None:
    with pytest.raises(RunFailed) as failed:
        reviews(2).llm.parallel_map("{review}", model=FakeModel([ModelError("no")] * 2))
    run = failed.value.result
    assert run.latency.isna().all()
    assert run.usage == revkit.record.metrics.Usage(None, None, None)
    assert run.rows["prompt_tokens"].isna().all()
    empty = revkit.parallel_map([], lambda x: x)
    assert np.isnan(empty.metrics.mean_concurrency)
    assert np.isnan(empty.metrics.speedup_estimate)
    assert empty.metrics.speedup_basis == "no attempt was made"
    assert empty.summary().shape == (0, 2)


def paid(provider: str, *answers: Any, price: Any = None) -> revkit.ParallelResult:
    """A run of a model that somebody bills for; the answers are told in order."""
    fake = FakeModel(list(answers))
    fake.provider, fake.model, fake.max_tokens = provider, "gpt-4.1-mini", 9
    budget = revkit.Budget(tokens=10**9, prices=price)
    options: dict[str, Any] = {"model": fake, "budget": budget, "max_workers": 1}
    try:
        return reviews(2).llm.parallel_map("{review}", **options)
    except RunFailed as failed:
        return failed.result


COUNTED = revkit.Reply("x", prompt_tokens=1000, completion_tokens=100)


@pytest.mark.parametrize(
    ("provider", "answers", "price", "usd"),
    [
        ("openai", [COUNTED, COUNTED], None, 2 * 0.00056),
        ("openai", [COUNTED, COUNTED], revkit.Price(1, 10, usd_per_request=0.5), 1.004),
        ("openai", [COUNTED, COUNTED], {"gpt-4.1-mini": revkit.Price(1, 10)}, 0.004),
        ("openai", [COUNTED, COUNTED], {"other": revkit.Price(1, 10)}, 2 * 0.00056),
        ("openai", [COUNTED, ValueError("no")], None, 0.00056),
        ("openai", [ValueError("no"), ValueError("no")], None, None),
        ("ollama", [COUNTED, ValueError("no")], None, 0.0),
        ("local", [ValueError("no"), ValueError("no")], None, 0.0),
        ("nobody", [COUNTED, COUNTED], None, None),
        ("", [COUNTED, COUNTED], None, None),
    ],
)
def test_the_cost_is_that_of_all_attempts(
    provider: str, answers: list[Any], price: Any, usd: float | None
) -> None:
    if usd and price is None:
        pytest.importorskip("genai_prices")
    assert paid(provider, *answers, price=price).usage.cost_usd == pytest.approx(usd)


def test_the_cost_of_trying_again_is_added() -> None:
    price = revkit.Price(1, 10)
    run = paid("openai", COUNTED, ValueError("no"), COUNTED, price=price)
    assert run.usage.cost_usd == pytest.approx(0.002)
    again = run.retry_failed()
    assert again.usage.cost_usd == pytest.approx(0.004)
    assert "$0.0040" in again.report()


def test_the_cost_of_each_row() -> None:
    price = revkit.Price(1, 10)
    fake = FakeModel([COUNTED, ValueError("no"), COUNTED, COUNTED], clock="virtual")
    fake.provider, fake.model, fake.max_tokens = "openai", "mine", 50
    df = pd.DataFrame({"review": ["a", "b", None, "c"]})
    run = df.llm.parallel_map(
        "{review}",
        model=fake,
        max_workers=1,
        budget=revkit.Budget(usd=1.0, prices=price),
    )
    cost = run.rows["cost_usd"]
    assert cost.isna().tolist() == [False, True, False, False]  # the second one's are not known
    assert cost.tolist()[2] == 0.0
    assert cost.sum() == pytest.approx(run.usage.cost_usd)
    assert pd.Series([1]).llm.parallel_map(str).rows["cost_usd"].isna().all()


def test_the_price_list_is_not_loaded_before_the_cost_is_asked_for() -> None:
    script = """
import sys
import pandas as pd
import revkit
from revkit.testing import FakeModel

fake = FakeModel(lambda text: "fine")
fake.provider, fake.model = "openai", "gpt-4.1-mini"
run = pd.DataFrame({"review": ["a"]}).llm.parallel_map("{review}", model=fake)
assert repr(run)
assert "genai_prices" not in sys.modules
assert run.usage.cost_usd is None or "genai_prices" in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_usage_counts_failed_attempts_too() -> None:
    answers = [
        revkit.Reply("bad", prompt_tokens=10, completion_tokens=1),
        revkit.Reply('{"n": 1}', prompt_tokens=20, completion_tokens=2),
        revkit.Reply("bad", prompt_tokens=40, completion_tokens=4),
        revkit.Reply("worse", prompt_tokens=80, completion_tokens=8),
        ModelError("no"),
    ]
    run = reviews(3).llm.parallel_map(NUMBER, model=FakeModel(answers), max_workers=1)
    assert run.usage == revkit.record.metrics.Usage(150, 15, 165)
    assert run.rows["prompt_tokens"].tolist() == [30, 120, pd.NA]
    assert run.rows["completion_tokens"].tolist() == [3, 12, pd.NA]
    assert run.attempts["prompt_tokens"].tolist() == [10, 20, 40, 80, pd.NA]
    assert run.usage.cost_usd is None  # nobody knows what a fake model costs
    plain = run_with("thread", abs)
    assert plain.usage == revkit.record.metrics.Usage(None, None, None)
    assert plain.attempts["prompt_tokens"].dtype == "Int64"


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"
    MIXED = "mixed"


def test_values_that_cannot_be_hashed_are_counted_too() -> None:
    found = iter([{"a": 1}, {"a": 1}, [{"b": 2}], [{"b": 2}], [{"b": 3}]])
    df = pd.DataFrame({"n": range(5)})
    run = df.llm.parallel_map(lambda row: {"out": next(found)}, max_workers=1)
    assert run.summary("out")["count"].tolist() == [2, 2, 1]


def test_summary() -> None:
    task = Signature(
        "x", inputs="review", outputs={"n": int, "mood": ["good", "mixed", "bad"], "tone": Mood}
    )
    moods = ["bad", "good", "bad", None]
    answers = [ModelError("no") if m is None else {"n": 7, "mood": m, "tone": m} for m in moods]
    run = reviews(4).llm.parallel_map(task, model=FakeModel(answers))
    table = run.summary()
    assert table.index.tolist() == ["good", "mixed", "bad"]  # the first class output, declared
    assert table.index.name == "mood"
    assert table["count"].tolist() == [1, 0, 2]
    np.testing.assert_allclose(table["share"], [1 / 3, 0, 2 / 3])
    assert table.dtypes.tolist() == [np.dtype("int64"), np.dtype("float64")]
    assert run.summary("tone").index.tolist() == ["good", "bad", "mixed"]
    assert run.summary("n")["count"].to_dict() == {7: 3}
    with pytest.raises(UsageError, match='no output "moood"; did you mean "mood"'):
        run.summary("moood")


ROWS = [
    "row",
    "n",
    "status",
    "source",
    "attempts",
    "service_ms",
    "wait_ms",
    "queue_ms",
    "limit_ms",
    "backoff_ms",
    "worker",
    "prompt_tokens",
    "completion_tokens",
    "cost_usd",
    "finish_reason",
    "truncated",
    "model",
    "format",
    "thought",
    "text",
    "probabilities",
    "error_type",
    "error",
]
ATTEMPTS = [
    "row",
    "attempt",
    "worker",
    "start_s",
    "end_s",
    "service_ms",
    "outcome",
    "error_type",
    "error",
    "prompt_tokens",
    "completion_tokens",
]
ERRORS = ["row", "index", "item", "error_type", "status", "message", "attempts", "text"]


@pytest.mark.parametrize("n", [0, 3])
def test_columns_and_dtypes_of_the_tables(n: int) -> None:
    df = reviews(n).set_index(pd.Index(["a", "b", "a"][:n], dtype=object))
    answers = [{"n": 1}, "bad", AccessDenied("key", status=401), {"n": 1}, "bad"]
    try:
        run = df.llm.parallel_map(NUMBER, model=FakeModel(answers), max_workers=1)
    except RunFailed as failed:
        run = failed.result
    string = run.frame["error"].dtype
    assert list(run.rows.columns) == ROWS
    assert list(run.attempts.columns) == ATTEMPTS
    assert list(run.errors.columns) == ERRORS
    wanted: dict[str, dict[str, Any]] = {
        "rows": {
            "row": "int64", "n": "Int64", "status": string, "source": string,
            "attempts": "int64", "service_ms": "float64", "wait_ms": "float64",
            "queue_ms": "float64", "limit_ms": "float64", "backoff_ms": "float64",
            "worker": "Int64", "prompt_tokens": "Int64", "completion_tokens": "Int64",
            "cost_usd": "Float64", "finish_reason": string, "truncated": "boolean",
            "model": string, "format": string, "thought": string, "text": string,
            "error_type": string, "error": string,
        },
        "attempts": {
            "row": "int64", "attempt": "int64", "worker": "int64", "start_s": "float64",
            "end_s": "float64", "service_ms": "float64", "outcome": string,
            "error_type": string, "error": string, "prompt_tokens": "Int64",
        },
        "errors": {
            "row": "int64", "error_type": string, "status": "Int64", "message": string,
            "attempts": "int64", "text": string,
        },
        "completions": {"n": "Int64"},
    }  # fmt: skip
    for table, dtypes in wanted.items():
        for column, dtype in dtypes.items():
            assert getattr(run, table)[column].dtype == dtype, (table, column)
    if n:
        error = run.errors.iloc[0]
        assert (error["row"], error["index"], error["item"]) == (1, "b", {"review": "r1"})
        assert (error["error_type"], error["status"], error["message"]) == (
            "AccessDenied",
            401,
            "key",
        )
        assert error["attempts"] == 2
        assert run.rows["status"].tolist() == ["ok", "error", "not_started"]


def test_probabilities_reach_the_rows() -> None:
    sure = {"sentiment": {"positive": 0.9, "neutral": 0.1, "negative": 0.0}}
    answers = [
        revkit.Reply('{"sentiment": "positive"}', probabilities=sure),
        {"sentiment": "negative"},
    ]
    run = reviews(2).llm.parallel_map(model=FakeModel(answers))
    assert run.rows["probabilities"].tolist() == [sure, None]


def test_the_result_shows_itself() -> None:
    run = reviews(5).llm.parallel_map(NUMBER, model=FakeModel(scenario), retry=SOON)
    assert "5 rows" in repr(run)
    for text in (run.report(), run._repr_html_()):
        assert "ServerError" in text
        assert "fake" in text
    assert run.timeline_png().startswith(b"\x89PNG")


def test_last_result() -> None:
    run = run_with("thread", abs)
    assert revkit.last_result() is run
    with pytest.raises(UsageError):
        reviews().llm.parallel_map(abs, on="nothing")
    assert revkit.last_result() is run


def test_interrupted_is_an_interrupt_and_not_an_error() -> None:
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)


def test_an_argument_that_there_is_not_is_refused_by_its_nearest_name() -> None:
    frame = pd.DataFrame({"n": [1]})
    with pytest.raises(TypeError, match='max_worker=; did you mean "max_workers"'):
        frame.llm.parallel_map(lambda row: 1, max_worker=3)
    with pytest.raises(TypeError, match="inplace"):
        frame["n"].llm.parallel_map(lambda n: 1, inplace=True)


def test_where_warnings_are_errors_a_broken_callback_loses_nothing() -> None:
    def callback(done: int, total: int, row: revkit.RowResult) -> None:
        raise ValueError("in the callback")

    frame = pd.DataFrame({"n": [1, 2, 3]})
    with pytest.raises(UserWarning, match="in the callback"):
        frame.llm.parallel_map(lambda row: row["n"], progress=callback)
    assert frame["response"].tolist() == [1, 2, 3]


def test_a_run_that_would_wait_for_its_own_loop_is_refused() -> None:
    inner = pd.DataFrame({"m": [1, 2]})

    async def total(row: dict[str, int]) -> int:
        return row["m"] * 10

    async def waits_for_itself(row: dict[str, int]) -> int:
        return int(inner[["m"]].llm.parallel_map(total).frame["response"].sum())

    with pytest.raises(RunFailed, match="aparallel_map"):
        pd.DataFrame({"n": range(4)}).llm.parallel_map(waits_for_itself, max_workers=2)
