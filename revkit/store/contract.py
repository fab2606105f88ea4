"""What a run asks of a store, whether it is a file or a directory that several machines share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..task.chat import Reply

__all__ = ["NO_FACTS", "Facts", "ReplyStore"]

#: What a server says of a model: :meth:`~revkit.Client.facts`.
Facts = Mapping[str, str]
NO_FACTS: Facts = {}


class ReplyStore(Protocol):
    """Keeps replies under the keys of :class:`~revkit.store.keys.ReplyKeys`, for any thread.

    Its methods raise nothing when the disk is in trouble: they do what can still be done, warn of
    the rest once with a :class:`~revkit.store.StoreWarning`, and :attr:`problem` has it.
    """

    @property
    def path(self) -> Path:
        """Where the replies are kept."""

    @property
    def problem(self) -> str | None:
        """What the store could not do, None where all is well."""

    def get(self, keys: Sequence[bytes], *, facts: Facts = NO_FACTS) -> dict[bytes, Reply]:
        """Find the replies to keys; keys without a reply are left out.

        Args:
            facts: what is known of the model now. A reply is left out where one of them was known
                to be another when it was kept.
        """

    def put(
        self,
        items: Iterable[tuple[bytes, Reply]],
        *,
        task: str,
        model: str,
        facts: Facts = NO_FACTS,
    ) -> bool:
        """Keep replies, in one commit; one whose facts differ takes the place of another.

        Args:
            items: keys and replies.
            task: fingerprint of the task.
            model: name of the model.
            facts: what is known of the model.

        Returns:
            Whether they are on the disk: from then on no end of the process loses them. Replies
            that could not be written are tried again in a later call and in :meth:`close`.
        """

    def forget(self, keys: Iterable[bytes]) -> None:
        """Drop replies that no longer do, so that others can take their place."""

    def close(self) -> None:
        """Write what waits. Closing twice does nothing."""
