"""Tables, plots and ``README.md`` out of what was measured: see ``run.py``."""

from __future__ import annotations

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
        parts.append(f"**{latency} ms, {workers:,} workers, {rows:,} rows**\n\n{table(head, told)}")
    return "\n\n".join(parts)
