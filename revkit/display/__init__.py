"""How a run looks: ``short`` is its repr, ``text`` its report for a terminal, ``html`` the cell.

Two rules hold everywhere. What came from rows, replies or column names passes through
``harmless`` (and, in HTML, is escaped), so that it can neither draw, nor run, nor break the
layout. What differs between two runs of the same thing stands where the sanitising file of
``revkit.testing`` finds it: in HTML inside ``<span class="revkit-time">``,
``<tr class="revkit-time">`` or ``<img class="revkit-plot">``, in text on lines of its own after a
known name. Whether such a line is there may differ only if it follows another one. The repr has
none.

    words     how things are said: durations, money, foreign text
    facts     what is shown of a run, in text and HTML alike
    report    a run as text
    failure   why a run failed, as an error's message
    markup    the pieces of HTML, and how they look
    cell      a run as the output of a notebook's cell
    preview   a preview, both ways
    sections  any tables, both ways: a comparison, an evaluation
    progress  the bar of a run that goes on
    live      its display that updates in place
"""

from __future__ import annotations

from .cell import html
from .facts import setting_of
from .failure import failure_message
from .preview import preview_html, preview_text
from .report import short, text
from .sections import Section, sections_html, sections_text
from .words import dollars, duration, harmless, number, plural, printable, rows_of, wrapped

__all__ = [
    "Section",
    "dollars",
    "duration",
    "failure_message",
    "harmless",
    "html",
    "number",
    "plural",
    "preview_html",
    "preview_text",
    "printable",
    "rows_of",
    "sections_html",
    "sections_text",
    "setting_of",
    "short",
    "text",
    "wrapped",
]
