"""Thoughts: the one place that takes them out of a reply, before anything is read of it.

A reasoning model shows its thoughts in a field of its own, which the client reads, or in the text
before its answer. In the text, markup counts as a thought only where the reply starts:

- from an opening tag to its closing tag, such as ``<think>...</think>``; several in a row count;
- up to a closing tag without an opening one, if that tag stands nowhere in the messages that were
  sent: many servers drop the opening tag;
- from an opening tag to the end of the reply, if it has no closing tag: then there is no answer.

Markup later in the text is a quotation, and stays. A typed reply that is valid JSON as a whole is
left alone. The channels of gpt-oss (harmony) are such markup as well: all channels but the last
``final`` one are thoughts, wherever they stand.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable

from .chat import Message, Reply

__all__ = ["TAGS", "is_json", "without_thoughts"]

#: Names of the tags; Seed-OSS writes ``<seed:think>``.
TAGS = "think|thinking|thought|reasoning|seed:think"

_TAG = rf"(?i:{TAGS})"
#: What cannot be seen at the start of a reply; some servers send a byte order mark.
_UNSEEN = re.compile("[\\s\ufeff\u200b\u2060]*")
#: How a thought may begin: with a tag, or as Magistral, Kimi and Gemma 4 write it.
_OPENING = re.compile(
    rf"{_UNSEEN.pattern}(?:<({_TAG})(?:\s[^<>]*)?/?>|(\[THINK\])|(◁think▷)|<\|channel>thought\b)"
)
#: Any mark; a closing one has something in the first, third, fourth or fifth group.
_MARK = re.compile(
    rf"<(/?)({_TAG})(?:\s[^<>]*)?/?>|\[(/?)THINK\]|◁(/?)think▷|<(channel)\|>|<\|channel>thought\b"
)
#: A header of harmony's, with the tokens before it, and the name of its channel.
_HEADER = re.compile(
    r"(?:<\|(?:end|return|call)\|>\s*)?(?:<\|start\|>assistant\s*)?"
    r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
)
#: Tokens that may end a part of a reply in harmony.
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>assistant")

#: Thoughts that are taken out of one reply; a hostile one may hold millions.
_MOST = 100


def without_thoughts(reply: Reply, sent: Iterable[Message], *, typed: bool) -> Reply:
    """The reply with the thoughts of its text taken out of it, and put into its ``thought``.

    Args:
        sent: the messages that were sent.
        typed: the task asks for JSON.

    >>> reply = without_thoughts(Reply("<think>North?</think>Oslo"), [], typed=False)
    >>> reply.text, reply.thought
    ('Oslo', 'North?')
    """
    text = reply.text
    if "<" not in text and "THINK]" not in text and "◁" not in text:
        return reply  # nearly always, and it costs next to nothing
    thoughts, answer = _split(text, sent, typed=typed)
    if answer is text:
        return reply
    found = [thought.strip() for thought in (reply.thought or "", *thoughts)]
    thought = "\n\n".join(filter(None, found)) or None
    return dataclasses.replace(reply, text=answer, thought=thought)


def _split(text: str, sent: Iterable[Message], *, typed: bool) -> tuple[list[str], str]:
    """The thoughts that a text starts with, and what is left of it: itself where it has none."""
    if "<|message|>" in text:
        return _channels(text, sent, typed=typed)
    thoughts: list[str] = []
    at = 0  # where the rest of the text starts
    while len(thoughts) < _MOST:
        opening = _OPENING.match(text, at)
        if opening is not None:
            begin = opening.end()
            if opening[0].endswith("/>"):  # it closes itself
                at = begin
                thoughts.append("")
                continue
            closing = _closing(opening).search(text, begin)
            if closing is None:
                return [*thoughts, text[begin:]], ""
        else:
            begin = at
            closing = _MARK.search(text, at)
            if closing is None or not (closing[1] or closing[3] or closing[4] or closing[5]):
                break
            if (typed and is_json(text[at:])) or _is_shown(_same(closing), sent):
                break
        thoughts.append(text[begin : closing.start()])
        at = closing.end()
    return thoughts, text[at:].lstrip() if at else text


def _closing(opening: re.Match[str]) -> re.Pattern[str]:
    if opening[1]:
        return re.compile(rf"</{opening[1]}\s*>", re.IGNORECASE)
    mark = "[/THINK]" if opening[2] else "◁/think▷" if opening[3] else "<channel|>"
    return re.compile(re.escape(mark))


def _same(closing: re.Match[str]) -> re.Pattern[str]:
    """Finds the same closing tag elsewhere."""
    if closing[2]:
        return re.compile(rf"</{closing[2]}\s*>", re.IGNORECASE)
    return re.compile(re.escape(closing[0]))


def _is_shown(mark: re.Pattern[str], sent: Iterable[Message]) -> bool:
    return any(mark.search(message["content"]) for message in sent)


def _channels(text: str, sent: Iterable[Message], *, typed: bool) -> tuple[list[str], str]:
    """:func:`_split` for the channels of harmony."""
    unseen = _UNSEEN.match(text)
    header = _HEADER.match(text, 0 if unseen is None else unseen.end())
    thoughts: list[str] = []
    if header is None:  # the server may have dropped the first one
        header = _HEADER.search(text)
        if header is None or header[1] != "final":
            return [], text
        if (typed and is_json(text)) or _is_shown(re.compile(re.escape("<|message|>")), sent):
            return [], text
        thoughts.append(_ended(text[: header.start()]))
    answer: int | None = None  # its place among the parts
    while header is not None:
        part = _ended(text[header.end() :]).lstrip()
        is_whole = header[1] == "final" and typed and is_json(part)  # what it holds is quoted
        if is_whole or len(thoughts) >= _MOST:
            following = None
        elif following := _HEADER.search(text, header.end()):
            part = _ended(text[header.end() : following.start()]).lstrip()
        if header[1] == "final":
            answer = len(thoughts)
        thoughts.append(part)
        header = following
    return thoughts, "" if answer is None else thoughts.pop(answer)


def _ended(text: str) -> str:
    """A part without the tokens that end it."""
    while True:
        text = text.rstrip()
        end = next((end for end in _ENDS if text.endswith(end)), None)
        if end is None:
            return text
        text = text.removesuffix(end)


def is_json(text: str) -> bool:
    """Whether a text is JSON as a whole; strings may hold raw line breaks."""
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True
