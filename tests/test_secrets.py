"""A key is shown nowhere and kept nowhere, even by a server that repeats whatever it was sent.

What revkit cannot help: ``httpx`` logs the URL of each request of a client that the *user* made,
query and all; ``httpcore`` logs, at DEBUG, the headers of responses, in which a server may repeat
a key as well; and what auth of httpx's other than ``Basic`` sends is known to nobody else.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import pickle
import re
import traceback
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import nbclient
import nbformat
import pandas as pd
import pyarrow.parquet as pq
import pytest
import servers
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from servers import RESET, Status, serve

import revkit
from revkit import Retry, RunFailed, Signature
from revkit.clients.contract import Client, Request, Response
from revkit.clients.redact import Redactor

#: With characters that JSON and URLs may spell in other ways, around a part that all spell alike.
KEY = "Zx9/hush-hush+0123456789="
#: Where most rows fail the server seems to be away: its probes shall not take long.
ONCE = Retry(attempts=1, initial=0.001, maximum=0.001)
PART = "hush-hush"
QUOTED = urllib.parse.quote(KEY, safe="")
LOGIN = base64.b64encode(f"me:{KEY}".encode()).decode()
ALONE = base64.b64encode(f"{KEY}:".encode()).decode()

ANSWER = Signature("Answer.", inputs="question", outputs={"answer": str})

Make = Callable[[str, pytest.MonkeyPatch], Client]


def openai(url: str, **options: Any) -> Client:
    return revkit.OpenAICompatible("m", base_url=url + "/v1", **options)


def with_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return openai(url)


def within(url: str, login: str) -> str:
    return url.replace("://", f"://{login}@")


#: A client of the user's that keeps no connection, which it would have to close.
OF_THE_USER: dict[str, Any] = {
    "trust_env": False,
    "limits": httpx.Limits(max_keepalive_connections=0),
}

#: How the key is given; with a client of httpx, it decides the engine.
WAYS: dict[str, Make] = {
    "api_key": lambda url, _: openai(url, api_key=KEY),
    "environment": with_environment,
    "header": lambda url, _: openai(url, headers={"X-Api-Key": KEY}),
    "password in the URL": lambda url, _: openai(within(url, f"me:{QUOTED}")),
    "user in the URL": lambda url, _: openai(within(url, QUOTED)),
    "path": lambda url, _: revkit.OpenAICompatible("m", base_url=f"{url}/token/{QUOTED}/v1"),
    "name and value in the body": lambda url, _: openai(
        url, extra_body={"headers": [{"name": "X-AuthToken", "value": KEY}]}
    ),
    "query": lambda url, _: revkit.OpenAICompatible("m", base_url=f"{url}/v1?key={QUOTED}"),
    "field of the body": lambda url, _: openai(url, extra_body={"route": {"api_key": KEY}}),
    "list in the body": lambda url, _: openai(url, extra_body={"routes": [{"api_key": KEY}]}),
    "header of Ollama": lambda url, _: revkit.Ollama(
        "m", host=url, headers={"Authorization": f"Bearer {KEY}"}
    ),
    "password of Ollama": lambda url, _: revkit.Ollama("m", host=within(url, f"me:{QUOTED}")),
    "query of Ollama": lambda url, _: revkit.Ollama("m", host=f"{url}?token={QUOTED}"),
    "option of Ollama": lambda url, _: revkit.Ollama("m", host=url, options={"secret": KEY}),
    "header of httpx.Client": lambda url, _: openai(
        url, http=httpx.Client(**OF_THE_USER, headers={"Authorization": f"Bearer {KEY}"})
    ),
    "header of httpx.AsyncClient": lambda url, _: openai(
        url, http=httpx.AsyncClient(**OF_THE_USER, headers={"X-Api-Key": KEY})
    ),
    "auth of httpx.Client": lambda url, _: openai(
        url, http=httpx.Client(**OF_THE_USER, auth=("me", KEY))
    ),
    "cookie of httpx.Client": lambda url, _: openai(
        url, http=httpx.Client(**OF_THE_USER, headers={"Cookie": f"session={QUOTED}"})
    ),
}


def request_of(server: servers.Server) -> str:
    """The last request, as a proxy's error page would show it."""
    seen = server.requests[-1]
    head = "".join(f"{name}: {value}\n" for name, value in seen.headers.items())
    return f"{seen.method} {seen.target}\n{head}\n{seen.raw.decode()}"


def repeats(server: servers.Server) -> servers.Rule:
    """A rule that repeats the request in every kind of answer that there is, by the row."""

    def rule(messages: list[dict[str, str]], _: dict[str, Any]) -> servers.Answer:
        said = request_of(server)
        answers: dict[str, servers.Answer] = {
            "error": Status(400, {"error": {"message": said}}),
            "nested": Status(422, {"detail": [{"request": said}]}),
            "page": Status(500, f"<html><pre>{html.escape(said)}</pre></html>".encode()),
            "PHP": Status(500, json.dumps({"request": said}).replace("/", "\\/").encode()),
            # what is quoted is cut; here, in the middle of the key
            **{f"cut {n}": Status(500, b" " * n + said.encode()) for n in (1100, 1150, 4700, 4750)},
            "text": Status(200, said.encode()),
            "error, 200": {"error": said},
            "redirect": Status(307, b"", {"Location": f"/away{server.requests[-1].target}"}),
            "no JSON": said,
            "wrong": json.dumps({"other": said}),
            "refusal": {"choices": [{"message": {"content": None, "refusal": said}}]},
            "reset": RESET,
            "good": json.dumps({"answer": f"You sent: {said}"}),
        }
        return answers.get(messages[-1]["content"], Status(401, {"error": {"message": said}}))

    return rule


QUESTIONS = [
    "error", "nested", "page", "PHP", "cut 1100", "cut 1150", "cut 4700", "cut 4750", "text",
    "error, 200", "redirect", "no JSON", "wrong", "refusal", "reset", "good",
]  # fmt: skip


def frame(*questions: str) -> pd.DataFrame:
    return pd.DataFrame({"question": questions})


def cells(table: pd.DataFrame) -> str:
    return "\n".join(str(cell) for row in table.to_numpy() for cell in row)


def everything(run: revkit.ParallelResult) -> dict[str, str]:
    """All that a run shows and keeps."""
    return {
        "repr": repr(run),
        "report": run.report(),
        "html": run._repr_html_(),
        "frame": cells(run.frame),
        "rows": cells(run.rows),
        "attempts": cells(run.attempts),
        "errors": cells(run.errors),
        "completions": cells(run.completions),
        "summary": repr(run.summary("answer")),
        "attrs": repr(run.frame.attrs),
        "provenance": json.dumps(run.provenance),
        "causes": "".join(str(f.cause) for f in run._record.attempt_failures.values()),
    }


def saved(run: revkit.ParallelResult, path: Path) -> dict[str, str]:
    """A saved result: its bytes, all that is in it, and what it becomes when it is read."""
    run.to_parquet(path)
    table = pq.read_table(path)
    return {
        "the file": path.read_bytes().decode("latin-1"),
        "its columns": "".join(str(column.to_pylist()) for column in table.columns),
        "its metadata": str(table.schema.metadata),
        "what was read": cells(revkit.ParallelResult.read_parquet(path).attempts),
    }


def assert_hushed(shown: dict[str, str]) -> None:
    for where, text in shown.items():
        for part in (PART, LOGIN, ALONE):
            assert part not in text, f"the key stands in {where}"


@pytest.mark.usefixtures("no_picture")  # no text can be found in one
@pytest.mark.parametrize("way", WAYS)
def test_a_key_is_shown_nowhere(
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve() as server:
        server.rule = repeats(server)
        client = WAYS[way](server.url, monkeypatch)
        for engine in client.engines:
            df = frame(*QUESTIONS)
            run = df.llm.parallel_map(
                ANSWER, model=client, engine=engine, max_workers=1, retry=ONCE
            )
            sent = request_of(server)
            assert any(part in sent for part in (PART, LOGIN, ALONE))  # the server had it to repeat
            assert run.rows["status"].tolist() == ["error"] * (len(df) - 1) + ["ok"]
            assert "[key]" in run.frame["answer"].iloc[-1] + cells(run.errors)
            path = tmp_path / "run.parquet"
            df.to_parquet(path, compression=None)
            with pytest.raises(RunFailed) as failed:
                # One worker: httpcore leaves a socket open where it is cancelled as it connects.
                frame("denied", "x").llm.parallel_map(
                    ANSWER, model=client, engine=engine, max_workers=1
                )
            said = "".join(traceback.format_exception(failed.value))
            assert "denied access (401)" in said
            assert_hushed(
                everything(run)
                | everything(failed.value.result)
                | saved(run, tmp_path / "saved.parquet")
                | saved(failed.value.result, tmp_path / "failed.parquet")
                | {"Parquet": path.read_bytes().decode("latin-1"), "traceback": said}
                | {"exception": repr(failed.value), "cause": repr(failed.value.__cause__)}
            )
    out, err = capfd.readouterr()
    logged = [r.getMessage() for r in caplog.records if "response_headers" not in r.getMessage()]
    assert logged  # asyncio, httpx or httpcore had something to say
    assert_hushed(
        {
            "client": f"{client!r} {client.name} {json.dumps(client.settings())}",
            "log": "\n".join(logged),
            "output": out + err,
        }
    )


def test_a_request_does_not_show_itself() -> None:
    request = Request(f"http://box/v1?key={KEY}", KEY.encode(), {"x": KEY})
    assert repr(request) == "Request()"
    assert not isinstance(request, tuple)  # reporters of errors walk through those
    assert pickle.loads(pickle.dumps(Request("http://box"))) == Request("http://box")


def test_a_response_does_not_show_itself() -> None:
    response = Response(500, {"x": KEY}, KEY.encode())
    assert repr(response) == "Response(status=500)"
    assert not isinstance(response, tuple)


def variables_in(error: BaseException) -> str:
    """All variables of all frames of an error and what led to it, as reporters of errors see them.

    Those of this file are left out: the tests have the key.
    """
    shown = []
    found: list[BaseException | None] = [error]
    while found:
        link = found.pop()
        if link is None:
            continue
        found += [link.__cause__, link.__context__]
        extracted = traceback.TracebackException.from_exception(link, capture_locals=True)
        for frame in extracted.stack:
            if frame.filename != __file__:
                shown += [f"{frame.name}: {each}" for each in (frame.locals or {}).items()]
    return "\n".join(shown)


@pytest.mark.parametrize(
    "way", ["api_key", "query", "path", "field of the body", "option of Ollama"]
)
@pytest.mark.parametrize("engine", ["thread", "async"])
def test_no_variable_of_a_traceback_shows_a_key(
    engine: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        rule = repeats(server)
        huge = Status(200, b" " * 17_000_000, {"X-You-Sent": KEY})
        server.rule = lambda messages, body: (
            huge if messages[-1]["content"] == "huge" else rule(messages, body)
        )
        client = WAYS[way](server.url, monkeypatch)
        for question in [*QUESTIONS[:-1], "huge", "denied"]:
            with pytest.raises(RunFailed) as failed:
                frame(question).llm.parallel_map(
                    ANSWER, model=client, engine=engine, max_workers=1, retry=ONCE
                )
            causes = [f.cause for f in failed.value.result._record.attempt_failures.values()]
            assert all(causes)
            for error in filter(None, [failed.value, *causes]):
                assert_hushed({f"a variable ({question})": variables_in(error)})
    with pytest.raises(RunFailed) as failed:  # the server is gone
        frame("?").llm.parallel_map(ANSWER, model=client, engine=engine, retry=ONCE)
    for error in [f.cause for f in failed.value.result._record.attempt_failures.values()]:
        assert error is not None
        assert_hushed({"a variable": variables_in(error)})


def test_no_variable_shows_a_key_where_a_client_is_not_pickled() -> None:
    with pytest.raises(revkit.UsageError) as refused:
        pickle.dumps(openai("http://box", api_key=KEY))
    assert_hushed({"a variable": variables_in(refused.value)})


@pytest.mark.parametrize(
    "url",
    [
        f"me:{PART}@box:8000/v1",
        f"http://me:{PART}@[box/v1",
        f"http://me:{PART}?x@box/v1",
        f"http://me:x?{PART}@box/v1",
        f"http://me:x/{PART}@box/v1",
        f"http://me:{PART}@box:port/v1?key={PART}",
        f"box/v1?key={PART}",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(revkit.UsageError, match="base_url= is not a URL such as") as refused:
        revkit.OpenAICompatible("m", base_url=url)
    assert PART not in str(refused.value)
    with pytest.raises(revkit.UsageError) as refused:
        revkit.Ollama("m", host=url.replace("box:8000", "box:port").replace("box/", "box:x/"))
    assert PART not in str(refused.value)


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_key_in_a_reply_is_not_kept(engine: Any) -> None:
    """A reply is the user's data, but a key in it would be in the frame, in Parquet and in the
    notebook. No text of 16 characters is a client's own key by chance, so it is taken out."""
    with serve(json.dumps({"answer": f"Your key is {KEY}!"})) as server:
        df = frame("?")
        df.llm.parallel_map(ANSWER, model=openai(server.url, api_key=KEY), engine=engine)
    assert df["answer"].tolist() == ["Your key is [key]!"]


def spelt(key: str) -> dict[str, str]:
    """The key in the text of a JSON string, as servers may spell it."""
    first, rest = key[0], key[1:]
    return {
        "an escape": f"\\u{ord(first):04x}{rest}",
        "a capital escape": f"\\u{ord(first):04X}{rest}",
        "all escapes": "".join(f"\\u{ord(char):04x}" for char in key),
        "JSON in JSON": f"\\\\u{ord(first):04x}{rest}",
        "a URL": f"%{ord(first):02x}{rest}",
        "a page": f"&#{ord(first)};{rest.replace('-', '&#x2D;')}",
        "a login": base64.b64encode(f"me:{key}".encode()).decode(),
        "another login": base64.b64encode(f"you:{key}".encode()).decode(),
        "a third login": base64.urlsafe_b64encode(f"them:{key}:x".encode()).decode(),
    }


PLAIN_KEY = "Zx9hushhush0123456789"


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("way", spelt(PLAIN_KEY))
def test_a_key_is_taken_out_however_it_is_spelt(engine: Any, way: str, tmp_path: Path) -> None:
    said = spelt(PLAIN_KEY)[way]
    reply = {"choices": [{"message": {"content": "Your key: HERE!"}, "finish_reason": "stop"}]}
    events: list[Any] = []

    class Listener:
        def on_event(self, event: revkit.Event) -> None:
            events.append(event)

    def rule(messages: list[dict[str, str]], _: dict[str, Any]) -> servers.Answer:
        if messages[-1]["content"] == "bad":
            return Status(400, json.dumps({"error": "HERE is not a key"}).replace("HERE", said))
        return Status(200, json.dumps(reply).replace("HERE", said).encode())

    store = tmp_path / "store.sqlite"
    with serve(rule) as server:
        df = frame("good", "bad")
        run = df.llm.parallel_map(
            "{question}", model=openai(server.url, api_key=PLAIN_KEY), engine=engine, store=store,
            observer=Listener(), max_workers=1, output="answer",
        )  # fmt: skip
    assert "[key]" in df["answer"][0]
    part = said if "login" in way else PLAIN_KEY
    kept = saved(run, tmp_path / "run.parquet") | {
        f"{path}": path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()
    }
    for text in (everything(run) | kept | {"events": repr(events)}).values():
        decoded = json.dumps(text).encode().decode("unicode_escape")
        assert part not in text
        assert part not in decoded


@examples(100)
@given(data=st.data(), key=st.text("abcXYZ0189-_./+=~", min_size=20, max_size=30))
def test_any_mixture_of_spellings_is_found(data: st.DataObject, key: str) -> None:
    assume(re.search("[A-Za-z0-9]{4}", key))
    said = ""
    for char in key:
        code = ord(char)
        ways = [char, f"\\u{code:04x}", f"\\\\u{code:04X}", f"%{code:02x}", f"&#{code};"]
        said += data.draw(st.sampled_from([*ways, f"&#x{code:X};"]))
    body = f'{{"a": "<{said}>", "b": "\\u0022%22\\\\ é"}}'.encode()
    hushed = json.loads(Redactor([key]).body(body))
    assert hushed == {"a": "<[key]>", "b": '"%22\\ é'}


def test_a_body_without_the_key_is_left_as_it_came() -> None:
    body = b'{"a": "100%25 \\u0073ure &#115; \\u003cb\\u003e"}'
    assert Redactor([PLAIN_KEY]).body(body) is body


def test_a_key_that_may_be_a_word_stays_in_replies_and_not_in_messages() -> None:
    """Libraries that want some key are given "ollama" or "none", of which replies may speak."""
    with serve() as server:
        server.rule = lambda messages, _: (
            Status(400, {"error": "ollama is not a key"})
            if messages[-1]["content"] == "bad"
            else json.dumps({"answer": "ollama runs models"})
        )
        df = frame("good", "bad")
        df.llm.parallel_map(ANSWER, model=openai(server.url, api_key="ollama"))
    assert df["answer"].tolist()[0] == "ollama runs models"
    assert 'answered 400: "[key] is not a key"' in df["error"][1]


def test_what_the_user_sends_is_not_touched() -> None:
    """A key that stands in a row is the user's own text: it is sent as it is."""
    with serve(json.dumps({"answer": "yes"})) as server:
        df = frame(f"Is {KEY} a key?")
        df.llm.parallel_map(ANSWER, model=openai(server.url, api_key=KEY))
        assert server.requests[0].body["messages"][-1]["content"] == f"Is {KEY} a key?"
    assert df["question"].tolist() == [f"Is {KEY} a key?"]


CELLS = """
%xmode Verbose
import pandas as pd
import revkit
client = revkit.OpenAICompatible("m")
task = revkit.Signature("Answer.", inputs="question", outputs={"answer": str})
df = pd.DataFrame({"question": QUESTIONS})
run = df.llm.parallel_map(task, model=client, max_workers=1, retry=revkit.Retry(attempts=1),
                          progress=True)
---
run
---
print(run.report())
---
run.errors
---
run.rows
---
[client, df, df.attrs]
---
df
---
pd.DataFrame({"question": ["denied"]}).llm.parallel_map(task, model=client)
---
revkit.last_result().errors["message"].tolist()
"""


@pytest.mark.kernel
def test_a_key_is_in_no_output_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    source = CELLS.strip().replace("QUESTIONS", repr(QUESTIONS))
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in source.split("---")]
    )
    with serve() as server:
        server.rule = repeats(server)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
        nbclient.NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
        assert PART in request_of(server)
    written = nbformat.writes(notebook)
    *good, failed, last = notebook.cells
    assert all(output.output_type != "error" for cell in good for output in cell.outputs)
    assert failed.outputs[-1].ename == "RunFailed"
    assert "[key]" in last.outputs[-1].data["text/plain"]
    assert_hushed({"the notebook": written})
