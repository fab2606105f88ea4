"""The progress bar of a run: which kind fits where the user looks, and when it is redrawn.

========================================  ==============================================
where                                     bar
========================================  ==============================================
notebook whose kernel has ipywidgets      tqdm's widget
notebook without                          tqdm's line of text, redrawn in place
terminal                                  tqdm's line of text, redrawn in place
elsewhere (a log, a pipe), TQDM_DISABLE   none
========================================  ==============================================

``tqdm.auto`` would choose too, but without ipywidgets it prints a warning with a path of the
user's machine into the notebook.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .words import outage

if TYPE_CHECKING:
    from ..scheduling.events import Away

__all__ = ["Bar", "bar", "in_kernel", "is_disabled"]

_INTERVAL_S = 0.1  # between two redraws: smooth to the eye, nothing to the run


class HowFar(Protocol):
    """Counts of what is done; a run's record has them."""

    settled: int
    failed: int
    from_store: int
    tokens: int
    ended: float
    away: Away | None


class Bar:
    """A progress bar, or nothing at all, behind two methods that are cheap to call for every row.

    Only the drain calls it, so it needs no lock, and none of tqdm's own watching thread.
    """

    def __init__(self, drawn: Any = None, *, clock: Callable[[], float] = time.monotonic):
        self._drawn = drawn  # a tqdm, or None
        self._clock = clock
        self._next_s = 0.0
        self._record: HowFar | None = None

    def update(self, record: HowFar) -> None:
        """Note how far the run is, and redraw if it is time to."""
        if self._drawn is None:
            return
        self._record = record
        now = self._clock()
        if now >= self._next_s:
            self._next_s = now + _INTERVAL_S
            self._note(record)
            moved = record.settled - self._drawn.n
            # An update by nothing would restart the time that its rate is measured by.
            if moved:
                self._drawn.update(moved)  # draws
            else:
                self._drawn.refresh()

    def close(self) -> None:
        """Draw the last state and leave it standing. Closing twice does no harm."""
        if self._drawn is not None:
            if self._record is not None:
                self._note(self._record)
                self._drawn.n = self._record.settled
            self._drawn.close()  # draws
            self._drawn = None

    def _note(self, record: HowFar) -> None:
        parts = [f"{record.failed:,} failed"]
        parts += [f"{record.from_store:,} from the store"] if record.from_store else []
        parts += [f"{record.tokens:,} tokens"] if record.tokens else []
        parts += [outage(record.away, record.ended)] if record.away is not None else []
        self._drawn.set_postfix_str(", ".join(parts), refresh=False)


def bar(total: int | None, *, label: str = "rows") -> Bar:
    """A bar for ``total`` rows, of the kind that fits where the process runs.

    Args:
        total: rows of the run; None: not known.
        label: what is counted, in the plural; stands before the bar.

    >>> shown = bar(12)  # in a test nobody looks at a terminal: none is drawn
    >>> shown.close()
    """
    kind = _kind()
    if kind is None:
        return Bar()
    options: dict[str, Any] = {"total": total, "desc": label, "unit": f" {label}"}
    options |= {"mininterval": 0, "miniters": 0}  # every update draws: Bar decides when
    options |= {"disable": False}  # tqdm itself would take TQDM_DISABLE=0 for a yes
    if kind == "widget":
        from tqdm.notebook import tqdm_notebook

        return Bar(_unwatched(tqdm_notebook)(**options))
    from tqdm import tqdm

    return Bar(_unwatched(tqdm)(**options, dynamic_ncols=kind == "terminal"))


def _unwatched(base: Any) -> Any:
    """The class without the thread that redraws bars nobody updates; it would outlive the run."""
    return type("tqdm", (base,), {"monitor_interval": 0})


def _kind() -> str | None:
    """``"widget"``, ``"text"`` (in a notebook), ``"terminal"``, or None where no bar is wanted."""
    if is_disabled():
        return None
    if in_kernel():
        return "widget" if importlib.util.find_spec("ipywidgets") else "text"
    return "terminal" if sys.stderr is not None and sys.stderr.isatty() else None


def is_disabled() -> bool:
    """Whether ``TQDM_DISABLE`` says that nothing is to move."""
    return os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")


def in_kernel() -> bool:
    """Whether this process is the kernel of a notebook; imports nothing to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
