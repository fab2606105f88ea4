"""What a client adds to a call: revkit beside the others, against a server on loopback.

    python benchmarks/calls.py [--peers PYTHON] [--repeat 3] [--case 50] [--write]

Each figure is the median of runs that take turns, each in a process of its own and against a server
of its own. A run is void unless every reply stands at its row and the server has counted as many
requests as rows. The clients that are not revkit's (``requirements-peers.txt``) may live in another
environment; ``--peers`` names its interpreter. ``--write`` writes ``README.md``, with what
``start.py``, ``pool.py`` and ``cluster.py`` say below it.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from clients import CLIENTS
from server import label, prompt, serving, stats

#: As long as a review.
REVIEW = "I bought this for my mother and it broke twice within a month but they were kind"
TEXT = " ".join((REVIEW.split() * 4)[:64])
#: Rows with which each process gets everything ready before it is measured, and their numbers.
WARM_UP, OTHER_ROWS = 64, 10_000_000
BARE, BARE_UVLOOP = "bare aiohttp workers", "bare aiohttp workers, uvloop"
#: Those that run in revkit's own environment.
HERE = ("revkit", "revkit, threads", BARE, BARE_UVLOOP)
VOID = "void: the server counted more or fewer requests than rows"
#: Seconds for one run.
PATIENCE = 300


class Case(NamedTuple):
    """So many rows, at a server that takes so long for each."""

    latency_ms: int
    workers: int
    rows: int
    clients: tuple[str, ...]

    def turns(self, repeat: int) -> int:
        """How often each client is measured: more often where all of them take seconds."""
        return repeat if set(self.clients) - set(HERE) else 2 * repeat + 1

    @property
    def name(self) -> str:
        return f"{self.latency_ms} ms, {self.workers:,} workers"


FAST = ("revkit", BARE, BARE_UVLOOP)
CASES = (
    *(Case(0, workers, 5_000, FAST) for workers in (1, 16, 64)),
    Case(50, 64, 2_560, tuple(CLIENTS)),
    *(Case(200, workers, 20 * workers, FAST) for workers in (256, 1_000)),
)


def measure(name: str, url: str, workers: int, rows: int) -> dict[str, float]:
    """One client in this process."""
    run = CLIENTS[name](url, workers)
    run([prompt(TEXT, OTHER_ROWS + row) for row in range(WARM_UP)])
    prompts = [prompt(TEXT, row) for row in range(rows)]
    gc.collect()  # what the imports left: no row's doing, and it takes 40 ms whenever it comes
    cpu, wall = time.process_time(), time.perf_counter()
    found = run(prompts)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    wrong = sum(one != label(row) for row, one in enumerate(found))
    if wrong or len(found) != rows:
        raise SystemExit(f"void: {wrong} of {rows} replies are not those of their rows")
    return {
        "cpu_us_per_row": cpu / rows * 1e6,
        "rows_per_s": rows / wall,
        "wall_s": wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run_one(case: Case, name: str, python: str) -> dict[str, float] | str:
    """One client in a process of its own; why there is no figure, where there is none."""
    with serving(case.latency_ms / 1e3) as url:
        command = [python, __file__, "--one", name, url, str(case.workers), str(case.rows)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return f"void: it took more than {PATIENCE} s"
        counted = stats(url)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return said[-1] if said else f"it ended with {done.returncode}"
    if counted["requests"] != case.rows + WARM_UP:
        return VOID
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    found["efficiency"] = case.rows * case.latency_ms / 1e3 / case.workers / found["wall_s"]
    found["most_in_flight"] = counted["most_running"]
    found["connections"] = counted["most_open"]
    return found


def run_all(cases: tuple[Case, ...], repeat: int, peers: str) -> list[dict[str, Any]]:
    """Every client of every case, taking turns; medians."""
    lines = []
    for case in cases:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in case.clients}
        why: dict[str, str] = {}
        for turn in range(case.turns(repeat)):
            for name in case.clients:
                if name in why:
                    continue
                python = sys.executable if name in HERE else peers
                found = run_one(case, name, python)
                if found == VOID:  # a client that tried a row again, say: once more
                    found = run_one(case, name, python)
                if isinstance(found, str):
                    why[name] = found
                else:
                    runs[name].append(found)
                print(f"{case.name}, turn {turn + 1}: {name}: {found}", file=sys.stderr)
        for name in case.clients:
            line: dict[str, Any] = {**case._asdict(), "client": name, "why": why.get(name)}
            del line["clients"]
            if name not in why:
                columns = runs[name][0]
                line |= {key: statistics.median(run[key] for run in runs[name]) for key in columns}
            lines.append(line)
    return lines


PEERS = [
    "openai",
    "httpx",
    "dspy",
    "langchain-openai",
    "litellm",
    "distribatch",
    "silkloom-core",
    "openaivec",
]


def versions_of(python: str) -> dict[str, str]:
    """Versions of the peers in that environment; without those that are not there."""
    ask = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.name.lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: have[n] for n in sys.argv[1:] if n in have}))"
    )
    said = subprocess.run([python, "-c", ask, *PEERS], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(said.stdout)
    return found


def said_by(benchmark: str) -> str:
    """What another of the benchmarks prints."""
    command = [sys.executable, str(Path(__file__).with_name(benchmark))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()


def ceiling(connections: int = 64, requests: int = 50_000) -> float:
    """Requests per second that the server takes from a client that costs next to nothing."""
    import asyncio

    import orjson
    import uvloop
    from clients import body

    said = orjson.dumps(body(prompt(TEXT, 1)))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: "
    request = b"%s%d\r\n\r\n%s" % (head.encode(), len(said), said)

    class Asker(asyncio.Protocol):
        left = requests

        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            transport.write(request)

        def data_received(self, data: bytes) -> None:
            Asker.left -= 1  # a reply is short: it comes in one piece
            if Asker.left > 0:
                self.transport.write(request)
            elif not done.done():
                done.set_result(None)

    async def ask(port: int) -> float:
        nonlocal done
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        began = time.perf_counter()
        for _ in range(connections):
            await loop.create_connection(Asker, "127.0.0.1", port)
        await done
        return requests / (time.perf_counter() - began)

    done: Any = None
    with serving(0) as url:
        return uvloop.run(ask(int(url.rsplit(":", 1)[1])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--case", type=int, nargs="*", help="only those of these latencies in ms")
    parser.add_argument("--client", nargs="*", help="only these clients")
    parser.add_argument("--write", action="store_true", help="write README.md and its plot")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, url, workers, rows = options.one
        print(json.dumps(measure(name, url, int(workers), int(rows))))
        return
    cases = tuple(c for c in CASES if not options.case or c.latency_ms in options.case)
    if options.client:
        cases = tuple(c._replace(clients=tuple(options.client)) for c in cases)
    from report import calls_table, write_readme

    lines = run_all(cases, options.repeat, options.peers)
    print(calls_table(lines))
    if options.write:
        write_readme(
            lines,
            repeat=options.repeat,
            peers=versions_of(options.peers),
            ceiling=f"The server's ceiling: {ceiling():,.0f} requests/s, asked over 64 connections "
            "by a client that does nothing but write the same bytes and count what comes back.",
            others={name: said_by(name) for name in ("start.py", "pool.py", "cluster.py")},
        )


if __name__ == "__main__":
    main()
