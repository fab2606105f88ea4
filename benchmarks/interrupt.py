"""Seconds from the notebook's stop button to a kernel that can be used again.

    python benchmarks/interrupt.py [--workers 16] [--repeat 3]

In a real kernel, each of the workers waits in a call that takes 20 seconds; then the kernel is
interrupted. Measured are the seconds until the exception is raised in the cell, until the cell has
failed, and until the next, trivial one has run; counted are the worker threads that are left then.
A plain function that blocks cannot be stopped: it gets a second, and is left behind. The first
line is a cell without revkit: what the kernel itself takes, most of it for the traceback.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jupyter_client.manager import KernelManager

CALL_S = 20

SETUP = """
import threading, time, urllib.request
import pandas as pd
import revkit

model = revkit.Ollama("m", host={url!r})
df = pd.DataFrame({{"n": [str(n) for n in range(10 * {workers})]}})

TASK, N = "{{n}}", {workers}

def here():
    urllib.request.urlopen({url!r} + "/here").read()

def blocked(row):
    here()
    time.sleep({seconds})

def left():
    return sum(t.name.startswith("revkit-worker") for t in threading.enumerate())
"""

CASES = {
    "bare sleep": "here(); time.sleep(20)",
    "async engine": "df.llm.parallel_map(TASK, model=model, engine='async', max_workers=N)",
    "thread engine": "df.llm.parallel_map(TASK, model=model, engine='thread', max_workers=N)",
    "aparallel_map": "await df.llm.aparallel_map(TASK, model=model, max_workers=N)",
    "plain function": "df.llm.parallel_map(blocked, max_workers=N)",
}


#: So that the exception tells when it was raised; all else is the kernel's.
CELL = """
try:
    {code}
except BaseException:
    raised = time.time()
    raise
"""


class Server(ThreadingHTTPServer):
    """Holds every request for a model's reply back, and counts them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.held = threading.Semaphore(0)
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
        self.server.held.release()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.held.release()
        self.server.over.wait(CALL_S)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None: ...


def measure(code: str, workers: int) -> tuple[float, float, float, int]:
    """Seconds to the exception, the failed cell, the next cell's end; threads that are left."""
    server = Server()
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        setup = SETUP.format(url=server.url, workers=workers, seconds=CALL_S)
        run(client, setup)
        cell = client.execute(CELL.format(code=code), stop_on_error=False)
        for _ in range(1 if code.startswith("here()") else workers):
            server.held.acquire()
        pressed = time.time()
        manager.interrupt_kernel()
        assert reply(client, cell)["status"] == "error"
        failed = time.time() - pressed
        run(client, "1 + 1")
        usable = time.time() - pressed
        found = run(client, "pass", {"raised": "raised", "left": "left()"})["user_expressions"]
        raised, left = (found[name]["data"]["text/plain"] for name in ("raised", "left"))
        return float(raised) - pressed, failed, usable, int(left)
    finally:
        server.over.set()
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
        server.shutdown()
        server.server_close()


def run(client: Any, code: str, asked: dict[str, str] | None = None) -> dict[str, Any]:
    found = reply(client, client.execute(code, user_expressions=asked))
    assert found["status"] == "ok", found
    return found


def reply(client: Any, cell: str) -> dict[str, Any]:
    while True:
        message = client.get_shell_msg(timeout=60)
        if message["parent_header"]["msg_id"] == cell:
            content: dict[str, Any] = message["content"]
            return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    heads = ("raised s", "cell failed s", "usable s", "worst s", "threads left")
    print(f"{'':16}" + "".join(f"{head:>15}" for head in heads))
    for name, code in CASES.items():
        runs = [measure(code, options.workers) for _ in range(options.repeat)]
        seconds = [statistics.median(run[i] for run in runs) for i in range(3)]
        seconds.append(max(run[2] for run in runs))
        threads = max(run[3] for run in runs)
        print(f"{name:16}" + "".join(f"{s:>15.2f}" for s in seconds) + f"{threads:>15}")


if __name__ == "__main__":
    main()
