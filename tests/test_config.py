"""Which model a task gets, and what is said where that cannot be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import revkit
from revkit import NoModel, Signature, UsageError
from revkit.clients import registry
from revkit.testing import FakeModel

OTHER = Signature("Count.", inputs="review", outputs={"n": int})


def resolved(model: Any = None, task: Any = OTHER) -> str:
    return registry.resolve(model, task).name


# -- names ---------------------------------------------------------------------------------------


def test_names_of_models() -> None:
    ollama = registry.client_for("ollama:llama3.2:3b")
    assert isinstance(ollama, revkit.Ollama)
    assert ollama.name == "ollama:llama3.2:3b"
    openai = registry.client_for("openai:gpt-4.1-mini")
    assert isinstance(openai, revkit.OpenAICompatible)
    assert openai.name == "openai:gpt-4.1-mini"
    assert isinstance(registry.client_for("local"), revkit.Local)
    fake = FakeModel([])
    assert registry.client_for(fake) is fake


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("olama", 'did you mean "ollama"'),
        ("ollama", 'write "ollama:" and the name'),
        ("ollama:", 'write "ollama:" and the name'),
        ("openai", 'write "openai:" and the name'),
        ("gpt-4.1-mini", "is not the name of a model"),
        ("llama3.2:3b", "is not the name of a model"),
        ("", "is not the name of a model"),
        (3, "takes a name or a client, not int"),
        (revkit.Ollama, "takes a name or a client, not type"),
    ],
)
def test_what_is_not_a_model(model: Any, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        revkit.use(model)
    assert words in str(refused.value)
    assert 'revkit.use("ollama:llama3.2:3b")' in str(refused.value)  # the choices


# -- precedence ----------------------------------------------------------------------------------


def test_the_argument_then_use_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVKIT_MODEL", "ollama:env")
    assert resolved() == "ollama:env"
    assert resolved(task=revkit.SENTIMENT) == "ollama:env"
    used = revkit.use("openai:used")
    assert used is not None
    assert registry.resolve(None, OTHER) is used
    assert resolved("ollama:argument") == "ollama:argument"
    assert revkit.use(None) is None
    assert resolved() == "ollama:env"
    monkeypatch.setenv("REVKIT_MODEL", "nonsense")
    with pytest.raises(UsageError, match="is not the name of a model"):
        resolved()
    monkeypatch.setenv("REVKIT_MODEL", "")
    with pytest.raises(NoModel):
        resolved()


def test_a_name_that_is_refused_leaves_the_model_in_use() -> None:
    used = revkit.use("ollama:used")
    with pytest.raises(UsageError):
        revkit.use("nonsense")
    assert registry.resolve(None, OTHER) is used


def test_use_reaches_runs() -> None:
    fake = FakeModel(lambda text: text)
    assert revkit.use(fake) is fake
    run = pd.DataFrame({"review": ["a"]}).llm.parallel_map("{review}")
    assert run.model_name == "fake"
    assert len(fake.calls) == 1


def test_no_model_lists_the_choices() -> None:
    df = pd.DataFrame({"review": ["a"]})
    for task in ("{review}", OTHER):
        with pytest.raises(NoModel) as refused:
            df.llm.parallel_map(task)
        for choice in ("ollama:", "openai:", "OpenAICompatible", "Local", "REVKIT_MODEL", "doctor"):
            assert choice in str(refused.value)
    assert list(df.columns) == ["review"]


def test_the_embedded_model_serves_the_sentiment_tasks_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_announced_embedded", False)
    for task in (revkit.SENTIMENT, revkit.SENTIMENT_WITH_REASON, revkit.SENTIMENT):
        assert isinstance(registry.resolve(None, task), revkit.Local)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "embedded" in told.err


# -- agent files ---------------------------------------------------------------------------------


def agent(**changes: Any) -> dict[str, Any]:
    """An agent file; a change is named by its path, with ``__`` between the keys."""
    whole: dict[str, Any] = {
        "name": "analyst",
        "client": {
            "provider": {
                "name": "ollama",
                "base_url": "http://127.0.0.1:9",
                "model": {
                    "name": "llama3.2:3b",
                    "capabilities": {"chat": {"max_tokens": 50, "temperature": 0.5, "seed": 7}},
                },
            }
        },
    }
    for path, value in changes.items():
        *way, last = path.split("__")
        part = whole
        for key in way:
            part = part[key]
        if value is ...:
            del part[last]
        else:
            part[last] = value
    return whole


def load(folder: Path, content: Any) -> revkit.Client:
    path = folder / "agent.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return revkit.load_agent(path)


PROVIDER = "client__provider"
MODEL = f"{PROVIDER}__model"


def test_agent_of_ollama(tmp_path: Path) -> None:
    client = load(tmp_path, agent())
    assert isinstance(client, revkit.Ollama)
    assert client.name == "ollama:llama3.2:3b"
    settings = json.dumps(client.settings())
    assert "127.0.0.1:9" in settings
    for number in ("50", "0.5", "7"):
        assert number in settings
    revkit.use(client)
    assert registry.resolve(None, OTHER) is client


def test_agent_of_openai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-12345")
    client = load(tmp_path, agent(**{f"{PROVIDER}__name": "openai", f"{MODEL}__name": "gpt"}))
    assert isinstance(client, revkit.OpenAICompatible)
    assert client.name == "openai:gpt"
    assert "127.0.0.1:9" in json.dumps(client.settings())
    assert "secret" not in json.dumps(client.settings()) + repr(client)


def test_agent_with_the_least(tmp_path: Path) -> None:
    least = agent(name=..., **{f"{PROVIDER}__base_url": ..., f"{MODEL}__capabilities": ...})
    assert load(tmp_path, least).name == "ollama:llama3.2:3b"
    assert load(tmp_path, agent(**{f"{MODEL}__capabilities": {}})).name == "ollama:llama3.2:3b"


def test_the_agent_that_comes_with_revkit() -> None:
    for path in (revkit.data_file("config.llama.json"), str(revkit.data_file("config.llama.json"))):
        assert revkit.load_agent(path).name == "ollama:llama3.2:3b"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nmae": 1}, 'unknown key "nmae"; did you mean "name"'),
        ({"client": ...}, '"client" is missing'),
        ({"client": []}, "client must be a JSON object"),
        ({"client__provider": ...}, '"client.provider" is missing'),
        ({f"{PROVIDER}__name": ...}, '"client.provider.name" is missing'),
        ({f"{PROVIDER}__name": "olama"}, 'unknown provider "olama"; did you mean "ollama"'),
        ({f"{PROVIDER}__name": "local"}, 'the provider "local" cannot make this client'),
        ({f"{PROVIDER}__base_ulr": "x"}, '"client.provider.base_ulr"; did you mean "base_url"'),
        ({MODEL: "llama"}, "client.provider.model must be a JSON object"),
        ({f"{MODEL}__name": ...}, '"client.provider.model.name" is missing'),
        ({f"{MODEL}__capabilities__chta": {}}, 'did you mean "chat"'),
        (
            {f"{MODEL}__capabilities__chat__temprature": 1},
            'unknown key "client.provider.model.capabilities.chat.temprature"; '
            'did you mean "temperature"',
        ),
        ({"api_key": "sk-secret"}, 'unknown key "api_key"'),
    ],
)
def test_refused_agents(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        load(tmp_path, agent(**changes))
    assert words in str(refused.value)
    assert "agent.json" in str(refused.value)
    assert "sk-secret" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"client": '])
def test_agents_that_are_no_json_objects(tmp_path: Path, content: str) -> None:
    with pytest.raises(UsageError, match=r"agent\.json"):
        load(tmp_path, content)


def test_no_agent_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        revkit.load_agent(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot be read"):
        revkit.load_agent(tmp_path)
