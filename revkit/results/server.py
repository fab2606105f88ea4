"""A server that works on many requests at once, and what the attempts of a run asked of it.

What a client measures is not what a row costs. A server works on so many requests at once, its
slots; with more workers than slots a request waits at the server, and its service time, as the
client sees it, includes that wait. Recovered is what each attempt asked of the server alone, its
base time. There are two kinds of server:

- One *queues*: an attempt begins when a slot is free, first come first served, so its base time
  runs from then to its end.
- The other *shares*: it takes everybody at once and slows down, so ``n`` attempts on ``s`` slots
  progress at ``s / n`` of the full speed each ("processor sharing", Kleinrock, "Queueing Systems",
  vol. 2, 1976, sec. 4.4), and the base time is the progress made between start and end.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

__all__ = ["Attempts", "Recovered", "Running", "Server", "base_times", "recover"]


class Server(NamedTuple):
    """How a server works on many requests at once.

    Attributes:
        slots: how many it works on at full speed; None: no limit.
        shares: above that, all go on at a lower speed each; else the later ones wait their turn.
    """

    slots: int | None = None
    shares: bool = False

    def speed(self, running: int) -> float:
        """Of each attempt, 1 at most, while so many run on the server."""
        if not self.shares or self.slots is None or running <= self.slots:
            return 1.0
        return self.slots / running


@dataclass(frozen=True)
class Attempts:
    """The attempts of a run as columns in the order of their starts, each of shape (attempts,).

    Attributes:
        start, end: in seconds, since the first start.
        ok: it gave the row its values.
        first: it is the first one of its row.
        after: place of the row's next attempt, -1 where there is none.
        wait: seconds from its end to the start of that one.
    """

    start: Floats
    end: Floats
    ok: Bools
    first: Bools
    after: Ints
    wait: Floats

    @classmethod
    def of(cls, row: Ints, start: Floats, end: Floats, ok: Bools) -> Attempts:
        """From columns in any order; at least one attempt."""
        order = np.lexsort((row, start))  # rows that start together, in their order
        row, start, end, ok = row[order], start[order], end[order], ok[order]
        by_row = np.argsort(row, kind="stable")
        same = row[by_row][1:] == row[by_row][:-1]
        before, next_one = by_row[:-1][same], by_row[1:][same]
        first, after, wait = np.ones(len(row), bool), np.full(len(row), -1), np.zeros(len(row))
        first[next_one] = False
        after[before] = next_one
        wait[before] = np.maximum(start[next_one] - end[before], 0.0)
        return cls(start - start[0], end - start[0], ok, first, after, wait)


class Recovered(NamedTuple):
    """What a server did with the attempts.

    Attributes:
        work: base time of each attempt in seconds; below 0 where that server cannot have done it.
        refused: it failed before its turn had come, and so never held a slot.
        speed: at which each attempt went on when it ended, 1 at most.
    """

    work: Floats
    refused: Bools
    speed: Floats


class Running:
    """How many attempts were running, from when on."""

    def __init__(self, attempts: Attempts):
        times = np.concatenate([attempts.end, attempts.start])  # of one time, ends come first
        order = np.argsort(times, kind="stable")
        self.times = times[order]
        self.count = np.cumsum(np.repeat([-1, 1], len(attempts.start))[order])

    def most(self) -> int:
        return int(self.count.max())

    def least(self) -> int:
        """So many or fewer were running for 5 % of the time."""
        order = np.argsort(self.count[:-1], kind="stable")
        seconds = np.cumsum(np.diff(self.times)[order])
        if not len(seconds) or not seconds[-1]:
            return self.most()
        return int(self.count[order][np.searchsorted(seconds, 0.05 * seconds[-1])])

    def shared(self, attempts: Attempts, slots: int) -> Recovered:
        """What a server that shares so many slots did."""
        speed = np.minimum(1.0, slots / np.maximum(self.count, 1))
        progress = np.concatenate([[0.0], np.cumsum(np.diff(self.times) * speed[:-1])])
        begun = np.interp(attempts.start, self.times, progress)
        done = np.interp(attempts.end, self.times, progress)
        at_end = speed[np.maximum(np.searchsorted(self.times, attempts.end) - 1, 0)]
        return Recovered(done - begun, np.zeros(len(begun), bool), at_end)


def _queued(attempts: Attempts, slots: int) -> Recovered:
    """What a server did on which all but so many waited, first come first served."""
    busy: list[float] = []  # when each slot that is taken is free again
    work, refused = [], []
    columns = attempts.start.tolist(), attempts.end.tolist(), attempts.ok.tolist()
    for start, end, ok in zip(*columns, strict=True):
        full = len(busy) == slots
        begins = max(start, busy[0]) if full else start
        work.append(end - begins)
        refused.append(end < begins and not ok)
        if refused[-1]:
            continue
        if full:
            heapq.heapreplace(busy, max(end, begins))
        else:
            heapq.heappush(busy, end)
    return Recovered(np.array(work), np.array(refused, bool), np.ones(len(work)))


def recover(attempts: Attempts, server: Server, running: Running | None = None) -> Recovered:
    """What that server did, while so many attempts were running."""
    if server.slots is None:
        took = attempts.end - attempts.start
        return Recovered(took, np.zeros(len(took), bool), np.ones(len(took)))
    if server.shares:
        return (running or Running(attempts)).shared(attempts, server.slots)
    return _queued(attempts, server.slots)


def base_times(attempts: Attempts, server: Server) -> Floats:
    """What each attempt asked of that server alone, in seconds; shape (attempts,)."""
    return recover(attempts, server).work
