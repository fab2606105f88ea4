"""What is drawn in the lanes of a timeline: bars, the rows on them, waits, rows without an attempt.

Each kind of thing is one artist, which is what makes many of them cheap. Where there are more
attempts than pixels, the pixel columns are drawn instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import raster
from .looks import OUTCOMES, SETTLED, Look, ink

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .raster import Numbers

__all__ = [
    "COLUMNS",
    "Bars",
    "Scale",
    "add",
    "boxes",
    "draw_attempts",
    "draw_tracks",
    "draw_visits",
    "draw_waits",
    "key",
    "write_rows",
]

COLUMNS = 1200  # pixel columns of a picture, give or take the margins
_EACH = 20_000  # attempts up to which each has its own bar; of more, each pixel column has
_HEIGHT = 0.78  # of a bar, in lanes
_FONT = 8.0  # of the row numbers, in points
_STORE = 0.2  # height of the lane above the workers', in inches


@dataclass(frozen=True)
class Scale:
    """The measures of a timeline, in units of its axes: ``unit`` across, lanes down."""

    lanes: int
    unit: str
    seconds: float  #: in a unit
    span: float  #: units from one end to the other
    pixel: float  #: units in a pixel
    inch: float  #: lanes in an inch
    dpi: float

    @property
    def store(self) -> float:
        """Height of the lane of the rows that needed no attempt, which stands on the others."""
        return _STORE * self.inch


@dataclass(frozen=True)
class Bars:
    """Attempts as columns of equal length, with their times in units of the axes."""

    row: Numbers
    worker: Numbers
    left: Numbers
    right: Numbers
    outcome: NDArray[Any]


def draw_tracks(ax: Axes, scale: Scale) -> None:
    """A pale track under every lane: where it shows, the worker was idle."""
    at = np.arange(scale.lanes)
    tracks = boxes(np.zeros(scale.lanes), np.full(scale.lanes, scale.span), at, _HEIGHT)
    add(ax, PolyCollection(tracks, facecolors=(0.5, 0.5, 0.5, 0.15), linewidths=0, zorder=0.5))


def draw_attempts(ax: Axes, bars: Bars, scale: Scale) -> list[Artist]:
    """The bars of each outcome that occurs; gives their entries of the legend."""
    columns = None
    if len(bars.outcome) > _EACH:
        code = np.zeros(len(bars.outcome), dtype=np.int64)
        for at, name in enumerate(OUTCOMES):
            code[bars.outcome == name] = at
        columns = raster.worst(
            bars.worker, bars.left, bars.right, code,
            lanes=scale.lanes, columns=COLUMNS, span=scale.span,
        )  # fmt: skip
    keys: list[Artist] = []
    for at, (name, look) in enumerate(OUTCOMES.items()):
        chosen = bars.outcome == name
        count = int(chosen.sum())
        if not count:
            continue
        keys.append(key(look, f"{name} ({count:,})"))
        # One bad attempt among thousands of good ones is seen, however short and low its bar.
        least, height = scale.pixel, _HEIGHT
        if name != "ok":
            least, height = 2 * scale.pixel, max(_HEIGHT, 2 * scale.inch / scale.dpi)
        if columns is None:
            left, right, lane = bars.left[chosen], bars.right[chosen], bars.worker[chosen]
            right = np.maximum(right, left + least)
            # A seam of one pixel at its end keeps a bar apart from the next, but for bars so narrow
            # that the seams would swallow the colour. (Edges would also nibble at the lanes.)
            right = np.where(right - left > 6 * scale.pixel, right - scale.pixel, right)
        else:
            lane, first, last = raster.stretches(columns == at)
            left, right = first * scale.span / COLUMNS, last * scale.span / COLUMNS
        _draw(ax, name, look, boxes(left, right, lane, height), right - left, scale)
    return keys


def _draw(ax: Axes, name: str, look: Look, corners: Any, width: Numbers, scale: Scale) -> None:
    hatched = look.hatch is not None and len(width) and np.median(width) > 5 * scale.pixel
    bars = PolyCollection(
        corners, facecolors=look.colour, edgecolors="white", linewidths=0, zorder=2,
        hatch=look.hatch if hatched else None, label=name,
    )  # fmt: skip
    add(ax, bars)


def draw_visits(ax: Axes, visits: Sequence[tuple[float, int]], scale: Scale) -> list[Artist]:
    """A mark for each time (in seconds) at which rows were settled without an attempt."""
    if not visits:
        return []
    times = np.array([at for at, _ in visits]) / scale.seconds
    left = np.unique(np.round(times / scale.pixel)) * scale.pixel
    width = np.full(len(left), 4 * scale.pixel)
    lane = np.full(len(left), -0.5 - scale.store / 2)
    corners = boxes(left, left + width, lane, 0.6 * scale.store)
    _draw(ax, SETTLED.label, SETTLED, corners, width, scale)
    return [key(SETTLED, f"{SETTLED.label} ({sum(rows for _, rows in visits):,})")]


def draw_waits(ax: Axes, bars: Bars, scale: Scale) -> list[Artist]:
    """A line for each row that waited to be tried again: no worker was held meanwhile."""
    order = np.lexsort((bars.left, bars.row))
    one, other = order[:-1], order[1:]
    waited = (bars.row[one] == bars.row[other]) & (bars.outcome[one] == "retried")
    waited &= bars.left[other] - bars.right[one] > 3 * scale.pixel
    one, other = one[waited], other[waited]
    if not len(one):
        return []
    # Below the lane of the one, where there are no bars, and then up or down to that of the other.
    x0, x1, y0, y1 = bars.right[one], bars.left[other], bars.worker[one], bars.worker[other]
    below = y0 + 0.45
    edge = np.where(y1 > y0, y1 - _HEIGHT / 2, y1 + _HEIGHT / 2)
    x, y = np.stack([x0, x0, x1, x1], axis=1), np.stack([y0, below, below, edge], axis=1)
    look = {"linewidth": 1.1, "linestyle": (0, (1.5, 1.5)), "color": ink()}
    add(ax, LineCollection(list(np.stack([x, y], axis=2)), zorder=3, label="waited", **look))
    return [Line2D([], [], label="waited to be retried", **look)]


def write_rows(ax: Axes, bars: Bars, labels: Sequence[object] | None, scale: Scale) -> None:
    """Write each row on its bar, where it fits: its label, or its number."""
    if _HEIGHT / scale.inch * 72 <= _FONT * 1.15:
        return
    digit = 0.65 * _FONT * scale.dpi / 72 * scale.pixel  # width, a little generous
    columns = (bars.row, bars.left, bars.right, bars.worker, bars.outcome)
    for row, left, right, lane, outcome in zip(*columns, strict=True):
        written = str(row if labels is None else labels[row])
        if right - left < digit * (len(written) + 1):
            continue
        look = OUTCOMES[outcome]
        box = {"boxstyle": "square,pad=0.3", "facecolor": look.colour, "edgecolor": "none"}
        dark = np.dot(to_rgb(look.colour), (0.299, 0.587, 0.114)) < 0.5
        # A label may be any text of the user's: "$" in it is a dollar, not mathematics.
        ax.text((left + right) / 2, lane, written, ha="center", va="center_baseline",
                fontsize=_FONT, color="white" if dark else "black",
                bbox=box if look.hatch else None, parse_math=False, clip_on=True,
                in_layout=False)  # fmt: skip


def key(look: Look, label: str) -> Patch:
    """An entry of the legend."""
    return Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0,
                 label=label)  # fmt: skip


def boxes(left: Numbers, right: Numbers, middle: Numbers, height: float) -> Any:
    """The corners of boxes, shape (n, 4, 2)."""
    top, bottom = middle - height / 2, middle + height / 2
    x = np.stack([left, left, right, right], axis=1)
    y = np.stack([top, bottom, bottom, top], axis=1)
    return np.stack([x, y], axis=2)


def add(ax: Axes, artists: PolyCollection | LineCollection) -> None:
    """Add them and leave the limits of the axes alone."""
    artists.set_in_layout(False)  # measuring each would cost more than drawing them
    ax.add_collection(artists, autolim=False)
