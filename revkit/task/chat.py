"""What is said to a model and by it: chat turns and replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

__all__ = ["Message", "Reply", "count", "with_known_counts"]

#: A higher number of tokens is none: no prompt and no reply has a billion.
_MOST_TOKENS = 10**9


class Message(TypedDict):
    """One chat turn."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said to one prompt.

    Attributes:
        text: the message's text, without the model's thoughts.
        prompt_tokens, completion_tokens: as the server counts them; None where it does not.
        finish_reason: why it stopped (``"stop"``, ``"length"``, …); None where it does not say.
        probabilities: for class outputs, output -> label -> probability (each sums to 1), where
            the model gives them.
        thought: what the model thought before it answered; None where it shows no thoughts.
        model: the name of the model that answered, as the server gives it; None where it does not.
        format: how the reply's form was asked for: by a JSON schema, by JSON mode, or by the
            prompt alone; None where nobody knows.
        truncated: the text was cut at a limit of tokens, and kept as it is.
        probe_tokens: tokens of the requests that checked whether the server cut this prompt; they
            count as used, and are not part of ``prompt_tokens``.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    probabilities: Mapping[str, Mapping[str, float]] | None = None
    thought: str | None = None
    model: str | None = None
    format: Literal["schema", "json", "prompt"] | None = None
    truncated: bool = False
    probe_tokens: int = 0

    @property
    def used_prompt_tokens(self) -> int | None:
        """The prompt's tokens and those of the probes; None where none was counted."""
        return (self.prompt_tokens or 0) + self.probe_tokens or self.prompt_tokens


def count(found: Any) -> int | None:
    """A number of tokens as a server gives it, None where it is not one.

    >>> count(12), count(-1), count(2**64 - 1), count(1.5)
    (12, None, None, None)
    """
    if isinstance(found, bool) or not isinstance(found, int):
        return None
    return found if 0 <= found <= _MOST_TOKENS else None


def with_known_counts(reply: Reply) -> Reply:
    """The reply; a number of tokens in it that is not one is not known. It may be of any client."""
    prompt, completion = reply.prompt_tokens, reply.completion_tokens
    if (prompt is None or (type(prompt) is int and 0 <= prompt <= _MOST_TOKENS)) and (
        completion is None or (type(completion) is int and 0 <= completion <= _MOST_TOKENS)
    ):
        return reply  # nearly always, and a call would cost more
    return replace(reply, prompt_tokens=count(prompt), completion_tokens=count(completion))
