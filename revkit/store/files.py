"""Files that are there whole or not at all: all that revkit writes at a path of the user's."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UsageError

__all__ = ["replacing"]

#: A link at the file's name is not followed; on Windows, making links takes an administrator.
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """Write a file beside the one that it is to become, and put it there when it is finished.

    Any number of threads and processes may write to one path: each writes a file of its own, and
    the last one to finish stays. After an error the unfinished file is removed.

    Yields:
        The path that is meant, with ``~`` expanded, and the one to write to, an empty file. A
        device or pipe is written to itself.

    Raises:
        UsageError: there is no such directory.
    """
    target = Path(path).expanduser()
    if not target.absolute().parent.is_dir():
        raise UsageError(f"there is no directory {target.parent}; make it first")
    if target.exists() and not (target.is_file() or target.is_dir()):  # such as /dev/null
        yield target, target
        return
    unfinished = _new_beside(target)
    try:
        yield target, unfinished
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _new_beside(target: Path) -> Path:
    """Make an empty file whose name nobody had, and nobody could have guessed."""
    while True:
        path = target.with_name(f"{target.name}.{_token()}.part")
        with suppress(FileExistsError):
            os.close(os.open(path, _NEW, 0o666))  # as far as the user's umask allows
            return path


def _token() -> str:
    return secrets.token_hex(6)
