"""Prompts that do not fit: every server's own refusal becomes the same error, nothing else does."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest
from asking import CLASSIFY, ENGINES, Ask
from servers import Status, serve

import revkit
from revkit import Ollama, OpenAICompatible, PromptTooLong, PromptTruncated, ServerError
from revkit.clients.contract import Client
from revkit.clients.too_long import too_long


@pytest.fixture(params=ENGINES)
def ask(request: pytest.FixtureRequest) -> Ask:
    found: Ask = request.param
    return found


def client_of(kind: type[Client], url: str) -> Client:
    return Ollama("m", host=url) if kind is Ollama else OpenAICompatible("m", base_url=url + "/v1")


BOTH = (9000, 8192)
REFUSALS: list[tuple[int, Any, tuple[int | None, int | None]]] = [
    # OpenAI, and those that speak as it does
    (
        400,
        {
            "error": {
                "message": "This model's maximum context length is 8192 tokens. However, your "
                "messages resulted in 9000 tokens. Please reduce the length of the messages.",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
        },
        BOTH,
    ),
    (
        400,
        {
            "error": {
                "message": "This model's maximum context length is 8192 tokens. However, you "
                "requested 10000 tokens (9000 in the messages, 1000 in the completion).",
                "code": "context_length_exceeded",
            }
        },
        BOTH,
    ),
    (
        400,
        {
            "error": {
                "message": "This model's maximum context length is 8192 tokens. However, you "
                "requested 0 output tokens and your prompt contains at least 9000 input tokens, "
                "for a total of at least 9000 tokens.",
                "type": "BadRequestError",
                "code": 400,
            }
        },
        BOTH,
    ),
    (
        400,
        {
            "object": "error",
            "message": "The decoder prompt (length 9000) is longer than the maximum model length "
            "of 8192. Make sure that `max_model_len` is no smaller than the number of text tokens.",
            "type": "BadRequestError",
            "code": 400,
        },
        BOTH,
    ),
    (
        400,
        {
            "error": {
                "message": "This endpoint's maximum context length is 8192 tokens. However, you "
                "requested about 9000 tokens (9000 of text input).",
                "code": 400,
            }
        },
        (None, 8192),
    ),
    (400, {"error": {"message": "x", "code": "context_length_exceeded"}}, (None, None)),
    # TGI, Anthropic
    (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192. "
            "Given: 9000 `inputs` tokens and 512 `max_new_tokens`",
            "error_type": "validation",
        },
        BOTH,
    ),
    (
        413,
        {
            "type": "error",
            "error": {
                "type": "request_too_large",
                "message": "Request exceeds the maximum allowed number of bytes.",
            },
        },
        (None, None),
    ),
    # llama.cpp
    (
        400,
        {
            "error": {
                "code": 400,
                "message": "request (9000 tokens) exceeds the available context size (8192 tokens),"
                " try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 9000,
                "n_ctx": 8192,
            }
        },
        BOTH,
    ),
    (
        400,
        {"error": {"message": "the request exceeds the available context size, try increasing it"}},
        (None, None),
    ),
    # Ollama
    (400, {"error": "the input length exceeds the context length"}, (None, None)),
    (500, {"error": "input length exceeds maximum context length"}, (None, None)),
    (
        400,
        {"error": "prompt too long; exceeded max context length by 808 tokens (ref: ab)"},
        (None, None),
    ),
    (
        400,
        {"error": "the prompt is longer than the context length currently available to the model"},
        (None, None),
    ),
    # others
    (
        400,
        {"type": "error", "error": {"message": "prompt is too long: 9000 tokens > 8192 maximum"}},
        BOTH,
    ),
    (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "The input token count (9000) exceeds the maximum number of tokens "
                    "allowed (8192).",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
        BOTH,
    ),
    (
        400,
        {
            "object": "error",
            "message": "Prompt contains 9000 tokens and 0 draft tokens, too large for model with "
            "8192 maximum context length",
        },
        BOTH,
    ),
    (
        400,
        {
            "error": "This model's maximum prompt length is 8192 but the request contains 9000 "
            "tokens."
        },
        BOTH,
    ),
    (
        413,
        {"error": {"message": "Please reduce the length of the messages or completion."}},
        (None, None),
    ),
    (
        400,
        {"error": {"message": "The input (9000 tokens) is longer than the model's context length "
                   "(8192 tokens)."}},
        BOTH,
    ),
    (
        400,
        {"error": {"message": "Your request exceeded model token limit: 8192 (requested: 9000)"}},
        BOTH,
    ),
    (
        400,
        {"error": {"message": "<400> InternalError.Algo.InvalidParameter: Range of input length "
                   "should be [1, 8192]"}},
        (None, 8192),
    ),
    (
        400,
        {
            "error": "Trying to keep the first 9000 tokens when context the overflows. However, "
            "the model is loaded with context length of only 8192 tokens"
        },
        BOTH,
    ),
    (
        400,
        {
            "error": {
                "message": "litellm.ContextWindowExceededError: litellm.BadRequestError: prompt is "
                "too long: 9000 tokens > 8192 maximum"
            }
        },
        BOTH,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "numbers"), REFUSALS)
@pytest.mark.parametrize("kind", [Ollama, OpenAICompatible])
def test_every_refusal_is_one_error_of_its_row_in_the_same_words(
    kind: type[Client],
    status: int,
    body: Any,
    numbers: tuple[int | None, int | None],
) -> None:
    """It is sent once: it is not tried again, and not asked about in another format."""
    rows = pd.DataFrame({"review": ["short", "long"]})

    def rule(messages: Any, _body: Any) -> Any:
        if messages[-1]["content"] == "long":
            return Status(status, body)
        return '{"sentiment": "positive", "stars": 5}'

    with serve(rule) as server:
        run = rows.llm.parallel_map(CLASSIFY, model=client_of(kind, server.url), store=False)
        assert sum(seen.body["messages"][-1]["content"] == "long" for seen in server.chats) == 1
    assert run.rows["status"].tolist() == ["ok", "error"]
    (error,) = run.errors.to_dict("records")
    assert (error["error_type"], error["status"]) == ("PromptTooLong", status)
    said = error["message"]
    assert said.startswith("the prompt has ")
    assert "model's context takes" in said
    assert said.endswith("or shorten the text")
    tokens, context = numbers
    assert ("9,000" in said) is (tokens is not None)
    assert ("8,192" in said) is (context is not None)
    if kind is Ollama:
        assert ('options={"num_ctx": 10240}' if tokens else "raise num_ctx") in said
    elif "exceed_context_size_error" in json.dumps(body):
        assert "--ctx-size" in said
    else:
        assert "choose a model with a larger context" in said


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": 'bad text: "prompt is too long: 9 tokens > 8 maximum"'}},
        {"error": 'cannot read "the input length exceeds the context length"'},
        {"error": {"message": "invalid", "code": "invalid_prompt", "param": "prompt is too long"}},
        {
            "error": {
                "message": "max_tokens is too large: 9000. This model's maximum context length is "
                "8192 tokens and your request has 50 input tokens"
            }
        },
        {"error": {"message": "", "code": None}},
        {"error": {"message": ["prompt is too long"]}},
        [],
        None,
        "prompt",
    ],
)
def test_what_only_quotes_such_words_is_no_such_refusal(ask: Ask, body: Any) -> None:
    assert too_long(400, json.dumps(body).encode()) is None
    with serve(lambda *_: Status(400, body)) as server, pytest.raises(ServerError) as caught:
        ask(client_of(OpenAICompatible, server.url))
    assert caught.value.status == 400


def test_the_same_words_with_success_or_overload_are_something_else() -> None:
    body = b'{"error": {"message": "prompt is too long: 9 tokens > 8 maximum"}}'
    assert too_long(200, body) is None
    assert too_long(429, body) is None
    assert too_long(400, b"\xff\x00") is None
    assert too_long(400, b'{"error": {"error": {"error": "' + b"x" * 200_000) is None


@pytest.mark.parametrize("tokens", [-1, 0, 2**70, 1.5, "9" * 400, None, [], True])
def test_numbers_that_are_none_are_left_out(tokens: Any) -> None:
    body = {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": tokens, "n_ctx": 8}}
    error = too_long(400, json.dumps(body).encode())
    assert error is not None
    assert "8" in str(error)


def test_a_truncated_prompt_is_a_kind_of_too_long_a_prompt() -> None:
    assert issubclass(PromptTruncated, PromptTooLong)
    assert not PromptTooLong("").transient
    assert not PromptTooLong("").ends_run


def test_ollama_may_say_it_with_status_200(ask: Ask) -> None:
    with (
        serve(lambda *_: {"error": "the input length exceeds the context length"}) as server,
        pytest.raises(revkit.PromptTooLong, match="raise num_ctx"),
    ):
        ask(Ollama("m", host=server.url))
