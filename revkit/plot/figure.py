"""Figures and axes that a notebook shows, though pyplot knows nothing of them.

A notebook shows what pyplot has opened. These show themselves, with the one method that notebooks
ask for. Pictures are opaque, on the background of the user's own matplotlib style (white by
default), so that they read the same on a light page, on a dark one and in print.
"""

from __future__ import annotations

import io
from typing import TypeVar, cast

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

__all__ = ["DPI", "WIDTH", "NotebookAxes", "NotebookFigure", "new_axes", "new_figure", "png"]

DPI = 144  # of pictures: sharp on high-density screens, and still small
WIDTH = 9.0  # of figures, in inches


class NotebookFigure(Figure):
    """A figure that a notebook shows when it is the last expression of a cell."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return _shown(self)


class NotebookAxes(Axes):
    """Axes whose figure a notebook shows when they are the last expression of a cell.

    They are ordinary matplotlib ``Axes``; change them (``ax.set_title(...)``), then write ``ax``.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return _shown(figure_of(self))


AnAxes = TypeVar("AnAxes", bound=NotebookAxes)


def new_figure(height: float, width: float = WIDTH) -> NotebookFigure:
    """An empty figure of that height and width in inches, with constrained layout."""
    figure = NotebookFigure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(
    height: float,
    kind: type[AnAxes] = NotebookAxes,  # type: ignore[assignment]
    *,
    width: float = WIDTH,
) -> AnAxes:
    """Axes that fill a new figure of that height and width in inches.

    >>> ax = new_axes(3.0)
    >>> ax.figure.get_size_inches().tolist()
    [9.0, 3.0]
    """
    return cast(AnAxes, new_figure(height, width).add_subplot(axes_class=kind))


def figure_of(ax: Axes) -> Figure:
    """The whole figure in which axes stand, also where that is divided into subfigures."""
    figure = ax.figure
    while isinstance(figure, SubFigure):
        figure = figure.figure
    assert figure is not None  # the axes were taken out of it
    return figure


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as PNG, opaque and of its full size whatever the user's rcParams say."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, transparent=False, bbox_inches=figure.bbox_inches)
    return out.getvalue()


def _shown(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """What a notebook is given: the picture, and how large it is shown, in CSS pixels."""
    width, height = (round(inches * 100) for inches in figure.get_size_inches())
    return png(figure), {"width": width, "height": height}
