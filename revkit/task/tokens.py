"""Tokens: estimated before a request, learnt from the replies, and paid for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from .chat import Message

__all__ = ["Price", "TokenEstimate", "prompt_size"]

#: UTF-8 bytes that a token stands for on average, before any reply has told.
_BYTES_PER_TOKEN = 3.0
#: Tokens that a chat template puts around a prompt, generously.
_TEMPLATE = 64
#: By how much the next prompt may be denser than the densest so far.
_SAFETY = 1.25


def prompt_size(messages: Iterable[Message]) -> int:
    """The size of a prompt in UTF-8 bytes.

    >>> prompt_size([{"role": "user", "content": "好 ok"}])
    6
    """
    # A lone surrogate must not stop a run here; it has three bytes, too.
    return sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in messages)


class TokenEstimate:
    """How many tokens the prompts and replies of one run have, before the server counts them.

    Sizes are in UTF-8 bytes, because tokens per byte differ far less between scripts than tokens
    per character: the vocabularies of today's models are byte-level BPE (Radford et al.,
    "Language Models are Unsupervised Multitask Learners", 2019, section 2.2). English has 4 to 5
    bytes a token; for the same text in other scripts, whole multiples of its tokens are counted
    (Petrov et al., "Language Model Tokenizers Introduce Unfairness Between Languages", 2023).
    And as a token is at least one byte, a text never has more tokens than bytes.

    One object serves one run, and one caller at a time.

    >>> estimate = TokenEstimate()
    >>> estimate.expected(3000), estimate.upper(3000), estimate.completion()
    (1000, 3064, None)
    >>> estimate.observe(3000, prompt_tokens=700, completion_tokens=12)
    >>> estimate.expected(6000), estimate.upper(6000), estimate.completion()
    (1400, 1814, 12)
    """

    def __init__(self) -> None:
        self._bytes = self._tokens = 0
        self._densest = 0.0  #: most tokens per byte in one prompt
        self._replies = self._completions = 0

    def observe(
        self, size: int, prompt_tokens: int | None = None, completion_tokens: int | None = None
    ) -> None:
        """Learn from a reply what the server counted; None where it does not count."""
        if size > 0 and prompt_tokens is not None:
            self._bytes += size
            self._tokens += prompt_tokens
            self._densest = max(self._densest, prompt_tokens / size)
        if completion_tokens is not None:
            self._replies += 1
            self._completions += completion_tokens

    def expected(self, size: int) -> int:
        """Tokens of a prompt of so many bytes: by the mean so far, else 3 bytes a token."""
        return math.ceil(
            size * self._tokens / self._bytes if self._bytes else size / _BYTES_PER_TOKEN
        )

    def upper(self, size: int) -> int:
        """Tokens that a prompt of so many bytes should not exceed, for a reservation.

        A token a byte before any reply; then a quarter more than the densest prompt so far had;
        and 64 for the chat template. A prompt that is denser still makes a budget be exceeded by
        what it has more, once: the next prompt is taken to be as dense.
        """
        return math.ceil(size * (self._densest * _SAFETY if self._bytes else 1.0)) + _TEMPLATE

    def completion(self) -> int | None:
        """Tokens of the mean reply so far, rounded up; None before any."""
        return math.ceil(self._completions / self._replies) if self._replies else None


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost.

    Args:
        input_usd_per_million: US dollars for a million tokens of prompts.
        output_usd_per_million: US dollars for a million tokens of replies.
        usd_per_request: US dollars for each request in addition.
        tiers: ``(tokens, price)`` pairs, in rising order: a request whose prompt has more tokens
            than that is billed by that price as a whole.

    Raises:
        UsageError: a number that is no price; a tier that is cheaper than the one before it.

    >>> Price(0.4, 1.6).cost(prompt_tokens=1_000_000, completion_tokens=1000)
    0.4016
    >>> Price(3, 15, tiers=((200_000, Price(6, 22.5)),)).cost(250_000, 0)
    1.5
    """

    input_usd_per_million: float
    output_usd_per_million: float
    usd_per_request: float = 0.0
    tiers: tuple[tuple[int, Price], ...] = ()

    def __post_init__(self) -> None:
        for name in _RATES:
            usd = getattr(self, name)
            number = isinstance(usd, int | float) and not isinstance(usd, bool)
            if not (number and 0 <= usd < math.inf):
                raise UsageError(f"Price({name}={usd!r}): give US dollars, 0 or more")
        before = (0, self)
        for tier in self.tiers:
            rises = all(getattr(before[1], name) <= getattr(tier[1], name) for name in _RATES)
            if not (before[0] < tier[0] and rises):
                raise UsageError(
                    f"Price(tiers={self.tiers!r}): give them in the order of their tokens, each "
                    "at least as dear as the one before"
                )
            before = tier

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """US dollars for one request; more tokens never cost less."""
        price = self
        for start, dearer in self.tiers:
            if prompt_tokens > start:
                price = dearer
        tokens = (
            price.input_usd_per_million * prompt_tokens
            + price.output_usd_per_million * completion_tokens
        )
        return tokens / 1e6 + price.usd_per_request


_RATES = ("input_usd_per_million", "output_usd_per_million", "usd_per_request")
