"""How a partition talks to the coordinator, wherever it runs.

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
from .audience import audience_of, words_of_end
from .coordinator import Coordinator
from .requests import HANDLER, ask

if TYPE_CHECKING:
    from distributed import Client, Worker

__all__ = [
    "Begun",
    "Link",
    "client_link",
    "computed_here",
    "current_client",
    "link_here",
]


@dataclass(eq=False)
class Begun:
    """A run that was begun: every partition of it has this, and nothing else has.

    Where nobody has it any more, nobody waits for the run.

    Attributes:
        run: its name.
        again: the job has had a run before.
        heard: somebody is there who hears of it.
        over: says that nobody waits for it, where Dask works in this process.
    """

    run: str
    again: bool = False
    heard: bool = False
    over: Callable[[], object] | None = field(default=None, repr=False)


class Link(Protocol):
    """Takes messages to the coordinator. Usable from any thread; every call may block.

    Attributes:
        worker: name of this Dask worker to the coordinator, of this process where there is none.
        name: what the user calls the worker.
    """

    worker: str
    name: str

    def begin(self, terms: Mapping[str, Any], clients: Iterable[str]) -> Begun: ...
    def call(self, what: str, **message: Any) -> dict[str, Any]: ...
    def tell(self, job: str, told: Mapping[str, Any]) -> None: ...


class _LocalLink:
    """To the coordinator of this process."""

    def __init__(self) -> None:
        self.worker, self.name = f"process-{os.getpid()}", f"pid {os.getpid()}"
        self.pid = os.getpid()
        #: what is to be said of runs that have ended
        self.ended: deque[Mapping[str, Any]] = deque()
        self._coordinator = Coordinator(self.ended.append)
        self._lock = threading.RLock()  # a run may be dropped by the garbage collector in a call

    def begin(self, terms: Mapping[str, Any], clients: Iterable[str]) -> Begun:
        from ..runtime.plan import available_cpus

        key = uuid.uuid4().hex
        with self._lock:
            found = self._coordinator.begin(
                key, terms, threads=available_cpus(), now=time.monotonic()
            )
        begun = Begun(found["run"], found["again"], audience_of(terms["job"]) is not None)
        begun.over = over = weakref.finalize(begun, self._over, key)
        over.atexit = False
        return begun

    def _over(self, key: str) -> None:
        with self._lock:
            self._coordinator.over(key)

    def call(self, what: str, **message: Any) -> dict[str, Any]:
        with self._lock:
            return ask(self._coordinator, what, message, now=time.monotonic())

    def tell(self, job: str, told: Mapping[str, Any]) -> None:
        audience = audience_of(job)
        if audience is not None:
            audience.hear(told)
        elif "warn" in told:
            warn(told["warn"])


def computed_here(graph: Any, state: Mapping[str, Any], errored: bool) -> None:
    """Dask has computed something in this process: a callback of Dask's own, in the user's thread.

    What was begun for a computation that broke off (an interrupt, an error) goes on in Dask's
    threads until it is stopped. Of runs that have ended the user is told what there is to say.
    """
    link = _local
    if link is None:
        return
    if errored:
        for value in list(state.get("cache", {}).values()):
            if isinstance(value, Begun) and value.over is not None:
                value.over()
    while link.ended:
        told = link.ended.popleft()
        audience = audience_of(told["job"])
        if audience is not None:
            audience.ended(told)
        elif words := words_of_end(told):
            warn(words)


_local: _LocalLink | None = None
_making = threading.Lock()


def _process_link() -> _LocalLink:
    """The link of this process; a child that was forked gets one of its own."""
    global _local
    with _making:
        if _local is None or _local.pid != os.getpid():
            _local = _LocalLink()
        return _local


def _leave_interrupts_to_the_nanny() -> None:
    """Let a worker's process outlive an interrupt of the notebook.

    Ctrl-C and the stop button go to all processes of a group, so also to the workers of a
    ``LocalCluster``, which they would end (https://github.com/dask/distributed/issues/1925). It is
    for the nanny to end such a worker, which it does in other ways.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _DistributedLink:
    """From a Dask worker to its scheduler."""

    def __init__(self, worker: Worker):
        self._worker = worker
        if worker.nanny:
            worker.loop.add_callback(_leave_interrupts_to_the_nanny)
        self.worker = worker.address
        self.name = str(worker.name)

    def begin(self, terms: Mapping[str, Any], clients: Iterable[str]) -> Begun:
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
        found = self.call("begin", key=key, terms=dict(terms), clients=list(clients))
        return Begun(found["run"], found["again"], found["heard"])

    def call(self, what: str, **message: Any) -> dict[str, Any]:
        request = getattr(self._worker.scheduler, HANDLER)
        answer: dict[str, Any] = self._ask(request, what=what, message=message)
        return answer

    def _ask(self, request: Callable[..., Any], **arguments: Any) -> Any:
        from distributed.utils import sync

        return sync(self._worker.loop, request, **arguments)

    def tell(self, job: str, told: Mapping[str, Any]) -> None:
        self.call("tell", job=job, told=told)


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
