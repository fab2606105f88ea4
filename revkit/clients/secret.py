"""Keys by where they stand, so that a client can travel without the key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError

__all__ = ["Secret"]


@dataclass(frozen=True, slots=True)
class Secret:
    """A key that is read where it is used: the name of it travels to a cluster, never the key.

    Args:
        env: name of an environment variable.
        file: path of a file that holds the key and nothing else, such as Kubernetes mounts one.

    Raises:
        UsageError: neither is given, or both.

    >>> Secret(env="GATEWAY_KEY")
    Secret(env='GATEWAY_KEY')
    """

    env: str | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        if (self.env is None) == (self.file is None):
            raise UsageError('Secret(): give env="NAME", or file="/path"')

    def read(self) -> str:
        """The key. Raises :class:`UsageError` where there is none."""
        if self.env is not None:
            found = os.environ.get(self.env, "").strip()
            if not found:
                raise UsageError(
                    f"{self!r}: the environment variable is not set here; set it in every process "
                    "that asks the model, on a cluster where its workers are started"
                )
            return found
        assert self.file is not None
        try:
            found = Path(self.file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UsageError(f"{self!r} cannot be read here: {error}") from None
        if not found:
            raise UsageError(f"{self!r}: the file is empty")
        return found

    def __repr__(self) -> str:
        return (
            f"Secret(env={self.env!r})" if self.env is not None else f"Secret(file={self.file!r})"
        )
