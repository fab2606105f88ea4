"""Two runs side by side: what agrees, what changed, and which runs cannot be compared."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from pages import Page
from test_display import sanitized

import revkit
from revkit import Field, ModelError, ParallelResult, Price, RunCancelled, Signature, UsageError
from revkit.results.compare import _same
from revkit.testing import FakeModel

REVIEWS = ["good", "bad", "fine", "poor", "great"]
DOCS = Path(__file__).parent.parent / "docs" / "comparing-runs.md"


def reviews(index: Any = None) -> pd.DataFrame:
    return pd.DataFrame({"review": REVIEWS}, index=index)


def sentiments(
    answers: dict[str, Any], frame: pd.DataFrame | None = None, **options: Any
) -> ParallelResult:
    """A run in which each review gets its answer, by default "neutral"."""
    frame = reviews() if frame is None else frame
    seconds = options.pop("latency", 1.0)
    model = FakeModel(lambda text: answers.get(text, "neutral"), latency=seconds, clock="virtual")
    options = {"max_workers": 2, "on": "review", "inplace": False} | options
    result: ParallelResult = frame.llm.parallel_map(model=model, **options)
    return result


def outputs(values: list[Any], name: str = "response") -> ParallelResult:
    """A run of a function that gives those values, in their order."""
    return revkit.parallel_map(range(len(values)), lambda at: {name: values[at]})


# -- agreement and changes ------------------------------------------------------------------------


def test_rows_are_compared_where_both_are_ok() -> None:
    before = sentiments({"good": "positive", "bad": ModelError("no"), "poor": ModelError("no")})
    after = sentiments({"good": "positive", "fine": "positive", "poor": ModelError("nor now")})
    comparison = before.compare(after)
    assert (comparison.rows, comparison.ok_in_both, comparison.ok_in_one) == (5, 3, 1)
    assert comparison.agreement.loc["sentiment"].to_dict() == {
        "compared": 3, "agreed": 2, "share": pytest.approx(2 / 3),
    }  # fmt: skip
    assert comparison.agreement.dtypes.tolist() == [np.int64, np.int64, np.float64]


def test_what_changed_is_listed_with_the_error_of_a_row_that_is_ok_in_one_run_only() -> None:
    index = pd.Index(["x", "x", "y", "y", "z"])  # duplicates: by position
    before = sentiments({"good": "positive", "great": ModelError("no")}, reviews(index))
    after = sentiments({"bad": ModelError("nor now"), "good": "negative"}, reviews(index))
    changed = before.compare(after).changed
    assert changed["row"].tolist() == [0, 1, 4]
    assert changed["index"].tolist() == ["x", "x", "z"]
    assert changed["item"].tolist() == [{"review": r} for r in ("good", "bad", "great")]
    assert changed["output"].tolist() == ["sentiment"] * 3
    assert changed["before"].astype(object).where(changed["before"].notna(), None).tolist() == [
        "positive", "neutral", None,
    ]  # fmt: skip
    assert changed["after"].astype(object).where(changed["after"].notna(), None).tolist() == [
        "negative", None, "neutral",
    ]  # fmt: skip
    assert changed["error"].isna().tolist() == [True, False, False]
    assert changed["error"].tolist()[1:] == ["ModelError: nor now", "ModelError: no"]


def test_each_shared_output_is_compared_and_its_changes_stand_row_by_row() -> None:
    def task(*names: str) -> Signature:
        kinds: dict[str, Any] = {"kind": ["a", "b"], "score": float, "tags": list[str]}
        return Signature("Judge.", inputs=["review"], outputs={n: kinds[n] for n in names})

    def run(task: Signature, answer: dict[str, Any]) -> ParallelResult:
        model = FakeModel(lambda text: {n: answer[n] for n in task.outputs})
        result: ParallelResult = reviews().head(2).llm.parallel_map(task, model=model)
        return result

    before = run(task("kind", "score", "tags"), {"kind": "a", "score": 1.0, "tags": ["x", "y"]})
    after = run(task("tags", "kind"), {"kind": "b", "tags": ["y", "x"]})
    comparison = before.compare(after)
    assert comparison.agreement["agreed"].to_dict() == {"kind": 0, "tags": 0}
    assert list(zip(comparison.changed["row"], comparison.changed["output"], strict=True)) == [
        (0, "kind"), (0, "tags"), (1, "kind"), (1, "tags"),
    ]  # fmt: skip
    assert list(comparison.crosstabs) == ["kind"]


@pytest.mark.parametrize(
    ("before", "after", "agrees"),
    [
        ("a", "a", True), ("a", "A", False), ("a", "a ", False),
        (1, 1, True), (1, 2, False), (True, False, False),
        (0.1 + 0.2, 0.3, True), (1.0, 1.0001, False), (1e300, 1e300 * (1 + 1e-12), True),
        (["a", "b"], ["a", "b"], True), (["a", "b"], ["b", "a"], False), (["a"], [], False),
        ([0.1 + 0.2], [0.3], True), ({"a": [1]}, {"a": [1]}, True), ({"a": 1}, {"b": 1}, False),
        ("1", 1, False), ("x", 0.5, False), ([1], 1, False),
    ],
)  # fmt: skip
def test_what_it_is_to_agree(before: Any, after: Any, agrees: bool) -> None:
    both = [outputs([value, "else"]) for value in (before, after)]
    assert both[0].compare(both[1]).agreement["agreed"].tolist() == [1 + agrees]
    assert both[1].compare(both[0]).agreement["agreed"].tolist() == [1 + agrees]


def test_a_missing_value_agrees_with_a_missing_one_only() -> None:
    before, after = outputs([1.5, None, None]), outputs([1.5, None, 2.5])
    comparison = before.compare(after)
    assert comparison.agreement["agreed"].tolist() == [2]
    assert comparison.changed["row"].tolist() == [2]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)


@given(values, values)
def test_to_agree_is_symmetric_and_every_value_agrees_with_its_copy(a: Any, b: Any) -> None:
    import copy

    assert _same(a, copy.deepcopy(a))
    assert _same(a, b) == _same(b, a)


@examples(40)
@given(st.lists(st.tuples(*[st.sampled_from(["p", "n", None])] * 2), min_size=1, max_size=12))
def test_the_counts_add_up(pairs: list[tuple[str | None, str | None]]) -> None:
    if not all(any(side) for side in zip(*pairs, strict=True)):
        return  # a run without an ok row raises

    def run(side: int) -> ParallelResult:
        task = Signature("Judge.", inputs=["at"], outputs={"kind": ["p", "n"]})
        model = FakeModel([pair[side] or ModelError("no") for pair in pairs])
        items = [{"at": at} for at in range(len(pairs))]
        return revkit.parallel_map(items, task, model=model)

    comparison = run(0).compare(run(1))
    both = [(a, b) for a, b in pairs if a and b]
    table = comparison.crosstabs["kind"]
    assert table.to_numpy().sum() == comparison.ok_in_both == len(both)
    assert np.trace(table) == comparison.agreement["agreed"].iloc[0] == sum(a == b for a, b in both)
    assert len(comparison.changed) == sum(a != b for a, b in pairs)
    for was in ("p", "n"):
        for became in ("p", "n"):
            assert table.loc[was, became] == both.count((was, became))


def test_labels_stand_in_declared_order_those_of_the_second_run_behind() -> None:
    before = sentiments({"good": "positive", "bad": "negative"})
    table = before.compare(sentiments({})).crosstabs["sentiment"]
    assert table.index.tolist() == table.columns.tolist() == ["positive", "neutral", "negative"]
    assert (table.index.name, table.columns.name) == ("before", "after")
    task = Signature("Judge.", inputs=["review"], outputs={"sentiment": ["mixed", "positive"]})
    after = reviews().llm.parallel_map(task, model=FakeModel(lambda text: {"sentiment": "mixed"}))
    table = before.compare(after).crosstabs["sentiment"]
    assert table.columns.tolist() == ["positive", "neutral", "negative", "mixed"]
    assert table["mixed"].tolist() == [1, 3, 1, 0]


def test_without_labels_there_is_no_crosstab() -> None:
    assert outputs(["a", "b"]).compare(outputs(["a", "c"])).crosstabs == {}


# -- side by side ---------------------------------------------------------------------------------


def test_latency_counts_and_usage_are_those_of_the_two_runs() -> None:
    before = sentiments({"bad": ModelError("no")}, latency=2.0)
    after = sentiments({}, latency=0.5)
    comparison = before.compare(after)
    assert comparison.latency.loc["before"].to_dict() == before.latency.to_dict()
    assert comparison.latency.loc["after", "p50"] == 500.0
    assert comparison.time["wall_s"].tolist() == [r.metrics.wall_s for r in (before, after)]
    assert comparison.time.loc["before"].tolist() == [
        before.metrics.wall_s,
        before.metrics.rows_per_s,
        before.metrics.mean_concurrency,
    ]
    assert comparison.counts["succeeded"].to_dict() == {"before": 4, "after": 5}
    assert comparison.counts["failed"].to_dict() == {"before": 1, "after": 0}
    assert comparison.usage.loc["before", "prompt_tokens"] == before.usage.prompt_tokens
    assert comparison.usage.loc["after", "completion_tokens"] == 5
    assert comparison.usage["cost_usd"].isna().all()
    assert [str(dtype) for dtype in comparison.usage.dtypes] == ["Int64"] * 3 + ["Float64"]


def test_cost_is_compared_where_it_is_known() -> None:
    before, after = sentiments({}), sentiments({})
    before._find_price = lambda: Price(0, 2)
    comparison = before.compare(after)
    assert comparison.usage.loc["before", "cost_usd"] == pytest.approx(5 * 2e-6)
    assert comparison.usage["cost_usd"].isna().tolist() == [False, True]
    assert "$0.00001" in comparison.report()


def test_a_stopped_run_can_be_compared() -> None:
    token = revkit.CancelToken()

    def cancels(text: str) -> str:
        if text == "fine":
            token.cancel()
        return "positive"

    model = FakeModel(cancels)
    with pytest.raises(RunCancelled) as stopped:
        reviews().llm.parallel_map(on="review", model=model, cancel=token, max_workers=1)
    done = stopped.value.result.metrics.succeeded
    comparison = sentiments({}).compare(stopped.value.result)
    assert (comparison.ok_in_both, comparison.ok_in_one) == (done, 5 - done)
    assert comparison.changed["error"].str.contains("stopped").sum() == 5 - done


def test_no_row_ok_in_both_gives_no_share() -> None:
    before = sentiments({r: ModelError("no") for r in REVIEWS[:2]})
    after = sentiments({r: ModelError("no") for r in REVIEWS[2:]})
    comparison = before.compare(after)
    assert math.isnan(comparison.agreement["share"].iloc[0])
    assert repr(comparison).splitlines() == [
        "Comparison: 5 rows, 0 ok in both, 5 ok in one only", "sentiment: 0 of 0 agree",
    ]  # fmt: skip


def test_empty_runs_can_be_compared() -> None:
    comparison = revkit.parallel_map([], lambda x: x).compare(revkit.parallel_map([], lambda x: x))
    assert comparison.rows == 0
    assert comparison.changed.empty
    assert "0 of 0 agree" in comparison.report()


# -- which runs can be compared -------------------------------------------------------------------


def test_another_number_of_rows_is_refused() -> None:
    with pytest.raises(UsageError, match=r"not on the same rows: the first one has 5, the .* 3"):
        sentiments({}).compare(sentiments({}, reviews().head(3)))


def test_other_inputs_are_refused_and_the_first_row_is_named() -> None:
    with pytest.raises(UsageError, match=r'"review" differs in 4 of 5 rows, first in row 0'):
        sentiments({}).compare(sentiments({}, reviews()[::-1]))


def test_runs_without_an_output_in_common_are_refused_by_the_names_of_both() -> None:
    before = revkit.parallel_map([0], lambda n: {"good": n, "bad": n})
    with pytest.raises(UsageError, match=r'"good", "bad".*"tone".*output='):
        before.compare(outputs([1], "tone"))


def test_what_is_no_run_is_refused() -> None:
    with pytest.raises(UsageError, match="not with DataFrame"):
        sentiments({}).compare(reviews())  # type: ignore[arg-type]


def test_two_tasks_on_the_same_frame_are_compared_by_its_index() -> None:
    frame = pd.DataFrame({"short": ["a", "b"], "long": ["aa", "bb"]}, index=[3, 3])
    before = frame.llm.parallel_map(lambda row: row["short"], on="short", inplace=False)
    after = frame.llm.parallel_map(lambda row: row["long"][0], on="long", inplace=False)
    assert before.compare(after).agreement["agreed"].tolist() == [2]
    other = frame.set_axis([3, 4]).llm.parallel_map(lambda row: "a", on="long", inplace=False)
    with pytest.raises(UsageError, match="no input in common, and their frames have different"):
        before.compare(other)


def test_an_index_that_was_reset_does_not_matter_where_the_inputs_are_the_same() -> None:
    comparison = sentiments({}).compare(sentiments({}, reviews(list("edcba"))))
    assert comparison.agreement["agreed"].tolist() == [5]


def test_columns_that_revkit_wrote_are_no_inputs_of_a_function() -> None:
    frame = reviews()
    before = frame.llm.parallel_map(lambda row: len(row["review"]))
    after = frame.llm.parallel_map(lambda row: row["response"] + 1, overwrite=True)
    again = frame.llm.parallel_map(lambda row: row["response"] % 2, overwrite=True)
    assert before.compare(after).rows == after.compare(again).rows == 5


# -- how it is shown ------------------------------------------------------------------------------


def test_the_repr_has_nothing_that_time_decides() -> None:
    shown = repr(sentiments({"good": "positive"}).compare(sentiments({}, latency=0.1)))
    assert shown == "Comparison: 5 rows, 5 ok in both\nsentiment: 4 of 5 agree (80.0%)"


def test_report_and_html_differ_by_time_alone_and_that_is_taken_out() -> None:
    before = sentiments({"good": "positive"})
    slow = before.compare(sentiments({"bad": ModelError("no")}, latency=61.7))
    fast = before.compare(sentiments({"bad": ModelError("no")}, latency=0.033))
    assert "33.0 ms" in fast.report() or "33 ms" in fast.report()
    assert slow.report() != fast.report()
    assert sanitized(slow.report()) == sanitized(fast.report())
    assert slow._repr_html_() != fast._repr_html_()
    assert sanitized(slow._repr_html_()) == sanitized(fast._repr_html_())
    assert max(map(len, slow.report().splitlines())) <= 100
    for told in ("5 rows, 4 ok in both, 1 ok in one only", "positive", "prompt_tokens"):
        assert told in Page(fast._repr_html_()).text
        assert told in fast.report()


def test_models_are_named_where_they_differ() -> None:
    before, after = sentiments({}), sentiments({})
    assert "before:" not in before.compare(after).report()
    after.model_name = "<b>other</b>"
    assert "before: fake; after: <b>other</b>" in before.compare(after).report()
    assert "<b>other" not in before.compare(after)._repr_html_()


def test_labels_can_neither_draw_nor_break_the_page() -> None:
    nasty = "<script>\x1b[31m\n"
    task = Signature("Judge.", inputs=["review"], outputs={"kind": Field([nasty, "b"])})
    run = reviews().llm.parallel_map(task, model=FakeModel(lambda text: {"kind": nasty}))
    comparison = run.compare(run)
    assert "script" not in Page(comparison._repr_html_()).tags
    assert all(line.isprintable() for line in comparison.report().splitlines())


def test_a_table_that_does_not_fit_says_so() -> None:
    labels = [f"label number {n}" for n in range(30)]
    task = Signature("Judge.", inputs=["review"], outputs={"kind": labels})
    run = reviews().llm.parallel_map(task, model=FakeModel(lambda text: {"kind": labels[1]}))
    comparison = run.compare(run)
    assert comparison.crosstabs["kind"].shape == (30, 30)
    for shown in (comparison.report(), comparison._repr_html_()):
        assert "label number 1" in shown
        assert "label number 29" not in shown
        assert "This is not the whole table." in shown
    assert max(map(len, comparison.report().splitlines())) <= 100


# -- the page on it -------------------------------------------------------------------------------


def test_the_python_blocks_of_the_page_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS.read_text("utf-8"), flags=re.M | re.S)
    assert len(blocks) >= 3
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "run.json.gz").exists()
