"""Who hears of a job in the user's process: the observers, and the user, of what must be known.

What happens on workers comes here as messages, in the order in which it happened: directly where
Dask works in this process, else under a topic of the Dask scheduler, which a client subscribes to.

    events   of a partition's run, as plain JSON
    warn     a sentence for the user
    ended    all partitions of a run are through, and what became of them
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import warn
from ..observers import Event, Observers, ObserverSpec

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Audience", "audience_of", "topic_of", "words_of_end"]

Message = Mapping[str, Any]

#: Seconds that observers have for what is left to them when a run is over; an interrupt waits for
#: less.
_WAIT, _WAIT_HURRIED = 10.0, 0.5

#: job -> who hears of it in this process
_audiences: dict[str, Audience] = {}


@atexit.register
def _let_them_finish() -> None:
    """What was told observers before the process ends, they have had."""
    for audience in list(_audiences.values()):
        audience.close()


def audience_of(job: str) -> Audience | None:
    """Who hears of a job in this process."""
    return _audiences.get(job)


def topic_of(job: str) -> str:
    """Under which topic messages about a job travel."""
    return f"revkit-{job}"


def words_of_end(told: Message) -> str | None:
    """What the user is to be told of a run that has ended: that no row of it came to anything."""
    failed = told.get("failed", 0)
    if not failed or told["ok"]:
        return None
    rows = f"all {failed} rows" if failed > 1 else "the only row"
    return (
        f"{rows} of a run on Dask failed, as the error column says; the first to fail: "
        f"{told['error']} (revkit.collect(…) raises RunFailed in such a case)"
    )


class Audience:
    """The observers of one job.

    Those that revkit makes are made for each partition's run, which they follow from its start to
    its end; those that were given are told of all of them, one event at a time.

    Args:
        job: its id.
        chosen: what the user asked for; they run in a copy of the context of this place.
    """

    def __init__(self, job: str, chosen: Sequence[ObserverSpec]):
        self._job = job
        self._given = [one for one in chosen if not one.owned]
        self._made = [one for one in chosen if one.owned]
        self._context = copy_context()
        self._lock = threading.RLock()
        self._shared: Observers | None = None
        #: run of a partition -> observers that were made for it
        self._runs: dict[str, Observers] = {}
        #: those of runs that are over
        self._finished: list[Observers] = []
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()
        #: a run is collected, and whoever does that ends it
        self.held = False
        self._forsaken = False
        for one in list(_audiences.values()):
            one._close_if_over()
        _audiences[job] = self

    def listen(self, client: Client) -> str:
        """Hear what comes to a client; gives its name on the scheduler."""
        if client not in self._clients:
            self._clients.add(client)
            job = self._job

            def hear(event: tuple[float, Message]) -> None:
                if (audience := audience_of(job)) is not None:
                    audience.hear(event[1])

            client.subscribe_topic(topic_of(job), hear)
        return str(client.id)

    # -- what happens ----------------------------------------------------------------------------

    def hear(self, message: Message) -> None:
        """Take a message; on a client's event loop, so that it waits for nothing."""
        if "warn" in message:
            warn(message["warn"])
        for event in message.get("events", ()):
            self._send(Event(**event))
        if "ended" in message:
            threading.Thread(target=self.ended, args=(message["ended"],), daemon=True).start()

    def begin(self) -> None:
        """A run begins here and now: its observers run in a copy of this context.

        Raises:
            UsageError: what was given is no observer.
        """
        with self._lock:
            self._context = copy_context()
            self._shared = self._observers(self._given)

    def _observers(self, chosen: Sequence[ObserverSpec]) -> Observers:
        make = partial(Observers, chosen)
        if self._clients:  # the drain of a run may wait for observers, a client's event loop not
            make = partial(make, patience=0.0)
        return self._context.copy().run(make)

    def _send(self, event: Event) -> None:
        with self._lock:
            if self._given:
                self._shared = self._shared or self._observers(self._given)
                self._shared.send(event)
            if not self._made:
                return
            run = self._runs.get(event.run_id)
            if run is None:
                try:
                    run = self._observers(self._made)
                except Exception as error:  # noqa: BLE001 - whatever a factory raises; the run goes on
                    self._made = []
                    warn(f"{error}; it hears nothing")
                    return
                self._runs[event.run_id] = run
            run.send(event)
            if event.type == "parallel.complete":
                run.finish()
                self._finished.append(self._runs.pop(event.run_id))

    def ended(self, told: Message) -> None:
        """A run is over: the user is told what there is to say of it."""
        if self.held:
            return
        said = words_of_end(told)
        for words in [*self.end(), *([] if said is None else [said])]:
            warn(words)
        self._close_if_over()

    def end(self, *, hurried: bool = False) -> list[str]:
        """Wait until observers have had all events; gives what the user is to be told of them."""
        with self._lock:
            left = [*self._finished, *self._runs.values()]
            left += [] if self._shared is None else [self._shared]
            self._shared, self._runs, self._finished = None, {}, []
        return [words for one in left for words in one.close(_WAIT_HURRIED if hurried else _WAIT)]

    # -- its own end -----------------------------------------------------------------------------

    def forsake(self) -> None:
        """Nobody has the job's frame any more.

        What a cluster was asked to compute of it may begin yet, so that it is listened to as long
        as there is a client of that cluster.
        """
        self._forsaken = True
        self._close_if_over()

    def _close_if_over(self) -> None:
        going = self._shared is not None or self._runs
        if self._forsaken and not going and all(c.status == "closed" for c in self._clients):
            self.close()

    def close(self) -> None:
        """Hear nothing any more."""
        _audiences.pop(self._job, None)
        for client in list(self._clients):
            with contextlib.suppress(Exception):  # it may be closed, or its scheduler gone
                client.unsubscribe_topic(topic_of(self._job))
        self.end()
