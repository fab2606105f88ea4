"""``revkit demo``: the whole of revkit on twelve reviews, or on a file of the user's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..display import harmless, printable
from ..errors import ColumnExists, Interrupted, RunFailed, UsageError
from ..store.files import replacing

if TYPE_CHECKING:
    import pandas as pd

    from ..results.result import ParallelResult

__all__ = ["demo"]

_SHOWN = 12  # rows that are printed of a long file
_WIDTH = 100


def demo(
    *,
    model: str | None,
    workers: int,
    source: Path | None,
    on: str | None,
    target: Path | None,
    timeline: Path,
    overwrite: bool = False,
) -> int:
    """Classify, print the rows in order, the summary, the figures, and where the picture is.

    What was done before a failure or an interrupt is written to ``target`` too, before it is
    raised.

    Raises:
        UsageError: a file has a suffix that is not known, or cannot be read, or lacks the column.
        RunFailed: every row failed.
        Interrupted: the user interrupted the run.
    """
    if target is not None:
        _kind(target)
        _check_place("--output", target)
        if source is not None and source.resolve() == target.resolve():
            raise UsageError(f"--output {target} is the input itself; name another file")
    _check_place("--timeline", timeline)
    frame = _read(source)
    column = on or "review"
    try:
        run: ParallelResult = frame.llm.parallel_map(
            on=column,
            model=model,
            max_workers=workers,
            progress=True,
            overwrite=overwrite,
            # Shown again, the demo should show a run again; a user's own rows are asked once.
            store=None if source is not None else False,
        )
    except ColumnExists as error:
        raise UsageError(
            f"{source} has a column that the demo writes (sentiment or error); pass --overwrite to "
            "replace it in what is written, the file itself stays as it is"
        ) from error
    except (RunFailed, Interrupted) as error:
        _write(error.result.frame, target)
        raise
    _write(run.frame, target)
    _print_rows(run, column)
    print()
    print(run.report())
    print()
    with replacing(timeline) as (_, unfinished):
        unfinished.write_bytes(run.timeline_png())
    print(printable(f"timeline: {timeline}"))
    return 0


def _check_place(option: str, path: Path) -> None:
    """Refuse before anything is sent what could not be written afterwards."""
    parent = path.resolve().parent
    if not parent.is_dir():
        raise UsageError(f"{option} {path}: there is no directory {parent}")
    if path.is_dir() or not os.access(path if path.exists() else parent, os.W_OK):
        raise UsageError(f"{option} {path}: this cannot be written to; name another file")


def _read(source: Path | None) -> pd.DataFrame:
    import pandas as pd

    from ..api.data import load_reviews

    if source is None:
        return load_reviews()
    try:
        return pd.read_csv(source) if _kind(source) == ".csv" else pd.read_parquet(source)
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"--input {source} cannot be read: {error}") from error


def _kind(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise UsageError(f"{path}: the name must end in .csv or .parquet")
    return kind


def _write(frame: pd.DataFrame, target: Path | None) -> None:
    if target is None:
        return
    with replacing(target) as (_, unfinished):
        if _kind(target) == ".csv":
            frame.to_csv(unfinished, index=False)
        else:
            frame.to_parquet(unfinished)
    print(printable(f"written: {target} ({len(frame):,} rows)"))


def _print_rows(run: ParallelResult, column: str) -> None:
    """Each row in its original order: number, sentiment, what it is about, and the text."""
    frame = run.frame.head(_SHOWN)
    names = frame["product"] if "product" in frame.columns else [""] * len(frame)
    wide = max((len(harmless(name, 20)) for name in names), default=0)
    rows = zip(frame["sentiment"], frame["error"], names, frame[column], strict=True)
    for number, (sentiment, error, name, text) in enumerate(rows):
        ok = not isinstance(error, str)  # else missing, which is told differently by each pandas
        what = f"{sentiment}" if ok else "failed"
        line = f"{number:>3}  {what:<8}  {harmless(name, 20):<{wide}}  "
        print(printable(line + harmless(text if ok else error, max(20, _WIDTH - len(line)))))
    if len(run.frame) > _SHOWN:
        print(f"     ... and {len(run.frame) - _SHOWN:,} more rows")
