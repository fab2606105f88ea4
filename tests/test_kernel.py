"""revkit in a real Jupyter kernel: cells run while the kernel's own event loop is running."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from servers import GATE_LIMIT, serve

pytestmark = pytest.mark.kernel

_LIMIT = 60  # seconds after which a kernel that says nothing has failed

SETUP = """
import asyncio, os, threading
import pandas as pd
import revkit
from revkit.testing import FakeModel

def frame():
    return pd.DataFrame({"review": ["good", "bad", "so good"]}, index=[7, 7, 3])

fake = FakeModel(lambda text: "positive" if "good" in text else "negative")
"""


@dataclass
class Cell:
    """What one cell did."""

    status: str = ""
    error: str = ""
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)


class Kernel:
    """A kernel to which cells can be sent without waiting for those before them."""

    def __init__(self, client: BlockingKernelClient, manager: KernelManager):
        self.client = client
        self.press_stop = manager.interrupt_kernel

    def send(self, code: str) -> str:
        return self.client.execute(code, stop_on_error=False)

    def cells(self, *sent: str) -> list[Cell]:
        """What the cells did, read until the last of them is through."""
        found = {number: Cell() for number in sent}
        idle: set[str] = set()
        while not idle.issuperset(sent):
            message = self.client.get_iopub_msg(timeout=_LIMIT)
            number = message["parent_header"].get("msg_id")
            if number not in found:
                continue
            cell, content = found[number], message["content"]
            match message["msg_type"]:
                case "stream":
                    cell.text += content["text"]
                case "execute_result" | "display_data":
                    cell.data |= content["data"]
                case "error":
                    cell.error = content["ename"]
                    cell.text += content["evalue"]
                case "status" if content["execution_state"] == "idle":
                    idle.add(number)
        while not all(cell.status for cell in found.values()):
            reply = self.client.get_shell_msg(timeout=_LIMIT)
            number = reply["parent_header"]["msg_id"]
            if number in found:
                found[number].status = reply["content"]["status"]
                found[number].error = reply["content"].get("ename", "")
        return list(found.values())

    def run(self, code: str) -> Cell:
        return self.cells(self.send(code))[0]


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=_LIMIT)
        kernel = Kernel(client, manager)
        assert kernel.run(SETUP).status == "ok"
        yield kernel
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def test_a_cell_runs_a_model_inside_the_kernels_loop(kernel: Kernel) -> None:
    cell = kernel.run(
        "asyncio.get_running_loop()\n"
        "df = frame()\n"
        "run = df.llm.parallel_map(model=fake, max_workers=2)\n"
        "print(df['sentiment'].tolist(), run.metrics.engine)"
    )
    assert (cell.status, cell.text) == ("ok", "['positive', 'negative', 'positive'] async\n")


def test_a_bare_run_shows_counts_percentiles_and_timeline(kernel: Kernel) -> None:
    kernel.run("run = frame().llm.parallel_map(model=fake)")
    cell = kernel.run("run")
    assert "3 rows, 3 ok" in cell.data["text/plain"]
    page = cell.data["text/html"]
    assert "p95" in page
    assert re.search(r'<img class="revkit-plot"[^>]*src="data:image/png;base64,', page)


@pytest.mark.embedded
def test_the_quickstart_runs_again_from_the_store(kernel: Kernel, tmp_path: Path) -> None:
    """All its rows come from the store then, and no attempt has taken any time."""
    path = Path(__file__).parent.parent / "notebooks" / "01_quickstart.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    kernel.run(f"import os; os.environ['REVKIT_STORE'] = {str(tmp_path / 'replies.sqlite')!r}")
    for _ in range(2):
        for cell in cells:
            if cell.cell_type == "code":
                done = kernel.run(cell.source)
                assert done.status == "ok", done.error
    assert kernel.run("print(run.metrics.from_store)").text == "12\n"


def test_a_bare_timeline_is_shown_as_a_picture(kernel: Kernel) -> None:
    kernel.run("run = frame().llm.parallel_map(model=fake)")
    assert "image/png" in kernel.run("run.plot_timeline()").data


def test_the_background_loop_is_the_same_in_the_next_cell(kernel: Kernel) -> None:
    kernel.run("async def loop_of(row):\n    return id(asyncio.get_running_loop())")
    ids = [
        kernel.run("print(frame().llm.parallel_map(loop_of).frame['response'].unique()[0])").text
        for _ in range(2)
    ]
    assert ids[0] == ids[1]
    assert ids[0] != kernel.run("print(id(asyncio.get_running_loop()))").text


def test_the_awaited_twin_runs_on_the_notebooks_own_loop(kernel: Kernel) -> None:
    cell = kernel.run(
        "async def loop_of(row):\n"
        "    return id(asyncio.get_running_loop())\n"
        "run = await frame().llm.aparallel_map(loop_of)\n"
        "print((run.frame['response'] == id(asyncio.get_running_loop())).all())"
    )
    assert (cell.status, cell.text) == ("ok", "True\n")


def test_an_object_of_the_notebooks_loop_fails_with_the_way_out(kernel: Kernel) -> None:
    kernel.run(
        "lock = asyncio.Lock()\n"
        "await lock.acquire()\n"
        "waiter = asyncio.ensure_future(lock.acquire())\n"
        "await asyncio.sleep(0)\n"
        "async def locked(row):\n"
        "    async with lock:\n"
        "        return 1"
    )
    cell = kernel.run("frame().llm.parallel_map(locked, max_workers=2)")
    kernel.run("lock.release(); await waiter; lock.release()")
    assert cell.error == "RunFailed"
    assert "aparallel_map" in cell.text
    assert 'loop="notebook"' in cell.text


def test_loop_notebook_runs_on_it_and_the_cells_behind_it_still_run(kernel: Kernel) -> None:
    """Cells that are queued behind a nested run are what the archived nest-asyncio drops."""
    sent = [
        kernel.send(
            "event = asyncio.Event()\n"
            "here = asyncio.get_running_loop()\n"
            "here.call_later(0.2, event.set)\n"
            "async def waits(row):\n"
            "    await event.wait()\n"
            "    return asyncio.get_running_loop() is here\n"
            "run = frame().llm.parallel_map(waits, loop='notebook')\n"
            "print(run.frame['response'].tolist())"
        ),
        kernel.send("print('second')"),
        kernel.send("x = await asyncio.sleep(0, 'third')\nprint(x)"),
        kernel.send("print(frame().llm.parallel_map(waits, loop='notebook').metrics.succeeded)"),
        kernel.send("print('last')"),
    ]
    cells = kernel.cells(*sent)
    assert [cell.status for cell in cells] == ["ok"] * 5
    texts = [cell.text for cell in cells]
    assert texts == ["[True, True, True]\n", "second\n", "third\n", "3\n", "last\n"]


def test_the_stop_button_ends_the_cell_and_keeps_what_is_done(kernel: Kernel) -> None:
    """The model holds every reply but the first back until the cell has ended."""
    kernel.run(
        "release = threading.Event()\n"
        "reached = threading.Event()\n"
        "async def held(row):\n"
        "    if row['review'] == 'good':\n"
        "        return 'done'\n"
        "    reached.set()\n"
        "    await asyncio.Event().wait()\n"
        "df = frame()\n"
        "def press():\n"
        "    reached.wait()\n"
        "    import signal\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=press).start()"
    )
    sent = kernel.send("df.llm.parallel_map(held, max_workers=3)")
    (cell,) = kernel.cells(sent)
    assert (cell.status, cell.error) == ("error", "Interrupted")
    after = kernel.run(
        "print(df['response'].tolist()[:1], revkit.last_result().metrics.cancelled)\n"
        "print(frame().llm.parallel_map(model=fake).metrics.succeeded)"
    )
    assert after.text == "['done'] 2\n3\n"


class Withheld:
    """A rule for a server that withholds every reply but those to rows 0 and 1 until released."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self._held = threading.Semaphore(0)

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> str:
        if messages[-1]["content"] not in ("0", "1"):
            self._held.release()
            self.release.wait(GATE_LIMIT)
        return "said"

    def await_requests(self, count: int) -> None:
        for _ in range(count):
            assert self._held.acquire(timeout=GATE_LIMIT)


RUNS = {
    "async": "df.llm.parallel_map(task, engine='async', **options)",
    "thread": "df.llm.parallel_map(task, engine='thread', **options)",
    "awaited": "await df.llm.aparallel_map(task, engine='async', **options)",
    "awaited, thread": ("await df.llm.aparallel_map(task, engine='thread', **options)"),
    "notebook": "df.llm.parallel_map(task, loop='notebook', **options)",
}


@pytest.mark.parametrize("run", RUNS)
def test_the_stop_button_leaves_no_request_behind(kernel: Kernel, run: str, tmp_path: Path) -> None:
    """The server withholds every reply but two until the next cell has run."""
    place = str(tmp_path / "replies.sqlite")
    withheld = Withheld()
    with serve(withheld) as server:
        kernel.run(
            f"model = revkit.Ollama('m', host={server.url!r})\n"
            f"task, options = '{{n}}', dict(model=model, store={place!r}, max_workers=4)\n"
            "df = pd.DataFrame({'n': [str(n) for n in range(12)]})"
        )
        sent = kernel.send(RUNS[run])
        withheld.await_requests(4)
        kernel.press_stop()
        (cell,) = kernel.cells(sent)
        assert cell.status == "error"
        assert cell.error == ("CancelledError" if "await" in run else "Interrupted")
        after = kernel.run(
            "print(df['response'].tolist()[:2], revkit.last_result().metrics.cancelled)\n"
            "left = [t for t in threading.enumerate() if t.name.startswith('revkit-worker')]\n"
            "[t.join(20) for t in left]\n"
            "print([t for t in left if t.is_alive()])\n"
            "print([t for t in asyncio.all_tasks() if t.get_name().startswith('revkit')])\n"
        )
        assert after.text == "['said', 'said'] 4\n[]\n[]\n"
        assert server.await_hang_ups()
        assert server.in_flight == 4  # still withheld
        assert len(server.chats) == 2 + 4
        withheld.release.set()
        again = kernel.run(
            f"df = df[['n']].copy()\nrun = {RUNS[run]}\nprint(run.metrics.succeeded)"
        )
        assert again.text == "12\n"
        assert len(server.chats) == 2 + 4 + 10  # what came before the stop is not asked again


@pytest.fixture(scope="module")
def cluster(kernel: Kernel) -> Iterator[None]:
    cell = kernel.run(
        "import logging\n"
        "import dask.dataframe as dd\n"
        "from distributed import Client, LocalCluster\n"
        "import revkit.dask\n"
        "workers = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=':0',\n"
        "                       silence_logs=logging.CRITICAL)\n"
        "client = Client(workers)"
    )
    assert cell.status == "ok"
    yield
    kernel.run("client.close(); workers.close()")


@pytest.mark.parametrize("run", ["revkit.collect(rated)", "rated.compute()"])
def test_the_stop_button_stops_a_cluster_s_calls_and_not_the_cluster(
    kernel: Kernel, cluster: None, run: str
) -> None:
    """The server withholds the replies to all rows but two until the next cell has run."""
    withheld = Withheld()
    with serve(withheld) as server:
        kernel.run(
            f"model = revkit.Ollama('m', host={server.url!r})\n"
            "ddf = dd.from_pandas(pd.DataFrame({'n': [str(n) for n in range(12)]}),"
            " npartitions=4)\n"
            "rated = ddf.llm.parallel_map('{n}', model=model, store=False, max_workers=4)\n"
            "pids = client.run(os.getpid)"
        )
        sent = kernel.send(run)
        withheld.await_requests(4)  # so both processes are at it
        kernel.press_stop()
        (cell,) = kernel.cells(sent)
        collected = run.startswith("revkit")
        assert (cell.status, cell.error) == (
            "error",
            "Interrupted" if collected else "KeyboardInterrupt",
        )
        assert server.await_hang_ups()  # still withheld
        # A worker may ask for another row until it hears of the stop: until it has no task left.
        kernel.run("while any(client.processing().values()): pass")
        asked = len(server.chats)
        if collected:
            after = kernel.run(
                "done = revkit.last_result().metrics\n"
                "print(done.total, done.succeeded + done.cancelled, done.not_started)"
            )
            assert after.text == f"12 {asked} {12 - asked}\n"
        withheld.release.set()
        again = kernel.run(
            "print(rated.compute()['error'].isna().sum(), client.run(os.getpid) == pids)"
        )
        assert again.text == "12 True\n"
        assert len(server.chats) == asked + 12


def test_no_bar_and_no_path_in_a_notebook_without_widgets(kernel: Kernel) -> None:
    cell = kernel.run("run = frame().llm.parallel_map(model=fake, progress=True)")
    assert cell.status == "ok"
    assert "Warning" not in cell.text
    assert "/" not in re.sub(r"\d+/\d+|rows/s|it/s|s/it", "", cell.text)
