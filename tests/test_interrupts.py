"""Ctrl-C, and the other stops that cancel, while a server withholds every reply.

Each test is causal: replies are withheld until the run has ended, so a run that ends has not
waited for one. Tests never wait for a time, only for facts.
"""

from __future__ import annotations

import _thread
import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pandas as pd
import pytest
from servers import CERTIFICATE, GATE_LIMIT, Server, serve
from test_stops import Clock, clock
from threads import join_workers

import revkit
from revkit import CancelToken, Interrupted, ParallelResult, RunCancelled
from revkit.clients.contract import Request, Response
from revkit.clients.http import tls_context
from revkit.runtime.engines.beside import background
from revkit.testing import FakeModel

__all__ = ["clock"]  # a fixture

WORKERS = 4
DONE = 2  #: rows that are answered before all others are withheld
ROWS = 12
STATUSES = ["ok"] * DONE + ["cancelled"] * WORKERS + ["not_started"] * (ROWS - DONE - WORKERS)


class Holding:
    """A rule for a server: the first rows are answered, all others when the test says so."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self._held = threading.Semaphore(0)

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> str:
        if messages[-1]["content"] not in [f"row {row}" for row in range(DONE)]:
            self._held.release()
            self.release.wait(GATE_LIMIT)
        return "said"

    def wait(self, requests: int = WORKERS) -> None:
        """Until so many requests are withheld."""
        for _ in range(requests):
            assert self._held.acquire(timeout=GATE_LIMIT)


@pytest.fixture
def rule() -> Holding:
    return Holding()


@pytest.fixture
def server(
    rule: Holding, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """Its parameter: whether it speaks TLS."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with serve(rule, tls=getattr(request, "param", False)) as server:
        yield server
        rule.release.set()


def rows() -> pd.DataFrame:
    return pd.DataFrame({"text": [f"row {row}" for row in range(ROWS)]})


@contextmanager
def when_all_wait(rule: Holding, then: Callable[[], object]) -> Iterator[None]:
    def main() -> None:
        rule.wait()
        then()

    thread = threading.Thread(target=main)
    thread.start()
    yield
    thread.join()


class Way:
    """One way in which requests travel: a model, and the options of the run."""

    def __init__(self, kind: str, server: Server):
        own = {"httpx.Client": httpx.Client, "httpx.AsyncClient": httpx.AsyncClient}.get(kind)
        self.http = None if own is None else own(trust_env=False, verify=tls_context())
        self.options: dict[str, Any] = {
            "model": revkit.Ollama("m", host=server.url, http=self.http),
            "max_workers": WORKERS,
            "engine": kind if own is None else "auto",
        }

    async def aclose(self) -> None:
        """Close what a user would close; call it on the loop of the run."""
        if isinstance(self.http, httpx.AsyncClient):
            await self.http.aclose()
        elif self.http is not None:
            self.http.close()


@pytest.fixture
def way(kind: str, server: Server) -> Iterator[Way]:
    way = Way(kind, server)
    yield way
    if way.http is not None and not way.http.is_closed:
        asyncio.run_coroutine_threadsafe(way.aclose(), background().loop).result()


KINDS = ["thread", "async", "httpx.Client", "httpx.AsyncClient"]
over_http_and_https = pytest.mark.parametrize(
    "server", [False, True], indirect=True, ids=["http", "https"]
)


def check_stopped(result: ParallelResult, df: pd.DataFrame, server: Server) -> None:
    """What is done stands, and nothing of the run is left; replies are still withheld."""
    assert result.rows["status"].tolist() == STATUSES
    pd.testing.assert_frame_equal(result.frame, df)
    assert df["response"].notna().tolist() == [True] * DONE + [False] * (ROWS - DONE)
    assert server.await_hang_ups()
    assert server.in_flight == WORKERS
    assert len(server.requests) == DONE + WORKERS
    join_workers()
    assert not any(task.get_name().startswith("revkit-worker") for task in tasks())


def tasks() -> set[asyncio.Task[Any]]:
    async def all_tasks() -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks()

    return asyncio.run_coroutine_threadsafe(all_tasks(), background().loop).result()


def go(df: pd.DataFrame, door: str, task: Any, **options: Any) -> None:
    if door == "parallel_map":
        df.llm.parallel_map(task, **options)
    else:
        asyncio.run(df.llm.aparallel_map(task, **options))


# -- a script ------------------------------------------------------------------------------------


@over_http_and_https
@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_leaves_nothing_behind(rule: Holding, server: Server, way: Way) -> None:
    df = rows()
    with when_all_wait(rule, _thread.interrupt_main), pytest.raises(Interrupted) as caught:
        df.llm.parallel_map("{text}", **way.options)
    check_stopped(caught.value.result, df, server)
    assert str(caught.value).startswith(f"interrupted: {DONE} of {ROWS} rows are done")

    rule.release.set()
    assert rows().llm.parallel_map("{text}", **way.options).metrics.succeeded == ROWS


@over_http_and_https
@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_ends_an_awaited_run(rule: Holding, server: Server, way: Way) -> None:
    df = rows()

    async def main() -> None:
        try:
            await df.llm.aparallel_map("{text}", **way.options)
        except asyncio.CancelledError:
            result = revkit.last_result()
            assert result is not None
            await asyncio.to_thread(check_stopped, result, df, server)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            rule.release.set()
            again = await rows().llm.aparallel_map("{text}", **way.options)
            assert again.metrics.succeeded == ROWS
            raise
        finally:
            await way.aclose()

    with when_all_wait(rule, _thread.interrupt_main), pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert rule.release.is_set()  # it came to the end


@pytest.mark.parametrize("door", ["parallel_map", "aparallel_map"])
@pytest.mark.parametrize("kind", ["thread", "async"])
def test_a_token_leaves_nothing_behind(door: str, rule: Holding, server: Server, way: Way) -> None:
    df, token = rows(), CancelToken()
    with when_all_wait(rule, token.cancel), pytest.raises(RunCancelled) as caught:
        go(df, door, "{text}", cancel=token, **way.options)
    check_stopped(caught.value.result, df, server)


# -- what is late --------------------------------------------------------------------------------


class LastWord(FakeModel):
    """Its transport has its reply at the very moment at which it is aborted."""

    def __init__(self, entered: Callable[[], object]):
        super().__init__(lambda text: "said")
        self.entered = entered
        self.aborted = threading.Event()
        self.may_close = threading.Event()
        self.may_close.set()

    def transport(self, *, max_workers: int) -> Any:
        transport = super().transport(max_workers=max_workers)
        model = self

        class Transport:
            def send(self, request: Request) -> Response:
                model.entered()
                assert model.aborted.wait(GATE_LIMIT)
                return transport.send(request)

            def abort(self) -> None:
                model.aborted.set()

            def close(self) -> None:
                assert model.may_close.wait(GATE_LIMIT)

        return Transport()


def test_a_reply_that_has_arrived_is_kept() -> None:
    token = CancelToken()
    df = pd.DataFrame({"text": ["a", "b"]})
    with pytest.raises(RunCancelled) as caught:
        df.llm.parallel_map(
            "{text}", model=LastWord(token.cancel), engine="thread", max_workers=1, cancel=token
        )
    assert caught.value.result.rows["status"].tolist() == ["ok", "not_started"]
    assert df["response"].tolist()[0] == "said"


def test_a_thread_that_ends_after_the_loop_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has waited for its grace, and the caller's loop is closed."""
    monkeypatch.setattr("revkit.runtime.lifecycle._GRACE", 0.1)
    token = CancelToken()
    model = LastWord(token.cancel)
    model.may_close.clear()
    df = pd.DataFrame({"text": ["a", "b"]})
    with pytest.raises(RunCancelled):
        go(df, "aparallel_map", "{text}", model=model, engine="thread", max_workers=1, cancel=token)
    assert df["response"].tolist()[0] == "said"
    model.may_close.set()
    join_workers()  # pytest takes an exception in a thread for a failure


def test_a_fake_models_threads_are_woken() -> None:
    token = CancelToken()

    def rule(text: str) -> str:
        token.cancel()
        return "late"

    fake = FakeModel(rule, latency=2 * GATE_LIMIT)
    with pytest.raises(RunCancelled) as caught:
        rows().llm.parallel_map("{text}", model=fake, engine="thread", max_workers=1, cancel=token)
    assert caught.value.result.metrics.cancelled == 1
    join_workers()


def test_an_abandoned_request_ends_with_the_run(
    rule: Holding, server: Server, clock: Clock
) -> None:
    """Its thread overran ``attempt_timeout``, and the others went on without it."""

    def progress(done: int, total: int, row: revkit.RowResult) -> None:
        if done == 1:
            rule.wait(1)
            clock.now += 100.0

    df = rows()[DONE - 1 : DONE + 1]  # one is answered, one is withheld
    options = Way("thread", server).options | {"retry": revkit.Retry(attempts=1)}
    run = df.llm.parallel_map("{text}", attempt_timeout=99.0, progress=progress, **options)
    assert run.rows["status"].tolist() == ["ok", "error"]
    assert server.await_hang_ups()
    assert server.in_flight == 1


# -- pressed again, and not heeded ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["thread", "async"])
def test_ctrl_c_again_raises_at_once(rule: Holding, server: Server, way: Way) -> None:
    """The second one strikes while a callback of the user's hangs."""
    df = rows()

    def progress(done: int, total: int, row: revkit.RowResult) -> None:
        if done == DONE:
            rule.wait()
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

    with pytest.raises(Interrupted) as caught:
        df.llm.parallel_map("{text}", progress=progress, **way.options)
    check_stopped(caught.value.result, df, server)
    rule.release.set()
    assert rows().llm.parallel_map("{text}", **way.options).metrics.succeeded == ROWS


def test_a_coroutine_that_swallows_the_cancellation_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("revkit.runtime.lifecycle._GRACE", 0.1)
    release = threading.Event()
    df = rows()
    try:
        with pytest.raises(Interrupted):
            df.llm.parallel_map(stubborn(release, _thread.interrupt_main), max_workers=1)
        assert not release.is_set()
        check_first_row_only(df)
    finally:
        release.set()


def stubborn(release: threading.Event, entered: Callable[[], object]) -> Any:
    """A function that answers the first row, and will not be cancelled at the second."""

    async def task(row: Any) -> str:
        if row["text"] == "row 0":
            return "said"
        entered()
        while not release.is_set():
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                continue
        return "late"

    return task


def blocked(release: threading.Event, entered: Callable[[], object]) -> Any:
    """The same in a thread."""

    def task(row: Any) -> str:
        if row["text"] == "row 0":
            return "said"
        entered()
        release.wait(GATE_LIMIT)
        return "late"

    return task


def check_first_row_only(df: pd.DataFrame) -> None:
    assert df["response"].notna().tolist() == [True] + [False] * (ROWS - 1)
    assert df["error"].isna().tolist() == [True] + [False] * (ROWS - 1)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("make", [stubborn, blocked])
def test_an_awaited_run_ends_whatever_its_function_does(
    make: Any, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled once, it waits for its grace; twice, not even for that. Both save what is done."""
    monkeypatch.setattr("revkit.runtime.lifecycle._GRACE", 0.1 if times == 1 else GATE_LIMIT)
    release, entered = threading.Event(), asyncio.Event()
    df = rows()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = make(release, lambda: loop.call_soon_threadsafe(entered.set))
        run = asyncio.ensure_future(df.llm.aparallel_map(task, max_workers=1))
        await entered.wait()
        for _ in range(times):
            run.cancel()
            await asyncio.sleep(0)
        try:
            with pytest.raises(asyncio.CancelledError):
                await run
            assert not release.is_set()
            check_first_row_only(df)
        finally:
            if make is stubborn:  # or the loop could not end
                release.set()

    asyncio.run(main())
    release.set()  # what is left behind finds its loop closed, and says nothing
    join_workers()
