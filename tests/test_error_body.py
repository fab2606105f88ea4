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
    "Moonshot": Status(429, body("no", type="exceeded_current_quota_error")),
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


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        (b"", ""),
        (b"<html><style>a{}</style><b>Bad</b> gateway</html>", "Bad gateway"),
        (b'"plain"', "plain"),
        (b"[]", "[]"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"message": {"detail": [{"msg": "extra field", "input": 1}]}}', "extra field"),
        (b'{"error": {"error": {"error": "deep"}}}', "deep"),
        (b'{"other": 1}', '{"other": 1}'),
    ],
)
def test_the_message_of_an_error(response: bytes, wanted: str) -> None:
    assert " ".join(error_body(response).message.split()) == wanted


@pytest.mark.parametrize(
    ("code", "status"),
    [(404, 404), ("502", 502), (200, None), (True, None), (10**40, None), ("x", None), (5.2, None)],
)
def test_a_code_may_be_a_status(code: Any, status: int | None) -> None:
    found = orjson.dumps({"error": {"message": "", "code": code if code != 10**40 else str(code)}})
    assert error_body(found).status == status
