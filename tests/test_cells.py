"""Every cell is sent whole, as a person would write it."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import json
import types
import uuid
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import revkit
from revkit import Signature, UsageError
from revkit.task.cells import text_of
from revkit.task.kinds import Template
from revkit.testing import FakeModel


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Mixed(str, enum.Enum):  # noqa: UP042 - as many have it, from before StrEnum
    A = "a"


class Spoken(enum.Enum):
    ONE = 1

    def __str__(self) -> str:
        return "number one"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Ticket:
    number: int
    colour: Colour


@dataclasses.dataclass
class Titled:
    number: int

    def __str__(self) -> str:
        return f"no. {self.number}"


class Point(NamedTuple):
    x: int
    y: Any


class Order(pydantic.BaseModel):
    when: dt.date
    note: str | None = None
    of: str = pydantic.Field("Ann", alias="by whom")


class Tags(pydantic.RootModel[list[str]]):
    pass


class Nameless:
    pass


class Bag(dict[str, int]):
    def __str__(self) -> str:
        return "a bag"


UTC = dt.UTC
MOMENT = dt.datetime(2026, 12, 1, 14, 30)

CELLS: dict[str, tuple[Any, str]] = {
    "an array of text": (np.array(["a", "b"], dtype=object), '["a", "b"]'),
    "an array of two dimensions": (np.arange(4).reshape(2, 2), "[[0, 1], [2, 3]]"),
    "an array of floats": (np.array([0.1, np.nan, np.inf]), '[0.1, null, "inf"]'),
    "an array of short floats": (np.array([0.1], "f4"), "[0.1]"),
    "an array of truths": (np.array([True, False]), "[true, false]"),
    "an array of times": (
        np.array(["2026-12-01T14:30", "NaT"], "M8[ns]"),
        '["2026-12-01 14:30:00", null]',
    ),
    "an array of days": (np.array(["2026-12-01"], "M8[D]"), '["2026-12-01"]'),
    "an array of spans": (np.array([5400, "NaT"], "m8[s]"), '["1:30:00", null]'),
    "an array of fixed text": (np.array(["a"]), '["a"]'),
    "an array of bytes": (np.array([b"a"]), '["a"]'),
    "a masked array": (np.ma.array([1, 2], mask=[False, True]), "[1, null]"),
    "an array of one number": (np.array(3), "3"),
    "arrays in an array": (pd.Series([np.array([1]), np.array([2])]).to_numpy(), "[[1], [2]]"),
    "missing values in a list": ([None, pd.NA, pd.NaT, np.nan], "[null, null, null, null]"),
    "a tuple": ((1, "x"), '[1, "x"]'),
    "a set": ({f"word {i}" for i in range(10)}, json.dumps([f"word {i}" for i in range(10)])),
    "a set of kinds": ({1, "a"}, '["a", 1]'),
    "a mapping": ({"a": [{"b": None}]}, '{"a": [{"b": null}]}'),
    "keys that are no text": (
        {2: "x", dt.date(2026, 1, 1): 1, None: 1, (1, 2): 3},
        '{"2": "x", "2026-01-01": 1, "null": 1, "[1, 2]": 3}',
    ),
    "two keys of one text": ({1: "a", "1": "b"}, '[[1, "a"], ["1", "b"]]'),
    "text of any script": (["é", "好", '"'], '["é", "好", "\\""]'),
    "a date": (dt.date(2026, 12, 1), "2026-12-01"),
    "dates in a list": ([dt.date(2026, 12, 1), MOMENT], '["2026-12-01", "2026-12-01 14:30:00"]'),
    "a zone": (MOMENT.replace(tzinfo=UTC), "2026-12-01 14:30:00+00:00"),
    "a Timestamp": (pd.Timestamp(MOMENT), "2026-12-01 14:30:00"),
    "a Timestamp in a list": ([pd.Timestamp(MOMENT, tz="UTC")], '["2026-12-01 14:30:00+00:00"]'),
    "numpy's time": (np.datetime64("2026-12-01T14:30:00", "ns"), "2026-12-01 14:30:00"),
    "a Timedelta": (pd.Timedelta("90min"), "0 days 01:30:00"),
    "a span": (dt.timedelta(minutes=90), "1:30:00"),
    "a Period": (pd.Period("2026-12"), "2026-12"),
    "an Interval": (pd.Interval(0, 1), "(0, 1]"),
    "a decimal": (Decimal("12.50"), "12.50"),
    "a decimal with an exponent": (Decimal("1E+3"), "1000"),
    "decimals in a list": (
        [Decimal("12.50"), Decimal("1.5"), Decimal("NaN")],
        '["12.50", 1.5, null]',
    ),
    "a decimal of many digits": ([Decimal("0.12345678901234567890")], '["0.12345678901234567890"]'),
    "numpy's numbers in a list": ([np.float64(0.1), np.int64(3), np.bool_(True)], "[0.1, 3, true]"),
    "numpy's float": (np.float64(0.1), "0.1"),
    "numpy's short float": (np.float32(0.1), "0.1"),
    "numpy's truth": (np.bool_(True), "True"),
    "numpy's text": (np.str_("x"), "x"),
    "an integer of 30 digits": ([10**30], f"[1{'0' * 30}]"),
    "bytes of text": (b"caf\xc3\xa9", "café"),
    "bytes in a list": ([b"a", bytearray(b"b")], '["a", "b"]'),
    "an Enum's member": (Colour.RED, "red"),
    "an IntEnum's": (Level.HIGH, "3"),
    "a text Enum's": (Mixed.A, "a"),
    "a StrEnum's": (enum.StrEnum("S", {"B": "b"})("b"), "b"),
    "an Enum that says itself": (Spoken.ONE, "number one"),
    "a Flag": (Right.READ | Right.WRITE, str(Right.READ | Right.WRITE)),
    "members in a list": ([Colour.RED, Level.HIGH, Mixed.A], '["red", 3, "a"]'),
    "a dataclass": (Ticket(1, Colour.RED), '{"number": 1, "colour": "red"}'),
    "a dataclass that says itself": (Titled(1), "no. 1"),
    "a named tuple": (Point(1, np.array([2])), '{"x": 1, "y": [2]}'),
    "a pydantic object": (
        Order(when=dt.date(2026, 1, 1)),
        '{"when": "2026-01-01", "note": null, "by whom": "Ann"}',
    ),
    "a root model": (Tags(["a"]), '["a"]'),
    "pydantic objects in a list": ([Tags(["a"])], '[["a"]]'),
    "pyarrow's list": (pa.scalar([1, None]), "[1, null]"),
    "pyarrow's struct": (pa.scalar({"a": 1}), '{"a": 1}'),
    "pyarrow's map": (pa.scalar([("k", 1)], pa.map_(pa.string(), pa.int64())), '[["k", 1]]'),
    "pyarrow's text": (pa.scalar("x"), "x"),
    "pyarrow's array": (pa.array(["x", None]), '["x", null]'),
    "pyarrow's table": (pa.table({"a": [1]}), '[{"a": 1}]'),
    "a Series": (pd.Series([1, 2]), "[1, 2]"),
    "a Series with labels": (pd.Series({"a": 1, "b": "x"}), '{"a": 1, "b": "x"}'),
    "a Series with a label twice": (pd.Series([1, 2], ["a", "a"]), '[["a", 1], ["a", 2]]'),
    "a frame": (pd.DataFrame({"a": [1], "b": [None]}), '[{"a": 1, "b": null}]'),
    "a frame with labels": (pd.DataFrame({"a": [1]}, ["r"]), '[{"index": "r", "a": 1}]'),
    "an Index": (pd.Index(["a"]), '["a"]'),
    "a Categorical": (pd.Categorical(["a", None]), '["a", null]'),
    "nullable integers": (pd.array([1, None], dtype="Int64"), "[1, null]"),
    "a deque": (collections.deque([1]), "[1]"),
    "a Counter": (collections.Counter("aab"), '{"a": 2, "b": 1}'),
    "a read-only mapping": (types.MappingProxyType({"a": 1}), '{"a": 1}'),
    "a mapping's values": ({"a": 1}.values(), "[1]"),
    "a mapping that says itself": (Bag(a=1), "a bag"),
    "a UUID": (uuid.UUID(int=1), str(uuid.UUID(int=1))),
    "a path": (PurePosixPath("/a"), "/a"),
    "a fraction": ([Fraction(1, 3)], '["1/3"]'),
    "nothing": ([], "[]"),
}


@pytest.mark.parametrize(("value", "text"), CELLS.values(), ids=CELLS)
def test_a_cell_as_it_is_sent(value: Any, text: str) -> None:
    assert text_of(value, "x") == text
    assert Template("<{x}>").user_text({"x": value}) == f"<{text}>"
    one = Signature("Do it.", inputs="x", outputs="y")
    assert one.user_text({"x": value}) == text
    example = {"x": value, "z": 1, "y": ""}
    two = Signature("Do it.", inputs=["x", "z"], outputs="y", examples=[example])
    assert two.user_text({"x": value, "z": 1}) == f"x: {text}\nz: 1"
    assert two.prefix[1]["content"] == f"x: {text}\nz: 1"


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"\xff\xfe", 'the input "x" is 2 bytes that are no UTF-8 text: decode the column first'),
        ([b"\xff"], "no UTF-8 text"),
        (Nameless(), 'the input "x" is a Nameless, and its class does not say how it is written'),
        ([Nameless()], "Nameless"),
        (text_of, 'the input "x" is a function'),
        (iter([1]), "list_iterator"),
        (CYCLE, 'the input "x" is a list that holds itself, or is nested too deeply'),
    ],
    ids=["bytes", "bytes in a list", "object", "object in a list", "function", "iterator", "cycle"],
)
def test_a_cell_without_text_is_its_rows_error(engine: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError, match="nothing was sent"):
        text_of(value, "x")
    df = pd.DataFrame({"x": pd.Series(["fine", value, "fine"], dtype=object)})
    sent: list[str] = []
    run = df.llm.parallel_map("{x}", model=model(sent), engine=engine, store=False)
    assert sent == ["fine"] * 2
    assert run.errors["row"].tolist() == [1]
    assert words in run.errors["message"].iloc[0]


@pytest.fixture(params=["thread", "async"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param


def model(sent: list[str]) -> FakeModel:
    def answer(text: str) -> str:
        sent.append(text)
        return "ok"

    return FakeModel(answer)


# -- what was sent plainly before is sent so still: the keys of kept replies hang on it ------------

plainly = st.one_of(
    st.text(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.dates(),
    st.datetimes(),
    st.times(),
    st.timedeltas(),
    st.none(),
    st.uuids(),
    st.builds(pd.Timestamp, st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))),
    st.floats().map(np.float64),
    st.floats(width=32).map(np.float32),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.decimals(allow_nan=False, allow_infinity=False, places=2),
)


@given(plainly)
def test_what_has_one_text_is_sent_as_that(value: Any) -> None:
    assert text_of(value, "x") == str(value)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(values, max_size=5) | st.dictionaries(st.text(), values, max_size=5))
def test_nested_values_are_sent_as_json_and_whole(value: Any) -> None:
    text = text_of(value, "x")
    assert json.loads(text) == value
    assert "\n" not in text
    if isinstance(value, list):
        array = np.empty(len(value), dtype=object)
        array[:] = value
        assert text_of(array, "x") == text_of(tuple(value), "x") == text


@given(st.lists(st.floats(width=32) | st.none()), st.sampled_from(["f4", "f8"]))
def test_arrays_hold_no_token_that_json_has_not(numbers: list[float | None], dtype: str) -> None:
    array = np.array(numbers, dtype=dtype)
    read = json.loads(text_of(array, "x"), parse_constant=lambda token: pytest.fail(token))
    back = np.array([np.nan if x is None else float(x) for x in read], dtype=dtype)
    np.testing.assert_array_equal(back, array)


# -- through frames --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [None, "pyarrow"])
def test_a_list_column_from_parquet_is_sent_whole(
    engine: str, backend: Any, tmp_path: Path
) -> None:
    turns = [[f"turn-{i}" for i in range(1500)], None, []]
    pd.DataFrame({"turns": turns}).to_parquet(tmp_path / "in.parquet")
    options = {} if backend is None else {"dtype_backend": backend}
    df = pd.read_parquet(tmp_path / "in.parquet", **options)
    sent: list[str] = []
    run = df.llm.parallel_map("{turns}", model=model(sent), engine=engine, store=False)
    assert sorted(map(json.loads, sent)) == [[], turns[0]]
    assert run.errors["error_type"].tolist() == ["MissingInput"]
    assert df["response"].tolist()[::2] == ["ok", "ok"]  # arrays are no change of the frame
    assert df["error"].isna().tolist() == [True, False, True]


def test_only_the_cell_itself_can_be_missing() -> None:
    cells = [np.array([np.nan]), [None], (pd.NA,), pd.Series([None]), None, pd.NA, np.nan]
    sent: list[str] = []
    for run in (
        pd.DataFrame({"x": cells}).llm.parallel_map("{x}", model=model(sent), store=False),
        revkit.parallel_map([{"x": x} for x in cells], "{x}", model=model(sent), store=False),
        revkit.parallel_map(cells, "{x}", model=model(sent), store=False),
        pd.Series(cells).llm.parallel_map("{x}", model=model(sent), store=False),
    ):
        assert run.errors["row"].tolist() == [4, 5, 6]
    assert sent == ["[null]"] * 4 * 4


def test_rows_with_equal_cells_are_asked_once(tmp_path: Path) -> None:
    """Arrays of one text share a key, and so do sets, in whatever order they come."""
    df = pd.DataFrame({"x": [np.array([1, 2]), [1, 2], {2, 1}, frozenset([1, 2])]})
    sent: list[str] = []
    df.llm.parallel_map("{x}", model=model(sent), store=tmp_path / "store")
    assert sent == ["[1, 2]"]


def test_a_preview_shows_the_cell_as_it_is_sent() -> None:
    df = pd.DataFrame({"x": [np.arange(1500), np.array(["<b>", None], dtype=object)]})
    look = df.llm.preview("{x}", n=2, send=False, model=FakeModel(str))
    whole = json.dumps(list(range(1500)))
    assert look.prompts["content"].tolist() == [whole, '["<b>", null]']
    for shown in (repr(look), look._repr_html_()):
        assert f"{len(whole) - 2000:,} more characters: preview.prompts" in shown
    assert "[0, 1, 2, 3" in repr(look)
    assert "[&quot;&lt;b&gt;&quot;, null]" in look._repr_html_()


def test_a_chain_passes_lists_on_whole() -> None:
    df = pd.DataFrame({"review": ["r"]})
    words = Signature("List.", inputs="review", outputs={"words": list[str]})
    sent: list[str] = []
    df.llm.parallel_map(words, model=FakeModel(['{"words": ["a", "b"]}']), store=False)
    df.llm.parallel_map("{words}", model=model(sent), store=False, error="error2")
    assert sent == ['["a", "b"]']
