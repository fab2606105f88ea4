"""A session with a model that remembers what was said: the state that most workers will want."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from ..clients import registry
from ..clients.contract import Aborted
from ..errors import UsageError
from ..runtime.cancel import aborted_by_stop
from ..runtime.options import Failures
from ..runtime.work import adrive, drive
from ..task.answer import Answers
from ..task.kinds import Template

if TYPE_CHECKING:
    from ..clients.contract import AsyncTransport, Client, Transport
    from ..task.chat import Message, Reply

__all__ = ["Conversation"]

#: A session asks for a text; its turns are made here, not by this template.
_TEXT = Template("{turn}", output="reply")


class Conversation:
    """Talks with one model, which is shown what was said before.

    Its history belongs to one worker: give each its own by ``factory=``. Rows that share one are
    answered in the light of those before them, so their order matters, and the store, which keeps
    answers to single prompts, has no part in it. To the run the function is a function: its tokens
    are counted here, not in ``run.usage``, and a budget of the run does not bound them.

    Args:
        model: as for :func:`revkit.parallel_map`.
        system: what the model is told before all else; empty: nothing.
        max_turns: how many of the last questions and replies the model is shown; older ones are
            forgotten, for each is paid for again with every question. None: all.
        truncated: what becomes of a reply that was cut at ``max_tokens``: ``"error"``: it raises
            ``CutOff``; ``"keep"``: it is the answer.

    Attributes:
        prompt_tokens, completion_tokens: of all replies so far, as the server counted them.

    Raises:
        NoModel: no model is given, and none is configured.
        UsageError: ``model``, ``max_turns`` or ``truncated`` is not as above.

    >>> import revkit
    >>> from revkit.testing import FakeModel
    >>> fake = FakeModel(lambda text: f"You said {text}.")
    >>> def ask(word, context):
    ...     return context.state.ask(word)
    >>> run = revkit.parallel_map(
    ...     ["yes", "no"], ask, max_workers=1,
    ...     factory=lambda worker: revkit.Conversation(fake, system="Repeat."),
    ... )
    >>> run.frame["response"].tolist()
    ['You said yes.', 'You said no.']
    >>> [message["content"] for message in fake.calls[1]]
    ['Repeat.', 'yes', 'You said yes.', 'no']
    """

    def __init__(
        self,
        model: str | Client | None = None,
        *,
        system: str = "",
        max_turns: int | None = 10,
        truncated: Literal["error", "keep"] = "error",
    ):
        whole = isinstance(max_turns, int) and not isinstance(max_turns, bool) and max_turns >= 0
        if max_turns is not None and not whole:
            raise UsageError(f"max_turns={max_turns!r}: give a whole number, 0 or more, or None")
        truncated = Failures(truncated=truncated).truncated
        self._client = registry.resolve(model, _TEXT)
        self._answers = Answers(_TEXT, truncated=truncated, max_tokens=self._client.max_tokens)
        self._session = self._client.session(_TEXT)
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._max_turns = max_turns
        self._turns: list[tuple[Message, Message]] = []
        self._is_ready = False
        self._transport: Transport | None = None
        self._async_transport: AsyncTransport | None = None
        self.prompt_tokens = self.completion_tokens = 0

    @property
    def messages(self) -> list[Message]:
        """The chat turns that the model is shown before the next question."""
        return [*self._system, *(message for turn in self._turns for message in turn)]

    def ask(self, text: str) -> str:
        """Ask the model, and wait for its reply.

        What could not be answered is not remembered. The model's thoughts are not part of the
        answer, and the model is not shown them again. In a function of ``parallel_map``, a stop of
        the run that cancels what runs ends the wait.

        Raises:
            BadOutput: the reply is no answer: ``CutOff``, say.
            ModelError: its kinds; in a function of ``parallel_map`` they are tried again as those
                of any task.
            UsageError: the model can only be awaited.
        """
        if self._transport is None:
            if "thread" not in self._client.engines:
                raise UsageError(
                    f"{self._client!r} can only be awaited: `await conversation.aask(...)` in an "
                    "async function"
                )
            if not self._is_ready:
                self._client.ready(_TEXT, max_workers=1)
                self._is_ready = True
            self._transport = self._client.transport(max_workers=1)
        question = _question(text)
        sent = [*self.messages, question]
        transport = self._transport
        try:
            with aborted_by_stop(getattr(transport, "abort", None)):  # a user's own may have none
                reply = drive(self._session.exchange(sent), transport.send)
        except Aborted:
            self.close()
            raise
        return self._remember(sent, reply)

    async def aask(self, text: str) -> str:
        """:meth:`ask`, awaited."""
        if self._async_transport is None:
            if not self._is_ready:
                import asyncio

                await asyncio.to_thread(self._client.ready, _TEXT, max_workers=1)
                self._is_ready = True
            self._async_transport = await self._client.async_transport(max_workers=1)
        question = _question(text)
        sent = [*self.messages, question]
        reply = await adrive(self._session.exchange(sent), self._async_transport.send)
        return self._remember(sent, reply)

    def _remember(self, sent: list[Message], reply: Reply) -> str:
        self.prompt_tokens += reply.used_prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0
        _, reply = self._answers.read(self._answers.split(reply, sent))
        self._turns.append((sent[-1], {"role": "assistant", "content": reply.text}))
        if self._max_turns is not None:
            del self._turns[: len(self._turns) - self._max_turns]
        return reply.text

    def reset(self) -> None:
        """Forget what was said; ``system`` stays."""
        self._turns.clear()

    def close(self) -> None:
        """Close the connection of :meth:`ask`; the next question opens another one."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    async def aclose(self) -> None:
        """Close the connections of both ways to ask."""
        self.close()
        transport, self._async_transport = self._async_transport, None
        if transport is not None:
            await transport.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        turns = len(self._turns)
        return f"Conversation({self._client.name!r}, {turns} turn{'' if turns == 1 else 's'})"


def _question(text: Any) -> Message:
    if not isinstance(text, str):
        raise UsageError(f"a conversation asks a text, not {type(text).__name__}: ask(str(value))")
    return {"role": "user", "content": text}
