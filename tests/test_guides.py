"""Every code block of the pages on troubleshooting, pipelines and clients runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot
import pandas as pd
import pytest
from servers import Status, serve

import revkit
from revkit.__main__ import main
from revkit.clients import registry
from revkit.clients.http_client import HttpClient

DOCS = Path(__file__).parent.parent / "docs"
TROUBLES = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
PIPELINES = (DOCS / "pipelines.md").read_text(encoding="utf-8")
CLIENTS = (DOCS / "clients.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_troubleshooting_blocks_run_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a server that is too busy for one row at first, and refuses another for good."""
    busy = True

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        nonlocal busy
        text = messages[-1]["content"]
        if text == "row 2" and busy:
            busy = False
            return Status(429, {"error": {"message": "busy"}}, {"retry-after-ms": "5"})
        if text == "row 4":
            return Status(400, {"error": {"message": "too long"}})
        return '{"topic": "delivery"}'

    with serve(rule, models=["m"]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("REVKIT_MODEL", "openai:m")
        names: dict[str, Any] = {
            "pd": pd,
            "revkit": revkit,
            "df": pd.DataFrame({"ticket": [f"row {row}" for row in range(8)]}),
            "task": revkit.Signature(
                "Sort.", inputs="ticket", outputs={"topic": ["delivery", "x"]}
            ),
        }
        for block in blocks(TROUBLES, "python"):
            exec(block, names)
            if block.startswith("try:"):
                first = names["run"]
                assert first.metrics.retries == 1
                assert first.errors["status"].tolist() == [400]
        commands, measure = blocks(TROUBLES, "bash")
        assert commands == "revkit doctor\n"
        assert measure == "revkit doctor --parallel ollama:llama3.2:3b\n"
        capsys.readouterr()
        assert main(["doctor"]) == 0
        assert "m" in capsys.readouterr().out
    matplotlib.pyplot.close("all")
    assert len(pd.read_parquet("done-0000.parquet")) == 8


def test_every_trouble_has_a_section_and_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^## (.*)$", TROUBLES, flags=re.M)
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    linked = re.findall(r"\]\(#([^)]+)\)", TROUBLES)
    assert set(linked) <= anchors
    assert anchors <= set(linked)  # the table names them all
    for text in (TROUBLES, PIPELINES, CLIENTS):
        files = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
        assert [name for name in files if not (DOCS / name).exists()] == []


def test_the_blocks_on_pipelines_run_in_order() -> None:
    from revkit.testing import FakeModel

    def answer(text: str) -> str:
        return "We are on it." if text.startswith("Answer") else "billing"

    revkit.use(FakeModel(answer))
    tickets = pd.DataFrame({"ticket": ["I was charged twice", "the invoice is wrong"]})
    tickets.to_csv("tickets.csv", index=False)
    tickets.to_parquet("tickets.parquet")
    names: dict[str, Any] = {"pd": pd, "revkit": revkit, "tickets": tickets}
    names["triage"] = revkit.Signature(
        "Sort.", inputs="ticket", outputs={"topic": ["billing", "delivery"]}
    )
    exec("def shorten(row):\n    return row['reply'][:2]", names)
    for block in blocks(PIPELINES, "python"):
        exec(block, names)
    assert names["results"].frame["shorten"].tolist() == ["We", "We"]
    assert pd.read_parquet("sorted-0000.parquet")["topic"].tolist() == ["billing", "billing"]
    assert names["done"].metrics.succeeded == 2


def test_the_blocks_on_clients_run_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    reviews = pd.DataFrame({"review": ["so good", "it is fine"]})
    names: dict[str, Any] = {"reviews": reviews}
    with serve('{"sentiment": "positive"}', models=["qwen3", "small"]) as server:
        named, shown, tiny = re.findall(r"^```(?:python)?\n(.*?)^```", CLIENTS, flags=re.M | re.S)
        exec(named.replace("http://127.0.0.1:8000", server.url), names)
        assert repr(names["run"].frame[["review", "sentiment"]]) == shown.rstrip()
        exec(tiny.replace("http://127.0.0.1:9000", server.url), names)
        assert names["run"].model_name == "tiny:small"
        assert names["run"].metrics.succeeded == 2
        assert [seen.path for seen in server.chats][2:] == ["/api/chat"] * 2
        assert main(["doctor"]) == 0
        assert "ok  gateway" in capsys.readouterr().out
    cells = re.findall(r"^\| (`.*?`) \|", CLIENTS.partition("of `HttpClient`")[2], flags=re.M)
    hooks = re.findall(r"`(\w+)", " ".join(cells))
    known = {*dir(HttpClient), *HttpClient.__annotations__}
    assert len(hooks) > 8
    assert [name for name in hooks if name not in known] == []
