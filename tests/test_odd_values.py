"""Whatever a function returns: its row may fail, and every other row has its values."""

from __future__ import annotations

import decimal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import revkit
from revkit.errors import BadOutput
from revkit.task.returned import values_of

ENGINES = ["thread", "async"]


def raising(method: str, error: type[BaseException] = AttributeError) -> Callable[[], Any]:
    def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise error(f"no {method}")

    names = {method: fails} | ({"__hash__": object.__hash__} if method == "__eq__" else {})
    return type(f"Without{method.strip('_')}", (), names)


class Odd(Mapping[str, int]):
    """A mapping that cannot be read."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1

    def items(self) -> Any:
        raise AttributeError("no items")


class Unlisted(list[int]):
    def __iter__(self) -> Any:
        raise ValueError("no items")


def looped(make: Callable[[], Any]) -> Any:
    value = make()
    value.append(value)
    return value


def looped_dict() -> Any:
    value: dict[str, Any] = {}
    value["a"] = [value]
    return value


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def wide() -> Any:
    """Ten lists in ten lists, and so on, of which each is one object."""
    value: Any = [1]
    for _ in range(50):
        value = [value] * 10
    return value


def objects(value: Any) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


FAILS: dict[str, Callable[[], Any]] = {
    "a list in itself": lambda: looped(lambda: [1]),
    "an empty list in itself": lambda: looped(list),
    "a subclass of list in itself": lambda: [looped(type("Own", (list,), {}))],
    "a dict in itself": looped_dict,
    "a list in itself, in an array": lambda: objects(looped(lambda: [1])),
    "a deep list": lambda: deep(100_000),
    "a deep list behind a number": lambda: [1, deep(100_000)],
    "a wide list": wide,
    "a mapping without items": Odd,
    "one in a mapping": lambda: {"response": [Odd()]},
    "a list without items": lambda: Unlisted([1]),
    "a huge integer": lambda: 10**5000,
    "one in a list": lambda: [1, -(10**5000)],
    "one beside text": lambda: ["a", 10**5000],
    "a signalling NaN": lambda: decimal.Decimal("sNaN"),
    "no str": raising("__str__"),
    "no repr": raising("__repr__", SystemExit),
    "no str in a list": lambda: [raising("__str__")()],
    "no str in a set": lambda: {raising("__str__")()},
    "no attributes": raising("__getattr__", ValueError),
    "nothing at all": raising("__getattribute__", SystemExit),
    "a name that cannot be read": lambda: {raising("__str__")(): 1},
    "two outputs of one name": lambda: {1: 1, "1": 2},
}

STAYS: dict[str, Callable[[], Any]] = {
    "an object without __array__": raising("__array__"),
    "one that ends the process": raising("__array__", SystemExit),
    "no comparison": raising("__eq__"),
    "no hash": raising("__hash__"),
    "no truth": raising("__bool__"),
    "no length": raising("__len__"),
    "no items": raising("__iter__"),
    "no Arrow": raising("__arrow_array__", SystemExit),
    "objects in a list": lambda: [raising("__array__")()],
    "half of a surrogate pair": lambda: "\ud800",
    "one in a list ": lambda: ["\ud800"],
    "NaT in a list": lambda: [pd.NaT],
    "mixed": lambda: [1, "a", {"b": [None, (1, {2})]}],
    "a large integer": lambda: 10**30,
    "an array": lambda: np.arange(3),
    "a frame": lambda: pd.DataFrame({"a": [1]}),
    "a period": lambda: pd.Period("2026"),
    "90 levels": lambda: deep(90),
}


def run_with(engine: str, function: Callable[[int], Any], **options: Any) -> revkit.ParallelResult:
    frame = pd.DataFrame({"number": range(4)})

    async def later(row: Any) -> Any:
        return function(row["number"])

    task: Any = later if engine == "async" else lambda row: function(row["number"])
    return frame.llm.parallel_map(task, **options)


def check_shown(run: revkit.ParallelResult) -> None:
    """The user can look at all of it."""
    assert run is revkit.last_result()
    assert run.frame.to_string()
    assert run._repr_html_()
    assert len(run.rows) == 4
    assert len(run.errors) == run.metrics.failed


@pytest.mark.parametrize("make", FAILS.values(), ids=FAILS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("beside", [lambda n: n, lambda n: [n]], ids=["numbers", "lists"])
def test_a_value_that_no_column_survives_is_its_rows_error(
    engine: str, make: Callable[[], Any], beside: Callable[[int], Any]
) -> None:
    run = run_with(engine, lambda n: make() if n == 1 else beside(n))
    assert run.frame["error"].isna().tolist() == [True, False, True, True]
    assert [run.frame["response"].iloc[n] for n in (0, 2, 3)] == [beside(n) for n in (0, 2, 3)]
    check_shown(run)


@pytest.mark.parametrize("make", STAYS.values(), ids=STAYS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("beside", [lambda n: n, lambda n: [n]], ids=["numbers", "lists"])
def test_an_odd_value_stands_in_its_column(
    engine: str, make: Callable[[], Any], beside: Callable[[int], Any]
) -> None:
    run = run_with(engine, lambda n: make() if n == 1 else beside(n))
    assert run.metrics.succeeded == 4
    assert [run.frame["response"].iloc[n] for n in (0, 2, 3)] == [beside(n) for n in (0, 2, 3)]
    check_shown(run)


def test_names_of_outputs_are_text() -> None:
    run = run_with("thread", lambda n: {1: n} if n % 2 else {"1": n, "\ud800": n})
    assert run.frame["1"].tolist() == [0, 1, 2, 3]
    assert list(run.frame.columns) == ["number", "1", "\\ud800", "error"]


def test_two_outputs_that_give_way_keep_a_column_each() -> None:
    with pytest.warns(UserWarning, match="is the name of a column already"):
        run = run_with("thread", lambda n: {"error": n, "output_error": -n})
    assert run.frame["output_error"].tolist() == [0, 1, 2, 3]
    assert run.frame["output_output_error"].tolist() == [0, -1, -2, -3]


def test_what_a_function_changes_later_reaches_no_column() -> None:
    shared: list[Any] = []

    def function(n: int) -> Any:
        shared.append(n)
        return {"plain": shared, "inside": {"of": shared}}

    run = run_with("thread", function, max_workers=1)
    shared.append(shared)  # it contains itself only now
    assert run.frame["plain"].map(len).tolist() == [1, 2, 3, 4]
    assert run.frame["inside"].map(lambda value: len(value["of"])).tolist() == [1, 2, 3, 4]


def test_samples_without_a_hash_are_counted_by_how_they_read() -> None:
    kind: Any = raising("__hash__")
    kind.__repr__ = lambda self: "odd"
    run = run_with("thread", lambda n: kind(), repeat=3)
    assert run.frame["response_agreement"].tolist() == [1.0] * 4


@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(st.characters()) | st.sampled_from([Odd]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
            | st.tuples(inner)
        ),
    )
)
def test_values_are_read_or_refused_and_nothing_else(made: Any) -> None:
    try:
        values = values_of({"x": made}, "response", "f")
    except BadOutput:
        return
    assert repr(values)
