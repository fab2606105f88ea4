"""How a partition sends requests to the coordinator, wherever it runs.

On a distributed cluster the coordinator is on the Dask scheduler, and a message is a request to
it. Dask's other schedulers work in one process, and so does the coordinator then.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import RevkitError, UsageError, warn
from .coordinator import HANDLER, Coordinator
from .event_relay import relay_of, summary_warning

if TYPE_CHECKING:
    from distributed import Client, Worker

__all__ = ["Link", "RunHandle", "client_link", "computed_here", "current_client", "link_here"]


@dataclass(eq=False)
class RunHandle:
    """A run in progress. Only its partitions hold it, so it is dropped when nobody waits for them.

    Attributes:
        run: its name.
        again: the job has had a run before.
        observed: a client that receives the job's events is connected.
        abandon: says that nobody waits for it any more, if Dask works in this process.
    """

    run: str
    again: bool = False
    observed: bool = False
    abandon: Callable[[], object] | None = field(default=None, repr=False)


class Link(Protocol):
    """Sends requests to the coordinator. Usable from any thread; every call may block.

    Attributes:
        host: name of this machine.
        worker: the coordinator's name for this Dask worker, or for this process if there is none.
        name: the user's name for the worker.
    """

    host: str
    worker: str
    name: str

    def begin(self, terms: Mapping[str, Any], clients: Iterable[str]) -> RunHandle: ...
    def call(self, request: str, **message: Any) -> dict[str, Any]: ...
    def send(self, job: str, message: Mapping[str, Any]) -> None: ...


class _LocalLink:
    """To the coordinator of this process."""

    def __init__(self) -> None:
        self.host, self.pid = socket.gethostname(), os.getpid()
        self.worker, self.name = f"process-{self.pid}", f"pid {self.pid}"
        #: summaries of runs that have ended, for the user's thread
        self.ended: deque[Mapping[str, Any]] = deque()
        self._coordinator = Coordinator(self.ended.append)
        self._lock = threading.RLock()  # the garbage collector may drop a run during a call

    def begin(self, terms: Mapping[str, Any], clients: Iterable[str]) -> RunHandle:
        from ..runtime.plan import available_cpus

        key = uuid.uuid4().hex
        with self._lock:
            reply = self._coordinator.begin(
                key, terms, threads=available_cpus(), now=time.monotonic()
            )
        run = RunHandle(reply["run"], reply["again"], relay_of(terms["job"]) is not None)
        run.abandon = finalizer = weakref.finalize(run, self._abandoned, key)
        finalizer.atexit = False
        return run

    def _abandoned(self, key: str) -> None:
        with self._lock:
            self._coordinator.abandoned(key)

    def call(self, request: str, **message: Any) -> dict[str, Any]:
        with self._lock:
            return self._coordinator.handle(request, message, now=time.monotonic())

    def send(self, job: str, message: Mapping[str, Any]) -> None:
        relay = relay_of(job)
        if relay is not None:
            relay.receive(message)
        elif "warn" in message:
            warn(message["warn"])


def computed_here(graph: Any, state: Mapping[str, Any], errored: bool) -> None:
    """Dask has computed something in this process: a callback of Dask's own, in the user's thread.

    A computation may have broken off, by an interrupt or an error. Its runs continue in Dask's
    threads until they are stopped here. Then the user gets the warnings of runs that have ended.
    """
    link = _local
    if link is None:
        return
    if errored:
        for value in list(state.get("cache", {}).values()):
            if isinstance(value, RunHandle) and value.abandon is not None:
                value.abandon()
    while link.ended:
        summary = link.ended.popleft()
        relay = relay_of(summary["job"])
        if relay is not None:
            relay.ended(summary)
        elif warning := summary_warning(summary):
            warn(warning)


_local: _LocalLink | None = None
_making = threading.Lock()


def _process_link() -> _LocalLink:
    """The link of this process; a forked child gets its own."""
    global _local
    with _making:
        if _local is None or _local.pid != os.getpid():
            _local = _LocalLink()
        return _local


def _leave_interrupts_to_the_nanny() -> None:
    """Let a worker's process outlive an interrupt of the notebook.

    Ctrl-C and the stop button go to all processes of a group, so also to the workers of a
    ``LocalCluster``, which they would end (https://github.com/dask/distributed/issues/1925). The
    nanny has other ways to end a worker.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _DistributedLink:
    """From a Dask worker to its scheduler."""

    def __init__(self, worker: Worker):
        self._worker = worker
        if worker.nanny:
            worker.loop.add_callback(_leave_interrupts_to_the_nanny)
        self.host, self.worker, self.name = socket.gethostname(), worker.address, str(worker.name)

    def begin(self, terms: Mapping[str, Any], clients: Iterable[str]) -> RunHandle:
        from distributed.protocol.pickle import dumps

        from .plugin import CoordinatorPlugin

        key = str(self._worker.get_current_task())
        try:
            self._sync(
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
        reply = self.call("begin", key=key, terms=dict(terms), clients=list(clients))
        return RunHandle(**reply)

    def call(self, request: str, **message: Any) -> dict[str, Any]:
        handler = getattr(self._worker.scheduler, HANDLER)
        reply: dict[str, Any] = self._sync(handler, request=request, message=message)
        return reply

    def _sync(self, function: Callable[..., Any], **arguments: Any) -> Any:
        from distributed.utils import sync

        return sync(self._worker.loop, function, **arguments)

    def send(self, job: str, message: Mapping[str, Any]) -> None:
        self.call("send", job=job, message=message)


def link_here(made_in: tuple[str, int]) -> Link:
    """The link of the place where a partition runs.

    Args:
        made_in: host and process in which the job was made.

    Raises:
        UsageError: the partition runs in another process that has no Dask scheduler.
    """
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        try:
            return _DistributedLink(distributed.get_worker())
        except ValueError:  # not on a worker
            pass
    if made_in != (socket.gethostname(), os.getpid()):
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
    scheduler = base.get_scheduler()
    client = getattr(scheduler, "__self__", None)
    return client if isinstance(client, distributed.Client) else None


class _ClientLink:
    """From the user's process to the scheduler of a cluster."""

    def __init__(self, client: Client):
        self._client = client

    def call(self, request: str, **message: Any) -> dict[str, Any]:
        from .plugin import CoordinatorPlugin

        self._client.register_plugin(CoordinatorPlugin())
        handler = getattr(self._client.scheduler, HANDLER)
        reply: dict[str, Any] = self._client.sync(handler, request=request, message=message)
        return reply


def client_link() -> Any:
    """The link of the process that computes: has only ``call``."""
    client = current_client()
    return _process_link() if client is None else _ClientLink(client)
