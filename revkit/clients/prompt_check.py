"""Sees whether Ollama cut a prompt: sends the requests by which ``context`` decides.

A reply passes at once unless its count of tokens is suspect. Then the server is asked about the
prompt's parts, for one token of reply each. What fails there proves nothing: the reply stands.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..errors import PromptTruncated, RowFailure
from ..task.chat import Message, Reply, count
from .body import encode, static_body
from .context import STRETCH, ContextWatch, halves, is_cut, one_text
from .contract import Aborted, Exchange, Request, Response
from .too_long import is_too_long, truncated

if TYPE_CHECKING:
    from .ollama import Ollama

__all__ = ["PromptCheck"]

#: How often the server is asked for the tokens of one text, if it fails.
_TRIES: Final = 2

#: The tokens of a text, or the like; None: the server does not say.
Counting = Generator[Request, Response, int | None]


class PromptCheck:
    """One run's check of its prompts.

    Args:
        client: for the server.
        fields: of each request's body, without a format.
    """

    def __init__(self, client: Ollama, fields: Mapping[str, Any]):
        self._client = client
        self._watch = ContextWatch(client.num_ctx, count(client.options.get("num_keep")))
        probe = {**fields, "options": client.options | {"num_predict": 1}}
        self._static = static_body(probe, "options= or keep_alive=")
        self._cut: dict[bytes, int] = {}  # prompts that were cut, by their hash: their tokens

    def saw(self, response: Response) -> None:
        """Learn from a response whether the server refuses prompts that are too long."""
        if is_too_long(response.status, response.body):
            self._watch.refuses = True

    def passes(self, size: int, reply: Reply) -> bool:
        """Whether a reply to a prompt of so many bytes needs no look: nearly all do."""
        return self._watch.passes(size, reply.prompt_tokens)

    def checked(self, messages: Sequence[Message], size: int, reply: Reply) -> Exchange:
        """The reply, unless its prompt was provably cut.

        Raises:
            PromptTruncated: it was.
        """
        watch, found = self._watch, reply.prompt_tokens
        text, probes = one_text(messages), _Probes()
        if not watch.asked:
            watch.told((yield from self._told_context()))
        if watch.is_uncounted(size, found):  # most of it may have been in the server's cache
            before = self._cut.get(_hash(text))
            if before is not None:
                raise self._error(before, reply)
            found = None
            if watch.is_worth_a_probe("uncounted"):
                found = yield from self._count(text, probes)
        tokens = None
        if found is not None and not watch.passes(size, found):
            tokens = yield from self._before_a_cut(messages, text, size, found, probes)
        if probes.tokens:
            reply = dataclasses.replace(reply, probe_tokens=probes.tokens)
        if tokens is not None:
            self._cut[_hash(text)] = tokens
            raise self._error(tokens, reply)
        return reply

    def _error(self, tokens: int, reply: Reply) -> PromptTruncated:
        return truncated(
            tokens, reply, context=self._watch.context, max_tokens=self._client.max_tokens
        )

    def _before_a_cut(
        self, messages: Sequence[Message], text: str, size: int, found: int, probes: _Probes
    ) -> Counting:
        """The tokens of a prompt that the server provably cut to ``found``; else None."""
        watch = self._watch
        # A server may drop whole turns: any but the system's and the last.
        turns = [len(m["content"]) for m in messages[:-1] if m["role"] != "system"]
        suspicion = watch.suspicion(size, found, turns)
        if suspicion != "limit" and watch.wants_the_limit(found):
            longer = yield from self._count("\n".join([text] * STRETCH), probes)
            if watch.refuses:
                return None
            watch.stretched(found, longer)
            suspicion = watch.suspicion(size, found, turns)
        if suspicion is None or not watch.is_worth_a_probe(suspicion):
            return None
        tokens = yield from self._proof(text, size, found, suspicion == "limit", probes)
        if tokens is not None:
            watch.proven(suspicion, found)
        return tokens

    def _proof(self, text: str, size: int, found: int, at_limit: bool, probes: _Probes) -> Counting:
        """The tokens of a text that was provably cut, by its halves; None without a proof."""
        first, second = halves(text)
        one = yield from self._count(first, probes)
        two = None if one is None else (yield from self._count(second, probes))
        if one is None or two is None or not is_cut(found, one, two, at_limit=at_limit):
            return None
        # The whole without the cache's help, and what a template puts around any text.
        again = yield from self._count(text, probes)
        empty = None if again is None else (yield from self._count("", probes))
        if again is None or empty is None:
            return None
        whole = max(found, again)
        if not is_cut(whole, one, two, empty, at_limit=at_limit):
            return None
        both = one + two - empty
        # A half that was cut itself has more tokens than were counted: at 3 bytes each, perhaps.
        was_cut = any(abs(half - again) <= empty for half in (one, two))
        return max(both, size // 3) if was_cut else both

    def _count(self, text: str, probes: _Probes) -> Counting:
        """Tokens of a text, counted without the server's cache."""
        client = self._client
        for _ in range(_TRIES):
            # A beginning that no other prompt has; and an end of another length, so that what a
            # cut leaves begins elsewhere, too.
            probes.number += 1
            content = f"[{secrets.token_hex(4)}] {text}{' x' * probes.number}"
            body = encode(self._static, [{"role": "user", "content": content}])
            try:
                response = client.received((yield client.request(client.path, body)))
                self.saw(response)
                if self._watch.refuses:
                    return None
                found = client.decode(response)
            except Aborted:
                raise
            except RowFailure:  # it proves nothing, and is no fault of the row's
                continue
            counted = count(found.get("prompt_eval_count"))
            if counted is not None:
                probes.tokens += counted + (count(found.get("eval_count")) or 0)
            return counted
        return None

    def _told_context(self) -> Counting:
        """The context of the loaded model, which newer versions tell."""
        client = self._client
        try:
            found = client.decode(client.received((yield client.request("/api/ps"))))
        except Aborted:
            raise
        except RowFailure:
            return None
        models = found.get("models")
        for model in models if isinstance(models, list) else ():
            if isinstance(model, dict) and model.get("name") == client.tagged_model:
                return count(model.get("context_length")) or None
        return None


class _Probes:
    """The requests that looked at one prompt: how many, and their tokens."""

    number = tokens = 0


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
