"""The coordinator on the Dask scheduler: which events of Dask reach it, and its requests."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Iterable, Mapping
from typing import Any

from distributed import Scheduler, SchedulerPlugin

from .coordinator import HANDLER, Coordinator
from .event_relay import summary_warning, topic_of

__all__ = ["CoordinatorPlugin"]


class CoordinatorPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Keeps a :class:`~revkit.dask.coordinator.Coordinator` on the scheduler.

    Dask itself reports that a worker is gone, and that nobody wants a result any more, because of
    an interrupt or because the client is gone.
    """

    name = "revkit"
    idempotent = True

    def __init__(self) -> None:
        self.coordinator = Coordinator(self._ended)
        #: jobs to whose events a connected client is subscribed
        self._observed: set[str] = set()

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        scheduler.handlers[HANDLER] = self.handle

    def handle(self, request: str, message: Mapping[str, Any]) -> dict[str, Any]:
        if request == "begin":
            return self._begin(**message)
        if request == "send":
            self._send(**message)
            return {}
        return self.coordinator.handle(request, message, now=time.monotonic())

    def _begin(self, key: str, terms: Mapping[str, Any], clients: Iterable[str]) -> dict[str, Any]:
        threads, now = self._scheduler.total_nthreads, time.monotonic()
        reply = self.coordinator.begin(key, terms, threads=threads, now=now)
        observed = any(client in self._scheduler.clients for client in clients)
        if observed:
            self._observed.add(terms["job"])
        return reply | {"observed": observed}

    def _send(self, job: str, message: Mapping[str, Any]) -> None:
        """Send a message to the job's client, or a warning to all clients if it has none."""
        if job in self._observed:
            topic = topic_of(job)
            self._scheduler.log_event(topic, dict(message))
            with contextlib.suppress(AttributeError):  # else it would keep the messages
                self._scheduler._broker.truncate(topic)
        elif text := message.get("warn"):
            warning = {"message": pickle.dumps(text), "category": pickle.dumps(UserWarning)}
            self._scheduler.log_event("warn", warning)

    def _ended(self, summary: Mapping[str, Any]) -> None:
        job = summary["job"]
        if job in self._observed:
            self._send(job, {"ended": summary})
            self._observed.discard(job)
        elif warning := summary_warning(summary):
            self._send(job, {"warn": warning})

    def remove_worker(self, scheduler: Scheduler, worker: str, **rest: Any) -> None:
        self.coordinator.worker_died(worker)

    def update_graph(self, scheduler: Scheduler, *, tasks: Iterable[Any], **rest: Any) -> None:
        self.coordinator.resubmitted(map(str, tasks))

    def transition(self, key: Any, start: str, finish: str, *args: Any, **rest: Any) -> None:
        if finish == "forgotten":
            self.coordinator.abandoned(str(key))
        elif finish == "released":
            task = self._scheduler.tasks.get(key)
            if task is not None and not task.waiters:
                self.coordinator.finished(str(key))
