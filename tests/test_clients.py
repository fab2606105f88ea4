"""The registry of clients: a provider is named once, and every place reads it from there."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from servers import serve

import revkit
from revkit import NoModel, UsageError, display
from revkit.__main__ import main
from revkit.clients import registry
from revkit.clients.http_client import HttpClient
from revkit.testing import FakeModel


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def reviews() -> pd.DataFrame:
    return pd.DataFrame({"review": ["so good"]})


def gateway(url: str) -> Callable[..., revkit.Client]:
    def make(model: str, **options: Any) -> revkit.Client:
        return revkit.OpenAICompatible(model, **{"base_url": f"{url}/v1", **options})

    return make


def agent(folder: Path, provider: str, **options: Any) -> Path:
    path = folder / "agent.json"
    model = {"name": "small", "capabilities": {"chat": options}}
    content = {"client": {"provider": {"name": provider, "model": model}}}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# -- one call, and it is everywhere ------------------------------------------------------------


def test_a_registered_client_works_wherever_a_built_in_one_does(
    reviews: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serve(models=["small"]) as server:
        revkit.register_client("mine", gateway(server.url), description="our gateway")
        run = reviews.llm.parallel_map(model="mine:small")  # in a call
        assert run.frame["sentiment"].tolist() == ["positive"]
        used = revkit.use("mine:small")  # for a process
        assert isinstance(used, revkit.OpenAICompatible)
        revkit.use(None)
        monkeypatch.setenv("REVKIT_MODEL", "mine:small")  # by the environment
        reviews.llm.parallel_map(overwrite=True)
        client = revkit.load_agent(agent(tmp_path, "mine", max_tokens=7))  # by an agent file
        assert client.max_tokens == 7
        reviews.llm.parallel_map(model=client, overwrite=True)
        assert {seen.body["model"] for seen in server.chats} == {"small"}
        assert len(server.chats) == 3
        assert main(["doctor"]) == 0
        told = capsys.readouterr().out
        assert f"ok  mine: {server.url}/v1 has small" in told
        assert 'revkit.use("mine:small")' in told
    monkeypatch.delenv("REVKIT_MODEL")
    with pytest.raises(NoModel, match=r'our gateway +revkit\.use\("mine:MODEL"\)'):
        reviews.llm.parallel_map("{review}")
    for command in (["--help"], ["demo", "--help"]):
        with pytest.raises(SystemExit):
            main(command)
        assert "mine:MODEL" in capsys.readouterr().out
    with pytest.raises(UsageError, match='did you mean "mine"'):
        revkit.use("mime:small")
    with pytest.raises(UsageError, match=r'unknown provider "mime"; did you mean "mine"'):
        revkit.load_agent(agent(tmp_path, "mime"))


def test_a_client_without_a_server_can_be_registered(
    reviews: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    revkit.register_client("echo", lambda model: FakeModel(lambda text: model), example="positive")
    reviews.llm.parallel_map(model="echo:negative")
    assert reviews["sentiment"].tolist() == ["negative"]
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "ok  echo: FakeModel('fake') has no way to check its server" in told


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_built_in_provider_is_listed(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    provider = registry.providers()[name]
    module, cls = registry.BUILT_IN[name]
    home = importlib.import_module(f"revkit.clients.{module}")
    example = f"{name}:{provider.example}" if provider.example else name
    client = revkit.use(example)
    assert type(client) is getattr(home, cls) is getattr(revkit, cls)
    assert client.name == example
    assert cls in revkit.__all__
    assert cls in dir(revkit)
    assert type(revkit.load_agent(agent(tmp_path, name, max_tokens=7))) is type(client)
    revkit.use(None)
    with pytest.raises(UsageError, match='did you mean "'):
        revkit.use(f"{name}x:m")
    with pytest.raises(NoModel) as refused:
        pd.DataFrame({"review": ["a"]}).llm.parallel_map("{review}")
    for _, code in provider.choices:
        assert code in str(refused.value)
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert example in "".join(capsys.readouterr().out.split())
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    main(["doctor"])
    assert provider.title in capsys.readouterr().out
    assert display.setting_of(client.settings()) == provider.parallelism


def test_every_built_in_client_is_known_to_type_checkers() -> None:
    tree = ast.parse(inspect.getsource(revkit))
    imported = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = {(f"clients.{module}", cls) for module, cls in registry.BUILT_IN.values()}
    assert table <= imported


def test_the_setting_for_more_parallel_requests_is_the_providers() -> None:
    assert display.setting_of({"protocol": "local"}).startswith("revkit.Local(slots=...)")
    assert "a setting of the server" in display.setting_of({"protocol": "unknown"})
    assert "a setting of the server" in display.setting_of({})


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Mine", "a:b", "a b", "-a", "a\n", 3, None])
def test_a_name_that_cannot_be_written_in_front_of_a_colon_is_refused(name: Any) -> None:
    with pytest.raises(UsageError, match="cannot name a client"):
        revkit.register_client(name, FakeModel)


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_built_in_client_cannot_be_replaced(name: str) -> None:
    with pytest.raises(UsageError, match="is built in: choose another name"):
        revkit.register_client(name, FakeModel)


def test_a_cell_that_registers_a_client_can_run_again() -> None:
    for answer in ("first", "second"):
        revkit.register_client("mine", lambda model, answer=answer: FakeModel([answer]))
    client = revkit.use("mine:m")
    run = pd.DataFrame({"review": ["a"]}).llm.parallel_map("{review}", model=client)
    assert run.frame["response"].tolist() == ["second"]


def test_what_cannot_make_clients_is_refused(tmp_path: Path) -> None:
    async def make(model: str) -> revkit.Client:
        return FakeModel([])

    for factory in ("revkit.Ollama", FakeModel([]), make, lambda: FakeModel([])):
        with pytest.raises(UsageError, match="must be a client class, or a plain function"):
            revkit.register_client("mine", factory)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the example of the client"):
        revkit.register_client("mine", FakeModel, example="")
    revkit.register_client("mine", lambda model: model)  # type: ignore[arg-type, return-value]
    with pytest.raises(UsageError, match=r"returned str; it must return a revkit\.Client"):
        revkit.use("mine:m")
    revkit.register_client("mine", lambda model: FakeModel([]))
    with pytest.raises(UsageError, match=r"agent\.json: .*unexpected keyword argument 'seed'"):
        revkit.load_agent(agent(tmp_path, "mine", seed=1))
    with pytest.raises(UsageError, match='write "mine:" and the name of the model'):
        revkit.use("mine")


def test_a_factory_that_fails_does_not_hide_the_others_from_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clients: dict[str, revkit.Client] = {}
    revkit.register_client("broken", lambda model: clients[model])
    revkit.register_client("echo", lambda model: FakeModel([]))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "--  broken: KeyError: 'MODEL'" in told
    assert "ok  echo" in told
    with pytest.raises(KeyError):
        revkit.use("broken:m")


# -- clients travel by their arguments ---------------------------------------------------------


class Team(revkit.OpenAICompatible):
    """A subclass with arguments of its own, one of them for any other."""

    def __init__(self, model: str, team: str = "a", *, retries: int = 0, **options: Any):
        super().__init__(model, base_url=f"http://{team}/v1", **options)
        self.team, self.retries = team, retries


class Keyed(revkit.Ollama):
    def __init__(self, model: str, token: Any = None):
        super().__init__(model, host="box", headers={"x-token": token} if token else None)


class Plain(HttpClient):
    """A protocol of one's own, that says nothing about pickling."""

    path = "/ask"

    def __init__(self, model: str, *, url: str):
        super().__init__(
            name=f"plain:{model}",
            model=model,
            url=url,
            headers={},
            body=None,
            http=None,
            timeout=5,
            rate_limit=None,
            parameter="url",
            hint="start it",
        )


def test_a_subclass_is_pickled_by_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY", "sk-a-very-secret-key")
    client = Team("m", "b", retries=2, max_tokens=9, seed=3)
    again = pickle.loads(pickle.dumps(client))
    assert (again.team, again.retries, again.endpoint) == ("b", 2, "http://b/v1")
    assert again.settings() == client.settings()
    assert repr(again) == repr(client) == "Team('m', base_url='http://b/v1')"
    assert client.replace(max_tokens=1).settings() == {**client.settings(), "max_tokens": 1}
    plain = pickle.loads(pickle.dumps(Plain("m", url="http://box")))
    assert repr(plain) == "Plain('m', url='http://box')"
    keyed = Keyed("m", revkit.Secret(env="GATEWAY"))
    assert b"very-secret" not in pickle.dumps(keyed)
    assert pickle.loads(pickle.dumps(keyed))._headers["x-token"] == "sk-a-very-secret-key"
    for clear in (Keyed("m", "sk-a-very-secret-key"), Plain("m", url="http://me:pw@box")):
        with pytest.raises(UsageError, match=r"given a key in (token|url)="):
            pickle.dumps(clear)


def test_the_environment_at_the_start_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://here/v1")
    monkeypatch.setenv("OLLAMA_HOST", "here")
    openai, ollama = pickle.dumps(revkit.OpenAICompatible("m")), pickle.dumps(revkit.Ollama())
    monkeypatch.setenv("OPENAI_BASE_URL", "http://there/v1")
    monkeypatch.setenv("OLLAMA_HOST", "there")
    assert pickle.loads(openai).endpoint == "http://here/v1"
    assert pickle.loads(ollama).endpoint == "http://here:11434"


def test_only_arguments_that_a_client_has_can_be_replaced() -> None:
    client = revkit.Ollama("m", host="box")
    assert client.replace(model="n").name == "ollama:n"
    with pytest.raises(UsageError, match="hosst"):
        client.replace(hosst="x")
    assert copy.copy(client).arguments() == client.arguments()


@pytest.mark.parametrize(("_", "cls"), registry.BUILT_IN.values())
def test_the_signature_of_a_client_is_that_of_its_constructor(_: str, cls: str) -> None:
    found = list(inspect.signature(getattr(revkit, cls)).parameters)
    assert "args" not in found
    assert "max_tokens" in found
