"""The Ollama client against a real server on loopback, whose replies Ollama's own client vouches
for: its types read what our server sends, and write what our client sends."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
import ollama
import pytest
import servers
from asking import CLASSIFY, ENGINES, ROW, SUMMARISE, Ask, ask_in_a_thread, ask_on_a_loop
from ollama._client import _parse_host
from servers import Status, serve

from revkit.clients.ollama import Ollama, read_host
from revkit.errors import (
    BadReply,
    ConnectionFailed,
    CutOff,
    ModelMissing,
    RowFailure,
    ServerError,
    UsageError,
)
from revkit.task.chat import Reply
from revkit.task.kinds import Template


@pytest.fixture(params=ENGINES)
def ask(request: pytest.FixtureRequest) -> Ask:
    found: Ask = request.param
    return found


# -- what is sent and what is read -----------------------------------------------------------


def test_a_reply_and_its_usage(ask: Ask) -> None:
    with serve("It broke two times.") as server:
        reply = ask(Ollama(host=server.url))
    assert reply == Reply(
        "It broke two times.",
        prompt_tokens=3,
        completion_tokens=4,
        finish_reason="stop",
        model="llama3.2:3b",
    )


def test_what_is_sent(ask: Ask) -> None:
    client_options = {"num_ctx": 8192, "temperature": 0.3}
    with serve() as server:
        client = Ollama(
            "m",
            host=server.url,
            options=client_options,
            keep_alive="10m",
            max_tokens=50,
            seed=7,
            headers={"X-Team": "nlp"},
        )
        reply = ask(client, CLASSIFY)
    (seen,) = server.requests
    assert seen.path == "/api/chat"
    assert seen.headers["x-team"] == "nlp"
    assert seen.body == {
        "model": "m",
        "stream": False,
        "truncate": False,
        "shift": False,
        "format": CLASSIFY.outputs.json_schema,
        "options": {"temperature": 0.3, "num_predict": 50, "seed": 7, "num_ctx": 8192},
        "keep_alive": "10m",
        "messages": CLASSIFY.messages(ROW),
    }
    assert CLASSIFY.parse(reply.text) == {"sentiment": "positive", "stars": 0}
    assert reply.format == "schema"


def test_free_text_asks_for_no_format_and_temperature_0(ask: Ask) -> None:
    with serve() as server:
        ask(Ollama(host=server.url))
    assert "format" not in server.requests[0].body
    assert server.requests[0].body["options"] == {"temperature": 0.0}


def test_ollamas_own_types_accept_both_sides(ask: Ask) -> None:
    with serve(models=["m"]) as server:
        ask(Ollama("m", host=server.url, max_tokens=9, keep_alive=60), CLASSIFY)
        with contextlib.closing(ollama.Client(host=server.url)) as official:
            listed = official.list()
            theirs = official.chat(
                "m", [{"role": "user", "content": "hi"}], format=CLASSIFY.outputs.json_schema
            )
    ours, _, their_request = server.requests
    accepted = ollama._types.ChatRequest.model_validate(ours.body, strict=True)
    # Its server has had these for longer than its client.
    newer = {"truncate": False, "shift": False}
    assert accepted.model_dump(exclude_none=True) | newer == ours.body
    assert their_request.path == ours.path
    assert set(their_request.body) - {"tools"} <= set(ours.body)
    assert theirs.message.content == '{"sentiment": "positive", "stars": 0}'
    assert [model.model for model in listed.models] == ["m"]


def test_text_that_is_not_unicode_is_sent_with_replacement_characters(ask: Ask) -> None:
    task = Template("{review} \ud83d")
    with serve() as server:
        ask(Ollama(host=server.url), task)
    assert server.requests[0].body["messages"][-1]["content"] == "Broke twice. \ufffd"


# -- what goes wrong -------------------------------------------------------------------------


def test_a_missing_model_says_how_to_pull_it(ask: Ask) -> None:
    with serve(models=["other"]) as server, pytest.raises(ModelMissing) as caught:
        ask(Ollama("llama3.2:3b", host=server.url))
    assert "`ollama pull llama3.2:3b`" in str(caught.value)
    assert (caught.value.status, caught.value.ends_run) == (404, True)


def test_a_missing_model_may_be_told_with_status_200(ask: Ask) -> None:
    missing = {"error": 'model "m" not found, try pulling it first'}
    with serve(lambda *_: missing) as server, pytest.raises(ModelMissing, match="ollama pull m"):
        ask(Ollama("m", host=server.url))


def test_a_server_that_is_down_says_how_to_start_it(ask: Ask) -> None:
    with servers.closed_port() as url, pytest.raises(ConnectionFailed) as caught:
        ask(Ollama(host=url))
    said = str(caught.value)
    assert url in said
    assert "`ollama serve`" in said
    assert "`docker compose up -d`" in said


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"error": "out of memory"}, BadReply, 'answered 200 with an error: "out of memory"'),
        ({"message": {"role": "assistant"}, "done": True}, BadReply, "not a whole chat reply"),
        (
            {"message": {"role": "assistant", "content": "a"}, "done": False},
            BadReply,
            "not a whole chat reply",
        ),
        (
            {"message": {"content": ""}, "done": True, "done_reason": "length"},
            CutOff,
            "before it said anything; raise max_tokens=",
        ),
        (
            {
                "message": {"content": "", "thinking": "Hm, or"},
                "done": True,
                "done_reason": "length",
            },
            CutOff,
            "still thinking; raise max_tokens=, or lower reasoning=",
        ),
        ({"message": {"content": ""}, "done": True, "done_reason": "load"}, BadReply, "loaded"),
        (Status(200, b"<h1>Welcome to nginx</h1>"), BadReply, "Welcome to nginx"),
        (Status(200, b""), BadReply, "nothing"),
        (Status(200, b"[1]"), BadReply, "else than a JSON object"),
        (Status(200, b'{"a": "\xff"}'), BadReply, "not a whole chat reply"),
        (Status(500, {"error": "llama runner died"}), ServerError, '500: "llama runner died"'),
        (Status(503, b""), ServerError, "answered 503"),
        (Status(404, b"404 page not found"), ServerError, "is host= right?"),
        (Status(500, {"error": "x" * 5000}), ServerError, "x" * 300 + " …"),
    ],
)
def test_bad_replies(ask: Ask, answer: Any, kind: type[RowFailure], words: str) -> None:
    with serve(lambda *_: answer) as server, pytest.raises(RowFailure) as caught:
        ask(Ollama(host=server.url))
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600
    assert caught.value.status == (None if kind is CutOff else getattr(answer, "status", 200))


def test_a_redirect_names_its_target_as_host(ask: Ask) -> None:
    location = "https://me:secret@box.example/ollama/api/chat?token=secret"
    with (
        serve(lambda *_: Status(308, b"", {"Location": location})) as server,
        pytest.raises(ServerError) as caught,
    ):
        ask(Ollama(host=server.url))
    said = str(caught.value)
    assert "redirects to https://box.example/ollama (308)" in said
    assert "pass it as host=" in said
    assert "secret" not in said
    assert caught.value.status == 308


def test_an_error_never_repeats_a_header_of_the_users(ask: Ask) -> None:
    def echo(_messages: Any, _body: Any) -> Status:
        return Status(500, {"error": json.dumps(server.requests[-1].headers)})

    with serve(echo) as server, pytest.raises(ServerError) as caught:
        ask(Ollama(host=server.url, headers={"X-Api-Key": "topsecret", "Cookie": "a=topsecret"}))
    assert "[key]" in str(caught.value)
    assert "topsecret" not in str(caught.value)


# -- the client as an object -----------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "1.2.3.4",
        ":56789",
        "1.2.3.4:56789",
        "http://1.2.3.4",
        "https://1.2.3.4",
        "https://1.2.3.4:56789",
        "example.com",
        "example.com:56789",
        "http://example.com",
        "https://example.com",
        "example.com/",
        "example.com:56789/path/",
        "https://example.com:56789/path",
        "[0001:002:003:0004::1]",
        "[0001:002:003:0004::1]:56789",
        "http://[0001:002:003:0004::1]",
        "https://[0001:002:003:0004::1]:56789/path",
        "LOCALHOST:1",
    ],
)
def test_a_host_is_read_as_ollamas_own_client_reads_it(host: str | None) -> None:
    assert read_host(host) == _parse_host(host)


def test_a_host_that_means_all_addresses_is_loopback() -> None:
    assert read_host("0.0.0.0") == "http://127.0.0.1:11434"
    assert read_host("http://0.0.0.0:8080") == "http://127.0.0.1:8080"
    assert read_host("[::]:8080") == "http://[::1]:8080"
    assert read_host(' "127.0.0.1" ') == "http://127.0.0.1:11434"


def test_the_argument_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ollama().endpoint == "http://127.0.0.1:11434"
    monkeypatch.setenv("OLLAMA_HOST", "box:8080")
    assert Ollama().endpoint == "http://box:8080"
    assert Ollama(host="other").endpoint == "http://other:11434"


def test_credentials_in_the_host_are_sent_and_never_shown(ask: Ask) -> None:
    with serve() as server:
        client = Ollama(host=server.url.replace("://", "://me:top%20secret@") + "/?key=topsecret")
        with pytest.raises(ServerError):  # the test server has no such path
            ask(Ollama(host=client.endpoint + "/sub"))
        ask(client)
    sent = server.requests[-1]
    assert sent.headers["authorization"] == "Basic bWU6dG9wIHNlY3JldA=="
    assert sent.target == "/api/chat?key=topsecret"
    assert "secret" not in repr(client) + json.dumps(client.settings()) + client.name


def test_settings_are_what_decides_the_answer() -> None:
    client = Ollama("m", host="box", max_tokens=5, headers={"Authorization": "Bearer k"})
    assert client.settings() == {
        "protocol": "ollama",
        "endpoint": "http://box:11434",
        "model": "m",
        "options": {"temperature": 0.0, "num_predict": 5},
    }
    assert client.name == "ollama:m"
    assert client.engines == ("async", "thread")


@pytest.mark.parametrize(
    "arguments",
    [
        {"host": "http://box:port"},
        {"host": "ftp://box"},
        {"model": ""},
        {"timeout": 0},
        {"timeout": None},
        {"headers": {"X": "a\r\nb"}},
        {"headers": {"X y": "a"}},
        {"http": object()},
    ],
)
def test_what_cannot_be_used_is_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Ollama(**arguments)


def test_options_that_are_not_json_are_refused_before_the_run() -> None:
    with pytest.raises(UsageError, match="options="):
        Ollama(options={"stop": {1, 2}}).session(SUMMARISE)


def test_the_users_http_client_decides_the_engine(ask: Ask) -> None:
    mock = httpx.MockTransport(
        lambda _: httpx.Response(200, json={"message": {"content": "mocked"}, "done": True})
    )
    assert ask(Ollama(http=mock)).text == "mocked"
    with httpx.Client(transport=mock) as client:
        assert Ollama(http=client).engines == ("thread",)
        assert ask_in_a_thread(Ollama(http=client)).text == "mocked"
        with pytest.raises(UsageError, match="AsyncClient"):
            ask_on_a_loop(Ollama(http=client))
    with pytest.raises(UsageError, match=r"httpx\.Client"):
        ask_in_a_thread(Ollama(http=httpx.AsyncClient(transport=mock)))
