"""What a run asks of a store, whether it is a file or a directory that several machines share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from ..task.chat import Reply

__all__ = ["ReplyStore"]


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

    def get(self, keys: Sequence[bytes], *, weights: str | None = None) -> dict[bytes, Reply]:
        """Find the replies to keys; keys without a reply are left out.

        Args:
            weights: digest of the model's weights today. Replies of other weights are left out;
                None, not known: any reply will do.
        """

    def put(
        self,
        items: Iterable[tuple[bytes, Reply]],
        *,
        task: str,
        model: str,
        weights: str | None = None,
    ) -> bool:
        """Keep replies, in one commit.

        Args:
            items: keys and replies.
            task: fingerprint of the task.
            model: name of the model.
            weights: digest of the model's weights, where it is known.

        Returns:
            Whether they are on the disk: from then on no end of the process loses them. Replies
            that could not be written are tried again in a later call and in :meth:`close`.
        """

    def forget(self, keys: Iterable[bytes]) -> None:
        """Drop replies that no longer do, so that others can take their place."""

    def close(self) -> None:
        """Write what waits. Closing twice does nothing."""
