"""The rows of a run, as columns of plain Python values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Rows"]


class Rows:
    """The rows of a run, as columns.

    Args:
        names: the row's keys.
        columns: a list of values for each name.
        scalar: a callable gets the one value itself, not a mapping of it.
        samples: rows that each line of the columns stands for.
    """

    def __init__(
        self,
        names: Sequence[Any],
        columns: Sequence[list[Any]],
        *,
        scalar: bool = False,
        samples: int = 1,
    ):
        self.names = tuple(names)
        self.columns = list(columns)
        self._pairs = list(zip(self.names, self.columns, strict=True))
        self.scalar = scalar
        self.samples = samples

    def mapping(self, row: int) -> dict[Any, Any]:
        """The row as a new dict."""
        line = row // self.samples
        return {name: column[line] for name, column in self._pairs}

    def repeated(self, samples: int) -> Rows:
        """So many rows for each line."""
        return Rows(self.names, self.columns, scalar=self.scalar, samples=samples)

    def only(self, rows: Sequence[int]) -> Rows:
        """Some of the rows, in the order given."""
        lines = [row // self.samples for row in rows]
        columns = [[column[line] for line in lines] for column in self.columns]
        return Rows(self.names, columns, scalar=self.scalar)

    def item(self, row: int) -> Any:
        """The row as a callable gets it."""
        return self.columns[0][row // self.samples] if self.scalar else self.mapping(row)
