"""Rows a second on one and two Dask processes, a killed worker, and a rate over three workers.

    python benchmarks/cluster.py [--rows 2000] [--seconds 60]

One server on loopback, in a process of its own, answers each request after 50 ms. First the same
rows on one and on two Dask processes with the same limit for the cluster, once with a model and
once with a function that computes: the ratio is what the second process brings. Then one of two
processes is killed in mid-run, with a shared store. Last, three processes share a rate limit.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pandas as pd
from distributed import Client, LocalCluster

import revkit
import revkit.dask

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

WORKERS = 16


def serving(pipe: Any) -> None:
    """The server's process: tells its address, then the prompts that it was sent, when asked."""
    from servers import serve

    asked: list[tuple[str, float]] = []

    def answer(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
        asked.append((messages[-1]["content"], time.monotonic()))
        time.sleep(0.05)
        return "yes"

    with serve(answer) as server:
        pipe.send(server.url)
        while pipe.recv() == "asked":
            pipe.send(list(asked))
            asked.clear()


def compute(row: Any) -> int:
    """Some milliseconds of a processor's time."""
    total = 0
    for number in range(60_000):
        total += number % 7
    return total


def frame(rows: int) -> Any:
    return dd.from_pandas(pd.DataFrame({"n": [str(n) for n in range(rows)]}), npartitions=6)


def cluster(processes: int) -> LocalCluster:
    return LocalCluster(
        n_workers=processes,
        threads_per_worker=1,
        dashboard_address=":0",
        silence_logs=logging.CRITICAL,
    )


def rate_of(call: Any, rows: int) -> float:
    call(60)  # imports, connections
    began = time.perf_counter()
    call(rows)
    return rows / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serving, args=(there,))
    server.start()
    model = revkit.Ollama("m", host=here.recv())

    def asked() -> list[tuple[str, float]]:
        here.send("asked")
        found: list[tuple[str, float]] = here.recv()
        return found

    def ask(rows: int, **more: Any) -> Any:
        told: dict[str, Any] = {"store": False, "max_workers": WORKERS, **more}
        return frame(rows).llm.parallel_map("{n}", model=model, **told).compute()

    def calculate(rows: int) -> Any:
        return frame(rows).llm.parallel_map(compute, max_workers=WORKERS).compute()

    found: dict[int, tuple[float, float]] = {}
    for processes in (1, 2):
        with cluster(processes) as made, Client(made):
            found[processes] = rate_of(ask, options.rows), rate_of(calculate, options.rows)
            told = found[processes]
            print(f"{processes} process(es): model {told[0]:.0f} rows/s, function {told[1]:.0f}")
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    print(f"two to one: model {ratios[0]:.2f}, function {ratios[1]:.2f}\n")

    asked()
    with cluster(2) as made, Client(made) as client, tempfile.TemporaryDirectory() as store:
        pids = list(client.run(os.getpid).values())
        call = frame(options.rows).llm.parallel_map(
            "{n}", model=model, max_workers=WORKERS, store=store
        )
        future, enough = client.compute(call), min(100, options.rows // 2)
        while sum(p.read_bytes().count(b"\n") for p in Path(store).glob("*.jsonl")) < enough:
            time.sleep(0.01)
        os.kill(pids[0], signal.SIGKILL)
        killed = time.monotonic()
        done = future.result()
        calls = asked()
    times = Counter(prompt for prompt, _ in calls)
    again, seen = [], set()
    for prompt, at in calls:
        if prompt in seen:
            again.append(at)
        seen.add(prompt)
    lost = int(done["response"].isna().sum()) + options.rows - len(done)
    print(f"a killed worker, {options.rows} rows, {WORKERS} calls at once:")
    print(f"rows lost {lost}, calls repeated {sum(times.values()) - len(times)}")
    if again:
        print(f"seconds until the first of them was repeated {min(again) - killed:.2f}\n")

    limit, minute = 1200, options.seconds
    with cluster(3) as made, Client(made):
        ask(int(limit / 60 * minute), rate_limit=revkit.RateLimit(requests_per_minute=limit))
        at = sorted(when for _, when in asked())
    most = max(sum(start <= when < start + 60 for when in at) for start in at[:: len(at) // 50 + 1])
    taken = at[-1] - at[0]
    print(f"rate over three workers: {len(at)} requests in {taken:.1f} s, limit {limit} a minute;")
    print(f"{len(at) / taken * 60:.0f} a minute, most in any 60 s {most}")
    here.send("over")
    server.join()


if __name__ == "__main__":
    main()
