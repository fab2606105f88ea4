"""The draws of a call: rows with one prompt each get a reply of their own, where a model may vary.

A row's draw is the number of earlier rows in the whole call that have the same prompt. It depends
on nothing else. So a retry, a rerun, the next chunk or a recomputed partition finds the same reply
for the same row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..store.keys import ReplyKeys
from ..task.kinds import ModelTask
from .prompts import Prompts

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["DRAWS_OF_A_PARTITION", "Draws", "PartitionDraws", "PromptCounts"]

#: A partition of a Dask frame does not know the rows of the others. Its draws start at its number
#: times this.
DRAWS_OF_A_PARTITION = 2**32


class PromptCounts:
    """How many rows have each prompt, so far in a call. One for all chunks of it.

    It holds 8 bytes of each prompt's key. Two prompts that share those would only get other
    numbers than they need.
    """

    def __init__(self) -> None:
        self._once: set[int] = set()
        self._more: dict[int, int] = {}

    def add(self, key: bytes) -> int:
        """Count one more row with this key; gives how many there were before it."""
        short = int.from_bytes(key[:8], "big")
        if short not in self._once:
            self._once.add(short)
            return 0
        before = self._more.get(short, 1)
        self._more[short] = before + 1
        return before


class Draws:
    """Numbers the rows of a plan, each when it is first asked for; all rows before it come first.

    Args:
        plan: of all rows of the call, or of one chunk or partition.
        counts: of the rows before these.
        first: number of the first draw.
        rows: those of the plan that are counted; None: all.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        counts: PromptCounts | None = None,
        first: int = 0,
        rows: range | None = None,
    ):
        assert isinstance(plan.task, ModelTask)
        assert plan.client is not None
        self._plan = plan
        self._counts = PromptCounts() if counts is None else counts
        self._first = first
        #: rows before this one have their numbers
        self._next = 0 if rows is None else rows.start
        #: row -> its number, if that is not 0
        self._numbers: dict[int, int] = {}

    def number(self, row: int, key: bytes) -> int:
        """The number of a row's draw.

        Args:
            row: its position among the plan's rows.
            key: its key as the first draw.
        """
        if row >= self._next:
            self._number_all(row)
            self._add(row, key)
            self._next = row + 1
        return self._first + self._numbers.get(row, 0)

    def number_all(self) -> None:
        """Number all rows of the plan."""
        self._number_all(self._plan.total)

    def _number_all(self, end: int) -> None:
        plan = self._plan
        rows = [row for row in range(self._next, end) if row not in plan.refused]
        if rows:
            assert isinstance(plan.task, ModelTask)
            assert plan.client is not None
            prompts = Prompts(plan.task, plan.rows)
            keys = ReplyKeys(plan.task, plan.client.key_settings())
            for row in rows:
                try:
                    key = keys.key(prompts.render(row), plan.place(row)[1])
                except Exception:  # noqa: BLE001 - the attempt fails with it
                    continue
                self._add(row, key)
        self._next = max(self._next, end)

    def _add(self, row: int, key: bytes) -> None:
        if before := self._counts.add(key):
            self._numbers[row] = before


class PartitionDraws:
    """The draws of a whole plan whose rows were numbered by partition.

    Args:
        partitions: number of each partition, and how many of the plan's rows it has; in order.
    """

    def __init__(self, plan: Plan, partitions: Iterable[tuple[int, int]]):
        self._starts: list[int] = []
        self._draws: list[Draws] = []
        start = 0
        for number, rows in partitions:
            self._starts.append(start)
            first = number * DRAWS_OF_A_PARTITION
            self._draws.append(Draws(plan, first=first, rows=range(start, start + rows)))
            start += rows

    def number(self, row: int, key: bytes) -> int:
        """As :meth:`Draws.number`."""
        return self._draws[bisect_right(self._starts, row) - 1].number(row, key)
