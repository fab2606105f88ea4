"""Peak memory: a large Parquet file by chunks, and a frame at once.

    python benchmarks/memory.py [--rows 1000000] [--frame-rows 100000] [--chunk-rows 10000]

Each figure is from a process of its own, on Linux, and is the peak of its resident memory in MiB.
The rows are short ("row 123456"), the function is trivial, and the model is a stand-in that answers
at once with a label; its replies go into a store. Aims: ``map_parquet`` under 400 MiB in all;
``parallel_map`` of 100,000 rows under 100 MiB above what the process had with the frame.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = ("map_parquet", "parallel_map, thread", "parallel_map, async", "parallel_map, model")


def resident_mib(what: str) -> float:
    """``VmRSS``, what it is now, or ``VmHWM``, its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/status is needed, as Linux has it")


def length(row: Any) -> int:
    return len(row["text"])


async def alength(row: Any) -> int:
    return len(row["text"])


def make(path: Path, rows: int) -> None:
    import pandas as pd

    pd.DataFrame({"text": [f"row {number}" for number in range(rows)]}).to_parquet(path)


def measure(case: str, path: Path, chunk_rows: int) -> dict[str, float]:
    import pandas as pd

    import revkit
    from revkit.testing import FakeModel

    class Forgetful(list[Any]):
        """What the stand-in was asked: a real client keeps none of it."""

        def append(self, _: Any) -> None: ...

    model = FakeModel(lambda text: "positive")
    model.calls = Forgetful()
    small = pd.DataFrame({"text": ["a row"]})
    small.llm.parallel_map(length, inplace=False)  # what is imported late is imported now
    began = time.perf_counter()
    if case == "map_parquet":
        sink = path.with_name("sink.parquet")
        done = revkit.map_parquet(path, length, sink, output="length", chunk_rows=chunk_rows)
        return {
            "before": 0.0,
            "peak": resident_mib("VmHWM"),
            "seconds": time.perf_counter() - began,
            "rows": done.metrics.succeeded,
        }
    frame = pd.read_parquet(path)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of the run alone
    before = resident_mib("VmRSS")
    if case == "parallel_map, model":
        run = frame.llm.parallel_map(on="text", model=model, store=path.with_suffix(".sqlite"))
    else:
        task: Any = alength if case == "parallel_map, async" else length
        run = frame.llm.parallel_map(task, output="length")
    peak, seconds = resident_mib("VmHWM"), time.perf_counter() - began
    return {"before": before, "peak": peak, "seconds": seconds, "rows": run.metrics.succeeded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--frame-rows", type=int, default=100_000)
    parser.add_argument("--chunk-rows", type=int, default=10_000)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(Path(options.make[0]), int(options.make[1]))
        return
    if options.one:
        case, path = options.one
        print(json.dumps(measure(case, Path(path), options.chunk_rows)))
        return
    print(f"{'':24}{'rows':>10}{'peak MiB':>10}{'above':>8}{'seconds':>9}")
    for case in (
        "map_parquet",
        "parallel_map, thread",
        "parallel_map, async",
        "parallel_map, model",
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/rows.parquet"
            rows = options.rows if case == "map_parquet" else options.frame_rows
            this = [sys.executable, __file__]
            subprocess.run([*this, "--make", path, str(rows)], check=True)
            command = [*this, "--chunk-rows", str(options.chunk_rows), "--one", case, path]
            found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            assert found["rows"] == rows
            above = f"{found['peak'] - found['before']:.0f}" if found["before"] else ""
            print(f"{case:24}{rows:>10,}{found['peak']:>10.0f}{above:>8}{found['seconds']:>9.1f}")


if __name__ == "__main__":
    main()
