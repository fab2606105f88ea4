"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UsageError

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """Write a file beside the one that it is to become, and put it there when it is finished.

    Yields:
        The path that is meant, with ``~`` expanded, and the one to write to.

    Raises:
        UsageError: there is no such directory.
    """
    target = Path(path).expanduser()
    if not target.absolute().parent.is_dir():
        raise UsageError(f"there is no directory {target.parent}; make it first")
    unfinished = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield target, unfinished
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
