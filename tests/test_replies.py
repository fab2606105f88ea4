"""What clients make of a successful response: thoughts, refusals, and what is no reply at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from servers import NOT_GZIP, NOT_HTTP, Answer, Status, serve
from unwell import reply

import revkit
from revkit import Retry, RunFailed, Signature

MOOD = Signature("Judge.", inputs="review", outputs={"mood": ["good", "bad"], "note": str})
FINE = '{"mood": "good", "note": "fine"}'
WRONG = '{"mood": "bad", "note": "x"}'

Make = Callable[..., dict[str, Any]]


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
}


@pytest.mark.parametrize("name", THOUGHTS)
@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_thought_is_no_answer(name: str, engine: Any) -> None:
    content, fields = THOUGHTS[name]
    result = run(lambda messages, body: reply(body, content, **fields), engine, "openai", 1)
    row = result.rows.iloc[0]
    assert (row["mood"], row["thought"], row["text"]) == ("good", WRONG, FINE)


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
    assert f"answered {status}" in failed


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
    assert f"answered {status}" in failed


@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("half", [b"\xed\xa0\xbd", rb"\ud83d", rb"\\ud83d"])
def test_half_of_a_surrogate_pair_costs_a_character(half: bytes, engine: Any, client: str) -> None:
    """Raw, escaped, and escaped within the JSON that the model wrote."""

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
