"""A what-if: wall time over the number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from .figure import new_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["draw_what_if"]

_BLUE, _RED, _GREY = "#5b9bd5", "#a3202f", "0.45"


def draw_what_if(
    wall_s: pd.Series,
    *,
    at_most: Sequence[bool] | None = None,
    ax: Axes | None = None,
    measured: int | None,
    slots: int | None,
) -> Axes:
    """Draw wall time in seconds over the number of workers, both on logarithmic axes.

    Args:
        wall_s: by number of workers; NaN is marked at the foot.
        at_most: which of them are upper bounds.
        ax: where to draw; by default new axes.
        measured: the number of workers that was measured, None where there is none.
        slots: of the server, None where they cannot be told.

    >>> import pandas as pd
    >>> wall_s = pd.Series([8.0, 4.0, float("nan")], index=[1, 2, 4])
    >>> draw_what_if(wall_s, measured=2, slots=None).get_ylabel()
    'Wall time (s)'
    """
    if ax is None:
        ax = new_axes(3.6, width=7.0)
    ax.set_xscale("log", base=2)
    known = wall_s.dropna()
    if (known > 0).any():
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
    ax.plot(known.index, known, color=_BLUE, marker="o", markersize=5, label="predicted")
    bounds = wall_s[list(at_most)] if at_most is not None else wall_s[:0]
    if len(bounds):
        ax.plot(
            bounds.index, bounds, color=_BLUE, marker="o", markersize=7, markerfacecolor="white",
            linestyle="none", label="at most",
        )  # fmt: skip
    if measured is not None:
        ax.plot(
            [measured], [wall_s[measured]], color=_RED, marker="D", markersize=8,
            linestyle="none", label="measured",
        )  # fmt: skip
    if slots is not None:
        ax.axvline(slots, color=_GREY, linestyle="--", linewidth=1.2, label=f"{slots} slots")
    unknown = wall_s.index[wall_s.isna()]
    if len(unknown):
        ax.plot(
            unknown, [0.03] * len(unknown), color=_GREY, marker="x", linestyle="none",
            transform=ax.get_xaxis_transform(), label="cannot tell",
        )  # fmt: skip
    ax.set_xticks(wall_s.index.tolist())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    ax.set_xlabel("Workers")
    ax.set_ylabel("Wall time (s)")
    ax.grid(axis="y", color="0.5", alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return ax
