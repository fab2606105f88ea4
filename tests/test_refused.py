"""What cannot be done as it was asked for is refused before anything is sent: the error is a kind
of UsageError and says what to do, the model's server hears nothing, and the frame stays as it was.

One table for all doors. What is refused by a part alone, without a run, is tested with that part.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import servers
from servers import serve

import revkit
from revkit import ColumnExists, Field, MissingColumn, NoModel, Retry, Signature, UsageError
from revkit.testing import FakeModel

RATE = Signature("Rate.", inputs="review", outputs={"mood": ["good", "bad"], "score": float})


@dataclass(frozen=True)
class Made:
    """An argument that is made, or refused, within the call."""

    make: Callable[[], Any]


def labels(*names: str) -> Made:
    return Made(lambda: Signature("Rate.", inputs="review", outputs={"mood": list(names)}))


def retry(**fields: Any) -> dict[str, Any]:
    return {"retry": Made(lambda: Retry(**fields))}


def plain(row: Any) -> int:
    raise AssertionError("it was called")


async def coroutine(row: Any) -> int:
    raise AssertionError("it was called")


NUMBERS: list[tuple[dict[str, Any], type[UsageError], str]] = [
    ({"max_workers": 0}, UsageError, "max_workers=0: at least 1 is needed"),
    ({"max_workers": -3}, UsageError, "max_workers=-3: at least 1 is needed"),
    ({"max_workers": 2.0}, UsageError, "max_workers=2.0: give a whole number, or"),
    ({"max_workers": "4"}, UsageError, "max_workers='4': give a whole number, or"),
    ({"max_workers": True}, UsageError, "max_workers=True: give a whole number"),
    ({"worker_cap": -1}, UsageError, "worker_cap=-1: at least 1 is needed"),
    ({"worker_cap": None}, UsageError, "worker_cap=None: give a whole number, or leave it out"),
    ({"worker_cap": math.inf}, UsageError, "worker_cap=inf: give a whole number"),
    ({"timeout": 0}, UsageError, "timeout=0: give seconds above 0, or leave it out"),
    ({"timeout": -1.5}, UsageError, "timeout=-1.5: give seconds above 0"),
    ({"timeout": math.nan}, UsageError, "timeout=nan: give seconds above 0"),
    ({"timeout": "10"}, UsageError, "timeout='10': give seconds above 0"),
    ({"timeout": True}, UsageError, "timeout=True: give seconds above 0"),
    ({"attempt_timeout": 0}, UsageError, "attempt_timeout=0: give seconds above 0, or leave"),
    ({"attempt_timeout": -1}, UsageError, "attempt_timeout=-1: give seconds above 0"),
    ({"attempt_timeout": math.nan}, UsageError, "attempt_timeout=nan: give seconds above 0"),
    ({"attempt_timeout": "s"}, UsageError, "attempt_timeout='s': give seconds above 0"),
    ({"max_failures": -1}, UsageError, "max_failures=-1: give a number of rows (0 or more)"),
    ({"max_failures": 1.5}, UsageError, "a share of them between 0 and 1, such as 0.05"),
    ({"max_failures": 0.0}, UsageError, "a share of them between 0 and 1, such as 0.05"),
    ({"max_failures": math.nan}, UsageError, "a share of them between 0 and 1, such as 0.05"),
    ({"max_failures": True}, UsageError, "max_failures=True: give a number of rows"),
    ({"max_failures": "many"}, UsageError, "max_failures='many': give a number of rows"),
    ({"max_failures": 1, "fail_fast": True}, UsageError, "leave max_failures= out"),
    (retry(attempts=0), UsageError, "Retry(attempts=0): at least 1 is needed"),
    (retry(attempts=2.0), UsageError, "Retry(attempts=2.0): give a whole number"),
    (retry(initial=-0.1), UsageError, "Retry(initial=-0.1): give seconds, 0 or more"),
    (retry(initial=math.inf), UsageError, "Retry(initial=inf): give seconds that have an end"),
    (retry(maximum=math.nan), UsageError, "Retry(maximum=nan): give seconds, 0 or more"),
    (retry(max_pause="60"), UsageError, "Retry(max_pause='60'): give seconds, 0 or more"),
    (retry(max_elapsed=-1), UsageError, "Retry(max_elapsed=-1): give seconds, 0 or more"),
]

COLUMNS: list[tuple[dict[str, Any], type[UsageError], str]] = [
    # inputs
    ({"task": "{reveiw}"}, MissingColumn, 'no column "reveiw"; did you mean "review"?'),
    ({"task": "{Review}"}, MissingColumn, 'did you mean "review"'),
    ({"task": "{zzz}"}, MissingColumn, '; or bind it: on={"zzz": …}'),
    ({"on": "reveiw"}, MissingColumn, '"reveiw" for the input "review"; did you mean "review"?'),
    ({"on": "a\nb\x1b[1m"}, MissingColumn, 'no column "a b\\x1b[1m" for'),
    ({"on": {"reviw": "review"}}, UsageError, 'did you mean "review"?'),
    ({"on": ["review", "stars"]}, UsageError, "bind each with a mapping, such as on={'review'"),
    ({"on": ["review", {}]}, UsageError, "bind each with a mapping"),
    ({"on": [["review"]]}, UsageError, "on= takes column labels, not list"),
    ({"task": "{a} {b}", "on": "review"}, UsageError, "write on={'a': 'review'}"),
    ({"task": plain, "on": "reveiw"}, MissingColumn, 'did you mean "review"'),
    ({"task": plain, "on": ["review", "star"]}, MissingColumn, 'did you mean "stars"'),
    # outputs
    ({"task": "{review}", "output": "stars"}, ColumnExists, 'pass prefix="…" for another name'),
    ({"task": "{review}", "output": "stars"}, ColumnExists, "overwrite=True to replace it"),
    ({"task": "{review}", "output": "stars"}, ColumnExists, 'df.drop(columns="stars")'),
    ({"task": plain, "output": "stars"}, ColumnExists, 'pass prefix="…" for another name'),
    ({"error": "stars"}, ColumnExists, "overwrite=True to replace it"),
    ({"prefix": "my ", "error": "my stars"}, ColumnExists, "overwrite=True to replace it"),
    (
        {"task": "{review}", "output": "review", "overwrite": True},
        UsageError,
        'would overwrite its own input; use prefix="llm_" or another output name',
    ),
    ({"error": "review", "overwrite": True}, UsageError, "would overwrite its own input; use"),
    (
        {"task": "{review}", "output": "error"},
        UsageError,
        'written to the column "error"; use prefix= for the outputs, or error= for',
    ),
    (
        {"prefix": "y", "error": "ymood"},
        UsageError,
        'two outputs would be written to the column "y',
    ),
    ({"prefix": None}, UsageError, "prefix=None: give text to put before each name"),
    ({"error": True}, UsageError, "error=True: give the error column's name, or None"),
    ({"error": ["e"]}, UsageError, "error=['e']: give the error column's name, or None"),
]

TASKS: list[tuple[dict[str, Any], type[UsageError], str]] = [
    ({"task": 3}, UsageError, 'a task is a revkit.Signature, a template such as "Summarise'),
    ({"task": None}, UsageError, "or a function of a row; got NoneType"),
    ({"task": ["{review}"]}, UsageError, "or a function of a row; got list"),
    ({"task": "no column"}, UsageError, "names no column, such as {review}"),
    ({"task": labels("good")}, UsageError, "at least two labels, this one has ['good']; add"),
    ({"task": labels()}, UsageError, "at least two labels, this one has []; add what else there"),
    ({"task": labels("good", "bad", "good")}, UsageError, "not all different; name each once"),
    ({"task": labels("good", "Good")}, UsageError, "not all different; name each once"),
    ({"task": labels("good", " ")}, UsageError, "hold an empty one; give it a name"),
    (
        {"task": Made(lambda: Signature("x", inputs="review", outputs=["y", "y"]))},
        UsageError,
        "outputs are named twice: y; name each once",
    ),
    (
        {"task": Made(lambda: Signature("x", inputs="review", outputs={"y": Field(["only"])}))},
        UsageError,
        "a class output needs at least two labels",
    ),
    ({"task": plain, "engine": "async"}, UsageError, 'leave engine= out, or pass "thread"'),
    ({"task": coroutine, "engine": "thread"}, UsageError, 'leave engine= out, or pass "async"'),
    ({"engine": "process"}, UsageError, 'there are "auto", "thread" and "async"'),
    ({"progress": "fast"}, UsageError, 'True for a bar, "live" for a display'),
    ({"cancel": "now"}, UsageError, "give a revkit.CancelToken, or leave it out"),
    ({"cancel": threading.Event()}, UsageError, "give a revkit.CancelToken, or leave it out"),
    ({"retry": 3}, UsageError, "retry=3: give a revkit.Retry, or leave it out"),
]

CHOICE = 'revkit.use("ollama:llama3.2:3b")'
MODELS: list[tuple[dict[str, Any], type[UsageError], str]] = [
    ({"model": "olama:m"}, UsageError, 'did you mean "ollama"?'),
    ({"model": "openai"}, UsageError, 'write "openai:" and the name of the model'),
    ({"model": "gpt-4.1-mini"}, UsageError, CHOICE),
    ({"model": ""}, UsageError, CHOICE),
    ({"model": 3}, UsageError, CHOICE),
    ({"model": revkit.Ollama}, UsageError, CHOICE),
    ({"model": None}, NoModel, CHOICE),
    ({"model": None}, NoModel, "or set REVKIT_MODEL"),
    ({"task": plain, "model": "ollama:m"}, UsageError, "model= is for tasks that ask a model"),
    (
        {"model": Made(lambda: revkit.OpenAICompatible("m", base_url="box:8000/v1"))},
        UsageError,
        "is not a URL such as http://127.0.0.1:8000/v1: 'box:8000/v1'",
    ),
    ({"model": FakeModel([], clock="virtual"), "engine": "thread"}, UsageError, 'pass "async"'),
]

REFUSED = [*NUMBERS, *COLUMNS, *TASKS, *MODELS]


def in_a_call(frame: pd.DataFrame, task: Any, options: dict[str, Any]) -> Any:
    return frame.llm.parallel_map(task, **options)


def awaited(frame: pd.DataFrame, task: Any, options: dict[str, Any]) -> Any:
    return asyncio.run(frame.llm.aparallel_map(task, **options))


Door = Callable[[pd.DataFrame, Any, dict[str, Any]], Any]
DOORS: list[Door] = [in_a_call, awaited]


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Server]:
    """To which every request of this file would go: nothing else is named anywhere."""
    with serve() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_but_it(server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")


def reviews() -> pd.DataFrame:
    mine = {"review": ["Superb!", "Broke twice."], "stars": [5, 1], "my stars": ["*", "?"]}
    return pd.DataFrame(mine, index=[7, 7])


def call(door: Door, frame: pd.DataFrame, options: dict[str, Any]) -> Any:
    """Call with ``options``, by default for a task and a model with which all is well."""
    made = {k: v.make() if isinstance(v, Made) else v for k, v in options.items()}
    task = made.pop("task", RATE)
    if not callable(task) and "model" not in made:
        made["model"] = "openai:m"
    return door(frame, task, made)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("options", "kind", "words"), REFUSED, ids=[str(words)[:40] for *_, words in REFUSED]
)
def test_refused(
    server: servers.Server, door: Door, options: dict[str, Any], kind: type[UsageError], words: str
) -> None:
    frame = reviews()
    with pytest.raises(UsageError) as refused:
        call(door, frame, options)
    assert type(refused.value) is kind
    assert words in str(refused.value)
    assert server.connections == 0
    pd.testing.assert_frame_equal(frame, reviews())
    assert frame.attrs == {}


@pytest.mark.parametrize("door", DOORS)
def test_what_is_not_refused_reaches_the_same_server(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = reviews()
    with serve() as own:
        monkeypatch.setenv("OPENAI_BASE_URL", own.url + "/v1")
        call(door, frame, {})
    assert len(own.requests) == 2
    assert frame["mood"].tolist() == ["good", "good"]


@pytest.mark.parametrize("items", [None, "text", b"text", 3, pd.DataFrame])
def test_what_is_not_a_list_or_a_frame(server: servers.Server, items: Any) -> None:
    words = "items= takes a list of mappings, .*, a DataFrame or a Series; got"
    with pytest.raises(UsageError, match=words):
        revkit.parallel_map(items, RATE, model="openai:m")
    with pytest.raises(UsageError, match=words):
        asyncio.run(revkit.aparallel_map(items, RATE, model="openai:m"))
    assert server.connections == 0
