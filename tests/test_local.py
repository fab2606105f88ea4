"""The embedded model for real: its process, its life, and what a run gets from it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import servers
from threads import abort

import revkit
from revkit import (
    SENTIMENT,
    SENTIMENT_WITH_REASON,
    ConnectionFailed,
    Local,
    MissingExtra,
    ModelUnavailable,
    ServerError,
    Signature,
    UsageError,
)
from revkit.clients.contract import Aborted, Request, Response, Transport
from revkit.clients.local import process as model_process
from revkit.clients.local.client import _LocalTransport
from revkit.clients.local.process import Child, ModelProcess
from revkit.task.chat import Reply

embedded = pytest.mark.embedded
linux_only = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches by pidfd")

#: Seconds after which something that must happen has not happened.
LIMIT = 60.0

GOOD = "I love it: it works perfectly and looks great."
BAD = "Terrible. It broke on the first day and I want my money back."


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    """The embedded model, up, in a process of this module's own."""
    client = Local(slots=2, n_ctx=1024)
    client.ready(SENTIMENT, max_workers=2)
    yield client
    client._process().stop()


@pytest.fixture
def process(local: Local) -> ModelProcess:
    process = local._process()
    process.start()
    return process


@pytest.fixture
def transport(local: Local, process: ModelProcess) -> Iterator[Transport]:
    transport = local.transport(max_workers=2)
    yield transport
    transport.close()


def ask(local: Local, transport: Transport, review: str, task: Signature = SENTIMENT) -> Reply:
    return drive(local.session(task).exchange(task.messages({"review": review})), transport.send)


def drive(
    exchange: Generator[Request, Response, Reply], send: Callable[[Request], Response]
) -> Reply:
    try:
        request = next(exchange)
        while True:
            request = exchange.send(send(request))
    except StopIteration as end:
        reply: Reply = end.value
        return reply


def is_healthy(transport: Transport) -> bool:
    return transport.send(Request("http://localhost/health")).status == 200


# -- what it says -----------------------------------------------------------------------------


@embedded
@pytest.mark.parametrize(("review", "label"), [(GOOD, "positive"), (BAD, "negative")])
def test_it_tells_good_from_bad(local: Local, transport: Transport, review: str, label: str):
    reply = ask(local, transport, review)
    assert SENTIMENT.parse(reply.text) == {"sentiment": label}
    assert reply.probabilities is not None
    shares = reply.probabilities["sentiment"]
    assert list(shares) == ["positive", "neutral", "negative"]
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda x: shares[x]) == label
    assert reply.prompt_tokens is not None
    assert reply.prompt_tokens > 20
    assert reply.completion_tokens == 1


@embedded
def test_a_rows_answer_does_not_depend_on_the_other_rows(local: Local, transport: Transport):
    alone = ask(local, transport, GOOD).probabilities
    for review in (BAD, BAD, BAD):
        ask(local, transport, review)
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda text: ask(local, transport, text), [GOOD, BAD]))
    assert alone is not None
    assert together[0].probabilities is not None
    # Batches of other sizes round otherwise.
    assert together[0].probabilities["sentiment"] == pytest.approx(alone["sentiment"], abs=0.02)


@embedded
def test_both_engines_run_it_through_the_public_api(local: Local):
    answers = []
    for engine in ("thread", "async"):
        run = revkit.parallel_map(
            [{"review": GOOD}, {"review": BAD}], model=local, engine=engine, max_workers=2
        )
        answers.append(run.frame["sentiment"].tolist())
        assert run.usage.prompt_tokens > 0
    assert answers == [["positive", "negative"]] * 2


@embedded
def test_other_outputs_are_generated_under_their_schema(local: Local, transport: Transport):
    reply = ask(local, transport, GOOD, SENTIMENT_WITH_REASON)
    values = SENTIMENT_WITH_REASON.parse(reply.text)
    assert set(values) == {"sentiment", "reason"}


@embedded
def test_labels_that_begin_alike_are_scored(local: Local, transport: Transport):
    task = Signature(
        "Which one is it?", inputs="review", outputs={"kind": ["good", "good enough", "bad"]}
    )
    reply = ask(local, transport, GOOD, task)
    assert reply.probabilities is not None
    assert sum(reply.probabilities["kind"].values()) == pytest.approx(1)
    assert reply.completion_tokens == 2


@embedded
def test_a_row_too_long_for_the_model_is_that_rows_error(local: Local, transport: Transport):
    with pytest.raises(ServerError, match="context size") as caught:
        ask(local, transport, "word " * 3000)
    assert caught.value.status == 400
    assert is_healthy(transport)


# -- its process ------------------------------------------------------------------------------


@embedded
def test_runs_share_one_process(process: ModelProcess):
    child = process.child()
    other = Local(slots=2, n_ctx=1024)
    other.ready(SENTIMENT, max_workers=2)
    assert other._process().child() is child


@embedded
def test_the_parents_environment_and_imports_are_untouched(process: ModelProcess):
    assert process.is_up
    assert "xllamacpp" not in sys.modules
    assert "GOMP_SPINCOUNT" not in os.environ


@embedded
@pytest.mark.skipif(not hasattr(os, "getsid"), reason="sessions are of POSIX")
def test_ctrl_c_does_not_reach_it(process: ModelProcess):
    pid = process.child().popen.pid
    assert os.getsid(pid) == pid


@embedded
def test_the_key_shows_nowhere(local: Local, process: ModelProcess):
    child = process.child()
    shown = [repr(child), repr(local), str(local.settings()), str(child.popen.args)]
    proc = Path("/proc", str(child.popen.pid))
    if proc.exists():
        shown += [(proc / name).read_bytes().decode() for name in ("cmdline", "environ")]
    assert not any(child.key in text for text in shown)


@embedded
def test_nobody_else_is_served(process: ModelProcess):
    from revkit.clients.httpx_transport import HttpxTransport

    stranger = HttpxTransport(process.child().endpoint)
    body = json.dumps({"prompt": "a", "n_predict": 1}).encode()
    try:
        for headers in ({}, {"authorization": "Bearer guessed"}):
            request = Request(process.child().endpoint + "/completion", body, headers)
            assert stranger.send(request).status == 401
    finally:
        stranger.close()


@embedded
def test_more_workers_than_slots_and_connections_are_all_served(local: Local):
    transport = local.transport(max_workers=100)
    body = json.dumps({"content": "a b c"}).encode()
    request = Request("http://localhost/tokenize", body, {"content-type": "application/json"})
    try:
        with ThreadPoolExecutor(100) as threads:
            statuses = [r.status for r in threads.map(transport.send, [request] * 400)]
    finally:
        transport.close()
    assert statuses == [200] * 400


# -- its death --------------------------------------------------------------------------------


def crash(child: Child) -> None:
    child.popen.kill()
    child.popen.wait(LIMIT)


@embedded
def test_after_a_crash_it_is_restarted_once(
    local: Local, process: ModelProcess, transport: Transport
):
    first = process.child()
    crash(first)
    assert is_healthy(transport)
    assert process.child() is not first
    crash(process.child())
    for _ in range(2):
        with pytest.raises(ConnectionFailed, match="crashed again") as caught:
            transport.send(Request("http://localhost/health"))
        assert caught.value.ends_run
    local.ready(SENTIMENT, max_workers=2)  # the next run may try again
    assert is_healthy(transport)


@embedded
def test_a_crash_costs_the_attempt_in_flight(
    process: ModelProcess, transport: Transport, monkeypatch: pytest.MonkeyPatch
):
    taken = threading.Event()
    go_on = threading.Event()
    child = process.child()

    def pausing() -> Child:
        taken.set()
        assert go_on.wait(LIMIT)
        return child

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as threads:
        patch.setattr(process, "child", pausing)
        attempt = threads.submit(transport.send, Request("http://localhost/health"))
        assert taken.wait(LIMIT)
        child.popen.send_signal(signal.SIGKILL)
        go_on.set()
        with pytest.raises(ConnectionFailed, match="ended during this attempt"):
            attempt.result(LIMIT)
    assert is_healthy(transport)


@embedded
def test_on_a_loop_a_crash_is_the_same(local: Local, process: ModelProcess):
    async def scenario() -> int:
        transport = await local.async_transport(max_workers=2)
        try:
            crash(process.child())
            return (await transport.send(Request("http://localhost/health"))).status
        finally:
            await transport.aclose()

    assert asyncio.run(scenario()) == 200


@embedded
def test_idle_it_ends_by_itself_and_that_is_no_crash(
    process: ModelProcess, transport: Transport, monkeypatch: pytest.MonkeyPatch
):
    process.stop()
    monkeypatch.setattr(model_process, "IDLE_S", 0.01)
    process.start()  # a run is open: ``transport``
    child = process.child()
    assert is_healthy(transport)
    transport.close()
    assert child.popen.wait(LIMIT) == 0
    monkeypatch.undo()
    process._restarts = 0
    assert process.child() is not child


@embedded
def test_a_file_that_is_no_model_does_not_start(tmp_path: Path):
    path = tmp_path / "my.gguf"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelUnavailable, match="did not start") as caught:
        Local(path).ready(SENTIMENT, max_workers=1)
    assert "its last words:\n" in str(caught.value)


# -- its life is its parent's -----------------------------------------------------------------

_PARENT = """
import os, sys
from revkit import Local, SENTIMENT
client = Local(slots=1, n_ctx=512)
client.ready(SENTIMENT, max_workers=1)
print(client._process().child().popen.pid, flush=True)
{then}
"""


@embedded
@linux_only
@pytest.mark.parametrize(
    ("then", "kill"),
    [
        ("sys.stdin.read()", True),
        ("", False),
        ("os._exit(3)", False),
        ("os.kill(os.getpid(), 6)", False),
        # A fork that lives on must not hold the process.
        ("if os.fork() == 0: os.read(0, 1); os._exit(0)\nos.read(0, 0); os._exit(0)", False),
    ],
    ids=["kill -9", "the end", "os._exit", "abort", "a fork lives on"],
)
def test_the_process_ends_with_its_parent(then: str, kill: bool):
    env = os.environ | {"PYTHONPATH": str(Path(revkit.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT.format(then=then)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
    ) as parent:
        assert parent.stdout is not None
        try:
            watched = os.pidfd_open(int(parent.stdout.readline()))
        except ProcessLookupError:  # it has ended already
            return
        if kill:
            parent.kill()
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        ended = poll.poll(LIMIT * 1000)
        os.close(watched)
        assert parent.stdin is not None
        parent.stdin.close()
    assert ended, "the model's process outlives its parent"


# -- what is wrong before it starts -----------------------------------------------------------


def test_without_llama_cpp_it_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "revkit\[local\]"'):
        Local().ready(SENTIMENT, max_workers=1)


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")
def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path):
    with pytest.raises(UsageError, match="there is no file"):
        Local(tmp_path / "none.gguf").ready(SENTIMENT, max_workers=1)


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"n_ctx": -1}, {"max_tokens": "many"}])
def test_wrong_arguments_are_named(wrong: dict[str, Any]):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Local(**wrong)


class Elsewhere:
    """A model's process that is another server, in a run that is counted."""

    def __init__(self, server: servers.Server) -> None:
        self.runs = 0
        self.started = Child(None, None, server.url, "key")  # type: ignore[arg-type]

    def run_began(self) -> None:
        self.runs += 1

    def run_ended(self) -> None:
        self.runs -= 1

    def child(self) -> Child:
        return self.started


def test_an_aborted_request_ends_and_the_process_is_not_asked_again():
    arrived = threading.Event()

    def rule(messages: Any, body: Any) -> servers.Raw:
        arrived.set()
        return servers.HANG

    with servers.serve(rule) as server, ThreadPoolExecutor(1) as pool:
        process: Any = Elsewhere(server)
        transport = _LocalTransport(process)
        chat = b'{"model": "m", "messages": []}'
        sent = pool.submit(transport.send, Request("http://localhost/api/chat", chat))
        assert arrived.wait(LIMIT)
        abort(transport, sent)
        process.started = None  # what would fail if it were asked
        with pytest.raises(Aborted):
            transport.send(Request("http://localhost/health"))
        transport.close()
        assert server.await_hang_ups()
    assert process.runs == 0
    assert len(server.requests) == 1


def test_settings_tell_models_apart(tmp_path: Path):
    path = tmp_path / "my.gguf"
    path.write_bytes(b"one")
    before = Local(path).settings()
    assert before == Local(path).settings()
    path.write_bytes(b"another")
    assert Local(path).settings() != before
    assert Local().settings() != before
    json.dumps([before, Local().settings()])


def test_the_program_is_not_shadowed_by_its_neighbours():
    """Its folder holds an ``http.py``; run by its path, it must find Python's own."""
    args: list[list[str]] = []

    class Stop(Exception):
        pass

    def popen(command: list[str], **options: Any) -> None:
        args.append(command)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", popen)
        patch.setattr(model_process, "find_llama", lambda: "")
        with pytest.raises(Stop):
            Local(slots=7)._process().child()
    assert "-P" in args[0]
