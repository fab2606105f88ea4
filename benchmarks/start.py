"""What it takes to start: ``import revkit`` beside ``import pandas``, and a run of twelve rows.

    python benchmarks/start.py [--repeat 15]

Each figure is the median over processes of their own, which take turns. The run's task is a
function that does nothing; the first one of a process imports what is imported late.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

TWELVE = """
import sys, time
import pandas, revkit
frame = pandas.DataFrame({"x": range(12)})
def plain(row): return row["x"]
async def coroutine(row): return row["x"]
for _ in range(2):
    began = time.perf_counter()
    frame.llm.parallel_map(plain if sys.argv[1] == "thread" else coroutine)
    print((time.perf_counter() - began) * 1e3)
"""


def took(*command: str) -> tuple[float, float]:
    """CPU and wall time of a process in ms."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *command], check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu * 1e3, wall * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=15)
    repeat = parser.parse_args().repeat
    imports: dict[str, list[tuple[float, float]]] = {"import pandas": [], "import revkit": []}
    calls: dict[str, list[list[float]]] = {"thread": [], "async": []}
    for _ in range(repeat):
        for line, times in imports.items():
            times.append(took("-c", line))
        for engine, found in calls.items():
            command = [sys.executable, "-c", TWELVE, engine]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found.append([float(ms) for ms in said.split()])
    middle = {
        line: [statistics.median(each) for each in zip(*times, strict=True)]
        for line, times in imports.items()
    }
    print(f"{'':16}{'CPU ms':>10}{'wall ms':>10}")
    for line, (cpu, wall) in middle.items():
        print(f"{line:16}{cpu:>10.0f}{wall:>10.0f}")
    ratios = [a / b for a, b in zip(middle["import revkit"], middle["import pandas"], strict=True)]
    print(f"{'ratio':16}{ratios[0]:>10.2f}{ratios[1]:>10.2f}\n")
    print(f"{'twelve rows':16}{'first ms':>10}{'next ms':>10}")
    for engine, found in calls.items():
        first, after = (statistics.median(each) for each in zip(*found, strict=True))
        print(f"{engine:16}{first:>10.1f}{after:>10.1f}")


if __name__ == "__main__":
    main()
