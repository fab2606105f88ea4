"""What frames have in common in every version of pandas: the string type, and copies."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import pandas as pd

__all__ = ["ATTRS", "STRING", "same_rows", "snapshot", "strings"]

#: Under this key a frame's ``attrs`` note what revkit wrote: column -> fingerprint of the task.
ATTRS = "revkit"

#: pandas 3 has a default string type of its own; before it, the nullable one serves.
STRING: Any = "str" if int(pd.__version__.split(".")[0]) >= 3 else "string"


def strings(values: list[Any]) -> Any:
    """Strings, in which half of a surrogate pair, that neither Arrow nor a file takes, is spelt."""
    try:
        return pd.array(values, dtype=STRING)
    except UnicodeEncodeError:
        spelt = [v and v.encode("utf-8", "backslashreplace").decode() for v in values]
        return pd.array(spelt, dtype=STRING)


def snapshot(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as it is now, whatever is done to the original later.

    pandas 3 copies a column only when one of the two is written to; pandas 2 must copy at once.
    """
    return frame.copy(deep=STRING != "str")


def same_rows(frame: pd.DataFrame, before: pd.DataFrame, columns: Iterable[Hashable]) -> bool:
    """Whether a frame still has the rows, and the values in ``columns``, that it had before."""
    return (
        len(frame) == len(before)
        and frame.index.equals(before.index)
        and all(
            column in frame.columns and frame[column].equals(before[column]) for column in columns
        )
    )
