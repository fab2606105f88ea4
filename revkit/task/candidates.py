"""Where the answer may stand in a reply that is not valid JSON as a whole.

A server that does not force the form lets a model wrap its JSON in prose or in a code fence. The
answer can be an outermost whole object or, for an answer without an object, the whole text or a
fenced block. An object inside another one is never the answer, and neither is one of several in a
list, or one in a list that does not end. A text in which an object does not end is a fragment, and
has no answer.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from .thoughts import TAGS, is_json

__all__ = ["Candidates", "candidates"]

#: Most braces of a reply in which an answer is looked for, and most objects that are tried: a
#: hostile reply of a million would keep a loop busy for seconds.
_BRACES, _TRIES = 10_000, 100

#: Outside of objects: what may start one, and tags of thoughts.
_OUTSIDE = re.compile(rf"\{{|<(/?)({TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
#: Inside: strings, whose braces do not count, and braces.
_INSIDE = re.compile(r'"(?:[^"\\]++|\\.?+)*+"?+|[{}]', re.DOTALL)
#: An object's first brace and its first key, as JSON or as code would write them.
_START = re.compile(r"""\{\s*(?:["']|[\w$-]+\s*:)""")
#: How far back one looks for what stands before an object.
_BACK = 200
#: What follows the first item of a list of several, or of a list that does not end.
_LIST_GOES_ON = re.compile(r"\s*+(?:,(?!\s*+\])|```|\Z)")
#: The end of a key and its colon.
_KEY = re.compile(r'"\s*:\Z')

_FENCE = re.compile(r"```[\w+-]*[ \t]*\r?\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be the answer, in the order of the text.

    Attributes:
        objects: outermost whole objects, as they are written.
        bare: texts that may be an answer without an object.
        fragment: the start of an object that does not end; then there is nothing else.
    """

    objects: list[str]
    bare: list[str]
    fragment: str | None = None


def candidates(text: str) -> Candidates:
    """Find what may be the answer.

    >>> candidates('So {"a": {"b": 1}}, or {c}.').objects
    ['{"a": {"b": 1}}']
    >>> candidates('{"a": {"b": 1}, "c": "d').objects
    []
    """
    if text.count("{") > _BRACES:
        return Candidates([], [])
    found: list[tuple[int, int]] = []  # outermost objects that end
    unclosed: list[int] = []  # braces without an end, from the outermost one inward
    unending: set[str] = set()  # tags of which no closing one follows
    before: tuple[int, int] | None = None  # the first of them, and the objects before it
    at = rest = 0
    while (mark := _OUTSIDE.search(text, at)) is not None:
        at = mark.end()
        if mark[0] == "{":
            at = _scan(text, mark.start(), found, unclosed)
        elif mark[1]:  # all before it was a thought
            found.clear()
            rest = at
        elif (tag := mark[2].lower()) not in unending:
            closing = re.compile(rf"</{tag}\s*>", re.IGNORECASE).search(text, at)
            if closing is None:
                unending.add(tag)
                before = before or (at, len(found))
            else:
                at = closing.end()
    for start in unclosed:
        if _START.match(text, start):
            return Candidates([], [], text[start:])
    if before is not None and 0 < before[1] < len(found):
        return Candidates([], [])  # either the first part is the answer, or the rest is
    bare = [text[rest:], *_FENCE.findall(text, rest)]
    return Candidates(_whole(text, found[-_TRIES:]), bare[:1] + bare[1:][-_TRIES:])


def _scan(text: str, start: int, found: list[tuple[int, int]], unclosed: list[int]) -> int:
    """Look for the end of the brace at ``start``; gives where to go on."""
    opened: list[int] = []
    for mark in _INSIDE.finditer(text, start):
        if mark[0] == "{":
            opened.append(mark.start())
        elif mark[0] == "}":
            begin = opened.pop()
            while found and found[-1][0] > begin:  # it is inside this one
                found.pop()
            found.append((begin, mark.end()))
            if not opened:
                return mark.end()
    unclosed += opened
    return len(text)


def _whole(text: str, spans: list[tuple[int, int]]) -> list[str]:
    """Those that are JSON, without items of a list and members of a broken object.

    The only item of a list that ends is the answer.
    """
    items: set[int] = set()
    for (_, end), (start, _) in itertools.pairwise(spans):
        if text[end:start].strip() == ",":
            items |= {end, start}
    whole: list[str] = []
    end_of_broken: int | None = None
    for start, end in spans:
        if start in items or end in items:
            continue
        is_first = text[max(0, start - _BACK) : start].rstrip().endswith("[")
        if is_first and _LIST_GOES_ON.match(text, end):
            end_of_broken = end  # of a list of several, or of one that does not end
            continue
        found = text[start:end]
        if end_of_broken is not None:
            before = text[max(end_of_broken, start - _BACK) : start].rstrip()
            if before.endswith(("[", ",")) or _KEY.search(before):
                continue
        if not is_json(found) and found.startswith("{{"):
            found = found[1:-1]  # doubled, as templates escape them
        if is_json(found):
            whole.append(found)
        elif _START.match(found):
            end_of_broken = end
    return whole
