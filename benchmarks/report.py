"""Tables, plots and ``README.md`` out of what ``calls.py`` measured."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

BARE = "bare aiohttp workers"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; numbers to the right, the first column to the left."""
    marks = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *rows))


def _ratio(line: dict[str, Any], bare: dict[str, Any] | None, figure: str) -> str:
    if bare is None or figure not in bare:
        return ""
    return f" ({line[figure] / bare[figure]:.2f})"


def calls_table(lines: list[dict[str, Any]]) -> str:
    """A table for each case; in parentheses the ratio to bare aiohttp workers."""
    parts = []
    cases = dict.fromkeys((line["latency_ms"], line["workers"], line["rows"]) for line in lines)
    for case in cases:
        latency, workers, rows = case
        mine = [x for x in lines if (x["latency_ms"], x["workers"], x["rows"]) == case]
        bare = next((x for x in mine if x["client"] == BARE and not x["why"]), None)
        told = []
        for line in sorted(mine, key=lambda x: x.get("cpu_us_per_row", float("inf"))):
            if line["why"]:
                told.append([line["client"], f"none: {line['why']}", "", "", "", "", ""])
                continue
            told.append(
                [
                    line["client"],
                    f"{line['cpu_us_per_row']:,.0f}{_ratio(line, bare, 'cpu_us_per_row')}",
                    f"{line['rows_per_s']:,.0f}{_ratio(line, bare, 'rows_per_s')}",
                    f"{line['efficiency']:.2f}" if latency else "",
                    f"{line['peak_mib']:,.0f}",
                    f"{line['most_in_flight']:,.0f}" if latency else "",
                    f"{line['connections']:,.0f}",
                ]
            )
        head = ["client", "CPU, µs a row", "rows/s", "efficiency", "peak MiB", "in flight", "conns"]
        many = "workers" if workers > 1 else "worker"
        title = f"**{latency} ms, {workers:,} {many}, {rows:,} rows**"
        parts.append(f"{title}\n\n{table(head, told)}")
    return "\n\n".join(parts)


def aims_table(lines: list[dict[str, Any]], others: dict[str, str]) -> str:
    """What was aimed at, beside what it came to; without what was not measured.

    Args:
        others: what the other benchmarks print.
    """
    good = {(x["latency_ms"], x["workers"], x["client"]): x for x in lines if not x["why"]}

    def ratio(figure: str, case: tuple[int, int], over: tuple[int, int, str]) -> float | None:
        mine, other = good.get((*case, "revkit")), good.get(over)
        return None if mine is None or other is None else mine[figure] / other[figure]

    cpu, pace, efficiency = "cpu_us_per_row", "rows_per_s", "efficiency"
    told: list[tuple[str, str, float | None]] = [
        ("0 ms, 16 workers: CPU, to bare aiohttp", "≤ 1.25", ratio(cpu, (0, 16), (0, 16, BARE))),
        ("0 ms, 64 workers: CPU, to bare aiohttp", "≤ 1.25", ratio(cpu, (0, 64), (0, 64, BARE))),
        ("0 ms: CPU of 64 workers, to one", "≤ 1.1", ratio(cpu, (0, 64), (0, 1, "revkit"))),
        ("50 ms, 64 workers: rows/s, to bare", "≥ 0.95", ratio(pace, (50, 64), (50, 64, BARE))),
    ]
    peers = [
        x
        for key, x in good.items()
        if key[:2] == (50, 64) and not key[2].startswith(("rev", "bare"))
    ]
    if peers:
        best = max(peers, key=lambda x: x[pace])
        most = 64 / 0.05 / best[pace]
        what = f"50 ms, 64 workers: rows/s, to the best peer ({best['client']})"
        told.append(
            (
                what,
                f"≥ 3.5; {most:.2f} is all there is",
                ratio(pace, (50, 64), (50, 64, best["client"])),
            )
        )
    for workers in (256, 1_000):
        what = f"200 ms, {workers:,} workers: efficiency, to bare"
        told.append((what, "≥ 1", ratio(efficiency, (200, workers), (200, workers, BARE))))
    rows = [[what, aim, f"{x:.2f}"] for what, aim, x in told if x is not None]
    return table(["ratio", "aim", "measured"], rows + _in_flight(good) + _other_aims(others))


def _in_flight(good: dict[tuple[int, int, str], dict[str, Any]]) -> list[list[str]]:
    mine = [x for (latency, _, name), x in good.items() if latency and name == "revkit"]
    aim = " / ".join(f"{x['workers']:,}" for x in mine)
    return [
        [f"highest {what}", aim, " / ".join(f"{x[key]:,.0f}" for x in mine)]
        for what, key in (("number in flight", "most_in_flight"), ("connections", "connections"))
    ]


def _other_aims(others: dict[str, str]) -> list[list[str]]:
    # By the words that their lines begin with, without their numbers of workers.
    start = {line.split()[0]: line.split() for line in others["start.py"].splitlines() if line}
    pool = {tuple(line.split()[:2]): line.split() for line in others["pool.py"].splitlines()}
    thread, loop = pool["thread", "16"], pool["async", "16"]
    return [
        ["pool alone, 16 workers, threads / loop: CPU in µs a row", "≤ 15", _pair(thread, loop, 2)],
        ["the same: memory grown, in MiB", "≤ 100", _pair(thread, loop, 4)],
        ["import revkit, to import pandas: CPU / wall", "≤ 1.3", " / ".join(start["ratio"][1:])],
        [
            "first twelve rows in ms: plain function / coroutine",
            "< 20",
            _pair(start["thread"], start["async"], 1),
        ],
    ]


def _pair(one: list[str], other: list[str], column: int) -> str:
    return f"{one[column]} / {other[column]}"


def machine(clients: dict[str, str]) -> str:
    """What it was measured on, in a sentence; ``clients``: versions of the peers."""
    import importlib.metadata
    import os
    import platform

    ours = ("revkit", "aiohttp", "pydantic", "pandas", "uvloop")
    versions = {name: importlib.metadata.version(name) for name in ours} | clients
    load = os.getloadavg()[1]
    return (
        f"Python {platform.python_version()}, {platform.system()} on {os.cpu_count()} cores "
        f"({platform.machine()}), load of the last five minutes {load:.1f}. "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        + "."
    )


def plot_calls(lines: list[dict[str, Any]], path: Path) -> None:
    """CPU per row and rows/s of each client, at the case that has the most of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    good = [line for line in lines if not line["why"]]
    sizes = Counter((line["latency_ms"], line["workers"]) for line in good)
    if not sizes:
        return
    case = max(sizes, key=lambda case: sizes[case])
    mine = [x for x in good if (x["latency_ms"], x["workers"]) == case]
    mine.sort(key=lambda x: x["cpu_us_per_row"], reverse=True)
    names = [x["client"] for x in mine]
    colours = ["tab:blue" if name.startswith("revkit") else "tab:gray" for name in names]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    left.barh(names, [x["cpu_us_per_row"] / 1e3 for x in mine], color=colours)
    left.set(xlabel="CPU per row in ms")
    right.barh(names, [x["rows_per_s"] for x in mine], color=colours)
    right.set(xlabel="rows/s")
    if case[0]:
        right.axvline(case[1] / case[0] * 1e3, color="black", linestyle=":")
        right.set(xlabel="rows/s (dotted: as many as the latency allows)")
    figure.suptitle(f"{case[0]} ms for each reply, {case[1]} workers")
    figure.savefig(path, dpi=110)


_HEAD = """\
# What revkit adds to a call

Written by `python benchmarks/calls.py --write`. The other benchmarks say at their top how they are
run.

A chat model on loopback that only waits answers each client; a client runs in a process of its own
and sends one request a row, with the same instructions and the same schema where it can. Figures
are medians of {repeat} runs that took turns, of {more} where no other tool takes part; in
parentheses the ratio to bare aiohttp workers. A run is void unless every reply stood at its row and
the server counted as many requests as rows.
revkit runs with what is on by default: typed output, validation, a fresh store, attempts recorded;
its progress bar is off. CPU is that of the client's process, its threads included. Each process has
done a few rows before it is measured, and collected what its imports left as garbage.

{machine}

{ceiling}

"""


def write_readme(
    lines: list[dict[str, Any]],
    *,
    repeat: int,
    peers: dict[str, str],
    ceiling: str,
    others: dict[str, str],
) -> None:
    """``README.md`` beside this file, and its plot."""
    here = Path(__file__).parent
    plot_calls(lines, here / "calls.png")
    head = _HEAD.format(repeat=repeat, more=2 * repeat + 1, machine=machine(peers), ceiling=ceiling)
    picture = "![CPU per row and rows per second of each client](calls.png)"
    parts = [aims_table(lines, others), picture, calls_table(lines)]
    parts += [
        f"`python benchmarks/{name}`:\n\n```text\n{said}\n```" for name, said in others.items()
    ]
    (here / "README.md").write_text(head + "\n\n".join(parts) + "\n")
