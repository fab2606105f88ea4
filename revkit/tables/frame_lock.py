"""One lock for reading and writing the callers' frames: several threads may run on one frame.

pandas takes no lock. Whoever copies a frame, or checks its columns and writes to them, holds this
one, so that no column is lost between two steps. It is never held while rows run.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager

__all__ = ["frame_lock"]

_lock = threading.RLock()


def frame_lock() -> AbstractContextManager[bool]:
    """The lock of this process, for frames of all kinds; a thread may take it twice."""
    return _lock


def _renew() -> None:
    """A child that was forked has no thread that could release it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
