"""The panel of a run: the timeline, the service times, the labels and the errors on one page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from ..errors import one_line
from .figure import NotebookFigure, new_figure
from .latency import draw_latency
from .looks import OUTCOMES, Look
from .timeline import draw_timeline, height_of, lanes_of, timeline_axes

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["draw_panel"]

_ACROSS = 3  # small plots in a row, at most
_INCHES = 2.9  # height of such a row
_BARS = 10  # of one small plot; what is left is counted in one more
_LETTERS = 22  # of a label, which may be any text


def draw_panel(
    attempts: pd.DataFrame,
    *,
    service_ms: NDArray[np.float64],
    shares: Mapping[str, Mapping[Any, int]],
    errors: Mapping[str, int],
    **timeline: Any,
) -> NotebookFigure:
    """Draw all that a run can show of itself.

    Args:
        attempts, timeline: those of ``draw_timeline``.
        service_ms: service times of the good attempts, in milliseconds.
        shares: for each class output, how many rows have which label, in the order to be shown.
        errors: how many rows failed, by type of error; empty: they have no plot.

    Returns:
        A figure that a notebook shows and whose ``savefig(path)`` writes the picture.
    """
    counted = [(f"{name}: rows by label", counts, "ok") for name, counts in shares.items()]
    if errors:
        counted.append(("Failed rows by error", errors, "failed"))
    rows = -(-(1 + len(counted)) // _ACROSS)
    across = -(-(1 + len(counted)) // rows)
    lanes = lanes_of(attempts, timeline["workers"])
    heights = [height_of(lanes), rows * _INCHES]
    figure = new_figure(sum(heights))
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=heights))
    draw_timeline(attempts, ax=timeline_axes(upper, lanes), **timeline)
    places = iter(lower.subplots(rows, across, squeeze=False).flat)
    draw_latency(service_ms, ax=next(places), title="Service time of good attempts")
    for title, counts, outcome in counted:
        _draw_counts(next(places), title, counts, OUTCOMES[outcome])
    for place in places:
        place.set_axis_off()
    return figure


def _draw_counts(ax: Axes, title: str, counts: Mapping[Any, int], look: Look) -> None:
    """A bar for each name, longest name cut, with its count and share written behind it."""
    names, numbers = [_cut(str(name)) for name in counts], list(counts.values())
    total = max(1, sum(numbers))
    if len(names) > _BARS + 1:
        names = [*names[:_BARS], f"{len(names) - _BARS:,} others"]
        numbers = [*numbers[:_BARS], sum(numbers[_BARS:])]
    bars = ax.barh(range(len(names)), numbers, color=look.colour, hatch=look.hatch,
                   edgecolor="white", linewidth=0, height=0.7)  # fmt: skip
    texts = [f"{number:,}  {number / total:.0%}" for number in numbers]
    ax.bar_label(bars, texts, padding=4, fontsize="small")
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_ylim(max(len(names), 3) - 0.5, -0.5)
    ax.set_xlim(0, 1.4 * max(1, *numbers, 0))
    ax.set_title(_cut(title, 34), loc="left", fontsize="medium", parse_math=False)
    ax.grid(visible=False)
    ax.tick_params(length=0, labelbottom=False)
    for side in ("top", "right", "bottom"):
        ax.spines[side].set_visible(False)


def _cut(text: str, letters: int = _LETTERS) -> str:
    line = one_line(text)
    return line if len(line) <= letters else line[: letters - 1] + "…"
