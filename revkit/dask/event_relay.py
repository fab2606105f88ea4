"""Events and warnings of a job, passed on to the observers and the user in the user's process.

What happens on workers arrives here as messages, in the order in which it happened: directly if
Dask works in this process, else under a topic of the Dask scheduler, which a client subscribes to.

    events   of a partition's run, as plain JSON
    warn     a warning for the user
    ended    all partitions of a run are finished, with a summary
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import warn
from ..observers import Event, Observers, ObserverSpec

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["EventRelay", "relay_of", "summary_warning", "topic_of"]

Message = Mapping[str, Any]

#: Seconds that observers have for their last events when a run is over, and after an interrupt.
_WAIT, _WAIT_INTERRUPTED = 10.0, 0.5

#: job -> its relay in this process
_relays: dict[str, EventRelay] = {}


@atexit.register
def _close_all() -> None:
    """Let observers have the events that came before the process ends."""
    for relay in list(_relays.values()):
        relay.close()


def relay_of(job: str) -> EventRelay | None:
    """The job's relay in this process."""
    return _relays.get(job)


def topic_of(job: str) -> str:
    """The topic under which messages about a job travel."""
    return f"revkit-{job}"


def summary_warning(summary: Message) -> str | None:
    """The warning that all rows of a run failed; None if not all did."""
    failed = summary.get("failed", 0)
    if not failed or summary["ok"]:
        return None
    rows = f"all {failed} rows" if failed > 1 else "the only row"
    return (
        f"{rows} of a run on Dask failed, as the error column says; the first to fail: "
        f"{summary['error']} (revkit.collect(…) raises RunFailed in this case)"
    )


class EventRelay:
    """Passes the messages of one job on.

    Observers that revkit makes are made for each partition's run, and follow it from its start to
    its end. Observers that the user made get the events of all partitions, one at a time.

    Args:
        job: its id.
        specs: the observers; they run in a copy of the context of this place.
    """

    def __init__(self, job: str, specs: Sequence[ObserverSpec]):
        self._job = job
        self._shared_specs = [spec for spec in specs if not spec.owned]
        self._run_specs = [spec for spec in specs if spec.owned]
        self._context = copy_context()
        self._lock = threading.RLock()
        self._shared: Observers | None = None
        #: run of a partition -> observers that were made for it
        self._runs: dict[str, Observers] = {}
        #: observers of runs that are over
        self._finished: list[Observers] = []
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()
        #: ``collect`` computes the run, and ends it
        self._collecting = False
        self._abandoned = False
        for relay in list(_relays.values()):
            relay._close_if_over()
        _relays[job] = self

    def subscribe(self, client: Client) -> str:
        """Receive the messages that come to a client; returns its name on the scheduler."""
        if client not in self._clients:
            self._clients.add(client)
            job = self._job

            def receive(event: tuple[float, Message]) -> None:
                if (relay := relay_of(job)) is not None:
                    relay.receive(event[1])

            client.subscribe_topic(topic_of(job), receive)
        return str(client.id)

    # -- messages ------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take a message; on a client's event loop, so it waits for nothing."""
        if "warn" in message:
            warn(message["warn"])
        for event in message.get("events", ()):
            self._send(Event(**event))
        if "ended" in message:
            threading.Thread(target=self.ended, args=(message["ended"],), daemon=True).start()

    @contextlib.contextmanager
    def collect(self, interrupted: Callable[[], bool]) -> Iterator[list[str]]:
        """Relay all events of a computation; yields a list for warnings about observers.

        Observers run in a copy of this context.

        Raises:
            UsageError: something that was given is no observer.
        """
        messages: list[str] = []
        self._collecting = True
        try:
            with self._lock:
                self._context = copy_context()
                self._shared = self._observers(self._shared_specs)
            yield messages
        finally:
            messages += self.end(interrupted=interrupted())
            self._collecting = False

    def _observers(self, specs: Sequence[ObserverSpec]) -> Observers:
        make = partial(Observers, specs)
        if self._clients:  # the drain of a run may wait for observers, a client's event loop not
            make = partial(make, patience=0.0)
        return self._context.copy().run(make)

    def _send(self, event: Event) -> None:
        with self._lock:
            if self._shared_specs:
                self._shared = self._shared or self._observers(self._shared_specs)
                self._shared.send(event)
            if not self._run_specs:
                return
            run = self._runs.get(event.run_id)
            if run is None:
                try:
                    run = self._observers(self._run_specs)
                except Exception as error:  # noqa: BLE001 - any error of a factory; the run goes on
                    self._run_specs = []
                    warn(f"{error}; it gets no events")
                    return
                self._runs[event.run_id] = run
            run.send(event)
            if event.type == "parallel.complete":
                run.finish()
                self._finished.append(self._runs.pop(event.run_id))

    def ended(self, summary: Message) -> None:
        """A run is over: warn the user if necessary."""
        if self._collecting:
            return
        warning = summary_warning(summary)
        for message in [*self.end(), *([] if warning is None else [warning])]:
            warn(message)
        self._close_if_over()

    def end(self, *, interrupted: bool = False) -> list[str]:
        """Wait until observers have had all events; returns warnings about them."""
        with self._lock:
            ending = [*self._finished, *self._runs.values()]
            ending += [] if self._shared is None else [self._shared]
            self._shared, self._runs, self._finished = None, {}, []
        wait = _WAIT_INTERRUPTED if interrupted else _WAIT
        return [warning for one in ending for warning in one.close(wait)]

    # -- closing -------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Nobody has the job's frame any more.

        A computation of it that a cluster was asked for may not have begun yet. So the relay stays
        subscribed as long as there is a client of that cluster.
        """
        self._abandoned = True
        self._close_if_over()

    def _close_if_over(self) -> None:
        active = self._shared is not None or self._runs
        if self._abandoned and not active and all(c.status == "closed" for c in self._clients):
            self.close()

    def close(self) -> None:
        """Receive nothing any more."""
        _relays.pop(self._job, None)
        for client in list(self._clients):
            with contextlib.suppress(Exception):  # it may be closed, or its scheduler gone
                client.unsubscribe_topic(topic_of(self._job))
        self.end()
