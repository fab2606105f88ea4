"""The live display of a run: one output of the cell, drawn anew in place, which stays.

========================  ================================================================
where                     display
========================  ================================================================
notebook                  counts, errors and timeline, drawn anew while the run goes on
notebook, TQDM_DISABLE    the same, drawn once, when the run is over
elsewhere                 the bar of :mod:`revkit.display.progress`
========================  ================================================================

While a picture is drawn, the run's workers wait for the interpreter: :class:`Pace` says when there
is time for one.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..record.record import DECISIONS
from ..scheduling.events import Decision, Status
from . import duration, harmless
from .progress import bar, in_kernel, is_disabled
from .words import outage

if TYPE_CHECKING:
    from ..record.record import Record
    from ..runtime.wiring import Display

__all__ = ["Live", "Pace", "live"]

#: Seconds from the start of one redraw to the next, at least.
INTERVAL_S = 1.0
#: The most of the time that has passed that redraws may have taken.
SHARE = 0.05

_ERRORS = 5  # types of error that are shown
_RETRY, _CANCEL = DECISIONS.index(Decision.RETRY), DECISIONS.index(Decision.CANCEL)


def live(total: int) -> Display:
    """What ``progress="live"`` shows of a run of ``total`` rows, where the process runs.

    >>> type(live(12)).__name__  # a test has no notebook
    'Bar'
    """
    if not in_kernel():
        return bar(total)
    from IPython.display import display

    from ..plot import live_png  # now, while no worker waits for it

    return Live(total, draw=live_png, show=display, moves=not is_disabled())


class Pace:
    """When there is time for a redraw: one a second at most, and a twentieth of all time.

    There has to be time for twice what the last redraw took. Only one that takes longer still can
    exceed the twentieth, and the next one waits until that is made up for.

    Args:
        now: when the display was opened; times are seconds on any one clock.

    Attributes:
        due: when there is time for the next redraw; for the first one at once.

    >>> pace = Pace(100.0)
    >>> pace.drew(100.0, 100.01)
    >>> pace.due
    101.0
    >>> pace.drew(101.0, 101.1)  # with twice as much more, 310 ms: a twentieth of 6.2 s
    >>> round(pace.due, 3)
    106.2
    """

    def __init__(self, now: float):
        self._began = self.due = now
        self._spent_s = 0.0

    def drew(self, start: float, end: float) -> None:
        """Note that a redraw took from ``start`` to ``end``."""
        took = end - start
        self._spent_s += took
        self.due = max(start + INTERVAL_S, self._began + (self._spent_s + 2 * took) / SHARE)


class _Handle(Protocol):
    """What IPython gives for an output that can be changed."""

    def update(self, data: dict[str, str], *, raw: bool) -> object: ...


class Live:
    """A display in a notebook; only the drain calls it.

    Args:
        total: rows of the run.
        draw: makes the picture, as :func:`revkit.plot.live_png` does.
        show: makes an output of the cell, as ``IPython.display.display`` does.
        moves: show the run while it goes on; else only its last state.
        clock: seconds, for the time that redraws take.
    """

    def __init__(
        self,
        total: int,
        *,
        draw: Callable[..., bytes],
        show: Callable[..., Any],
        moves: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total = total
        self._draw = draw
        self._show = show
        self._clock = clock
        self._pace = Pace(clock()) if moves else None
        self._handle: _Handle | None = None
        self._record: Record | None = None
        self._is_closed = False

    def update(self, record: Record) -> None:
        """Note how far the run is, and redraw if there is time to."""
        self._record = record
        if self._pace is None or self._is_closed:
            return
        now = self._clock()
        if now >= self._pace.due:
            self._redraw(record)
            self._pace.drew(now, self._clock())

    def close(self) -> None:
        """Draw the last state and leave it standing. Closing twice does no harm."""
        if not self._is_closed and self._record is not None:
            self._is_closed = True
            self._redraw(self._record)

    def _redraw(self, record: Record) -> None:
        rows = _by_status(record, is_over=self._is_closed)
        counts = _counts(record, rows, self._total)
        data = {"text/plain": ", ".join(counts), "text/html": self._html(record, rows, counts)}
        if self._handle is None:
            self._handle = self._show(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def _html(self, record: Record, rows: Mapping[Status, int], counts: list[str]) -> str:
        """The state as HTML without scripts, in the page's own colours."""
        first, *others = counts
        parts = [f"<style>{_STYLE}</style><p><b>{first}</b>"]
        parts += [f" &middot; {count}" for count in others]
        figures = " · ".join(_figures(record, rows, self._total))
        parts.append(f' <span class="revkit-time">{figures}</span></p>')
        parts.append('<div class="revkit-bar">')
        for status in (Status.OK, Status.ERROR):
            share = rows[status] / max(1, self._total)
            parts.append(f'<div class="revkit-{status}" style="width:{share:.2%}"></div>')
        parts.append("</div>")
        if record.away is not None and record.stopped is None:
            parts.append(f"<p>{outage(record.away, record.ended)}</p>")
        if record.stopped is not None:
            parts.append(f"<p>stopped: {escape(harmless(record.stopped.reason, 500))}</p>")
        parts += [f"<p>{escape(line)}</p>" for line in _errors(record)]
        if record.row:
            picture = base64.b64encode(_drawn(record, self._draw)).decode()
            parts.append(
                '<img class="revkit-plot" width="900" alt="Timeline so far: one lane a worker" '
                f'src="data:image/png;base64,{picture}">'
            )
        return '<div class="revkit-live">' + "".join(parts) + "</div>"


def _by_status(record: Record, *, is_over: bool) -> dict[Status, int]:
    """Rows by status; while the run goes on, of those that are settled, without counting all."""
    if is_over:
        return {status: record.status.count(status) for status in Status}
    failed, cancelled = record.failed, record.decision.count(_CANCEL)
    good = record.settled - failed - cancelled
    return {Status.OK: good, Status.ERROR: failed, Status.CANCELLED: cancelled}


def _done(rows: Mapping[Status, int]) -> int:
    return rows[Status.OK] + rows[Status.ERROR]


def _counts(record: Record, rows: Mapping[Status, int], total: int) -> list[str]:
    """How many rows have come to their end, and whatever else happened."""
    retries = record.decision.count(_RETRY)
    optional = {
        "failed": rows[Status.ERROR],
        "cancelled": rows[Status.CANCELLED],
        "not started": rows.get(Status.NOT_STARTED, 0),
        "from the store": record.from_store,
        "retries" if retries != 1 else "retry": retries,
        "tokens": record.tokens,
    }
    return [
        f"{_done(rows):,} of {total:,} row" + "s" * (total != 1),
        *(f"{n:,} {name}" for name, n in optional.items() if n),
    ]


def _figures(record: Record, rows: Mapping[Status, int], total: int) -> list[str]:
    """What time decides. The time left is that of rows which ask, at their mean rate so far."""
    elapsed, done = record.ended - record.began, _done(rows)
    figures = [duration(elapsed)]
    if done and elapsed > 0:
        rate = done / elapsed
        figures.append(f"{rate:,.0f} rows/s" if rate >= 100 else f"{rate:.3g} rows/s")
    asked, left = done - record.from_store, total - record.settled
    is_over = Status.NOT_STARTED in rows
    if asked and left and not is_over:
        figures.append(f"about {duration(left * elapsed / asked)} left")
    return figures


def _errors(record: Record) -> list[str]:
    """Failed rows by type of error, most frequent first, each with the message of its first row.

    First by position, not by time, so that the last state of two equal runs is the same.
    """
    rows: dict[str, list[int]] = {}
    for row, failure in record.failures.items():
        if record.status[row] is Status.ERROR:  # else it is to be tried again
            rows.setdefault(failure.type, []).append(row)
    types = sorted(rows, key=lambda name: (-len(rows[name]), name))
    lines = [
        f"{len(rows[name]):,} × {harmless(record.failures[min(rows[name])], 160)}"
        for name in types[:_ERRORS]
    ]
    if len(types) > _ERRORS:
        lines[-1] = f"{len(types) - _ERRORS + 1:,} more types of error: run.errors"
    return lines


def _drawn(record: Record, draw: Callable[..., bytes]) -> bytes:
    """The picture of the attempts so far. They are copied: a view would keep them from growing."""
    began, now = record.began, record.ended
    return draw(
        np.array(record.worker),
        np.array(record.start) - began,
        np.array(record.end) - began,
        np.array(record.decision),
        lanes=1 if record.limits else record.workers,  # of an adaptive run, those in use
        now_s=now - began,
        limits=[(max(0.0, at - began), limit) for at, limit in record.limits],
        holds=[
            (hold.kind, max(0.0, hold.start - began), min(hold.end, now) - began)
            for hold in record.holds
            if hold.start < now
        ],
    )


# Colours are the page's own, or those of the timeline.
_STYLE = """
.revkit-live { color: inherit; max-width: 900px; }
.revkit-live p { margin: .3em 0; overflow-wrap: anywhere; }
.revkit-live .revkit-time { margin-left: .6em; opacity: .75; white-space: nowrap; }
.revkit-live .revkit-bar { background: #8884; display: flex; height: 4px; margin: .4em 0; }
.revkit-live .revkit-ok { background: #5b9bd5; }
.revkit-live .revkit-error { background: #a3202f; }
.revkit-live .revkit-plot { display: block; height: auto; margin: .6em 0; max-width: 100%; }
"""
