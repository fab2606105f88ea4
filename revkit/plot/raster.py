"""Attempts by pixel column: what to draw where there are more of them than pixels.

Columns are of equal width and cover the time from 0 to ``span``. Nothing that was there is lost: a
column shows the worst of what it covers, and the most attempts that were running at once as well
as their mean. Its cost grows with the attempts as sorting does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.number[Any]]
    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

__all__ = ["merged", "running", "stretches", "worst"]


def worst(
    lane: Numbers, start: Numbers, end: Numbers, code: Numbers, *, lanes: int, columns: int,
    span: float,
) -> Integers:  # fmt: skip
    """The highest code of the attempts that touch each column of each lane.

    An attempt takes up one column at least, and two where its code is not 0, so that a short
    failure is seen.

    Args:
        lane, start, end, code: of each attempt; integers from 0 but for the times.

    Returns:
        Shape (lanes, columns): -1 where there was no attempt.

    >>> worst(np.array([0, 1]), np.array([0.0, 1.0]), np.array([2.0, 1.0]), np.array([0, 3]),
    ...       lanes=2, columns=4, span=4.0).tolist()
    [[0, 0, -1, -1], [-1, 3, 3, -1]]
    """
    first = np.clip(start / span * columns, 0, columns - 1).astype(np.int64)
    last = np.ceil(np.asarray(end) / span * columns).astype(np.int64)
    last = np.clip(np.maximum(last, first + np.where(code > 0, 2, 1)), 0, columns)
    out = np.full((lanes, columns), -1, dtype=np.int64)
    for value in np.flatnonzero(np.bincount(code)):  # ascending
        chosen = code == value
        row = lane[chosen].astype(np.int64) * (columns + 1)
        size = lanes * (columns + 1)
        begun = np.bincount(row + first[chosen], minlength=size)
        ended = np.bincount(row + last[chosen], minlength=size)
        covered = (begun - ended).reshape(lanes, columns + 1).cumsum(axis=1)[:, :columns] > 0
        out[covered] = value
    return out


def stretches(mask: NDArray[np.bool_]) -> tuple[Integers, Integers, Integers]:
    """The unbroken stretches of a mask's rows: row, first column, column after the last one.

    >>> [part.tolist() for part in stretches(np.array([[True, True, False, True]]))]
    [[0, 0], [0, 3], [2, 4]]
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, first = np.nonzero(edges == 1)
    return row, first, np.nonzero(edges == -1)[1]


def running(start: Numbers, end: Numbers, *, columns: int, span: float) -> tuple[Integers, Floats]:
    """How many attempts were running in each column: the most at once, and the mean.

    >>> peak, mean = running(np.array([0.0, 0.5]), np.array([1.0, 2.0]), columns=2, span=2.0)
    >>> peak.tolist(), mean.tolist()
    ([2, 1], [1.5, 1.0])
    """
    edges = np.linspace(0, span, columns + 1)
    starts, ends = np.sort(start), np.sort(end)
    busy = _since(starts, edges) - _since(ends, edges)  # seconds of all attempts up to each edge
    # Ends come first: a worker that goes from one attempt to the next is never two.
    times = np.concatenate([ends, starts])
    order = np.argsort(times, kind="stable")
    change = np.repeat([-1, 1], [len(ends), len(starts)])[order]
    # What lasts no time at all would end before it starts, and count as none.
    count = np.concatenate([[0], np.cumsum(change)])
    times = times[order]
    entering = np.searchsorted(times, edges[:-1], side="right")
    leaving = np.searchsorted(times, edges[1:], side="left")
    # Of the slices from each ``entering`` to ``leaving``, and those between them, every other one.
    slices = np.stack([entering, leaving + 1], axis=1).ravel()
    peak = np.maximum.reduceat(np.append(count, 0), slices)[::2]
    return np.maximum(peak, 0), np.maximum(np.diff(busy) * columns / span, 0.0)


def _since(times: Numbers, edges: Floats) -> Floats:
    """The sum of what has passed at each edge since those of the (sorted) times before it."""
    before = np.searchsorted(times, edges)
    sums = np.concatenate([[0.0], np.cumsum(times)])
    return np.asarray(before * edges - sums[before], dtype=np.float64)


def merged(start: Numbers, end: Numbers, gap: float) -> tuple[Floats, Floats]:
    """Spans, with those that overlap or lie no more than ``gap`` apart made one.

    >>> [part.tolist() for part in merged(np.array([5.0, 0.0]), np.array([6.0, 4.5]), 1.0)]
    [[0.0], [6.0]]
    """
    order = np.argsort(start, kind="stable")
    start = np.asarray(start, dtype=np.float64)[order]
    reached = np.maximum.accumulate(np.asarray(end, dtype=np.float64)[order])
    if not len(start):
        return start, reached
    apart = start[1:] > reached[:-1] + gap
    return start[np.append(True, apart)], reached[np.append(apart, True)]
