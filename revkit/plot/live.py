"""The timeline of a run that still goes on: a raster, drawn in milliseconds.

matplotlib takes a tenth of a second for any figure, in which the workers of the run wait for the
interpreter. So this picture is computed with NumPy, pixel by pixel, and only its words are written
by Pillow, in matplotlib's own font.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from ..errors import UsageError
from ..record.record import DECISIONS
from . import raster
from .looks import HOLDS, OUTCOMES
from .timeline import time_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

__all__ = ["live_png"]

_WIDTH, _NARROWEST = 900, 300  # of a picture, in pixels
_WHITE, _TRACK, _GREY, _INK = (np.array([level] * 3, dtype=np.uint8) for level in (255, 237, 90, 0))


class _Layout(NamedTuple):
    """Sizes in pixels of a picture 900 wide; of a wider one, all of them are larger."""

    left: int = 44
    right: int = 11
    top: int = 22
    lanes: int = 260  # all of them, at most
    lane: int = 20  # at most
    gap: int = 20
    strip: int = 56
    bottom: int = 20
    font: int = 11
    line: int = 1

    def scaled(self, width_px: int) -> _Layout:
        return _Layout(*(round(size * width_px / _WIDTH) or 1 for size in self))


# Worst last, as in the timeline; a decision's code is its place in record.DECISIONS.
_NAMES = list(OUTCOMES)
_SEAM = -2
_WORSE = np.array([_NAMES.index(decision) for decision in DECISIONS])


def live_png(
    worker: NDArray[np.integer[Any]],
    start_s: NDArray[np.float64],
    end_s: NDArray[np.float64],
    decision: NDArray[np.integer[Any]],
    *,
    lanes: int,
    now_s: float,
    limits: Sequence[tuple[float, int]] = (),
    holds: Sequence[tuple[str, float, float]] = (),
    width_px: int = _WIDTH,
) -> bytes:
    """The timeline so far as a PNG picture: the lanes, and below them how many were running.

    What it costs hardly grows with the attempts. Each pixel column of a lane has the colour of the
    worst outcome that it covers; where there are more lanes than pixels, several of them share one
    in the same way. What is running now has no end yet, and is not shown.

    Args:
        worker, start_s, end_s, decision: the ended attempts, as arrays of equal length: worker
            from 0; seconds since the start of the run; place in ``revkit.record.record.DECISIONS``.
        lanes: how many lanes there are at least.
        now_s: seconds since the start of the run; the time axis reaches to it.
        limits: how many attempts were allowed to run, as (time, limit) at each change; empty: as
            many as there are lanes.
        holds: spans in which no attempt might start, as (kind, start, end); see ``draw_timeline``.
        width_px: width of the picture in pixels, at least 300.

    Raises:
        UsageError: a narrower picture.

    >>> arrays = np.array([0, 1]), np.array([0.0, 0.5]), np.array([1.0, 1.5]), np.array([0, 2])
    >>> live_png(*arrays, lanes=2, now_s=2.0)[:4]
    b'\\x89PNG'
    """
    if width_px < _NARROWEST:
        raise UsageError(f"width_px must be at least {_NARROWEST}, not {width_px}")
    layout = _Layout().scaled(width_px)
    columns = width_px - layout.left - layout.right
    lanes = int(max(lanes, worker.max(initial=-1) + 1, 1))
    span = max(now_s, float(end_s.max(initial=0.0))) or 1.0

    shared = -(-lanes // layout.lanes)  # lanes that share one row of pixels
    rows = -(-lanes // shared)
    lane = min(layout.lanes // rows, layout.lane)
    worse = _WORSE[decision]
    codes = raster.worst(
        worker // shared, start_s, end_s, worse, lanes=rows, columns=columns, span=span
    )
    if lane > 3:  # room for a seam between an attempt and the next
        wide = (end_s - start_s) * columns > 6 * span
        last = np.minimum(np.ceil(end_s[wide] / span * columns), columns).astype(int) - 1
        codes[worker[wide], last] = _SEAM
    held = _held(holds, columns, span)
    upper = _lanes(codes, held, lane, layout.line)

    peak, mean = raster.running(start_s, end_s, columns=columns, span=span)
    times, limit = (np.array(part) for part in zip(*(limits or [(0.0, lanes)]), strict=True))
    middle = (np.arange(columns) + 0.5) * span / columns
    allowed = limit[np.maximum(np.searchsorted(times, middle, side="right") - 1, 0)]
    highest = max(1, int(peak.max()), int(allowed.max()))
    lower = _strip(peak, mean, allowed, highest=highest, tall=layout.strip, thick=layout.line)

    below = layout.top + len(upper) + layout.gap
    height = below + layout.strip + layout.bottom
    canvas = np.full((height, width_px, 3), 255, dtype=np.uint8)
    canvas[layout.top : layout.top + len(upper), layout.left : -layout.right] = upper
    canvas[below : below + layout.strip, layout.left : -layout.right] = lower

    picture = Image.fromarray(canvas)
    pen = _Pen(picture, layout)
    counts = np.bincount(worse, minlength=len(_NAMES)).tolist()
    keys = [(OUTCOMES[name].colour, f"{name} ({count:,})")
            for name, count in zip(_NAMES, counts, strict=True) if count]  # fmt: skip
    keys += [(look.colour, look.label) for at, look in enumerate(HOLDS.values()) if at in held]
    pen.keys(keys)
    for number in {0, lanes - 1} if lane < 1.5 * layout.font else range(lanes):
        pen.beside(layout.top + (number // shared + 0.5) * lane, f"{number:,}")
    average = float(np.sum(end_s - start_s)) / span
    pen.above(below, f"running: mean {average:,.3g}, limit {allowed[-1]:,}")
    pen.beside(below, f"{highest:,}")
    pen.beside(below + layout.strip, "0")
    pen.times(below + layout.strip, span, columns)
    out = io.BytesIO()
    picture.save(out, "png", compress_level=3)
    return out.getvalue()


class _Pen:
    """Writes the words around the lanes and the strip."""

    def __init__(self, picture: Image.Image, layout: _Layout):
        self.draw = ImageDraw.Draw(picture)
        self.layout = layout
        self.font = _font(layout.font)

    def write(self, x: float, y: float, text: str, anchor: str) -> None:
        self.draw.text((x, y), text, fill=(60, 60, 60), font=self.font, anchor=anchor)

    def beside(self, y: float, text: str) -> None:
        self.write(self.layout.left - 5, y, text, "rm")

    def above(self, y: float, text: str) -> None:
        self.write(self.layout.left, y - 4, text, "ls")

    def keys(self, keys: Sequence[tuple[str, str]]) -> None:
        x, size = float(self.layout.left), self.layout.font
        top, base = 0.3 * self.layout.top, 0.3 * self.layout.top + 0.8 * size
        for colour, text in keys:
            self.draw.rectangle((x, top, x + size, base), fill=colour)
            self.write(x + 1.4 * size, base, text, "ls")
            x += 3 * size + self.font.getlength(text)

    def times(self, y: float, span_s: float, columns: int) -> None:
        unit, seconds = time_unit(span_s)
        span = span_s / seconds
        for tick in MaxNLocator(8).tick_values(0, span):
            if tick <= span:
                near = tick > 0.97 * span  # else it would be cut off
                x = self.layout.left + tick / span * columns
                self.write(x, y + 3, f"{tick:,.6g} {unit}", "ra" if near else "ma")


def _held(holds: Sequence[tuple[str, float, float]], columns: int, span: float) -> NDArray[Any]:
    """The kind of hold in each column, as its place in ``HOLDS``; -1 where there was none."""
    kinds = list(HOLDS)
    code = np.array([kinds.index(kind) for kind, *_ in holds], dtype=np.int64)
    start, end = (np.array([hold[at] for hold in holds], dtype=np.float64) for at in (1, 2))
    line = np.zeros(len(holds), dtype=np.int64)
    held = raster.worst(line, start, end, code, lanes=1, columns=columns, span=span)
    return held.reshape(-1)


def _lanes(codes: NDArray[Any], held: NDArray[Any], lane: int, seam: int) -> Pixels:
    """The lanes, each ``lane`` pixels high, with striped bands where nothing might start."""
    colours = np.array([_WHITE, _TRACK, *(_rgb(look.colour) for look in OUTCOMES.values())])
    picture: Pixels = colours[codes - _SEAM].repeat(lane, axis=0)
    if lane > 3:  # else there is no room between the lanes
        picture[np.arange(len(picture)) % lane >= lane - max(1, seam, lane // 6)] = _WHITE
    y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
    bare = np.repeat(codes < 0, lane, axis=0) & ((x + y) % 6 < 2)
    for at, look in enumerate(HOLDS.values()):
        picture[bare & (held == at)] = _rgb(look.colour)
    return picture


def _strip(
    peak: NDArray[Any],
    mean: NDArray[Any],
    allowed: NDArray[Any],
    *,
    highest: int,
    tall: int,
    thick: int,
) -> Pixels:
    """How many were running, the peak (pale) and the mean, under a line: the limit."""
    blue = _rgb(OUTCOMES["ok"].colour)
    level = (tall - np.arange(tall)[:, None] - 0.5) / tall * highest
    colours = np.array([_WHITE, (blue + 2 * _WHITE.astype(int)) // 3, blue], dtype=np.uint8)
    picture: Pixels = colours[(level <= peak).astype(int) + (level <= mean)]
    at = np.clip(((1 - allowed / highest) * tall).astype(int), 0, tall - 1)
    for line in range(max(1, thick)):
        picture[np.minimum(at + line, tall - 1), np.arange(len(peak))] = _INK
    picture[-1] = _GREY
    return picture


def _rgb(colour: str) -> Pixels:
    return (np.array(to_rgb(colour)) * 255).astype(np.uint8)


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size)
