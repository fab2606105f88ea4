"""A run as the output of a notebook's cell."""

from __future__ import annotations

import base64
from html import escape

from . import facts
from .facts import RunFacts
from .markup import heading, page, table, timed

__all__ = ["html"]


def html(result: RunFacts) -> str:
    """Counts, labels, percentiles, figures, usage, timeline, errors, and what to do next."""
    parts = [heading(facts.counts(result.metrics), result.model_name)]
    parts += [f"<p>{escape(line)}</p>" for line in facts.answered(result)]
    parts += [f'<p class="revkit-trouble">{escape(why)}</p>' for why in facts.troubles(result)]
    for name, shares, more in facts.summaries(result):
        rows = [
            (
                escape(label),
                f"{count:,}",
                f"{share:.1%}",
                f'<div style="width:{share * 100:.1f}%">&nbsp;</div>' if count else "",
            )
            for label, count, share in shares
        ]
        parts.append(table((escape(name), "rows", "share", ""), rows, "revkit-shares"))
        parts.append(f"<p><small>{escape(more)}</small></p>" if more else "")
    parts += [_latency(result), _figures(result), _usage(result)]
    if result.metrics.attempts:
        picture = base64.b64encode(result.timeline_png()).decode()
        parts.append(
            '<img class="revkit-plot" width="900" alt="Timeline: one lane a worker, one bar an '
            f'attempt" src="data:image/png;base64,{picture}">'
        )
    groups, more = facts.errors(result)
    if groups:
        errors = [
            (f"{g.rows:,}", escape(g.kind), escape(g.message), escape(g.example)) for g in groups
        ]
        parts.append(table(("rows", "error", "message", "such as"), errors, "revkit-errors"))
        parts.append(f"<p><small>{escape(more)}</small></p>" if more else "")
    parts += [f"<p>{escape(step)}</p>" for step in facts.next_steps(result)]
    return page(parts)


def _latency(result: RunFacts) -> str:
    """The table of latencies."""
    lines = facts.latency(result)
    if not lines:
        return ""
    names = list(lines[0].values)
    rows = [
        [
            f'<span title="{escape(line.meaning)}">{escape(line.name)}</span>',
            *(escape(line.values.get(name, "")) for name in names),
        ]
        for line in lines
    ]
    if on_hold := facts.time_on_hold(result.metrics):
        rows.append(["held back", escape(on_hold)])
    if why := facts.bottleneck(result):
        rows.append(["the server", escape(why)])
    return table(("latency", *names), rows, "revkit-latency", timed=True)


def _figures(result: RunFacts) -> str:
    figures = facts.figures(result.metrics)
    notes = " ".join(f"{figure.name}: {figure.note}." for figure in figures if figure.note)
    return table([f.name for f in figures], [[timed(f.value) for f in figures]]) + (
        f"<p><small>{escape(notes)}</small></p>" if notes else ""
    )


def _usage(result: RunFacts) -> str:
    usage = facts.usage(result)
    return table(("tokens", *usage), [["", *usage.values()]]) if usage else ""
