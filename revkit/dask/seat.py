"""The partition's side of the cluster: reports to the coordinator, and does what it is told."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import RevkitError
from ..scheduling.events import Stop, StopKind
from .coordinator import TICK, UNKNOWN
from .ration import PurseShare, Ration, StartShare

if TYPE_CHECKING:
    from ..observers import Event
    from ..record.record import RowResult
    from .links import Link

__all__ = ["Seat"]

#: Seconds without a word from the coordinator after which nobody knows what may run.
_SILENCE = 30.0
#: Events that travel in one message.
_EVENTS = 500


class Seat:
    """One partition while it is worked off; a thread of its own talks to the coordinator.

    Args:
        place: of each event, what is added to its data: partition, host and worker.
    """

    def __init__(
        self, link: Link, run: str, job: str, partition: int, rows: int, place: Mapping[str, Any]
    ):
        self._link = link
        self._job = job
        self._place = place
        self._total = rows
        self._settled = self._failed = self._ok = self._made = 0
        #: what the first row that failed says, until it was told
        self._said: str | None = None
        #: rows that wait for another partition's reply
        self.waiting = 0
        #: keys that this one was refused and may claim now; None: news of it may have been lost
        self._freed: set[bytes] | None = set()
        #: set when there is news for who waits in :meth:`wait`
        self._news = threading.Event()
        self._woken = threading.Event()
        self._closed = False
        self._stop_engine: Callable[[Stop], object] | None = None
        self._tell: Callable[[Callable[[], object]], object] | None = None
        self.tells_load = False
        self._events: deque[Event] = deque()
        self._let: list[tuple[str, list[bytes]]] = []
        self._lock = threading.Lock()
        self.ration: Ration | None = None
        self.starts: StartShare | None = None
        self.purse: PurseShare | None = None
        #: seconds to be added to this process's clock for the coordinator's, and how sure that is
        self.offset, self._error = 0.0, float("inf")
        began = time.monotonic()
        told = link.call("open", run=run, worker=link.worker, partition=partition, rows=rows)
        if "error" in told:
            raise RevkitError(f"this partition is not run: {told['error']}")
        self.name: str = told["seat"]
        self.workers: int = told["workers"]
        self.began: float = told["began"]
        self.timeout: float | None = told["timeout"]
        self.collected: bool = told["collected"]
        self._tick = TICK
        self._first = told
        self._set_clock(began, told)
        self.stop: Stop | None = None
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._talk, name="revkit-seat", daemon=True)

    # -- what the partition's run tells ---------------------------------------------------------

    def begin(self, ration: Ration) -> None:
        """The run is put together: from now on its limits are what the coordinator says."""
        self.ration = ration
        ration.tells_load, ration.urge = self.tells_load, self.urge
        self._obey(self._first)
        self._thread.start()

    def started(
        self, stop: Callable[[Stop], object], tell: Callable[[Callable[[], object]], object]
    ) -> None:
        """The engine is at work; see :meth:`revkit.runtime.wiring.Wiring.started`."""
        self._stop_engine, self._tell = stop, tell
        if self.stop is not None:
            stop(self.stop)
        # What came between the engine's start and this line has woken nobody.
        tell(lambda: None)

    def settled(self, done: int, total: int, row: RowResult) -> None:
        """The run's progress callback: counts for the coordinator."""
        self._settled += 1
        self._failed += row.status == "error"
        self._ok += row.status == "ok"
        self._made += row.attempts
        if row.status == "error" and self._failed == 1:
            self._said = row.error
        if row.status == "error" or self._settled == self._total:
            self.urge()

    def on_event(self, event: Event) -> None:
        """The run's observer: its events go to the client."""
        self._events.append(event)

    def let_go(self, store: str, keys: list[bytes]) -> None:
        """The replies to these keys are in the store, or will not come."""
        with self._lock:
            self._let.append((store, keys))

    def claim(self, store: str, keys: list[bytes], *, parts: int, part: str) -> dict[str, Any]:
        """See :meth:`Coordinator.claim`."""
        return self._link.call(
            "claim", name=self.name, store=store, keys=keys, parts=parts, part=part
        )

    def freed(self) -> set[bytes] | None:
        """Keys that it was refused and that became free since the last time; None: any may be."""
        with self._lock:
            self._news.clear()
            freed, self._freed = self._freed, set()
            return freed

    @property
    def has_news(self) -> bool:
        """Whether there are such keys, or the run was stopped."""
        return self._news.is_set()

    @property
    def at_work(self) -> bool:
        """Whether the run's engine was started."""
        return self._stop_engine is not None

    def wait(self, seconds: float) -> None:
        """Wait for such news, but no longer."""
        self._news.wait(seconds)

    def urge(self) -> None:
        """There is something to be said at once."""
        self._woken.set()

    def close(self, stopped: Stop | None = None) -> dict[str, Any]:
        """The partition is through; gives what the coordinator says of the run.

        Args:
            stopped: why its own run was stopped, which stops all the others.
        """
        self._closed = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        self._send_events()
        report = self._report(closing=True)
        if stopped is not None:
            report["stop"] = [stopped.kind.value, stopped.reason, stopped.cancels]
        return self._link.call("close", name=self.name, report=report)

    # -- the conversation -----------------------------------------------------------------------

    def _talk(self) -> None:
        while True:
            self._woken.wait(self._tick)
            self._woken.clear()
            if self._closed:
                return
            report = self._report()
            try:
                began = time.monotonic()
                told = self._link.call("exchange", name=self.name, report=report)
                self._set_clock(began, told)
                self._send_events()
            except Exception as error:  # noqa: BLE001 - the network, or Dask; it may come back
                if time.monotonic() - self._heard > _SILENCE:
                    self._be_stopped(f"the Dask scheduler does not answer: {error}")
                with self._lock:
                    self._let = report.get("let", []) + self._let
                    self._freed = None
                self._news.set()
                self._woken.wait(self._tick)
                continue
            self._heard = time.monotonic()
            if told.get("error") == UNKNOWN:
                self._be_stopped("the Dask scheduler takes this worker for dead")
                return
            self._obey(told)

    def _report(self, *, closing: bool = False) -> dict[str, Any]:
        ration, now = self.ration, time.monotonic()
        left = self._total - self._settled
        said: dict[str, Any] = {
            "limit": 0 if ration is None or closing or not left else ration.limit,
            "running": 0 if ration is None or closing else ration.running,
            "demand": 0 if closing else left - self.waiting,
            "failed": self._failed,
            "ok": self._ok,
            "made": self._made,
        }
        if self._said is not None:
            said["error"], self._said = self._said, None
        if ration is not None:
            said |= ration.news(now)
        wanted = min(said["limit"], said["demand"])
        if self.starts is not None:
            said |= self.starts.report(wanted, closing=closing)
        if self.purse is not None:
            said |= self.purse.report(wanted, closing=closing)
        with self._lock:
            let, self._let = self._let, []
        if let:
            said["let"] = let
        return said

    def _obey(self, told: Mapping[str, Any]) -> None:
        ration, now = self.ration, time.monotonic()
        assert ration is not None
        self._tick = told["tick"]
        # With no row left nothing starts, but workers that find no room would wait for some.
        share = max(told["limit"], int(self._settled == self._total))
        news = share > ration.share
        ration.share = share
        if pause := told.get("pause"):
            ration.paused_until = max(ration.paused_until, now + pause)
        if self.starts is not None and told.get("starts"):
            # By when it came, not by the clock's offset: rather late than early.
            self.starts.take(told["starts"], told["tokens"], offset=now - told["now"])
            news = True
        if self.purse is not None:
            self.purse.take(told.get("given", (0, 0)), short=bool(told.get("short")))
            news = news or "given" in told
        if freed := told.get("freed"):
            with self._lock:
                if self._freed is not None:
                    self._freed.update(freed)
            self._news.set()
        if stop := told.get("stop"):
            kind, reason, cancels = stop
            self._be_stopped(reason, StopKind(kind), cancels=cancels)
        elif news and self._tell is not None:
            self._tell(lambda: None)

    def _be_stopped(
        self, reason: str, kind: StopKind = StopKind.INTERRUPTED, *, cancels: bool = True
    ) -> None:
        stop = Stop(kind, reason, cancels)
        if self.stop == stop:
            return
        self.stop = stop
        self._news.set()
        if self.ration is not None:
            self.ration.stop = stop
        if self._stop_engine is not None:
            self._stop_engine(stop)

    def _set_clock(self, began: float, told: Mapping[str, Any]) -> None:
        """Learn the coordinator's clock: "Cristian's algorithm" (Distributed Computing 3, 1989)."""
        if "now" not in told:
            return
        now = time.monotonic()
        error = (now - began) / 2
        if error < self._error:
            self.offset, self._error = told["now"] - (began + now) / 2, error

    def _send_events(self) -> None:
        while self._events:
            batch: list[Mapping[str, Any]] = []
            while self._events and len(batch) < _EVENTS:
                event = self._events.popleft().to_dict()
                batch.append(event | {"data": event["data"] | self._place})
            self._link.tell(self._job, {"events": batch})
