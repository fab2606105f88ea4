"""How a run looks: ``short`` is its repr, ``text`` its report for a terminal, ``html`` the cell.

Two rules hold everywhere. What came from rows, replies or column names passes through
``harmless`` (and, in HTML, is escaped), so that it can neither draw, nor run, nor break the
layout. What differs between two runs of the same thing stands where the sanitising file of
``revkit.testing`` finds it: in HTML inside ``<span class="revkit-time">`` or
``<img class="revkit-plot">``, in text on a line of its own after a known name. The repr has none.
"""

from __future__ import annotations

import base64
import itertools
import math
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import one_line

if TYPE_CHECKING:
    import pandas as pd

    from .metrics import Metrics
    from .preview import Preview
    from .result import ParallelResult

__all__ = [
    "Section",
    "duration",
    "harmless",
    "html",
    "preview_html",
    "preview_text",
    "printable",
    "sections_html",
    "sections_text",
    "short",
    "text",
]

_COLUMNS = 100  # characters that a line of a report never exceeds
_BAR = 40  # width of the bar of a label that every row has
_LABELS = 20  # labels that are shown of one output
_LEFT_OUT = "This is not the whole table."
_GROUPS = 10  # kinds of error that are shown
_SAMPLED = 10  # rows of a preview that are shown
_TURN = 2000  # characters of a chat turn that are shown
_NONE = "n/a"


def duration(seconds: float) -> str:
    """A span of time in the unit in which it is read most easily, to about three digits.

    >>> [duration(s) for s in (0.00042, 0.1234, 1.2399, 59.96, 123, 3723)]
    ['0.42 ms', '123 ms', '1.24 s', '1 min 00 s', '2 min 03 s', '1 h 02 min']
    >>> duration(float("nan"))
    'n/a'
    """
    if seconds != seconds:
        return _NONE
    if round(seconds * 1e3, 1) < 10:
        return f"{seconds * 1e3:.2f} ms"
    if round(seconds * 1e3) < 1000:
        return f"{seconds * 1e3:.0f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.2f} s" if round(seconds, 2) < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def dollars(usd: float) -> str:
    """US dollars to the cent; below one, to two digits.

    >>> [dollars(usd) for usd in (1234.5, 0.5, 0.000056, 0)]
    ['$1,234.50', '$0.50', '$0.000056', '$0.00']
    """
    digits = 2 if usd >= 1 or usd <= 0 else max(2, 1 - math.floor(math.log10(usd)))
    return f"${usd:,.{digits}f}"


def harmless(value: object, limit: int = 200) -> str:
    """Foreign text on one line, at most ``limit`` characters, control characters made visible.

    >>> harmless("one\\ntwo \\x1b[31mred")
    'one two \\\\x1b[31mred'
    >>> harmless("a long story", limit=9)
    'a long...'
    """
    line = one_line(str(value)[: 2 * limit])
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."


def printable(text: str) -> str:
    """The text as standard output can take it, so that ``print`` never raises an encoding error.

    Bars turn into ``#``, and other characters that a terminal does not know into escapes.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("█", "#").encode(encoding, "backslashreplace").decode(encoding)
    return text


def short(result: ParallelResult) -> str:
    """The repr: counts and labels on one or two lines, and nothing that time decides."""
    lines = ["ParallelResult: " + ", ".join(_counts(result.metrics))]
    summaries = [
        f"{name}: " + ", ".join(f"{share.rows:,} {share.label}" for share in shares)
        for name, shares, _ in _summaries(result)
    ]
    if summaries:
        lines.append(harmless("; ".join(summaries), _COLUMNS))
    return "\n".join(lines)


def text(result: ParallelResult) -> str:
    """The report: several lines of at most 100 characters, to be printed."""
    lines = [", ".join(_counts(result.metrics))]
    if result.model_name is not None:
        lines.append(f"model: {harmless(result.model_name, 80)}")
    if result.stopped is not None:
        lines += _wrapped(f"stopped: {harmless(result.stopped, 500)}", indent=0)
    if result.store_problem is not None:
        lines += _wrapped(f"store: {harmless(result.store_problem, 500)}", indent=0)
    for name, shares, more in _summaries(result):
        wide = max(_width(share.label) for share in shares)
        lines += ["", name]
        for label, count, share in shares:
            label += " " * (wide - _width(label))
            bar = "█" * round(share * _BAR)
            lines.append(f"  {label}  {count:>7,}  {share:>6.1%}  {bar}".rstrip())
        lines += [f"  {more}"] if more else []

    lines += ["", "performance"]
    for name, value, note in _figures(result.metrics):
        lines.append(f"  {name:<17}  {value}")
        lines += _wrapped(note, indent=21, hang=0)
    if latency := _latency(result):
        lines += ["", "latency of good attempts"]
        lines.append(" " * 14 + "".join(f"{name:>12}" for name in latency))
        lines.append("  service time" + "".join(f"{value:>12}" for value in latency.values()))
    if tokens := _tokens(result):
        lines += ["", "tokens", f"  {tokens}"]

    groups, more = _errors(result)
    if groups:
        lines += ["", "errors"]
        for group in groups:
            lines += _wrapped(f"{group.rows:,} x {group.kind}: {group.message}", indent=2)
            lines += _wrapped(f"such as {group.example}", indent=6)
        lines += [f"  {more}"] if more else []
        lines.append(f"  {_GO_ON}")
    return printable("\n".join(lines))


def html(result: ParallelResult) -> str:
    """The cell's output: counts, labels, percentiles, figures, timeline, errors, what to do next.

    It has no scripts and takes its colours from the page, so it fits light and dark notebooks
    and survives an export.
    """
    counts, *others = _counts(result.metrics)
    parts = [f"<style>{_STYLE}</style>", f"<p><b>{counts}</b>"]
    parts += [f" &middot; {count}" for count in others]
    if result.model_name is not None:
        parts.append(f" <small>with {_safe(result.model_name)}</small>")
    parts.append("</p>")
    if result.stopped is not None:
        parts.append(f"<p>stopped: {escape(harmless(result.stopped, 500))}</p>")
    if result.store_problem is not None:
        parts.append(f"<p>store: {escape(harmless(result.store_problem, 500))}</p>")
    for name, shares, more in _summaries(result):
        rows = [
            (
                escape(label),
                f"{count:,}",
                f"{share:.1%}",
                f'<div style="width:{share * 100:.1f}%">&nbsp;</div>' if count else "",
            )
            for label, count, share in shares
        ]
        parts.append(_table((escape(name), "rows", "share", ""), rows, "revkit-shares"))
        parts.append(f"<p><small>{escape(more)}</small></p>" if more else "")
    if latency := _latency(result):
        head = ("service time of good attempts", *latency)
        parts.append(_table(head, [("", *map(_timed, latency.values()))]))
    figures = _figures(result.metrics)
    notes = " ".join(f"{name}, {note}." for name, _, note in figures if note)
    parts.append(_table([name for name, *_ in figures], [[_timed(v) for _, v, _ in figures]]))
    parts.append(f"<p><small>{escape(notes)}</small></p>" if notes else "")
    if tokens := _tokens(result):
        parts.append(f"<p>tokens: {tokens}</p>")
    if result.metrics.attempts:
        picture = base64.b64encode(result.timeline_png()).decode()
        parts.append(
            '<img class="revkit-plot" width="900" alt="Timeline: one lane a worker, one bar an '
            f'attempt" src="data:image/png;base64,{picture}">'
        )
    groups, more = _errors(result)
    if groups:
        rows = [
            (f"{g.rows:,}", escape(g.kind), escape(g.message), escape(g.example)) for g in groups
        ]
        parts.append(_table(("rows", "error", "message", "such as"), rows, "revkit-errors"))
        parts.append(f"<p>{escape(more)} {_GO_ON}</p>")
    return '<div class="revkit-run">' + "".join(parts) + "</div>"


# -- what is shown, in text and HTML alike --------------------------------------------------------

_GO_ON = (
    "Every failed row, with its item and message: run.errors. To try them again: run.retry_failed()"
)


class _Share(NamedTuple):
    label: str
    rows: int
    share: float  # 0 to 1


class _Group(NamedTuple):
    """Failed rows whose errors read the same."""

    kind: str
    message: str
    rows: int
    example: str


def _counts(metrics: Metrics) -> list[str]:
    """How many rows there are, how many went well, and whatever else happened."""
    optional = {
        "failed": metrics.failed,
        "cancelled": metrics.cancelled,
        "not started": metrics.not_started,
        "from the store": metrics.from_store,
        "duplicates" if metrics.duplicates != 1 else "duplicate": metrics.duplicates,
    }
    return [
        f"{metrics.total:,} row" + ("" if metrics.total == 1 else "s"),
        f"{metrics.succeeded:,} ok",
        *(f"{count:,} {name}" for name, count in optional.items() if count),
        *([f"{metrics.attempts:,} attempts"] if metrics.retries else []),
    ]


def _summaries(result: ParallelResult) -> Iterator[tuple[str, list[_Share], str]]:
    """Each class output: its name, its labels in declared order, and what is left out."""
    for name, labels in result.outputs.items():
        if labels:
            table = result.summary(name)
            columns = table.index.tolist(), table["count"].tolist(), table["share"].tolist()
            shares = [
                _Share(harmless(label, 39), count, share)  # beside the bar, a line of 100
                for label, count, share in zip(*columns, strict=True)
            ]
            more = len(shares) - _LABELS
            yield (
                harmless(name, 40),
                shares[:_LABELS],
                f"{more:,} more: run.summary({name!r})" if more > 0 else "",
            )


def _figures(metrics: Metrics) -> list[tuple[str, str, str]]:
    """What time decides: name, value, and a note on what the value rests on."""
    rate = metrics.rows_per_s
    attempted = metrics.succeeded + metrics.failed
    speedup = metrics.speedup_estimate
    times = "" if speedup != speedup else " x"
    return [
        ("total time", duration(metrics.wall_s), ""),
        ("per row", duration(1 / rate if rate > 0 else float("nan")), ""),
        ("rows per second", _number(rate), ""),
        ("success rate", f"{metrics.succeeded / attempted:.1%}" if attempted else _NONE, ""),
        ("mean concurrency", _number(metrics.mean_concurrency), ""),
        ("speed-up, at most", _number(speedup) + times, harmless(metrics.speedup_basis)),
        ("workers", _workers(metrics), ""),
    ]


def _workers(metrics: Metrics) -> str:
    if metrics.limit is None:
        return f"{metrics.workers:,} ({metrics.engine})"
    return f"{metrics.limit:,} of at most {metrics.workers:,} ({metrics.engine}, adaptive)"


def _latency(result: ParallelResult) -> dict[str, str]:
    """Name to duration: min, mean, percentiles, max; empty where no attempt was good."""
    if result.latency.isna().all():
        return {}
    return {str(name): duration(ms / 1e3) for name, ms in result.latency.items()}


def _tokens(result: ParallelResult) -> str:
    usage = result.usage
    counts = {
        "prompt": usage.prompt_tokens,
        "completion": usage.completion_tokens,
        "total": usage.total_tokens,
    }
    cost = [dollars(usage.cost_usd)] if usage.cost_usd else []
    return ", ".join([f"{n:,} {name}" for name, n in counts.items() if n is not None] + cost)


def _errors(result: ParallelResult) -> tuple[list[_Group], str]:
    """Failed rows grouped by what went wrong, most frequent first, and what is left out."""
    table = result.errors
    columns = [table[c].tolist() for c in ("error_type", "message", "row", "index", "item")]
    groups: dict[tuple[str, str], _Group] = {}
    for kind, message, row, label, item in zip(*columns, strict=True):
        known = groups.get((kind, message))
        if known is not None:
            groups[kind, message] = known._replace(rows=known.rows + 1)
            continue
        groups[kind, message] = _Group(
            harmless(kind, 60), harmless(message), 1, f"{_where(row, label)}: {_item(item)}"
        )
    ordered = sorted(groups.values(), key=lambda group: -group.rows)
    more = len(ordered) - _GROUPS
    return ordered[:_GROUPS], f"{more:,} more kinds of error." if more > 0 else ""


def _where(row: int, label: object) -> str:
    return f"row {row}" if str(row) == str(label) else f"row {row} (index {harmless(label, 40)})"


def _item(item: object) -> str:
    """A row's inputs on one line."""
    if isinstance(item, Mapping):
        if len(item) == 1:
            (item,) = item.values()
        else:
            pairs = list(item.items())[:8]
            item = ", ".join(f"{harmless(k, 30)}: {harmless(v, 60)}" for k, v in pairs)
    return harmless(item, 120)


# -- a preview ------------------------------------------------------------------------------------


def preview_text(preview: Preview) -> str:
    """The repr of a preview: lines of at most 100 characters, and nothing that time decides."""
    lines = _wrapped("Preview: " + ", ".join(_outlook(preview)), indent=0)
    lines.append(f"model: {harmless(preview.model_name, 80)}")
    figures = [
        value if name == "cost" else f"{value} {name}"
        for name, value in _expected(preview).items()
        if value != _NONE
    ]
    lines += _wrapped("expected: " + ", ".join(figures), indent=0)
    lines += _wrapped(_notes(preview), indent=2, hang=0)
    shared, rows, more = _samples(preview)
    if shared:
        lines += ["", "all rows"]
    for where, turns, answer in [("", shared, {}), *rows]:
        lines += ["", where] if where else []
        for role, content in turns:
            lines += [f"  {harmless(role, 40)}", *_indented(content)]
        for name, value in answer.items():
            lines += _wrapped(f"-> {name}: {value}", indent=2, hang=3)
    return "\n".join(lines + (["", more] if more else []))


def preview_html(preview: Preview) -> str:
    """The cell's output: rows, what they may use, the prompts and what the model made of them."""
    counts, *others = _outlook(preview)
    parts = [f"<style>{_STYLE}</style>", f"<p><b>{counts}</b>"]
    parts += [f" &middot; {count}" for count in others]
    parts.append(f" <small>with {_safe(preview.model_name)}</small></p>")
    seconds = preview.expected.time_s
    spent = _NONE
    if seconds is not None:
        spent = f"{duration(seconds)} with {preview.workers:,} worker"
        spent += "" if preview.workers == 1 else "s"
    figures = _expected(preview)
    cells = [f"{preview.rows.to_ask:,} to ask", *figures.values(), _timed(spent)]
    parts.append(_table(("expected", *figures, "time"), [cells]))
    parts.append(f"<p><small>{escape(_notes(preview))}</small></p>")
    shared, rows, more = _samples(preview)
    if shared:
        turns = [(escape(harmless(role, 40)), _as_html(content)) for role, content in shared]
        parts.append(_table(("all rows", "prompt"), turns, "revkit-prompts"))
    names = list(dict.fromkeys(name for row in rows for name in row.answer))
    table = [
        (
            escape(row.where),
            "\n".join(_as_html(content) for _, content in row.turns),
            *(escape(row.answer.get(name, "")) for name in names),
        )
        for row in rows
    ]
    head = ("row", "prompt", *map(escape, names))
    parts.append(_table(head, table, "revkit-prompts"))
    parts.append(f"<p>{escape(more)}</p>" if more else "")
    return '<div class="revkit-run">' + "".join(parts) + "</div>"


class _Sample(NamedTuple):
    """One row of a preview: its own chat turns, and what the model made of them."""

    where: str
    turns: list[tuple[str, str]]
    answer: dict[str, str]


def _outlook(preview: Preview) -> list[str]:
    """How many rows there are, and what a run would do with them."""
    rows = preview.rows
    optional = {
        "without an input": rows.missing_input,
        "in the store": rows.from_store,
        "duplicates": rows.duplicates,
    }
    return [
        f"{rows.total:,} row" + ("" if rows.total == 1 else "s"),
        *(f"{count:,} {name}" for name, count in optional.items() if count),
        f"{rows.to_ask:,} to ask",
    ]


def _expected(preview: Preview) -> dict[str, str]:
    """What the rows that are left may use, but for the time."""
    expected = preview.expected
    return {
        "prompt tokens": f"{expected.prompt_tokens:,}",
        "completion tokens": _count(expected.completion_tokens),
        "total tokens": _count(expected.total_tokens),
        "cost": _NONE if expected.cost_usd is None else dollars(expected.cost_usd),
    }


def _notes(preview: Preview) -> str:
    """What the figures rest on, in sentences."""
    rows, notes = preview.rows, [preview.expected.basis]
    if rows.looked_at < rows.total - rows.missing_input:
        notes.append(f"rows counted in {rows.looked_at:,} evenly spaced ones, and scaled")
    if rows.from_store and preview.answers is not None and preview.answers["error"].isna().any():
        notes.append("the sample's replies are in the store, so a run does not ask for them again")
    return "; ".join(notes)


def _samples(preview: Preview) -> tuple[list[tuple[str, str]], list[_Sample], str]:
    """The turns that all prompts begin with, the rows that are shown, and what is left out."""
    turns: dict[int, list[tuple[str, str]]] = {}
    columns = [preview.prompts[column].tolist() for column in ("row", "role", "content")]
    for row, role, content in zip(*columns, strict=True):
        turns.setdefault(row, []).append((role, content))
    common = len(preview.task.prefix)
    answers = preview.answers
    table = preview.prompts.drop_duplicates("row") if answers is None else answers
    rows = []
    for place, (row, label) in enumerate(zip(table["row"].tolist(), table.index, strict=True)):
        answer = {} if answers is None else _answer(answers.iloc[place])
        rows.append(_Sample(_where(row, label), turns.get(row, [])[common:], answer))
    more = len(rows) - _SAMPLED
    left_out = f"{more:,} more rows: preview.prompts, preview.answers" if more > 0 else ""
    return next(iter(turns.values()), [])[:common], rows[:_SAMPLED], left_out


def _answer(row: Any) -> dict[str, str]:
    """A row's outputs, or its error, by name."""
    values = {str(name): value for name, value in row.items() if name != "row"}
    error = values.pop("error")
    shown = {"error": error} if isinstance(error, str) else values
    return {harmless(name, 40): harmless(value, 500) for name, value in shown.items()}


def _lines(text: str) -> list[str]:
    """Foreign text of several lines, each of them harmless."""
    more = len(text) - _TURN
    lines = [one_line(line) for line in text[:_TURN].splitlines()]
    return lines + ([f"... {more:,} more characters: preview.prompts"] if more > 0 else [])


def _indented(text: str) -> list[str]:
    return [part for line in _lines(text) for part in _wrapped(line, indent=4, hang=0) or [""]]


def _as_html(text: str) -> str:
    return escape("\n".join(_lines(text)))


# -- a comparison, an evaluation -------------------------------------------------------------------


class Section(NamedTuple):
    """A table under its title; ``timed`` where time decides what stands in it."""

    title: str
    table: pd.DataFrame
    timed: bool = False


def sections_text(heads: Iterable[str], sections: Iterable[Section]) -> str:
    """Lines of at most 100 characters for a terminal, with as much of each table as fits."""
    lines = [part for line in heads for part in _wrapped(line, indent=0)]
    for title, table, timed in sections:
        rows, more = _cells(table)
        if timed:  # as in a report, so that the sanitising file finds it
            rows = [rows[0], *(["service time  " + row[0], *row[1:]] for row in rows[1:])]
        wide = [max(map(_width, column)) for column in zip(*rows, strict=True)]
        if timed:
            wide[1:] = [max(12, width) for width in wide[1:]]
        ends = [*itertools.accumulate(width + 2 for width in wide)]
        fit = sum(end <= _COLUMNS for end in ends)
        more = more or (_LEFT_OUT if fit < len(wide) else "")
        lines += ["", harmless(title, 80)]
        for first, *others in rows:
            cells = zip(others[: fit - 1], wide[1:], strict=False)
            line = [first + " " * (wide[0] - _width(first))]
            line += [" " * (width - _width(cell)) + cell for cell, width in cells]
            lines.append("  " + "  ".join(line).rstrip())
        lines += [f"  {more}"] if more else []
    return printable("\n".join(lines))


def sections_html(heads: Iterable[str], sections: Iterable[Section]) -> str:
    """The same for a notebook."""
    first, *others = heads
    parts = [f"<style>{_STYLE}</style>", f"<p><b>{escape(first)}</b></p>"]
    parts += [f"<p>{escape(line)}</p>" for line in others]
    for title, table, timed in sections:
        ((axes, *names), *rows), more = _cells(table)
        written = _timed if timed else escape
        cells = [[escape(first), *map(written, others)] for first, *others in rows]
        head = f"{harmless(title, 80)} ({axes})" if axes else harmless(title, 80)
        parts.append(_table(map(escape, (head, *names)), cells))
        parts.append(f"<p><small>{escape(more)}</small></p>" if more else "")
    return '<div class="revkit-run">' + "".join(parts) + "</div>"


def _cells(table: pd.DataFrame) -> tuple[list[list[str]], str]:
    """A table's head and rows, and what is left out of it."""
    shown = table.iloc[:_LABELS, :_LABELS]
    axes = [str(name) for name in (table.index.name, table.columns.name) if name]
    rows = [[" / ".join(axes), *(harmless(name, 20) for name in shown.columns)]]
    values, missing = shown.to_numpy(dtype=object), shown.isna().to_numpy()
    for label, row, unknown in zip(shown.index, values, missing, strict=True):
        cells = [_NONE if no else _cell(x) for x, no in zip(row, unknown, strict=True)]
        rows.append([harmless(label, 20), *cells])
    return rows, _LEFT_OUT if max(table.shape) > _LABELS else ""


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else harmless(value, 40)


# -- small change ---------------------------------------------------------------------------------


def _count(count: int | None) -> str:
    return _NONE if count is None else f"{count:,}"


def _number(value: float) -> str:
    """Three digits or so.

    >>> [_number(n) for n in (0.1234, 12.34, 1234.5)]
    ['0.12', '12.3', '1,234']
    """
    if value != value:
        return _NONE
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _width(text: str) -> int:
    """Columns that a terminal needs."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _wrapped(text: str, *, indent: int, hang: int = 2) -> list[str]:
    first, later = " " * indent, " " * (indent + hang)
    return textwrap.wrap(text, _COLUMNS, initial_indent=first, subsequent_indent=later)


def _safe(value: object) -> str:
    return escape(harmless(value))


def _timed(value: str) -> str:
    return f'<span class="revkit-time">{escape(value)}</span>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """An HTML table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<table class="revkit-table {kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


# Colours are the page's own, or show on light and dark alike; the bars have that of the timeline.
# Two classes in a selector, so that it wins over JupyterLab's own rules for tables.
_STYLE = """
.revkit-run { color: inherit; max-width: 1000px; overflow-x: auto; }
.revkit-run p { margin: .4em 0; }
.revkit-run small { opacity: .75; }
.revkit-run .revkit-table { border: 0; border-collapse: collapse; color: inherit;
  font-size: inherit; margin: .6em 0; table-layout: auto; }
.revkit-run .revkit-table tr, .revkit-run .revkit-table thead { background: none; border: 0; }
.revkit-run .revkit-table th, .revkit-run .revkit-table td { border: 0; padding: .15em .9em .15em 0;
  text-align: right; vertical-align: top; white-space: nowrap; }
.revkit-run .revkit-table th { border-bottom: 1px solid var(--jp-border-color1, #8888);
  font-weight: 600; }
.revkit-run .revkit-table th:first-child, .revkit-run .revkit-table td:first-child
  { text-align: left; }
.revkit-run .revkit-shares td:last-child { min-width: 240px; text-align: left; }
.revkit-run .revkit-shares td div { background: #5b9bd5; }
.revkit-run .revkit-errors th, .revkit-run .revkit-errors td { text-align: left;
  white-space: normal; }
.revkit-run .revkit-prompts th, .revkit-run .revkit-prompts td { text-align: left;
  white-space: pre-wrap; }
.revkit-run .revkit-plot { display: block; height: auto; margin: .6em 0; max-width: 100%; }
"""
