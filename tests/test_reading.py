"""A value is read out of a whole answer, never out of a fragment, and in one way only."""

from __future__ import annotations

import enum
import json
from typing import Annotated, Any, Literal

import pandas as pd
import pydantic
import pytest
from calls import Run, by_loop, by_thread
from hypothesis import given
from hypothesis import strategies as st
from servers import serve

import revkit
from revkit import BadOutput, RunFailed, Signature
from revkit.task.candidates import candidates
from revkit.task.outputs import Outputs
from revkit.testing import FakeModel

ON_BOTH = pytest.mark.parametrize("run", [by_thread, by_loop])


class Employer(pydantic.BaseModel):
    name: str


class Person(pydantic.BaseModel):
    name: str
    employer: Employer | None = None
    note: str | None = None


class Optionals(pydantic.BaseModel):
    name: str | None = None
    stars: int | None = None


WHOLE = '{"name":"Ann","employer":{"name":"ACME"},"note":"she left"}'


def read(type_: Any, text: str) -> Any:
    """What one output ``x`` of this type, or a model, reads; the message where that is none."""
    outputs = Outputs(
        type_ if isinstance(type_, type) and hasattr(type_, "model_fields") else {"x": type_}
    )
    try:
        values = outputs.parse(text)
    except BadOutput as error:
        return f"{type(error).__name__}: {error}"
    return values["x"] if list(values) == ["x"] else values


# -- fragments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", range(1, len(WHOLE)))
@pytest.mark.parametrize(
    "around", ["{}", "```json\n{}\n```", "Here it is:\n{}\nI hope that helps."]
)
def test_no_value_comes_out_of_a_fragment(end: int, around: str) -> None:
    for model in (Person, Optionals):
        found = read(model, around.replace("{}", WHOLE[:end]))
        assert str(found).startswith("BadOutput: the reply does not fit"), found


@given(cut=st.integers(1, 30), deep=st.integers(1, 4))
def test_an_object_inside_a_broken_one_is_never_the_answer(cut: int, deep: int) -> None:
    text = '{"x": ' * deep + '{"x": 1}' + "}" * deep + " " * 9
    outputs = Outputs({"x": int})
    broken = text.rstrip()[: -min(cut, deep)]
    with pytest.raises(BadOutput, match=r"it is not JSON \(EOF"):
        outputs.parse(broken)
    with pytest.raises(BadOutput, match="it has a JSON object without an end"):
        outputs.parse(f"So: {broken}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"x": 1} no, {"x": 2}', 2),
        ('{"x": 1} or {"y": 2}', 1),
        ('{"type": "object", "properties": {"x": {"type": "integer"}}}\n{"x": 3}', 3),
        ("```json\n{\"x\": 3}\n```", 3),
        ("Like this:\n```\n{\"x\": 3}\n```\nDone {ok}.", 3),
        ('For {name} and {} I give {"x": 3}', 3),
        ('An unclosed { in prose, {"x": 3}', 3),
        ('{{"x": 3}}', 3),
        ('{"x": 3}}', 3),
        ('{"x": one | two} means {"x": 3}', 3),
        ('He said "{" and {"x": 3}', None),
        ('{"y": {"x": 1}} {"x": 3} {"x": [}', 3),
        ('{"x": 3} and then {"x": ', None),
        ('{"x": 3} and then {x: ', None),
        ("{'x': 3, 'y': {\"x\": 4}", None),
        ('{y: {"x": 1}}', None),
        ('{"y": {"x": 1}}', 1),
        ('{"y": {"x": 1}, "z": 2}', None),
        ('{"y": {"x": 1},}', None),
        ('[{"x": 1}]', 1),
        ('[{"x": 1}, {"x": 2}]', None),
        ('Either {"x": 1}, {"x": 2}', None),
        ('{"x": 1}\n{"x": 2}', 2),
        ('{"a": "he said "x}" and", "y": {"x": 1}, "c": 2}', None),
        ('{"a": "he said "x}" and", "y": [{"x": 1}], "c": 2}', None),
        ('{"x": "3}', None),
        ("{}", None),
        ("", None),
    ],
)  # fmt: skip
def test_which_object_is_the_answer(text: str, value: int | None) -> None:
    found = read(int, text)
    assert found == value if value is not None else str(found).startswith("BadOutput"), found


@pytest.mark.parametrize(
    "text", ["{}", "I have {} for you", '{"error": "none"}', "[]", "null", "Ann"]
)
def test_a_model_of_optional_fields_reads_nothing_out_of_nothing(text: str) -> None:
    assert "BadOutput" in read(Optionals, text)


def test_one_field_of_a_model_of_optional_fields_is_enough() -> None:
    assert read(Optionals, '{"stars": null}') == {"name": None, "stars": None}
    assert read(Optionals, 'So: {"name": "Ann"}') == {"name": "Ann", "stars": None}
    assert read(Optionals, '{"Name": "Ann"}') == {"name": "Ann", "stars": None}
    assert read(Optionals, '{"NAME": "Ann", "stars": 3}') == {"name": "Ann", "stars": 3}
    assert "name" in read(Optionals, '{"NAME": 5.5, "stars": 3}')


plain = st.none() | st.integers() | st.text('ab{}"\\:,', max_size=5)
nested = st.lists(plain, max_size=2) | st.dictionaries(st.text(max_size=2), plain, max_size=2)
json_values = plain | nested | st.lists(nested, max_size=2)


@given(
    found=st.dictionaries(st.text('ab{}"', max_size=4), json_values, min_size=1, max_size=3),
    before=st.sampled_from(["", "So ", "{a} and ", "[", "```json\n", "} "]),
    share=st.floats(0, 1, exclude_max=True),
)
def test_an_object_is_found_whole_or_not_at_all(
    found: dict[str, Any], before: str, share: float
) -> None:
    text = json.dumps(found)
    assert candidates(f"{before}{text}.").objects == [text]
    assert candidates(before + text[: int(share * len(text))]).objects == []


@pytest.mark.parametrize("text", [
    "{" * 1_000_000, '{"x": ' * 100_000, "{}" * 500_000, '{"a"}' * 9_900, "<think>" * 500_000,
    '"' * 1_000_000 + "{", '{"' + '\\"' * 1_000_000, "```\n" * 300_000, "[" * 1_000_000,
    '{"a": "' + "{}" * 400_000, "{ " * 9_900 + '{"y": 3}',
], ids=range(11))  # fmt: skip
def test_a_hostile_reply_takes_no_more_than_its_size(text: str) -> None:
    """A quadratic one would take minutes."""
    assert "BadOutput" in read(int, text)


@ON_BOTH
@pytest.mark.parametrize(
    "text", [WHOLE[:-1], '{"name":"Ann","employer":{"name":"ACME"},"note":"she ']
)
def test_a_fragment_is_asked_again_once(run: Run, text: str) -> None:
    df = pd.DataFrame({"text": ["a", "b"]})
    told: list[str] = []

    def rule(said: str) -> str:
        told.append(said)
        return WHOLE if len(told) == 2 else text

    fake = FakeModel(rule)
    result = run(df, Person, instructions="Read.", on="text", model=fake, max_workers=1)
    assert df["name"].tolist()[:1] == ["Ann"]
    assert df["name"].isna().tolist() == [False, True]
    assert result.errors["error_type"].tolist() == ["BadOutput"]
    assert "it is not JSON (EOF" in result.errors["message"][0]
    assert result.errors["attempts"].tolist() == [2]


# -- other ways to write an answer ----------------------------------------------------------------


class Grade(enum.Enum):
    GOOD = "Good"
    BAD = "Bad"


Topics = list[Literal["Price", "Quality"]]


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        (Topics, '{"x": ["PRICE", " quality "]}', ["Price", "Quality"]),
        (Topics | None, '{"x": ["price"]}', ["Price"]),
        (list[Literal[1, 2]], '{"x": ["1", 2]}', [1, 2]),
        ([1, 4], '{"x": "4"}', 4),
        ([1, 4], "4", 4),
        (["1", "4"], '{"x": 4}', "4"),
        (["1", "4"], '{"x": 4.0}', "4"),
        (["1", "4"], "4", "4"),
        ([True, False], '{"x": "True"}', True),
        (Literal["good", "bad"] | None, '{"x": "BAD"}', "bad"),
        (Grade, '{"x": "GOOD"}', Grade.GOOD),
        (Grade, "good", Grade.GOOD),
        (["good", "bad"], "```\ngood\n```", "good"),
        (["good", "bad"], "I think:\n```\ngood\n```\nDone.", "good"),
        (int, "7", 7),
        (int, " **7** ", 7),
        (int, '"7"', 7),
        (int, "-7.0", -7),
        (float, "0.25", 0.25),
        (float, ".25", None),
        (float, "1e3", 1000.0),
        (int | None, "7", 7),
        (int, "```json\n7\n```", 7),
        (int, "7 stars", None),
        (int, "7.5", None),
        (int, "1,000", None),
        (int, "[7]", None),
        (bool, "1", None),
        (str, "7", None),
        (list[int], "7", None),
        (str, '{"x": "one\ntwo\tthree"}', "one\ntwo\tthree"),
        (str, '```json\n{"x": "one\r\ntwo"}\n```', "one\r\ntwo"),
        (list[str], '{"x": ["a\nb"]}', ["a\nb"]),
        (str, '{"x": "a\\ud83d"}', "a\ufffd"),
        (str, '{"x": "\\ude00\\ud83d\\ude00"}', "\ufffd\U0001f600"),
        (str, '{"x": "\\\\ud83d\\ud83d"}', "\\ud83d\ufffd"),
        (str, '{"x": "a\ud83d"}', "a\ufffd"),
        (int, '{"result": {"x": 7}}', 7),
        (int, '{"result": {"X": 7}}', 7),
        (int, '{"a": {"b": {"x": 7}}}', None),
        (int, '{"a": {"x": 7}, "b": 1}', None),
        (int, '{"a": [{"x": 7}]}', None),
        (int, '{"X ": 7}', 7),
        (int, '{"X": 7, "y": 8}', 7),
        (int, '{"X": 7, "X ": 8}', None),
        (int | None, '{"x": "N/A"}', None),
        (int, '{"x": "N/A"}', "refused"),
        (str | None, '{"x": "N/A"}', "N/A"),
        (["a", "A b"], '{"x": "a B"}', "A b"),
        (list[Literal["a", "A"]], '{"x": ["A", "a"]}', ["A", "a"]),
        (list[Literal["ab", "AB"]], '{"x": ["Ab"]}', None),
        ([1, "1 "], '{"x": "1"}', None),
        (["yes", "no"], '{"x": "yeah"}', None),
    ],
)
def test_what_only_one_reading_is_possible_of(type_: Any, text: str, value: Any) -> None:
    found = read(type_, text)
    if value is None and "N/A" in text:
        assert found is None
    elif value is None or value == "refused":
        assert str(found).startswith("BadOutput: the reply does not fit"), found
    else:
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("missing", ["N/A", "n/a", "NA", "none", "None", "null", "", " "])
@pytest.mark.parametrize("type_", [int | None, float | None])
def test_a_number_that_is_missing(type_: Any, missing: str) -> None:
    assert read(type_, json.dumps({"x": missing})) is None
    assert "BadOutput" in str(read(type_, '{"x": "unknown"}'))


def test_keys_of_which_two_readings_are_possible_say_so() -> None:
    outputs = Outputs({"score": int, "Score": int})
    assert outputs.parse('{"score": 1, "Score": 2}') == {"score": 1, "Score": 2}
    with pytest.raises(BadOutput, match='more than one reading of the key "SCORE"'):
        outputs.parse('{"SCORE": 1}')
    with pytest.raises(BadOutput, match='more than one reading of the key "Stars"'):
        Outputs(Optionals).parse('{"STARS": 1, "Stars": 2, "name": "Ann"}')


@given(
    values=st.fixed_dictionaries(
        {"Label": st.sampled_from(["Good", "Bad"]), "n": st.integers(-9, 9)}
    ),
    case=st.sampled_from([str, str.upper, str.lower, str.swapcase]),
    wrapped=st.booleans(),
    fenced=st.booleans(),
)
def test_every_writing_of_an_answer_reads_the_same(
    values: dict[str, Any], case: Any, wrapped: bool, fenced: bool
) -> None:
    outputs = Outputs({"Label": ["Good", "Bad"], "n": int | None})
    written = {
        case(key): case(value) if isinstance(value, str) else value for key, value in values.items()
    }
    text = json.dumps({"answer": written} if wrapped else written)
    assert outputs.parse(f"```json\n{text}\n```" if fenced else text) == values


# -- a user's validators --------------------------------------------------------------------------


def test_validators_see_what_the_model_wrote() -> None:
    seen: list[Any] = []

    def note(value: Any) -> Any:
        seen.append(value)
        return value

    class Noted(pydantic.BaseModel):
        before: Annotated[Literal["a", "b"] | None, pydantic.BeforeValidator(note)] = None
        stars: int | None = None
        after: Literal["a", "b"] = "a"

        @pydantic.field_validator("stars", mode="before")
        @classmethod
        def _stars(cls, value: Any) -> Any:
            return note(value)

    outputs = Outputs(Noted)
    for text in ('{"before": "A", "stars": 1}', '{"before": "a", "stars": "N/A"}'):
        with pytest.raises(BadOutput):
            outputs.parse(text)
    assert set(map(str, seen)) == {"A", "1", "a", "N/A"}
    read = outputs.parse('{"Before": "b", "STARS": 2, "after": "B"}')
    assert read == {"before": "b", "stars": 2, "after": "b"}


def test_a_validator_of_the_whole_answer_sees_it_as_it_is() -> None:
    class Whole(pydantic.BaseModel):
        x: int

        @pydantic.model_validator(mode="before")
        @classmethod
        def _refuse(cls, values: Any) -> Any:
            if values != {"x": 1}:
                raise ValueError("not as it was asked for")
            return values

    for text in ('{"X": 1}', '{"answer": {"x": 1}}', "1"):
        assert "BadOutput" in str(read(Whole, text))
    assert read(Whole, 'So {"x": 1}.') == 1


def test_strict_fields_are_strict() -> None:
    class Strict(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(strict=True)
        x: Literal[1, 2]

    assert read(Strict, '{"x": 1}') == 1
    assert "BadOutput" in str(read(Strict, '{"x": "1"}'))


def test_nested_values_are_never_rewritten() -> None:
    class Item(pydantic.BaseModel):
        label: Literal["a", "b"]
        price: float | None = None

    class Order(pydantic.BaseModel):
        items: list[Item]
        note: str

    outputs = Outputs(Order)
    with pytest.raises(BadOutput, match=r"items\.0\.label"):
        outputs.parse('{"items": [{"label": "A"}], "note": "x"}')
    with pytest.raises(BadOutput, match=r"items\.0\.price"):
        outputs.parse('{"Items": [{"label": "a", "price": "N/A"}], "note": "x"}')
    precise = '{"Items": [{"label": "a", "price": 0.1000}], "note": "x\n"}'
    assert outputs.parse(precise) == {"items": [{"label": "a", "price": 0.1}], "note": "x\n"}


def test_a_decimal_keeps_its_digits() -> None:
    from decimal import Decimal

    class Priced(pydantic.BaseModel):
        price: Decimal
        n: int

    outputs = Outputs(Priced)
    for digits in ("0.10", '"12345678901234567890.10"'):
        exact, other = (
            outputs.parse(f'{{"{key}": {digits}, "n": 1}}') for key in ("price", "PRICE")
        )
        assert str(other["price"]) == str(exact["price"])


def test_aliases_are_left_to_pydantic() -> None:
    class Aliased(pydantic.BaseModel):
        x: int = pydantic.Field(validation_alias=pydantic.AliasChoices("eks", "x"))

    assert Outputs(Aliased).parse('{"eks": 1}') == {"eks": 1}
    with pytest.raises(BadOutput):
        Outputs(Aliased).parse('{"EKS": 1}')


# -- through a run --------------------------------------------------------------------------------


@ON_BOTH
@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_through_a_server_that_does_not_force_the_form(run: Run, kind: str) -> None:
    task = Signature(
        "Read.", inputs="text", outputs={"topics": Topics, "stars": int | None, "note": str}
    )
    replies = {
        "plain": '{"topics": ["Price"], "stars": 4, "note": "fine"}',
        "case": '{"Topics": ["PRICE"], "STARS": "n/a", "note": "one\ntwo"}',
        "wrapped": 'Here: {"answer": {"topics": ["quality"], "stars": "4", "note": "n"}}',
        "cut": '{"topics": ["Price"], "stars": 4, "note": "fi',
        "twice": '{"stars": 4, "Note": "a", "NOTE": "b", "topics": []}',
    }
    df = pd.DataFrame({"text": list(replies)})
    with serve(lambda messages, body: replies[messages[1]["content"]]) as server:
        model: Any = (
            revkit.Ollama("m", host=server.url)
            if kind == "ollama"
            else revkit.OpenAICompatible("m", base_url=f"{server.url}/v1", api_key="k")
        )
        result = run(df, task, model=model, store=False)
    assert df["topics"].tolist()[:3] == [["Price"], ["Price"], ["Quality"]]
    assert df["stars"].tolist()[:3] == [4, pd.NA, 4]
    assert df["note"].tolist()[:3] == ["fine", "one\ntwo", "n"]
    assert result.rows["status"].tolist() == ["ok", "ok", "ok", "error", "error"]
    assert result.rows["attempts"].tolist() == [1, 1, 1, 2, 2]
    assert "it is not JSON (EOF" in df["error"][3]
    assert "more than one reading" in df["error"][4]


@ON_BOTH
def test_all_that_is_left_is_refused(run: Run) -> None:
    df = pd.DataFrame({"text": ["a"]})
    task = Signature("Read.", inputs="text", outputs={"x": int})
    with pytest.raises(RunFailed, match="x: Field required"):
        run(df, task, model=FakeModel(lambda _: '{"y": 1}'))
