"""What the scheduler costs a row at sizes that no server here could take, on a virtual clock.

    python benchmarks/simulation.py [--rows 10000000] [--plot simulation.png]

Nothing waits: the clock jumps from one event to the next. Service times are log-normal (median 1 s,
sigma 0.5), one attempt in fifty fails for a moment and is tried again, and every row must end well.
The figure is CPU per row, the events of the simulation itself included.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import time
from pathlib import Path

from revkit.scheduling.events import Attempt, Decision, Failure, Success
from revkit.scheduling.policy import Retry
from revkit.scheduling.scheduler import DONE, Scheduler

FAILS, SIGMA = 0.02, 0.5
WORKERS = (1, 16, 256, 4_096)
GOOD = Success({})
BAD = Failure("Unavailable", "a moment of overload", transient=True)


def simulate(rows: int, workers: int, seed: int = 1) -> dict[str, float]:
    """Run so many rows; seconds on the virtual clock, attempts, and µs of CPU a row."""
    chance = random.Random(seed)
    draws = [math.exp(chance.gauss(0.0, SIGMA)) for _ in range(65_536)]
    scheduler = Scheduler(
        range(rows), max_workers=workers, retry=Retry(attempts=20), chance=chance.random
    )
    running: list[tuple[float, int, Attempt]] = []
    idle = list(range(workers))
    now, attempts, done = 0.0, 0, 0
    cpu = time.process_time()
    while True:
        while idle:
            step = scheduler.take(idle[-1], now)
            if not isinstance(step, Attempt):
                break
            attempts += 1
            seconds = draws[attempts & 65_535]
            heapq.heappush(running, (now + seconds, idle.pop(), step))
        if not running:
            if scheduler.take(0, now) is DONE:
                break
            now = scheduler.due()
            continue
        if idle and scheduler.due() < running[0][0]:
            now = max(now, scheduler.due())
            continue
        now, worker, attempt = heapq.heappop(running)
        outcome = BAD if chance.random() < FAILS else GOOD
        done += scheduler.settle(attempt, outcome, now) is Decision.OK
        idle.append(worker)
    cpu = time.process_time() - cpu
    assert done == rows, f"{rows - done} rows did not end well"
    return {"wall_s": now, "attempts": attempts, "cpu_us_per_row": cpu / rows * 1e6}


def draw(found: dict[tuple[int, int], float], path: Path) -> None:
    """Cost per row over rows, a line for each number of workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for workers in sorted({workers for _, workers in found}):
        mine = sorted((rows, cost) for (rows, of), cost in found.items() if of == workers)
        axes.plot(*zip(*mine, strict=True), marker="o", label=f"{workers:,} workers")
    axes.set(xscale="log", xlabel="rows", ylabel="CPU per row in µs", ylim=(0, None))
    axes.set_title("The scheduler on a virtual clock")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="the most")
    parser.add_argument("--plot", type=Path, default=Path(__file__).with_name("simulation.png"))
    options = parser.parse_args()
    sizes = [rows for rows in (10_000, 100_000, 1_000_000) if rows < options.rows]
    cases = [(rows, workers) for rows in sizes for workers in WORKERS]
    cases.append((options.rows, WORKERS[-1]))
    found = {}
    print("| rows | workers | attempts | virtual time, s | CPU, µs a row |")
    print("| --: | --: | --: | --: | --: |")
    for rows, workers in cases:
        run = simulate(rows, workers)
        found[rows, workers] = run["cpu_us_per_row"]
        print(
            f"| {rows:,} | {workers:,} | {run['attempts']:,.0f} | {run['wall_s']:,.0f} "
            f"| {run['cpu_us_per_row']:.2f} |",
            flush=True,
        )
    draw(found, options.plot)


if __name__ == "__main__":
    main()
