"""The confusion matrix of an evaluation as a heat map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from ..errors import one_line
from .figure import NotebookAxes, figure_of, new_axes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw_confusion"]

_WRITTEN = 30  # classes up to which the counts are written
_TICKS = 40  # classes up to which each has its name at the axes
_NAME = 24  # characters of a class that are shown
_DARK = 0.715  # share from which white is read better than black on its blue


def draw_confusion(
    confusion: pd.DataFrame, *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw a confusion matrix: a row for each label, a column for each prediction.

    Colour is the share of the label's rows, from white (none) to dark blue (all): one hue, whose
    lightness alone tells it, in print and to everyone. The count is written in each cell, up to
    30 classes.

    Args:
        confusion: counts; the same classes in its index and its columns.
        ax: where to draw; by default new axes of a figure of fitting size.
        title: above new or given axes.

    Returns:
        ``ax``, or new ``NotebookAxes``, which a notebook shows.

    >>> import pandas as pd
    >>> counts = pd.DataFrame([[8, 2], [1, 9]], index=["no", "yes"], columns=["no", "yes"])
    >>> ax = draw_confusion(counts)
    >>> ax.get_xlabel(), [text.get_text() for text in ax.texts]
    ('Predicted', ['8', '2', '1', '9'])
    """
    counts = confusion.to_numpy(dtype=float)
    lines = [one_line(str(name)) for name in confusion.index]
    names = [line if len(line) <= _NAME else line[: _NAME - 1] + "…" for line in lines]
    if ax is None:
        ax = _new_axes(len(names), max(map(len, names), default=0))
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _WRITTEN:
        size = 10 if len(names) <= 12 else 7
        for row, column in np.ndindex(counts.shape):
            dark = shares[row, column] > _DARK
            ax.text(column, row, f"{counts[row, column]:,.0f}", ha="center", va="center",
                    fontsize=size, color="white" if dark else "black")  # fmt: skip
    every = max(1, math.ceil(len(names) / _TICKS))
    ticks, named = range(0, len(names), every), names[::every]
    ax.set_xticks(ticks, named, rotation=30, ha="right", rotation_mode="anchor", parse_math=False)
    ax.set_yticks(ticks, named, parse_math=False)
    ax.tick_params(length=0)
    ax.set_xlabel("Predicted")
    ax.set_ylabel("Label")
    ax.spines[:].set_visible(False)
    bar = figure_of(ax).colorbar(image, ax=ax, format="{x:.0%}", shrink=0.8)
    bar.outline.set_visible(False)
    bar.set_label("Share of the label's rows")
    if title:
        ax.set_title(one_line(title), loc="left", fontsize="medium", parse_math=False)
    return ax


def _new_axes(classes: int, longest: int) -> NotebookAxes:
    side = min(max(0.55 * classes, 2.2), 10.0)
    names = 0.075 * longest
    return new_axes(side + names / 2 + 1.0, width=side + names + 2.0)
