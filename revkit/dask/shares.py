"""How the workers of a run are shared out among its partitions."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["fair"]


def fair(total: int, demands: Sequence[int]) -> list[int]:
    """Share ``total`` out so that nobody gets more than asked for, and the rest is even.

    "Max-min fairness" (Bertsekas and Gallager, "Data Networks", 1992, section 6.5.2): the smallest
    share is as large as it can be, then the next one, and so on. What cannot be divided goes to
    those who came first, so that nobody is passed over for those who come later and want more.

    >>> fair(10, [1, 9, 9])
    [1, 5, 4]
    >>> fair(2, [1, 3, 3])
    [1, 1, 0]
    """
    level, left = 0, total
    for place, demand in enumerate(sorted(demands)):
        others = len(demands) - place  # who want this much or more
        if (demand - level) * others > left:
            level, left = level + left // others, left % others
            break
        level, left = demand, left - (demand - level) * others
    shares = []
    for demand in demands:
        extra = int(demand > level and left > 0)
        shares.append(min(demand, level) + extra)
        left -= extra
    return shares
