"""What error responses of providers say: no money, no model, a bad key, or one row's own fault.

The bodies are those of the providers, as they answered in 2026.
"""

from __future__ import annotations

from typing import Any

import orjson
import pandas as pd
import pytest
from servers import Answer, Status, serve

import revkit
from revkit import Retry, RunFailed
from revkit.clients.error_body import error_body

MODEL = "gpt-x"


def body(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


NO_MONEY = {
    "402": Status(402, body("Payment Required")),
    "402, no JSON": Status(402, b"pay"),
    "OpenAI": Status(429, body("You exceeded your current quota", code="insufficient_quota")),
    "DeepSeek": Status(402, body("Insufficient Balance", type="unknown_error")),
    "Anthropic": Status(
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "Your credit balance is too low to access the Anthropic API.",
            },
        },
    ),
    "Anthropic, limit": Status(
        429,
        {"type": "error", "error": {"type": "enforced_spend_limit_reached", "message": "no"}},
    ),
    "Anthropic, of a month": Status(
        429,
        {
            "type": "error",
            "error": {
                "type": "rate_limit_error",
                "message": "This request would exceed your account's monthly spend limit. Please "
                "try again later.",
            },
        },
        {"retry-after": "1"},
    ),
    "Anthropic, set by the user": Status(
        400,
        body(
            "You have reached your specified API usage limits. You will regain access on "
            "2026-08-01 at 00:00 UTC.",
            type="invalid_request_error",
        ),
    ),
    "OpenAI, in words": Status(
        429, body("You exceeded your current quota, please check your plan and billing details.")
    ),
    "Moonshot": Status(429, body("no", type="exceeded_current_quota_error")),
    "Moonshot, in words": Status(
        429, body("Your account org-ea6a <ak-f8ty> is suspended due to insufficient balance, …")
    ),
    "xAI": Status(
        429,
        {
            "code": "Some resource has been exhausted",
            "error": "Your team 16f2-cd has either used all available credits or reached its "
            "monthly spending limit. To continue, please purchase more credits.",
        },
    ),
    "xAI, new": Status(
        403, {"error": "Your newly created team doesn't have any credits or licenses yet."}
    ),
    "DashScope": Status(
        400, body("Access denied, please make sure your account is …", code="Arrearage")
    ),
    "Fireworks": Status(
        412,
        body(
            "Account me is suspended, possibly due to reaching the monthly spending limit or "
            "failure to pay past invoices.",
            code="PRECONDITION_FAILED",
            type="error",
        ),
    ),
    "200, a code": Status(200, body("pay", code=402)),
    "200, a name": Status(200, body("no", code="insufficient_quota")),
    "200, in words": Status(
        200, body("Your credit balance is too low to access the Anthropic API.")
    ),
    "half a pair": Status(429, rb'{"error": {"message": "\ud83d", "code": "insufficient_quota"}}'),
}
NO_MODEL = {
    "OpenAI": Status(404, body("The model `gpt-x` does not exist", code="model_not_found")),
    "OpenRouter": Status(400, body("gpt-x is not a valid model ID", code=400)),
    "DeepSeek": Status(400, body("Model Not Exist", type="invalid_request_error")),
    "Mistral": Status(
        400, {"object": "error", "message": "Invalid model: gpt-x", "type": "invalid_model"}
    ),
    "Bedrock": Status(400, {"message": "The provided model identifier is invalid."}),
    "Azure": Status(404, body("no deployment", code="DeploymentNotFound")),
    "Anthropic": Status(
        404,
        {"type": "error", "error": {"type": "not_found_error", "message": "model: gpt-x"}},
    ),
    "Ollama": Status(404, {"error": "model 'gpt-x' not found"}),
    "Ollama, with a 200": Status(200, {"error": 'model "gpt-x" not found, try pulling it first'}),
    "OpenAI, no access": Status(403, body("no access to it", code="model_not_found")),
    "Gemini": Status(
        404,
        [body("models/gpt-x is not found for API version v1main", code=404, status="NOT_FOUND")],
    ),
    "Vertex": Status(404, body("Publisher Model `projects/p/gpt-x` was not found or …")),
    "vLLM": Status(404, {"object": "error", "message": "The model `gpt-x` does not exist."}),
    "Hugging Face": Status(400, body("The requested model 'gpt-x' …", code="model_not_found")),
    "OpenRouter, 404": Status(404, body("No endpoints found for gpt-x.", code=404)),
    "LiteLLM": Status(
        400,
        body(
            "/chat/completions: Invalid model name passed in model=gpt-x. Call `/v1/models` to …",
            code="400",
        ),
    ),
    "LiteLLM, older": Status(
        400, body("400: {'error': 'Invalid model name passed in model=gpt-x'}", code="400")
    ),
    "200, a name": Status(200, body("gone", code="model_not_found")),
    "200, an object": Status(
        200, {"object": "error", "message": "The model `gpt-x` does not exist.", "code": 404}
    ),
}
BAD_KEY = {
    "401": Status(401, b""),
    "Gemini": Status(
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "API key not valid. Please pass a valid API key.",
                    "status": "INVALID_ARGUMENT",
                    "details": [{"@type": "x", "reason": "API_KEY_INVALID"}],
                }
            }
        ],
    ),
    "400": Status(400, body("no", code="invalid_api_key")),
    "in words": Status(400, body("API key expired. Please renew the API key.")),
    "xAI": Status(
        400,
        {
            "code": "Client specified an invalid argument",
            "error": "Incorrect API key provided: ab***yz. You can obtain an API key from "
            "https://console.x.ai.",
        },
    ),
    "200, a list": Status(200, [body("no", code=401)]),
}
#: Refusals of one row that quote its text.
QUOTING = "your credit balance is too low, API key not valid, model: gpt-x, Model Not Exist"
ONE_ROW = {
    "quoted": Status(400, body(f"invalid input: '{QUOTING}'", type="invalid_request_error")),
    "policy": Status(400, body("no", code="content_policy_violation")),
    "prompt": Status(400, body(f"prompt '{QUOTING}' was flagged", code="invalid_prompt")),
    "Azure": Status(400, body("filtered", code="content_filter")),
    "Mistral": Status(
        422,
        {"object": "error", "message": {"detail": [{"type": "x", "msg": "no", "input": QUOTING}]}},
    ),
    "a list": Status(400, [body(f"bad request: {QUOTING}", status="INVALID_ARGUMENT")]),
    "first": Status(400, body(f"{QUOTING} is not allowed")),
    "first, a key": Status(400, body("API key not valid, he said, is not allowed")),
    "first, a model": Status(400, body("Model Not Exist, he said, is not allowed")),
    "404": Status(404, body(f"no document: 'the model was not found. {QUOTING}'")),
    "upstream": Status(
        400, body("Provider returned error", code=400, metadata={"raw": "Model Not Exist"})
    ),
    "another model": Status(400, body("gpt-x-mini is not a valid model ID, he said")),
}


def run(fault: Status, engine: Any, client: str) -> revkit.ParallelResult:
    """Nine rows, of which the second one meets the fault."""

    def rule(messages: list[dict[str, str]], asked: dict[str, Any]) -> Answer:
        return fault if messages[-1]["content"] == "row 1" else "fine"

    with serve(rule) as server:
        model: revkit.Client
        if client == "ollama":
            model = revkit.Ollama(MODEL, host=server.url)
        else:
            model = revkit.OpenAICompatible(MODEL, base_url=server.url + "/v1", api_key="")
        df = pd.DataFrame({"text": [f"row {n}" for n in range(9)]})
        options: dict[str, Any] = {"max_workers": 1, "retry": Retry(initial=0), "store": False}
        try:
            return df.llm.parallel_map("{text}", model=model, engine=engine, **options)
        except RunFailed as failed:
            result: revkit.ParallelResult = failed.result
            return result


ENDING = [
    *((name, fault, "QuotaUsedUp") for name, fault in NO_MONEY.items()),
    *((name, fault, "ModelMissing") for name, fault in NO_MODEL.items()),
    *((name, fault, "AccessDenied") for name, fault in BAD_KEY.items()),
]


@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize(
    ("fault", "kind"), [case[1:] for case in ENDING], ids=[f"{c[2]}, {c[0]}" for c in ENDING]
)
def test_what_every_row_would_meet_ends_the_run_at_once(
    fault: Status, kind: str, engine: Any, client: str
) -> None:
    rows = run(fault, engine, client).rows
    assert rows["status"].tolist() == ["ok", "error"] + ["not_started"] * 7
    assert rows["error_type"][1] == kind
    assert rows["attempts"].sum() == 2


@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("name", ONE_ROW)
def test_a_refusal_that_quotes_a_row_is_that_rows_error(
    name: str, engine: Any, client: str
) -> None:
    rows = run(ONE_ROW[name], engine, client).rows
    assert rows["status"].tolist() == ["ok", "error"] + ["ok"] * 7
    assert rows["error_type"][1] == "ServerError"


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("case", ENDING, ids=[f"{c[2]}, {c[0]}" for c in ENDING])
def test_what_every_row_would_meet_is_not_taken_for_a_refused_form(
    case: tuple[str, Status, str], engine: Any
) -> None:
    """A typed task asks for a JSON schema first, and a vague 400 may be about that."""
    _, fault, kind = case
    task = revkit.Signature("Judge.", inputs="text", outputs={"mood": ["good", "bad"]})
    with serve(lambda messages, asked: fault) as server:
        model = revkit.OpenAICompatible(MODEL, base_url=server.url + "/v1", api_key="")
        df = pd.DataFrame({"text": ["a", "b", "c"]})
        with pytest.raises(RunFailed, match=kind):
            df.llm.parallel_map(task, model=model, engine=engine, max_workers=1, store=False)
    assert len(server.requests) == 1


TOO_LARGE = {
    "OpenAI": Status(
        429,
        body(
            "Request too large for gpt-4.1 in organization org-x on tokens per min (TPM): Limit "
            "30000, Requested 41000. The input or output tokens must be reduced in order to run "
            "successfully.",
            type="tokens",
            code="rate_limit_exceeded",
        ),
        {"retry-after": "2"},
    ),
    "Groq": Status(
        413,
        body(
            "Request too large for model `llama` in organization `org_x` service tier `on_demand` "
            "on tokens per minute (TPM): Limit 6000, Requested 7018, please reduce your message "
            "size and try again.",
            type="tokens",
            code="rate_limit_exceeded",
        ),
    ),
}


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("answer", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_request_that_is_too_large_is_that_rows_error(answer: Status, engine: Any) -> None:
    def rule(messages: list[dict[str, str]], sent: dict[str, Any]) -> Answer:
        return answer if messages[-1]["content"] == "r5" else "fine"

    with serve(rule) as server:
        run = pd.DataFrame({"review": [f"r{i}" for i in range(10)]}).llm.parallel_map(
            "{review}",
            model=revkit.OpenAICompatible(MODEL, base_url=server.url + "/v1", api_key="sk-x"),
            engine=engine,
            max_workers=2,
        )
    assert run.errors["row"].tolist() == [5]
    assert run.errors["attempts"].tolist() == [1]
    assert "shorten the row's text" in run.errors["message"][0]
    assert run.metrics.pauses == 0


@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("engine", ["thread", "async"])
def test_geminis_limit_for_a_minute_is_waited_for(engine: Any, client: str) -> None:
    """It says "quota" and "billing", as OpenAI does where no waiting helps."""
    error = body(
        "You exceeded your current quota, please check your plan and billing details. * Quota "
        "exceeded for metric: generate_content_free_tier_requests, limit: 10. Please retry in "
        "0.01s.",
        code=429,
        status="RESOURCE_EXHAUSTED",
    )
    answers = iter(["fine", Status(429, [error]), *["fine"] * 3])
    with serve(lambda messages, asked: next(answers)) as server:
        model: revkit.Client = revkit.OpenAICompatible(MODEL, base_url=server.url + "/v1")
        if client == "ollama":
            model = revkit.Ollama(MODEL, host=server.url)
        df = pd.DataFrame({"text": [f"row {n}" for n in range(4)]})
        run = df.llm.parallel_map("{text}", model=model, engine=engine, max_workers=1, store=False)
    assert run.rows["status"].tolist() == ["ok"] * 4


@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_404_asks_for_the_address_only_before_the_first_reply(engine: Any, client: str) -> None:
    fault = Status(404, body("no such document"))
    (late,) = run(fault, engine, client).errors["message"]
    with serve(lambda messages, asked: fault) as server:
        model: revkit.Client = revkit.OpenAICompatible(MODEL, base_url=server.url + "/v1")
        if client == "ollama":
            model = revkit.Ollama(MODEL, host=server.url)
        with pytest.raises(RunFailed, match=r"; is (base_url|host)= right\?"):
            pd.DataFrame({"text": ["a"]}).llm.parallel_map("{text}", model=model, engine=engine)
    assert late.endswith('answered 404: "no such document"')


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        (b"", ""),
        (b"<html><style>a{}</style><b>Bad</b> gateway</html>", "Bad gateway"),
        (b'"plain"', "plain"),
        (b"[]", "[]"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"message": {"detail": [{"msg": "extra field", "input": 1}]}}', "extra field"),
        (b'{"detail": [{"loc": ["body", "seed"], "msg": "extra"}]}', "seed: extra"),
        (rb'{"error": {"message": "a \ud83d b"}}', "a � b"),
        (b'{"error": {"message": "a \xe9 b"}}', "a � b"),
        (b'{"error": {"error": {"error": "deep"}}}', "deep"),
        (b'{"other": 1}', '{"other": 1}'),
    ],
)
def test_the_message_of_an_error(response: bytes, wanted: str) -> None:
    assert " ".join(error_body(response).message.split()) == wanted


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((404, 404), ("502", 502), ("rate_limit_exceeded", 429), ("overloaded_error", 529)),
        *((200, None), (True, None), (10**40, None), ("x", None), (5.2, None)),
    ],
)
def test_a_code_may_be_a_status(code: Any, status: int | None) -> None:
    found = orjson.dumps({"error": {"message": "", "code": code if code != 10**40 else str(code)}})
    assert error_body(found).status == status


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ('{"error": {"message": "no GPU left"}}', "Provider returned error: no GPU left"),
        ({"error": "no GPU left"}, "Provider returned error: no GPU left"),
        ("no GPU left", "Provider returned error: no GPU left"),
        (None, "Provider returned error"),
        ("", "Provider returned error"),
        (3, "Provider returned error"),
    ],
)
def test_the_cause_behind_a_gateway_is_shown(raw: Any, wanted: str) -> None:
    found = body("Provider returned error", code=502, metadata={"raw": raw})
    assert error_body(orjson.dumps(found)).words == wanted


@pytest.mark.parametrize("name", ["temperature", "max_tokens"])
def test_a_refused_field_may_be_named_by_its_place(name: str) -> None:
    """As FastAPI and Mistral do."""

    def rule(messages: list[dict[str, str]], asked: dict[str, Any]) -> Answer:
        if name in asked:
            detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs"}]
            return Status(422, {"object": "error", "message": {"detail": detail}})
        return "fine"

    with serve(rule) as server:
        model = revkit.OpenAICompatible(MODEL, base_url=server.url + "/v1", max_tokens=9)
        run = pd.DataFrame({"text": ["a"]}).llm.parallel_map("{text}", model=model, store=False)
    assert run.rows["status"].tolist() == ["ok"]
    assert len(server.requests) == 2
