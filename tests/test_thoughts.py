"""Thoughts are taken out of a reply before anything is read, and are in no answer and no turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pandas as pd
import pytest
import servers
from calls import Run, by_loop, by_thread
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import revkit
from revkit import Conversation, CutOff, Reply, RunFailed, Signature
from revkit.task.thoughts import without_thoughts
from revkit.testing import FakeModel

SENTIMENT = Signature("Classify.", inputs="review", outputs={"sentiment": ["positive", "negative"]})
CAPITAL = "Name the capital: {review}"
HARMONY = (
    "<|channel|>analysis<|message|>Norway...<|end|><|start|>assistant"
    "<|channel|>final<|message|>Oslo"
)


def split(text: str, *sent: str, typed: bool = False) -> tuple[str, str | None]:
    messages: Any = [{"role": "user", "content": content} for content in sent]
    reply = without_thoughts(Reply(text), messages, typed=typed)
    return reply.text, reply.thought


@pytest.mark.parametrize(
    ("text", "answer", "thought"),
    [
        ("<think>Norway...</think>Oslo", "Oslo", "Norway..."),
        (" \n<think>\nNorway...\n</think>\n\nOslo", "Oslo", "Norway..."),
        ("\ufeff<think>Norway...</think>Oslo", "Oslo", "Norway..."),
        ("\u200b\n<think>Norway...</think>Oslo", "Oslo", "Norway..."),
        (f"\ufeff{HARMONY}", "Oslo", "Norway..."),
        ("<THINKING>Norway...</Thinking>Oslo", "Oslo", "Norway..."),
        ("<reasoning>Norway...</reasoning>Oslo", "Oslo", "Norway..."),
        ("<thought>Norway...</thought>Oslo", "Oslo", "Norway..."),
        ('<thinking effort="high">Norway...</thinking>Oslo', "Oslo", "Norway..."),
        ("<seed:think>Norway...</seed:think>Oslo", "Oslo", "Norway..."),
        ("[THINK]Norway...[/THINK]Oslo", "Oslo", "Norway..."),
        ("◁think▷Norway...◁/think▷Oslo", "Oslo", "Norway..."),
        ("Norway...</think>Oslo", "Oslo", "Norway..."),
        ("Norway...[/THINK]Oslo", "Oslo", "Norway..."),
        ("<think>a</think>\n<think>b</think>Oslo", "Oslo", "a\n\nb"),
        ("<think>a <think>b</think> c</think>Oslo", "Oslo", "a <think>b\n\nc"),
        ("<think>It ends with </think>. Well.</think>Oslo", "Oslo", "It ends with\n\n. Well."),
        ("<think></think>Oslo", "Oslo", None),
        ("<think/>Oslo", "Oslo", None),
        ("<think>Norway...", "", "Norway..."),
        (HARMONY, "Oslo", "Norway..."),
        (f"<|start|>assistant{HARMONY}<|return|>", "Oslo", "Norway..."),
        (HARMONY.removeprefix("<|channel|>analysis<|message|>"), "Oslo", "Norway..."),
        ("<|channel|>final<|message|>Oslo<|end|>\n", "Oslo", None),
        ("<|channel|>analysis<|message|>Norway...<|end|>", "", "Norway..."),
        (
            f"{HARMONY}<|end|><|start|>assistant<|channel|>analysis<|message|>?",
            "Oslo",
            "Norway...\n\n?",
        ),
        (f"<|channel|>final<|message|>Bergen<|end|>{HARMONY}", "Oslo", "Bergen\n\nNorway..."),
        ("<|channel>thought\nNorway...<channel|>Oslo", "Oslo", "Norway..."),
        ("<|channel>thought\n<channel|>Oslo", "Oslo", None),
        ("Norway...<channel|>Oslo", "Oslo", "Norway..."),
        ("<|channel>thought\nNorway...", "", "Norway..."),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=f "
            "<|constrain|>json<|message|>b<|call|><|start|>assistant<|channel|>final "
            "<|constrain|>json<|message|>Oslo<|return|>",
            "Oslo",
            "a\n\nb",
        ),
    ],
)
def test_what_a_reply_starts_with(text: str, answer: str, thought: str | None) -> None:
    assert split(text) == (answer, thought)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("The user wrote <think> in the ticket.", ""),
        ("Put it into <think> and </think>.", ""),
        ("The ticket says <think>no</think>.", ""),
        ("It ends with </think> there.", "What is </THINK >?"),
        ("It is <|channel|>final<|message|> here.", "Explain <|message|>"),
        ("Use <b>bold</b>, [1], ◁ and 1 < 2.", ""),
        ("<thinker>Rodin</thinker>", ""),
        ("[think] aloud", ""),
    ],
)
def test_a_quotation_stays(text: str, sent: str) -> None:
    assert split(text, sent) == (text, None)


@pytest.mark.parametrize("text", ['{"a": "</think>"}', ' {"a": "x\n</think>"}\n', '["</think>"]'])
def test_whole_json_is_left_alone(text: str) -> None:
    assert split(text, typed=True) == (text, None)
    assert split(f"<think>t</think>{text}", typed=True) == (text.lstrip(), "t")
    assert split(f"t</think>{text}", typed=True) == (text.lstrip(), "t")


def test_a_thought_in_a_field_of_its_own_comes_first() -> None:
    reply = without_thoughts(Reply("<think>b</think>Oslo", thought="a"), [], typed=False)
    assert (reply.text, reply.thought) == ("Oslo", "a\n\nb")


marked = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "[THINK]", "</reasoning>", " ", "x", '{"a": 1}', "<", HARMONY]
    )
).map("".join)  # fmt: skip


@examples(300)
@given(text=marked, sent=marked, typed=st.booleans())
def test_splitting_twice_is_splitting_once(text: str, sent: str, typed: bool) -> None:
    answer, thought = split(text, sent, typed=typed)
    if thought is not None and answer:
        again, _ = split(answer, sent, typed=typed)
        assert again == answer or HARMONY in text
    assert answer in text
    if "<" not in text and "[" not in text:
        assert answer is text


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 500_000, "<think></think>" * 500_000, "</think>" * 500_000,
        " " * 5_000_000 + "<think", "<|message|>" + " " * 5_000_000, "<think " * 500_000,
        "<think>" + "</thin" * 500_000, '{"a": "</think>"}</think>' * 50_000,
        "<|channel|>analysis<|message|>" * 100_000, "<|end|>" * 500_000 + "<|message|>",
    ],
    ids=range(10),
)  # fmt: skip
def test_a_hostile_reply_takes_no_more_than_its_size(text: str) -> None:
    """A quadratic one would take minutes."""
    split(text, typed=True)


# -- through a run --------------------------------------------------------------------------------

ON_BOTH = pytest.mark.parametrize("run", [by_thread, by_loop])


@ON_BOTH
@pytest.mark.parametrize(
    "text",
    [
        '<think>{"sentiment":"negative"}? No.</think>{"sentiment":"positive"}',
        '{"sentiment":"negative"}? No.</think>{"sentiment":"positive"}',
        '<reasoning>{"sentiment":"negative"}</reasoning>\n```json\n{"sentiment":"positive"}\n```',
        '<thinking>Is it {"sentiment": or not</thinking>positive',
        HARMONY.replace("Norway...", '{"sentiment":"negative"}').replace("Oslo", "positive"),
        'Sure: <think>{"sentiment":"negative"}</think> {"sentiment":"positive"}',
        '{"sentiment":"positive"}<think>Or {"sentiment":"negative"}?</think>',
    ],
)
def test_no_value_comes_out_of_a_thought(run: Run, text: str) -> None:
    df = pd.DataFrame({"review": ["a"]})
    run(df, SENTIMENT, model=FakeModel(lambda _: text))
    assert df["sentiment"].tolist() == ["positive"]


@ON_BOTH
def test_a_closing_tag_that_the_prompt_shows_ends_a_thought_of_a_typed_reply(run: Run) -> None:
    """Only free text may quote it: the text around JSON has no value in it."""
    df = pd.DataFrame({"review": ["It printed </think>."]})
    text = '{"sentiment":"negative"}? No.</think>\npositive'
    run(df, SENTIMENT, model=FakeModel(lambda _: text))
    assert df["sentiment"].tolist() == ["positive"]


@ON_BOTH
@pytest.mark.parametrize("text", [
    '<think>{"sentiment":"negative"}', '<think>{"sentiment":"negative"}</think>',
    "negative</think>",
    '<|channel|>analysis<|message|>{"sentiment":"negative"}',
])  # fmt: skip
def test_a_thought_alone_is_no_answer_and_is_asked_again(run: Run, text: str) -> None:
    df = pd.DataFrame({"review": ["a"]})
    fake = FakeModel(lambda _: text)
    with pytest.raises(RunFailed, match="BadOutput: the reply holds a thought, and no answer"):
        run(df, SENTIMENT, model=fake)
    first, again = fake.calls
    assert again[: len(first)] == first
    assert again[len(first)] == {"role": "assistant", "content": "(empty)"}


@ON_BOTH
@pytest.mark.parametrize(
    "reply",
    [
        Reply("<think>Norway is", finish_reason="length"),
        Reply("", thought="Norway is", finish_reason="max_tokens"),
        Reply("  ", thought="Norway is", finish_reason="MAX_TOKENS"),
        Reply("<|channel|>analysis<|message|>Norway is", finish_reason="length"),
    ],
)
@pytest.mark.parametrize("truncated", ["error", "keep"])
@pytest.mark.parametrize("task", [SENTIMENT, CAPITAL])
def test_a_reply_cut_inside_its_thought(run: Run, reply: Reply, truncated: str, task: Any) -> None:
    df = pd.DataFrame({"review": ["a"]})
    fake = FakeModel(lambda _: reply)
    with pytest.raises(RunFailed, match=r"still thinking.*max_tokens=.*reasoning=") as failed:
        run(df, task, model=fake, truncated=truncated)
    assert isinstance(failed.value.__cause__, CutOff)
    assert len(fake.calls) == 1
    result = failed.value.result
    assert result.rows["thought"].tolist() == ["Norway is"]
    assert not str(result.rows["text"][0]).strip()


@ON_BOTH
def test_the_thought_stands_beside_the_answer(run: Run) -> None:
    df = pd.DataFrame({"review": ["Norway", "France", "<think>"]})
    answers = {
        "Norway": "<think>North.</think>Oslo",
        "France": "Paris",
        "<think>": "They wrote <think> in it.",
    }
    fake = FakeModel(lambda text: answers[text.removeprefix("Name the capital: ")])
    result = run(df, CAPITAL, model=fake)
    assert df["response"].tolist() == ["Oslo", "Paris", "They wrote <think> in it."]
    assert result.rows["text"].tolist() == df["response"].tolist()
    assert result.rows["thought"].isna().tolist() == [False, True, True]
    assert result.rows["thought"][0] == "North."


@ON_BOTH
def test_a_correction_shows_the_reply_without_its_thought(run: Run) -> None:
    df = pd.DataFrame({"review": ["a"]})
    texts = iter(["<think>hm</think>dunno", '{"sentiment": "positive"}'])
    fake = FakeModel(lambda _: next(texts))
    run(df, SENTIMENT, model=fake)
    assert df["sentiment"].tolist() == ["positive"]
    assert [turn["content"] for turn in fake.calls[1] if turn["role"] == "assistant"] == ["dunno"]


@ON_BOTH
@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_through_a_server(run: Run, kind: str) -> None:
    df = pd.DataFrame({"review": [f"review {i}" for i in range(20)]})

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
        return f"<think>Perhaps {messages[-1]['content']}?</think>\n\nOslo"

    with servers.serve(rule) as server:
        model = client(server, kind)
        result = run(df, CAPITAL, model=model, store=False)
    assert set(df["response"]) == {"Oslo"}
    assert result.rows["thought"][7] == "Perhaps Name the capital: review 7?"


def client(server: servers.Server, kind: str, **options: Any) -> revkit.Ollama | Any:
    if kind == "ollama":
        return revkit.Ollama("m", host=server.url, **options)
    return revkit.OpenAICompatible("m", base_url=f"{server.url}/v1", api_key="k", **options)


def test_a_kept_reply_of_an_older_store_is_split(tmp_path: Any) -> None:
    """Its text holds its thought; that of a newer store is split already."""
    store = tmp_path / "replies.sqlite"
    df = pd.DataFrame({"review": ["a", "b"]})
    replies = {
        "a": Reply('{"sentiment":"negative"}? No.</think>{"sentiment":"positive"}'),
        "b": Reply("positive", thought="hm"),
    }
    keep(store, df, replies)
    fake = FakeModel([])
    run = df.llm.parallel_map(SENTIMENT, model=fake, store=store)
    assert df["sentiment"].tolist() == ["positive", "positive"]
    assert run.metrics.from_store == 2
    assert run.rows["text"][0] == '{"sentiment":"positive"}'
    assert run.rows["thought"][0] == '{"sentiment":"negative"}? No.'


def keep(store: Any, df: pd.DataFrame, replies: dict[str, Reply], task: Any = SENTIMENT) -> None:
    """Put replies into a store as they are, for the rows of a frame."""
    from revkit.store.keys import ReplyKeys
    from revkit.store.replies import Store
    from revkit.task.kinds import as_task

    task = as_task(task)
    keys = ReplyKeys(task, FakeModel([]).settings())
    (column,) = df.columns
    items = [(keys.key(task.messages({column: text}), 0), replies[text]) for text in df[column]]
    with Store.open(store) as opened:
        assert opened.put(items, task=task.fingerprint, model="fake")


# -- conversations --------------------------------------------------------------------------------


def test_a_conversation_holds_no_thoughts() -> None:
    fake = FakeModel(
        ["<think>North.</think>Oslo", Reply("Paris", thought="West."), "hm</think>Bern"]
    )

    async def talk() -> list[str]:
        async with Conversation(fake) as conversation:
            return [await conversation.aask(word) for word in ("Norway", "France", "Switzerland")]

    assert asyncio.run(talk()) == ["Oslo", "Paris", "Bern"]
    assert [turn["content"] for turn in fake.calls[2]] == [
        "Norway", "Oslo", "France", "Paris", "Switzerland",
    ]  # fmt: skip


def test_a_conversation_remembers_no_reply_that_is_none() -> None:
    cut = Reply("Os", finish_reason="length")
    answers = iter([cut, Reply("", thought="hm", finish_reason="length"), cut, "Oslo"])
    fake = FakeModel(lambda _: next(answers))
    with Conversation(fake) as talk:
        with pytest.raises(CutOff, match="raise max_tokens="):
            talk.ask("Norway")
        with pytest.raises(CutOff, match="still thinking"):
            talk.ask("Norway")
        assert talk.messages == []
    with Conversation(fake, truncated="keep") as talk:
        assert talk.ask("Norway") == "Os"
    with pytest.raises(revkit.UsageError, match="truncated="):
        Conversation(fake, truncated="maybe")  # type: ignore[arg-type]
