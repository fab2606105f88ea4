"""A run as text: ``short`` is its repr, ``text`` its report for a terminal."""

from __future__ import annotations

from . import facts
from .facts import RunFacts
from .words import COLUMNS, columns_of, harmless, printable, wrapped

__all__ = ["short", "text"]

_BAR = 40  # width of the bar of a label that every row has


def short(result: RunFacts) -> str:
    """The repr: counts and labels on one or two lines, and nothing that time decides."""
    lines = ["ParallelResult: " + ", ".join(facts.counts(result.metrics))]
    summaries = [
        f"{name}: " + ", ".join(f"{share.rows:,} {share.label}" for share in shares)
        for name, shares, _ in facts.summaries(result)
    ]
    if summaries:
        lines.append(harmless("; ".join(summaries), COLUMNS))
    return "\n".join(lines)


def text(result: RunFacts) -> str:
    """The report: several lines of at most 100 characters, to be printed."""
    lines = [", ".join(facts.counts(result.metrics))]
    if result.model_name is not None:
        lines.append(f"model: {harmless(result.model_name, 80)}")
    for line in (*facts.answered(result), *facts.troubles(result)):
        lines += wrapped(line, indent=0)
    for name, shares, more in facts.summaries(result):
        wide = max(columns_of(share.label) for share in shares)
        lines += ["", name]
        for label, count, share in shares:
            label += " " * (wide - columns_of(label))
            bar = "█" * round(share * _BAR)
            lines.append(f"  {label}  {count:>7,}  {share:>6.1%}  {bar}".rstrip())
        lines += [f"  {more}"] if more else []

    lines += ["", "performance"]
    for figure in facts.figures(result.metrics):
        lines.append(f"  {figure.name:<17}  {figure.value}")
        lines += wrapped(figure.note, indent=21, hang=0)
    lines += _latency(result)
    if usage := facts.usage(result):
        parts = ", ".join(v if name == "cost" else f"{v} {name}" for name, v in usage.items())
        lines += ["", "tokens", f"  {parts}"]

    groups, more = facts.errors(result)
    if groups:
        lines += ["", "errors"]
        for group in groups:
            lines += wrapped(f"{group.rows:,} x {group.kind}: {group.message}", indent=2)
            lines += wrapped(f"such as {group.example}", indent=6)
        lines += [f"  {more}"] if more else []
    if steps := facts.next_steps(result):
        lines += ["", "how to go on", *(part for step in steps for part in wrapped(step, indent=2))]
    return printable("\n".join(lines))


def _latency(result: RunFacts) -> list[str]:
    """The table of latencies."""
    table = facts.latency(result)
    if not table:
        return []
    names = table[0].values
    lines = ["", f"{'latency':<14}" + "".join(f"{name:>12}" for name in names)]
    lines += [
        f"  {line.name:<12}" + "".join(f"{line.values.get(name, ''):>12}" for name in names)
        for line in table
    ]
    if on_hold := facts.time_on_hold(result.metrics):
        lines.append(f"  held back     {on_hold}")
    if why := facts.bottleneck(result):
        lines += wrapped(f"the server    {why}", indent=2, hang=14)
    return lines
