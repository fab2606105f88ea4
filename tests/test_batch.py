"""The ways to give ``revkit.parallel_map`` its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import revkit
from revkit import UsageError
from revkit.tables.batch import batch
from revkit.testing import FakeModel


def whole(row: Any) -> str:
    return "|".join(f"{name}={value}" for name, value in row.items())


def rows_of(items: Any, **options: Any) -> list[str]:
    told: list[str] = revkit.parallel_map(items, whole, **options).frame["response"].tolist()
    return told


def test_a_mapping_of_lists_has_a_row_for_each_place() -> None:
    assert rows_of({"a": ["x", "y"], "b": (1, 2)}) == ["a=x|b=1", "a=y|b=2"]


@pytest.mark.parametrize(
    "values",
    [range(1, 3), np.array([1, 2]), pd.Series([1, 2], index=[9, 9]), pd.Index([1, 2]),
     pd.array([1, 2]), pa.array([1, 2])],
    ids=lambda values: type(values).__name__,
)  # fmt: skip
def test_what_counts_as_a_list(values: Any) -> None:
    assert rows_of({"a": ["x", "y"], "b": values}) == ["a=x|b=1", "a=y|b=2"]


@pytest.mark.parametrize(
    "value", ["text", b"bytes", 3, None, {"a": [1, 2]}, {1, 2}, np.float64(2.5), np.array(1)]
)
def test_anything_else_is_the_same_for_all_rows(value: Any) -> None:
    assert rows_of({"a": ["x", "y"], "b": value}) == [f"a=x|b={value}", f"a=y|b={value}"]


def test_a_mapping_without_a_list_is_one_row() -> None:
    assert rows_of({"a": "x", "b": 2}) == ["a=x|b=2"]


def test_batch_key_picks_the_list_out_of_a_mapping() -> None:
    items = {"id": 7, "reviews": [{"a": "x"}, {"a": "y"}], "tags": ["one", "two", "three"]}
    assert rows_of(items, batch_key="reviews") == ["a=x", "a=y"]
    run = revkit.parallel_map({"words": ["a", "bb"]}, len, batch_key="words", output="length")
    assert run.frame.columns.tolist() == ["item", "length", "error"]
    assert run.frame["length"].tolist() == [1, 2]


def test_a_batch_for_a_model() -> None:
    fake = FakeModel(lambda text: text.upper())
    run = revkit.parallel_map(
        {"review": ["good", None], "language": "en"}, "{language}: {review}", model=fake
    )
    assert run.frame["response"].tolist()[0] == "EN: GOOD"
    assert run.frame.columns.tolist() == ["review", "language", "response", "error"]
    assert run.rows["error_type"].tolist()[1] == "MissingInput"


def test_an_empty_batch_is_an_empty_result() -> None:
    assert len(revkit.parallel_map({"a": [], "b": "x"}, whole).frame) == 0
    assert len(revkit.parallel_map({"rows": []}, whole, batch_key="rows").frame) == 0


@pytest.mark.parametrize(
    ("items", "batch_key", "words"),
    [
        ({"a": [1, 2], "b": [1]}, None, r'differ in length: "a" has 2, "b" has 1; give each'),
        ({"a": [], "b": [1, 2], "c": [3]}, None, r'"a" has 0, "b" has 2, "c" has 1'),
        ({"a": (x for x in "ab")}, None, 'an iterator under "a".*make a list'),
        ({}, None, "an empty mapping"),
        ({"rows": [1]}, "row", "no key 'row'; did you mean"),
        ({"rows": "text"}, "rows", "names a str"),
        ({"rows": 3}, "rows", "names a int"),
        ([1, 2], "rows", "items= is a list; leave batch_key= out"),
        (pd.DataFrame({"a": [1]}), "a", "items= is a frame or Series"),
    ],
)
def test_what_is_refused(items: Any, batch_key: Any, words: str) -> None:
    asked: list[Any] = []
    with pytest.raises(UsageError, match=words):
        revkit.parallel_map(items, asked.append, batch_key=batch_key)
    assert asked == []


def test_frames_have_no_batch_key() -> None:
    with pytest.raises(TypeError, match="no argument batch_key="):
        pd.DataFrame({"a": [1]}).llm.parallel_map(whole, batch_key="a")
    with pytest.raises(TypeError, match="no argument batch_key="):
        pd.Series([1]).llm.parallel_map(str, batch_key="a")


@given(st.data())
def test_rows_and_columns_say_the_same(data: st.DataObject) -> None:
    """A batch as rows, as columns, and under a key."""
    names = data.draw(st.lists(st.text(max_size=3), min_size=1, max_size=3, unique=True))
    count = data.draw(st.integers(0, 4))
    values = {name: data.draw(st.lists(st.integers(), min_size=count, max_size=count))
              for name in names}  # fmt: skip
    shared = data.draw(st.dictionaries(st.text(min_size=4, max_size=5), st.text(), max_size=2))
    rows = [{name: values[name][i] for name in names} | shared for i in range(count)]
    assert batch({**values, **shared}) == rows
    assert batch(rows) == rows
    assert batch({"rows": rows, **shared}, batch_key="rows") == rows
