"""The partition's side of a session: it reports to the coordinator and applies the replies."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import RevkitError
from ..scheduling.accounts import Amounts
from ..scheduling.events import Stop, StopKind
from .cluster_run import stop_of
from .coordinator import TICK, UNKNOWN
from .partition_limits import PartitionBudget, PartitionLimits, PartitionRateLimit

if TYPE_CHECKING:
    from ..observers import Event
    from ..record.record import RowResult
    from .job import Job
    from .links import Link, RunHandle

__all__ = ["PartitionSession"]

#: Seconds without a reply from the coordinator after which nobody knows what may run.
_SILENCE = 30.0
#: Events that travel in one message.
_EVENTS = 500


class PartitionSession:
    """One partition while it runs; a thread of its own talks to the coordinator.

    Attributes:
        rate_limit, budget: the partition's part of these; None: the run has none.
        waiting: rows that wait for another partition's reply.
        stop: why nothing more may start.
        news: set when there are freed keys or a stop.
    """

    def __init__(self, link: Link, run: RunHandle, job: Job, partition: int, rows: int):
        self._link = link
        self.job = job
        self.observed = job.observed and run.observed
        #: added to the data of each event
        self._place = {"partition": partition, "host": link.host, "process": link.name}
        self._total = rows
        self._settled = self._failed = self._ok = self._made = 0
        self._alive = False
        #: message of the first row that failed, until it was reported
        self._error: str | None = None
        self.waiting = 0
        #: keys that this session was refused and may claim now; None: any, a reply may be lost
        self._freed: set[bytes] | None = set()
        self.news = threading.Event()
        self._woken = threading.Event()
        self._closed = False
        self._stop_engine: Callable[[Stop], object] | None = None
        self._apply_change: Callable[[Callable[[], object]], object] | None = None
        self.reports_load = "adaptive" in job.terms
        self._events: deque[Event] = deque()
        self._released: list[tuple[str, list[bytes]]] = []
        self._lock = threading.Lock()
        self.limits: PartitionLimits | None = None
        terms, more = job.terms, self.report_now
        self.rate_limit = PartitionRateLimit(more) if "rate_limit" in terms else None
        self.budget = PartitionBudget(more) if "budget" in terms else None
        #: seconds to add to this process's clock for the coordinator's, and their uncertainty
        self.offset, self._error_of_offset = 0.0, float("inf")
        began = time.monotonic()
        reply = link.call("open", run=run.run, worker=link.worker, partition=partition, rows=rows)
        if "error" in reply:
            raise RevkitError(f"this partition is not run: {reply['error']}")
        self.name: str = reply["session"]
        self.workers: int = reply["workers"]
        self.began: float = reply["began"]
        self.timeout: float | None = reply["timeout"]
        self.collected: bool = reply["collected"]
        self._tick = TICK
        self._first_reply = reply
        self._set_clock(began, reply)
        self.stop: Stop | None = None
        self._last_reply_at = time.monotonic()
        self._thread = threading.Thread(target=self._talk, name="revkit-session", daemon=True)

    def __enter__(self) -> PartitionSession:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._closed:
            self.close()

    # -- called by the partition's run -----------------------------------------------------------

    def begin(self, limits: PartitionLimits) -> None:
        """From now on the coordinator sets these limits."""
        self.limits = limits
        self._apply(self._first_reply)
        self._thread.start()

    def started(
        self, stop: Callable[[Stop], object], apply: Callable[[Callable[[], object]], object]
    ) -> None:
        """The engine has started; see :meth:`revkit.runtime.wiring.Wiring.started`."""
        self._stop_engine, self._apply_change = stop, apply
        if self.stop is not None:
            stop(self.stop)
        # A reply between the engine's start and this line has woken nobody.
        apply(lambda: None)

    def settled(self, done: int, total: int, row: RowResult) -> None:
        """The run's progress callback: counts for the coordinator."""
        self._settled += 1
        self._failed += row.status == "error"
        self._ok += row.status == "ok"
        self._made += row.attempts
        self._alive = self._alive or (row.status == "ok" and row.source == "model")
        if row.status == "error" and self._failed == 1:
            self._error = row.error
        if row.status == "error" or self._settled == self._total:
            self.report_now()

    def on_event(self, event: Event) -> None:
        """The run's observer: sends its events to the client."""
        self._events.append(event)

    def release(self, store: str, keys: list[bytes]) -> None:
        """The replies to these keys are in the store, or will not come."""
        with self._lock:
            self._released.append((store, keys))

    def claim(self, store: str, keys: list[bytes], *, parts: int, part: str) -> dict[str, Any]:
        """See :meth:`Coordinator.claim`."""
        return self._link.call(
            "claim", name=self.name, store=store, keys=keys, parts=parts, part=part
        )

    def freed(self) -> set[bytes] | None:
        """Keys it was refused that became free since the last call; None: any may be free."""
        with self._lock:
            self.news.clear()
            freed, self._freed = self._freed, set()
            return freed

    def report_now(self) -> None:
        """Report without waiting for the next tick."""
        self._woken.set()

    def close(self, stopped: Stop | None = None) -> dict[str, Any]:
        """Close the session; returns the coordinator's reply about the run.

        Args:
            stopped: why the partition's own run was stopped, which stops all others.
        """
        self._closed = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        self._send_events()
        report = self._report(closing=True)
        if stopped is not None:
            report["stop"] = list(stopped)
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
                reply = self._link.call("exchange", name=self.name, report=report)
                self._set_clock(began, reply)
                self._send_events()
            except Exception as error:  # noqa: BLE001 - the network or Dask; it may come back
                if time.monotonic() - self._last_reply_at > _SILENCE:
                    reason = f"the Dask scheduler does not answer: {error}"
                    self._stop(Stop(StopKind.INTERRUPTED, reason, cancels=True))
                with self._lock:
                    self._released = report.get("released", []) + self._released
                    self._freed = None
                self._error = self._error or report.get("error")
                self.news.set()
                self._woken.wait(self._tick)
                continue
            self._last_reply_at = time.monotonic()
            if reply.get("error") == UNKNOWN:
                reason = "the Dask scheduler takes this worker for dead"
                self._stop(Stop(StopKind.INTERRUPTED, reason, cancels=True))
                return
            self._apply(reply)

    def _report(self, *, closing: bool = False) -> dict[str, Any]:
        limits, left = self.limits, self._total - self._settled
        report: dict[str, Any] = {
            "limit": 0 if limits is None or closing or not left else limits.limit,
            "running": 0 if limits is None or closing else limits.running,
            "demand": 0 if closing else left - self.waiting,
            "failed": self._failed,
            "ok": self._ok,
            "made": self._made,
            "alive": self._alive,
        }
        if self._error is not None:
            report["error"], self._error = self._error, None
        if limits is not None:
            report |= limits.report(time.monotonic())
        wanted = min(report["limit"], report["demand"])
        for part in (self.rate_limit, self.budget):
            if part is not None:
                report |= part.report(wanted, closing=closing)
        with self._lock:
            released, self._released = self._released, []
        if released:
            report["released"] = released
        return report

    def _apply(self, reply: Mapping[str, Any]) -> None:
        limits, now = self.limits, time.monotonic()
        assert limits is not None
        self._tick = reply["tick"]
        # With no row left nothing starts, but workers that find no place would wait for one.
        share = max(reply["limit"], int(self._settled == self._total))
        wakes = share > limits.share
        limits.share = share
        limits.alive = limits.alive or reply.get("alive", False)
        if pause := reply.get("pause"):
            limits.paused_until = max(limits.paused_until, now + pause)
        if self.rate_limit is not None and reply.get("starts"):
            # By the time of this reply, not by the clock's offset: rather late than early.
            offset = now - reply["now"]
            self.rate_limit.add(reply["starts"], reply["tokens"], offset=offset)
            wakes = True
        if self.budget is not None:
            granted = Amounts(*reply.get("granted", ()))
            self.budget.add(granted, short=bool(reply.get("short")))
            wakes = wakes or any(granted)
        if freed := reply.get("freed"):
            with self._lock:
                if self._freed is not None:
                    self._freed.update(freed)
            self.news.set()
        if stop := reply.get("stop"):
            self._stop(stop_of(stop))
        elif wakes and self._apply_change is not None:
            self._apply_change(lambda: None)

    def _stop(self, stop: Stop) -> None:
        if self.stop == stop:
            return
        self.stop = stop
        self.news.set()
        if self.limits is not None:
            self.limits.stop = stop
        if self._stop_engine is not None:
            self._stop_engine(stop)

    def _set_clock(self, began: float, reply: Mapping[str, Any]) -> None:
        """Learn the coordinator's clock: "Cristian's algorithm" (Distributed Computing 3, 1989)."""
        if "now" not in reply:
            return
        now = time.monotonic()
        error = (now - began) / 2
        if error < self._error_of_offset:
            self.offset, self._error_of_offset = reply["now"] - (began + now) / 2, error

    def _send_events(self) -> None:
        while self._events:
            batch: list[Mapping[str, Any]] = []
            while self._events and len(batch) < _EVENTS:
                event = self._events.popleft().to_dict()
                batch.append(event | {"data": event["data"] | self._place})
            self._link.send(self.job.id, {"events": batch})
