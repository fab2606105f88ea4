"""How a partition talks to the coordinator, wherever it runs.

On a distributed cluster the coordinator is on the Dask scheduler, and a message is a request to
it. Dask's other schedulers work in one process, and so does the coordinator then.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import RevkitError, UsageError
from .coordinator import Coordinator

if TYPE_CHECKING:
    from distributed import Client, Worker

__all__ = ["HANDLER", "Begun", "Link", "client_link", "current_client", "link_here", "listeners"]

#: What the coordinator is called on the Dask scheduler.
HANDLER = "revkit"

#: job -> who is told of its events in this process
listeners: dict[str, Callable[[Sequence[Mapping[str, Any]]], object]] = {}


@dataclass(eq=False)
class Begun:
    """A run that was begun: every partition of it has this, and nothing else has.

    Where nobody has it any more, nobody waits for the run.

    Attributes:
        run: its name; empty until it is begun.
    """

    run: str


class Link(Protocol):
    """Takes messages to the coordinator. Usable from any thread; every call may block.

    Attributes:
        worker: name of this Dask worker to the coordinator, of this process where there is none.
        name: what the user calls the worker.
    """

    worker: str
    name: str

    def begin(self, terms: Mapping[str, Any]) -> Begun: ...
    def call(self, what: str, **message: Any) -> dict[str, Any]: ...
    def tell(self, job: str, events: Sequence[Mapping[str, Any]]) -> None: ...


class _LocalLink:
    """To the coordinator of this process."""

    def __init__(self) -> None:
        self.worker, self.name = f"process-{os.getpid()}", f"pid {os.getpid()}"
        self.pid = os.getpid()
        self._coordinator = Coordinator()
        self._lock = threading.RLock()  # a run may be dropped by the garbage collector in a call

    def begin(self, terms: Mapping[str, Any]) -> Begun:
        from ..plan import available_cpus

        key = uuid.uuid4().hex
        with self._lock:
            found = self._coordinator.begin(
                key, terms, threads=available_cpus(), now=time.monotonic()
            )
        begun = Begun(found["run"])
        weakref.finalize(begun, self._over, key).atexit = False
        return begun

    def _over(self, key: str) -> None:
        with self._lock:
            self._coordinator.over(key)

    def call(self, what: str, **message: Any) -> dict[str, Any]:
        with self._lock:
            return ask(self._coordinator, what, message, now=time.monotonic())

    def tell(self, job: str, events: Sequence[Mapping[str, Any]]) -> None:
        listener = listeners.get(job)
        if listener is not None:
            listener(events)


def ask(
    coordinator: Coordinator, what: str, message: Mapping[str, Any], *, now: float
) -> dict[str, Any]:
    """Carry a message out; those that need the time get it."""
    if what in ("open", "exchange", "close"):
        message = {**message, "now": now}
    answer = getattr(coordinator, what)(**message)
    return answer if isinstance(answer, dict) else {"answer": answer}


_local: _LocalLink | None = None
_making = threading.Lock()


def _process_link() -> _LocalLink:
    """The link of this process; a child that was forked gets one of its own."""
    global _local
    with _making:
        if _local is None or _local.pid != os.getpid():
            _local = _LocalLink()
        return _local


class _DistributedLink:
    """From a Dask worker to its scheduler."""

    def __init__(self, worker: Worker):
        self._worker = worker
        self.worker = worker.address
        self.name = str(worker.name)

    def begin(self, terms: Mapping[str, Any]) -> Begun:
        from distributed.protocol.pickle import dumps

        from .plugin import CoordinatorPlugin

        key = str(self._worker.get_current_task())
        try:
            self._ask(
                self._worker.scheduler.register_scheduler_plugin,
                plugin=dumps(CoordinatorPlugin()),
                name=CoordinatorPlugin.name,
                idempotent=True,
            )
        except ImportError as error:
            raise RevkitError(
                "the Dask scheduler cannot import revkit, which keeps the cluster's limits there; "
                f"install the same version of revkit on it: {error}"
            ) from error
        return Begun(self.call("begin", key=key, terms=dict(terms))["run"])

    def call(self, what: str, **message: Any) -> dict[str, Any]:
        request = getattr(self._worker.scheduler, HANDLER)
        answer: dict[str, Any] = self._ask(request, what=what, message=message)
        return answer

    def _ask(self, request: Callable[..., Any], **arguments: Any) -> Any:
        from distributed.utils import sync

        return sync(self._worker.loop, request, **arguments)

    def tell(self, job: str, events: Sequence[Mapping[str, Any]]) -> None:
        self._worker.log_event(topic_of(job), list(events))


def topic_of(job: str) -> str:
    """Under which topic the events of a job travel."""
    return f"revkit-{job}"


def link_here(job: str, pid: tuple[str, int]) -> Link:
    """The link of the place where a partition runs.

    Args:
        pid: host and process in which the job was made.

    Raises:
        UsageError: it runs in a process of its own that has no scheduler to ask.
    """
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        try:
            return _DistributedLink(distributed.get_worker())
        except ValueError:  # not on a worker
            pass
    if pid != (socket.gethostname(), os.getpid()):
        raise UsageError(
            'scheduler="processes" has no place where one limit could be kept for all; use '
            "distributed's LocalCluster, which starts processes as well"
        )
    return _process_link()


def current_client() -> Client | None:
    """The distributed client that Dask would compute with here, if it would."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    base = importlib.import_module("dask.base")
    chosen = base.get_scheduler()
    client = getattr(chosen, "__self__", None)
    return client if isinstance(client, distributed.Client) else None


class _ClientLink:
    """From the user's process to the scheduler of a cluster."""

    def __init__(self, client: Client):
        self._client = client

    def call(self, what: str, **message: Any) -> dict[str, Any]:
        from .plugin import CoordinatorPlugin

        self._client.register_plugin(CoordinatorPlugin())
        request = getattr(self._client.scheduler, HANDLER)
        answer: dict[str, Any] = self._client.sync(request, what=what, message=message)
        return answer


def client_link() -> Any:
    """The link of whoever computes: has ``call`` only."""
    client = current_client()
    return _process_link() if client is None else _ClientLink(client)
