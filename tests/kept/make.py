"""Files that revkit 0.1.0 wrote, and the calls that wrote them.

``test_kept_files.py`` reads the files with the present version. It also makes the same calls again,
to see that nothing is sent. The files were made at commit 10cfe26, as root, with this command:

    PYTHONPATH=.:tests python -c "from kept.make import main; main('/tmp/kept')"

Do not run it again: it would replace the files that the test protects. After an intended change of
a format, add files of the new version beside these. Root is needed to listen on port 1. The address
of a server is part of a store key, and nothing else listens on that port when the test runs.

    result.parquet        run.to_parquet: ok, failed, missing, duplicate, retried and stored rows
    repeat.parquet        the same with three samples per row
    replies.sqlite        a store with the replies to stored_calls()
    replies/              the same replies in a directory that Dask workers share
    source.parquet        the source of all sinks; needs SOURCE_TIME_NS as its modification time
    finished.parquet      map_parquet, finished
    sink.parquet.parts/   the same call, stopped after 8 of 12 rows
    lengths.parquet.parts/  a function, stopped after 8 of 12 rows
    keys.json             the prompts and store keys of golden_calls()
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import revkit
from revkit import Field, Ollama, OpenAICompatible, Reply, Retry, Signature
from revkit.errors import AccessDenied, ConnectionFailed, RunFailed
from revkit.testing import FakeModel

#: Nobody listens there: a request fails at once.
CLOSED = "http://127.0.0.1:1/v1"
#: Part of what a sink remembers of its source. Git does not keep it.
SOURCE_TIME_NS = 1_760_000_000_000_000_000

TASK = Signature(
    "Judge the review.",
    inputs={"review": "the customer's words"},
    outputs={
        "mood": ["good", "bad", "mixed"],
        "urgent": (bool, "whether it must be answered today"),
        "words": list[str],
    },
    examples=[{"review": "Lovely.", "mood": "good", "urgent": False, "words": ["Lovely"]}],
)
SUMMARY = "Summarise for {city}: {review}"

REVIEWS = pd.DataFrame(
    {
        "review": [
            "Great!",
            "Broke twice.",
            None,
            "Great!",  # a duplicate
            "busy: hm",  # good at the second attempt
            "no JSON",  # never good
            "Ça va, 好 😀",
            "Broke twice.",
            "",
            "known",  # in the store before
        ],
        "city": ["Oslo", "Lyon", "Turin"] * 3 + ["Oslo"],
    },
    index=pd.Index([f"r{row}" for row in range(10)], name="id"),
)


def answer(text: str) -> dict[str, Any]:
    """Outputs of TASK, decided by the prompt alone."""
    good = "Great" in text
    return {
        "mood": "good" if good else "bad",
        "urgent": "Broke" in text,
        "words": text.split()[-2:],
    }


def answers() -> Callable[[str], Any]:
    """A rule that fails where REVIEWS says so."""
    asked: Counter[str] = Counter()

    def rule(text: str) -> Any:
        asked[text] += 1
        if "no JSON" in text or "is not JSON" in text:  # the second is our request to mend it
            return Reply("sorry", 10, 1, "stop")
        if "busy" in text and asked[text] == 1:
            return ConnectionFailed("busy")
        return answer(text)

    return rule


def votes() -> Callable[[str], Any]:
    """Two of three samples say "good"; of "Broke twice." each says something else."""
    asked: Counter[str] = Counter()

    def rule(text: str) -> Any:
        asked[text] += 1
        moods = ["good", "bad", "mixed" if "Broke" in text else "good"]
        return answer(text) | {"mood": moods[(asked[text] - 1) % 3]}

    return rule


def refuse(text: str) -> Any:
    """The rule of a model that must not be asked."""
    raise AssertionError(f"sent: {text}")


# ------------------------------------------------------------------ calls whose replies are stored


def stored_calls(
    fake: Callable[[str], Any] = refuse,
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name to task and options of each call. Every reply to them is in both stores."""
    openai = OpenAICompatible("qwen3", base_url=CLOSED, temperature=0.5)
    once = {"retry": Retry(attempts=1), "max_workers": 2}
    return {
        "signature": (TASK, {"model": FakeModel(fake), "on": "review", **once}),
        "template": (SUMMARY, {"model": openai, **once}),
        "server": (TASK, {"model": openai, "on": {"review": "review"}, **once}),
        "samples": (TASK, {"model": openai, "on": "review", "repeat": 2, **once}),
    }


def stored_frame() -> pd.DataFrame:
    """Six rows: five prompts, for one is there twice, and no missing value."""
    return REVIEWS[REVIEWS["review"].isin(["Great!", "Broke twice.", "Ça va, 好 😀", ""])]


# ------------------------------------------------------------------ map_parquet


def sink_call(rule: Callable[[str], Any] = answer) -> tuple[Any, dict[str, Any]]:
    options = {"on": "review", "chunk_rows": 4, "store": False, "max_workers": 1}
    return TASK, {"model": FakeModel(rule), "retry": Retry(attempts=1), **options}


#: Calls of :func:`length`, and the reviews that it refuses.
MEASURED: list[str] = []
REFUSED: set[str] = set()


def length(row: Any) -> int:
    """A function is identified by its module and name."""
    MEASURED.append(row["review"])
    if row["review"] in REFUSED:
        raise ValueError("refused")
    return len(row["review"])


def function_call() -> tuple[Any, dict[str, Any]]:
    return length, {"on": "review", "output": "length", "chunk_rows": 4, "max_workers": 1}


def source() -> pd.DataFrame:
    reviews: list[str | None] = [f"review {row}" for row in range(12)]
    reviews[1], reviews[5], reviews[6] = "Great!", "no JSON", None
    return pd.DataFrame(
        {
            "review": reviews,
            "kind": pd.Categorical(list("abc") * 4, list("cbaz")),
            "when": pd.date_range("2026-01-01", periods=12, tz="UTC"),
        },
        index=pd.RangeIndex(100, 112, name="number"),
    )


# ------------------------------------------------------------------ keys


ROW = {"review": "Broke twice. 好", "city": "Oslo", "stars": 3}


class Like(FakeModel):
    """Has the settings of another client, and so its keys, and answers all by itself."""

    def __init__(self, answers: Any, client: revkit.Client):
        super().__init__(answers)
        self.client = client

    def settings(self) -> dict[str, Any]:
        return self.client.settings()


def golden_calls() -> dict[str, tuple[Any, FakeModel]]:
    """Name to task and model of ten calls. Each sends one prompt, made from ROW."""
    openai = OpenAICompatible(
        "gpt-4.1-mini", base_url="https://api.example/v1", seed=1, extra_body={"top_p": 0.5}
    )
    ollama = Ollama("llama3.2:3b", host="http://127.0.0.1:11434", temperature=0.5)
    numbers = Signature(
        "Rate it.",
        inputs={"review": str, "stars": int},
        outputs={"score": (float, "from 0 to 1"), "count": int, "name": str},
    )
    ordered = Signature(
        "Rank it.",
        inputs=["review"],
        outputs={"rank": Field(["low", "high"], ordered=True), "kind": Literal["a", "b"]},
    )
    examples = Signature(
        "Name the country.",
        inputs=["city"],
        outputs={"country": str},
        examples=[{"city": "Oslo", "country": "Norway"}, {"city": "Köln", "country": "Germany"}],
    )
    text = FakeModel(lambda prompt: "a text")
    rated = FakeModel(lambda prompt: {"score": 0.5, "count": 3, "name": "x"})
    return {
        "sentiment": (revkit.SENTIMENT, FakeModel(lambda prompt: "positive")),
        "class, bool and list": (TASK, FakeModel(answer)),
        "numbers and a text": (numbers, rated),
        "ordered and literal labels": (ordered, FakeModel([{"rank": "low", "kind": "a"}])),
        "two examples": (examples, FakeModel([{"country": "Norway"}])),
        "a template": ("Summarise: {review}", text),
        "a template of two columns": (SUMMARY, FakeModel(["a text"])),
        "a template with a number": ("{review} ({stars} of 5)", FakeModel(["a text"])),
        "an OpenAI-compatible server": (TASK, Like(answer, openai)),
        "Ollama": (TASK, Like(answer, ollama)),
    }


def golden_keys(directory: Path) -> dict[str, dict[str, Any]]:
    """The prompt and the key of each of these calls, by name."""
    found: dict[str, dict[str, Any]] = {}
    for number, (name, (task, model)) in enumerate(golden_calls().items()):
        store, table = directory / f"{number}.sqlite", directory / f"{number}.parquet"
        pd.DataFrame([ROW]).llm.parallel_map(task, model=model, store=store)
        revkit.store.to_parquet(table, store=store)
        (key,), (prompt,) = pd.read_parquet(table)["key"], model.calls
        found[name] = {"key": key, "prompt": prompt}
    return found


# ------------------------------------------------------------------ making them


class Handler(BaseHTTPRequestHandler):
    """A server that answers both tasks; it tells them apart by the schema that TASK asks for."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = asked["messages"][-1]["content"]
        said = json.dumps(answer(text)) if "response_format" in asked else f"In short: {text}"
        choice = {"index": 0, "message": {"role": "assistant", "content": said}}
        usage = {"prompt_tokens": len(text), "completion_tokens": len(said), "total_tokens": 0}
        body = {"model": "qwen3", "choices": [choice | {"finish_reason": "stop"}], "usage": usage}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *told: Any) -> None: ...


@contextlib.contextmanager
def served() -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 1), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def make_results(work: Path) -> None:
    options = {"on": "review", "store": work / "known.sqlite", "max_workers": 2}
    known = REVIEWS[REVIEWS["review"] == "known"]
    known.llm.parallel_map(TASK, model=FakeModel(answer), inplace=False, **options)
    random.seed(1)  # the wait before a second attempt
    for name, rule, repeat in (("result", answers(), 1), ("repeat", votes(), 3)):
        model = FakeModel(rule, latency=1.0, clock="virtual")
        if repeat == 3:
            options["store"] = False
        run = REVIEWS.llm.parallel_map(
            TASK, model=model, retry=Retry(attempts=2), repeat=repeat, inplace=False, **options
        )
        run.to_parquet(f"{name}.parquet")


def make_stores() -> None:
    import dask
    import dask.dataframe as dd

    import revkit.dask

    with served(), dask.config.set(scheduler="synchronous"):
        for task, options in stored_calls(answer).values():
            stored_frame().llm.parallel_map(task, store="replies.sqlite", inplace=False, **options)
            lazy = dd.from_pandas(stored_frame(), npartitions=1)
            revkit.dask.collect(lazy.llm.parallel_map(task, store="replies", **options))
    for number, part in enumerate(sorted(Path("replies").glob("*.jsonl"))):
        part.rename(part.with_name(f"host-{number}.jsonl"))  # it was the name of the machine
    assert sorted(path.name for path in Path().glob("replies.sqlite*")) == ["replies.sqlite"]


def make_sinks() -> None:
    source().to_parquet("source.parquet")
    os.utime("source.parquet", ns=(SOURCE_TIME_NS, SOURCE_TIME_NS))

    def stopped(text: str) -> Any:
        if "review 9" in text:
            return AccessDenied("stopped", status=401)  # this ends a run
        return Reply("sorry", 10, 1, "stop") if "no JSON" in text else answer(text)

    task, options = sink_call()
    revkit.map_parquet("source.parquet", task, "finished.parquet", **options)
    task, options = sink_call(stopped)
    with contextlib.suppress(RunFailed):
        revkit.map_parquet("source.parquet", task, "sink.parquet", **options)
    assert not Path("sink.parquet").exists()
    task, options = function_call()
    REFUSED.add("review 9")
    with contextlib.suppress(RunFailed):
        revkit.map_parquet("source.parquet", task, "lengths.parquet", max_failures=1, **options)
    assert not Path("lengths.parquet").exists()


def main(directory: str) -> None:
    made = Path(directory).absolute()
    made.mkdir()
    work = made / "work"
    work.mkdir()
    os.chdir(made)
    platform.release = lambda: "0"
    make_results(work)
    make_stores()
    make_sinks()
    Path("keys.json").write_text(
        json.dumps(golden_keys(work), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    shutil.rmtree(work)
