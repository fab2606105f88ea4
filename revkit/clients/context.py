"""Prompts that Ollama cut without a word: what makes one suspect, and what proves it.

Where a prompt is longer than the model's context, many versions of Ollama drop its beginning and
answer the rest with status 200. Only the number of prompt tokens in the reply shows it:

- older versions cut a prompt to the context, or to one token less;
- newer ones keep ``num_keep`` tokens and half of the rest: 2,050 or 2,051 of 4,096;
- where the prompt has several turns, some versions drop whole turns until the others fit;
- some versions leave out tokens that were in their cache, so a small number says nothing.

A number only makes a prompt suspect (:class:`ContextWatch`). The proof asks about both halves of
the prompt alone (:func:`is_cut`). Pure: the session in :mod:`revkit.clients.ollama` sends the
requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

from ..task.chat import Message

__all__ = ["ContextWatch", "Suspicion", "halves", "is_cut", "one_text"]

#: Why a prompt is suspect: its count is what a cut leaves; it is so near to the context that turns
#: may have been dropped; it has very few tokens for its size; another text has as many.
Suspicion = Literal["limit", "turns", "sparse", "shared"]

#: Tokens by which two halves exceed a whole that was cut.
MARGIN: Final = 512
#: The same where the count is exactly what a cut leaves, which is evidence of its own.
MARGIN_AT_LIMIT: Final = 32
#: How much longer a text is sent to see where the server cuts.
STRETCH: Final = 3
#: Prompts with fewer tokens than this are not cut: half of the smallest context in use.
_FLOOR: Final = 1024
#: The contexts in use, for servers that do not tell theirs.
_USUAL: Final = tuple(2**k for k in range(11, 19))
#: Bytes a token that are rare: English has 4 to 5, some other scripts up to 10.
_SPARSE: Final = 8
#: Half of the smallest context at all, for a prompt of more than _SHORT bytes that is sparse.
_FEW: Final = 256
_SHORT: Final = 4096
#: Bytes of a prompt that is looked at where it was not counted.
_LONG: Final = 16_384
#: Suspects of one kind that are all asked about. Later ones are, while none was proven, where
#: their number is a power of two.
_ALL: Final = 3
#: Tokens that may be in the cache, and so be left out of the count, of what a cut leaves.
_NEAR: Final = 8
#: Requests that look for the limit and fail, before the run does without.
_TRIES: Final = 3


class ContextWatch:
    """What one run has learned of its server's context.

    Shared by all workers of the run, on threads or a loop, without a lock: what is learned at the
    same moment costs a request more, and never a wrong answer.

    Args:
        num_ctx: the context that the user asks for; None: the server's own.
        num_keep: the tokens that a cut keeps at the beginning.

    Attributes:
        floor: a prompt with fewer tokens was not cut.
        refuses: the server refuses prompts that are too long, so it cuts none.
        context: the size of the context, if it is known.
        asked: the server was asked for its context.
    """

    def __init__(self, num_ctx: int | None, num_keep: int | None = None):
        self._keep = 4 if num_keep is None else max(0, num_keep)
        self._contexts: set[int] = set()
        self._counts: set[int] = set()  # what cuts have left of prompts in this run
        self._sure = False  # all counts that a cut may leave are known
        self._whole = 0  # a prompt of so many tokens was not cut
        self._tries = _TRIES
        self._sizes: dict[int, int] = {}  # of the first prompt with that count, in bytes
        self._seen: Counter[str] = Counter()
        self.floor = _FLOOR
        self.refuses = False
        self.asked = False
        self.context = num_ctx
        if num_ctx is not None:
            self._add(num_ctx)

    def _add(self, context: int) -> None:
        self._contexts.add(context)
        self.floor = min(self.floor, max(1, context // 2))

    # -- what a reply's count says ----------------------------------------------------------

    def passes(self, size: int, count: int | None) -> bool:
        """Whether a prompt needs no look: nearly all do; ``size`` is in bytes."""
        if self.refuses:
            return True
        if self.is_uncounted(size, count):
            return False
        if count is None or count < min(_FEW, self.floor):
            return True
        return count < self.floor and size <= max(_SHORT, count * _SPARSE)

    def is_uncounted(self, size: int, count: int | None) -> bool:
        """Whether a long prompt was not counted: perhaps all of it was in the server's cache."""
        return size >= _LONG and (count is None or count <= 1)

    def suspicion(self, size: int, count: int, turns: Sequence[int]) -> Suspicion | None:
        """What makes a prompt suspect.

        Args:
            size: of the prompt, in bytes.
            count: its tokens, by the server.
            turns: sizes of the turns that may be dropped whole.
        """
        if 2 * count < self._whole:
            return None
        usual = () if self._sure or self._contexts else _USUAL
        limits = {n for c in (*self._contexts, *usual) for n in _left_by_a_cut(c, self._keep)}
        near = _NEAR + min(self._keep, _NEAR)
        if any(0 <= limit - count < near for limit in limits) or any(
            abs(left - count) < near for left in self._counts
        ):
            return "limit"
        full = self._contexts | self._counts
        if sum(turns) > MARGIN and any(c - max(turns) <= count <= c for c in full):
            return "turns"
        if self._sure:
            return None
        other = self._sizes.setdefault(count, size)
        if size > count * _SPARSE:
            return "sparse"
        return "shared" if abs(size - other) * 10 > max(size, other) else None

    def is_worth_a_probe(self, suspicion: str) -> bool:
        """Whether to ask about a suspect: always at a limit, else ever more rarely."""
        if suspicion == "limit":
            return True
        self._seen[suspicion] += 1
        seen = self._seen[suspicion]
        return seen <= _ALL or seen & (seen - 1) == 0

    def wants_the_limit(self, count: int) -> bool:
        """Whether only a longer prompt can tell if one with this count was cut."""
        return (
            not self._sure and not self._contexts and self._tries > 0 and 2 * count >= self._whole
        )

    # -- what was learned -------------------------------------------------------------------

    def told(self, context: int | None) -> None:
        """The server said how large its context is; None: it did not say."""
        self.asked = True
        if context is not None:
            self._add(context)
            self._sure = True
            self.context = context

    def stretched(self, count: int, longer: int | None) -> None:
        """A prompt of ``count`` tokens had ``longer`` when its text was sent several times over.

        A context that takes these cuts no prompt of less than half of them. Where they are
        not many more, they are what a cut leaves.
        """
        if longer is None:
            self._tries -= 1
        elif longer >= (STRETCH + 1) / 2 * count:
            self._whole = max(self._whole, longer)
        else:
            self._counts.add(longer)
            self._sure = True

    def proven(self, suspicion: Suspicion, count: int) -> None:
        """A prompt with this count was cut."""
        self._seen[suspicion] = 0
        if suspicion != "turns":
            self._counts.add(count)


def _left_by_a_cut(context: int, keep: int) -> set[int]:
    """How many tokens a cut leaves, by version; one more where a prompt begins with its own token.

    >>> sorted(_left_by_a_cut(4096, 4))
    [2050, 2051, 4095, 4096]
    """
    keep = min(keep, context - 1)
    half = keep + (context - keep) // 2
    return {context, context - 1, half, half + 1}


# -- the proof ---------------------------------------------------------------------------------


def one_text(messages: Sequence[Message]) -> str:
    """All turns as one text, which templates that want turns in order take, too."""
    return "\n".join(message["content"] for message in messages)


def halves(text: str) -> tuple[str, str]:
    """Both halves, by characters.

    >>> halves("abcde")
    ('ab', 'cde')
    """
    middle = len(text) // 2
    return text[:middle], text[middle:]


def is_cut(whole: int, first: int, second: int, empty: int = 0, *, at_limit: bool = False) -> bool:
    """Whether a prompt was provably cut: its halves alone have many more tokens than it had.

    Args:
        whole: tokens of the prompt.
        first, second: tokens of its halves, each asked about alone.
        empty: tokens of a prompt without a text: what a template puts around each.
        at_limit: the whole's count is exactly what a cut leaves.

    >>> is_cut(2050, 3400, 3450, 30), is_cut(4096, 2050, 2110, 50)
    (True, False)
    """
    margin = MARGIN_AT_LIMIT if at_limit else MARGIN
    return first + second - empty > whole + margin
