"""Where the CPU of a row goes: each layer of revkit with those below it, and the calls of a row.

    python benchmarks/layers.py [--workers 16] [--rows 5000] [--repeat 5]

The layers take turns in one process, against one server that replies at once; medians. The calls
are counted by cProfile, which makes everything slower: its times say what is large, not how large.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import uvloop
from calls import BARE, BARE_UVLOOP, OTHER_ROWS, TEXT, WARM_UP
from clients import CLIENTS, Map, body
from server import prompt, serving

import revkit
from revkit.clients.aiohttp_transport import AiohttpTransport
from revkit.clients.contract import Request
from revkit.runtime.work import ModelWork
from revkit.scheduling.events import Attempt
from revkit.tables.rows import Rows

TASK = revkit.Signature(
    "Say what the customer who wrote the review thinks of the product.",
    inputs="review",
    outputs={"sentiment": ["positive", "neutral", "negative"]},
)
#: Lines of the profile that are shown.
SHOWN = 40


def model(url: str) -> revkit.OpenAICompatible:
    return revkit.OpenAICompatible("m", base_url=f"{url}/v1", api_key="none")


def on_uvloop(main: Callable[[list[str]], Coroutine[Any, Any, object]]) -> Map:
    def run(prompts: list[str]) -> list[Any]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(prompts))
        return []

    return run


def transport(url: str, workers: int) -> Map:
    """Requests and replies over revkit's transport, as bare workers make and read them."""
    target = f"{url}/v1/chat/completions"
    headers = {"content-type": "application/json", "authorization": "Bearer none"}

    async def main(prompts: list[str]) -> None:
        sender, rows = AiohttpTransport(url, max_workers=workers), iter(prompts)

        async def work() -> None:
            for text in rows:
                response = await sender.send(Request(target, orjson.dumps(body(text)), headers))
                reply = orjson.loads(response.body)
                orjson.loads(reply["choices"][0]["message"]["content"])

        await asyncio.gather(*(work() for _ in range(workers)))
        await sender.aclose()

    return on_uvloop(main)


def attempts(url: str, workers: int) -> Map:
    """The same with prompt, body, and a reply that is read and checked against the task."""

    async def main(prompts: list[str]) -> None:
        work = ModelWork(TASK, model(url), Rows(["review"], [prompts]))
        await work.aopen(workers)
        async with work.aworker(0) as attempt:
            rows = iter(range(len(prompts)))

            async def go() -> None:
                for row in rows:
                    await attempt(Attempt(row, 1, 0))

            await asyncio.gather(*(go() for _ in range(workers)))
        await work.aclose()

    return on_uvloop(main)


def without_store(url: str, workers: int) -> Map:
    def run(prompts: list[str]) -> list[Any]:
        df = pd.DataFrame({"review": prompts})
        run = df.llm.parallel_map(TASK, model=model(url), max_workers=workers, store=False)
        return [run.latency["p99"]]

    return run


LAYERS: dict[str, Callable[[str, int], Map]] = {
    BARE: CLIENTS[BARE],
    BARE_UVLOOP: CLIENTS[BARE_UVLOOP],
    "requests sent by revkit's transport": transport,
    "prompt, body, reply read and checked": attempts,
    "scheduler, record, columns, percentiles": without_store,
    "the store": CLIENTS["revkit"],
}


def layers(workers: int, rows: int, repeat: int) -> None:
    """CPU in µs a row of each layer, with all that stands above it."""
    found: dict[str, list[float]] = {name: [] for name in LAYERS}
    prompts = [prompt(TEXT, row) for row in range(rows)]
    with serving(0) as url:
        runs = {name: make(url, workers) for name, make in LAYERS.items()}
        for run in runs.values():
            run([prompt(TEXT, OTHER_ROWS + row) for row in range(WARM_UP)])
        for _ in range(repeat):
            for name, run in runs.items():
                gc.collect()
                began = time.process_time()
                run(prompts)
                found[name].append((time.process_time() - began) / rows * 1e6)
    print(f"{'CPU, µs a row':45}{workers:>4} workers")
    for name, times in found.items():
        print(f"{name:45}{statistics.median(times):>12.0f}")


def calls(workers: int, rows: int) -> None:
    """Calls and time of each function for a row, of a run that is awaited on one loop."""
    df = pd.DataFrame({"review": [prompt(TEXT, row) for row in range(rows)]})
    with serving(0) as url, tempfile.TemporaryDirectory() as place:

        async def run(name: str) -> None:
            store = Path(place) / name
            await df.llm.aparallel_map(TASK, model=model(url), max_workers=workers, store=store)

        asyncio.run(run("first.sqlite"))
        with cProfile.Profile() as profile:
            asyncio.run(run("second.sqlite"))
    print(f"\n{'calls a row':>12}{'own µs a row':>14}")
    functions = pstats.Stats(profile).get_stats_profile().func_profiles.items()
    for name, one in sorted(functions, key=lambda item: -item[1].tottime)[:SHOWN]:
        often = int(one.ncalls.partition("/")[0]) / rows
        where = one.file_name.partition("site-packages/")[2] or one.file_name
        where = "" if where == "~" else "/".join(Path(where).parts[-2:])
        print(f"{often:>12.2f}{one.tottime / rows * 1e6:>14.2f}  {where} {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    layers(options.workers, options.rows, options.repeat)
    calls(options.workers, options.rows)


if __name__ == "__main__":
    main()
