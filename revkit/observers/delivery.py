"""From the drain of a run to its observers: each has a queue and a thread of its own, so that none
can slow the run, and one that fails is dropped without harm to the others.

Where rows take no time, the drain and the workers hold the GIL, and an observer falls behind
through no fault of its own. So where its queue is full, the drain sleeps until a fiftieth of it is
free, which is when the observer's thread gets to work; but not longer than a second in a whole run.
Then the observer is dropped.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable
from contextvars import copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event as Flag
from threading import Thread
from typing import cast

from ..errors import UsageError, one_line
from .event import Event, Observer

__all__ = ["ObserverSpec", "Observers", "checked"]

#: Events that may wait for an observer.
_BACKLOG = 100_000
#: How long the drain waits, in a whole run, for room in a full queue, and how often it looks
#: (seconds).
_PATIENCE = 1.0
_NAP = 0.005
#: An observer that gets through no event for so long (seconds) when the run is over is left behind.
_STALLED = 2.0
_TICK = 0.05

#: What makes an event, or several, on the thread of the observer that needs them.
_Item = Event | Callable[[], Event | Iterable[Event]]


@dataclass(frozen=True, slots=True)
class ObserverSpec:
    """An observer that a run will have.

    Attributes:
        name: its name in messages.
        make: returns the observer.
        owned: revkit makes it, so revkit closes it.
    """

    name: str
    make: Callable[[], Observer]
    owned: bool


def checked(observer: object, name: str) -> Observer:
    """The observer, if it can be one.

    Raises:
        UsageError: it has no ``on_event``, is a class, or its ``on_event`` is async.
    """
    if isinstance(observer, type):
        raise UsageError(f"the observer {name} is a class: give an object, {observer.__name__}()")
    on_event = getattr(observer, "on_event", None)
    if not callable(on_event):
        raise UsageError(
            f"the observer {name} has no method on_event(event), where a "
            f"{type(observer).__name__} was given"
        )
    if inspect.iscoroutinefunction(on_event):
        raise UsageError(
            f"on_event of the observer {name} is async, but observers are called on a thread that "
            "has no event loop: make it a plain method"
        )
    return cast(Observer, observer)


class Observers:
    """The observers of one run. Make it where ``parallel_map`` was called, before anything is
    sent: the observers run in a copy of the ``contextvars`` of that place.

    Args:
        specs: what :func:`revkit.observers.resolve` gave.
        backlog: events that may wait for an observer; one that falls behind further is dropped.
        patience: seconds that the drain may wait for room in a full backlog, in a whole run.

    Raises:
        UsageError: a factory raised, or gave what is no observer.

    >>> class Printer:
    ...     def on_event(self, event):
    ...         print(event.type, event.data)
    >>> observers = Observers([ObserverSpec("Printer", Printer, owned=True)])
    >>> observers.send(Event("store.write", "2026-01-31T12:00:00.000000+00:00",
    ...                      "revkit.parallel_map", "7c9e", {"replies": 4, "duration_ms": 0.2}))
    >>> observers.close(timeout=10)
    store.write {'replies': 4, 'duration_ms': 0.2}
    []
    """

    def __init__(
        self,
        specs: Iterable[ObserverSpec],
        *,
        backlog: int = _BACKLOG,
        patience: float = _PATIENCE,
    ):
        self._warnings: list[str] = []
        self._deliveries: list[_Delivery] = []
        try:
            for spec in specs:
                self._deliveries.append(_Delivery(spec, backlog, patience, self._warnings))
        except BaseException:
            self.close(timeout=_PATIENCE)
            raise

    @property
    def active(self) -> bool:
        """Whether anybody still listens; where not, an event need not be made."""
        return any(not delivery.dropped for delivery in self._deliveries)

    def send(self, item: Event | Callable[[], Event]) -> None:
        """Let every observer have an event. Called by the drain only; never raises.

        Args:
            item: the event, or what makes it. That is called later, on an observer's thread, so
                what it reads must not change any more; and perhaps by two of them at once.
        """
        if len(self._deliveries) > 1 and not isinstance(item, Event):
            item = _MadeOnce(item)
        for delivery in self._deliveries:
            delivery.put(item)

    def send_all(self, make: Callable[[], Iterable[Event]]) -> None:
        """Let every observer have many events, which each makes on its own thread, one by one."""
        for delivery in self._deliveries:
            delivery.put(make)

    def finish(self) -> None:
        """There are no more events; waits for nothing. :meth:`close` is still to be called."""
        for delivery in self._deliveries:
            delivery.finish()

    def close(self, timeout: float, *, hurried: Callable[[], bool] = lambda: False) -> list[str]:
        """Wait until the observers have had every event, then call none of them any more.

        Args:
            timeout: seconds after which those that are not through are left behind. One that gets
                through no event for two seconds is left behind at once.
            hurried: looked at while it waits; True: wait no longer.

        Returns:
            What the user is to be told, in the order in which it happened: which observer was
            dropped, why, and after how many events. Closing again gives an empty list.
        """
        deliveries, self._deliveries = self._deliveries, []
        end = time.monotonic() + timeout
        for delivery in deliveries:
            delivery.finish()
        for delivery in deliveries:
            delivery.ends(end, hurried)
        return self._warnings[:] if deliveries else []


def _made(spec: ObserverSpec) -> Observer:
    try:
        observer = spec.make()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the factory of the observer {spec.name} raised {_described(error)}"
        ) from error
    return checked(observer, spec.name)


class _MadeOnce:
    """An event that several observers share, made when the first one needs it.

    Two threads may make it at the same time: the events are equal, and either is good.
    """

    __slots__ = ("_event", "_make")

    def __init__(self, make: Callable[[], Event]):
        self._make = make
        self._event: Event | None = None

    def __call__(self) -> Event:
        event = self._event
        if event is None:
            event = self._event = self._make()
        return event


class _Delivery:
    """One observer with its queue and its thread.

    Attributes:
        dropped: it gets no more events.
        done: its thread calls it no more.
    """

    def __init__(
        self,
        spec: ObserverSpec,
        backlog: int,
        patience: float,
        warnings: list[str],
    ):
        self.dropped = False
        self.done = Flag()
        self._name = spec.name
        self._owned = spec.owned
        self._observer = _made(spec)
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()  # None: there are no more
        self._backlog = backlog
        self._patience = patience
        self._warnings = warnings
        self._delivered = 0
        self._doing = ""
        self._left = False
        Thread(
            target=copy_context().run,
            args=(self._work,),
            name=f"revkit-observer-{one_line(spec.name)}",
            daemon=True,  # one that blocks for ever must not keep the process alive
        ).start()

    # -- on the thread of the drain --

    def put(self, item: _Item) -> None:
        if self.dropped:
            return
        if self._queue.qsize() >= self._backlog and not self._gets_room():
            self._drop(
                f"fell behind by {self._backlog:,} events and was dropped after "
                f"{self._delivered:,}; let its on_event do less"
            )
            return
        self._queue.put(item)

    def _gets_room(self) -> bool:
        """Wait until there is room for some more, while there is patience."""
        now = time.monotonic()
        end = now + self._patience
        while self._queue.qsize() > self._backlog * 49 // 50 and now < end:
            time.sleep(_NAP)
            now = time.monotonic()
        self._patience = max(0.0, end - now)
        return self._queue.qsize() < self._backlog

    def finish(self) -> None:
        self._queue.put(None)

    def ends(self, end: float, hurried: Callable[[], bool]) -> None:
        """Wait until it is through; else call it no more, though it may still be at an event."""
        moved, delivered = time.monotonic(), self._delivered
        # Not Thread.join: one that is interrupted takes a living thread for a dead one (Python
        # 3.11 and 3.12).
        while not self.done.wait(max(0.0, min(_TICK, end - time.monotonic()))):
            now = time.monotonic()
            if self._delivered != delivered:
                moved, delivered = now, self._delivered
            if now < end and now - moved < _STALLED and not hurried():
                continue
            self._left = True
            if not self.dropped:
                self._drop(
                    "was not through with its events when the run was over, and was dropped after "
                    f"{self._delivered:,}"
                )
            return

    # -- on the observer's own --

    def _work(self) -> None:
        try:
            self._guarded(self._deliver)
            if self._owned:
                self._guarded(lambda: self._call("close"))
        finally:
            self.done.set()

    def _deliver(self) -> None:
        queue, on_event = self._queue, self._observer.on_event
        while (item := queue.get()) is not None:
            made = item if isinstance(item, Event) else item()
            for event in (made,) if isinstance(made, Event) else made:
                if self.dropped:
                    return
                self._doing = f'at the event "{event.type}"'
                on_event(event)
                self._delivered += 1
            if queue.empty():
                self._call("flush")
        self._call("flush")

    def _call(self, name: str) -> None:
        """Call a method that the observer may have."""
        method = getattr(self._observer, name, None)
        if method is not None and not self._left:
            self._doing = f"in {name}()"
            method()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the run is unharmed
            if not self.dropped:
                self._drop(
                    f"raised {_described(error)} {self._doing} and was dropped after "
                    f"{self._delivered:,} events"
                )

    def _drop(self, why: str) -> None:
        self.dropped = True
        self._warnings.append(f"the observer {self._name} {why}; the run went on")


def _described(error: BaseException) -> str:
    """Type and message of an exception, on one line; its class may be anyone's."""
    try:
        message = one_line(str(error))
    except Exception as broken:  # noqa: BLE001
        message = f"(its message cannot be read: {type(broken).__name__})"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
