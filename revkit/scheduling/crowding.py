"""How many attempts run at once on a machine that has no room for all of them.

An attempt is crowded out when the process has no file descriptor left for its connection. That says
nothing about its row or the server. It is no attempt of the row's, and it is made again beside
fewer others.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Crowding"]

#: Seconds before an attempt that was crowded out is made again: first, and at most.
_FIRST: Final = 0.05
_LONGEST: Final = 1.0


class Crowding:
    """The number of attempts for which the machine has room.

    Args:
        most: never more attempts than these run.

    Attributes:
        limit: how many may run now.
        times: how often an attempt was crowded out.
    """

    def __init__(self, most: int):
        self.limit = self._most = most
        self.times = 0
        #: attempts that were crowded out, and that ended well, since the other happened
        self._in_a_row = self._good = 0

    def crowded_out(self, others: int) -> float:
        """An attempt had no room beside so many others; gives the seconds until it is made again.

        >>> crowding = Crowding(8)
        >>> crowding.crowded_out(5), crowding.limit
        (0.05, 5)
        """
        self.limit = max(1, min(self.limit, others))
        self.times += 1
        self._good = 0
        self._in_a_row += 1
        return min(_LONGEST, _FIRST * 2.0 ** min(self._in_a_row // self.limit, 10))

    def succeeded(self) -> None:
        """An attempt ended well. Where all that may run did so, one more may."""
        if self.limit < self._most:
            self._in_a_row = 0
            self._good += 1
            if self._good >= self.limit:
                self._good = 0
                self.limit += 1
