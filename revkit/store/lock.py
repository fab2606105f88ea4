"""A directory that one process at a time works in."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["locked"]


@contextlib.contextmanager
def locked(directory: Path, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Lock a directory while the block runs; a process that ends unlocks it.

    Args:
        wait_s: seconds to wait for another process that has locked it.

    Yields:
        False if another process has it locked. True if this one has, and also where directories
        cannot be locked: on Windows and on some network file systems.
    """
    try:
        import fcntl

        handle = os.open(directory, os.O_RDONLY)
    except (ImportError, OSError):
        yield True
        return
    try:
        give_up, alone = time.monotonic() + wait_s, False
        while not alone:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    break
                time.sleep(0.01)
            except OSError:  # this file system has no locks
                alone = True
        yield alone
    finally:
        os.close(handle)
