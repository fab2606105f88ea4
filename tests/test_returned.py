"""What a function may return: fields of objects are columns, what no column holds is an error."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime as dt
import enum
import io
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pandas as pd
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import revkit
from revkit import RunFailed
from revkit.tables.dtypes import STRING
from revkit.task.returned import values_of

ENGINES = ["thread", "async"]


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Data:
    stars: int


class Words(pydantic.RootModel[list[str]]):
    pass


class Made(pydantic.BaseModel):
    n: int
    colour: Colour = Colour.RED
    of: list[Data] = []


class Inner(NamedTuple):
    a: int
    b: Any


RETURNED: dict[str, tuple[Callable[[int], Any], dict[str, Any]]] = {
    "a pydantic object": (
        lambda n: Made(n=n, of=[Data(1)]),
        {"n": 1, "colour": Colour.RED, "of": [{"stars": 1}]},
    ),
    "a dataclass": (lambda n: Data(n), {"stars": 1}),
    "a named tuple": (lambda n: Inner(n, Data(2)), {"a": 1, "b": {"stars": 2}}),
    "a root model": (lambda n: Words(["a"]), {"response": ["a"]}),
    "objects in a list": (lambda n: [Data(n)], {"response": [{"stars": 1}]}),
    "objects in a mapping": (
        lambda n: {"made": Made(n=n), "in": (None, Data(n))},
        {"made": {"n": 1, "colour": Colour.RED, "of": []}, "in": (None, {"stars": 1})},
    ),
    "an image, which can be closed": (lambda n: Image(), {"response": "image"}),
    "a path": (lambda n: Path("a"), {"response": Path("a")}),
    "a set": (lambda n: {1}, {"response": {1}}),
    "a date": (lambda n: dt.date(2026, 1, 1), {"response": dt.date(2026, 1, 1)}),
    "a class": (lambda n: int, {"response": int}),
}


class Image:
    __array_interface__ = np.zeros(2).__array_interface__

    def close(self) -> None:
        raise AssertionError

    def __eq__(self, other: object) -> bool:
        return other == "image"

    __hash__ = None  # type: ignore[assignment]


def run_with(engine: str, function: Callable[[Any], Any], rows: int = 2) -> revkit.ParallelResult:
    df = pd.DataFrame({"number": range(1, rows + 1)})
    if engine == "thread":
        return df.llm.parallel_map(lambda row: function(row["number"]))

    async def later(row: Any) -> Any:
        return function(row["number"])

    return df.llm.parallel_map(later)


@pytest.mark.parametrize(("function", "values"), RETURNED.values(), ids=RETURNED)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_object_gives_its_fields_as_columns(
    engine: str, function: Callable[[int], Any], values: dict[str, Any]
) -> None:
    run = run_with(engine, function, rows=1)
    frame = run.frame
    assert list(frame.columns) == ["number", *values, "error"]
    for name, value in values.items():
        assert frame[name].iloc[0] == value


def test_the_columns_of_an_object_have_dtypes() -> None:
    run = run_with(
        "thread",
        lambda n: dataclasses.make_dataclass("R", ["i", "f", "s", "b"])(n, n / 2, str(n), n == 1),
    )
    assert list(map(str, run.frame.dtypes[["i", "f", "s", "b"]])) == [
        "Int64",
        "Float64",
        STRING,
        "boolean",
    ]


def test_an_attrs_object_gives_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    attrs = pytest.importorskip("attrs")
    made = attrs.make_class("Made", ["x", "y"])
    frame = run_with("thread", lambda n: made(n, "a"), rows=1).frame
    assert frame[["x", "y"]].to_numpy().tolist() == [[1, "a"]]


async def awaited() -> int:
    return 1


def generator() -> Any:
    yield 1


async def agenerator() -> Any:
    yield 1


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "generator": (generator, "a generator, which is used up when it is read"),
    "asynchronous generator": (agenerator, "an async_generator, which is used up"),
    "map": (lambda: map(str, [1]), "a map, which is used up when it is read"),
    "text file": (lambda: io.StringIO("a"), "a StringIO, which is used up when it is read"),
    "coroutine": (awaited, "an awaitable: pass a function that is declared with `async def`"),
    "future": (concurrent.futures.Future, "a Future: wait for it, and return its result()"),
    "function": (lambda: run_with, "a function: call it, and return what it gives"),
    "method": (lambda: "a".upper, "a builtin_function_or_method: call it"),
    "module": (lambda: sys, "a module: return a value"),
    "response": (
        lambda: httpx.Response(200),
        "a Response, which is open: return what you need of it",
    ),
    "client": (httpx.Client, "a Client, which is open"),
    "connection": (lambda: CONNECTION, "a Connection, which is open"),
}
CONNECTION = sqlite3.connect(":memory:", check_same_thread=False)
CONNECTION.close()


@pytest.mark.parametrize(("make", "words"), UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_in_a_column_is_its_rows_error(
    engine: str, make: Callable[[], Any], words: str
) -> None:
    """Alone, in a mapping and in an object; the rows beside it are well."""

    def extract(n: int) -> Any:
        if n == 2:
            return make()
        if n == 3:
            return {"response": 1, "b": make()}
        return Inner(1, make()) if n == 4 else n

    run = run_with(engine, extract, rows=5)
    assert run.frame["response"].isna().tolist() == [False, True, True, True, False]
    assert run.errors["error_type"].tolist() == ["BadOutput"] * 3
    assert words in run.errors["message"].iloc[0]
    what = words.partition(":")[0].partition(",")[0]
    for message in run.errors["message"].iloc[1:]:
        assert f"returned {what}" in message
        assert ' as "b": ' in message


def test_the_first_row_says_why() -> None:
    with pytest.raises(
        RunFailed, match=r"row 0: BadOutput: .* returned a generator, which is used"
    ):
        run_with("thread", lambda n: generator())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(), inner, max_size=3)
            | st.tuples(inner, inner)
        ),
        max_leaves=8,
    ).filter(lambda value: value is not None)
)
def test_plain_values_are_returned_as_they_are(value: Any) -> None:
    assert values_of({"x": value}, "response", "f") == {"x": value}
    if not isinstance(value, dict):
        assert values_of(value, "response", "f") == {"response": value}
