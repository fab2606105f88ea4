"""The pictures of a run, drawn with matplotlib's ``Figure`` itself.

pyplot is never imported, so a run draws in a server, in a thread and beside the user's own figures
without touching any of them. A reading order:

    figure      figures and axes that a notebook shows without pyplot
    looks       how each kind of thing looks: colours and hatches
    raster      attempts by pixel column, where there are more of them than pixels
    lanes       what is drawn in the lanes of a timeline: bars, rows, waits
    timeline    one lane a worker, one bar an attempt; below, how many were running
    latency     how long the good attempts took
    panel       all of it on one page
    run         what the timeline shows, from the record of a run
    whatif      wall time over the number of workers, predicted
    confusion   the confusion matrix of an evaluation
    live        the timeline of a run that still goes on, in milliseconds

Importing this package imports matplotlib: import it where something is drawn, not at the top.
"""

from __future__ import annotations

from .confusion import draw_confusion
from .figure import NotebookAxes, NotebookFigure, new_axes, new_figure, png
from .latency import draw_latency
from .live import live_png
from .panel import draw_panel
from .run import timeline_of
from .timeline import TimelineAxes, draw_timeline, timeline_png
from .whatif import draw_what_if

__all__ = [
    "NotebookAxes",
    "NotebookFigure",
    "TimelineAxes",
    "draw_confusion",
    "draw_latency",
    "draw_panel",
    "draw_timeline",
    "draw_what_if",
    "live_png",
    "new_axes",
    "new_figure",
    "png",
    "timeline_of",
    "timeline_png",
]
