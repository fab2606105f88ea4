"""Two prompts have one key exactly when they must have one answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revkit import SENTIMENT, Local, Ollama, OpenAICompatible, Signature
from revkit.store.keys import KEY_BYTES, ReplyKeys
from revkit.task.chat import Message
from revkit.task.kinds import ModelTask, Template

ROW = {"review": "Broke twice.", "stars": "1"}
SETTINGS = Ollama().settings()


def key(
    task: ModelTask = SENTIMENT,
    settings: Mapping[str, Any] = SETTINGS,
    row: Mapping[str, Any] = ROW,
    sample: int = 0,
) -> bytes:
    return ReplyKeys(task, settings).key(task.messages(row), sample)


def signature(**changed: Any) -> Signature:
    parts = {
        "instructions": "Judge the review.",
        "inputs": {"review": "the customer's words"},
        "outputs": {"sentiment": ["good", "bad"]},
        "examples": [{"review": "Lovely.", "sentiment": "good"}],
    }
    return Signature(**(parts | changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"instructions": "Judge the product."},
        {"inputs": {"review": "what was written"}},
        {"inputs": ["review", "stars"], "examples": []},
        {"outputs": {"sentiment": ["good", "bad", "mixed"]}},
        {"outputs": {"sentiment": ["bad", "good"]}},
        {"outputs": {"sentiment": (Literal["good", "bad"], "how it sounds")}},
        {"outputs": {"sentiment": str}},
        {
            "outputs": {"mood": ["good", "bad"]},
            "examples": [{"review": "Lovely.", "mood": "good"}],
        },
        {"examples": []},
        {"examples": [{"review": "Lovely.", "sentiment": "bad"}]},
        {"examples": [{"review": "Lovely!", "sentiment": "good"}]},
    ],
    ids=str,
)
def test_what_the_task_asks_for_decides(changed: dict[str, Any]) -> None:
    assert key(signature(**changed)) != key(signature())


class Quiet(ModelTask):
    """Shows the model the row and nothing else: only the rest of the key tells it apart."""

    def __init__(self, like: Signature):
        self.instructions, self.examples = like.instructions, like.examples
        self.inputs, self.outputs = like.inputs, like.outputs

    def user_text(self, row: Mapping[str, Any]) -> str:
        return str(row["review"]) if "review" in row else ""


@pytest.mark.parametrize(
    "changed",
    [
        {"instructions": "Judge the product."},
        {"outputs": {"sentiment": ["good", "bad", "mixed"]}},
        {"outputs": {"sentiment": (Literal["good", "bad"], "how it sounds")}},
        {"examples": []},
    ],
    ids=str,
)
def test_what_decides_need_not_stand_in_the_messages(changed: dict[str, Any]) -> None:
    assert key(Quiet(signature(**changed))) != key(Quiet(signature()))


def test_the_same_task_written_again_has_the_same_key() -> None:
    assert key(signature()) == key(signature())
    turned = [{"sentiment": "good", "review": "Lovely."}]
    assert key(signature(examples=turned)) == key(signature())


def test_the_name_of_a_templates_column_does_not_decide() -> None:
    one, other = Template("Sum up: {review}"), Template("Sum up: {text}", output="summary")
    assert one.messages({"review": "x"}) == other.messages({"text": "x"})
    settings = Ollama().settings()
    assert ReplyKeys(one, settings).key(one.messages({"review": "x"})) != ReplyKeys(
        other, settings
    ).key(other.messages({"text": "y"}))
    same_output = Template("Sum up: {text}")
    assert key(one, row={"review": "x"}) == key(same_output, row={"text": "x"})


def test_options_model_and_endpoint_decide() -> None:
    clients = [
        Ollama(),
        Ollama("llama3.1"),
        Ollama(temperature=0.7),
        Ollama(seed=1),
        Ollama(options={"top_k": 3}),
        Ollama(max_tokens=5),
        Ollama(host="http://127.0.0.1:1234"),
        OpenAICompatible("llama3.2:3b", base_url="http://127.0.0.1:11434/v1"),
        OpenAICompatible("m", base_url="http://127.0.0.1:1/v1"),
        OpenAICompatible("m", base_url="http://127.0.0.1:1/v1", extra_body={"top_p": 0.5}),
        Local(),
        Local(max_tokens=9),
    ]
    keys = [key(settings=client.settings()) for client in clients]
    assert len(set(keys)) == len(clients)


def test_how_it_is_asked_does_not_decide() -> None:
    url = "http://127.0.0.1:1/v1"
    same = [
        OpenAICompatible("m", base_url=url),
        OpenAICompatible("m", base_url=url, api_key="sk-1"),
        OpenAICompatible("m", base_url=url, headers={"X-Api-Key": "sk-2"}),
        OpenAICompatible("m", base_url=url, timeout=3.0),
    ]
    assert len({key(settings=client.settings()) for client in same}) == 1
    assert key(settings=Ollama(timeout=3.0).settings()) == key(settings=Ollama().settings())
    assert key(settings=Local(slots=1).settings()) == key(settings=Local(slots=3).settings())
    assert key(settings={"a": 1, "b": 2}) == key(settings={"b": 2, "a": 1})


def test_the_row_and_the_sample_decide() -> None:
    assert key(row={"review": "Broke."}) != key()
    assert key(sample=1) != key(sample=0)
    assert key(sample=11) != key(sample=1)


# ------------------------------------------------------------------ any messages

texts = st.text(
    st.one_of(st.characters(), st.sampled_from("m:0123456789s\0\ud800")),  # what the encoding uses
    max_size=6,
)
turns = st.builds(lambda role, content: Message(role=role, content=content), texts, texts)
conversations = st.lists(turns, max_size=4)
samples = st.integers(0, 120)


@given(conversations, samples, conversations, samples)
def test_equal_prompts_and_no_others_share_a_key(
    one: list[Message], first: int, other: list[Message], second: int
) -> None:
    keys = ReplyKeys(SENTIMENT, SETTINGS)
    equal = (one, first) == (other, second)
    assert (keys.key(one, first) == keys.key(other, second)) is equal
    assert len(keys.key(one, first)) == KEY_BYTES


@given(conversations, conversations)
def test_where_the_shared_messages_end_does_not_matter(
    prefix: list[Message], rest: list[Message]
) -> None:
    """The prefix is hashed ahead: by a task that has it, and not by one that has none."""

    class Prefixed(Quiet):
        pass

    task, bare = Prefixed(signature()), Quiet(signature())
    task.__dict__["prefix"] = prefix
    messages = [*prefix, *rest]
    expected = ReplyKeys(bare, SETTINGS).key(messages)
    assert ReplyKeys(task, SETTINGS).key(messages) == expected
    assert ReplyKeys(task, SETTINGS).key(json.loads(json.dumps(messages))) == expected
    if prefix:
        assert ReplyKeys(task, SETTINGS).key(rest) != expected


@given(texts, texts)
def test_text_does_not_slip_from_one_part_into_the_next(one: str, other: str) -> None:
    whole = [Message(role="user", content=one + other)]
    parted = [Message(role="user", content=one), Message(role="user", content=other)]
    keys = ReplyKeys(Quiet(signature()), SETTINGS)
    assert keys.key(whole) != keys.key(parted)
    assert keys.key([Message(role=one + "x", content=other)]) != keys.key(
        [Message(role=one, content="x" + other)]
    )


def test_half_of_a_surrogate_pair_is_a_text_of_its_own() -> None:
    assert len({key(row={"review": text}) for text in ("\ud800", "\ud801", "?", "")}) == 4


def test_the_key_is_the_same_in_every_process() -> None:
    script = (
        "from revkit import SENTIMENT, Ollama\n"
        "from revkit.store.keys import ReplyKeys\n"
        f"messages = SENTIMENT.messages({ROW!r})\n"
        "print(ReplyKeys(SENTIMENT, Ollama().settings()).key(messages).hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == key().hex()
