"""HTML, read as a browser would."""

from __future__ import annotations

import html.parser
from typing import Any


class Page(html.parser.HTMLParser):
    """Reads a cell's whole output: which tags there are, and what text stands outside them.

    Each tag must be closed, in its turn.
    """

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag != "img":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] != "style":
            self.text += data
