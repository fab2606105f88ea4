"""What a run asks of a store, whether it is a file or a directory that several machines share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..task.chat import Reply

__all__ = ["NO_FACTS", "Claims", "Facts", "ReplyStore"]

#: What a server says of a model: :meth:`~revkit.Client.facts`.
Facts = Mapping[str, str]
NO_FACTS: Facts = {}


class Claims(Protocol):
    """Which run asks the model for which key, so that no two pay for the same prompt.

    A key that is not in the store is claimed before its row starts. A claim is released when the
    reply is in the store, or will not come, and when its owner dies. One thread at a time uses it.

    Attributes:
        at_once: keys to claim in one call at most; None: as many as the run has workers.
    """

    at_once: int | None

    @property
    def version(self) -> object:
        """Equals another one where no other run has written between them."""

    def claim(self, keys: Sequence[bytes]) -> tuple[Collection[bytes], object]:
        """Claim keys; returns those that others have claimed, and the :attr:`version` now.

        The store must be read again where that has changed: the replies may have come.
        """

    @property
    def has_news(self) -> bool:
        """Whether it is time to call :meth:`freed`."""

    def freed(self, keys: Sequence[bytes]) -> Collection[bytes]:
        """Those of the keys, which others had claimed, that may be free now."""

    def release(self, keys: Iterable[bytes]) -> None:
        """Release claims, at once or at the next :meth:`flush`."""

    @property
    def is_due(self) -> bool:
        """Whether it is time to call :meth:`flush`."""

    def flush(self) -> None:
        """Let others know of the claims that were released. May block."""


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

    @property
    def claims(self) -> Claims | None:
        """The claims to keys of this store; None: there are none in such a place."""

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
