"""The timeline of a run: one lane a worker, one bar an attempt, coloured by how it ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from ..errors import plural
from . import lanes as draw
from . import raster
from .figure import DPI, NotebookAxes, NotebookFigure, figure_of, new_figure, png
from .lanes import COLUMNS, Bars, Scale
from .looks import HOLDS, OUTCOMES, ink

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import SubFigure

__all__ = [
    "TimelineAxes",
    "draw_timeline",
    "height_of",
    "lanes_of",
    "time_unit",
    "timeline_axes",
    "timeline_png",
]

# Units of the time axis: name, seconds, and the shortest run (in seconds) that it is used for.
_UNITS = (("h", 3600.0, 3 * 3600.0), ("min", 60.0, 180.0), ("s", 1.0, 1.0), ("ms", 1e-3, 0.0))
_STRIP = 0.9  # height of the strip below the lanes, in inches
_FEW = 400  # attempts up to which rows are written on their bars, and waits are drawn


class TimelineAxes(NotebookAxes):
    """The lanes of a timeline: matplotlib ``Axes`` that a notebook shows."""


def draw_timeline(
    attempts: pd.DataFrame,
    *,
    ax: Axes | tuple[Axes, Axes] | None = None,
    workers: int,
    wall_s: float,
    limits: Sequence[tuple[float, int]] = (),
    holds: Sequence[tuple[str, float, float]] = (),
    visits: Sequence[tuple[float, int]] = (),
    stop: tuple[str, float] | None = None,
    row_labels: Sequence[object] | None = None,
    worker_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the attempts of a run: worker 0 in the top lane, time to the right.

    A gap in a lane is time in which that worker had nothing to do. Every attempt is at least one
    pixel wide (two, unless it went well), however short it was. A thin line leads from an attempt
    that was retried to the next one of its row, where there are at most 400 attempts. Of more than
    20,000, a pixel column of a lane has the colour of the worst that it covers.

    New axes have a strip below them: how many attempts were running, the most (pale) and the mean
    of each pixel column, under the limit that was in force.

    All times are in seconds since the start of the run.

    Args:
        attempts: one line an attempt, with the columns ``row`` and ``worker`` (integers from 0),
            ``start_s`` and ``end_s``, and ``outcome``: "ok", "retried", "failed" or "cancelled".
        ax: where to draw; by default new axes of a figure of fitting size. Given axes get the
            lanes only; a pair of them, which share their x axis, the lanes and the strip.
        workers: how many lanes there are at least, so that an idle worker is seen too.
        wall_s: length of the run; the time axis reaches to it.
        limits: how many attempts were allowed to run, as (time, limit) at each change; where it
            is empty, ``workers`` at all times.
        holds: spans in which no attempt might start, as (kind, start, end), drawn as hatched
            bands; the kinds are "pause" (the server asked for it), "pacing" (it refused most
            attempts), "rate_limit", "budget" and "outage" (the server was away).
        visits: rows that were settled without an attempt, from the store or as duplicates, as
            (time, rows). They get a thin lane of their own, on top.
        stop: why and when the run was stopped, as (kind, time), marked by a line.
        row_labels: what to write on the bars, by row position, where it fits; by default the
            position. Nothing is written when there are more than 400 attempts.
        worker_names: what to call the lanes, by worker; by default its number.
        title: where there is a strip by default how many rows ran on how many workers.

    Returns:
        The axes of the lanes: the given ones, or new ``TimelineAxes``, which a notebook shows and
        whose ``figure.savefig(path)`` writes the picture.

    Raises:
        ValueError: an outcome other than those four, or a hold of another kind.

    >>> import pandas as pd
    >>> attempts = pd.DataFrame({"row": [0, 1], "attempt": 1, "worker": [0, 1],
    ...                          "start_s": [0.0, 0.0], "end_s": [0.8, 1.4], "outcome": "ok"})
    >>> draw_timeline(attempts, workers=2, wall_s=1.5).get_xlabel()
    'Time from the start of the run (s)'
    """
    outcome = attempts["outcome"].to_numpy()
    _known("outcome of an attempt", outcome, OUTCOMES)
    _known("kind of hold", (kind for kind, *_ in holds), HOLDS)
    lanes = lanes_of(attempts, workers)
    if ax is None:
        ax = timeline_axes(new_figure(height_of(lanes)), lanes)
    strip = None
    if isinstance(ax, tuple):
        ax, strip = ax
        rows = plural(attempts["row"].nunique(), "row")
        title = title or f"{rows} on {plural(lanes, 'worker')}"

    start, end = attempts["start_s"].to_numpy(), attempts["end_s"].to_numpy()
    span = max(float(wall_s), float(end.max(initial=0.0)))
    scale = _scale(ax, lanes, span or 1.0)  # a run of no length still has an axis with two ends
    row, worker = attempts["row"].to_numpy(), attempts["worker"].to_numpy()
    bars = Bars(row, worker, start / scale.seconds, end / scale.seconds, outcome)

    draw.draw_tracks(ax, scale)
    keys = draw.draw_attempts(ax, bars, scale) + draw.draw_visits(ax, visits, scale)
    if len(row) <= _FEW:
        keys += draw.draw_waits(ax, bars, scale)
        draw.write_rows(ax, bars, row_labels, scale)
    if not len(row):
        ax.text(0.5, 0.5, "no attempts: nothing was run", transform=ax.transAxes,
                ha="center", va="center", in_layout=False)  # fmt: skip
    across = _draw_holds(ax, holds, scale) + _draw_stop(ax, stop, scale)

    _tidy(ax)
    _tick_workers(ax, scale, worker_names, store=bool(visits))
    ax.set_xlim(0, scale.span)
    ax.set_ylim(lanes - 0.5, -0.5 - (scale.store if visits else 0.0))
    ax.set_ylabel("Worker")
    # Above a strip it is not shown, because the strip shows it, but still there to be asked for.
    ax.set_xlabel(f"Time from the start of the run ({scale.unit})", visible=strip is None)
    if not span:
        ax.set_xticks([])
    if title:
        ax.set_title(title, loc="left", fontsize="medium", parse_math=False)
    if strip is None:
        _explain(ax, keys + across, beside=title or "")
    else:
        _explain(ax, keys, beside=title or "")
        running = _draw_strip(strip, bars, limits or [(0.0, max(workers, 1))], scale)
        _draw_holds(strip, holds, scale)
        _draw_stop(strip, stop, scale)
        _explain(strip, running + across)
        strip.set_xlabel(ax.get_xlabel())
        ax.tick_params(axis="x", labelbottom=False)
    return ax


def timeline_png(attempts: pd.DataFrame, *, dpi: int = DPI, **options: Any) -> bytes:
    """The timeline as a PNG picture.

    Args:
        attempts, options: those of ``draw_timeline``, but for ``ax``.
        dpi: dots per inch; the default 144 makes it 1,296 pixels wide, meant to be shown 900 wide.
    """
    return png(figure_of(draw_timeline(attempts, **options)), dpi)


def lanes_of(attempts: pd.DataFrame, workers: int) -> int:
    """How many lanes there are: a worker that was replaced has one beyond the count."""
    return int(max(workers, attempts["worker"].max() + 1 if len(attempts) else 0, 1))


def height_of(lanes: int) -> float:
    """Inches of a timeline with so many lanes: comfortable while few, and never a tower."""
    return _lanes_height(lanes) + _STRIP + 1.2


def timeline_axes(figure: NotebookFigure | SubFigure, lanes: int) -> tuple[TimelineAxes, Axes]:
    """Axes for the lanes, and below them those of the strip, which share their time axis."""
    grid = figure.add_gridspec(2, 1, height_ratios=[_lanes_height(lanes), _STRIP])
    ax = figure.add_subplot(grid[0], axes_class=TimelineAxes)
    assert isinstance(ax, TimelineAxes)
    return ax, figure.add_subplot(grid[1], sharex=ax)


def time_unit(span_s: float) -> tuple[str, float]:
    """The unit in which a span is read most easily, and its length in seconds.

    >>> time_unit(0.5), time_unit(600.0)
    (('ms', 0.001), ('min', 60.0))
    """
    return next((name, seconds) for name, seconds, least in _UNITS if span_s >= least)


def _lanes_height(lanes: int) -> float:
    return max(min(0.36 * lanes, 2.16 + 0.058 * max(lanes - 6, 0), 7.5), 0.45)


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    if unknown := set(names) - set(known):
        raise ValueError(f"no such {what}: {', '.join(map(repr, unknown))}")


def _scale(ax: Axes, lanes: int, span_s: float) -> Scale:
    unit, seconds = time_unit(span_s)
    width, height = (max(size, 1.0) for size in ax.get_window_extent().size)
    span, dpi = span_s / seconds, figure_of(ax).dpi
    return Scale(lanes, unit, seconds, span, pixel=span / width, inch=lanes / height * dpi, dpi=dpi)


# -- around the lanes, across them, and below -----------------------------------------------------


def _tick_workers(ax: Axes, scale: Scale, called: Sequence[str] | None, *, store: bool) -> None:
    """Whole workers, at most a dozen; above them the lane of the rows that needed none."""
    ticks = [float(worker) for worker in range(scale.lanes)]
    if scale.lanes > 12:
        nice = MaxNLocator(nbins=8, integer=True, steps=[1, 2, 4, 5, 8, 10])
        every = nice.tick_values(0, scale.lanes - 1)
        ticks = [tick for tick in every if 0 <= tick < scale.lanes]
    names = [f"{tick:,.0f}" for tick in ticks]
    if called is not None:
        names = [called[int(tick)] if tick < len(called) else "" for tick in ticks]
    if store:
        ticks, names = [-0.5 - scale.store / 2, *ticks], ["store", *names]
    ax.set_yticks(ticks, names, parse_math=False)


def _draw_holds(ax: Axes, holds: Sequence[tuple[str, float, float]], scale: Scale) -> list[Artist]:
    """A hatched band over the whole height for each span in which nothing might start."""
    keys: list[Artist] = []
    for name, look in HOLDS.items():
        spans = np.array([times for kind, *times in holds if kind == name]) / scale.seconds
        if not len(spans):
            continue
        start, end = raster.merged(spans[:, 0], spans[:, 1], 0.0)
        held = float((end - start).sum())
        start, end = raster.merged(start, np.maximum(end, start + 2 * scale.pixel), scale.pixel)
        pale = to_rgba(look.colour, 0.2)
        bands = PolyCollection(
            draw.boxes(start, end, np.full(len(start), 0.5), 1.0), facecolors=[pale],
            edgecolors=[to_rgba(look.colour, 0.75)], linewidths=0, hatch=look.hatch,
            transform=ax.get_xaxis_transform(), zorder=0.7, label=name,
        )  # fmt: skip
        draw.add(ax, bands)
        key = draw.key(look, f"{look.label} ({held:,.3g} {scale.unit})")
        key.set(facecolor=pale, edgecolor=look.colour)
        keys.append(key)
    return keys


def _draw_stop(ax: Axes, stop: tuple[str, float] | None, scale: Scale) -> list[Artist]:
    if stop is None:
        return []
    kind, at = stop
    line = ax.axvline(at / scale.seconds, color=ink(), linewidth=1.6, linestyle=(0, (4, 1.5)),
                      zorder=4, clip_on=False, label=f"stopped ({kind})")  # fmt: skip
    return [line]


def _draw_strip(
    ax: Axes, bars: Bars, limits: Sequence[tuple[float, int]], scale: Scale
) -> list[Artist]:
    """How many attempts were running, and how many were allowed to."""
    peak, mean = raster.running(bars.left, bars.right, columns=COLUMNS, span=scale.span)
    average = float((bars.right - bars.left).sum() / scale.span)
    edges = np.linspace(0, scale.span, COLUMNS + 1)
    colour = OUTCOMES["ok"].colour
    pale = ax.stairs(peak, edges, fill=True, color=colour, alpha=0.4, linewidth=0, label="peak")
    full = ax.stairs(mean, edges, fill=True, color=colour, linewidth=0)
    full.set_label(f"mean ({average:,.3g})")
    times = [at / scale.seconds for at, _ in limits] + [scale.span]
    limit = [limit for _, limit in limits] + [limits[-1][1]]
    lowest, highest = min(limit), max(limit)
    text = f"{lowest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"
    (line,) = ax.step(times, limit, where="post", color=ink(), linewidth=1.2)
    line.set_label(f"limit ({text})")
    _tidy(ax)
    ax.grid(axis="y", color="0.5", alpha=0.25, linewidth=0.6)
    ax.set_ylim(0, 1.12 * max(highest, int(peak.max())))
    ax.set_ylabel("Running")
    ax.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    return [pale, full, line]


def _explain(ax: Axes, handles: Sequence[Artist], beside: str = "") -> None:
    """A legend above the right end of the axes, in as many lines as fit beside that title."""
    if not handles:
        return
    inches = ax.get_window_extent().width / figure_of(ax).dpi - 0.085 * len(beside)
    needed = sum(0.5 + 0.075 * len(str(handle.get_label())) for handle in handles)
    columns = math.ceil(len(handles) / math.ceil(needed / max(inches, 1.0)))
    ax.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False,
              ncols=columns, fontsize="small", borderaxespad=0.2, handlelength=1.4,
              columnspacing=1.2)  # fmt: skip


def _tidy(ax: Axes) -> None:
    """Only the frame that carries the time."""
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)
    ax.grid(axis="x", color="0.5", alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "left", "right"):
        ax.spines[side].set_visible(False)
