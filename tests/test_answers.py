"""What counts as an answer: one table of what models and servers say, and what revkit makes of it.

Each line is tried on both engines with each client. The rules are in ``docs/answers.md``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pydantic
import pytest
from servers import Answer, serve
from unwell import reply

import revkit
from revkit import Reply, Retry, RunFailed, Signature
from revkit.store import Store
from revkit.store.keys import ReplyKeys
from revkit.task.kinds import ModelTask, Template
from revkit.testing import FakeModel

Engine = Literal["thread", "async"]


class Employer(pydantic.BaseModel):
    name: str


class Person(pydantic.BaseModel):
    name: str
    employer: Employer | None = None
    note: str | None = None


class Loose(pydantic.BaseModel):
    """All of it is optional: nothing at all would fit."""

    name: str | None = None
    age: int | None = None


MOOD = Signature("Judge.", inputs="review", outputs={"mood": ["positive", "negative"]})
STARS = Signature("Count.", inputs="review", outputs={"stars": int})
RATED = Signature("Rate.", inputs="review", outputs={"stars": [1, 2, 3, 4, 5]})
TOPICS = Signature("Name.", inputs="review", outputs={"topics": list[Literal["price", "size"]]})
NOTED = Signature("Note.", inputs="review", outputs={"note": str, "age": int | None})
PERSON = Signature("Who?", inputs="review", outputs=Person)
LOOSE = Signature("Who?", inputs="review", outputs=Loose)
TEXT = Template("Where? {review}")

NEGATIVE, POSITIVE = '{"mood": "negative"}', '{"mood": "positive"}'
GOOD = {"mood": "positive"}
OSLO = {"response": "Oslo"}


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        said: the message's content.
        wanted: the values, or the name of the error.
        thought: what stands in ``run.rows["thought"]``.
        says: words of the error.
        requests: how many the row takes.
        options: of the call.
    """

    task: ModelTask
    said: str
    wanted: Mapping[str, Any] | str
    finish: str | None = "stop"
    thought: str | None = None
    says: tuple[str, ...] = ()
    requests: int = 1
    review: str = "Broke twice."
    options: Mapping[str, Any] = field(default_factory=dict)


CUT = ("max_tokens=",)
THINKING = ("still thinking", "max_tokens=", "reasoning=")

CASES: dict[str, Case] = {
    # -- thoughts ------------------------------------------------------------------------------
    "think": Case(
        MOOD, f"<think>{NEGATIVE}? No.</think>{POSITIVE}", GOOD, thought=f"{NEGATIVE}? No."
    ),
    "closing tag only": Case(
        MOOD, f"{NEGATIVE}? No.</think>{POSITIVE}", GOOD, thought=f"{NEGATIVE}? No."
    ),
    "reasoning": Case(MOOD, f"<reasoning>{NEGATIVE}</reasoning>{POSITIVE}", GOOD, thought=NEGATIVE),
    "thought": Case(MOOD, f"<thought>{NEGATIVE}</thought>{POSITIVE}", GOOD, thought=NEGATIVE),
    "thinking": Case(MOOD, f"<thinking>{NEGATIVE}</thinking>{POSITIVE}", GOOD, thought=NEGATIVE),
    "after blanks": Case(MOOD, f"\n <think>{NEGATIVE}</think>\n{POSITIVE}", GOOD, thought=NEGATIVE),
    "channels": Case(
        MOOD,
        f"<|channel|>analysis<|message|>{NEGATIVE}<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{POSITIVE}",
        GOOD,
        thought=NEGATIVE,
    ),
    "text after a thought": Case(
        TEXT,
        "<think>The capital of Norway...</think>Oslo",
        OSLO,
        thought="The capital of Norway...",
    ),
    "an empty thought": Case(TEXT, "<think>\n\n</think>\n\nOslo", OSLO),
    "cut in its thought": Case(
        TEXT, "<think>The capital of", "CutOff", finish="length", says=THINKING
    ),
    "typed, cut in its thought": Case(
        MOOD, f"<think>Is it {NEGATIVE}? Or", "CutOff", finish="length", says=THINKING
    ),
    "a quoted tag in a text": Case(
        TEXT,
        "The user wrote <think> in the ticket, and </think>, too.",
        {"response": "The user wrote <think> in the ticket, and </think>, too."},
        review="What does <think>a</think> mean?",
    ),
    "a quoted tag in a value": Case(
        NOTED,
        '{"note": "wrote <think>x</think>", "age": 4}',
        {"note": "wrote <think>x</think>", "age": 4},
    ),
    # -- fragments -----------------------------------------------------------------------------
    "an inner object of a cut one": Case(
        PERSON,
        '{"name":"Ann","employer":{"name":"ACME"},"note":"she ',
        "CutOff",
        finish="length",
        says=CUT,
    ),
    "an inner object, not cut": Case(
        PERSON,
        '{"name":"Ann","employer":{"name":"ACME"},"note":"she "',
        "BadOutput",
        requests=2,
    ),
    "only optional fields": Case(LOOSE, '{"name":"Ann","age":', "CutOff", finish="length"),
    "only optional fields, one brace missing": Case(
        LOOSE, '{"name":"Ann","other":{}', "BadOutput", requests=2
    ),
    "whole though cut": Case(MOOD, POSITIVE, GOOD, finish="length"),
    "a bare label, cut": Case(MOOD, "positive", "CutOff", finish="length"),
    "the last object that fits": Case(
        MOOD, f"Not {NEGATIVE}, rather:\n```json\n{POSITIVE}\n```\nI hope it helps.", GOOD
    ),
    "a list of one": Case(MOOD, f"[{POSITIVE}]", GOOD),
    "a list that does not end": Case(MOOD, f"[{POSITIVE},", "BadOutput", requests=2),
    "a list without its bracket": Case(
        MOOD, f"```json\n[\n  {POSITIVE}\n```", "BadOutput", requests=2
    ),
    "a list of several kinds": Case(
        MOOD, f'[{POSITIVE}, "or", {NEGATIVE}]', "BadOutput", requests=2
    ),
    "a text, cut": Case(TEXT, "Oslo is", "CutOff", finish="length", says=CUT),
    "a text, cut, by another name": Case(TEXT, "Oslo is", "CutOff", finish="MAX_TOKENS"),
    "a text, cut, and kept": Case(
        TEXT, "Oslo is", {"response": "Oslo is"}, "length", options={"truncated": "keep"}
    ),
    "an unknown reason": Case(TEXT, "Oslo", OSLO, finish="eos"),
    "no reason": Case(TEXT, "Oslo", OSLO, finish=None),
    # -- values --------------------------------------------------------------------------------
    "a label in another case": Case(MOOD, '{"mood": "POSITIVE"}', GOOD),
    "a label in a list, in another case": Case(
        TOPICS, '{"topics": ["Price", "SIZE"]}', {"topics": ["price", "size"]}
    ),
    "a number for a label": Case(RATED, '{"stars": "4"}', {"stars": 4}),
    "a bare number": Case(STARS, "4", {"stars": 4}),
    "raw newlines": Case(
        NOTED, '{"note": "one\ntwo", "age": 4}', {"note": "one\ntwo", "age": 4}
    ),
    "a wrapper": Case(MOOD, f'{{"result": {POSITIVE}}}', GOOD),
    "a key in another case": Case(MOOD, '{"Mood": "positive"}', GOOD),
    "N/A for an optional number": Case(
        NOTED, '{"note": "n", "age": "N/A"}', {"note": "n", "age": None}
    ),
    "half of a pair": Case(
        NOTED, '{"note": "a \\ud83d b", "age": 4}', {"note": "a � b", "age": 4}
    ),
    "a key twice": Case(
        MOOD, '{"mood": "positive", "mood": "negative"}', "BadOutput", requests=2
    ),
    "a key twice, the same": Case(MOOD, '{"mood": "positive", "mood": "positive"}', GOOD),
    "a late thought without an end": Case(
        MOOD, f"{POSITIVE}<think>or {NEGATIVE}", "BadOutput", requests=2
    ),
    "a quoted tag before the answer": Case(MOOD, f"It says <think>. So: {POSITIVE}", GOOD),
    "another label": Case(MOOD, '{"mood": "so-so"}', "BadOutput", requests=2),
    "two readings": Case(
        MOOD, '{"Mood": "positive", "MOOD": "negative"}', "BadOutput", requests=2
    ),
}  # fmt: skip


def _model(client: str, url: str) -> revkit.Client:
    if client == "ollama":
        return revkit.Ollama("m", host=url)
    return revkit.OpenAICompatible("m", base_url=f"{url}/v1", api_key="")


def outcome(
    case: Case, model: revkit.Client, engine: Engine, store: Path | Literal[False] = False
) -> dict[str, Any]:
    """The line of the row in ``run.rows``."""
    frame = pd.DataFrame({"review": [case.review]})
    retry = Retry(attempts=2, initial=0.0)
    options = {"store": store, "retry": retry, "engine": engine} | dict(case.options)
    try:
        run = frame.llm.parallel_map(case.task, on="review", model=model, **options)
    except RunFailed as failed:  # its only row has failed
        run = failed.result
    (row,) = run.rows.to_dict("records")
    return row


def agrees(case: Case, row: Mapping[str, Any]) -> None:
    if isinstance(case.wanted, str):
        assert row["error_type"] == case.wanted, row
        for words in case.says:
            assert words in row["error"]
        for name in case.task.outputs:
            assert pd.isna(row[name])
    else:
        assert row["status"] == "ok", row
        assert {name: row[name] for name in case.wanted} == dict(case.wanted)
        assert (None if pd.isna(row["thought"]) else row["thought"]) == case.thought
    assert row["attempts"] == case.requests


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("engine", ["thread", "async"])
def test_what_counts_as_an_answer(engine: Engine, client: str, name: str) -> None:
    case = CASES[name]

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        # The next turn of a correction holds no thought.
        assert not any("No.</" in message["content"] for message in messages)
        return reply(body, case.said, case.finish)

    with serve(rule) as server:
        agrees(case, outcome(case, _model(client, server.url), engine))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_fake_model_is_read_in_the_same_way(engine: Engine, name: str) -> None:
    case = CASES[name]
    model = FakeModel(lambda text: Reply(case.said, finish_reason=case.finish))
    agrees(case, outcome(case, model, engine))


@pytest.mark.parametrize("name", CASES)
def test_kept_replies_pass_the_same_checks(tmp_path: Path, name: str) -> None:
    """A store that an earlier revkit filled holds whatever the model said."""
    case = CASES[name]
    model = FakeModel(lambda text: Reply(case.said, finish_reason=case.finish))
    key = ReplyKeys(case.task, model.settings()).key(case.task.messages({"review": case.review}))
    with Store.open(tmp_path) as store:
        kept = Reply(case.said, finish_reason=case.finish)
        store.put([(key, kept)], task=case.task.fingerprint, model=model.name)
    row = outcome(case, model, "async", store=tmp_path)
    if isinstance(case.wanted, str):
        agrees(case, row)  # the model was asked again, and says the same
    else:
        assert row["source"] == "store"
        agrees(case, row | {"attempts": 1})
        assert not model.calls


def test_the_page_on_answers_shows_what_happens() -> None:
    """Each block of its code runs, and gives what stands below it."""
    page = (Path(__file__).parent.parent / "docs" / "answers.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", page, flags=re.DOTALL)
    assert len(shown) == page.count("```python")
    names: dict[str, Any] = {}
    for code, output in shown:
        *lines, last = ast.parse(code).body
        exec(compile(ast.Module(lines, []), "answers.md", "exec"), names)
        assert isinstance(last, ast.Expr)
        found = eval(compile(ast.Expression(last.value), "answers.md", "eval"), names)
        assert found.to_string().replace("<NA>", " NaN").split() == output.split()
