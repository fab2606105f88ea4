"""The timeline of a run: one lane a worker, one bar an attempt, coloured by how it ended.

A plot is drawn with matplotlib's ``Figure`` itself. pyplot is never imported, so a run draws in a
server, in a thread and beside the user's own figures without touching any of them. The price is
that a notebook does not show such a figure by itself; ``TimelineAxes`` pays it with the one method
that notebooks ask for.

Importing this module imports matplotlib: import it where something is drawn, not at the top.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    Numbers = npt.NDArray[np.number[Any]]

__all__ = ["TimelineAxes", "draw_timeline", "timeline_png"]


class _Look(NamedTuple):
    colour: str
    hatch: str | None  # what tells it apart where colour cannot: in print, in greyscale


# The outcomes of an attempt, in the order they are drawn: the rarer and worse comes later, so
# that one failure among thousands of good attempts lies on top. The lightness of the colours
# (about 60, 82, 36, 80 of 100) keeps them apart without hue; cancelled has its dots as well.
_LOOKS = {
    "ok": _Look("#5b9bd5", None),
    "retried": _Look("#f4c14e", None),
    "cancelled": _Look("#c6c6c6", "...."),
    "failed": _Look("#a3202f", "////"),
}

# Units of the time axis: name, seconds, and the shortest run (in seconds) that it is used for.
_UNITS = (("h", 3600.0, 3 * 3600.0), ("min", 60.0, 180.0), ("s", 1.0, 1.0), ("ms", 1e-3, 0.0))
_LANE = 0.78  # height of a bar, in lanes
_STRIP = 0.9  # height of the strip below the lanes, in inches
_LABELLED = 400  # attempts up to which rows may be written on their bars
_FONT = 8.0  # of the row numbers, in points
_DPI = 144  # of pictures: sharp on high-density screens, and still small


class TimelineAxes(Axes):
    """Axes that a notebook shows when they are the last expression of a cell.

    They are ordinary matplotlib ``Axes``; change them (``ax.set_title(...)``), then write ``ax``.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = (round(inches * 100) for inches in _figure(self).get_size_inches())
        return _png(self, _DPI), {"width": width, "height": height}


def draw_timeline(
    attempts: pd.DataFrame,
    *,
    ax: Axes | None = None,
    workers: int,
    wall_s: float,
    limits: Sequence[tuple[float, int]] = (),
    row_labels: Sequence[object] | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the attempts of a run: worker 0 in the top lane, time to the right.

    A gap in a lane is time in which that worker had nothing to do. Every attempt is at least one
    pixel wide (two, unless it went well), however short it was.

    Args:
        attempts: one line an attempt, with the columns ``row`` and ``worker`` (integers from 0),
            ``start_s`` and ``end_s`` (seconds since the start of the run) and ``outcome``:
            "ok", "retried", "failed" or "cancelled".
        ax: where to draw; by default new axes of a figure of fitting size.
        workers: how many lanes there are at least, so that an idle worker is seen too.
        wall_s: length of the run in seconds; the time axis reaches to it.
        limits: how many attempts were allowed to run, as (seconds since the start of the run,
            limit) at each change. New axes get a strip below them that shows it, above how many
            were running.
        row_labels: what to write on the bars, by row position, where it fits; by default the
            position. Nothing is written when there are more than 400 attempts.
        title: on new axes by default how many rows ran on how many workers.

    Returns:
        ``ax``, or new ``TimelineAxes``, which a notebook shows and whose ``figure.savefig(path)``
        writes the picture.

    Raises:
        ValueError: an outcome other than those four.

    >>> import pandas as pd
    >>> attempts = pd.DataFrame({"row": [0, 1], "attempt": 1, "worker": [0, 1],
    ...                          "start_s": [0.0, 0.0], "end_s": [0.8, 1.4], "outcome": "ok"})
    >>> draw_timeline(attempts, workers=2, wall_s=1.5).get_xlabel()
    'Time from the start of the run (s)'
    """
    row, worker = attempts["row"].to_numpy(), attempts["worker"].to_numpy()
    start, end = attempts["start_s"].to_numpy(), attempts["end_s"].to_numpy()
    outcome = attempts["outcome"].to_numpy()
    if unknown := set(outcome) - set(_LOOKS):
        raise ValueError(f"no such outcome of an attempt: {', '.join(map(repr, unknown))}")

    lanes = int(max(workers, worker.max(initial=-1) + 1, 1))
    strip = None
    if ax is None:
        ax, strip = _new_axes(lanes, with_strip=bool(limits))
        title = title or f"{_count(len(np.unique(row)), 'row')} on {_count(lanes, 'worker')}"
    # A run of no length still needs an axis with two ends.
    span = max(float(wall_s), float(end.max(initial=0.0))) or 1.0
    unit, seconds = _unit(span)
    pixel = span / seconds / max(ax.get_window_extent().width, 1.0)
    left, right = start / seconds, end / seconds

    _draw_lanes(ax, lanes, span / seconds)
    handles = []
    for name, look in _LOOKS.items():
        chosen = outcome == name
        if count := int(chosen.sum()):
            least = pixel if name == "ok" else 2 * pixel
            ends = np.maximum(right[chosen], left[chosen] + least)
            bars = _bars(left[chosen], ends, worker[chosen], pixel, look)
            bars.set_label(name)
            ax.add_collection(bars, autolim=False)
            key = Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0)
            key.set_label(f"{name} ({count:,})")
            handles.append(key)

    if not handles:
        ax.set_xticks([])
        ax.text(0.5, 0.5, "no attempts: nothing was run", transform=ax.transAxes,
                ha="center", va="center")  # fmt: skip
    points = ax.get_window_extent().height / lanes * _LANE * 72 / _figure(ax).dpi
    if len(row) <= _LABELLED and points > _FONT * 1.15:
        labels = row if row_labels is None else [row_labels[r] for r in row]
        _write_labels(ax, labels, left, right, worker, outcome, pixel)

    ax.set_xlim(0, span / seconds)
    ax.set_ylim(lanes - 0.5, -0.5)
    ax.set_ylabel("Worker")
    _tidy(ax, lanes)
    lowest = ax
    if strip is not None:
        _draw_strip(strip, left, right, [(at / seconds, limit) for at, limit in limits])
        ax.tick_params(axis="x", labelbottom=False)
        lowest = strip
    lowest.set_xlabel(f"Time from the start of the run ({unit})")
    if title:
        ax.set_title(title, loc="left", fontsize="medium", parse_math=False)
    if handles:
        ax.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False,
                  ncols=len(handles), fontsize="small", borderaxespad=0.2,
                  handlelength=1.4, columnspacing=1.2)  # fmt: skip
    return ax


def timeline_png(
    attempts: pd.DataFrame,
    *,
    workers: int,
    wall_s: float,
    limits: Sequence[tuple[float, int]] = (),
    row_labels: Sequence[object] | None = None,
    title: str | None = None,
    dpi: int = _DPI,
) -> bytes:
    """The timeline as a PNG picture; the arguments are those of ``draw_timeline``.

    At the default ``dpi`` it is 1,296 pixels wide, meant to be shown 900 wide.
    """
    ax = draw_timeline(
        attempts,
        workers=workers,
        wall_s=wall_s,
        limits=limits,
        row_labels=row_labels,
        title=title,
    )
    return _png(ax, dpi)


def _new_axes(lanes: int, *, with_strip: bool) -> tuple[TimelineAxes, Axes | None]:
    """Axes of a figure whose lanes are comfortable while few, and never make it a tower.

    The second ones, for a strip below them, share their time axis.
    """
    inches = min(0.36 * lanes, 2.16 + 0.058 * max(lanes - 6, 0), 7.5)
    heights = [max(inches, 0.45), *([_STRIP] if with_strip else [])]
    figure = Figure(figsize=(9.0, 1.0 + sum(heights)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    ax = figure.add_subplot(grid[0], axes_class=TimelineAxes)
    assert isinstance(ax, TimelineAxes)
    return ax, figure.add_subplot(grid[1], sharex=ax) if with_strip else None


def _figure(ax: Axes) -> Figure:
    return cast(Figure, ax.figure)  # never None: all axes here come from add_subplot


def _png(ax: Axes, dpi: int) -> bytes:
    """The figure as PNG, opaque and of its full size whatever the user's rcParams say."""
    figure, out = _figure(ax), io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, transparent=False, bbox_inches=figure.bbox_inches)
    return out.getvalue()


def _unit(span_s: float) -> tuple[str, float]:
    """The unit in which a span is read most easily, and its length in seconds."""
    return next((name, seconds) for name, seconds, least in _UNITS if span_s >= least)


def _draw_lanes(ax: Axes, lanes: int, span: float) -> None:
    """A pale track under every lane: where it shows, the worker was idle."""
    at = np.arange(lanes)
    tracks = PolyCollection(
        _boxes(np.zeros(lanes), np.full(lanes, span), at),
        facecolors=(0.5, 0.5, 0.5, 0.13), linewidths=0, zorder=0.5,
    )  # fmt: skip
    tracks.set_in_layout(False)
    ax.add_collection(tracks, autolim=False)


def _draw_strip(
    ax: Axes, left: Numbers, right: Numbers, limits: Sequence[tuple[float, int]]
) -> None:
    """How many attempts were running, and how many were allowed to."""
    times = np.concatenate([left, right])
    order = np.argsort(times, kind="stable")
    running = np.cumsum(np.repeat([1, -1], len(left))[order])
    ax.fill_between(
        times[order], running, step="post", color=_LOOKS["ok"].colour, alpha=0.6, linewidth=0
    )
    at, limit = zip(*limits, (ax.get_xlim()[1], limits[-1][1]), strict=True)
    ax.step(at, limit, where="post", color="0.4", linewidth=1.2, label="limit")
    ax.set_ylim(bottom=0)
    ax.set_ylabel("Running")
    ax.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    ax.grid(color="0.5", alpha=0.25, linewidth=0.6)
    ax.legend(loc="lower right", fontsize="small", frameon=False)
    for side in ("top", "left", "right"):
        ax.spines[side].set_visible(False)


def _boxes(left: Numbers, right: Numbers, lane: Numbers) -> Any:
    """The corners of a box per attempt, shape (n, 4, 2)."""
    top, bottom = lane - _LANE / 2, lane + _LANE / 2
    x = np.stack([left, left, right, right], axis=1)
    y = np.stack([top, bottom, bottom, top], axis=1)
    return np.stack([x, y], axis=2)


def _bars(
    left: Numbers, right: Numbers, lane: Numbers, pixel: float, look: _Look
) -> PolyCollection:
    """All attempts of one outcome as one artist, which is what makes 100,000 of them cheap."""
    wide = (right - left) / pixel
    # A seam of one pixel at its end keeps a bar apart from the next, but for bars so narrow that
    # the seams would swallow the colour. (Edges would also nibble at the height of the lanes.)
    seam = np.where(wide > 6, pixel, 0.0)
    hatched = look.hatch is not None and np.median(wide) > 5
    bars = PolyCollection(
        _boxes(left, right - seam, lane), facecolors=look.colour, edgecolors="white",
        linewidths=0, hatch=look.hatch if hatched else None, zorder=2,
    )  # fmt: skip
    bars.set_in_layout(False)  # measuring every bar would cost more than drawing them
    return bars


def _write_labels(
    ax: Axes,
    labels: Sequence[object] | npt.NDArray[Any],
    left: Numbers,
    right: Numbers,
    lane: Numbers,
    outcome: npt.NDArray[Any],
    pixel: float,
) -> None:
    """Write each row on its bar, where it fits."""
    digit = 0.65 * _FONT * _figure(ax).dpi / 72  # width of a digit in pixels, a little generous
    for label, x0, x1, y, name in zip(labels, left, right, lane, outcome, strict=True):
        written = str(label)
        if (x1 - x0) / pixel < digit * (len(written) + 1):
            continue
        look = _LOOKS[name]
        box = {"boxstyle": "square,pad=0.3", "facecolor": look.colour, "edgecolor": "none"}
        dark = np.dot(to_rgb(look.colour), (0.299, 0.587, 0.114)) < 0.5
        # A label may be any text of the user's: "$" in it is a dollar, not mathematics.
        ax.text((x0 + x1) / 2, y, written, ha="center", va="center_baseline", fontsize=_FONT,
                color="white" if dark else "black", bbox=box if look.hatch else None,
                parse_math=False, clip_on=True, in_layout=False)  # fmt: skip


def _tidy(ax: Axes, lanes: int) -> None:
    """Whole workers on the ticks, at most a dozen; only the frame that carries the time."""
    if lanes <= 12:
        ax.set_yticks(range(lanes))
    else:
        ax.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 4, 5, 8, 10]))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.5", alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "left", "right"):
        ax.spines[side].set_visible(False)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
