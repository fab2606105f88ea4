"""How things are said: durations, money, numbers, and text that came from somewhere else."""

from __future__ import annotations

import math
import sys
import textwrap
import unicodedata
from typing import TYPE_CHECKING

from ..errors import one_line, plural

if TYPE_CHECKING:
    from ..scheduling.events import Away

__all__ = [
    "COLUMNS",
    "NONE",
    "columns_of",
    "dollars",
    "duration",
    "harmless",
    "number",
    "outage",
    "plural",
    "printable",
    "rows_of",
    "wrapped",
]

COLUMNS = 100  #: characters that a line of a report never exceeds
NONE = "n/a"


def duration(seconds: float) -> str:
    """A span of time in the unit in which it is read most easily, to about three digits.

    >>> [duration(s) for s in (0.00042, 0.1234, 1.2399, 59.96, 123, 3723)]
    ['0.42 ms', '123 ms', '1.24 s', '1 min 00 s', '2 min 03 s', '1 h 02 min']
    >>> duration(0), duration(1.2e-6), duration(float("nan"))
    ('0 s', '1.2 µs', 'n/a')
    """
    if seconds != seconds:
        return NONE
    if seconds == 0:
        return "0 s"
    if seconds < 1e-5:
        return f"{seconds * 1e6:.1f} µs"
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


def outage(away: Away, now: float) -> str:
    """That the server is away, since when, and when it is probed again.

    >>> from revkit.scheduling.events import Away
    >>> outage(Away(since=10.0, next_probe=26.0), now=22.0)
    'server away for 12 s, next try in 4 s'
    >>> outage(Away(since=10.0, next_probe=26.0), now=26.1)
    'server away for 16 s, trying now'
    """
    left = away.next_probe - now
    then = f"next try in {math.ceil(left)} s" if left > 0 else "trying now"
    since = max(0, math.floor(now - away.since))
    shown = f"{since} s" if since < 60 else duration(since)
    return f"server away for {shown}, {then}"


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


def number(value: float) -> str:
    """Three digits or so.

    >>> [number(n) for n in (0.1234, 12.34, 1234.5)]
    ['0.12', '12.3', '1,234']
    """
    if value != value:
        return NONE
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def rows_of(total: int, samples: int) -> str:
    """So many rows, and of how many samples each, where rows are repeated.

    >>> rows_of(12, 1), rows_of(12, 4)
    ('12 rows', '3 rows x 4 samples')
    """
    rows = plural(total // samples, "row")
    return rows if samples == 1 else f"{rows} x {samples} samples"


def columns_of(text: str) -> int:
    """Columns of a terminal that the text takes: wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrapped(text: str, *, indent: int, hang: int = 2) -> list[str]:
    """The text on lines of at most 100 characters, from the second one on indented by more."""
    first, later = " " * indent, " " * (indent + hang)
    return textwrap.wrap(  # names of options and models hold hyphens
        text, COLUMNS, initial_indent=first, subsequent_indent=later, break_on_hyphens=False
    )
