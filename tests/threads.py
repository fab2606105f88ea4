"""Threads in tests: workers, which end soon after their run, and requests that are aborted."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future
from typing import Any

from revkit.clients.contract import Aborted, Response

#: A thread that has not ended after so many seconds will not.
LIMIT = 30.0


def join_workers(*names: str) -> None:
    """Wait until no worker of any run, and no thread with another of these names, is left."""
    for thread in threading.enumerate():
        if thread.name.startswith(("revkit-worker", *names)):
            thread.join(LIMIT)
            assert not thread.is_alive()


def abort(transport: Any, sent: Future[Response]) -> None:
    """Abort until the request is through, as the engine does: it may be between two waits."""
    for _ in range(200):
        transport.abort()
        with contextlib.suppress(TimeoutError):
            assert type(sent.exception(0.05)) is Aborted
            return
    raise AssertionError("the request was not aborted")
