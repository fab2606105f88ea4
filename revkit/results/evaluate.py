"""An output against labels that are known to be right: what ``run.evaluate("label")`` gives.

The figures are scikit-learn's, which the extra ``revkit[evaluate]`` brings.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import display
from ..errors import MissingColumn, MissingExtra, UsageError, nearest, plural
from ..tables.dtypes import same_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .result import ParallelResult

__all__ = ["Evaluation", "evaluate"]

#: A confusion matrix has the square of them, and free text has as many as rows.
_MOST_CLASSES = 1000


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """An output against the right labels; a notebook shows all of it but the plot.

    The four counts of rows add up to those of the run: ``evaluated``, ``not_ok``, ``no_value``
    and ``no_label``. Every figure is of the evaluated rows.

    Attributes:
        output: the output's name.
        evaluated: rows that have a label, are ok, and hold a value.
        not_ok: rows with a label that failed, were cancelled or never started.
        no_value: rows with a label that are ok, whose value is missing (an optional output).
        no_label: rows without a label.
        coverage: ``evaluated`` / all rows with a label.
        accuracy: share of rows whose value is the label.
        balanced_accuracy: mean of the recall of the classes that occur as labels.
        macro_f1: mean of the F1 of the classes that occur, as labels or as values.
        by_class: indexed by class: ``precision``, ``recall``, ``f1`` (float64, 0 to 1) and
            ``support`` (int64, rows with that label). Precision is NaN for a class that was never
            predicted, recall for one that is no row's label, F1 where both are.
        confusion: how many rows with a label (a row) got a value (a column), int64.

    Classes stand in declared order, those of text in that of the alphabet. The definitions are
    those of scikit-learn's user guide, "Classification metrics".
    """

    output: str
    evaluated: int
    not_ok: int
    no_value: int
    no_label: int
    coverage: float
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    by_class: pd.DataFrame
    confusion: pd.DataFrame

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the confusion matrix: counts, coloured by their share of the label's rows.

        Args:
            ax: matplotlib Axes to draw into; None: a new figure, which a notebook shows.

        Returns:
            The Axes; ``.figure.savefig(path)`` saves it.
        """
        from ..plot import draw_confusion

        title = f"{self.output}: accuracy {self.accuracy:.1%} of {plural(self.evaluated, 'row')}"
        return draw_confusion(self.confusion, ax=ax, title=title)

    def report(self) -> str:
        """The whole as text, for a terminal."""
        return display.sections_text(self._heads(), self._sections())

    def __repr__(self) -> str:
        return "\n".join(self._heads())

    def _repr_html_(self) -> str:
        return display.sections_html(self._heads(), self._sections())

    def _heads(self) -> list[str]:
        labelled = self.evaluated + self.not_ok + self.no_value
        left_out = {
            "not ok": self.not_ok,
            "without a value": self.no_value,
            "without a label": self.no_label,
        }
        counts = [f"{self.evaluated:,} of {labelled:,} labelled row{'' if labelled == 1 else 's'}"]
        counts += [f"{count:,} {why}" for why, count in left_out.items() if count]
        if self.evaluated < labelled:
            counts.append(f"coverage {self.coverage:.1%}")
        figures = {
            "accuracy": self.accuracy,
            "balanced accuracy": self.balanced_accuracy,
            "macro F1": self.macro_f1,
        }
        return [
            f"Evaluation of {display.harmless(self.output, 40)}: " + ", ".join(counts),
            ", ".join(f"{name} {value:.3f}" for name, value in figures.items()),
        ]

    def _sections(self) -> list[display.Section]:
        return [
            display.Section("classes", self.by_class),
            display.Section("confusion", self.confusion),
        ]


def evaluate(result: ParallelResult, label: Any, *, output: str | None = None) -> Evaluation:
    """Evaluate an output of a run; arguments and errors are those of ``run.evaluate``."""
    name = result._output(output)
    values = result._values[result._columns[name]]
    labels = _labels(result, label)
    classes, predicted, true = _classes(name, result.outputs[name], values, labels)
    try:
        from sklearn import metrics
    except ImportError:
        raise MissingExtra(
            'evaluate() computes its figures with scikit-learn: pip install "revkit[evaluate]"'
        ) from None
    has_label, has_value = true >= 0, predicted >= 0
    ok = result._ok
    chosen = has_label & ok & has_value
    not_ok, no_value = int((has_label & ~ok).sum()), int((has_label & ok & ~has_value).sum())
    no_label, evaluated = int((~has_label).sum()), int(chosen.sum())
    if not evaluated:
        raise UsageError(
            f'there is nothing to evaluate "{display.harmless(name, 40)}" by: of {len(ok):,} rows '
            f"{no_label:,} have no label, {not_ok:,} are not ok and {no_value:,} have no value"
        )
    true, predicted = true[chosen], predicted[chosen]
    codes = range(len(classes))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        true, predicted, labels=codes, zero_division=np.nan
    )
    index = pd.Index(classes, name="label", tupleize_cols=False)
    return Evaluation(
        output=name,
        evaluated=evaluated,
        not_ok=not_ok,
        no_value=no_value,
        no_label=no_label,
        coverage=evaluated / int(has_label.sum()),
        accuracy=float(metrics.accuracy_score(true, predicted)),
        # as balanced_accuracy_score, which warns where a class is predicted that is no label
        balanced_accuracy=float(
            metrics.recall_score(true, predicted, labels=np.unique(true), average="macro")
        ),
        macro_f1=float(metrics.f1_score(true, predicted, average="macro")),
        by_class=pd.DataFrame(
            {"precision": precision, "recall": recall, "f1": f1, "support": support}, index=index
        ),
        confusion=pd.DataFrame(
            # as confusion_matrix, which warns where there is one class
            np.bincount(true * len(classes) + predicted, minlength=len(classes) ** 2).reshape(
                len(classes), len(classes)
            ),
            index=index,
            columns=index.rename("predicted"),
        ),
    )


def _labels(result: ParallelResult, label: Any) -> list[Any]:
    """The label of each row, by position; None where it is missing."""
    frame, total = result.frame, len(result._index)
    if isinstance(label, Hashable) and (isinstance(label, str) or label in frame.columns):
        if label not in frame.columns:
            close = nearest(str(label), map(str, frame.columns))
            raise MissingColumn(
                f'run.frame has no column "{display.harmless(label, 60)}"; {close} Labels from '
                'elsewhere can be given themselves: run.evaluate(df["label"])'
            )
        # ``frame`` is the user's to sort and filter, and then its rows are no longer the run's.
        if not same_rows(frame, result._values, result._values.columns):
            raise UsageError(
                "run.frame was changed after the run (its index or its outputs), so its labels "
                "may belong to other rows; give them themselves, one for each row of the run"
            )
        given = frame[label]
    elif isinstance(label, pd.Series):
        given = label
        if not given.index.equals(result._index) and given.index.isin(result._index).all():
            raise UsageError(
                "the labels have the frame's index in another order or number, and they go by "
                "position; put them in the frame's order, or give them as a list: labels.tolist()"
            )
    elif isinstance(label, Sequence | np.ndarray | pd.Index | pd.api.extensions.ExtensionArray):
        given = pd.Series(list(label), dtype=object)
    else:
        raise UsageError(
            f"labels are a column of run.frame, a Series, an array or a list; got {label!r}"
        )
    if isinstance(given, pd.DataFrame):
        raise UsageError(f'run.frame has several columns "{label}"; rename them first')
    if len(given) != total:
        labels = plural(len(given), "label", "were given")
        raise UsageError(f"{labels} for {plural(total, 'row')}; give one for each")
    return [None if no else x for x, no in zip(given.tolist(), given.isna(), strict=True)]


def _classes(
    name: str, declared: tuple[Any, ...] | None, values: pd.Series, labels: list[Any]
) -> tuple[list[Any], Any, Any]:
    """The classes, and each row's value and label as places among them; -1 where it is missing."""
    found = [None if no else x for x, no in zip(values.tolist(), values.isna(), strict=True)]
    shown = display.harmless(name, 40)
    if declared is not None:
        classes = list(declared)
    elif pd.api.types.is_bool_dtype(values.dtype):
        classes = [False, True]
    elif all(isinstance(x, str) for x in found if x is not None):
        classes = sorted({x for x in [*found, *labels] if isinstance(x, str)})
        if len(classes) > _MOST_CLASSES:
            raise UsageError(
                f'"{shown}" and its labels are {len(classes):,} different texts, too many to be '
                f"classes (at most {_MOST_CLASSES:,}); ask for labels, or compare texts otherwise"
            )
    else:
        raise UsageError(
            f'"{shown}" holds neither classes nor booleans nor text, so it has no accuracy; for '
            "numbers compute their mean absolute error, (predicted - label).abs().mean()"
        )
    place = {known: at for at, known in enumerate(classes)}
    unknown = {
        repr(x) for x in labels if x is not None and not (isinstance(x, Hashable) and x in place)
    }
    if unknown:
        raise UsageError(
            f'some labels are not among the classes of "{shown}": {_some(sorted(unknown))}; its '
            f"classes are {_some(map(repr, classes))}. Map the labels first, "
            'df["label"].map({…}): a row whose label is NA is left out, and counted'
        )
    predicted, true = (
        np.array([-1 if x is None else place[x] for x in side], dtype=np.int64)
        for side in (found, labels)
    )
    return classes, predicted, true


def _some(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - 12:,} more" if len(known) > 12 else ""
    return ", ".join(display.harmless(name, 40) for name in known[:12]) + more
