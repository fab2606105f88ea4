"""The OpenAI-compatible client, against our own server and against one that others wrote."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import servers
from asking import CLASSIFY, ENGINES, ROW, SUMMARISE, Ask
from servers import Status, serve

from revkit.clients.contract import Request, Response
from revkit.clients.openai import OpenAICompatible, OpenAISession
from revkit.errors import (
    AccessDenied,
    BadOutput,
    BadReply,
    ConnectionFailed,
    ModelMissing,
    ModelRefused,
    RowFailure,
    ServerError,
    UsageError,
)
from revkit.runtime.work import drive
from revkit.task.chat import Reply
from revkit.task.kinds import ModelTask

KEY = "sk-proj-very-secret-1234567890"
FITTING = '{"sentiment": "negative", "stars": 1}'


@pytest.fixture(params=ENGINES)
def ask(request: pytest.FixtureRequest) -> Ask:
    found: Ask = request.param
    return found


def client_of(server: servers.Server, **arguments: Any) -> OpenAICompatible:
    return OpenAICompatible("m", base_url=server.url + "/v1", **arguments)


# -- what is sent and what is read -----------------------------------------------------------


def test_a_reply_and_its_usage(ask: Ask) -> None:
    with serve("It broke two times.", key=KEY) as server:
        reply = ask(client_of(server, api_key=KEY))
    assert reply == Reply(
        "It broke two times.",
        prompt_tokens=3,
        completion_tokens=4,
        finish_reason="stop",
        model="m",
    )


def test_what_is_sent(ask: Ask) -> None:
    with serve() as server:
        client = client_of(
            server,
            max_tokens=50,
            temperature=0.3,
            seed=7,
            extra_body={"top_p": 0.9, "stream": None},
            headers={"X-Team": "nlp"},
        )
        reply = ask(client, CLASSIFY)
    (seen,) = server.requests
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["x-team"] == "nlp"
    assert "authorization" not in seen.headers
    schema = CLASSIFY.outputs.json_schema
    assert seen.body == {
        "model": "m",
        "stream": None,
        "max_tokens": 50,
        "temperature": 0.3,
        "seed": 7,
        "top_p": 0.9,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "outputs", "strict": True, "schema": schema},
        },
        "messages": CLASSIFY.messages(ROW),
    }
    assert CLASSIFY.parse(reply.text) == {"sentiment": "positive", "stars": 0}


def test_free_text_asks_for_no_format_and_temperature_0(ask: Ask) -> None:
    with serve() as server:
        ask(client_of(server))
    assert set(server.requests[0].body) == {"model", "stream", "temperature", "messages"}
    assert server.requests[0].body["temperature"] == 0.0


def test_content_in_parts_is_put_together(ask: Ask) -> None:
    parts = [{"type": "text", "text": "It "}, {"type": "text", "text": "broke."}]
    with serve(lambda *_: {"choices": [{"message": {"content": parts}}]}) as server:
        assert ask(client_of(server)) == Reply("It broke.")


# -- servers that speak less of the protocol -------------------------------------------------


def refusing(**refusals: Callable[[dict[str, Any]], bool]) -> servers.Rule:
    """A rule that refuses requests as OpenAI does, naming the first parameter that fits."""

    def rule(_messages: Any, body: dict[str, Any]) -> servers.Answer:
        for name, refused in refusals.items():
            if refused(body):
                said = f"Unsupported parameter: '{name}' is not supported with this model."
                error = {"message": said, "param": name, "code": "unsupported_parameter"}
                return Status(400, {"error": error})
        return FITTING

    return rule


def has_format(*kinds: str) -> Callable[[dict[str, Any]], bool]:
    return lambda body: body.get("response_format", {}).get("type") in kinds


def ask_rows(client: OpenAICompatible, rows: int, task: ModelTask = CLASSIFY) -> list[Reply]:
    """Several rows of one run, one after the other."""
    transport, session = client.transport(max_workers=1), client.session(task)
    try:
        return [drive(session.exchange(task.messages(ROW)), transport.send) for _ in range(rows)]
    finally:
        transport.close()


def formats(server: servers.Server) -> list[str]:
    return [seen.body.get("response_format", {}).get("type", "none") for seen in server.requests]


def test_a_refused_schema_falls_back_to_json_mode_once_a_run() -> None:
    with serve(refusing(response_format=has_format("json_schema"))) as server:
        replies = ask_rows(client_of(server), 3)
        assert formats(server) == ["json_schema", *["json_object"] * 3]
        ask_rows(client_of(server), 1)  # another run finds out for itself
    assert [reply.text for reply in replies] == [FITTING] * 3
    assert formats(server)[4:] == ["json_schema", "json_object"]


def test_refused_json_mode_falls_back_to_the_prompt() -> None:
    rule = refusing(response_format=has_format("json_schema", "json_object"))
    with serve(rule) as server:
        ask_rows(client_of(server), 2)
    assert formats(server) == ["json_schema", "json_object", "none", "none"]


@pytest.mark.parametrize(
    "refusal",
    [
        Status(422, {"detail": [{"loc": ["body", "response_format"], "msg": "Extra inputs"}]}),
        Status(500, {"error": "grammar: unknown keyword in JSON schema"}),
        Status(501, {"error": {"message": "structured outputs are not implemented"}}),
        Status(400, b"Bad Request"),
        Status(422, b""),
    ],
)
def test_other_ways_to_refuse_a_format(refusal: Status) -> None:
    def rule(_messages: Any, body: dict[str, Any]) -> servers.Answer:
        return refusal if "response_format" in body else FITTING

    with serve(rule) as server:
        ask_rows(client_of(server), 2)
    assert formats(server) == ["json_schema", "json_object", "none", "none"]


def test_a_vague_refusal_is_the_rows_own_once_the_format_has_worked() -> None:
    answers = iter([FITTING, Status(400, {"error": "the prompt is too long"}), FITTING])
    with serve(lambda *_: next(answers)) as server:
        with pytest.raises(ServerError, match="the prompt is too long"):
            ask_rows(client_of(server), 2)
        ask_rows(client_of(server), 1)
    assert formats(server) == ["json_schema"] * 3


def test_a_row_that_is_refused_in_every_form_teaches_nothing() -> None:
    client = OpenAICompatible("m", base_url="http://model.example/v1")
    session = client.session(CLASSIFY)
    bodies = []

    def refuse(request: Request) -> Response:
        bodies.append(json.loads(request.body or b""))
        return Response(400, {}, b'{"error": "the prompt is too long"}')

    messages = CLASSIFY.messages(ROW)
    with pytest.raises(ServerError, match="the prompt is too long"):
        drive(session.exchange(messages), refuse)
    assert len(bodies) == 3
    assert b'"json_schema"' in (next(session.exchange(messages)).body or b"")


def test_newer_models_take_another_limit_and_no_temperature() -> None:
    rule = refusing(
        max_tokens=lambda body: "max_tokens" in body,
        temperature=lambda body: "temperature" in body,
    )
    with serve(rule) as server:
        ask_rows(client_of(server, max_tokens=9), 2)
    first, second, third, fourth = (seen.body for seen in server.requests)
    assert (first["max_tokens"], first["temperature"]) == (9, 0.0)
    assert (second["max_completion_tokens"], second["temperature"]) == (9, 0.0)
    assert third["max_completion_tokens"] == 9
    assert "temperature" not in third
    assert fourth == third
    assert formats(server) == ["json_schema"] * 4


def test_a_temperature_that_the_user_chose_is_never_left_out() -> None:
    rule = refusing(temperature=lambda body: "temperature" in body)
    with serve(rule) as server, pytest.raises(ServerError, match="temperature"):
        ask_rows(client_of(server, temperature=0.7), 1)
    assert all("temperature" in seen.body for seen in server.requests)


def test_workers_that_learn_at_the_same_time_cost_requests_and_never_errors() -> None:
    rule = refusing(
        response_format=has_format("json_schema", "json_object"),
        max_tokens=lambda body: "max_tokens" in body,
        temperature=lambda body: "temperature" in body,
    )
    with serve(rule, gate=8) as server:  # all eight learn before any has a reply
        client = client_of(server, max_tokens=9)
        transport, session = client.transport(max_workers=8), client.session(CLASSIFY)
        messages = CLASSIFY.messages(ROW)
        with ThreadPoolExecutor(8) as pool:
            jobs = [
                pool.submit(lambda: drive(session.exchange(messages), transport.send))
                for _ in range(40)
            ]
            texts = [job.result().text for job in jobs]
        before = len(server.requests)
        drive(session.exchange(messages), transport.send)
        transport.close()
    assert texts == [FITTING] * 40
    assert len(server.requests) == before + 1  # all is learned
    assert before <= 40 + 8 * 4


def test_what_two_workers_learn_apart_is_put_together() -> None:
    """One learns that there is no schema, the other that there is no temperature."""
    session = OpenAISession(OpenAICompatible("m", base_url="http://model.example/v1"), CLASSIFY)
    messages = CLASSIFY.messages(ROW)
    good = Response(200, {}, json.dumps({"choices": [{"message": {"content": "a"}}]}).encode())

    def refusal(name: str) -> Response:
        error = {"error": {"message": f"{name} is not supported", "param": name}}
        return Response(400, {}, json.dumps(error).encode())

    one, other = session.exchange(messages), session.exchange(messages)
    next(one), next(other)
    one.send(refusal("response_format"))
    other.send(refusal("temperature"))
    for exchange in (one, other):
        with pytest.raises(StopIteration):
            exchange.send(good)
    body = json.loads(next(session.exchange(messages)).body or b"")
    assert body["response_format"] == {"type": "json_object"}
    assert "temperature" not in body


# -- what goes wrong -------------------------------------------------------------------------


def silent(**message: Any) -> dict[str, Any]:
    reason = message.pop("finish_reason", "stop")
    return {"choices": [{"message": {"content": None, **message}, "finish_reason": reason}]}


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (silent(refusal="I cannot help with that."), ModelRefused, "I cannot help with that."),
        (silent(tool_calls=[{"id": "1"}]), BadOutput, "called a tool"),
        ({"choices": []}, BadReply, "is base_url= the address of an OpenAI-compatible server?"),
        ({"choices": [{"text": "a"}]}, BadReply, "not a chat completion"),
        ({"choices": None, "usage": 3}, BadReply, "not a chat completion"),
        ({"error": {"message": "no capacity"}}, BadReply, 'with an error: "no capacity"'),
        (
            {"error": {"message": "slow down", "code": 429}},
            ServerError,
            'answered 200 with an error 429: "slow down"',
        ),
        (Status(200, b"<html><title>Portal</title>Log in</html>"), BadReply, "Log in"),
        (Status(500, {"error": {"message": "boom"}}), ServerError, '500: "boom"'),
        (
            Status(502, b"<html><style>x{}</style><h1>Bad gateway</h1>"),
            ServerError,
            '"Bad gateway"',
        ),
        (Status(404, {"detail": "Not Found"}), ServerError, "is base_url= right?"),
        (Status(401, {"error": "no"}), AccessDenied, "set OPENAI_API_KEY, or pass api_key="),
        (Status(403, {"error": "not you"}), AccessDenied, '403): "not you"'),
        (
            Status(404, {"error": {"message": "gone", "code": "model_not_found"}}),
            ModelMissing,
            "does not have the model 'm'",
        ),
        (
            Status(404, {"message": "The model `m` does not exist."}),
            ModelMissing,
            "does not have the model 'm'",
        ),
    ],
)
def test_bad_replies(ask: Ask, answer: Any, kind: type[RowFailure], words: str) -> None:
    with serve(lambda *_: answer) as server, pytest.raises(RowFailure) as caught:
        ask(client_of(server))
    assert type(caught.value) is kind
    assert words in str(caught.value)


@pytest.mark.parametrize("answer", ["", silent()])
def test_empty_text_is_left_to_the_task_to_judge(ask: Ask, answer: Any) -> None:
    with serve(lambda *_: answer) as server:
        assert ask(client_of(server)).text == ""


def test_a_refused_key_is_never_repeated(ask: Ask) -> None:
    def echo(_messages: Any, _body: Any) -> Status:
        sent = json.dumps(server.requests[-1].headers)
        return Status(401, {"error": {"message": f"Incorrect API key provided: {KEY}. {sent}"}})

    with serve(echo) as server, pytest.raises(AccessDenied) as caught:
        ask(client_of(server, api_key=f" {KEY}\n"))
    said = str(caught.value)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "Incorrect API key provided: [key]" in said
    assert "check OPENAI_API_KEY or api_key=" in said
    assert KEY not in said
    assert "1234567890" not in said


def test_what_looks_like_a_key_is_not_repeated_either(ask: Ask) -> None:
    said = "upstream sent Bearer abcdef.123456 and sk-or-v1-0123456789"
    answer = Status(500, {"error": said})
    with serve(lambda *_: answer) as server, pytest.raises(ServerError) as caught:
        ask(client_of(server))
    assert '"upstream sent [key] and [key]"' in str(caught.value)


@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_key_that_straddles_the_bound_is_not_cut_in_two(ask: Ask, status: int) -> None:
    text = b"x" * 285 + KEY.encode() + b" tail"
    with serve(lambda *_: Status(status, text)) as server, pytest.raises(RowFailure) as caught:
        ask(client_of(server, api_key=KEY))
    assert "sk-proj" not in str(caught.value)


def test_a_redirect_names_its_target_as_base_url(ask: Ask) -> None:
    away = Status(301, b"", {"Location": f"/v2/chat/completions?key={KEY}"})
    with serve(lambda *_: away) as server, pytest.raises(ServerError) as caught:
        ask(client_of(server, api_key=KEY))
    assert f"redirects to {server.url}/v2 (301)" in str(caught.value)
    assert "pass it as base_url=" in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_server_that_is_down_names_the_address(ask: Ask) -> None:
    with servers.closed_port() as url, pytest.raises(ConnectionFailed) as caught:
        ask(OpenAICompatible("m", base_url=url + "/v1"))
    assert f"cannot connect to {url}/v1: connection refused" in str(caught.value)
    assert "base_url=" in str(caught.value)


# -- the client as an object -----------------------------------------------------------------


def test_address_and_key_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OpenAICompatible("m").endpoint == "https://api.openai.com/v1"
    with serve(key=KEY) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1/")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        client = OpenAICompatible(model="m")
        monkeypatch.delenv("OPENAI_API_KEY")
        ask_rows(client, 1, SUMMARISE)
    assert client.endpoint == server.url + "/v1"


def test_a_header_of_the_users_goes_before_the_key() -> None:
    with serve() as server:
        ask_rows(client_of(server, api_key=KEY, headers={"AUTHORIZATION": "Token t"}), 1, SUMMARISE)
    assert server.requests[0].headers["authorization"] == "Token t"


def test_a_query_in_the_address_is_sent_and_never_shown() -> None:
    with serve() as server:
        url = server.url + "/v1?api-version=2024-10-21&key=very-secret"
        client = OpenAICompatible("m", base_url=url, api_key=KEY)
        ask_rows(client, 1, SUMMARISE)
    target = "/v1/chat/completions?api-version=2024-10-21&key=very-secret"
    assert server.requests[0].target == target
    shown = repr(client) + json.dumps(client.settings()) + client.name
    assert "secret" not in shown


def test_settings_are_what_decides_the_answer() -> None:
    client = OpenAICompatible(
        "m", base_url="http://box/v1", api_key=KEY, extra_body={"top_p": 1, "api_key": KEY}
    )
    assert client.settings() == {
        "protocol": "openai",
        "endpoint": "http://box/v1",
        "model": "m",
        "max_tokens": None,
        "temperature": 0.0,
        "seed": None,
        "extra_body": {"top_p": 1},
    }
    assert client.name == "openai:m"


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_url": "127.0.0.1:8000/v1"},
        {"base_url": "http://"},
        {"base_url": "http://box:99999/v1"},
        {"base_url": "http://[box/v1"},
        {"api_key": "two words\nand lines"},
        {"api_key": "kéy"},
        {"timeout": -1},
        {"timeout": float("inf")},
        {"timeout": float("nan")},
        {"timeout": "60"},
        {"model": ""},
    ],
)
def test_what_cannot_be_used_is_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        OpenAICompatible(**{"model": "m", **arguments})
    assert str(arguments.get("api_key")) not in str(caught.value)


def test_extra_body_that_is_not_json_is_refused_before_the_run() -> None:
    with pytest.raises(UsageError, match="extra_body="):
        OpenAICompatible("m", extra_body={"a": threading.Lock()}).session(SUMMARISE)


# -- a server that we did not write ----------------------------------------------------------


def test_llmock_answers_with_what_the_schema_asks_for(ask: Ask, llmock: Any) -> None:
    reply = ask(OpenAICompatible("gpt-4o-mini"), CLASSIFY)  # the fixture sets the environment
    assert set(CLASSIFY.parse(reply.text)) == {"sentiment", "stars"}
    assert reply.finish_reason == "stop"
    assert reply.prompt_tokens
    assert reply.completion_tokens
    assert llmock.last_request.status == 200


def test_llmock_scripts_a_reply(ask: Ask, llmock: Any) -> None:
    llmock.reply("It broke.")
    assert ask(OpenAICompatible("gpt-4o-mini")).text == "It broke."


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, AccessDenied),
        (403, AccessDenied),
        (408, ServerError),
        (429, ServerError),
        (500, ServerError),
        (503, ServerError),
    ],
)
def test_llmock_errors(ask: Ask, llmock: Any, status: int, kind: type[RowFailure]) -> None:
    llmock.fail(status, message="scripted")
    with pytest.raises(RowFailure) as caught:
        ask(OpenAICompatible("gpt-4o-mini"))
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert "scripted" in str(caught.value)


def test_llmock_calls_a_tool(ask: Ask, llmock: Any) -> None:
    llmock.call_tool("search", {})
    with pytest.raises(BadOutput, match="called a tool"):
        ask(OpenAICompatible("gpt-4o-mini"))
