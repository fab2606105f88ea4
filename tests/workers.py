"""The threads of runs, which end soon after their run."""

from __future__ import annotations

import threading

#: A thread that has not ended after so many seconds will not.
LIMIT = 30.0


def join_workers(*names: str) -> None:
    """Wait until no worker of any run, and no thread with another of these names, is left."""
    for thread in threading.enumerate():
        if thread.name.startswith(("revkit-worker", *names)):
            thread.join(LIMIT)
            assert not thread.is_alive()
