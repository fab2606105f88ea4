"""What counts as an answer: a whole reply that the model ended itself, and its values.

Live replies and kept ones go through the same :class:`Answers`, so that a kept reply passes the
checks of today.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import Any, Literal

from ..errors import BadOutput, BadReply, ContentFiltered, CutOff, ModelRefused
from .chat import Message, Reply, with_known_counts
from .kinds import ModelTask
from .thoughts import without_thoughts

__all__ = ["Answers"]

#: Finish reasons by what they say, in any spelling; the others say that the model ended its reply.
_CUT = re.compile(r"length|context|max(imum)?(completion|output|new)?token|maxoutput|tokenlimit")
_FILTERED = re.compile(
    r"contentfilter|safety|recitation|blocklist|prohibitedcontent|spii|sensitive$|guardrail"
)
#: OpenRouter, Mistral; vLLM, SGLang; DeepSeek; Z.ai.
_BROKEN = {"error", "abort", "aborted", "insufficientsystemresource", "networkerror"}


class Answers:
    """Reads the replies of one run.

    Args:
        truncated: whether cut text is an error, or kept.
        max_tokens: most tokens of one reply; None where that is left to the server.

    >>> from revkit.task.kinds import Template
    >>> answers = Answers(Template("Name the capital of {country}."))
    >>> answers.read(answers.split(Reply("<think>North?</think>Oslo"), []))[0]
    {'response': 'Oslo'}
    """

    def __init__(
        self,
        task: ModelTask,
        *,
        truncated: Literal["error", "keep"] = "error",
        max_tokens: int | None = None,
    ):
        self._task = task
        self._keeps_cut = truncated == "keep" and task.outputs.free_text
        self._limit = "a limit of tokens" if max_tokens is None else f"max_tokens={max_tokens:,}"

    def split(self, reply: Reply, sent: Iterable[Message]) -> Reply:
        """The reply without the thoughts in its text, and without counts that are none.

        Args:
            sent: the messages that were sent.
        """
        reply = with_known_counts(reply)
        return without_thoughts(reply, sent, typed=not self._task.outputs.free_text)

    def read(self, reply: Reply) -> tuple[dict[str, Any], Reply]:
        """The values of a reply that was split, and the reply, which may be marked as truncated.

        Raises:
            BadOutput: it is no answer, for the reason in its message. Its kinds ``CutOff``,
                ``ContentFiltered`` and ``ModelRefused``.
            BadReply: the server broke it off.
        """
        kind = None if reply.finish_reason in (None, "stop") else _kind(str(reply.finish_reason))
        if kind is None:
            if reply.thought and not reply.text.strip():
                raise BadOutput("the reply holds a thought, and no answer after it", reply=reply)
            return self._task.parse(reply.text), reply
        if kind == "cut":
            return self._read_cut(reply)
        why = f'(finish reason "{reply.finish_reason}")'
        if kind == "filtered":
            raise ContentFiltered(f"the server's content filter ended the reply {why}", reply=reply)
        if kind == "refused":
            raise ModelRefused(f"the model refused to answer {why}", reply=reply)
        raise BadReply(f"the server broke the reply off {why}", reply=reply)

    def _read_cut(self, reply: Reply) -> tuple[dict[str, Any], Reply]:
        if reply.text.strip() and self._keeps_cut:
            return self._task.parse(reply.text), dataclasses.replace(reply, truncated=True)
        if not self._task.outputs.free_text:
            try:
                return self._task.outputs.parse(reply.text, whole=True), reply
            except BadOutput:
                pass  # it is the cut that has to be mended
        raise CutOff(self._words(reply), reply=reply)

    def _words(self, reply: Reply) -> str:
        """What happened to a reply that was cut, and what helps."""
        reason = str(reply.finish_reason)
        if "context" in _plain(reason):
            what, help_ = "when the model's context was full", "shorten the prompt, or give the "
            help_ += "model a larger context"
        else:
            what, help_ = f"at {self._limit}", "raise max_tokens="
        what += f' (finish reason "{reason}")'
        if not reply.text.strip() and reply.thought:
            return (
                f"the model was still thinking when its reply was cut off {what}: {help_}, or let "
                "it think less with reasoning="
            )
        if not reply.text.strip():
            return (
                f"the reply was cut off {what} before the model said anything: {help_}; a model "
                "that thinks without showing it thinks less with reasoning="
            )
        if self._task.outputs.free_text:
            help_ += ', or keep cut text with truncated="keep"'
        return f"the reply was cut off {what}: {help_}"


@functools.lru_cache(maxsize=100)
def _kind(reason: str) -> Literal["cut", "filtered", "refused", "broken"] | None:
    """What a finish reason says; None: the model ended its reply."""
    plain = _plain(reason)
    if _CUT.search(plain) or plain == "limit":
        return "cut"
    if _FILTERED.search(plain):
        return "filtered"
    if plain == "refusal":
        return "refused"
    return "broken" if plain in _BROKEN else None


def _plain(reason: str) -> str:
    return re.sub("[^a-z]", "", reason.lower())
