"""How the workers of a run are shared out among its partitions."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["fair"]


def fair(total: int, demands: Sequence[int]) -> list[int]:
    """Share ``total`` out so that nobody gets more than asked for, and the rest is even.

    "Max-min fairness" (Bertsekas and Gallager, "Data Networks", 1992, section 6.5.2): the smallest
    share is as large as it can be, then the next one, and so on. What cannot be divided goes to
    those who came first.

    >>> fair(10, [1, 9, 9])
    [1, 5, 4]
    >>> fair(2, [3, 3, 3])
    [1, 1, 0]
    """
    shares = [0] * len(demands)
    left, open_ = total, sorted(range(len(demands)), key=lambda place: (demands[place], -place))
    while open_:  # the least demanding first; of equals the last one, which gets the smaller part
        place = open_.pop(0)
        shares[place] = min(demands[place], left // (len(open_) + 1))
        left -= shares[place]
    return shares
