"""The coordinator on the Dask scheduler: what it learns from Dask, and how it is asked."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Iterable, Mapping
from typing import Any

from distributed import Scheduler, SchedulerPlugin

from .audience import topic_of, words_of_end
from .coordinator import Coordinator
from .requests import HANDLER, ask

__all__ = ["CoordinatorPlugin"]


class CoordinatorPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Keeps a :class:`~revkit.dask.coordinator.Coordinator` on the scheduler.

    What Dask knows best, it is asked for nowhere else: that a worker is gone, and that nobody
    wants a result any more (an interrupt, a client that is gone), it tells by itself.
    """

    name = "revkit"
    idempotent = True

    def __init__(self) -> None:
        self.coordinator = Coordinator(self._ended)
        #: jobs that a client listens to which is there
        self._heard: set[str] = set()

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        scheduler.handlers[HANDLER] = self.handle

    def handle(self, what: str, message: Mapping[str, Any]) -> dict[str, Any]:
        if what == "begin":
            return self._begin(**message)
        if what == "tell":
            self._tell(**message)
            return {}
        return ask(self.coordinator, what, message, now=time.monotonic())

    def _begin(self, key: str, terms: Mapping[str, Any], clients: Iterable[str]) -> dict[str, Any]:
        threads, now = self._scheduler.total_nthreads, time.monotonic()
        begun = self.coordinator.begin(key, terms, threads=threads, now=now)
        heard = any(client in self._scheduler.clients for client in clients)
        if heard:
            self._heard.add(terms["job"])
        return begun | {"heard": heard}

    def _tell(self, job: str, told: Mapping[str, Any]) -> None:
        """Let the job's client hear something; a warning without one goes to all that are there."""
        if job in self._heard:
            topic = topic_of(job)
            self._scheduler.log_event(topic, dict(told))
            with contextlib.suppress(AttributeError):  # else it would keep what was said
                self._scheduler._broker.truncate(topic)
        elif words := told.get("warn"):
            warning = {"message": pickle.dumps(words), "category": pickle.dumps(UserWarning)}
            self._scheduler.log_event("warn", warning)

    def _ended(self, told: Mapping[str, Any]) -> None:
        job = told["job"]
        if job in self._heard:
            self._tell(job, {"ended": told})
            self._heard.discard(job)
        elif words := words_of_end(told):
            self._tell(job, {"warn": words})

    def remove_worker(self, scheduler: Scheduler, worker: str, **rest: Any) -> None:
        self.coordinator.lost(worker)

    def update_graph(self, scheduler: Scheduler, *, tasks: Iterable[Any], **rest: Any) -> None:
        self.coordinator.renewed(map(str, tasks))

    def transition(self, key: Any, start: str, finish: str, *args: Any, **rest: Any) -> None:
        if finish == "forgotten":
            self.coordinator.over(str(key))
        elif finish == "released":
            task = self._scheduler.tasks.get(key)
            if task is not None and not task.waiters:
                self.coordinator.through(str(key))
