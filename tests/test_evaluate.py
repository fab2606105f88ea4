"""An output against known labels: the figures are scikit-learn's, and no row goes missing."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pages import Page
from sklearn import metrics

import revkit
from revkit import MissingColumn, MissingExtra, ModelRefused, ParallelResult, Signature, UsageError
from revkit.plot import NotebookAxes, draw_confusion
from revkit.testing import FakeModel

KINDS = ["cat", "dog", "bird"]


def run_of(
    predicted: list[Any], labels: list[Any] | None = None, kind: Any = KINDS, index: Any = None
) -> ParallelResult:
    """A run that predicts those values; None fails."""
    task = Signature("Name the animal.", inputs=["sound"], outputs={"animal": kind})
    frame = pd.DataFrame({"sound": [f"s{i}" for i in range(len(predicted))]}, index=index)
    if labels is not None:
        frame["label"] = pd.Series(labels, dtype=object, index=index)
    answers = [ModelRefused("no") if p is None else {"animal": p} for p in predicted]
    result: ParallelResult = frame.llm.parallel_map(task, model=FakeModel(answers))
    return result


#: By hand: 10 rows; cat is right 3 of 4 times, dog 2 of 3, the one bird is taken for a cat.
TRUE = ["cat", "cat", "cat", "cat", "dog", "dog", "dog", "bird", "cat", None]
SAID = ["cat", "cat", "cat", "dog", "dog", "dog", "cat", "cat", None, "cat"]


def test_an_example_made_by_hand() -> None:
    evaluation = run_of(SAID, TRUE).evaluate("label")
    assert evaluation.output == "animal"
    counts = evaluation.evaluated, evaluation.not_ok, evaluation.no_value, evaluation.no_label
    assert counts == (8, 1, 0, 1)
    assert evaluation.coverage == 8 / 9
    assert evaluation.accuracy == 5 / 8
    assert evaluation.balanced_accuracy == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)
    f1 = {"cat": 2 * 3 / (2 * 3 + 2 + 1), "dog": 2 * 2 / (2 * 2 + 1 + 1), "bird": 0.0}
    assert evaluation.macro_f1 == pytest.approx(sum(f1.values()) / 3)
    by_class = evaluation.by_class
    assert by_class.index.tolist() == KINDS
    assert by_class["precision"].tolist()[:2] == [3 / 5, 2 / 3]
    assert np.isnan(by_class["precision"]["bird"])  # never predicted: nothing to divide by
    assert by_class["recall"].tolist() == [3 / 4, pytest.approx(2 / 3), 0.0]
    assert by_class["f1"].tolist() == [pytest.approx(f1[kind]) for kind in KINDS]
    assert by_class["support"].tolist() == [4, 3, 1]
    assert by_class.dtypes.tolist() == [np.float64] * 3 + [np.int64]
    confusion = evaluation.confusion
    assert confusion.to_numpy().tolist() == [[3, 1, 0], [1, 2, 0], [1, 0, 0]]
    assert confusion.index.tolist() == confusion.columns.tolist() == KINDS
    assert (confusion.index.name, confusion.columns.name) == ("label", "predicted")


pairs = st.lists(
    st.tuples(st.sampled_from([*KINDS, None]), st.sampled_from([*KINDS, None])),
    min_size=1,
    max_size=20,
)


@examples(40)
@given(pairs)
def test_the_figures_are_those_of_scikit_learn_on_the_rows_that_are_left(
    rows: list[tuple[str | None, str | None]],
) -> None:
    left = [(true, said) for true, said in rows if true and said]
    if not left:
        return
    evaluation = run_of([said for _, said in rows], [true for true, _ in rows]).evaluate("label")
    labelled = [true for true, _ in rows if true]
    assert evaluation.evaluated == len(left)
    assert evaluation.not_ok == len(labelled) - len(left)
    assert evaluation.no_label == len(rows) - len(labelled)
    assert evaluation.coverage == pytest.approx(len(left) / len(labelled))
    true, said = (list(side) for side in zip(*left, strict=True))
    assert evaluation.accuracy == metrics.accuracy_score(true, said)
    assert evaluation.macro_f1 == pytest.approx(metrics.f1_score(true, said, average="macro"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is predicted and is no label
        balanced = metrics.balanced_accuracy_score(true, said)
        expected = metrics.classification_report(
            true, said, labels=KINDS, output_dict=True, zero_division=np.nan
        )
    assert evaluation.balanced_accuracy == pytest.approx(balanced)
    for kind in KINDS:
        for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score")):
            assert evaluation.by_class.loc[kind, ours] == pytest.approx(
                expected[kind][theirs], nan_ok=True
            )
        assert evaluation.by_class.loc[kind, "support"] == expected[kind]["support"]
    assert (
        evaluation.confusion.to_numpy() == metrics.confusion_matrix(true, said, labels=KINDS)
    ).all()


# -- outputs --------------------------------------------------------------------------------------


def test_a_boolean_output_has_two_classes() -> None:
    evaluation = run_of([True, False, True], [True, False, False], bool).evaluate("label")
    assert evaluation.confusion.index.tolist() == [False, True]
    assert evaluation.confusion.to_numpy().tolist() == [[1, 1], [0, 1]]


def test_labels_of_a_boolean_output_may_be_0_and_1_but_not_words() -> None:
    run = run_of([True, False, True], kind=bool)
    assert run.evaluate([1, 0, 1]).accuracy == 1
    with pytest.raises(UsageError, match=r"'yes'; its classes are False, True\. Map"):
        run.evaluate(["yes", False, True])


def test_text_has_the_classes_that_occur() -> None:
    run = revkit.parallel_map(["b", "a", "c"], lambda x: x)
    evaluation = run.evaluate(["b", "b", "d"])
    assert evaluation.confusion.index.tolist() == ["a", "b", "c", "d"]
    assert evaluation.accuracy == pytest.approx(1 / 3)
    # c is no row's label and d is never predicted: neither figure can be told
    assert np.isnan(evaluation.by_class["recall"]["c"])
    assert np.isnan(evaluation.by_class["precision"]["d"])


def test_free_text_is_no_class() -> None:
    run = revkit.parallel_map(range(1001), str)
    with pytest.raises(UsageError, match=r"are 1,001 different texts, too many to be classes"):
        run.evaluate([str(n) for n in range(1001)])


def test_whole_numbers_may_be_labels() -> None:
    run = run_of([1, 5, 1], [1, 5, 5], Literal[1, 5])
    assert run.evaluate("label").accuracy == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match=r"'5'.*its classes are 1, 5"):
        run.evaluate(["1", "5", "5"])


@pytest.mark.parametrize("kind", [int, float, list[int]])
def test_numbers_and_lists_are_refused_with_what_to_do(kind: Any) -> None:
    run = run_of([[1] if kind == list[int] else 1] * 2, kind=kind)
    with pytest.raises(UsageError, match=r"neither classes nor booleans nor text.*mean absolute"):
        run.evaluate([1, 1])


def test_an_ok_row_without_a_value_is_counted_apart() -> None:
    kind = Literal["cat", "dog"] | None
    task = Signature("Name it.", inputs=["sound"], outputs={"animal": kind})
    items = [{"sound": sound} for sound in ("meow", "…")]
    answers = [{"animal": "cat"}, {"animal": None}]
    run = revkit.parallel_map(items, task, model=FakeModel(answers))
    assert run.metrics.succeeded == 2
    evaluation = run.evaluate(["cat", "dog"])
    assert (evaluation.evaluated, evaluation.no_value, evaluation.coverage) == (1, 1, 0.5)


def test_the_output_can_be_chosen() -> None:
    run = revkit.parallel_map([1, 2], lambda n: {"odd": bool(n % 2), "word": ["one", "two"][n - 1]})
    assert run.evaluate([True, False]).output == "odd"
    assert run.evaluate(["one", "two"], output="word").accuracy == 1
    with pytest.raises(UsageError, match='no output "wrod"; did you mean "word"'):
        run.evaluate(["one", "two"], output="wrod")


# -- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [list, tuple, np.array, pd.Series, pd.Categorical, pd.Index])
def test_labels_may_be_given_themselves(make: Any) -> None:
    run = run_of(["cat", "dog"], index=[7, 7])
    if make is pd.Series:
        assert run.evaluate(pd.Series(["cat", "cat"], index=[7, 7])).accuracy == 0.5
    assert run.evaluate(make(["cat", "cat"])).accuracy == 0.5


@pytest.mark.parametrize("dtype", ["object", "string", "category"])
def test_a_column_of_any_string_type_will_do(dtype: str) -> None:
    run = run_of(SAID)
    run.frame["label"] = pd.Series(TRUE, dtype=dtype)
    assert run.evaluate("label").accuracy == 5 / 8


def test_labels_that_are_no_class_are_refused_by_name() -> None:
    run = run_of(["cat", "dog", "cat"])
    with pytest.raises(
        UsageError, match=r"'Cat', 'fish'; its classes are 'cat', 'dog', 'bird'\. Map the labels"
    ):
        run.evaluate(["fish", "dog", "Cat"])
    with pytest.raises(UsageError, match=r"\['cat'\]"):
        run.evaluate([["cat"], ["dog"], ["cat"]])
    mapped = pd.Series(["fish", "dog", "Cat"]).map({"dog": "dog", "Cat": "cat"})
    assert run.evaluate(mapped).no_label == 1


def test_a_column_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(MissingColumn, match='no column "lable"; did you mean "label"'):
        run_of(SAID, TRUE).evaluate("lable")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (["cat"], "1 label was given for 2 rows"),
        (7, "a column of run.frame, a Series, an array or a list; got 7"),
        ({"cat", "dog"}, "a column of run.frame"),
        (pd.Series(["cat", "dog"], index=[1, 0]), "in another order or number.*tolist"),
        ([None, np.nan], 'nothing to evaluate "animal" by: of 2 rows 2 have no label'),
    ],
)
def test_labels_that_do_not_fit_are_refused(label: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_of(["cat", "dog"]).evaluate(label)


def test_a_frame_that_was_sorted_after_the_run_is_not_read_by_position() -> None:
    run = run_of(["cat", "dog"], ["cat", "dog"], index=[0, 0])
    assert run.evaluate("label").accuracy == 1
    run.frame = run.frame.sort_values("label", ascending=False)
    with pytest.raises(UsageError, match=r"run\.frame was changed after the run"):
        run.evaluate("label")
    filtered = run_of(["cat", "dog"], ["cat", "dog"])
    filtered.frame = filtered.frame.head(1)
    with pytest.raises(UsageError, match=r"run\.frame was changed after the run"):
        filtered.evaluate("label")


def test_a_label_column_that_stands_twice_is_refused() -> None:
    run = run_of(["cat"], ["cat"])
    run.frame.insert(0, "label", ["dog"], allow_duplicates=True)
    with pytest.raises(UsageError, match='several columns "label"'):
        run.evaluate("label")


# -- how it is shown ------------------------------------------------------------------------------


def test_repr_report_and_html_tell_what_was_left_out() -> None:
    evaluation = run_of(SAID, TRUE).evaluate("label")
    assert repr(evaluation) == (
        "Evaluation of animal: 8 of 9 labelled rows, 1 not ok, 1 without a label, coverage 88.9%\n"
        "accuracy 0.625, balanced accuracy 0.472, macro F1 0.444"
    )
    page = Page(evaluation._repr_html_())
    for told in ("1 without a label", "accuracy 0.625", "confusion", "n/a", "0.750"):
        assert told in evaluation.report()
        assert told in page.text


def test_labels_can_neither_draw_nor_break_the_page() -> None:
    nasty = "<script>\x1b[31m\n$\\frac$"
    evaluation = revkit.parallel_map(["a"], lambda x: nasty).evaluate([nasty])
    assert "script" not in Page(evaluation._repr_html_()).tags
    assert all(line.isprintable() for line in evaluation.report().splitlines())
    evaluation.plot()._repr_png_()  # type: ignore[attr-defined]


# -- the plot -------------------------------------------------------------------------------------


def test_the_plot_writes_every_count_where_it_belongs() -> None:
    evaluation = run_of(SAID, TRUE).evaluate("label")
    ax = evaluation.plot()
    written = {text.get_position(): text.get_text() for text in ax.texts}
    for row, column in np.ndindex(3, 3):
        assert written[column, row] == str(evaluation.confusion.iloc[row, column])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == KINDS
    assert [tick.get_text() for tick in ax.get_yticklabels()] == KINDS
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Predicted", "Label")
    assert ax.get_title(loc="left") == "animal: accuracy 62.5% of 8 rows"


def test_colour_is_the_share_of_the_labels_rows() -> None:
    counts = pd.DataFrame([[1, 3, 0], [0, 100, 0], [0, 0, 0]], index=KINDS, columns=KINDS)
    (image,) = draw_confusion(counts).images
    np.testing.assert_allclose(image.get_array(), [[0.25, 0.75, 0], [0, 1, 0], [0, 0, 0]])
    assert image.get_clim() == (0, 1)


def luminance(colour: Any) -> float:
    """Relative luminance, by WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_lightness_alone_tells_the_share_and_counts_are_legible_on_it() -> None:
    lightness: list[float] = []
    for share in [*range(0, 65, 8), *range(65, 80), *range(80, 101, 4)]:
        ax = draw_confusion(pd.DataFrame([[share, 100 - share], [0, 0]]))
        (image,) = ax.images
        lightness.append(luminance(image.cmap(share / 100)))
        (text,) = (text for text in ax.texts if text.get_position() == (0, 0))
        ink = luminance(text.get_color())
        lighter, darker = max(ink, lightness[-1]), min(ink, lightness[-1])
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # level AA of WCAG 2.2
    assert (np.diff(lightness) < 0).all()


def test_given_axes_are_drawn_into_and_others_are_shown_by_a_notebook() -> None:
    evaluation = run_of(SAID, TRUE).evaluate("label")
    given_axes: Axes = Figure().add_subplot()
    assert evaluation.plot(ax=given_axes) is given_axes
    ax = evaluation.plot()
    assert isinstance(ax, NotebookAxes)
    png, size = ax._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert set(size) == {"width", "height"}


def test_many_classes_are_drawn_without_their_counts() -> None:
    ax = draw_confusion(pd.DataFrame(np.eye(100, dtype=int)))
    assert len(ax.texts) == 0
    assert len(ax.get_xticks()) <= 40
    assert max(ax.figure.get_size_inches()) < 14


# -- without scikit-learn -------------------------------------------------------------------------


def test_without_scikit_learn_the_error_names_the_extra() -> None:
    script = """
import sys
sys.modules["sklearn"] = None
import revkit
run = revkit.parallel_map(["a", "b"], lambda x: x)
try:
    run.evaluate(["a", "a"])
except revkit.MissingExtra as error:
    assert 'pip install "revkit[evaluate]"' in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_bad_labels_are_told_before_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    run = run_of(["cat"])
    with pytest.raises(UsageError, match="2 labels were given"):
        run.evaluate(["cat", "cat"])
    with pytest.raises(MissingExtra):
        run.evaluate(["cat"])
