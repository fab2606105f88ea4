"""The HTTP layers, each against the same real server: whatever one does, all do."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import queue
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import servers
from proxies import proxy
from servers import Raw, Status, serve
from threads import abort

from revkit.clients.aiohttp_transport import AiohttpTransport
from revkit.clients.contract import Aborted, Request, Response
from revkit.clients.http import engines_for
from revkit.clients.httpx_transport import HttpxAsyncTransport, HttpxTransport
from revkit.errors import (
    AttemptTimeout,
    BadReply,
    ConnectionFailed,
    ModelError,
    RowFailure,
    UsageError,
)

Found = Response | RowFailure


class Layer:
    """One HTTP layer: sends requests one after the other and collects what comes of each."""

    def __init__(self, name: str):
        self.name = name
        self.own = name in ("threads", "loop")  #: revkit opened the connections itself

    def send(self, endpoint: str, requests: Sequence[Request], **options: Any) -> list[Found]:
        if self.name.startswith("threads"):
            with contextlib.ExitStack() as stack:
                if not self.own:
                    options["http"] = stack.enter_context(httpx.Client(trust_env=False))
                transport = HttpxTransport(endpoint, **options)
                stack.callback(transport.close)
                return [_caught(lambda r=r: transport.send(r)) for r in requests]
        return asyncio.run(self._asend(endpoint, requests, options))

    async def _asend(
        self, endpoint: str, requests: Sequence[Request], options: dict[str, Any]
    ) -> list[Found]:
        async with contextlib.AsyncExitStack() as stack:
            transport: Any
            if self.own:
                transport = AiohttpTransport(endpoint, max_workers=2, **options)
            else:
                client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
                transport = HttpxAsyncTransport(endpoint, http=client, **options)
            stack.push_async_callback(transport.aclose)
            found: list[Found] = []
            for request in requests:
                try:
                    found.append(await transport.send(request))
                except RowFailure as error:
                    found.append(error)
            return found

    def one(self, url: str, **options: Any) -> Found:
        (found,) = self.send(url, [Request(url, b"{}")], **options)
        return found


def _caught(send: Callable[[], Response]) -> Found:
    try:
        return send()
    except RowFailure as error:
        return error


ALL = ["threads", "loop", "threads with the user's client", "loop with the user's client"]


@pytest.fixture(params=ALL)
def layer(request: pytest.FixtureRequest) -> Layer:
    return Layer(request.param)


@pytest.fixture(params=["threads", "loop"])
def own_layer(request: pytest.FixtureRequest) -> Layer:
    return Layer(request.param)


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'


# -- requests and responses as they should be ------------------------------------------------


def test_request_and_response_arrive_whole(layer: Layer) -> None:
    with serve(lambda *_: Status(418, b"\x00tea", {"X-Kind": "green"})) as server:
        request = Request(server.url + "/api/chat?a=b%20c", CHAT, {"authorization": "Bearer k"})
        (found,) = layer.send(server.url, [request])
    assert isinstance(found, Response)
    assert (found.status, found.body, found.headers["x-kind"]) == (418, b"\x00tea", "green")
    (seen,) = server.requests
    assert (seen.method, seen.target, seen.raw) == ("POST", "/api/chat?a=b%20c", CHAT)
    assert seen.headers["authorization"] == "Bearer k"
    assert seen.headers["accept-encoding"] == "gzip"
    assert seen.headers["accept"] == "application/json"
    assert seen.headers["user-agent"].startswith("revkit/")


def test_without_a_body_it_is_a_get(layer: Layer) -> None:
    with serve(models=["m"]) as server:
        (found,) = layer.send(server.url, [Request(server.url + "/api/tags")])
    assert isinstance(found, Response)
    assert b'"m"' in found.body
    assert [seen.method for seen in server.requests] == ["GET"]


def test_connections_are_kept_and_cookies_are_not(own_layer: Layer) -> None:
    with serve(lambda *_: Status(200, b"{}", {"Set-Cookie": "a=b"})) as server:
        own_layer.send(server.url, [Request(server.url + "/api/chat", CHAT)] * 3)
    assert (len(server.requests), server.connections) == (3, 1)
    assert not any("cookie" in seen.headers for seen in server.requests)


def test_nothing_but_proxies_is_taken_from_the_environment(
    own_layer: Layer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with serve() as server:
        own_layer.one(server.url + "/v1/models")
    assert "authorization" not in server.requests[0].headers


def test_gzip_is_unpacked(layer: Layer) -> None:
    packed = Status(200, gzip.compress(b'{"a": 1}'), {"Content-Encoding": "gzip"})
    with serve(lambda *_: packed) as server:
        (found,) = layer.send(server.url, [Request(server.url + "/api/chat", CHAT)])
    assert isinstance(found, Response)
    assert found.body == b'{"a": 1}'


def test_redirects_are_returned_and_not_followed(layer: Layer) -> None:
    with serve() as other, serve(lambda *_: Status(307, b"", {"Location": other.url})) as server:
        (found,) = layer.send(server.url, [Request(server.url + "/api/chat", CHAT)])
    assert isinstance(found, Response)
    assert (found.status, found.headers["location"]) == (307, other.url)
    assert other.requests == []


# -- as many connections as workers ----------------------------------------------------------


def send_at_once(layer: Layer, url: str, *, workers: int, connections: int) -> set[int]:
    """24 requests from so many workers, over so many connections; returns their statuses."""
    request = Request(url + "/api/chat", CHAT)
    if layer.name == "threads":
        transport = HttpxTransport(url)
        with contextlib.closing(transport), ThreadPoolExecutor(workers) as pool:
            return {response.status for response in pool.map(transport.send, [request] * 24)}

    async def main() -> set[int]:
        jobs = iter([request] * 24)
        async with contextlib.aclosing(AiohttpTransport(url, max_workers=connections)) as transport:

            async def worker() -> set[int]:
                return {(await transport.send(job)).status for job in jobs}

            return set().union(*await asyncio.gather(*(worker() for _ in range(workers))))

    return asyncio.run(main())


def test_as_many_are_in_flight_as_there_are_workers(own_layer: Layer) -> None:
    with serve(gate=8) as server:  # which answers nobody until there are eight
        statuses = send_at_once(own_layer, server.url, workers=8, connections=8)
    assert statuses == {200}
    assert (server.highest, server.connections) == (8, 8)


def test_on_the_loop_more_workers_than_connections_wait_for_one() -> None:
    with serve(gate=2) as server:
        statuses = send_at_once(Layer("loop"), server.url, workers=8, connections=2)
    assert statuses == {200}
    assert (server.highest, server.connections) == (2, 2)


# -- faults ----------------------------------------------------------------------------------

BROKEN = "broke before the whole reply had arrived"
FAULTS: dict[str, tuple[Raw, type[ModelError], str]] = {
    "reset": (servers.RESET, ConnectionFailed, "reset by peer"),
    "close": (servers.CLOSE, ConnectionFailed, "it was closed"),
    "half a header": (servers.HALF_HEADER, ConnectionFailed, "it was closed"),
    "not HTTP": (servers.NOT_HTTP, BadReply, "not valid HTTP"),
    "body ends early": (servers.SHORT_BODY, ConnectionFailed, "it was closed"),
    "reset in the body": (servers.RESET_IN_BODY, ConnectionFailed, BROKEN),
    "bad chunk": (servers.BAD_CHUNK, BadReply, "not valid HTTP"),
    "half a chunk": (servers.HALF_CHUNK, ConnectionFailed, "it was closed"),
    "huge, announced": (servers.ANNOUNCED_HUGE, BadReply, "larger than 16,777,216 bytes"),
    "huge, endless": (servers.ENDLESS, BadReply, "larger than 16,777,216 bytes"),
    "gzip bomb": (servers.GZIP_BOMB, BadReply, "larger than 16,777,216 bytes"),
    "not gzip": (servers.NOT_GZIP, BadReply, "not in the gzip format"),
    "half of gzip": (servers.HALF_GZIP, BadReply, "breaks off"),
    "other encoding": (servers.OTHER_ENCODING, BadReply, "not asked for"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_the_same_error_in_every_layer(layer: Layer, fault: str) -> None:
    raw, kind, words = FAULTS[fault]
    answers = iter([raw])
    with serve(lambda *_: next(answers, "well")) as server:
        request = Request(server.url + "/api/chat?key=topsecret", CHAT)
        endpoint = server.url.replace("://", "://me:topsecret@") + "/api?key=topsecret"
        first, second = layer.send(endpoint, [request] * 2)
    assert type(first) is kind
    assert words in str(first)
    assert server.url + "/api" in str(first)
    assert "topsecret" not in str(first)
    assert first.__cause__ is None  # what a library says may repeat a header
    assert first.__suppress_context__
    assert isinstance(second, Response)  # a fault costs its own request only
    assert second.status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"content-length: 2\r\n\r\n{}",
        b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize(
    "more",
    [b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"another"', b"}\n", b"\r\n"],
    ids=["response", "rest", "newline"],
)
def test_what_comes_after_a_body_is_not_the_next_reply(
    layer: Layer, body: bytes, more: bytes
) -> None:
    answers = iter([Raw([b"HTTP/1.1 200 OK\r\n" + body + more], "go on")])
    with serve(lambda *_: next(answers, Status(200, b'"mine"'))) as server:
        request = Request(server.url + "/api/chat", CHAT)
        first, second = layer.send(server.url, [request] * 2)
    assert type(first) is BadReply or (isinstance(first, Response) and first.body == b"{}")
    assert isinstance(second, Response)
    assert second.body == b'"mine"'


@pytest.mark.parametrize("fault", ["before the header", "in the body"])
def test_a_server_that_hangs_costs_the_timeout(layer: Layer, fault: str) -> None:
    raw = servers.HANG if fault == "before the header" else servers.HEADER_THEN_HANG
    with serve(lambda *_: raw) as server:
        found = layer.send(server.url, [Request(server.url + "/api/chat", CHAT)], timeout=0.2)
    assert type(found[0]) is AttemptTimeout
    assert "within 0.2 s; raise the client's timeout=" in str(found[0])


class Drip:
    """A response that arrives a byte at a time, for ever: each wait is short, their sum is not."""

    def __init__(self, closing: Callable[[], threading.Event], head: bytes):
        self._closing, self._head = closing, head

    def __iter__(self) -> Any:
        yield self._head
        while not self._closing().wait(0.01):
            yield b" "


_DRIPPING_HEAD = b"HTTP/1.1 200 OK\r\nx: "
_DRIPPING_BODY = servers._http("content-length: 999\r\n")


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("threads", _DRIPPING_BODY),  # httpx bounds each wait for the head, not their sum
        ("loop", _DRIPPING_HEAD),
        ("loop", _DRIPPING_BODY),
        ("loop with the user's client", _DRIPPING_HEAD),
        ("loop with the user's client", _DRIPPING_BODY),
    ],
)
def test_the_timeout_bounds_the_whole_exchange_not_each_wait(name: str, head: bytes) -> None:
    with serve(lambda *_: Raw(Drip(lambda: server.closing, head))) as server:
        found = Layer(name).send(server.url, [Request(server.url + "/api/chat", CHAT)], timeout=0.2)
    assert type(found[0]) is AttemptTimeout


def test_nobody_listens(layer: Layer) -> None:
    with servers.closed_port() as url:
        found = layer.one(url + "/v1?key=topsecret", hint="start the server")
    assert type(found) is ConnectionFailed
    assert str(found) == f"cannot connect to {url}/v1: connection refused; start the server"


def test_an_unknown_name(layer: Layer) -> None:
    found = layer.one("http://no-such-host.invalid/v1")
    assert type(found) is ConnectionFailed
    assert "its name cannot be resolved" in str(found)


def test_a_body_may_be_as_large_as_the_bound(layer: Layer) -> None:
    with serve(lambda *_: Status(200, b"x" * 1000)) as server:
        request = Request(server.url + "/api/chat", CHAT)
        (just,) = layer.send(server.url, [request], max_body=1000)
        (over,) = layer.send(server.url, [request], max_body=999)
    assert isinstance(just, Response)
    assert type(over) is BadReply


def test_a_cancelled_request_raises_cancelled_error() -> None:
    async def main(url: str, make: Callable[[], Any], arrived: threading.Event) -> None:
        transport = make()
        task = asyncio.ensure_future(transport.send(Request(url + "/api/chat", CHAT)))
        await asyncio.get_running_loop().run_in_executor(None, arrived.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await transport.aclose()

    arrived = threading.Event()

    def rule(*_: Any) -> Raw:
        arrived.set()
        return servers.HANG

    with serve(rule) as server:
        url = server.url
        asyncio.run(main(url, lambda: AiohttpTransport(url, max_workers=1), arrived))


# -- TLS -------------------------------------------------------------------------------------


def test_a_certificate_that_nobody_vouches_for_is_refused(layer: Layer) -> None:
    with serve(tls=True) as server:
        found = layer.one(server.url + "/api/chat")
    assert type(found) is ConnectionFailed
    assert "TLS certificate was not accepted" in str(found)
    assert "SSL_CERT_FILE" in str(found)
    assert server.requests == []


def test_ssl_cert_file_is_honoured(own_layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(servers.CERTIFICATE))
    with serve(tls=True) as server:
        found = own_layer.send(server.url, [Request(server.url + "/api/chat", CHAT)])
    assert isinstance(found[0], Response)


def test_ssl_cert_file_that_is_not_there(own_layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "no-such-file.pem")
    with pytest.raises(UsageError, match="SSL_CERT_FILE"):
        own_layer.one("https://model.example/v1")


def test_https_to_a_server_that_speaks_http(layer: Layer) -> None:
    with serve() as server:
        found = layer.one(server.url.replace("http:", "https:"))
    assert type(found) is ConnectionFailed
    assert "http:// rather than https://" in str(found)


# -- proxies ---------------------------------------------------------------------------------

# model.example cannot be resolved, so what arrives has gone through the proxy.


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_carries_plain_requests(
    own_layer: Layer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with serve() as server, proxy(server) as via:
        monkeypatch.setenv(variable, via.url)
        request = Request("http://model.example/api/chat", CHAT, {"authorization": "Bearer k"})
        found = own_layer.send("http://model.example", [request])
    assert isinstance(found[0], Response)
    assert [seen.target for seen in via.requests] == ["http://model.example/api/chat"]
    assert server.requests[0].headers["host"] == "model.example"


def test_a_proxy_carries_tls_and_never_sees_the_key(
    own_layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(servers.CERTIFICATE))
    with serve(tls=True) as server, proxy(server) as via:
        monkeypatch.setenv("HTTPS_PROXY", via.url.replace("://", "://me:p%40ss@"))
        request = Request("https://model.example/api/chat", CHAT, {"authorization": "Bearer k"})
        found = own_layer.send("https://model.example", [request] * 2)
    assert [response.status for response in found if isinstance(response, Response)] == [200, 200]
    (seen,) = via.requests
    assert (seen.method, seen.target) == ("CONNECT", "model.example:443")
    assert seen.headers["proxy-authorization"] == "Basic bWU6cEBzcw=="
    assert "authorization" not in seen.headers
    assert "proxy-authorization" not in server.requests[0].headers


def test_a_password_goes_to_the_proxy_with_every_plain_request(
    own_layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server, proxy(server) as via:
        monkeypatch.setenv("HTTP_PROXY", via.url.replace("://", "://me:p%40ss@"))
        request = Request("http://model.example/api/chat", CHAT)
        own_layer.send("http://model.example", [request] * 2)
    sent = [seen.headers.get("proxy-authorization") for seen in via.requests]
    assert sent == ["Basic bWU6cEBzcw=="] * 2


@pytest.mark.parametrize("no_proxy", ["model.example", ".example", "*", "other, example"])
def test_no_proxy(own_layer: Layer, monkeypatch: pytest.MonkeyPatch, no_proxy: str) -> None:
    with serve() as server, proxy(server) as via:
        monkeypatch.setenv("HTTP_PROXY", via.url)
        monkeypatch.setenv("NO_PROXY", no_proxy)
        found = own_layer.one("http://model.example/v1")
    assert type(found) is ConnectionFailed  # it was looked for directly
    assert via.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_never_goes_through_a_proxy(
    own_layer: Layer, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    with serve() as server, proxy(server) as via:
        monkeypatch.setenv("HTTP_PROXY", via.url)
        monkeypatch.setenv("ALL_PROXY", via.url)
        found = own_layer.one(server.url.replace("127.0.0.1", host) + "/v1/models")
    assert isinstance(found, Response)
    assert via.requests == []


def test_a_proxy_that_is_down_is_named(own_layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.closed_port() as url:
        monkeypatch.setenv("HTTP_PROXY", url.replace("://", "://me:topsecret@"))
        found = own_layer.one("http://model.example/v1")
    assert type(found) is ConnectionFailed
    assert f"http://model.example/v1 through the proxy {url}: connection refused" in str(found)


def test_a_proxy_that_refuses(own_layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server, proxy(server, refuse=407) as via:
        monkeypatch.setenv("HTTPS_PROXY", via.url)
        found = own_layer.one("https://model.example/v1")
    assert type(found) is ConnectionFailed
    assert "the proxy refused" in str(found)


def test_other_kinds_of_proxy_are_refused_before_sending(
    own_layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:topsecret@127.0.0.1:1080")
    with pytest.raises(UsageError, match="http:// proxies only") as caught:
        own_layer.one("http://model.example/v1")
    assert "topsecret" not in str(caught.value)


# -- what the user passes as http= -----------------------------------------------------------


def test_engines_for() -> None:
    assert engines_for(None) == ("async", "thread")
    with httpx.Client() as client:
        assert engines_for(client) == ("thread",)
    assert engines_for(httpx.AsyncClient()) == ("async",)
    assert engines_for(httpx.MockTransport(lambda _: httpx.Response(200))) == ("async", "thread")
    with pytest.raises(UsageError, match="httpx"):
        engines_for("http://127.0.0.1")  # type: ignore[arg-type]


def test_a_users_client_keeps_what_is_its_own_and_stays_open(layer: Layer) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"auth": request.headers["authorization"]})

    mock = httpx.MockTransport(answer)
    request = Request("http://model.example/v1", b"{}", {"authorization": "Bearer ours"})
    if layer.name.startswith("threads"):
        with httpx.Client(transport=mock, auth=("me", "mine")) as client:
            for http in (client, mock):
                transport = HttpxTransport(request.url, http=http)
                first = transport.send(request)
                transport.close()
                assert not client.is_closed
                assert (b"Basic" in first.body) == (http is client)
        return

    async def main() -> None:
        async with httpx.AsyncClient(transport=mock, auth=("me", "mine")) as client:
            for http in (client, mock):
                transport = HttpxAsyncTransport(request.url, http=http)
                first = await transport.send(request)
                await transport.aclose()
                assert not client.is_closed
                assert (b"Basic" in first.body) == (http is client)

    asyncio.run(main())


def test_what_a_mock_has_unpacked_is_not_unpacked_again() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        packed = gzip.compress(b"{}")
        return httpx.Response(200, content=packed, headers={"Content-Encoding": "gzip"})

    mock, url = httpx.MockTransport(answer), "http://model.example"
    assert HttpxTransport(url, http=mock).send(Request(url)).body == b"{}"
    assert asyncio.run(HttpxAsyncTransport(url, http=mock).send(Request(url))).body == b"{}"


def test_a_mocks_own_exception_is_not_taken_for_a_broken_connection() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise AssertionError("of the user's test")

    transport = HttpxTransport("http://model.example", http=httpx.MockTransport(answer))
    with pytest.raises(AssertionError, match="of the user's test"):
        transport.send(Request("http://model.example"))


def test_a_closed_client_is_said_to_be_closed() -> None:
    client = httpx.Client()
    client.close()
    transport = HttpxTransport("http://model.example", http=client)
    with pytest.raises(ConnectionFailed, match="client has been closed"):
        transport.send(Request("http://model.example"))


class BoundToALoop(httpx.AsyncBaseTransport):
    """As pools and locks of asyncio are: it belongs to the loop that first waits for it."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.wait_for(self.ready.wait(), 0.01)
        raise AssertionError("not reached")


def test_a_client_of_another_loop_is_explained() -> None:
    transport = HttpxAsyncTransport("http://model.example", http=BoundToALoop())
    request = Request("http://model.example")
    with pytest.raises(AttemptTimeout):
        asyncio.run(transport.send(request))
    with pytest.raises(ConnectionFailed, match="aparallel_map") as caught:
        asyncio.run(transport.send(request))
    assert 'loop="notebook"' in str(caught.value)
    assert caught.value.ends_run


@pytest.mark.parametrize("others", [False, True])
def test_a_task_that_others_cancel_too_is_cancelled_and_not_late(others: bool) -> None:
    async def main(url: str) -> asyncio.Task[Any]:
        transport = AiohttpTransport(url, max_workers=1, timeout=0.0)
        task = asyncio.create_task(transport.send(Request(url + "/api/chat", CHAT)))
        await asyncio.sleep(0)  # its time is over by the next turn of the loop
        if others:
            asyncio.get_running_loop().call_later(0, task.cancel)
        await asyncio.wait([task])
        await transport.aclose()
        return task

    with serve() as server:
        task = asyncio.run(main(server.url))
    assert task.cancelled() == others
    assert others or (type(task.exception()) is AttemptTimeout and not task.cancelling())


def test_the_total_is_watched_even_with_a_users_client_in_threads() -> None:
    drip = Drip(lambda: server.closing, servers._http("content-length: 999\r\n"))
    with serve(lambda *_: Raw(drip)) as server, httpx.Client(trust_env=False) as client:
        transport = HttpxTransport(server.url, http=client, timeout=0.2)
        with pytest.raises(AttemptTimeout):
            transport.send(Request(server.url + "/api/chat", CHAT))


def test_an_idle_connection_that_the_server_closed_is_not_used_again() -> None:
    with serve() as server:
        request = Request(server.url + "/api/chat", CHAT)
        transport = HttpxTransport(server.url)
        transport.send(request)
        server.hang_up()
        assert transport.send(request).status == 200
        transport.close()
    assert server.connections == 2


# -- threads that are woken --------------------------------------------------------------------


class Steps:
    """The steps that httpcore has told a transport of; each can be waited for."""

    def __init__(self, transport: HttpxTransport):
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        trace = transport._extensions["trace"]

        def tell(event: str, info: Any) -> None:
            trace(event, info)
            self._told.put(event)

        transport._extensions["trace"] = tell

    def wait(self, step: str, times: int = 1) -> None:
        while times:
            times -= self._told.get(timeout=servers.GATE_LIMIT).endswith(step)


HEAD, BODY = "receive_response_headers.started", "receive_response_body.started"


@contextlib.contextmanager
def in_a_thread(send: Callable[[], Response]) -> Iterator[Future[Response]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(send)


def _trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(servers.CERTIFICATE))


@pytest.fixture(params=["own", "client", "transport"])
def whose(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What is given as ``http=`` in threads."""
    with contextlib.ExitStack() as stack:
        if request.param == "own":
            yield None
        elif request.param == "client":
            yield stack.enter_context(httpx.Client(trust_env=False, verify=_trusting()))
        else:
            yield stack.enter_context(httpx.HTTPTransport(trust_env=False, verify=_trusting()))


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(("raw", "step"), [(servers.HANG, HEAD), (servers.HEADER_THEN_HANG, BODY)])
def test_an_aborted_request_ends_and_nothing_is_sent_any_more(
    whose: Any, raw: Raw, step: str, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a connection that an earlier request has opened."""
    monkeypatch.setenv("SSL_CERT_FILE", str(servers.CERTIFICATE))
    answers = iter(["well"])
    with serve(lambda *_: next(answers, raw), tls=tls) as server:
        transport = HttpxTransport(server.url, http=whose)
        steps, request = Steps(transport), Request(server.url + "/api/chat", CHAT)
        with in_a_thread(lambda: [transport.send(request) for _ in range(2)][-1]) as sent:
            steps.wait(step, 2)
            abort(transport, sent)
        with pytest.raises(Aborted):
            transport.send(request)
        transport.close()
        assert server.await_hang_ups()
    assert (len(server.requests), server.connections) == (2, 1)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_request_through_a_proxy_is_aborted(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(servers.CERTIFICATE))
    with serve(lambda *_: servers.HANG, tls=scheme == "https") as server, proxy(server) as via:
        monkeypatch.setenv("ALL_PROXY", via.url)
        transport = HttpxTransport(f"{scheme}://model.example")
        steps = Steps(transport)
        request = Request(f"{scheme}://model.example/api/chat", CHAT)
        with in_a_thread(lambda: transport.send(request)) as sent:
            steps.wait(HEAD, 2 if scheme == "https" else 1)  # the first is the proxy's own
            abort(transport, sent)
        transport.close()
        assert via.await_hang_ups()


def test_requests_of_others_on_the_same_client_are_not_aborted() -> None:
    """Neither is the connection that ours used first, and another's request uses now."""
    release, answers = threading.Event(), iter(["well"])

    def rule(*_: Any) -> str:
        if next(answers, None) is None:
            release.wait(servers.GATE_LIMIT)
        return "well"

    with serve(rule) as server, httpx.Client(trust_env=False) as client:
        request = Request(server.url + "/api/chat", CHAT)
        ours, other = (HttpxTransport(server.url, http=client) for _ in range(2))
        our_steps, other_steps = Steps(ours), Steps(other)
        ours.send(request)
        with in_a_thread(lambda: other.send(request)) as two:
            other_steps.wait(HEAD)
            with in_a_thread(lambda: ours.send(request)) as one:
                our_steps.wait(HEAD, 2)
                abort(ours, one)
            assert not two.done()
            release.set()
            assert two.result().status == 200
        assert client.post(request.url, content=CHAT).status_code == 200
    assert server.connections == 2


def test_requests_that_wait_for_a_place_in_the_pool_are_not_sent() -> None:
    narrow = httpx.Client(trust_env=False, limits=httpx.Limits(max_connections=1))
    with serve(lambda *_: servers.HANG) as server, narrow as client:
        transport = HttpxTransport(server.url, http=client)
        steps, request = Steps(transport), Request(server.url + "/api/chat", CHAT)
        with ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(transport.send, request) for _ in range(4)]
            steps.wait(HEAD)
            for one in sent:
                abort(transport, one)
    assert (len(server.requests), server.connections) == (1, 1)


def test_a_request_that_auth_sends_twice_is_aborted_the_second_time() -> None:
    class Twice(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Any:
            yield request
            yield request

    answers = iter([Status(401, b"who?")])
    with (
        serve(lambda *_: next(answers, servers.HANG)) as server,
        httpx.Client(trust_env=False, auth=Twice()) as client,
    ):
        transport = HttpxTransport(server.url, http=client)
        steps, request = Steps(transport), Request(server.url + "/api/chat", CHAT)
        with in_a_thread(lambda: transport.send(request)) as sent:
            steps.wait(HEAD, 2)
            abort(transport, sent)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a connection takes as long as it takes."""
    monkeypatch.setattr("revkit.clients.httpx_transport.CONNECT_TIMEOUT", 60.0)


def test_a_tls_handshake_that_is_not_answered_is_aborted(patient: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        transport = HttpxTransport(url)
        with in_a_thread(lambda: transport.send(Request(url, CHAT))) as sent:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(1)  # it has said hello
                abort(transport, sent)
        transport.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets such a socket be shut down")
def test_a_connection_that_nobody_accepts_is_aborted(patient: None) -> None:
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # no more fit in the queue: from here on, silence
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        transport = HttpxTransport(url)
        steps = Steps(transport)
        with in_a_thread(lambda: transport.send(Request(url, CHAT))) as sent:
            steps.wait("connect_tcp.started")
            abort(transport, sent)
        transport.close()


#: A script that hangs tells where, and ends.
ABORTS = """
import faulthandler, gc, threading, time
from revkit.clients.httpx_transport import HttpxTransport

faulthandler.dump_traceback_later(60, exit=True)

class Garbage:
    def __init__(self):
        self.itself = self
    def __del__(self):
        time.sleep(0)  # another thread may run

def start_threads():
    while not done.is_set():
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

def wait(depth=5):
    wait(depth - 1) if depth else done.wait()

done = threading.Event()
threads = [threading.Thread(target=target) for target in 3 * [start_threads] + 20 * [wait]]
for thread in threads:
    thread.start()
transport = HttpxTransport("http://127.0.0.1:1")
gc.set_threshold(5)
for _ in range(50):
    Garbage()
    transport.abort()
assert gc.isenabled()
done.set()
for thread in threads:
    thread.join()
"""


def test_an_abort_hangs_no_process_that_starts_threads_and_collects_garbage() -> None:
    """Python 3.11 before 3.11.12 does that where the collector is left on."""
    found = subprocess.run([sys.executable, "-c", ABORTS], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
