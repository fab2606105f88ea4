"""Values of outputs: what a type comes to as a column, and what is refused before it is paid."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import io
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypeVar

import numpy as np
import pandas as pd
import pydantic
import pytest
from typing_extensions import TypeAliasType, TypedDict

import revkit
from revkit import BadOutput, Field, Signature, UsageError
from revkit.tables.dtypes import STRING
from revkit.task.outputs import Outputs
from revkit.testing import FakeModel

ENGINES = ["thread", "async"]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Tone(enum.StrEnum):
    WARM = "warm"
    COLD = "cold"


Stars = Annotated[int, pydantic.Field(ge=1, le=5)]
Mood = Annotated[Literal["good", "bad"], pydantic.Field(description="how it reads")]
UserId = NewType("UserId", int)
Sides = TypeAliasType("Sides", Literal["left", "right"])
T = TypeVar("T")
Maybe = TypeAliasType("Maybe", Annotated[T | None, "if there is one"], type_params=(T,))


class Score(pydantic.RootModel[float]):
    pass


# -- what pydantic would read as something else ---------------------------------------------------


class Visit(pydantic.BaseModel):
    at: dt.datetime


MISREAD: dict[str, tuple[Any, str, Any]] = {
    "true for a number": (int, "true", "true is no number"),
    "false for an optional number": (float | None, "false", "false is no number"),
    "true in a list of numbers": (list[int], "[1, true]", "true is no number"),
    "true for a label": ([1, 2, 3], "true", "true is no label"),
    "false for a label": ([0, 1], "false", "false is no label"),
    "true for a member": (Level, "true", "true is no label"),
    "a year for a time": (dt.datetime, "2024", "2024 is no date or time"),
    "a year as text": (dt.datetime, '"2024"', '"2024" is no date or time'),
    "digits for a time": (dt.datetime | None, '"20240501"', '"20240501" is no date or time'),
    "a number for a date": (dt.date, "86400", "86400 is no date or time"),
    "an hour for a time of day": (dt.time, "10", "10 is no date or time"),
    "a year in a list": (list[dt.datetime], '["2024-05-01", 2024]', "2024 is no date or time"),
    "a number for a text": (str, "1.10", "1.10"),
    "many digits for a text": (str, "12345678901234567890.5", "12345678901234567890.5"),
    "numbers for texts": (list[str], '[1.10, "b", 2]', ["1.10", "b", "2"]),
    "many digits": (Decimal, "12345678901234567890.12", Decimal("12345678901234567890.12")),
    "zeros": (Decimal | None, "1.10", Decimal("1.10")),
    "a date": (dt.date, '"2024-05-01"', dt.date(2024, 5, 1)),
    "words that look like it": (str, '"is it true: 1.5, or [2024]"', "is it true: 1.5, or [2024]"),
}


@pytest.mark.parametrize(("type_", "text", "wanted"), MISREAD.values(), ids=MISREAD)
@pytest.mark.parametrize("engine", ENGINES)
def test_no_value_is_read_as_something_else(
    type_: Any, text: str, wanted: Any, engine: Literal["thread", "async"]
) -> None:
    task = Signature("Say it.", inputs="q", outputs={"x": type_, "note": str})
    model = FakeModel(lambda _: f'{{"x": {text}, "note": "n"}}')
    frame = pd.DataFrame({"q": ["a"]})
    if isinstance(wanted, str) and " is no " in wanted:
        with pytest.raises(revkit.RunFailed) as caught:
            frame.llm.parallel_map(task, model=model, engine=engine)
        (error,) = caught.value.result.errors.to_dict("records")
        assert error["error_type"] == "BadOutput"
        assert f"x: {wanted}" in error["message"]
    else:
        frame.llm.parallel_map(task, model=model, engine=engine)
        found = frame["x"].tolist()[0]
        assert str(found) == str(wanted)  # Decimal("1.1") equals Decimal("1.10")
        assert found == wanted


def test_a_pydantic_class_reads_no_year_as_seconds() -> None:
    outputs = Outputs(Visit)
    with pytest.raises(BadOutput, match=r"at: 2024 is no date or time"):
        outputs.parse('{"at": 2024}')
    assert outputs.parse('{"at": "2024-05-01T10:00"}') == {"at": dt.datetime(2024, 5, 1, 10)}


# -- what a type comes to as a column -------------------------------------------------------------

LISTS = "list<item: int64>[pyarrow]"
TYPED: dict[str, tuple[Any, str, Any, str]] = {
    "constraints": (Stars, "3", 3, "Int64"),
    "constraints, optional": (Stars | None, "3", 3, "Int64"),
    "optional, constraints": (Annotated[int | None, pydantic.Field(ge=1)], "3", 3, "Int64"),
    "constraints twice": (Annotated[Stars, pydantic.Field(ge=2)], "3", 3, "Int64"),
    "conint": (pydantic.conint(ge=1), "3", 3, "Int64"),
    "positive float": (pydantic.PositiveFloat, "2.5", 2.5, "Float64"),
    "constrained text": (pydantic.constr(max_length=5), '"a"', "a", STRING),
    "strict bool": (pydantic.StrictBool | None, "true", True, "boolean"),
    "labels": (Mood, '"bad"', "bad", "category"),
    "labels, optional": (Mood | None, '"bad"', "bad", "category"),
    "optional, labels": (Annotated[Literal["good", "bad"] | None, "x"], '"bad"', "bad", "category"),
    "None as a label": (Literal["good", "bad", None], '"bad"', "bad", "category"),
    "an Enum": (Annotated[Colour, "x"] | None, '"blue"', "blue", "category"),
    "an IntEnum": (Level, "2", 2, "category"),
    "a StrEnum": (Tone, '"cold"', "cold", "category"),
    "a new type": (UserId, "3", 3, "Int64"),
    "an alias": (Sides, '"left"', "left", "category"),
    "an alias of a type": (Maybe[int], "3", 3, "Int64"),
    "a root model": (Score, "2.5", 2.5, "Float64"),
    "constrained items": (list[Stars], "[1, 2]", [1, 2], LISTS),
    "an optional list": (list[UserId] | None, "[1, 2]", [1, 2], LISTS),
    "Enum's members in a list": (list[Colour], '["red"]', ["red"], "object"),
}


@pytest.mark.parametrize(("type_", "text", "value", "dtype"), TYPED.values(), ids=TYPED)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_said_of_a_type_does_not_change_its_column(
    engine: Any, type_: Any, text: str, value: Any, dtype: str
) -> None:
    """As a type of an output, and as that of a field of a pydantic model."""
    fields: dict[str, Any] = {"out": (type_, ...)}
    for outputs in ({"out": type_}, pydantic.create_model("Out", **fields)):
        task = Signature("Do it.", inputs="review", outputs=outputs)
        for texts in (["a", "b"], []):
            df = pd.DataFrame({"review": pd.array(texts, dtype=STRING)})
            model = FakeModel(lambda prompt: f'{{"out": {text}}}')
            run = df.llm.parallel_map(task, model=model, engine=engine, store=False)
            for frame in (df, run.frame):
                assert str(frame["out"].dtype).replace("element:", "item:") == dtype
                assert frame["out"].tolist() == [value] * len(texts)


def test_constraints_are_told_and_hold() -> None:
    task = Signature("Rate.", inputs="review", outputs={"stars": Stars, "mood": Mood | None})
    schema = task.outputs.json_schema
    assert schema is not None
    assert schema["properties"]["stars"] == {"maximum": 5, "minimum": 1, "type": "integer"}
    assert '"maximum": 5' in task.outputs["stars"].words()
    assert task.outputs["mood"].labels == ("good", "bad")
    with pytest.raises(revkit.BadOutput, match="stars: Input should be less than or equal to 5"):
        task.parse('{"stars": 6, "mood": null}')
    assert task.parse('{"stars": 5, "mood": null}') == {"stars": 5, "mood": None}


@pytest.mark.parametrize(
    ("type_", "reply", "value"),
    [
        (bool, "true", True),
        (bool, "False.", False),
        (bool | None, "**true**", True),
        (Stars, "4", 4),
        (list[Annotated[Literal["a", "b"], "which"]], '{"out": ["A"]}', ["a"]),
        (list[Colour], '{"out": ["RED"]}', [Colour.RED]),
    ],
)
def test_what_has_one_reading_is_read(type_: Any, reply: str, value: Any) -> None:
    assert Outputs({"out": Field(type_)}).parse(reply)["out"] == value


@pytest.mark.parametrize(
    ("type_", "reply", "rule"),
    [(Stars, "9", "less than or equal to 5"), (int, "4.5", "fractional"), (bool, "yes", "JSON")],
)
def test_a_bare_value_that_breaks_a_rule_is_told_which(type_: Any, reply: str, rule: str) -> None:
    with pytest.raises(BadOutput, match=rule):
        Outputs({"out": Field(type_)}).parse(reply)


def test_a_validator_in_a_type_is_asked_about_every_reply() -> None:
    seen: list[int] = []
    counted = Annotated[int, pydantic.AfterValidator(lambda n: seen.append(n) or n)]
    outputs = Signature("Count.", inputs="review", outputs={"n": counted}).outputs
    for _ in range(3):
        outputs.parse('{"n": 1}')
    assert seen == [1, 1, 1]


def test_a_validator_that_makes_another_value_of_a_label_loses_none() -> None:
    loud = Annotated[Literal["good", "bad"], pydantic.AfterValidator(str.upper)]
    df = pd.DataFrame({"review": ["a"]})
    task = Signature("Judge.", inputs="review", outputs={"mood": loud})
    df.llm.parallel_map(task, model=FakeModel(['{"mood": "good"}']), store=False)
    assert df["mood"].tolist() == ["GOOD"]


def test_labels_that_differ_in_case_only_are_told_apart() -> None:
    outputs = Outputs({"x": Field(Annotated[Literal["us", "US", "no"], "x"])})
    read = [outputs.parse(f'{{"x": "{text}"}}')["x"] for text in ("us", "US", " No ")]
    assert read == ["us", "US", "no"]
    with pytest.raises(BadOutput):
        outputs.parse('{"x": "uS"}')


def test_members_in_nested_values_can_be_saved(tmp_path: Path) -> None:
    class Aspect(pydantic.BaseModel):
        name: str
        colour: Colour

    df = pd.DataFrame({"review": ["a"]})
    task = Signature(
        "x", inputs="review", outputs={"aspects": list[Aspect], "by": dict[str, Level]}
    )
    reply = '{"aspects": [{"name": "lid", "colour": "red"}], "by": {"lid": 2}}'
    run = df.llm.parallel_map(task, model=FakeModel([reply]), store=False)
    run.to_parquet(tmp_path / "run.parquet")
    for frame in (df, revkit.ParallelResult.read_parquet(tmp_path / "run.parquet").frame):
        assert frame["aspects"].tolist() == [[{"name": "lid", "colour": "red"}]]
        assert frame["by"].tolist() == [{"lid": 2}]


# -- examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "given", "shown"),
    [
        (Colour, Colour.RED, '"red"'),
        (Colour, "red", '"red"'),
        (Annotated[Colour, "x"] | None, Colour.RED, '"red"'),
        (Level, Level.HIGH, "2"),
        (Level, 2, "2"),
        (Tone, Tone.WARM, '"warm"'),
        (["red", "blue"], Colour.BLUE, '"blue"'),
        (Mood | None, None, "null"),
        (Literal["good", "bad", None], None, "null"),
        (list[Colour], [Colour.RED], '["red"]'),
        (float, np.float64(0.5), "0.5"),
        (int, np.int64(3), "3"),
        (bool, np.bool_(True), "true"),
        (float | None, pd.NA, "null"),
        (dt.date, dt.date(2026, 12, 1), '"2026-12-01"'),
        (dt.datetime, pd.Timestamp("2026-12-01"), '"2026-12-01 00:00:00"'),
        (list[str], np.array(["a"], dtype=object), '["a"]'),
    ],
)
def test_examples_as_the_model_should_have_written_them(type_: Any, given: Any, shown: str) -> None:
    example = {"review": "x", "out": given}
    task = Signature("Do it.", inputs="review", outputs={"out": type_}, examples=[example])
    assert task.prefix[2]["content"] == f'{{"out": {shown}}}'
    task.parse(task.prefix[2]["content"])


@pytest.mark.parametrize("given", [Tone.WARM, Level.LOW, "green", None, ["red"]])
def test_examples_that_are_no_label_are_refused(given: Any) -> None:
    with pytest.raises(UsageError, match=r"example 1: out=.* is not a label"):
        Signature("x", inputs="r", outputs={"out": Colour}, examples=[{"r": "", "out": given}])


# -- pydantic models ------------------------------------------------------------------------------


class Computed(pydantic.BaseModel):
    stars: int

    @pydantic.computed_field(description="of ten")
    def of_ten(self) -> int:
        return self.stars * 2


class ReadBy(pydantic.BaseModel):
    stars: int = pydantic.Field(validation_alias="Stars")


class WrittenAs(pydantic.BaseModel):
    stars: int = pydantic.Field(serialization_alias="Stars")


class Choice(pydantic.BaseModel):
    stars: int = pydantic.Field(validation_alias=pydantic.AliasChoices("Stars", "rating"))


class Generated(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=str.upper)
    stars: int


class Named(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        alias_generator=str.upper, validate_by_alias=False, validate_by_name=True
    )
    stars: int


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    stars: int


class Closed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_enum_values=True)
    stars: int
    colour: Colour


class Of(pydantic.BaseModel, Generic[T]):
    stars: T


class Hidden(pydantic.BaseModel):
    stars: int = pydantic.Field(exclude=True)
    _own: int = pydantic.PrivateAttr(3)


class Text(pydantic.BaseModel):
    stars: int

    @pydantic.model_serializer
    def text(self) -> str:
        return f"{self.stars} stars"


class Other(pydantic.BaseModel):
    stars: int

    @pydantic.model_serializer
    def other(self) -> dict[str, int]:
        return {"moons": self.stars}


class Written(pydantic.BaseModel):
    stars: int

    @pydantic.field_serializer("stars")
    def drawn(self, stars: int) -> str:
        return "*" * stars


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    name: str


class Owner(pydantic.BaseModel):
    pet: Cat | Dog = pydantic.Field(discriminator="kind")


class Node(pydantic.BaseModel):
    name: str
    parts: list[Node] = []


SHAPES: list[tuple[Any, str, dict[str, Any]]] = [
    (Computed, '{"stars": 3}', {"stars": 3, "of_ten": 6}),
    (ReadBy, '{"Stars": 3}', {"Stars": 3}),
    (WrittenAs, '{"stars": 3}', {"stars": 3}),
    (Choice, '{"Stars": 3}', {"Stars": 3}),
    (Generated, '{"STARS": 3}', {"STARS": 3}),
    (Named, '{"stars": 3}', {"stars": 3}),
    (Open, '{"stars": 3, "error": "x", "review": "y"}', {"stars": 3}),
    (Closed, '{"stars": 3, "colour": "red"}', {"stars": 3, "colour": "red"}),
    (Of[int], '{"stars": 3}', {"stars": 3}),
    (Of, '{"stars": 3}', {"stars": 3}),
    (Hidden, '{"stars": 3}', {"stars": 3}),
    (Text, '{"stars": 3}', {"stars": 3}),
    (Other, '{"stars": 3}', {"stars": 3}),
    (Written, '{"stars": 3}', {"stars": "***"}),
    (
        Owner,
        '{"pet": {"kind": "cat", "lives": 9}}',
        {"pet": {"kind": "cat", "lives": 9}},
    ),
    (Node, '{"name": "a", "parts": []}', {"name": "a", "parts": []}),
]


@pytest.mark.parametrize(
    ("model", "reply", "values"), SHAPES, ids=lambda x: getattr(x, "__name__", "")
)
@pytest.mark.filterwarnings("ignore:repeat=3 asks fake")  # the samples may well be equal
@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_shape_of_a_pydantic_model(
    engine: Any, repeat: int, model: Any, reply: str, values: dict[str, Any]
) -> None:
    """Its outputs are the same before and after the run, also where rows are repeated."""
    task = Signature("Do it.", inputs="review", outputs=model)
    assert list(task.outputs) == list(values)
    asked = [name for name in values if f'"{name}"' in reply]
    assert list(task.outputs.asked) == asked
    schema = task.outputs.json_schema
    assert schema is not None
    root = schema if "properties" in schema else schema["$defs"]["Node"]
    assert list(root["properties"]) == asked
    assert all(f'- "{name}":' in task.outputs.describe() for name in asked)
    df = pd.DataFrame({"review": ["r"]})
    fake = FakeModel(lambda prompt: reply)
    run = df.llm.parallel_map(task, model=fake, engine=engine, store=False, repeat=repeat)
    assert run.metrics.succeeded == repeat
    assert df["review"].tolist() == ["r"]
    assert df["error"].isna().all()
    assert {name: df[name].iloc[0] for name in values} == values
    left = {"review", "error", *values, *(f"{name}{end}" for name in values for end in ENDS)}
    assert set(df.columns) <= left


ENDS = ("_agreement", "_tied")


def test_what_a_model_computes_does_not_overwrite() -> None:
    df = pd.DataFrame({"review": ["r"], "of_ten": ["mine"]})
    task = Signature("Do it.", inputs="review", outputs=Computed)
    with pytest.raises(revkit.ColumnExists):
        df.llm.parallel_map(task, model=FakeModel([]))
    with pytest.raises(UsageError, match='"of_ten" is both an input and an output'):
        Signature("Do it.", inputs="of_ten", outputs=Computed)
    example = {"review": "r", "stars": 3}
    shown = Signature("Do it.", inputs="review", outputs=Computed, examples=[example]).prefix
    assert shown[2]["content"] == '{"stars": 3}'
    assert "of_ten" not in shown[0]["content"]


class Words(pydantic.RootModel[list[str]]):
    pass


class Deep(pydantic.BaseModel):
    stars: int = pydantic.Field(validation_alias=pydantic.AliasPath("ratings", 0))


class Undefined(pydantic.BaseModel):
    stars: "NotThere"  # type: ignore[name-defined]  # noqa: F821, UP037


class Called(pydantic.BaseModel):
    stars: Callable[[], int]


@dataclasses.dataclass
class Data:
    stars: int


class Typed(TypedDict):
    stars: int


class Pair(NamedTuple):
    stars: int


WAY = 'outputs= takes a mapping of name to type, such as {"answer": '
REFUSED: list[tuple[Any, str]] = [
    (Words, 'has no keys to name columns by; name its value: outputs={"answer": list[str]}'),
    (Deep, "Deep reads stars from within another value (AliasPath)"),
    (Undefined, "Undefined cannot be asked for: name 'NotThere' is not defined: define it"),
    (Called, "cannot be asked for: Cannot generate a JsonSchema for"),
    ({"f": Callable[[], int]}, "use types that JSON can hold"),
    ({"f": io.StringIO}, "use types that JSON can hold"),
    (Data, WAY + "Data}"),
    (Typed, WAY + "Typed}"),
    (Pair, WAY + "Pair}"),
    (Colour, WAY + "Colour}"),
    (list[str], WAY + "list[str]}"),
    (Literal["a", "b"], WAY + "typing.Literal['a', 'b']}"),
    (Stars, WAY + "typing.Annotated[int"),
    (Sides, WAY + "Sides}"),
    (UserId, WAY),
]


@pytest.mark.parametrize(("outputs", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_asked_for_is_refused_before_anything_is_sent(
    outputs: Any, words: str
) -> None:
    sent: list[str] = []
    df = pd.DataFrame({"review": ["r"]})

    def call() -> None:
        task = Signature("Do it.", inputs="review", outputs=outputs)
        df.llm.parallel_map(task, model=FakeModel(lambda text: sent.append(text) or ""))

    with pytest.raises(UsageError) as refused:
        call()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sent == []


@pytest.mark.parametrize("type_", [Words, Data, Typed, Pair, Owner, Node])
def test_what_has_no_keys_of_its_own_can_be_one_output(type_: Any) -> None:
    task = Signature("Do it.", inputs="review", outputs={"answer": type_})
    value: Any = {Words: ["a"], Owner: {"pet": {"kind": "dog", "name": "x"}}}.get(type_)
    if type_ is Pair:
        value = [3]
    value = value or ({"name": "a", "parts": []} if type_ is Node else {"stars": 3})
    example = [{"review": "", "answer": value}]
    shown = Signature("x", inputs="review", outputs={"answer": type_}, examples=example).prefix
    df = pd.DataFrame({"review": ["r"]})
    df.llm.parallel_map(task, model=FakeModel([shown[2]["content"]]), store=False)
    found = df["answer"].iloc[0]
    assert (list(found) if type_ is Pair else found) == value
