"""The attempts of a run on a server with another number of workers: a discrete-event simulation."""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from .server import Attempts, Server, recover

if TYPE_CHECKING:
    from .server import Floats

__all__ = ["replay"]


def replay(
    attempts: Attempts, server: Server, workers: int, gap: float = 0.0
) -> tuple[Floats, Floats]:
    """When each attempt would have started and ended with so many workers, in seconds.

    Rows start in their order; one that is to be tried again comes first when its wait is over, and
    holds no worker until then. An attempt that the server refused takes the time that it took.

    Args:
        gap: seconds from a worker's end of an attempt to its next start.

    Returns:
        Start and end, each of shape (attempts,), since the first start.
    """
    recovered = recover(attempts, server)
    took = (attempts.end - attempts.start).tolist()
    work = np.maximum(recovered.work, 0.0).tolist()
    refused, after, wait = recovered.refused.tolist(), attempts.after.tolist(), attempts.wait
    room = math.inf if server.slots is None or server.shares else server.slots
    start, end = np.zeros(len(took)), np.zeros(len(took))

    fresh = deque(np.flatnonzero(attempts.first).tolist())
    again: list[tuple[float, int]] = []  # when it is due, attempt
    free = deque([0.0] * workers)  # when each worker without an attempt can take one
    queue: deque[int] = deque()  # at the server
    serving: list[tuple[float, int]] = []  # the progress at which it is done, attempt
    turned_away: list[tuple[float, int]] = []  # when it ends, attempt
    now = progress = 0.0

    while True:
        speed = server.speed(len(serving))
        served_at = now + (serving[0][0] - progress) / speed if serving else math.inf
        refused_at = turned_away[0][0] if turned_away else math.inf
        taken_at = math.inf
        if free and (fresh or again):
            taken_at = max(now, free[0] if fresh else max(free[0], again[0][0]))
        then = min(served_at, refused_at, taken_at)
        if then == math.inf:
            return start, end
        progress += (then - now) * speed
        now = then
        if served_at > then and refused_at > then:
            free.popleft()
            one = heapq.heappop(again)[1] if again and again[0][0] <= now else fresh.popleft()
            start[one] = now
            if refused[one]:
                heapq.heappush(turned_away, (now + took[one], one))
            elif len(serving) < room:
                heapq.heappush(serving, (progress + work[one], one))
            else:
                queue.append(one)
            continue
        one = heapq.heappop(serving if served_at <= then else turned_away)[1]
        end[one] = now
        free.append(now + gap)
        if after[one] >= 0:
            heapq.heappush(again, (now + wait[one], after[one]))
        if queue and len(serving) < room:
            waited = queue.popleft()
            heapq.heappush(serving, (progress + work[waited], waited))
