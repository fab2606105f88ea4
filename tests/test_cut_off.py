"""A reply that ended at a limit of tokens is an error, unless it is whole or the user keeps it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from calls import Run, by_loop, by_thread
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from servers import serve

import revkit
from revkit import BadOutput, CutOff, Reply, RunFailed, Signature, UsageError
from revkit.task.answer import Answers, _kind
from revkit.task.kinds import Template
from revkit.testing import FakeModel

ON_BOTH = pytest.mark.parametrize("run", [by_thread, by_loop])
JUDGE = Signature("Judge.", inputs="text", outputs={"mood": ["good", "bad"], "why": str})
SUMMARISE = "Summarise: {text}"
WHOLE = '{"mood": "good", "why": "it works"}'


def frame(n: int = 3) -> pd.DataFrame:
    return pd.DataFrame({"text": [f"text {i}" for i in range(n)]})


def said(texts: dict[str, Reply | str]) -> FakeModel:
    """Answers each row's text; other rows get "fine"."""
    return FakeModel(lambda prompt: texts.get(prompt.removeprefix("Summarise: "), "fine"))


def cut(text: str, reason: str = "length") -> Reply:
    return Reply(text, completion_tokens=16, finish_reason=reason)


# -- what a finish reason says --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        (
            "cut",
            "length max_tokens MAX_TOKENS maxTokens max_output_tokens max_completion_tokens "
            "MaxTokens max_new_tokens token_limit limit model_length context_length "
            "model_context_window_exceeded context_window length_limit max-tokens",
        ),
        ("filtered", "content_filter SAFETY RECITATION PROHIBITED_CONTENT content-filter"),
        ("refused", "refusal"),
        ("broken", "error"),
        (None, "stop eos end_turn stop_sequence tool_calls STOP load unload done complete other"),
    ],
)
def test_finish_reasons_in_every_spelling(kind: str | None, reasons: str) -> None:
    assert {reason: _kind(reason) for reason in reasons.split()} == dict.fromkeys(
        reasons.split(), kind
    )


@given(end=st.integers(0, len(WHOLE)), reason=st.sampled_from(["length", "MAX_TOKENS"]))
def test_a_typed_reply_is_an_answer_only_as_a_whole(end: int, reason: str) -> None:
    for around in ("{}", "```json\n{}\n```", "So: {} {}"):
        text = around.replace("{}", WHOLE[:end])
        answers = Answers(JUDGE, truncated="keep", max_tokens=16)
        if text == WHOLE:
            assert answers.read(cut(text, reason))[0] == {"mood": "good", "why": "it works"}
        else:
            with pytest.raises(CutOff, match="max_tokens=16") as refused:
                answers.read(cut(text, reason))
            assert refused.value.text == text


# -- an error -------------------------------------------------------------------------------------


@ON_BOTH
@pytest.mark.parametrize("truncated", ["error", "keep"])
@pytest.mark.parametrize(
    "text", ['{"mood": "good", "why": "it wor', '{"mood": "good"', "good", "[1]", f"So: {WHOLE}"]
)
def test_cut_json_is_neither_corrected_nor_kept(run: Run, text: str, truncated: str) -> None:
    fake = said({"text 1": cut(text)})
    df = frame()
    for row in (0, 2):
        df.loc[row, "text"] = "whole"
    fake = said({"text 1": cut(text), "whole": WHOLE})
    result = run(df, JUDGE, model=fake, truncated=truncated)
    assert result.rows["status"].tolist() == ["ok", "error", "ok"]
    assert result.errors["error_type"].tolist() == ["CutOff"]
    assert result.errors["attempts"].tolist() == [1]
    assert result.errors["text"].tolist() == [text]
    assert "raise max_tokens=" in df["error"][1]
    assert "truncated=" not in df["error"][1]
    assert result.rows["truncated"].tolist() == [False, False, False]


@ON_BOTH
def test_whole_json_that_ends_with_its_last_token_is_ok(run: Run) -> None:
    df = frame(1)
    result = run(df, JUDGE, model=FakeModel(lambda _: cut(f"<think>hm</think>{WHOLE}")))
    assert df["why"].tolist() == ["it works"]
    assert result.rows["truncated"].tolist() == [False]
    assert result.metrics.truncated == 0


@ON_BOTH
def test_cut_text_is_an_error_that_says_what_helps(run: Run) -> None:
    df = frame()
    result = run(df, SUMMARISE, model=said({"text 1": cut("It was the b")}))
    assert df["response"].fillna("-").tolist() == ["fine", "-", "fine"]
    message = df["error"][1]
    assert message.startswith('CutOff: the reply was cut off at a limit of tokens (finish reason "')
    assert 'raise max_tokens=, or keep cut text with truncated="keep"' in message
    assert result.errors["text"].tolist() == ["It was the b"]
    assert result.metrics.cut_off == 1
    for shown in (result.report(), result._repr_html_()):
        assert "1 row was cut off at a limit of tokens: raise max_tokens=" in shown


def test_a_full_context_is_named() -> None:
    with pytest.raises(CutOff, match=r"the model's context was full.*shorten the prompt"):
        Answers(Template(SUMMARISE)).read(cut("It", "model_context_window_exceeded"))


def server_reply(kind: str, text: str, reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    if kind == "ollama":
        return {"model": "m", "message": message, "done": True, "done_reason": reason}
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}


@ON_BOTH
@pytest.mark.parametrize("kind", ["ollama", "openai"])
@pytest.mark.parametrize("task", [SUMMARISE, JUDGE])
def test_a_run_in_which_all_rows_were_cut_says_how_many(run: Run, kind: str, task: Any) -> None:
    text = '{"mood": "good", "why": "it wor' if task is JUDGE else "It was the b"
    with serve(lambda messages, body: server_reply(kind, text, "length")) as server:
        model = client(server, kind, max_tokens=16)
        with pytest.raises(RunFailed, match="200 rows were cut off") as failed:
            run(frame(200), task, model=model, store=False)
    assert len(server.chats) == 200
    assert "at max_tokens=16" in str(failed.value)
    result = failed.value.result
    assert "200 rows were cut off at max_tokens=16: raise max_tokens=" in result.report()
    assert "200 rows were cut off at max_tokens=16: raise max_tokens=" in result._repr_html_()
    assert result.metrics.cut_off == 200


def client(server: Any, kind: str, **options: Any) -> Any:
    if kind == "ollama":
        return revkit.Ollama("m", host=server.url, **options)
    return revkit.OpenAICompatible("m", base_url=f"{server.url}/v1", api_key="k", **options)


# -- kept -----------------------------------------------------------------------------------------


@ON_BOTH
@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_cut_text_is_kept_where_the_user_says_so(run: Run, kind: str) -> None:
    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> dict[str, Any]:
        is_cut = messages[-1]["content"].endswith("1")
        return server_reply(kind, "It was" if is_cut else "Fine.", "length" if is_cut else "stop")

    df = frame()
    with serve(rule) as server:
        result = run(df, SUMMARISE, model=client(server, kind), store=False, truncated="keep")
    assert df["response"].tolist() == ["Fine.", "It was", "Fine."]
    assert df["error"].isna().all()
    assert result.rows["truncated"].tolist() == [False, True, False]
    assert result.rows["finish_reason"].tolist() == ["stop", "length", "stop"]
    assert result.metrics.truncated == 1
    for shown in (result.report(), result._repr_html_().replace("&quot;", '"')):
        assert '1 reply was cut at max_tokens and kept (truncated="keep")' in shown
    assert result.provenance["options"]["truncated"] == "keep"


@ON_BOTH
def test_kept_cut_text_is_read_again_only_by_calls_that_keep_it(run: Run, tmp_path: Path) -> None:
    store = tmp_path / "replies.sqlite"
    model = said({"text 1": cut("It was")})

    kept = run(frame(), SUMMARISE, model=model, store=store, truncated="keep")
    assert kept.rows["truncated"].tolist() == [False, True, False]
    again = run(frame(), SUMMARISE, model=said({}), store=store, truncated="keep")
    assert again.metrics.from_store == 3
    assert again.frame["response"].tolist() == ["fine", "It was", "fine"]
    assert again.rows["truncated"].tolist() == [False, True, False]

    # Without it the row is asked again; the kept text stays until a whole reply is there.
    failed = run(frame(), SUMMARISE, model=model, store=store)
    assert failed.rows["source"].tolist() == ["store", "model", "store"]
    assert failed.errors["error_type"].tolist() == ["CutOff"]
    again = run(frame(), SUMMARISE, model=said({}), store=store, truncated="keep")
    assert again.metrics.from_store == 3

    whole = run(frame(), SUMMARISE, model=said({}), store=store)
    assert whole.frame["response"].tolist() == ["fine"] * 3
    assert whole.rows["source"].tolist() == ["store", "model", "store"]
    for truncated in ("error", "keep"):
        last = run(frame(), SUMMARISE, model=said({}), store=store, truncated=truncated)
        assert last.metrics.from_store == 3
        assert last.frame["response"].tolist() == ["fine"] * 3


@pytest.mark.parametrize("reason", ["length", "content_filter", "refusal", "error"])
@pytest.mark.parametrize("task", [SUMMARISE, JUDGE])
def test_a_kept_reply_passes_the_checks_of_today(tmp_path: Path, reason: str, task: Any) -> None:
    from test_thoughts import keep

    text = "It was" if task is SUMMARISE else '{"mood": "bad", "why": "x"} and so'
    df = pd.DataFrame({"text": ["a"]})
    keep(tmp_path / "s", df, {"a": cut(text, reason)}, task)
    fake = FakeModel(lambda _: WHOLE)
    result = df.llm.parallel_map(task, model=fake, store=tmp_path / "s")
    assert result.rows["source"].tolist() == ["model"]
    assert len(fake.calls) == 1


def test_it_goes_through_every_door(tmp_path: Path) -> None:
    fake = said({"text 1": cut("It was")})
    df = frame()
    assert df["text"].llm.parallel_map(SUMMARISE, model=fake, truncated="keep").metrics.failed == 0
    look = revkit.preview(df, SUMMARISE, model=fake, truncated="keep", store=False)
    assert look.answers is not None
    assert look.answers["response"].tolist() == ["fine", "It was", "fine"]
    assert df.llm.preview(SUMMARISE, model=fake).answers["error"].notna().sum() == 1
    awaited = asyncio.run(revkit.aparallel_map(df, SUMMARISE, model=fake, truncated="keep"))
    assert awaited.metrics.truncated == 1

    steps = revkit.chain([SUMMARISE, len_of], model=fake, truncated="keep")
    assert steps.run(df)[0].metrics.truncated == 1

    chunks = [frame(2), frame(3)]
    found = list(revkit.map_chunks(chunks, SUMMARISE, model=fake, truncated="keep"))
    assert [chunk.metrics.truncated for chunk in found] == [1, 1]

    twice = FakeModel([cut("It was")] * 2)
    run = frame(1).llm.parallel_map(SUMMARISE, model=twice, truncated="keep", repeat=2)
    assert run.metrics.truncated == 2


def len_of(row: Any) -> int:
    return len(row["text"])


def test_parquet_files_of_kept_and_refused_text_are_two(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "in.parquet")
    fake = said({"text 1": cut("It was")})
    source, sink = tmp_path / "in.parquet", tmp_path / "out.parquet"
    done = revkit.map_parquet(source, SUMMARISE, sink, model=fake, truncated="keep")
    assert done.metrics.failed == 0
    assert '1 reply was cut at max_tokens and kept (truncated="keep")' in repr(done)
    assert pd.read_parquet(sink)["response"].tolist() == ["fine", "It was", "fine"]
    with pytest.raises(UsageError, match="truncated="):
        revkit.map_parquet(source, SUMMARISE, sink, model=fake)
    done = revkit.map_parquet(source, SUMMARISE, sink, model=fake, restart=True)
    assert "1 row was cut off at a limit of tokens: raise max_tokens=" in repr(done)
    with pytest.raises(UsageError, match="truncated="):
        revkit.map_parquet(source, SUMMARISE, sink, model=fake, truncated="keep")


def test_a_second_try_keeps_it_too_and_files_remember_it(tmp_path: Path) -> None:
    replies = iter([Reply("", thought="hm", finish_reason="length"), cut("It was"), "fine"])
    fake = FakeModel(lambda _: next(replies))
    first = frame(2).llm.parallel_map(SUMMARISE, model=fake, truncated="keep", max_workers=1)
    assert first.rows["status"].tolist() == ["error", "ok"]
    both = first.retry_failed()
    assert both.rows["truncated"].tolist() == [False, True]
    both.to_parquet(tmp_path / "run.parquet")
    read = revkit.ParallelResult.read_parquet(tmp_path / "run.parquet")
    assert read.metrics.truncated == 1
    assert read.metrics.cut_off == 0


def test_on_dask(tmp_path: Path) -> None:
    dask, dd = pytest.importorskip("dask"), pytest.importorskip("dask.dataframe")
    pytest.importorskip("revkit.dask")
    with dask.config.set(scheduler="synchronous"):
        ddf = dd.from_pandas(frame(4), npartitions=2)
        fake = said({"text 1": cut("It was")})
        for truncated, expected in (("keep", "It was"), ("error", "-")):
            found = ddf.llm.parallel_map(
                SUMMARISE, model=fake, truncated=truncated, store=tmp_path / "replies"
            ).compute()
            assert found["response"].fillna("-").tolist() == ["fine", expected, "fine", "fine"]


def test_what_it_cannot_be() -> None:
    with pytest.raises(UsageError, match='truncated=True: there are "error" and "keep"'):
        frame().llm.parallel_map(SUMMARISE, model=said({}), truncated=True)
    with pytest.raises(UsageError, match="truncated= is for tasks that ask a model"):
        frame().llm.parallel_map(len_of, truncated="keep")


# -- all at once ----------------------------------------------------------------------------------

DECOY = '{"mood": "bad", "why": "no"}'
THOUGHTS = st.sampled_from(
    ["", f"{DECOY}?", f"Or {DECOY[:-3]}", "It {may} be", f"```\n{DECOY}\n```"]
)
MARKUP = st.sampled_from(
    [
        "<think>{}</think>", "<Reasoning>\n{}\n</Reasoning>\n\n", "{}</think>", "[THINK]{}[/THINK]",
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    ]
)  # fmt: skip
AROUND = st.sampled_from(["{}", " {}\n", "```json\n{}\n```", "So: {}", "{}. {It} is so.", "{{}}"])


@examples(500)
@given(
    thought=THOUGHTS,
    markup=MARKUP,
    around=AROUND,
    nested=st.booleans(),
    end=st.floats(0, 1.2),
    reason=st.sampled_from(["stop", "length", None, "max_tokens"]),
)
def test_a_value_is_the_models_own_or_an_error(
    thought: str, markup: str, around: str, nested: bool, end: float, reason: str | None
) -> None:
    """Every kind of thought, wrapping and cut in any mixture."""
    outputs: dict[str, Any] = {"mood": ["good", "bad"], "why": str | None}
    truth: dict[str, Any] = {"mood": "good", "why": None}
    written = json.dumps(truth)
    if nested:
        written = f'{{"answer": {written}}}'
    before = markup.replace("{}", thought)
    text = before + around.replace("{}", written, 1)
    text = text[: int(end * len(text))]
    if markup == "{}</think>" and len(text) < len(before):
        reason = "length"  # else nothing tells such a thought from an answer
        assume(text.strip() != DECOY)
    task = Signature("Judge.", inputs="text", outputs=outputs)
    answers = Answers(task)
    try:
        values, reply = answers.read(answers.split(Reply(text, finish_reason=reason), []))
    except BadOutput:
        assert end < 1 or reason in ("length", "max_tokens")
    else:
        assert values == truth
        assert "think" not in reply.text.lower()
