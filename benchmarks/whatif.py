"""How well ``run.what_if`` predicts, against real runs: ``python benchmarks/whatif.py``.

Prints a table. A server on loopback, in a process of its own, speaks OpenAI's protocol; it works on
``SLOTS`` requests at once, each for a log-normal time (mean 50 ms) that depends on the row alone.
Three kinds of it:

- *queue*: the later requests wait their turn, as at Ollama, llama.cpp and vLLM when their slots
  are taken;
- *share*: all go on at once and slow each other down, as where threads share a processor;
- *batch*: a queue whose slots slow each other down too, by 10 % for each that is busy: what a
  GPU that batches does. No server like it is fitted.

Each run predicts half and twice its workers, and an adaptive one, whose concurrency varied, half of
the slots and twice as many. Beside it stands a naive replay, in which every row takes the service
time that was measured. "≤" marks what ``what_if`` itself calls an upper bound.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import multiprocessing
import random
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Literal

import pandas as pd
from aiohttp import web

import revkit

SLOTS = 8
ROWS = 300
MEAN_S = 0.05
SIGMA = 0.6
KINDS = ("queue", "share", "batch")
WORKERS = (SLOTS // 4, SLOTS // 2, SLOTS, 2 * SLOTS, 4 * SLOTS, 8 * SLOTS)


def seconds(text: str) -> float:
    """Base time of a row: the same in every run."""
    return MEAN_S * random.Random(text).lognormvariate(-(SIGMA**2) / 2, SIGMA)


class Server:
    """Works on requests at the speed that its kind gives them."""

    def __init__(self, kind: str):
        self.kind = kind
        self.slots = asyncio.Semaphore(10**9 if kind == "share" else SLOTS)
        self.running = 0
        self.changed = asyncio.Event()

    def speed(self) -> float:
        if self.kind == "share":
            return min(1.0, SLOTS / self.running)
        return 1 / (1 + 0.1 * (self.running - 1)) if self.kind == "batch" else 1.0

    def change(self, by: int) -> None:
        self.running += by
        self.changed.set()
        self.changed = asyncio.Event()

    async def work(self, left: float) -> None:
        now = asyncio.get_running_loop().time
        async with self.slots:
            self.change(+1)
            while left > 0:
                speed, since = self.speed(), now()
                try:
                    async with asyncio.timeout(left / speed):
                        await self.changed.wait()
                except TimeoutError:
                    break
                left -= (now() - since) * speed
            self.change(-1)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        await self.work(seconds(body["messages"][-1]["content"]))
        message = {"role": "assistant", "content": "good"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice]}
        return web.Response(text=json.dumps(reply), content_type="application/json")


async def _serve(kind: str, told: Connection) -> None:
    server, app = Server(kind), web.Application()
    app.router.add_post("/v1/chat/completions", server.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    told.send(runner.addresses[0][1])
    await asyncio.Event().wait()


def serve_in_process(kind: str, told: Connection) -> None:
    asyncio.run(_serve(kind, told))


@contextmanager
def serving(kind: str) -> Iterator[str]:
    """A server of that kind; gives its base URL."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve_in_process, args=(kind, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def naive(run: revkit.ParallelResult, workers: int) -> float:
    """Wall time in seconds if each row took its measured service time, whatever else ran."""
    free = [0.0] * workers
    for service_ms in run.attempts.sort_values("start_s")["service_ms"]:
        heapq.heapreplace(free, free[0] + service_ms / 1e3)
    return max(free)


def measure(url: str, workers: int | Literal["adaptive"]) -> revkit.ParallelResult:
    frame = pd.DataFrame({"text": [f"text {n}" for n in range(ROWS)]})
    model = revkit.OpenAICompatible(base_url=url, model="m", api_key="none")
    run: revkit.ParallelResult = frame.llm.parallel_map(
        "{text}", model=model, max_workers=workers, store=False
    )
    return run


def error(predicted: float, measured: float) -> str:
    return "cannot tell" if predicted != predicted else f"{predicted / measured - 1:+.1%}"


def main() -> None:
    print(f"{SLOTS} slots, {ROWS} rows, mean {MEAN_S * 1e3:.0f} ms\n")
    print("| server | run with | slots found | asked | measured | `what_if` | p95 | naive replay |")
    print("|---|--:|---|--:|--:|--:|--:|--:|")
    for kind in KINDS:
        with serving(kind) as url:
            measure(url, 2)  # the first run pays for imports
            runs = {workers: measure(url, workers) for workers in WORKERS}
            adaptive = measure(url, "adaptive")
        asked = [(str(w), runs[w], (w // 2, 2 * w)) for w in WORKERS[1:-1]]
        for name, run, others in [*asked, ("adaptive", adaptive, (SLOTS // 2, 2 * SLOTS))]:
            what_if = run.what_if(others)
            found = "cannot tell" if what_if.slots is None else str(what_if.slots)
            found += ", shared" if what_if.shares else ""
            for other in others:
                told, there = what_if.frame.loc[other], runs[other]
                wall = there.metrics.wall_s
                bound = "≤ " if "upper bound" in told["basis"] else ""
                print(
                    f"| {kind} | {name} | {found} | {other} | {wall:.2f} s "
                    f"| {bound}{error(told['wall_s'], wall)} "
                    f"| {error(told['p95_ms'], there.latency['p95'])} "
                    f"| {error(naive(run, other), wall)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
