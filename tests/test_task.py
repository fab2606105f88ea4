"""Tasks: what a model is shown, what of its reply is accepted, and what is refused at once."""

from __future__ import annotations

import enum
import functools
import json
from typing import Any, Literal

import jsonschema
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import revkit
from revkit import BadOutput, Field, Signature, UsageError
from revkit.task.kinds import CallableTask, Template, as_task
from revkit.task.outputs import Outputs


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Review(pydantic.BaseModel):
    """A model with an alias, a default, a nested model and a validator."""

    class Aspect(pydantic.BaseModel):
        name: str
        good: bool

    sentiment: Literal["positive", "negative"] = pydantic.Field(description="how it reads")
    stars: int = pydantic.Field(ge=1, le=5)
    aspects: list[Aspect] = []
    own_words: str | None = pydantic.Field(None, alias="own words")

    @pydantic.field_validator("stars")
    @classmethod
    def not_three(cls, stars: int) -> int:
        if stars == 3:
            raise ValueError("three stars say nothing")
        return stars


def outputs(type_: Any) -> Outputs:
    return Signature("Say it.", inputs="review", outputs={"x": type_}).outputs


# -- signatures ---------------------------------------------------------------------------------


def test_messages_of_a_signature() -> None:
    task = Signature(
        "  Sort the ticket.\n",
        inputs={"title": "its first line", "body": str},
        outputs={
            "topic": (["billing", "other"], "what it is about"),
            "urgent": bool,
            "words": list[str],
        },
        examples=[
            {"title": "Bill", "body": "Too high", "topic": "billing", "urgent": True, "words": []}
        ],
    )
    system, user, assistant, row = task.messages({"title": "Hi", "body": "{braces} %s"})
    assert [t["role"] for t in (system, user, assistant, row)] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert system["content"].startswith("Sort the ticket.\n\n")
    assert "- title: its first line" in system["content"]
    assert '- "topic": one of "billing", "other" (what it is about)' in system["content"]
    assert '- "urgent": true or false' in system["content"]
    assert '- "words": a list, each item a string' in system["content"]
    assert user["content"] == "title: Bill\nbody: Too high"
    assert json.loads(assistant["content"]) == {"topic": "billing", "urgent": True, "words": []}
    assert row["content"] == "title: Hi\nbody: {braces} %s"


def test_one_input_is_shown_bare() -> None:
    assert revkit.SENTIMENT.messages({"review": "Good."})[-1]["content"] == "Good."


def test_every_example_of_the_ready_tasks_can_be_read_back() -> None:
    for task in (revkit.SENTIMENT, revkit.SENTIMENT_WITH_REASON):
        assert len(task.examples) == 6
        for turn in task.prefix[2::2]:
            assert turn["role"] == "assistant"
            assert set(task.parse(turn["content"])) == set(task.outputs)
        shown = [example["sentiment"] for example in task.examples]
        assert {label: shown.count(label) for label in shown} == {
            "positive": 2,
            "neutral": 2,
            "negative": 2,
        }


def test_rendering_one_row_leaves_the_next_alone() -> None:
    before = revkit.SENTIMENT.messages({"review": "a"})
    before.append({"role": "user", "content": "more"})
    assert len(revkit.SENTIMENT.messages({"review": "a"})) == len(before) - 1


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        ("review", ["review"]),
        (["a", "b"], ["a", "b"]),
        ({"a": "described", "b": int}, ["a", "b"]),
        ({"a": Field(str, "described")}, ["a"]),
    ],
)
def test_ways_to_write_inputs(inputs: Any, names: list[str]) -> None:
    assert list(Signature("x", inputs=inputs, outputs="y").inputs) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": [], "outputs": "y"}, "at least one of inputs="),
        ({"inputs": "x", "outputs": {}}, "at least one of outputs="),
        ({"inputs": 3, "outputs": "y"}, "inputs= takes a mapping"),
        ({"inputs": ["x", "x"], "outputs": "y"}, "inputs are named twice: x"),
        ({"inputs": "x", "outputs": ["y", "y"]}, "outputs are named twice: y"),
        ({"inputs": "x", "outputs": "x"}, '"x" is both an input and an output; rename one'),
        ({"inputs": "x", "outputs": {"y": ["a"]}}, '"y": a class output needs at least two'),
        ({"inputs": "x", "outputs": {"y": []}}, '"y": a class output needs at least two'),
        ({"inputs": "x", "outputs": {"y": ["a", "b", "a"]}}, '"y": the labels .* not all differ'),
        ({"inputs": "x", "outputs": {"y": ["a", "A"]}}, "not all different"),
        ({"inputs": "x", "outputs": {"y": ["a", " "]}}, "an empty one"),
        ({"inputs": "x", "outputs": {"y": ["a", 1.5]}}, "labels are strings"),
        ({"inputs": "x", "outputs": int}, "or a pydantic model class; got the class int"),
        ({"inputs": "x", "outputs": pydantic.create_model("Empty")}, "Empty has no fields"),
    ],
)
def test_refused_signatures(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Signature("Do it.", **arguments)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"review": "x"}, 'example 1 has no "sentiment"'),
        ({"sentiment": "good"}, 'example 1 has no "review"'),
        (
            {"review": "x", "sentiment": "good", "sentimnet": 1},
            'unknown "sentimnet"; did you mean "sentiment"',
        ),
        ({"review": "x", "sentiment": "goood"}, 'is not a label; did you mean "good"'),
    ],
)
def test_refused_examples(example: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Signature("x", inputs="review", outputs={"sentiment": ["good", "bad"]}, examples=[example])


def test_ordered_is_for_labels() -> None:
    assert Field(["a", "b"], ordered=True).ordered
    with pytest.raises(UsageError, match="ordered=True is for class outputs"):
        Field(int, ordered=True)


def test_a_signature_is_a_value() -> None:
    def make(**changes: Any) -> Signature:
        arguments: dict[str, Any] = {
            "inputs": {"review": "words"},
            "outputs": {"label": ["a", "b"]},
            "examples": [{"review": "x", "label": "a"}],
        }
        return Signature("Classify.", **(arguments | changes))

    assert make() == make()
    assert hash(make()) == hash(make())
    assert make().fingerprint == make().fingerprint
    others = [
        Signature("Classify!", inputs="review", outputs={"label": ["a", "b"]}),
        make(inputs={"review": "other words"}),
        make(outputs={"label": ["b", "a"]}),
        make(outputs={"label": (["a", "b"], "described")}),
        make(examples=[{"review": "x", "label": "b"}]),
        make(examples=()),
        make(outputs={"other": ["a", "b"]}, examples=()),
    ]
    prints = [make().fingerprint, *(other.fingerprint for other in others)]
    assert len(set(prints)) == len(prints)
    assert all(len(p) == 16 and int(p, 16) >= 0 for p in prints)


def test_fingerprint_is_the_same_in_every_process() -> None:
    assert (
        Template("Summarise: {review}").fingerprint == Template("Summarise: {review}").fingerprint
    )
    pinned = Signature("Classify.", inputs="review", outputs={"label": ["a", "b"]})
    again = Signature("Classify.", inputs=["review"], outputs={"label": Literal["a", "b"]})
    assert pinned.fingerprint == again.fingerprint


# -- templates ----------------------------------------------------------------------------------


def test_template_takes_names_as_they_are() -> None:
    task = Template("{{literal}} {Review Text} / {a.b} / {a[0]} / {Review Text}")
    assert list(task.inputs) == ["Review Text", "a.b", "a[0]"]
    row = {"Review Text": "R", "a.b": 1, "a[0]": None}
    assert task.messages(row) == [{"role": "user", "content": "{literal} R / 1 / None / R"}]


@given(
    value=st.text(st.sampled_from("{}ab!:[]. %$\\0é\n"), max_size=20),
    other=st.text(st.sampled_from("{}ab!:[].") | st.characters(codec="utf-8"), max_size=20),
)
def test_template_never_interprets_values(value: str, other: str) -> None:
    task = Template("<{a}|{b c}|{a}> {{a}}")
    assert task.user_text({"a": value, "b c": other}) == f"<{value}|{other}|{value}> {{a}}"


@given(text=st.text(st.sampled_from("{}a "), max_size=12))
def test_a_template_renders_or_is_refused(text: str) -> None:
    try:
        task = Template(text)
    except UsageError:
        return
    rendered = task.user_text(dict.fromkeys(task.inputs, "v"))
    assert rendered == text.format_map(dict.fromkeys(task.inputs, "v"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no column", "names no column, such as {review}"),
        ("", "names no column"),
        ("{{review}}", "names no column"),
        ("{}", "empty braces: put a column's name in them, or write {{}}"),
        ("{review", "write {{ and }} for braces"),
        ("review}", "write {{ and }} for braces"),
        ("{review!r}", "{review!r}: format specs and conversions are not supported; format the"),
        ("{price:.2f}", "{price:.2f}: format specs and conversions are not supported"),
    ],
)
def test_refused_templates(text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        Template(text)
    assert message in str(refused.value)


def test_templates_that_ask_for_other_things_have_other_fingerprints() -> None:
    texts = ["{a} {b}", "{b} {a}", "{{a}} {a}", "{a} {a}", "{a} {{a}}", "{a}", "x {a}"]
    assert len({Template(text).fingerprint for text in texts}) == len(texts)
    assert Template("{a}").fingerprint != Template("{a}", output="summary").fingerprint


def test_template_replies_are_taken_whole() -> None:
    task = Template("{a}", output="summary")
    assert task.parse('  {"not": "read"}\n') == {"summary": '{"not": "read"}'}
    assert task.outputs.json_schema is None
    assert task.outputs.describe() == ""
    with pytest.raises(BadOutput, match="empty"):
        task.parse(" \n ")


# -- callables ----------------------------------------------------------------------------------


def plain(row: Any) -> int:
    return 1


async def coroutine(row: Any) -> int:
    return 1


def with_context(row: Any, context: Any) -> int:
    return 1


def keyword_context(row: Any, *, context: Any = None) -> int:
    return 1


def row_named_context(context: Any) -> int:
    return 1


class Plain:
    def __call__(self, row: Any) -> int:
        return 1

    async def method(self, row: Any, context: Any) -> int:
        return 1


class Async:
    async def __call__(self, row: Any) -> int:
        return 1


@pytest.mark.parametrize(
    ("fn", "is_async", "wants_context"),
    [
        (plain, False, False),
        (coroutine, True, False),
        (with_context, False, True),
        (keyword_context, False, True),
        (row_named_context, False, False),
        (lambda row: 1, False, False),
        (Plain(), False, False),
        (Async(), True, False),
        (Plain().method, True, True),
        (functools.partial(coroutine), True, False),
        (functools.partial(functools.partial(with_context), context=3), False, True),
        (len, False, False),
        (str, False, False),
        (str.upper, False, False),
    ],
)
def test_what_a_callable_is(fn: Any, is_async: bool, wants_context: bool) -> None:
    task = as_task(fn)
    assert isinstance(task, CallableTask)
    assert (task.is_async, task.wants_context) == (is_async, wants_context)
    assert task.output == "response"


def test_generators_are_refused() -> None:
    def one_by_one(row: Any) -> Any:
        yield row

    async def later(row: Any) -> Any:
        yield row

    for fn in (one_by_one, later, functools.partial(one_by_one)):
        with pytest.raises(UsageError, match="returns one value for each row"):
            as_task(fn)


def test_two_functions_are_two_tasks() -> None:
    assert as_task(plain).fingerprint == as_task(plain).fingerprint
    assert as_task(plain).fingerprint != as_task(coroutine).fingerprint


# -- the task argument --------------------------------------------------------------------------


def test_pydantic_model_as_a_task() -> None:
    task = as_task(Review, instructions="Read it.", inputs=["review"])
    assert isinstance(task, Signature)
    assert list(task.inputs) == ["review"]
    assert list(task.outputs) == ["sentiment", "stars", "aspects", "own words"]
    values = task.parse('{"sentiment": "positive", "stars": 4, "own words": "fine"}')
    assert values == {"sentiment": "positive", "stars": 4, "aspects": [], "own words": "fine"}
    with pytest.raises(BadOutput, match=r"stars: .*three stars say nothing"):
        task.parse('{"sentiment": "positive", "stars": 3}')


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (3, {}, "a task is a revkit.Signature, a template such as .* got int"),
        (None, {}, "got NoneType"),
        (Review, {}, 'instructions="…", on=…'),
        (Review, {"instructions": "x"}, 'say which columns Review is made from: on="review"'),
        (Review, {"instructions": "x", "inputs": ["a"], "output": "y"}, "its fields are named"),
        ("{a}", {"instructions": "x"}, "a template is its own"),
        (plain, {"instructions": "x"}, "instructions= goes with a pydantic model"),
        (revkit.SENTIMENT, {"output": "x"}, "names its own"),
    ],
)
def test_refused_tasks(task: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        as_task(task, **options)


# -- outputs ------------------------------------------------------------------------------------

SCALARS = [
    (str, '{"x": "a b"}', "a b"),
    (str, '{"x": " a "}', "a"),
    (str, '{"x": 12}', "12"),
    (str, '{"x": ""}', ""),
    (int, '{"x": 3}', 3),
    (int, '{"x": "3"}', 3),
    (int, '{"x": 3.0}', 3),
    (float, '{"x": 3}', 3.0),
    (float, '{"x": "2.5"}', 2.5),
    (bool, '{"x": true}', True),
    (bool, '{"x": "false"}', False),
    (int | None, '{"x": null}', None),
    (list[str], '{"x": ["a", "b"]}', ["a", "b"]),
    (list[int], '{"x": []}', []),
    (["good", "so so"], '{"x": "so so"}', "so so"),
    (["good", "so so"], '{"x": " So So "}', "so so"),
    (Literal["good", "bad"], '{"x": "BAD"}', "bad"),
    ([1, 2, 3], '{"x": 2}', 2),
    ([True, False], '{"x": false}', False),
    (Colour, '{"x": "red"}', Colour.RED),
]


@pytest.mark.parametrize(("type_", "text", "value"), SCALARS)
def test_replies_that_fit(type_: Any, text: str, value: Any) -> None:
    read = outputs(type_).parse(text)["x"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(("type_", "text", "value"), SCALARS)
def test_leniency_about_what_stands_around(type_: Any, text: str, value: Any) -> None:
    for wrapped in (
        f"```json\n{text}\n```",
        f"Sure! Here it is: {text} I hope that helps {{x}}.",
        f'First {{"y": 1}} and {{no json}}, then {text}',
        text[:-1] + ', "reasoning": "because"}',
    ):
        assert outputs(type_).parse(wrapped) == {"x": value}


@given(
    texts=st.lists(
        st.builds(
            lambda label, score, sure, around: (
                f'{around}{{"label": {json.dumps(label)}, "score": {score}, "sure": {sure}}}'
            ),
            st.sampled_from(["good", "bad", "GOOD", "other", 1, None]),
            st.sampled_from(["1", "1.0", "1.5", '"1"', "true", "1e3", "null", "NaN"]),
            st.sampled_from(["true", "false", "1", "0", '"true"', '"yes"', "null"]),
            st.sampled_from(["", " ", "so: ", "[", "{}"]),
        ),
        max_size=12,
    )
)
def test_a_reply_read_before_is_read_as_if_for_the_first_time(texts: list[str]) -> None:
    def outputs() -> Outputs:
        return Outputs({"label": ["good", "bad"], "score": float, "sure": bool | None})

    def read(outputs: Outputs, text: str) -> Any:
        try:
            values = outputs.parse(text)
        except BadOutput as error:
            return str(error), error.text
        return [(name, type(value), repr(value)) for name, value in values.items()]

    known = outputs()
    for text in texts + texts:
        assert read(known, text) == read(outputs(), text)


def test_values_of_a_reply_are_the_rows_own() -> None:
    outputs = Outputs({"label": ["good", "bad"]})
    outputs.parse('{"label": "good"}')["label"] = "changed"
    assert outputs.parse('{"label": "good"}') == {"label": "good"}


def test_a_validator_of_the_users_is_asked_about_every_reply() -> None:
    asked: list[str] = []

    class Judged(pydantic.BaseModel):
        label: Literal["good", "bad"]

        @pydantic.field_validator("label")
        @classmethod
        def count(cls, label: str) -> str:
            asked.append(label)
            return label

    outputs = as_task(Signature("Judge.", inputs="text", outputs=Judged)).outputs
    for _ in range(3):
        outputs.parse('{"label": "good"}')
    assert len(asked) == 3


def test_an_object_is_looked_for_among_so_many_braces_and_no_more() -> None:
    """A reply of a million would keep a loop busy for seconds."""
    assert outputs(int).parse("{ " * 9_999 + '{"x": 3}') == {"x": 3}
    with pytest.raises(BadOutput, match="it is not JSON"):
        outputs(int).parse("{ " * 10_000 + '{"x": 3}')


@pytest.mark.parametrize("text", ["good", "Good.", '"good"', "  **good**\n", "`GOOD`"])
def test_a_bare_label_is_read(text: str) -> None:
    assert outputs(["good", "bad"]).parse(text) == {"x": "good"}


@pytest.mark.parametrize(
    ("type_", "text", "words"),
    [
        (["good", "bad"], "", "empty"),
        (["good", "bad"], " \n", "empty"),
        (["good", "bad"], '{"x": "meh"}', "x: Input should be 'good' or 'bad', not \"meh\""),
        (["good", "bad"], '{"x": null}', "x: "),
        (["good", "bad"], "good or bad", "it is not JSON"),
        (["good", "bad"], '{"x": ["good"]}', "x: "),
        (["good", "bad"], '{"y": "good"}', "x: Field required"),
        (int, '{"x": 2.5}', "x: "),
        (int, '{"x": "many"}', "x: "),
        (str, "7", "the reply does not fit"),
        (int, "[7]", "the reply does not fit"),
        (float, '{"x": NaN}', "the reply does not fit"),
        (float, '{"x": "inf"}', "x: "),
        (bool, '{"x": "perhaps"}', "x: "),
        (bool, '{"x": 7}', "x: "),
        (list[int], '{"x": [1, "b"]}', "x.1: Input should be a valid integer"),
        (str, '{"x": null}', "x: "),
        (int, '{"x": ' * 100_000, "the reply does not fit"),
        (int, "{" * 100_000, "the reply does not fit"),
        (int, '{"x": ' + "9" * 5000 + "}", "number out of range"),
    ],
)
def test_replies_that_do_not_fit(type_: Any, text: str, words: str) -> None:
    with pytest.raises(BadOutput) as refused:
        outputs(type_).parse(text)
    assert words in str(refused.value)
    assert refused.value.text == text
    assert len(str(refused.value)) < 600


def test_a_problem_is_named_after_the_output() -> None:
    with pytest.raises(BadOutput) as refused:
        outputs(int).parse('{"x": "many"}')
    assert "x: Input should be a valid integer" in str(refused.value)


def test_output_names_may_be_anything() -> None:
    names = ["model_config", "_private", "with space", "class", "2nd", "ünï", "self", "copy"]
    task = Signature("x", inputs="review", outputs=dict.fromkeys(names, int))
    values = {name: i for i, name in enumerate(names)}
    assert task.parse(json.dumps(values)) == values
    schema = task.outputs.json_schema
    assert schema is not None
    assert list(schema["properties"]) == names


TYPED = [str, int, float, bool, int | None, list[str], ["a", "b"], Colour, [1, 2], list[list[int]]]


@pytest.mark.parametrize("type_", TYPED)
def test_schema_is_closed_and_everything_required(type_: Any) -> None:
    schema = outputs(type_).json_schema
    assert schema is not None
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["x"]
    assert "title" not in json.dumps(schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, schema)


def test_nested_schema_is_closed_too() -> None:
    task = Signature("x", inputs="review", outputs=Review)
    schema = task.outputs.json_schema
    assert schema is not None
    assert schema["required"] == ["sentiment", "stars", "aspects", "own words"]
    (aspect,) = schema["$defs"].values()
    assert aspect["required"] == ["name", "good"]
    assert aspect["additionalProperties"] is False


def test_a_field_called_title_stays_in_the_schema() -> None:
    schema = Signature("x", inputs="review", outputs={"title": str, "y": int}).outputs.json_schema
    assert schema is not None
    assert schema["properties"] == {"title": {"type": "string"}, "y": {"type": "integer"}}


def test_schema_has_the_labels_in_order_and_the_description() -> None:
    schema = outputs((["good", "bad", "both"], "how it reads")).json_schema
    assert schema is not None
    assert schema["properties"]["x"] == {
        "description": "how it reads",
        "enum": ["good", "bad", "both"],
        "type": "string",
    }


stripped = st.text(st.characters(codec="utf-8"), max_size=10).map(str.strip)
finite = st.floats(allow_nan=False, allow_infinity=False)
VALUES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, stripped),
    (int, st.integers(-(2**80), 2**80)),
    (float, finite),
    (bool, st.booleans()),
    (["good", "bad", "so {so}"], st.sampled_from(["good", "bad", "so {so}"])),
    ([1, 2], st.sampled_from([1, 2])),
    (list[str], st.lists(stripped, max_size=3)),
    (list[list[int]], st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2)),
    (float | None, st.none() | finite),
]
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)


@st.composite
def typed_values(draw: st.DrawFn) -> tuple[Signature, dict[str, Any]]:
    fields: dict[str, Any] = {}
    values: dict[str, Any] = {}
    keys = st.lists(names.filter(lambda n: n != "in"), min_size=1, max_size=4, unique=True)
    for name in draw(keys):
        type_, strategy = draw(st.sampled_from(VALUES))
        fields[name] = type_
        values[name] = draw(strategy)
    return Signature("x", inputs="in", outputs=fields), values


@given(typed_values())
def test_what_is_dumped_is_read_back(case: tuple[Signature, dict[str, Any]]) -> None:
    task, values = case
    text = task.outputs.dump(values)
    jsonschema.validate(json.loads(text), task.outputs.json_schema)
    read = task.parse(text)
    assert read == values
    assert list(read) == list(values)
    assert task.parse(f"```json\n{text}\n```") == values
