"""Braces of a template that are meant as text: JSON, code, formulas. Pure."""

from __future__ import annotations

import re

from ..errors import one_line

__all__ = ["doubled", "is_text", "piece"]

#: A column's name in braces, as a person writes one.
_COLUMN = re.compile(r"(\{[^\W\d][\w .]*\})")


def piece(name: str, spec: str | None, conversion: str | None) -> str:
    """What stands in the template, of which Python's formatter made these parts."""
    return f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"


def is_text(name: str, spec: str | None = None) -> bool:
    """Whether what stands between braces looks like JSON or code rather than a column's name.

    >>> is_text('"label"', ' "good"'), is_text("Review Text"), is_text("price", ".2f")
    (True, False, False)
    """
    spec = spec or ""
    return (
        not name.isprintable()
        or any(mark in name + spec for mark in "\"'{}<>;=")
        or spec[:1].isspace()
        or name != name.strip()
        or not any(map(str.isalpha, name))
    )


def doubled(text: str) -> str:
    """Text of a template with its braces doubled, but for those around a column's name.

    >>> doubled('{"text": "{review}"}')
    '{{"text": "{review}"}}'
    """
    inner, outer = text[1:-1], (text[:1], text[-1:])
    parts = _COLUMN.split(inner)
    parts[::2] = [part.replace("{", "{{").replace("}", "}}") for part in parts[::2]]
    made = one_line("".join(parts))
    made = made if len(made) <= 80 else f"{made[:60]} … {made[-10:]}"
    return f"{outer[0]}{outer[0]}{made}{outer[1]}{outer[1]}"
