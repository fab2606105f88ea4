"""Between columns and rows: every value belongs to its row, and nothing of the user's is lost."""

from __future__ import annotations

import asyncio
import enum
import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pydantic
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import revkit
from revkit import ColumnExists, Field, MissingColumn, RunFailed, Signature, UsageError
from revkit.errors import ModelError
from revkit.testing import FakeModel

STRING = "str" if int(pd.__version__.split(".")[0]) >= 3 else "string"


def echo(**options: Any) -> FakeModel:
    """A model that says what it was asked, on the virtual clock."""
    return FakeModel(lambda text: text, clock="virtual", **options)


def reviews(n: int = 3, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"r{i}" for i in range(n)], **columns})


def upper(row: Any) -> str:
    return row["review"].upper()


# -- order and position --------------------------------------------------------------------------

INDEXES = {
    "duplicates": [7, 7, 7, 0, 0],
    "unsorted": [3, 1, 4, 0, 2],
    "strings": ["b", "a", "b", "", "é"],
    "with NaN": [np.nan, 1.0, np.nan, 0.0, 2.0],
    "dates": pd.to_datetime(["2020-01-02", "2020-01-01", "2020-01-02", "2020-01-03", "NaT"]),
    "levels": pd.MultiIndex.from_tuples([("a", 1), ("a", 1), ("b", 0), ("a", 0), ("b", 1)]),
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_any_index(index: Any) -> None:
    df = pd.DataFrame({"review": list("abcde")}, index=index)
    before = df.index.copy()
    seconds = {"a": 5.0, "b": 4.0, "c": 3.0, "d": 2.0, "e": 1.0}  # the last is done first
    run = df.llm.parallel_map("{review}", model=echo(latency=seconds.__getitem__), max_workers=5)
    assert run.attempts["row"].tolist() == [4, 3, 2, 1, 0]
    assert df["response"].tolist() == list("abcde")
    assert df["error"].isna().all()
    pd.testing.assert_index_equal(df.index, before)
    pd.testing.assert_frame_equal(run.frame, df)
    pd.testing.assert_index_equal(run.rows.index, before)
    pd.testing.assert_index_equal(run.completions.index, before)


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.integers(1, 25))
    return {
        "index": draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)),
        "latency": draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)),
        "fate": draw(
            st.lists(
                st.sampled_from(["ok", "ok", "ok", "fault", "bad", "bad once", "missing"]),
                min_size=n,
                max_size=n,
            )
        ),
        "workers": draw(st.integers(1, 8)),
    }


@given(scenarios())
@examples(60)
def test_every_value_belongs_to_its_row(scenario: dict[str, Any]) -> None:
    fate, index = scenario["fate"], scenario["index"]
    texts = [None if f == "missing" else f"text {i}" for i, f in enumerate(fate)]
    df = pd.DataFrame({"review": texts, "position": range(len(texts))}, index=index)
    asked: dict[str, int] = {}

    def answer(text: str) -> Any:
        if text not in texts:  # a retry: the last turn is what was wrong, the row's is before it
            return {"n": retried.pop(0)}
        row = texts.index(text)
        asked[text] = asked.get(text, 0) + 1
        if fate[row] == "fault":
            return ModelError(f"fault of {row}")
        if fate[row] in ("bad", "bad once"):
            retried.append(row if fate[row] == "bad once" else f"bad {row}")
            return f"no number {row}"
        return {"n": row}

    retried: list[Any] = []
    # Rows that are asked again are asked in the order in which they failed, so that one list
    # knows which they are: one worker then, else no row is tried twice.
    workers = 1 if any(f.startswith("bad") for f in fate) else scenario["workers"]
    latency = dict(zip(texts, scenario["latency"], strict=True))
    fake = FakeModel(answer, latency=lambda text: latency.get(text, 1), clock="virtual")
    task = Signature("Count.", inputs="review", outputs={"n": int})
    try:
        run = df.llm.parallel_map(task, model=fake, max_workers=workers)
    except RunFailed as failed:
        run = failed.result
        assert not {"ok", "bad once"} & set(fate)
    good = [f in ("ok", "bad once") for f in fate]
    assert df["n"].tolist() == [i if ok else pd.NA for i, ok in enumerate(good)]
    assert df["position"].tolist() == list(range(len(fate)))
    assert df.index.tolist() == index
    assert df["n"].dtype == "Int64"
    for i, f in enumerate(fate):
        error = df["error"].iloc[i]
        if f in ("ok", "bad once"):
            assert pd.isna(error)
        else:
            name = {"fault": "ModelError", "bad": "BadOutput", "missing": "MissingInput"}[f]
            assert error.startswith(f"{name}: ")
            if f != "missing":
                assert str(i) in error
    wanted = {"ok": 1, "fault": 1, "bad": 2, "bad once": 2, "missing": 0}
    assert run.rows["attempts"].tolist() == [wanted[f] for f in fate]
    assert all(count == 1 for count in asked.values())
    assert run.completions["n"].tolist() == [i for i, ok in enumerate(good) if ok]
    assert run.errors["row"].tolist() == [i for i, ok in enumerate(good) if not ok]
    assert run.errors["index"].tolist() == [index[i] for i, ok in enumerate(good) if not ok]


def test_slices() -> None:
    df = reviews(6, keep=[True, False] * 3)
    kept = df[df["keep"]]
    kept.llm.parallel_map(upper)
    assert kept["response"].tolist() == ["R0", "R2", "R4"]
    assert "response" not in df.columns

    run = df[df["keep"]].llm.parallel_map(upper)  # the frame that is written to vanishes
    assert run.frame["response"].tolist() == ["R0", "R2", "R4"]
    assert run.frame.index.tolist() == [0, 2, 4]

    middle = df.iloc[4:1:-1]
    middle.llm.parallel_map(upper)
    assert middle["response"].tolist() == ["R4", "R3", "R2"]

    again = df.loc[[1, 1, 3], ["review"]]
    again.llm.parallel_map(upper)
    assert again["response"].tolist() == ["R1", "R1", "R3"]
    assert list(df.columns) == ["review", "keep"]


def test_many_columns_of_their_own_blocks() -> None:
    df = pd.DataFrame({f"c{i}": pd.array(["x"], dtype="string") for i in range(150)})
    df.llm.parallel_map(lambda row: row["c1"], on="c1")
    assert df["response"].tolist() == ["x"]


def test_one_row() -> None:
    df = reviews(1)
    assert df.llm.parallel_map(upper, max_workers=9).metrics.workers == 1
    assert df["response"].tolist() == ["R0"]


def test_a_frame_without_columns() -> None:
    df = pd.DataFrame(index=[1, 1])
    df.llm.parallel_map(lambda row: len(row))
    assert df["response"].tolist() == [0, 0]


# -- dtypes -------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


FIELDS: dict[str, tuple[Any, str, Any, str]] = {
    "string": (str, '"a"', "a", STRING),
    "integer": (int, "3", 3, "Int64"),
    "number": (float, "2.5", 2.5, "Float64"),
    "boolean": (bool, "true", True, "boolean"),
    "optional": (int | None, "3", 3, "Int64"),
    "labels": (["good", "bad"], '"bad"', "bad", "category"),
    "literal": (Literal["good", "bad"], '"bad"', "bad", "category"),
    "enum": (Colour, '"blue"', "blue", "category"),
    "numbers as labels": ([1, 2], "2", 2, "category"),
    "truth as labels": ([True, False], "false", False, "category"),
    "strings": (list[str], '["a"]', ["a"], "list<item: string>[pyarrow]"),
    "integers": (list[int], "[1, 2]", [1, 2], "list<item: int64>[pyarrow]"),
    "lists of lists": (list[list[int]], "[[1], []]", [[1], []], "object"),
}


@pytest.mark.parametrize(("type_", "text", "value", "dtype"), FIELDS.values(), ids=FIELDS)
def test_dtypes_of_typed_outputs(type_: Any, text: str, value: Any, dtype: str) -> None:
    task = Signature("x", inputs="review", outputs={"out": type_})
    full, gaps, empty = reviews(2), reviews(2), reviews(0)
    good = '{"out": ' + text + "}"
    full.llm.parallel_map(task, model=FakeModel([good] * 2))
    gaps.llm.parallel_map(task, model=FakeModel([ModelError("no"), good]))
    empty.llm.parallel_map(task, model=FakeModel([]))
    for frame in (full, gaps, empty):
        assert str(frame["out"].dtype).replace("element:", "item:") == dtype
        assert frame["error"].dtype == STRING
    assert full["out"].tolist() == [value] * 2
    assert gaps["out"].tolist()[1] == value
    assert gaps["out"].isna().tolist() == [True, False]
    assert gaps["error"].isna().tolist() == [False, True]


@pytest.mark.parametrize("ordered", [False, True])
def test_categories_stand_in_declared_order(ordered: bool) -> None:
    field = Field(["small", "large", "medium"], ordered=ordered)
    task = Signature("x", inputs="review", outputs={"size": field})
    for n in (0, 2):
        df = reviews(n)
        df.llm.parallel_map(task, model=FakeModel(['{"size": "large"}'] * n))
        assert df["size"].cat.categories.tolist() == ["small", "large", "medium"]
        assert df["size"].cat.ordered is ordered


RETURNED: dict[str, tuple[list[Any], Any]] = {
    "integers": ([1, 2], "Int64"),
    "numpy integers": ([np.int64(1), np.int64(2)], "Int64"),
    "booleans": ([True, False], "boolean"),
    "numpy booleans": ([np.True_, np.False_], "boolean"),
    "integers and floats": ([1, 2.5], "Float64"),
    "numpy floats": ([np.float64(1.5), np.float32(2.5)], "Float64"),
    "strings": (["a", ""], STRING),
    "lists": ([["a"], ["b", "c"]], "list<item: string>[pyarrow]"),
    "booleans and integers": ([True, 2], "object"),
    "dicts": ([{"a": 1}, {"b": 2}], "object"),
    "tuples": ([(1, 2), (3, 4)], "object"),
    "mixed lists": ([["a"], [1]], "object"),
    "integers of 30 digits": ([10**30, 1], "object"),
    "lists of such": ([[10**30], [1]], "object"),
    "dates": ([pd.Timestamp("2020-01-01"), pd.Timestamp("2020-01-02")], None),
    "dates of two zones": (
        [pd.Timestamp("2020-01-01", tz="UTC"), pd.Timestamp("2020-01-02", tz="Europe/Berlin")],
        "object",
    ),
}


@pytest.mark.parametrize(("values", "dtype"), RETURNED.values(), ids=RETURNED)
def test_dtypes_of_what_a_callable_returns(values: list[Any], dtype: Any) -> None:
    df = pd.DataFrame({"n": [0, 1, 2]})
    df.llm.parallel_map(lambda row: {"made": values[row["n"]]})  # the third row fails
    made = df["made"]
    if dtype is not None:
        assert str(made.dtype).replace("element:", "item:") == dtype
    assert made.tolist()[:2] == values
    assert made.isna().tolist() == [False, False, True]
    assert df["error"].tolist()[2] == "IndexError: list index out of range"


def test_arrays_returned_by_a_callable_stay_whole() -> None:
    df = pd.DataFrame({"n": [0, 1]})
    df.llm.parallel_map(lambda row: np.full(3, row["n"]))
    assert [value.tolist() for value in df["response"]] == [[0, 0, 0], [1, 1, 1]]


def test_half_a_surrogate_pair_loses_no_row() -> None:
    def odd(row: Any) -> str:
        if row["n"] == 1:
            raise ValueError("\udc80")
        return "\ud800" if row["n"] == 0 else "fine"

    df = pd.DataFrame({"n": [0, 1, 2]})
    df.llm.parallel_map(odd)
    assert df["response"].iloc[2] == "fine"
    assert df["response"].dtype == STRING
    assert df["error"].tolist()[1] == "ValueError: \\udc80"


def test_integers_too_large_for_the_dtype_are_kept() -> None:
    df = reviews(2)
    task = Signature("x", inputs="review", outputs={"n": int, "many": list[int]})
    big = 10**25
    answers = [{"n": 1, "many": [1]}, f'{{"n": {big}, "many": [{big}]}}']
    df.llm.parallel_map(task, model=FakeModel(answers))
    assert df["n"].tolist() == [1, big]
    assert df["many"].tolist() == [[1], [big]]


def test_columns_of_a_mapping() -> None:
    def both(row: Any) -> Any:
        return {"a": 1} if row["review"] == "r0" else {"b": "x", "a": None}

    df = reviews(2)
    run = df.llm.parallel_map(both)
    assert list(df.columns) == ["review", "a", "b", "error"]
    assert df["a"].tolist() == [1, pd.NA]
    assert df["b"].isna().tolist() == [True, False]
    assert run.metrics.succeeded == 2


# -- empty --------------------------------------------------------------------------------------


def test_empty_frame_for_every_kind_of_task() -> None:
    told: list[Any] = []
    task = Signature(
        "x",
        inputs="review",
        outputs={"label": ["a", "b"], "n": int, "f": float, "yes": bool, "text": str},
    )
    for index in ([], pd.MultiIndex.from_arrays([[], []], names=["a", "b"])):
        df = pd.DataFrame({"review": pd.Series([], dtype=STRING)})
        df.index = pd.Index(index) if isinstance(index, list) else index
        fake = FakeModel([])
        run = df.llm.parallel_map(task, model=fake, progress=lambda *a: told.append(a))
        assert [str(df[c].dtype) for c in ("label", "n", "f", "yes", "text", "error")] == [
            "category",
            "Int64",
            "Float64",
            "boolean",
            STRING,
            STRING,
        ]
        assert df["label"].cat.categories.tolist() == ["a", "b"]
        assert (told, fake.calls) == ([], [])
        assert run.metrics.total == len(run.rows) == len(run.attempts) == len(run.errors) == 0
        assert run.latency.isna().all()
        assert repr(run)
        assert run.report()
        assert run._repr_html_()
    df = reviews(0)
    df.llm.parallel_map(upper)
    assert df["response"].dtype == STRING
    run = revkit.parallel_map([], "{review}", model=FakeModel([]), output="summary")
    assert list(run.frame.columns) == ["summary", "error"]
    assert len(reviews(0)["review"].llm.parallel_map(len).frame) == 0


# -- missing inputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT, float("nan")])
def test_missing_input_is_not_sent(missing: Any) -> None:
    df = pd.DataFrame({"review": pd.array(["a", missing, "c"], dtype=object)}, index=[5, 5, 5])
    fake = FakeModel(lambda text: text)
    told: list[Any] = []
    run = df.llm.parallel_map("{review}", model=fake, progress=lambda *a: told.append(a))
    assert [call[-1]["content"] for call in fake.calls] == ["a", "c"]
    assert df["response"].isna().tolist() == [False, True, False]
    assert df["error"].tolist()[1] == (
        'MissingInput: the input "review" is missing (NA); nothing was sent'
    )
    assert run.errors["error_type"].tolist() == ["MissingInput"]
    assert run.errors["attempts"].tolist() == [0]
    assert run.rows["source"].tolist() == ["model", "none", "model"]
    assert [(done, total) for done, total, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[0][2].row == 1
    assert not told[0][2].ok


def test_any_missing_input_is_enough() -> None:
    df = pd.DataFrame({"a": [1, None, 3, None], "b": ["x", "y", None, None], "c": [None] * 4})
    fake = FakeModel(lambda text: text)
    df.llm.parallel_map("{a} {b}", model=fake)
    assert df["error"].notna().tolist() == [False, True, True, True]
    assert len(fake.calls) == 1


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean", "string", "datetime64[ns]"])
def test_missing_values_of_every_dtype(dtype: str) -> None:
    values = pd.Series([None, None], dtype=dtype)
    df = pd.DataFrame({"review": pd.concat([values, values]).array, "n": range(4)})
    present = {"string": "x", "datetime64[ns]": pd.Timestamp(0), "boolean": True}
    df.loc[0, "review"] = present.get(dtype, 1)
    fake = FakeModel(lambda text: "fine")
    df.llm.parallel_map("{review}", model=fake)
    assert len(fake.calls) == 1


def test_empty_text_is_not_missing() -> None:
    df = pd.DataFrame({"review": ["", " ", "nan", "None"]})
    fake = FakeModel(lambda text: "fine")
    df.llm.parallel_map("<{review}>", model=fake)
    assert len(fake.calls) == 4


def test_a_callable_gets_every_row_unless_it_names_its_inputs() -> None:
    df = pd.DataFrame({"review": ["a", None], "n": [1, 2]})
    run = df.llm.parallel_map(lambda row: row["n"], output="all")
    assert run.frame["all"].tolist() == [1, 2]
    run = df.llm.parallel_map(lambda row: row["review"], on="review", output="named", error="e")
    assert run.frame["named"].tolist()[0] == "a"
    assert run.frame["e"].tolist()[1].startswith("MissingInput")


# -- binding -------------------------------------------------------------------------------------


def test_ways_to_bind() -> None:
    df = pd.DataFrame({"Review Text": ["a", "b"], "review": ["c", "d"], "title": ["t", "u"]})

    def said(task: str, **options: Any) -> list[str]:
        run = df.llm.parallel_map(task, model=echo(), inplace=False, **options)
        return run.frame["response"].tolist()

    assert said("{review}") == ["c", "d"]
    assert said("{review}", on="Review Text") == ["a", "b"]
    assert said("{review}", on=["Review Text"]) == ["a", "b"]
    assert said("{review}", on={"review": "Review Text"}) == ["a", "b"]
    assert said("{Review Text}") == ["a", "b"]
    assert said("{review} {title}", on={"review": "Review Text"}) == ["a t", "b u"]
    assert said("{review} {title}", on=["title", "review"]) == ["c t", "d u"]
    assert said("{a} {b}", on={"a": "title", "b": "title"}) == ["t t", "u u"]


def test_what_a_callable_is_given() -> None:
    df = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    rows: list[Any] = []
    df.llm.parallel_map(lambda row: rows.append(row) or 1, inplace=False, max_workers=1)
    df.llm.parallel_map(lambda row: rows.append(row) or 1, on="b", inplace=False, max_workers=1)
    df.llm.parallel_map(
        lambda row: rows.append(row) or 1, on={"z": "a"}, inplace=False, max_workers=1
    )
    assert rows == [
        {"a": 1, "b": "x"},
        {"a": 2, "b": "y"},
        {"b": "x"},
        {"b": "y"},
        {"z": 1},
        {"z": 2},
    ]
    values: list[Any] = []
    df["b"].llm.parallel_map(lambda value: values.append(value) or 1, max_workers=1)
    revkit.parallel_map([3, "x"], lambda value: values.append(value) or 1, max_workers=1)
    revkit.parallel_map(iter([{"k": 1}]), lambda row: values.append(row) or 1)
    assert values == ["x", "y", 3, "x", {"k": 1}]


class Out(pydantic.BaseModel):
    n: int


def test_pydantic_model_binds_the_columns_themselves() -> None:
    df = pd.DataFrame({"Review Text": ["a"], "title": ["t"]})
    for on, said in [
        ("title", "t"),
        (["title", "Review Text"], "title: t\nReview Text: a"),
        ({"review": "Review Text"}, "a"),
    ]:
        fake = FakeModel(['{"n": 1}'])
        run = df.llm.parallel_map(Out, instructions="x", on=on, model=fake, inplace=False)
        assert fake.calls[0][-1]["content"] == said
        assert run.frame["n"].tolist() == [1]


@pytest.mark.parametrize(
    ("items", "task", "options", "words"),
    [
        ([{"a": 1}, 2], len, {}, "item 0 is a dict, item 1 is a int"),
        ([2, {"a": 1}], len, {}, "item 0 is a int, item 1 is a dict"),
        ([1, 2], "{a} {b}", {}, "has one value a row"),
        ([1, 2], "{a}", {"on": "a"}, "on= binds inputs to columns"),
        ([{"reviw": "x"}], "{review}", {}, 'did you mean "reviw"'),
    ],
)
def test_refused_items(items: Any, task: Any, options: Any, words: str) -> None:
    model = {} if callable(task) else {"model": FakeModel([])}
    with pytest.raises(UsageError, match=words):
        revkit.parallel_map(items, task, **options, **model)


def test_items_keep_their_own_values() -> None:
    rows: list[Any] = []
    items = [{"n": 1}, {"n": None, "m": 2}, {"n": 2**70}]
    run = revkit.parallel_map(items, lambda row: rows.append(row) or 1, max_workers=1)
    assert rows == [{"n": 1, "m": None}, {"n": None, "m": 2}, {"n": 2**70, "m": None}]
    assert run.frame["response"].tolist() == [1, 1, 1]
    fake = FakeModel(lambda text: text)
    run = revkit.parallel_map(items, "{n}", model=fake)
    assert [call[-1]["content"] for call in fake.calls] == ["1", str(2**70)]
    assert run.frame["error"].notna().tolist() == [False, True, False]


def test_duplicate_column_labels() -> None:
    df = pd.DataFrame([["a", "b", "c"]], columns=["x", "x", "y"])
    df.llm.parallel_map("{y}", model=echo())
    assert df["response"].tolist() == ["c"]
    assert list(df.columns) == ["x", "x", "y", "response", "error"]
    with pytest.raises(UsageError, match='"x" stands for 2 columns'):
        df.llm.parallel_map("{x}", model=echo(), output="other", error=None)
    twice = pd.DataFrame([["a", "b", "c"]], columns=["response", "response", "y"])
    with pytest.raises(UsageError, match='several columns "response"; rename'):
        twice.llm.parallel_map("{y}", model=echo())


def test_column_levels_are_refused_and_the_ways_out_work() -> None:
    df = pd.DataFrame({("a", "x"): ["u", "v"], ("b", "y"): [1, 2]})
    with pytest.raises(UsageError, match=r"several levels.*droplevel.*or on a Series"):
        df.llm.parallel_map(lambda row: 1)
    assert df.shape == (2, 2)
    run = df[("a", "x")].llm.parallel_map(str.upper)
    assert run.frame["response"].tolist() == ["U", "V"]
    flat = df.droplevel(1, axis=1)
    flat.llm.parallel_map("{a}", model=echo())
    assert flat["response"].tolist() == ["u", "v"]


def test_series() -> None:
    series = pd.Series(["a", None, "c"], index=[2, 2, 0], name="word")
    run = series.llm.parallel_map("{any}", model=echo())
    assert list(run.frame.columns) == ["word", "response", "error"]
    assert run.frame.index.tolist() == [2, 2, 0]
    assert run.frame["response"].isna().tolist() == [False, True, False]
    unnamed = pd.Series([1, 2]).llm.parallel_map(lambda x: x * 2)
    assert list(unnamed.frame.columns) == ["item", "response", "error"]
    with pytest.raises(UsageError, match="one value a row"):
        series.llm.parallel_map("{a} {b}", model=echo())
    with pytest.raises(UsageError, match="leave it out"):
        series.llm.parallel_map(len, on="word")
    with pytest.raises(ColumnExists):
        pd.Series([1], name="response").llm.parallel_map(lambda x: x)


def test_frames_given_to_the_function_are_not_written_to() -> None:
    df, series = reviews(2), reviews(2)["review"]
    assert revkit.parallel_map(df, upper).frame["response"].tolist() == ["R0", "R1"]
    assert list(df.columns) == ["review"]
    assert revkit.parallel_map(series, str.upper).frame["response"].tolist() == ["R0", "R1"]


# -- what is never overwritten -------------------------------------------------------------------


def test_a_taken_error_column_may_be_left_out() -> None:
    df = reviews(2, error=["mine", "mine too"])
    with pytest.raises(ColumnExists, match="error=None for no error column"):
        df.llm.parallel_map("{review}", model=echo())
    assert df["error"].tolist() == ["mine", "mine too"]


def test_ways_out_of_a_taken_column() -> None:
    df = reviews(2, response=["mine", "mine too"], error=[1, 2])
    run = df.llm.parallel_map("{review}", model=echo(), prefix="llm_", error="llm error")
    assert list(df.columns) == ["review", "response", "error", "llm_response", "llm error"]
    assert run.summary("response").index.tolist() == ["r0", "r1"]
    assert run.completions.columns.tolist() == ["response"]
    df.llm.parallel_map("{review}", model=echo(), overwrite=True, error=None)
    assert df["response"].tolist() == ["r0", "r1"]
    assert df["error"].tolist() == [1, 2]
    assert list(df.columns)[1] == "response"  # where it was
    df.llm.parallel_map("{review}", model=echo(), output="third", error=None)
    assert df["third"].tolist() == ["r0", "r1"]


def test_the_same_task_runs_again() -> None:
    df = reviews(2)
    task = Signature("x", inputs="review", outputs={"n": int})
    df.llm.parallel_map(task, model=FakeModel([{"n": 1}, ModelError("down")]))
    assert df["n"].tolist() == [1, pd.NA]
    same = Signature("x", inputs="review", outputs={"n": int})
    df.copy().query("n == 1").llm.parallel_map(same, model=FakeModel([{"n": 3}]))
    df.llm.parallel_map(same, model=FakeModel([{"n": 5}, {"n": 6}]))
    assert df["n"].tolist() == [5, 6]
    assert df["error"].isna().all()
    assert list(df.columns) == ["review", "n", "error"]
    other = Signature("y", inputs="review", outputs={"n": int})
    with pytest.raises(ColumnExists):
        df.llm.parallel_map(other, model=FakeModel([]))
    df.llm.parallel_map(upper, error="e")
    df.llm.parallel_map(upper, error="e")


def test_a_column_that_a_callable_names_only_by_returning_it() -> None:
    df = reviews(2, stars=[1, 2])
    with pytest.warns(UserWarning, match='it was written as "output_stars"') as told:
        run = df.llm.parallel_map(lambda row: {"stars": 5}, error=None)
    assert told[0].filename == __file__
    assert df["stars"].tolist() == [1, 2]
    assert df["output_stars"].tolist() == run.frame["output_stars"].tolist() == [5, 5]
    assert run.completions["stars"].tolist() == [5, 5]
    df = df.drop(columns="output_stars")
    df.llm.parallel_map(lambda row: {"stars": 5}, overwrite=True)
    assert df["stars"].tolist() == [5, 5]


def test_a_function_of_the_whole_row_runs_again() -> None:
    answers = iter([1, 2, 3, 4])
    df = reviews(2)
    for wanted in ([1, 2], [3, 4]):  # the second time, the outputs of the first are inputs too
        df.llm.parallel_map(lambda row: next(answers), max_workers=1)
        assert df["response"].tolist() == wanted


def test_the_note_is_plain_and_survives() -> None:
    df = reviews(2)
    df.attrs["mine"] = {"kept": True}
    task = "{review}"
    run = df.llm.parallel_map(task, model=echo(), error="e")
    note = df.attrs["revkit"]
    assert json.loads(json.dumps(df.attrs)) == df.attrs
    assert list(note) == ["response", "e"]
    assert set(note.values()) == {run.task.fingerprint}
    assert df.attrs["mine"] == {"kept": True}
    for kin in (df.copy(), df[df["review"] == "r1"], df.reset_index(drop=True), run.frame):
        assert kin.attrs["revkit"] == note
        kin.llm.parallel_map(task, model=echo(), error="e")
    df.llm.parallel_map(upper, output="other", error=None)
    assert list(df.attrs["revkit"]) == ["response", "e", "other"]


def test_inplace_false() -> None:
    df = reviews(2)
    run = df.llm.parallel_map(upper, inplace=False)
    assert list(df.columns) == ["review"]
    assert df.attrs == {}
    assert run.frame["response"].tolist() == ["R0", "R1"]
    df["review"] = "changed"
    assert run.frame["review"].tolist() == ["r0", "r1"]


# -- a frame that changes while the run goes on --------------------------------------------------


def quietly(change: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Change a frame in place, which pandas 3.1 means to deprecate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        change(*args, **options, inplace=True)


CHANGES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "row dropped": lambda df: quietly(df.drop, index=0),
    "row added": lambda df: df.loc.__setitem__(99, "new"),
    "index": lambda df: setattr(df, "index", [9, 8, 7]),
    "sorted": lambda df: quietly(df.sort_values, "review", ascending=False),
    "input changed": lambda df: df.__setitem__("review", ["x", "y", "z"]),
    "one value": lambda df: df.iloc.__setitem__((0, 0), "edited"),
    "input dropped": lambda df: df.pop("review"),
    "output appeared": lambda df: df.__setitem__("response", "mine"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("on", [None, "review"])
def test_nothing_is_written_to_a_changed_frame(change: Any, on: Any) -> None:
    df = reviews(3)

    def first_changes(row: Any, context: Any) -> str:
        if context.row == 0:
            change(df)
        return row["review"].upper()

    with pytest.warns(UserWarning, match=r"nothing was written.*run\.frame") as told:
        run = df.llm.parallel_map(first_changes, on=on, max_workers=1)
    assert told[0].filename == __file__
    assert "error" not in df.columns
    if "response" in df.columns:
        assert set(df["response"]) == {"mine"}
    assert run.frame["review"].tolist() == ["r0", "r1", "r2"]
    assert run.frame["response"].tolist() == ["R0", "R1", "R2"]
    assert run.frame.index.tolist() == [0, 1, 2]


def test_another_cell_changes_the_frame_during_an_await() -> None:
    df = reviews(3)

    async def main() -> Any:
        started = asyncio.Event()
        go_on = asyncio.Event()

        async def waits(row: Any) -> str:
            started.set()
            await go_on.wait()
            return row["review"].upper()

        run = asyncio.create_task(df.llm.aparallel_map(waits))
        await started.wait()
        quietly(df.drop, index=1)
        go_on.set()
        return await run

    with pytest.warns(UserWarning, match="nothing was written"):
        run = asyncio.run(main())
    assert df.shape == (2, 1)
    assert run.frame["response"].tolist() == ["R0", "R1", "R2"]


def test_other_columns_may_change() -> None:
    df = reviews(3, stars=[1, 2, 3])

    def first_changes(row: Any, context: Any) -> str:
        if context.row == 0:
            df["stars"] = 0
            df["new"] = "new"
        return row["review"].upper()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        df.llm.parallel_map(first_changes, on="review", max_workers=1)
    assert df["response"].tolist() == ["R0", "R1", "R2"]
    assert df["stars"].tolist() == [0, 0, 0]


# -- files ---------------------------------------------------------------------------------------


def test_the_finished_frame_survives_parquet(tmp_path: Path) -> None:
    task = Signature(
        "x",
        inputs="review",
        outputs={"label": ["b", "a"], "n": int, "f": float, "yes": bool, "text": str},
    )
    good = {"label": "a", "n": 1, "f": 0.5, "yes": True, "text": "é"}
    index = pd.MultiIndex.from_tuples([(1, "x"), (1, "x"), (0, "y")], names=["i", "j"])
    df = reviews(3).set_index(index)
    df.llm.parallel_map(task, model=FakeModel([good, ModelError("no"), good]))
    df.to_parquet(tmp_path / "frame.parquet")
    back = pd.read_parquet(tmp_path / "frame.parquet")
    pd.testing.assert_frame_equal(back, df)
    assert back.attrs["revkit"] == df.attrs["revkit"]
    back.llm.parallel_map(task, model=FakeModel([good] * 3))  # its own columns are known
    assert back["n"].tolist() == [1, 1, 1]


def test_all_failed_survives_parquet(tmp_path: Path) -> None:
    df = reviews(2)
    with pytest.raises(RunFailed):
        df.llm.parallel_map("{review}", model=FakeModel([ModelError("no")] * 2))
    df.to_parquet(tmp_path / "frame.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "frame.parquet"), df)


def test_lists_survive_parquet(tmp_path: Path) -> None:
    df = reviews(2)
    df.llm.parallel_map(lambda row: [row["review"]])
    df.to_parquet(tmp_path / "frame.parquet")
    # Without dtype_backend= pandas cannot read the dtype's name that it wrote itself.
    back = pd.read_parquet(tmp_path / "frame.parquet", dtype_backend="pyarrow")
    assert [list(value) for value in back["response"]] == [["r0"], ["r1"]]


def test_an_output_named_as_the_error_column_goes_by_another_name() -> None:
    frame = pd.DataFrame({"n": [1, 2], "output_error": [True, True]})
    with pytest.warns(UserWarning, match='written as "output_output_error"'):
        frame.llm.parallel_map(lambda row: {"error": "mine"})
    assert frame["error"].isna().all()
    assert frame["output_output_error"].tolist() == ["mine", "mine"]
    assert frame["output_error"].tolist() == [True, True]
    kept = frame[["n"]].llm.parallel_map(lambda row: {"error": "mine"}, error="failed")
    assert kept.frame["error"].tolist() == ["mine", "mine"]


def test_callables_that_a_name_does_not_tell_apart_are_different_tasks() -> None:
    def make(word: str) -> Any:
        def says(row: Any) -> str:
            return word

        return says

    class Chain:
        def invoke(self, row: Any) -> int:
            return 1

    first, second = Chain(), Chain()
    pairs = [
        (make("first"), make("second")),
        (first.invoke, second.invoke),
        (functools.partial(add, 1), functools.partial(add, 2)),
    ]
    for task, other in pairs:
        frame = pd.DataFrame({"n": [1]})
        for _ in range(2):  # the same cell, run twice
            frame.llm.parallel_map(task)
        with pytest.raises(ColumnExists, match="another task wrote it"):
            frame.llm.parallel_map(other)


def add(more: int, row: Any) -> int:
    return int(row["n"]) + more


def test_what_the_user_does_to_the_frame_of_a_run_does_not_move_its_rows() -> None:
    frame = pd.DataFrame({"n": [3, 1, 2]})

    def odd(row: Any) -> int:
        if row["n"] == 1:
            raise ValueError("one")
        return int(row["n"]) * 10

    run = frame.llm.parallel_map(odd)
    run.frame["response"] = 0
    assert run.completions["response"].tolist() == [30, 20]
    assert run.rows["response"].isna().tolist() == [False, True, False]
    assert run.errors["row"].tolist() == [1]


@pytest.mark.parametrize("value", [None, float("nan"), np.nan, pd.NA, pd.NaT])
def test_a_missing_value_is_an_error_unless_it_is_meant(value: Any) -> None:
    frame = pd.DataFrame({"n": [1, 2]})
    run = frame.llm.parallel_map(lambda row: value if row["n"] == 1 else 5)
    assert run.errors["error_type"].tolist() == ["BadOutput"]
    meant = frame[["n"]].llm.parallel_map(lambda row: {"x": None if row["n"] == 1 else 5})
    assert meant.metrics.succeeded == 2


def test_a_second_lambda_does_not_overwrite_the_first_ones_output() -> None:
    frame = pd.DataFrame({"n": [1, 2]})
    for _ in range(2):  # the same cell, run twice
        frame.llm.parallel_map(lambda row: row["n"])
    with pytest.raises(ColumnExists):
        frame.llm.parallel_map(lambda row: row["n"] * 10, error="other")


def test_outputs_may_have_the_names_of_columns_in_rows() -> None:
    frame = pd.DataFrame({"n": [1]})
    run = frame.llm.parallel_map(lambda row: {"status": "mine", "row": 7})
    assert run.rows["status"].tolist() == ["ok"]
    assert run.rows[["output_status", "output_row"]].iloc[0].tolist() == ["mine", 7]


def test_lists_can_be_counted() -> None:
    frame = pd.DataFrame({"n": [1, 2, 3]})
    run = frame.llm.parallel_map(lambda row: ["odd"] if row["n"] % 2 else ["even"])
    assert run.summary()["count"].to_dict() == {("odd",): 2, ("even",): 1}


def test_a_label_that_is_a_number_is_bound_by_on() -> None:
    frame = pd.DataFrame({0: ["a"]})
    with pytest.raises(MissingColumn, match=r"bind it: on=\{'0': 0\}"):
        frame.llm.parallel_map("{0}", model=FakeModel(str))
    assert frame.llm.parallel_map("{0}", on={"0": 0}, model=FakeModel(str)).metrics.succeeded == 1
