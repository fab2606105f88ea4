"""The coordinator on the Dask scheduler: what it learns from Dask, and how it is asked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from distributed import Scheduler, SchedulerPlugin

from .coordinator import Coordinator
from .links import HANDLER, ask

__all__ = ["CoordinatorPlugin"]


class CoordinatorPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Keeps a :class:`~revkit.cluster.coordinator.Coordinator` on the scheduler.

    What Dask knows best, it is asked for nowhere else: that a worker is gone, and that nobody
    wants a result any more (an interrupt, a client that is gone), it tells by itself.
    """

    name = "revkit"
    idempotent = True

    def __init__(self) -> None:
        self.coordinator = Coordinator()

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        scheduler.handlers[HANDLER] = self.handle

    def handle(self, what: str, message: Mapping[str, Any]) -> dict[str, Any]:
        if what == "begin":
            threads = self._scheduler.total_nthreads
            return self.coordinator.begin(**message, threads=threads, now=time.monotonic())
        return ask(self.coordinator, what, message, now=time.monotonic())

    def remove_worker(self, scheduler: Scheduler, worker: str, **rest: Any) -> None:
        self.coordinator.lost(worker)

    def update_graph(self, scheduler: Scheduler, *, tasks: Iterable[Any], **rest: Any) -> None:
        self.coordinator.renewed(map(str, tasks))

    def transition(self, key: Any, start: str, finish: str, *args: Any, **rest: Any) -> None:
        if finish == "forgotten":
            self.coordinator.over(str(key))
