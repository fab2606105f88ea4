"""Under which key a reply is kept. Everything that decides whether two prompts get one answer
lives here.

A key is a hash of all that decides the answer: what the task asks for, the model with its
options and endpoint (:meth:`Client.key_settings`), the messages that the row was rendered into, and
the numbers of the sample and of the draw. What does not decide it stands in no key: workers, API
keys, timeouts, the names of columns. A difference that is none costs a call; a sameness that is
none would give a row the answer to another question: so in doubt, more is hashed. What only the
server says of the model is kept beside a reply, and not hashed: it may be that nobody can be asked.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..task.kinds import RENDER_VERSION

if TYPE_CHECKING:
    from ..task.chat import Message
    from ..task.kinds import ModelTask

__all__ = ["KEY_BYTES", "ReplyKeys"]

#: Goes up whenever the same question gets another key.
KEY_VERSION = 1
#: 160 bits: two of 10**12 replies share a key with a probability below 10**-24.
KEY_BYTES = 20


class ReplyKeys:
    """The keys of one run.

    The part that all rows share is hashed here, once; a row costs a few microseconds.

    Args:
        task: what is asked of each row.
        settings: what decides the model's answers beside the prompt: the client's
            :meth:`~revkit.Client.key_settings`.

    >>> from revkit import Ollama
    >>> from revkit.task.kinds import Template
    >>> task = Template("Summarise: {review}")
    >>> keys = ReplyKeys(task, Ollama("llama3.2:3b").settings())
    >>> key = keys.key(task.messages({"review": "Broke twice."}))
    >>> len(key)
    20
    >>> key == keys.key(task.messages({"review": "Broke twice."}), sample=1)
    False
    """

    def __init__(self, task: ModelTask, settings: Mapping[str, Any]):
        self._prefix = list(task.prefix)
        self._bare = hashlib.blake2b(_asked(task, settings), digest_size=KEY_BYTES)
        self._begun = self._bare.copy()
        self._begun.update(b"".join(map(_turn, self._prefix)))

    def key(self, messages: Sequence[Message], sample: int = 0, draw: int = 0) -> bytes:
        """The key of one prompt: :data:`KEY_BYTES` bytes, the same in every process.

        Args:
            messages: the chat turns of the row, as :meth:`ModelTask.messages` gives them.
            sample: number of the sample, where a row is asked more than once.
            draw: number of the draw, where several rows have the prompt (``runtime/draws.py``).
        """
        shared = len(self._prefix)
        # The prefix is the same object in each row of a run, which makes this comparison cheap.
        if list(messages[:shared]) == self._prefix:
            hashed = self._begun.copy()
            messages = messages[shared:]
        else:
            hashed = self._bare.copy()
        hashed.update(b"%bs%d" % (b"".join(map(_turn, messages)), sample))
        if draw:
            hashed.update(b"d%d" % draw)
        return hashed.digest()


def _asked(task: ModelTask, settings: Mapping[str, Any]) -> bytes:
    """What all rows of a run share, but for the messages that stand before each row's own."""
    asked = [
        KEY_VERSION,
        RENDER_VERSION,
        task.instructions,
        # Renaming a template's column changes no prompt; where a name is shown, it stands in it.
        task.user_text({name: f"\0{place}\0" for place, name in enumerate(task.inputs)}),
        [
            [[example.get(name) for name in names] for names in (task.inputs, task.outputs.asked)]
            for example in task.examples
        ],
        list(task.outputs.asked),
        # With descriptions; the order of its properties is the order of the reply's.
        task.outputs.json_schema,
    ]
    parts = [
        json.dumps(asked, default=str),
        json.dumps(dict(settings), default=str, sort_keys=True),
    ]
    return b"".join(map(_sized, parts))


def _turn(message: Message) -> bytes:
    data = message["content"].encode("utf-8", "surrogatepass")
    return b"%b%d:%b" % (_begin_turn(message["role"]), len(data), data)


@functools.cache  # there are three roles
def _begin_turn(role: str) -> bytes:
    return b"m" + _sized(role)


def _sized(text: str) -> bytes:
    """Bytes that tell where they end, so that no two lists of texts look the same in a row."""
    data = text.encode("utf-8", "surrogatepass")
    return b"%d:%b" % (len(data), data)
