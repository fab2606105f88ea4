"""``revkit demo``: the whole of revkit on twelve reviews, or on a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .display import harmless, printable
from .errors import Interrupted, RunFailed, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from .result import ParallelResult

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
        if not target.resolve().parent.is_dir():
            raise UsageError(f"--output {target}: there is no directory {target.resolve().parent}")
    frame = _read(source)
    column = on or "review"
    try:
        run: ParallelResult = frame.llm.parallel_map(
            on=column, model=model, max_workers=workers, progress=True
        )
    except (RunFailed, Interrupted) as error:
        _write(error.result.frame, target)
        raise
    _print_rows(run, column)
    print()
    print(run.report())
    print()
    timeline.write_bytes(run.timeline_png())
    print(printable(f"timeline: {timeline}"))
    _write(run.frame, target)
    return 0


def _read(source: Path | None) -> pd.DataFrame:
    import pandas as pd

    from .data import load_reviews

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
    if _kind(target) == ".csv":
        frame.to_csv(target, index=False)
    else:
        frame.to_parquet(target)
    print(printable(f"written: {target} ({len(frame):,} rows)"))


def _print_rows(run: ParallelResult, column: str) -> None:
    """Each row in its original order: number, sentiment, what it is about, and the text."""
    frame = run.frame.head(_SHOWN)
    names = frame["product"] if "product" in frame.columns else [""] * len(frame)
    wide = max((len(harmless(name, 20)) for name in names), default=0)
    rows = zip(frame["sentiment"], frame["error"], names, frame[column], strict=True)
    for number, (sentiment, error, name, text) in enumerate(rows, 1):
        ok = error is None or error != error or not isinstance(error, str)
        what = f"{sentiment}" if ok else "failed"
        line = f"{number:>3}  {what:<8}  {harmless(name, 20):<{wide}}  "
        print(printable(line + harmless(text if ok else error, max(20, _WIDTH - len(line)))))
    if len(run.frame) > _SHOWN:
        print(f"     ... and {len(run.frame) - _SHOWN:,} more rows")
