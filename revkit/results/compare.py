"""Two runs on the same rows, side by side: what ``run.compare(other)`` gives.

Rows are compared by position. Two values of an output agree where they are equal: labels and text
exactly, numbers to one part in a thousand million, lists item by item in their order, and a missing
value with a missing one only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import display
from ..errors import UsageError, plural
from ..tables.dtypes import ATTRS, STRING

if TYPE_CHECKING:
    from .result import ParallelResult

__all__ = ["Comparison", "compare"]

_RUNS = ("before", "after")
_COUNTS = ("succeeded", "failed", "cancelled", "not_started", "from_store", "duplicates",
           "attempts", "retries")  # fmt: skip
#: Figures of a whole run, and what they are called in a report.
_TIMES = {
    "wall_s": "total time",
    "rows_per_s": "rows per second",
    "mean_concurrency": "mean concurrency",
}
_TOLERANCE = 1e-9  # relative
_LISTS = (list, tuple, np.ndarray)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Two runs on the same rows; a notebook shows all of it.

    Attributes:
        models: the models' names, of the run before and of the one after; None for a function.
        rows: rows that each run had.
        ok_in_both: rows that are ok in both runs.
        ok_in_one: rows that are ok in one of them only.
        agreement: one line for each output that both runs have, indexed by its name:
            ``compared`` (int64, the rows that are ok in both), ``agreed`` (int64, those with equal
            values), ``share`` (float64, 0 to 1; NaN where no row was compared).
        changed: one line for each row and output that is not the same, in row order: ``row``
            (position from 0), ``index`` (its label in the frame), ``item`` (its inputs),
            ``output``, ``before`` and ``after`` (its values), ``error``. A row that is ok in one
            run only has the other one's error there; it is NA where two values differ.
        crosstabs: for each output that is a class output in both, how often each label before (a
            row) became each label after (a column), int64, in declared order; of the rows that
            are ok in both.
        counts: rows and attempts of each run, int64; the index is ``before``, ``after``.
        time: of each run ``wall_s``, ``rows_per_s`` and ``mean_concurrency``, float64, as in
            ``run.metrics``.
        latency: of each run, as ``run.latency``: milliseconds, float64.
        usage: of each run, as ``run.usage``: tokens (Int64) and ``cost_usd`` (Float64).
    """

    models: tuple[str | None, str | None]
    rows: int
    ok_in_both: int
    ok_in_one: int
    agreement: pd.DataFrame
    changed: pd.DataFrame
    crosstabs: Mapping[str, pd.DataFrame]
    counts: pd.DataFrame
    time: pd.DataFrame
    latency: pd.DataFrame
    usage: pd.DataFrame

    def report(self) -> str:
        """The whole as text, for a terminal."""
        return display.sections_text(self._heads(), self._sections())

    def __repr__(self) -> str:
        return "Comparison: " + "\n".join(self._heads()[: 1 + len(self.agreement)])

    def _repr_html_(self) -> str:
        return display.sections_html(self._heads(), self._sections())

    def _heads(self) -> list[str]:
        one = f", {self.ok_in_one:,} ok in one only" if self.ok_in_one else ""
        rows = "row" if self.rows == 1 else "rows"
        heads = [f"{self.rows:,} {rows}, {self.ok_in_both:,} ok in both{one}"]
        for name, agreed in self.agreement["agreed"].items():
            share = f" ({agreed / self.ok_in_both:.1%})" if self.ok_in_both else ""
            name = display.harmless(name, 40)
            heads.append(f"{name}: {agreed:,} of {self.ok_in_both:,} agree{share}")
        models = [m if m is None else display.harmless(m, 80) for m in self.models]
        if models[0] != models[1]:
            before, after = ("a function" if model is None else model for model in models)
            heads.append(f"before: {before}; after: {after}")
        return heads

    def _sections(self) -> list[display.Section]:
        spans = self.latency.map(lambda ms: display.duration(ms / 1e3))
        whole = self.time.map(display.number)
        whole["wall_s"] = self.time["wall_s"].map(display.duration)
        whole = whole.rename(columns=_TIMES)
        usage = self.usage.astype(object)
        usage["cost_usd"] = [None if pd.isna(x) else display.dollars(x) for x in usage["cost_usd"]]
        return [
            *(display.Section(name, table) for name, table in self.crosstabs.items()),
            display.Section("rows and attempts", self.counts.T),
            display.Section("the whole run", whole.T, timed=True),
            display.Section("latency of good attempts", spans.T, timed=True, line="service time"),
            display.Section("tokens", usage.T),
        ]


def compare(before: ParallelResult, after: ParallelResult) -> Comparison:
    """Compare two runs on the same rows, by position.

    The rows are taken for the same where every input that both tasks have under one name holds the
    same values; inputs that revkit wrote are left out of that. Where they have no input in common,
    the frames' indexes must be equal.

    Raises:
        UsageError: the runs are not on the same rows, or have no output in common.
    """
    _check_rows(before, after)
    shared = [name for name in before.outputs if name in after.outputs]
    if not shared:
        raise UsageError(
            f"the runs have no output in common: the first one has {_named(before.outputs)}, the "
            f"second one {_named(after.outputs)}; run them with the same name for the output "
            '(output="…" for a template or a function)'
        )
    ok = [run._ok for run in (before, after)]
    both, one = ok[0] & ok[1], ok[0] ^ ok[1]
    agreement: dict[str, int] = {}
    changes: list[tuple[int, str, Any, Any]] = []
    crosstabs: dict[str, pd.DataFrame] = {}
    for name in shared:
        values = [_values(run, name) for run in (before, after)]
        differ = [
            row for row in np.flatnonzero(both).tolist() if not _same(*(v[row] for v in values))
        ]
        agreement[name] = int(both.sum()) - len(differ)
        rows = sorted([*differ, *np.flatnonzero(one).tolist()])
        changes += [(row, name, values[0][row], values[1][row]) for row in rows]
        labels = before.outputs[name], after.outputs[name]
        if labels[0] and labels[1]:
            pairs = [(values[0][row], values[1][row]) for row in np.flatnonzero(both).tolist()]
            crosstabs[name] = _crosstab([*labels[0], *labels[1]], pairs)
    changes.sort(key=lambda change: change[0])  # stable: the outputs of a row stay in their order
    return Comparison(
        models=(before.model_name, after.model_name),
        rows=len(both),
        ok_in_both=int(both.sum()),
        ok_in_one=int(one.sum()),
        agreement=_agreement(agreement, int(both.sum())),
        changed=_changed(before, after, changes),
        crosstabs=crosstabs,
        counts=_side_by_side({n: getattr(r.metrics, n) for n in _COUNTS} for r in (before, after)),
        time=_side_by_side({n: getattr(r.metrics, n) for n in _TIMES} for r in (before, after)),
        latency=_side_by_side(r.latency.to_dict() for r in (before, after)),
        usage=_usage(before, after),
    )


def _check_rows(before: ParallelResult, after: ParallelResult) -> None:
    first, second = before._rows, after._rows
    total, other = len(before._index), len(after._index)
    if total != other:
        raise UsageError(
            f"the runs are not on the same rows: the first one has {total:,}, the second one "
            f"{other:,}; run both on the same frame"
        )
    written = {*before.frame.attrs.get(ATTRS, {}), *after.frame.attrs.get(ATTRS, {})}
    shared = [name for name in first.names if name in second.names and str(name) not in written]
    if not shared and not before._index.equals(after._index):
        raise UsageError(
            "the runs cannot be told to be on the same rows: their tasks have no input in common, "
            "and their frames have different indexes; run both on the same frame"
        )
    for name in shared:
        columns = [rows.columns[rows.names.index(name)] for rows in (first, second)]
        differ = [row for row, pair in enumerate(zip(*columns, strict=True)) if not _same(*pair)]
        if differ:
            raise UsageError(
                "the runs are not on the same rows: the input "
                f'"{display.harmless(name, 60)}" differs in {len(differ):,} of '
                f"{plural(total, 'row')}, first in row {differ[0]}; run both on the same frame, in "
                "the same order"
            )


def _values(run: ParallelResult, output: str) -> list[Any]:
    values: list[Any] = run._values[run._columns[output]].tolist()
    return values


def _same(a: Any, b: Any) -> bool:
    """Whether two values agree; see the head of this file."""
    if a is b:
        return True
    if isinstance(a, _LISTS) and isinstance(b, _LISTS):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    try:
        if _missing(a) or _missing(b):
            return _missing(a) and _missing(b)
        if isinstance(a, float) or isinstance(b, float):
            return math.isclose(a, b, rel_tol=_TOLERANCE)
        return bool(a == b)
    except (ArithmeticError, TypeError, ValueError):  # of two kinds that cannot be compared
        return False


def _missing(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _agreement(agreed: Mapping[str, int], compared: int) -> pd.DataFrame:
    counts = np.array(list(agreed.values()), dtype=np.int64)
    return pd.DataFrame(
        {
            "compared": np.full(len(counts), compared),
            "agreed": counts,
            "share": counts / compared if compared else np.full(len(counts), np.nan),
        },
        index=pd.Index(list(agreed), name="output", tupleize_cols=False),
    )


def _changed(
    before: ParallelResult, after: ParallelResult, changes: Sequence[tuple[int, str, Any, Any]]
) -> pd.DataFrame:
    rows = [row for row, *_ in changes]

    def objects(values: Iterable[Any]) -> Any:
        return pd.Series(list(values), dtype=object).array

    both_errors = [(before._errors[row], after._errors[row]) for row in rows]
    errors = [last if pd.isna(first) else first for first, last in both_errors]
    return pd.DataFrame(
        {
            "row": np.array(rows, dtype=np.int64),
            "index": objects(before._index[row] for row in rows),
            "item": objects(before._rows.item(row * before.repeat) for row in rows),
            "output": pd.array([name for _, name, *_ in changes], dtype=STRING),
            "before": objects(value for *_, value, _ in changes),
            "after": objects(value for *_, value in changes),
            "error": pd.array(errors, dtype=STRING),
        }
    )


def _crosstab(declared: Iterable[Any], pairs: Iterable[tuple[Any, Any]]) -> pd.DataFrame:
    """Labels before by labels after; a missing one is in neither."""
    labels = list(dict.fromkeys(declared))
    place = {label: at for at, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for was, became in pairs:
        if was in place and became in place:
            counts[place[was], place[became]] += 1
    before, after = (pd.Index(labels, name=name, tupleize_cols=False) for name in _RUNS)
    return pd.DataFrame(counts, index=before, columns=after)


def _side_by_side(facts: Iterable[Mapping[Any, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(facts), index=list(_RUNS))


def _usage(before: ParallelResult, after: ParallelResult) -> pd.DataFrame:
    frame = _side_by_side(dataclasses.asdict(run.usage) for run in (before, after))
    tokens = {name: "Int64" for name in frame if name != "cost_usd"}
    return frame.astype({**tokens, "cost_usd": "Float64"})


def _named(names: Iterable[object]) -> str:
    return ", ".join(f'"{display.harmless(name, 60)}"' for name in names) or "none"
