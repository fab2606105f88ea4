"""Any tables under their titles, as text and as HTML: a comparison, an evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from . import markup
from .words import COLUMNS, NONE, columns_of, harmless, printable, wrapped

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Section", "sections_html", "sections_text"]

_SHOWN = 20  # rows and columns of a table that are shown
_LEFT_OUT = "This is not the whole table."


class Section(NamedTuple):
    """A table under its title.

    Attributes:
        timed: time decides what stands in it.
        line: begins each line of the text: by it the sanitising file finds what is timed.
    """

    title: str
    table: pd.DataFrame
    timed: bool = False
    line: str = ""


def sections_text(heads: Iterable[str], sections: Iterable[Section]) -> str:
    """Lines of at most 100 characters for a terminal, with as much of each table as fits."""
    lines = [part for line in heads for part in wrapped(line, indent=0)]
    for title, table, timed, begin in sections:
        rows, more = _cells(table)
        if begin:
            rows = [rows[0], *([f"{begin}  {row[0]}", *row[1:]] for row in rows[1:])]
        wide = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
        if timed:
            wide[1:] = [max(12, width) for width in wide[1:]]
        ends = [*itertools.accumulate(width + 2 for width in wide)]
        fit = sum(end <= COLUMNS for end in ends)
        more = more or (_LEFT_OUT if fit < len(wide) else "")
        lines += ["", harmless(title, 80)]
        for first, *others in rows:
            cells = zip(others[: fit - 1], wide[1:], strict=False)
            line = [first + " " * (wide[0] - columns_of(first))]
            line += [" " * (width - columns_of(cell)) + cell for cell, width in cells]
            lines.append("  " + "  ".join(line).rstrip())
        lines += [f"  {more}"] if more else []
    return printable("\n".join(lines))


def sections_html(heads: Iterable[str], sections: Iterable[Section]) -> str:
    """The same for a notebook."""
    first, *others = heads
    parts = [f"<p><b>{escape(first)}</b></p>", *(f"<p>{escape(line)}</p>" for line in others)]
    for title, table, timed, _ in sections:
        ((axes, *names), *rows), more = _cells(table)
        written = markup.timed if timed else escape
        cells = [[escape(first), *map(written, others)] for first, *others in rows]
        head = f"{harmless(title, 80)} ({axes})" if axes else harmless(title, 80)
        parts.append(markup.table(map(escape, (head, *names)), cells))
        parts.append(f"<p><small>{escape(more)}</small></p>" if more else "")
    return markup.page(parts)


def _cells(table: pd.DataFrame) -> tuple[list[list[str]], str]:
    """A table's head and rows, and what is left out of it."""
    shown = table.iloc[:_SHOWN, :_SHOWN]
    axes = [str(name) for name in (table.index.name, table.columns.name) if name]
    rows = [[" / ".join(axes), *(harmless(name, 20) for name in shown.columns)]]
    values, missing = shown.to_numpy(dtype=object), shown.isna().to_numpy()
    for label, row, unknown in zip(shown.index, values, missing, strict=True):
        cells = [NONE if no else _cell(x) for x, no in zip(row, unknown, strict=True)]
        rows.append([harmless(label, 20), *cells])
    return rows, _LEFT_OUT if max(table.shape) > _SHOWN else ""


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else harmless(value, 40)
