"""What observers cost: CPU per row of the pool alone, with and without them.

    python benchmarks/observers.py [--rows 50000] [--repeat 5]

Rows are trivial, so that what is measured is revkit alone; each figure is the median of processes
of their own, interleaved. "none" stands there twice: the difference between the two is the noise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any


class Counter:
    """The least that an observer can do."""

    def __init__(self) -> None:
        self.heard = 0

    def on_event(self, event: object) -> None:
        self.heard += 1


CASES = {
    "none": "noop",
    "none again": "noop",
    "an object that counts": Counter(),
    "jsonl": "jsonl",
    "logging, no handler": "logging",
}


def measure(case: str, rows: int) -> float:
    """Microseconds of CPU a row."""
    import numpy as np
    import pandas as pd

    import revkit  # noqa: F401 - for df.llm

    async def task(row: Any) -> int:
        return row["x"]  # type: ignore[no-any-return]

    frame, observer = pd.DataFrame({"x": np.arange(rows)}), CASES[case]
    frame.head(10).llm.parallel_map(task)  # everything that is imported late is imported now
    said, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - for the process's life
    began = time.process_time()
    frame.llm.parallel_map(task, max_workers=16, observer=observer)
    spent = time.process_time() - began
    sys.stdout = said
    if isinstance(observer, Counter):
        assert observer.heard == 3 * rows + 2
    return spent / rows * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(options.one, options.rows))
        return
    found: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(options.repeat):
        for case in CASES:
            command = [sys.executable, __file__, "--rows", str(options.rows), "--one", case]
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[case].append(float(said))
    none = statistics.median(found["none"])
    print(f"{'observer':24}{'CPU µs/row':>12}{'ratio':>8}")
    for case, runs in found.items():
        median = statistics.median(runs)
        print(f"{case:24}{median:>12.1f}{median / none:>8.2f}")


if __name__ == "__main__":
    main()
