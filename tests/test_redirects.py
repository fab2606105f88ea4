"""Redirects are never followed: a key does not travel, and the row's error names the target."""

from __future__ import annotations

from typing import Any

import httpx
import pandas as pd
import pytest
from servers import Status, serve

import revkit
from revkit import Retry, RunFailed

KEY = "Zx9hushhush0123456789"


def failed(server: Any, engine: Any, **options: Any) -> str:
    client = revkit.OpenAICompatible(
        "m", base_url=server.url + "/v1", api_key=KEY, headers={"X-Api-Key": KEY}, **options
    )
    with pytest.raises(RunFailed) as caught:
        pd.DataFrame({"t": ["a"]}).llm.parallel_map(
            "{t}", model=client, engine=engine, retry=Retry(attempts=1)
        )
    assert caught.value.result.errors["error_type"].tolist() == ["ServerError"]
    message: str = caught.value.result.errors["message"][0]
    assert message.isprintable()
    assert KEY not in message
    return message


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("location", [
    "http://[::1/x", "//[", "http://[bad]/", "http://host:99999/x", "http://host:abc/",
    "http://host:0/", "http://:80/", "ftp://host/", "javascript:alert(1)", "file:///etc/passwd",
    "http://me:hush@[/x", "//@/",
])  # fmt: skip
def test_a_location_that_is_no_address_is_a_servers_error(engine: Any, location: str) -> None:
    with serve(lambda *_: Status(307, b"", {"Location": location})) as server:
        message = failed(server, engine)
    assert "which is no address of a server; is base_url= right?" in message
    assert "hush" not in message


@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nothing_is_sent_to_another_server(engine: Any, status: int) -> None:
    with serve() as other:
        location = {"Location": f"{other.url}/v1/chat/completions?key={KEY}"}
        with serve(lambda *_: Status(status, b"", location)) as server:
            message = failed(server, engine)
        assert f"redirects to {other.url}/v1 ({status})" in message
        assert len(server.requests) == 1
    assert other.requests == []


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_server_that_redirects_to_itself_is_asked_once(engine: Any) -> None:
    with serve(lambda *_: Status(307, b"", {"Location": "/v1/chat/completions"})) as server:
        assert "redirects to" in failed(server, engine)
    assert len(server.requests) == 1


def test_a_client_of_the_users_that_follows_redirects_does_not_here() -> None:
    with serve() as other, httpx.Client(follow_redirects=True, trust_env=False) as http:
        location = {"Location": f"{other.url}/v1/chat/completions"}
        with serve(lambda *_: Status(307, b"", location)) as server:
            failed(server, "thread", http=http)
    assert other.requests == []
