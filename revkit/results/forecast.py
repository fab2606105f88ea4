"""What ``run.what_if(...)`` gives back: :class:`WhatIf`, a table of predictions and its plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from ..display import duration, markup, number, printable, wrapped
from .whatif import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["WhatIf"]

_FIGURES = ["wall_s", "rows_per_s", "p95_ms", "mean_concurrency"]


class WhatIf:
    """A run with other numbers of workers, predicted; made by :meth:`ParallelResult.what_if`.

    Attributes:
        frame: indexed by ``max_workers`` (int64, ascending), float64 columns ``wall_s``,
            ``rows_per_s``, ``p95_ms`` (of the service time of good attempts, as the client sees
            it) and ``mean_concurrency``, all NaN where they cannot be told; ``basis`` (strings)
            says what each line rests on, or why it cannot be told. The line of the run's own
            number of workers is what was measured; an adaptive run has none.
        slots: how many requests the server works on at full speed, as fitted or given; None
            where that cannot be told.
        shares: whether more requests than slots slow down together; else they wait their turn.
        base_service_ms: mean time that the server needs for a row, without any wait for a slot;
            NaN where its slots cannot be told.
        measured: the run's own number of workers, None where it was adaptive.
        basis: what was found out about the server, in a sentence.
    """

    def __init__(self, predictions: Predictions):
        each = predictions.each
        workers = pd.Index([one.workers for one in each], dtype="int64", name="max_workers")
        figures = {name: [getattr(one, name) for one in each] for name in _FIGURES}
        self.frame = pd.DataFrame(figures, index=workers, dtype="float64")
        self.frame["basis"] = pd.array([one.basis for one in each], dtype="string")
        self.slots = predictions.server.slots
        self.shares = predictions.server.shares
        self.base_service_ms = predictions.base_ms
        self.measured = predictions.measured
        self.basis = predictions.basis

    def report(self) -> str:
        """The whole as text, for a terminal."""
        lines = [*wrapped(self.basis, indent=0), ""]
        lines.append("  workers" + "".join(f"{name:>21}" for name in _HEAD))
        for workers, *line in self.frame.itertuples():
            *cells, basis = _cells(*line)
            lines.append(f"  {workers:>7,}" + "".join(f"{cell:>21}" for cell in cells))
            lines += wrapped(basis, indent=11, hang=0)
        return printable("\n".join(lines))

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw wall time over the number of workers, with what was measured and the slots.

        Args:
            ax: matplotlib Axes to draw into; None: a new figure, which a notebook shows.

        Returns:
            The Axes; ``.figure.savefig(path)`` saves it.
        """
        from ..plot import draw_what_if

        return draw_what_if(
            self.frame["wall_s"],
            at_most=self.frame["basis"].str.contains("upper bound", regex=False).tolist(),
            ax=ax,
            measured=self.measured,
            slots=self.slots,
        )

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:  # as a run's, without what time decides
        return "WhatIf: other numbers of workers, in .frame; print() and .plot() show it"

    def _repr_html_(self) -> str:
        rows = [
            (f"{workers:,}", *map(markup.timed, _cells(*line)))
            for workers, *line in self.frame.itertuples()
        ]
        table = markup.table(["workers", *_HEAD, "basis"], rows, "revkit-words")
        return markup.page([f"<p>{markup.timed(self.basis)}</p>", table])


_HEAD = ["wall time", "rows per second", "p95 of service time", "mean concurrency"]


def _cells(
    wall_s: float, rows_per_s: float, p95_ms: float, concurrency: float, basis: str
) -> list[str]:
    return [duration(wall_s), number(rows_per_s), duration(p95_ms / 1e3), number(concurrency),
            basis]  # fmt: skip
