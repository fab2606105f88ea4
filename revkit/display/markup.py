"""The pieces of HTML that the cell's outputs are made of, and how they look.

They have no scripts and take their colours from the page, so they fit light and dark notebooks,
and survive an export. What differs between two runs of the same thing is marked, for the
sanitising file of ``revkit.testing``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .words import harmless

__all__ = ["heading", "page", "safe", "table", "timed"]


def safe(value: object, limit: int = 200) -> str:
    """Foreign text, as HTML."""
    return escape(harmless(value, limit))


def timed(value: str) -> str:
    """A value that time decides, as HTML."""
    return f'<span class="revkit-time">{escape(value)}</span>'


def table(
    head: Iterable[str], rows: Iterable[Sequence[str]], kind: str = "", *, timed: bool = False
) -> str:
    """A table of cells that are HTML already.

    Args:
        rows: in one that is too short, the last cell takes the columns that are left.
        kind: a class of its own.
        timed: time decides which rows there are.
    """
    names = list(head)
    top = "".join(f"<th>{name}</th>" for name in names)
    start = '<tr class="revkit-time">' if timed else "<tr>"
    body = ""
    for *cells, last in rows:
        wide = len(names) - len(cells)
        span = f' colspan="{wide}"' if wide > 1 else ""
        body += start + "".join(f"<td>{c}</td>" for c in cells) + f"<td{span}>{last}</td></tr>"
    return (
        f'<table class="revkit-table {kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def heading(counts: Iterable[str], model_name: str | None) -> str:
    """The first line: how many rows there are, what became of them, and the model."""
    first, *others = counts
    rest = "".join(f" &middot; {count}" for count in others)
    model = "" if model_name is None else f" <small>with {safe(model_name)}</small>"
    return f"<p><b>{first}</b>{rest}{model}</p>"


def page(parts: Iterable[str]) -> str:
    """The whole output."""
    return f'<div class="revkit-run"><style>{_STYLE}</style>{"".join(parts)}</div>'


# Colours are the page's own, or show on light and dark alike; the bars have those of the timeline.
# Two classes in a selector, so that it wins over JupyterLab's own rules for tables.
_STYLE = """
.revkit-run { color: inherit; max-width: 1000px; overflow-x: auto; }
.revkit-run p { margin: .4em 0; }
.revkit-run small { opacity: .75; }
.revkit-run .revkit-trouble { border-left: 3px solid #f4c14e; padding-left: .6em; }
.revkit-run .revkit-table { border: 0; border-collapse: collapse; color: inherit;
  font-size: inherit; margin: .6em 0; table-layout: auto; }
.revkit-run .revkit-table tr, .revkit-run .revkit-table thead { background: none; border: 0; }
.revkit-run .revkit-table th, .revkit-run .revkit-table td { border: 0; padding: .15em .9em .15em 0;
  text-align: right; vertical-align: top; white-space: nowrap; }
.revkit-run .revkit-table th { border-bottom: 1px solid var(--jp-border-color1, #8888);
  font-weight: 600; }
.revkit-run .revkit-table th:first-child, .revkit-run .revkit-table td:first-child
  { text-align: left; }
.revkit-run .revkit-table td[colspan]
  { text-align: left; white-space: normal; }
.revkit-run .revkit-shares td:last-child { min-width: 240px; text-align: left; }
.revkit-run .revkit-shares td div { background: #5b9bd5; }
.revkit-run .revkit-errors th, .revkit-run .revkit-errors td { text-align: left;
  white-space: normal; }
.revkit-run .revkit-words td:last-child, .revkit-run .revkit-words th:last-child
  { text-align: left; white-space: normal; }
.revkit-run .revkit-prompts th, .revkit-run .revkit-prompts td { text-align: left;
  white-space: pre-wrap; }
.revkit-run .revkit-plot { display: block; height: auto; margin: .6em 0; max-width: 100%; }
"""
