"""Every code block of the README runs: Python here, the two commands in ``.ci/run``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from servers import serve

import revkit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_python_blocks_run_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # they write files
    main, *setup, api, more, time, cluster = blocks("python")
    names: dict[str, Any] = {}
    with serve() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("REVKIT_MODEL", "openai:loopback")
        exec(main, names)
        assert names["reviews"]["sentiment"].tolist() == ["positive"] * 12
        assert names["reviews"]["error"].isna().all()
        for block in setup:
            exec(block, names)
        revkit.use("openai:loopback")
        exec(api, names)
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        exec(more, names)
        exec(time, names)
        exec(cluster, names)
        assert names["run"].frame["topic"].isna().tolist() == [False, False, True]
    tickets = names["tickets"]
    assert tickets["topic"].tolist()[:2] == ["billing", "billing"]
    assert tickets["topic"].isna().tolist() == [False, False, True]
    assert tickets["error"].str.startswith("MissingInput").tolist()[2:] == [True]
    assert tickets["country"].tolist()[0] == "Which country is Oslo in?"
    assert tickets["length"].tolist() == [4, 4, 5]
    assert tickets["nearer"].tolist()[0] == "Is Oslo nearer to us than the last one?"


@pytest.mark.embedded
def test_the_first_block_runs_with_nothing_configured() -> None:
    names: dict[str, Any] = {}
    exec(blocks("python")[0], names)
    reviews = names["reviews"]
    assert reviews["error"].isna().all()
    assert (reviews["sentiment"].astype(str) == reviews["label"].astype(str)).mean() >= 0.75


def test_the_two_commands_are_those_that_ci_runs() -> None:
    commands = blocks("bash")
    assert len(commands) == 2
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for mark, command in zip(("demo-command", "test-command"), commands, strict=True):
        assert f"<!-- {mark} -->\n```bash\n{command}" in README
        assert f"readme_command {mark}" in ci


def test_every_file_that_is_named_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
