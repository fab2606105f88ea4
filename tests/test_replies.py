"""What clients make of a successful response: thoughts, refusals, and what is no reply at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import NOT_GZIP, NOT_HTTP, Answer, Status, serve
from unwell import reply

import revkit
from revkit import Reply, Retry, RunFailed, Signature
from revkit.clients.message_parts import said
from revkit.testing import FakeModel

MOOD = Signature("Judge.", inputs="review", outputs={"mood": ["good", "bad"], "note": str})
FINE = '{"mood": "good", "note": "fine"}'
WRONG = '{"mood": "bad", "note": "x"}'

Make = Callable[..., dict[str, Any]]

FIELDS = ["content", "refusal", "reasoning", "reasoning_content", "reasoning_details", "thinking"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "thinking", "thought"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def run(
    rule: Callable[..., Answer], engine: Any, client: str, rows: int = 4, **options: Any
) -> revkit.ParallelResult:
    with serve(rule) as server:
        model: revkit.Client
        if client == "ollama":
            model = revkit.Ollama("m", host=server.url)
        else:
            model = revkit.OpenAICompatible("m", base_url=server.url + "/v1", api_key="")
        df = pd.DataFrame({"review": [f"row {n}" for n in range(rows)]})
        given: dict[str, Any] = {"max_workers": 1, "retry": Retry(initial=0), "store": False}
        try:
            return df.llm.parallel_map(MOOD, model=model, engine=engine, **given | options)
        except RunFailed as failed:
            result: revkit.ParallelResult = failed.result
            return result


THOUGHTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "reasoning_content": (FINE, {"reasoning_content": WRONG}),
    "reasoning": (FINE, {"reasoning": WRONG}),
    "thinking": (FINE, {"thinking": WRONG}),
    "details": (FINE, {"reasoning_details": [{"type": "reasoning.text", "text": WRONG}]}),
    "summary": (FINE, {"reasoning_details": [{"type": "reasoning.summary", "summary": WRONG}]}),
    "twice": (FINE, {"reasoning": WRONG, "reasoning_content": WRONG, "reasoning_details": []}),
    "part": (
        [
            {"type": "thinking", "thinking": [{"type": "text", "text": WRONG}]},
            {"type": "text", "text": FINE},
        ],
        {},
    ),
    "part with a text": ([{"type": "thinking", "thinking": WRONG}, {"text": FINE}], {}),
    "reasoning part": ([{"type": "reasoning", "summary": [{"text": WRONG}]}, {"text": FINE}], {}),
    "text of a reasoning": ([{"type": "reasoning_text", "text": WRONG}, {"text": FINE}], {}),
    "flagged part": ([{"text": WRONG, "thought": True}, {"text": FINE}], {}),
    "plain part": ([{"type": "thinking", "thinking": WRONG}, FINE], {}),
    "output_text": ([{"type": "output_text", "text": FINE}], {"reasoning": WRONG}),
    "one part": ({"type": "text", "text": FINE}, {"reasoning": WRONG}),
    "a part of another kind": ([{"type": "tool_result", "text": WRONG}, {"text": FINE}], {}),
    "twice, in pieces": (
        FINE,
        {
            "reasoning": WRONG,
            "reasoning_details": [{"type": "reasoning.text", "text": t} for t in WRONG.split(" ")]
            + [{"type": "reasoning.encrypted", "data": "x"}],
        },
    ),
}


@pytest.mark.parametrize("name", THOUGHTS)
@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_thought_is_no_answer(name: str, engine: Any) -> None:
    content, fields = THOUGHTS[name]
    result = run(lambda messages, body: reply(body, content, **fields), engine, "openai", 1)
    row = result.rows.iloc[0]
    assert (row["mood"], row["text"]) == ("good", FINE)
    assert row["thought"] == WRONG if name != "a part of another kind" else pd.isna(row["thought"])


@given(st.lists(st.sampled_from(["text", "output_text", None, "thinking", "reasoning", "x"])))
def test_parts_are_text_or_thought_or_neither(kinds: list[str | None]) -> None:
    parts = [{"type": kind, "text": f"<{n}>"} for n, kind in enumerate(kinds)]
    found = said({"content": parts})
    for part, kind in zip(parts, kinds, strict=True):
        assert (part["text"] in found.text) == (kind in ("text", "output_text", None))
        assert (part["text"] in found.thought) == (kind in ("thinking", "reasoning"))


@given(message=st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_message_can_be_taken_apart(message: dict[str, Any]) -> None:
    assert all(isinstance(part, str) for part in said(message))


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"content": None, "refusal": "I will not."}, "ModelRefused"),
        ({"content": FINE, "refusal": "I will not."}, "ModelRefused"),
        ({"content": [{"type": "refusal", "refusal": "I will not."}]}, "ModelRefused"),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "BadOutput"),
    ],
)
def test_a_refusal_is_no_answer(message: dict[str, Any], kind: str, engine: Any) -> None:
    result = run(lambda messages, body: reply(body, **message), engine, "openai", 1)
    assert result.errors["error_type"].tolist() == [kind]
    assert result.rows["attempts"].tolist() == [1]


def broken_off(body: dict[str, Any], code: Any) -> dict[str, Any]:
    found = reply(body, FINE, "error")
    found["choices"][0]["error"] = {"code": code, "message": "the provider has failed"}
    return found


GARBLED: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "no choices": lambda body: Status(200, {"choices": []}),
    "null": lambda body: Status(200, {"choices": None, "message": None}),
    "null body": lambda body: Status(200, b"null"),
    "nothing": lambda body: Status(200, b""),
    "a page": lambda body: Status(200, b"<html>Bad gateway</html>"),
    "half": lambda body: Status(200, json.dumps(reply(body, FINE)).encode()[:60]),
    "a list": lambda body: Status(200, b"[]"),
    "an error": lambda body: Status(200, {"error": {"message": "upstream failed"}}),
    "an error's text": lambda body: Status(200, {"error": "upstream failed"}),
    "an error beside a reply": lambda body: Status(200, {**reply(body, WRONG), "error": "failed"}),
    "an error of another shape": lambda body: Status(200, {"object": "error", "message": "no"}),
    "an error in a list": lambda body: Status(200, [{"error": {"message": "upstream failed"}}]),
    "no message": lambda body: Status(200, {"choices": [{"text": FINE}], "done": True}),
    "not HTTP": lambda body: NOT_HTTP,
    "not gzip": lambda body: NOT_GZIP,
}


@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("name", GARBLED)
def test_a_garbled_success_is_tried_again(name: str, engine: Any, client: str) -> None:
    asked: list[str] = []

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        asked.append(messages[-1]["content"])
        if asked.count("row 1") in (1, 2) and asked[-1] == "row 1":
            return GARBLED[name](body)
        return reply(body, FINE)

    result = run(rule, engine, client)
    assert result.rows["status"].tolist() == ["ok"] * 4
    assert result.rows["attempts"].tolist() == [1, 3, 1, 1]
    failures = result.attempts["error"].dropna()
    assert failures.str.startswith("BadReply: ").all()
    # The others have shown that it is the model's server.
    assert not failures.str.contains("is it |address of", regex=True).any()


@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("name", ["a page", "no choices", "not HTTP"])
def test_a_server_that_never_gave_a_reply_may_be_another_one(
    name: str, engine: Any, client: str
) -> None:
    result = run(lambda messages, body: GARBLED[name](body), engine, client, 1)
    parameter = "host" if client == "ollama" else "base_url"
    assert f"; is {parameter}= the address of an O" in result.errors["message"][0]


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize(("code", "status"), [(429, 429), ("503", 503), (None, 502), ("x", 502)])
def test_a_reply_that_was_broken_off_is_tried_again(code: Any, status: int, engine: Any) -> None:
    answers = iter([FINE, "broken off", FINE, FINE, FINE])

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        said = next(answers)
        return broken_off(body, code) if said == "broken off" else reply(body, said)

    result = run(rule, engine, "openai")
    assert result.rows["status"].tolist() == ["ok"] * 4
    (failed,) = result.attempts["error"].dropna()
    assert f"answered 200 with an error {status}" in failed
    assert result.usage.completion_tokens == 5 * 8  # the part may be billed


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
@pytest.mark.parametrize("text", [WRONG, ""])
def test_a_part_of_a_reply_is_never_its_value(text: str, reason: str, engine: Any) -> None:
    """Of OpenRouter, vLLM and DeepSeek, without a word of why."""
    result = run(lambda messages, body: reply(body, text, reason), engine, "openai", 1)
    assert result.rows["status"].tolist() == ["error"]
    assert result.rows["attempts"].tolist() == [3]
    assert result.rows["mood"].isna().all()
    assert result.errors["text"].tolist() == [text]


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize(("code", "attempts"), [(400, 1), ("403", 1), ("server_error", 3)])
def test_a_reply_that_was_broken_off_is_read_by_its_code(
    code: Any, attempts: int, engine: Any
) -> None:
    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        return broken_off(body, code)

    assert run(rule, engine, "openai", 1).rows["attempts"].tolist() == [attempts]


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize(
    "reason",
    ["content_filter", "content_filter: RECITATION", "SAFETY", "sensitive", "guardrail_intervened"],
)
def test_a_filtered_reply_has_no_value(reason: str, engine: Any) -> None:
    result = run(lambda messages, body: reply(body, WRONG, reason), engine, "openai", 1)
    assert result.errors["error_type"].tolist() == ["ContentFiltered"]
    assert result.errors["text"].tolist() == [WRONG]
    assert result.rows["attempts"].tolist() == [1]


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "m", "code": 503}, 503),
        ({"message": "m", "code": "429"}, 429),
        ({"message": "m", "code": "rate_limit_exceeded"}, 429),
    ],
)
def test_an_error_with_a_200_is_read_by_its_code(error: Any, status: int, engine: Any) -> None:
    answers = iter([FINE, Status(200, {"error": error}), FINE, FINE, FINE])
    result = run(lambda messages, body: next(answers), engine, "openai")
    assert result.rows["status"].tolist() == ["ok"] * 4
    (failed,) = result.attempts["error"].dropna()
    assert f"answered 200 with an error {status}" in failed


@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("half", [b"\xed\xa0\xbd", b"\xe2\x82", rb"\ud83d", rb"\\ud83d"])
def test_half_of_a_surrogate_pair_costs_a_character(half: bytes, engine: Any, client: str) -> None:
    """Raw, half of a character of UTF-8, escaped, and escaped in the JSON that the model wrote."""

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        found = json.dumps(reply(body, '{"mood": "good", "note": "a ? b"}')).encode()
        return Status(200, found.replace(b"?", half))

    result = run(rule, engine, client, 1)
    assert result.frame["note"].tolist() == ["a � b"]


@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("odd", [2**64 - 1, 2**63, -1, 1.5, 12.0, "12", None, True, [1], 10**30])
def test_an_odd_number_of_tokens_is_not_known(odd: Any, engine: Any, client: str) -> None:
    result = run(lambda messages, body: reply(body, FINE, usage=(odd, 7)), engine, client, 2)
    assert result.rows["status"].tolist() == ["ok", "ok"]
    assert result.rows["prompt_tokens"].isna().all()
    assert result.rows["completion_tokens"].tolist() == [7, 7]


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_the_served_model_and_the_format_stand_in_the_rows(engine: Any) -> None:
    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        if body["response_format"]["type"] == "json_schema":
            return Status(400, {"error": {"message": "json_schema is not supported"}})
        return reply(body, FINE, model="m-2026-11")

    rows = run(rule, engine, "openai", 2).rows
    assert rows["model"].tolist() == ["m-2026-11"] * 2
    assert rows["format"].tolist() == ["json"] * 2


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_byte_order_mark_is_no_part_of_a_body(engine: Any) -> None:
    """Servers on .NET write one."""

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        return Status(200, b"\xef\xbb\xbf" + json.dumps(reply(body, FINE)).encode())

    assert run(rule, engine, "openai", 1).frame["note"].tolist() == ["fine"]


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_both_halves_of_a_pair_are_one_character(engine: Any) -> None:
    """CESU-8, as Java and Oracle write it."""

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        found = json.dumps(reply(body, '{"mood": "good", "note": "a ? b"}')).encode()
        return Status(200, found.replace(b"?", b"\xed\xa0\xbd\xed\xb8\x80"))

    assert run(rule, engine, "openai", 1).frame["note"].tolist() == ["a 😀 b"]


@pytest.mark.parametrize("odd", [2**64 - 1, 2**63 - 1, 10**9 + 1, -1, 1.5])
def test_an_odd_number_of_tokens_of_any_client_is_not_known(odd: Any) -> None:
    fits = FakeModel(lambda text: Reply(FINE, prompt_tokens=odd, completion_tokens=7))
    rows = pd.DataFrame({"review": ["a", "b"]}).llm.parallel_map(MOOD, model=fits).rows
    assert rows["status"].tolist() == ["ok", "ok"]
    assert rows["prompt_tokens"].isna().all()
    assert rows["completion_tokens"].tolist() == [7, 7]


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize(
    ("own", "wanted"), [("json_object", "json"), ("json_schema", "schema"), ("text", "prompt")]
)
def test_a_format_of_the_users_is_the_one_in_force(own: str, wanted: str, engine: Any) -> None:
    with serve(lambda messages, body: reply(body, FINE)) as server:
        extra = {"response_format": {"type": own}}
        model = revkit.OpenAICompatible("m", base_url=server.url + "/v1", extra_body=extra)
        df = pd.DataFrame({"review": ["a"]})
        rows = df.llm.parallel_map(MOOD, model=model, engine=engine, store=False).rows
    assert rows["format"].tolist() == [wanted]
