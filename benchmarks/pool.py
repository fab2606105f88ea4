"""CPU per row of the pool alone: 100,000 rows, a trivial callable, each engine.

    python benchmarks/pool.py [--rows 100000] [--repeat 3]

Each figure is from a process of its own; writing the columns back and the percentiles are part of
it. A bare loop over the same rows is measured beside it, as the floor.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any


def measure(engine: str, workers: int, rows: int) -> dict[str, float]:
    import numpy as np
    import pandas as pd

    import revkit

    def plain(row: Any) -> int:
        return row["x"]  # type: ignore[no-any-return]

    async def coroutine(row: Any) -> int:
        return row["x"]  # type: ignore[no-any-return]

    frame = pd.DataFrame({"x": np.arange(rows)})
    frame.head(10).llm.parallel_map(plain)  # everything that is imported late is imported now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    if engine == "loop over rows":
        frame["response"] = [plain({"x": x}) for x in frame["x"].tolist()]
    else:
        task = plain if engine == "thread" else coroutine
        run: revkit.ParallelResult = frame.llm.parallel_map(task, max_workers=workers)
        assert run.metrics.engine == engine
        assert run.latency["p99"] > 0
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (frame["response"] == frame["x"]).all()
    return {
        "cpu_us_per_row": cpu / rows * 1e6,
        "wall_us_per_row": wall / rows * 1e6,
        "grown_mib": (after - before) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        engine, workers = options.one
        print(json.dumps(measure(engine, int(workers), options.rows)))
        return
    cases = [("loop over rows", 1)]
    cases += [(engine, workers) for engine in ("thread", "async") for workers in (1, 16, 64)]
    found: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(options.repeat):  # interleaved, so that a busy minute hits all alike
        for case in cases:
            command = [sys.executable, __file__, "--rows", str(options.rows)]
            command += ["--one", case[0], str(case[1])]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[case].append(json.loads(said))
    print(f"{'':16}{'workers':>8}{'CPU µs/row':>12}{'wall µs/row':>13}{'memory MiB':>12}")
    for (engine, workers), runs in found.items():
        cpu, wall, grown = (
            statistics.median(run[name] for run in runs)
            for name in ("cpu_us_per_row", "wall_us_per_row", "grown_mib")
        )
        print(f"{engine:16}{workers:>8}{cpu:>12.1f}{wall:>13.1f}{grown:>12.0f}")


if __name__ == "__main__":
    main()
