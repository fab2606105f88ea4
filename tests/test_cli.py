"""The commands ``revkit demo`` and ``revkit doctor``, against servers on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from servers import Status, serve

import revkit
from revkit.__main__ import main

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def demo(server_url: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server_url}/v1")
    return main(["demo", "--model", "openai:loopback", *arguments])


def test_the_demo_shows_each_review_in_order_the_summary_the_figures_and_the_timeline(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = revkit.load_reviews()["label"].tolist()
    texts = revkit.load_reviews()["review"].tolist()

    def answer(messages: list[dict[str, str]], body: object) -> str:
        return json.dumps({"sentiment": labels[texts.index(messages[-1]["content"])]})

    with serve(answer) as server:
        assert demo(server.url, monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:12]] == [
        [str(number), label] for number, label in enumerate(labels)
    ]
    said = "\n".join(lines)
    for word in ("12 rows, 12 ok", "positive", "50.0%", "rows per second", "success rate", "p95"):
        assert word in said
    assert "speed-up" in said
    assert "timeline: revkit-timeline.png" in said
    assert Path("revkit-timeline.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_it_does_real_work_on_a_file(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame({"id": range(30), "what they said": [f"number {i}" for i in range(30)]})
    frame.to_csv("mine.csv", index=False)
    frame.to_parquet("mine.parquet")
    with serve() as server:
        status = demo(
            server.url,
            *("--input", f"mine.{kind}", "--on", "what they said", "--workers", "3"),
            *("--output", f"done.{kind}", "--timeline", "picture.png"),
            monkeypatch=monkeypatch,
        )
        assert status == 0
        assert server.highest <= 3
        said = sorted(seen.body["messages"][-1]["content"] for seen in server.requests)
    assert said == sorted(frame["what they said"])
    done = pd.read_csv("done.csv") if kind == "csv" else pd.read_parquet("done.parquet")
    assert done["id"].tolist() == list(range(30))
    assert done["sentiment"].tolist() == ["positive"] * 30
    out = capsys.readouterr().out
    assert "... and 18 more rows" in out
    assert f"written: done.{kind} (30 rows)" in out


def test_what_is_done_is_written_even_where_every_row_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(lambda messages, body: Status(400, {"error": "no"})) as server:
        assert demo(server.url, "--output", "done.csv", monkeypatch=monkeypatch) == 1
    assert "all 12 rows failed" in capsys.readouterr().err
    assert pd.read_csv("done.csv")["error"].str.startswith("ServerError").all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", "none.csv"], "none.csv cannot be read"),
        (["--input", "none.xlsx"], "must end in .csv or .parquet"),
        (["--output", "done.txt"], "must end in .csv or .parquet"),
        (["--output", "nowhere/done.csv"], "there is no directory"),
        (["--on", "reveiw"], 'did you mean "review"?'),
        (["--workers", "0"], "at least 1"),
        (["--model", "olama:x"], "did you mean"),
    ],
)
def test_a_call_that_cannot_be_carried_out_says_what_to_do(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serve() as server:
        assert demo(server.url, *arguments, monkeypatch=monkeypatch) == 2
        assert server.requests == []
    assert said in capsys.readouterr().err


def test_the_doctor_names_the_models_of_each_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(models=["llama3.2:3b"]) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
        assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "ok  Ollama" in said
    assert "ok  OpenAI-compatible server" in said
    assert 'revkit.use("ollama:' in said
    assert "sk-very-secret" not in said


def test_the_doctor_says_what_to_do_where_nothing_can_be_reached(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    main(["doctor"])
    said = capsys.readouterr().out
    assert "--  Ollama" in said
    assert "ollama serve" in said
    assert "set the key" in said


def test_both_ways_to_call_it_work() -> None:
    script = Path(sys.executable).with_name("revkit")
    for command in ([sys.executable, "-m", "revkit"], [str(script)]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"revkit {revkit.__version__}\n"


def test_what_could_not_be_written_is_refused_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    revkit.load_reviews().to_csv("mine.csv", index=False)
    with serve() as server:
        for arguments in (
            ["--timeline", "nowhere/picture.png"],
            ["--input", "mine.csv", "--output", "mine.csv"],
        ):
            assert demo(server.url, *arguments, monkeypatch=monkeypatch) == 2
        assert server.requests == []
    said = capsys.readouterr().err
    assert "there is no directory" in said
    assert "is the input itself" in said


def test_the_demo_takes_its_own_output_again_if_it_may_overwrite(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        again = ["--input", "done.csv", "--output", "again.csv"]
        assert demo(server.url, "--output", "done.csv", monkeypatch=monkeypatch) == 0
        assert demo(server.url, *again, monkeypatch=monkeypatch) == 2
        assert "pass --overwrite" in capsys.readouterr().err
        assert demo(server.url, *again, "--overwrite", monkeypatch=monkeypatch) == 0
    assert pd.read_csv("again.csv")["sentiment"].tolist() == ["positive"] * 12


def test_the_doctor_reports_a_proxy_and_a_model_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example:1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("REVKIT_MODEL", "gpt4")
    main(["doctor"])
    said = capsys.readouterr().out
    assert "--  OpenAI-compatible server: " in said
    assert "REVKIT_MODEL cannot be used" in said
