"""What a message of the chat protocols holds: its text, its thought and its refusal.

Servers put a thought into fields of their own, beside the content or in a part of it, and gateways
put the same thought into several. A part is text only where it says so, or does not say what it
is: everything else would get into a row's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Said", "said"]

#: Fields of a message that hold a thought.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
#: All that may stand beside a message's content.
_OTHERS = (*_THOUGHTS, "reasoning_details", "refusal")
#: Types of parts that are text.
_TEXT = (None, "text", "output_text")
#: What the type of a part that is a thought has in its name.
_THINKS = ("think", "thought", "reason", "summary")


class Said(NamedTuple):
    """The parts of a message; empty where there is none."""

    text: str = ""
    thought: str = ""
    refusal: str = ""


def said(message: Mapping[str, Any]) -> Said:
    """Take a message apart.

    >>> said({"content": [{"type": "thinking", "thinking": "North?"}, {"text": "Oslo"}]})
    Said(text='Oslo', thought='North?', refusal='')
    """
    content = message.get("content")
    if isinstance(content, str) and not any(map(message.get, _OTHERS)):
        return Said(content)  # nearly always
    texts, thinking, refusals = list[str](), list[str](), list[str]()
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, dict):
            texts.append(_text(part))
            continue
        kind = part.get("type")
        if kind == "refusal":
            refusals.append(_text(part.get("refusal")))
        elif part.get("thought") is True or any(word in str(kind) for word in _THINKS):
            thinking.append(_thought(part))
        elif kind in _TEXT:
            texts.append(_text(part.get("text")))
    refusals.append(_text(message.get("refusal")))
    fields = (_thought(message.get(name)) for name in (*_THOUGHTS, "reasoning_details"))
    thoughts = dict[str, str]()  # the same one may be whole in a field, and in pieces in another
    for thought in ("\n\n".join(thinking), *fields):
        thoughts.setdefault("".join(thought.split()), thought.strip())
    return Said("".join(texts), "\n\n".join(filter(None, thoughts.values())), "".join(refusals))


def _thought(found: Any) -> str:
    """A thought, as one text or in parts."""
    if isinstance(found, list):
        return "".join(map(_thought, found))
    if isinstance(found, dict):
        names = ("thinking", "text", "summary", "reasoning", "content")
        return next(filter(None, (_thought(found.get(name)) for name in names)), "")
    return _text(found)


def _text(found: Any) -> str:
    if isinstance(found, list):
        return "".join(map(_text, found))
    if isinstance(found, dict):
        return _text(found.get("text"))
    return found if isinstance(found, str) else ""
