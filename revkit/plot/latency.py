"""How long the good attempts took: their distribution, with its percentiles marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from ..errors import UsageError, nearest
from ..record.metrics import PERCENTILES
from .figure import NotebookAxes, new_axes
from .looks import OUTCOMES, ink

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KINDS", "draw_latency"]

KINDS = ("ecdf", "hist")
# Each percentile's mark (ECDF) and line (histogram): apart by shape, not by colour.
_MARKS = ("o", "s", "D", "^")
_LINES = ("-", "--", "-.", ":")
_SPREAD = 50  # times the shortest that the longest takes: from here on the axis is logarithmic
_INCHES = 3.2


def draw_latency(
    service_ms: Sequence[float] | NDArray[np.float64],
    *,
    ax: Axes | None = None,
    kind: Literal["ecdf", "hist"] = "ecdf",
    title: str | None = None,
) -> Axes:
    """Draw the distribution of service times; p50, p90, p95 and p99 are marked with their values.

    The axis of time is logarithmic where the longest takes more than 50 times the shortest.

    Args:
        service_ms: service times of good attempts, in milliseconds.
        ax: where to draw; by default new axes, which a notebook shows.
        kind: "ecdf", the empirical cumulative distribution function: what share took at most so
            long; or "hist", a histogram, in twice as many bins as the cube root of their number
            (Rice's rule), at most 80.
        title: on new axes by default what is drawn, and of how many attempts.

    Raises:
        UsageError: another kind.

    >>> ax = draw_latency([200.0, 300.0, 400.0])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['p50  300 ms', 'p90  380 ms', 'p95  390 ms', 'p99  398 ms']
    """
    if kind not in KINDS:
        raise UsageError(f'there is no kind "{kind}" of latency plot; {nearest(kind, KINDS)}')
    if ax is None:
        ax = new_axes(_INCHES, NotebookAxes)
        what = "1 good attempt" if len(service_ms) == 1 else f"{len(service_ms):,} good attempts"
        title = title or f"Service time of {what}"
    if title:
        ax.set_title(title, loc="left", fontsize="medium", parse_math=False)
    ax.set_xlabel("Service time (ms)")
    ax.set_ylabel("Share of attempts" if kind == "ecdf" else "Attempts")
    ax.grid(visible=False)
    ax.grid(axis="both", color="0.5", alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    times = np.asarray(service_ms, dtype=np.float64)
    if not len(times):
        ax.set_xticks([])
        ax.set_yticks([])
        ax.text(0.5, 0.5, "no attempt was good", transform=ax.transAxes, ha="center", va="center")
        return ax

    shortest, longest = float(times.min()), float(times.max())
    logarithmic = shortest > 0 and longest / shortest > _SPREAD
    if logarithmic:
        ax.set_xscale("log")
        decades = longest / shortest > 1000
        ax.xaxis.set_major_locator(LogLocator(subs=(1,) if decades else (1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    named = zip(PERCENTILES, np.percentile(times, PERCENTILES), _MARKS, _LINES, strict=True)
    colour = OUTCOMES["ok"].colour
    if kind == "ecdf":
        ax.ecdf(times, color=colour, linewidth=2)
        for q, value, mark, _ in named:
            ax.plot(value, q / 100, mark, color=ink(), label=_text(q, value), clip_on=False)
        ax.set_ylim(0, 1)
        ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    else:
        bins = min(80, max(1, int(np.ceil(2 * np.cbrt(len(times))))))
        space = np.geomspace if logarithmic else np.linspace
        longest = max(longest, shortest + 1e-3)  # all may have taken the same
        edges = space(shortest, longest, bins + 1).tolist()
        ax.hist(times, bins=edges, color=colour, edgecolor="white", linewidth=0.5)
        for q, value, _, line in named:
            ax.axvline(value, linestyle=line, color=ink(), linewidth=1.5, label=_text(q, value))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.legend(loc="lower right" if kind == "ecdf" else "upper right", edgecolor="none")
    return ax


def _text(percentile: int, value: float) -> str:
    """A percentile and its value, to three digits or so."""
    number = f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
    return f"p{percentile}  {number} ms"
