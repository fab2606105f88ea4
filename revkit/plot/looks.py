"""How each kind of thing looks in every picture of a run."""

from __future__ import annotations

from typing import Any, NamedTuple

import matplotlib

__all__ = ["HOLDS", "OUTCOMES", "SETTLED", "Look", "ink"]


class Look(NamedTuple):
    """A colour, and a hatch that tells it apart where colour cannot: in print, in greyscale."""

    colour: str
    hatch: str | None = None
    label: str = ""


#: The outcomes of an attempt, in the order they are drawn: the rarer and worse comes later, so
#: that one failure among thousands of good attempts lies on top. The lightness of the colours
#: (about 60, 82, 80, 36 of 100) keeps them apart without hue; cancelled has its dots as well.
OUTCOMES = {
    "ok": Look("#5b9bd5"),
    "retried": Look("#f4c14e"),
    "cancelled": Look("#c6c6c6", "...."),
    "failed": Look("#a3202f", "////"),
}
#: Rows that were settled without an attempt; they have a lane of their own.
SETTLED = Look("#1b7f6b", None, "store or duplicate")
#: Spans in which no attempt might start, by kind; told apart by the hatch, above all.
HOLDS = {
    "pause": Look("#cc6a1f", "\\\\\\", "paused by the server"),
    "pacing": Look("#a8862a", "...", "slowed after refusals"),
    "rate_limit": Look("#7d64c8", "---", "rate limit"),
    "budget": Look("#777777", "xxx", "budget"),
    "outage": Look("#b03a5b", "++", "server away"),
}


def ink() -> Any:
    """The colour of text in the user's matplotlib style, which shows on its background."""
    return matplotlib.rcParams["text.color"]
