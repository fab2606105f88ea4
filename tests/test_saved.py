"""``run.to_parquet(path)`` and ``ParallelResult.read_parquet(path)``: what goes in comes out."""

from __future__ import annotations

import _thread
import asyncio
import dataclasses
import datetime
import enum
import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal, assert_series_equal
from servers import Status, serve

import revkit
from revkit import (
    Adaptive,
    Budget,
    CancelToken,
    Field,
    Interrupted,
    ParallelResult,
    Price,
    RateLimit,
    Reply,
    Retry,
    RunFailed,
    Signature,
    UsageError,
)
from revkit.testing import FakeModel

ANSWER = Signature("Answer.", inputs="question", outputs={"answer": str})


def fake(rule: Any, **options: Any) -> FakeModel:
    return FakeModel(rule, **{"latency": 1.0, "clock": "virtual"} | options)


def questions(rows: int = 6, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"question": [f"question {i}" for i in range(rows)]} | columns)


def partial(call: Callable[[], ParallelResult]) -> ParallelResult:
    """The result of a run that raises."""
    with pytest.raises((RunFailed, Interrupted)) as failed:
        call()
    found: ParallelResult = failed.value.result
    return found


def again(run: ParallelResult, folder: Path) -> ParallelResult:
    path = folder / "run.parquet"
    run.to_parquet(path)
    assert [file.name for file in folder.iterdir() if "parquet" in file.name] == [path.name]
    return ParallelResult.read_parquet(path)


def figures(kept: Any) -> dict[str, Any]:
    """A dataclass in which NaN is equal to itself."""
    return {
        k: "NaN" if isinstance(v, float) and math.isnan(v) else v
        for k, v in dataclasses.asdict(kept).items()
    }


#: What a record holds beside what is read back in other words (its clock's zero, exceptions).
COLUMNS = ("row", "number", "worker", "decision", "prompt_tokens", "completion_tokens")


def assert_same(read: ParallelResult, run: ParallelResult) -> None:
    """Every public frame and figure, and the record that future ones are made from."""
    for name in ("frame", "rows", "completions", "errors", "attempts"):
        found, wanted = getattr(read, name), getattr(run, name)
        if name == "errors":  # below, by repr: NaN is not equal to itself
            found, wanted = found.drop(columns="item"), wanted.drop(columns="item")
        assert_frame_equal(found, wanted, check_exact=True, obj=name)
    assert read.frame.attrs == run.frame.attrs
    assert read.frame.index.names == run.frame.index.names
    assert read.errors["item"].map(repr).tolist() == run.errors["item"].map(repr).tolist()
    assert_series_equal(read.latency, run.latency, check_exact=True)
    assert figures(read.metrics) == figures(run.metrics)
    assert read.usage == run.usage
    assert read.outputs == run.outputs
    assert read.provenance == run.provenance
    assert (read.model_name, read.stopped) == (run.model_name, run.stopped)
    assert read.store_problem == run.store_problem
    for name in run.outputs:
        assert_frame_equal(read.summary(name), run.summary(name))
    assert repr(read) == repr(run)
    assert read.report() == run.report()
    ours, theirs = read._record, run._record
    for column in COLUMNS:
        assert list(getattr(ours, column)) == list(getattr(theirs, column)), column
    assert np.allclose(ours.due, np.subtract(theirs.due, theirs.began), equal_nan=True)
    assert ours.status == theirs.status
    assert ours.source == theirs.source
    assert ours.stopped == theirs.stopped
    assert (ours.run_id, ours.started_at) == (theirs.run_id, theirs.started_at)
    began = theirs.began
    assert ours.holds == [(kind, a - began, b - began) for kind, a, b in theirs.holds]
    assert ours.visits == [(at - began, rows) for at, rows in theirs.visits]
    assert ours.limits == [(at - began, limit) for at, limit in theirs.limits]
    stopped_at = theirs.stopped_at
    assert ours.stopped_at == (None if stopped_at is None else stopped_at - began)
    counts = ("settled", "failed", "from_store", "tokens", "asks_model", "store", "facts")
    assert [getattr(ours, c) for c in counts] == [getattr(theirs, c) for c in counts]
    first, wanted = ours.first_failure, theirs.first_failure
    assert (first and (first[0], str(first[1]))) == (wanted and (wanted[0], str(wanted[1])))


# -- runs of every kind ---------------------------------------------------------------------------


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Part(pydantic.BaseModel):
    name: str
    faults: list[str]
    seen: datetime.date | None = None


class Ticket(pydantic.BaseModel):
    part: Part
    counts: dict[str, int]
    urgent: bool


def plain() -> ParallelResult:
    return questions().llm.parallel_map("Say: {question}", model=fake(str.upper), max_workers=2)


def typed() -> ParallelResult:
    outputs = {
        "label": ["bad", "fair", "good"],
        "grade": Field(["low", "high", "none"], ordered=True),
        "level": [3, 2, 1],
        "mood": Mood,
        "count": int,
        "huge": int,
        "share": float,
        "sure": bool,
        "maybe": int | None,
        "words": list[str],
        "spans": list[list[int]],
    }
    task = Signature("Read it.", inputs="question", outputs=outputs)

    def answer(text: str) -> Any:
        if text == "question 3" or not text.startswith("question"):
            return "nothing"
        number = int(text.split()[-1])
        values = {
            "label": "good", "grade": "high", "level": 2, "mood": "bad", "count": number,
            "huge": 10**30, "share": 0.1 * number, "sure": number % 2 == 0, "maybe": None,
            "words": ["a"] * number, "spans": [[1, number], []],
        }  # fmt: skip
        return json.dumps(values)

    return questions().llm.parallel_map(task, model=fake(answer), prefix="llm_", max_workers=3)


def nested() -> ParallelResult:
    def answer(text: str) -> Any:
        number = int(text.split()[-1])
        seen = None if number else "2026-01-31"
        part = {"name": f"part {number}", "faults": ["bent"] * number, "seen": seen}
        return {"part": part, "counts": {text: number}, "urgent": True}

    return questions(3).llm.parallel_map(
        Ticket, instructions="Read it.", on="question", model=fake(answer)
    )


def retried() -> ParallelResult:
    replies = iter(["nothing", revkit.ModelError("garbage"), {"answer": "ä\n\U0001f600"}] * 50)
    faults = iter([revkit.ServerError("busy", status=503, pause=5.0), None] * 50)

    def answer(text: str) -> Any:
        return next(faults) or next(replies)

    return questions(12).llm.parallel_map(ANSWER, model=fake(answer), max_workers=3)


def missing_inputs() -> ParallelResult:
    df = questions(4, other=[1.5, None, 3.0, 4.0])
    df.loc[[0, 2], "question"] = None
    task = Signature("Answer.", inputs=["question", "other"], outputs={"answer": str})
    return df.llm.parallel_map(task, model=fake(lambda _: {"answer": "yes"}))


def all_failed() -> ParallelResult:
    return partial(lambda: questions().llm.parallel_map(ANSWER, model=fake(lambda _: ValueError())))


def failed_fast() -> ParallelResult:
    return partial(
        lambda: questions(9).llm.parallel_map(
            ANSWER,
            model=fake(lambda text: {"answer": "a"} if "0" in text else revkit.ModelError("no"),
                       latency=lambda text: 1.0 + int(text.split()[-1])),
            max_workers=3, fail_fast=True,
        )
    )  # fmt: skip


def cancelled() -> ParallelResult:
    token = CancelToken()

    def answer(text: str) -> Any:
        if "3" in text:
            token.cancel("enough")
        return {"answer": "yes"}

    return partial(
        lambda: questions().llm.parallel_map(
            ANSWER, model=fake(answer), max_workers=2, cancel=token
        )
    )


def interrupted() -> ParallelResult:
    async def ask(row: Mapping[str, Any]) -> int:
        if row["question"].endswith("3"):
            _thread.interrupt_main()
            await asyncio.sleep(3600)
        return 1

    return partial(lambda: questions().llm.parallel_map(ask, max_workers=2))


def timed_out() -> ParallelResult:
    return partial(
        lambda: questions().llm.parallel_map(
            ANSWER, model=fake(lambda _: {"answer": "a"}), max_workers=2, timeout=1.5
        )
    )


def repeated() -> ParallelResult:
    """Samples of which some fail, and rows that lack their input."""
    said = [{"label": x, "size": 3} for x in "ababbb"] + ["bad"] * 8 + [{"label": "b", "size": 4}]
    df = questions(4, index=[3, 3, 7, 1]).set_index("index")
    df.loc[7, "question"] = None
    task = Signature("Rate.", inputs="question", outputs={"label": ["a", "b"], "size": int})
    return df.llm.parallel_map(task, model=fake(said), repeat=3, max_workers=1)


def limited() -> ParallelResult:
    return partial(
        lambda: questions(30).llm.parallel_map(
            ANSWER,
            model=of_size(fake(lambda _: {"answer": "a"})),
            rate_limit=RateLimit(requests_per_minute=30),
            budget=Budget(tokens=500, usd=9.0, prices=Price(1, 2, tiers=((10, Price(3, 4)),))),
        )
    )


def of_size(model: FakeModel) -> FakeModel:
    model.max_tokens = 10
    return model


def adaptive() -> ParallelResult:
    df = questions(400)
    return df.llm.parallel_map(
        ANSWER, model=fake(lambda _: {"answer": "a"}), max_workers=Adaptive(2, 16)
    )


def with_probabilities() -> ParallelResult:
    def answer(text: str) -> Any:
        given = {"sentiment": {"positive": 0.1 + 0.2, "negative": 0.7}} if "1" in text else None
        return Reply('{"sentiment": "negative"}', 7, 3, "stop", given)

    return questions(3).llm.parallel_map(on="question", model=fake(answer))


def retry_of_failed() -> ParallelResult:
    down = [True]

    def answer(text: str) -> Any:
        return revkit.ModelError("down") if down[0] and "2" in text else {"answer": "yes"}

    run = questions().llm.parallel_map(ANSWER, model=fake(answer), max_workers=2)
    down[0] = False
    return run.retry_failed()


def callable_rows() -> ParallelResult:
    def check(row: Mapping[str, Any]) -> Any:
        if row["n"] == 2:
            raise ZeroDivisionError
        return {"twice": row["n"] * 2, "told": {"of": [row["n"]]}, "row": "a name of revkit's"}

    df = questions(4, n=[1, 2, 3, 4], empty=[None] * 4, mixed=["a", 1, None, 2.5], when=pd.NaT)
    return df.llm.parallel_map(check, max_workers=2)


def series_of_scalars() -> ParallelResult:
    return pd.Series([3, 1, 2], name="n", index=list("aab")).llm.parallel_map(lambda n: 6 / (n - 1))


def list_of_mappings() -> ParallelResult:
    """pandas turns the integers beside a gap into floats; the items keep them."""
    items = [{"n": 1, "who": "a"}, {"n": None, "who": "b"}, {"n": 3}]
    return revkit.parallel_map(items, lambda row: 1 / (row["n"] - 1), max_workers=1)


def empty() -> ParallelResult:
    task = Signature("Read.", inputs="question", outputs={"label": ["a", "b"], "n": int})
    frame = questions(1)[:0]
    return frame.llm.parallel_map(task, model=fake(lambda _: ""))


def empty_callable() -> ParallelResult:
    return questions(1)[:0].llm.parallel_map(lambda row: 1)


def one_row() -> ParallelResult:
    df = questions(1, label=pd.Categorical(["b"], ["c", "b", "a"]))
    return df.llm.parallel_map(ANSWER, model=fake(lambda _: {"answer": "a"}), error=None)


RUNS = [
    plain, typed, nested, retried, missing_inputs, all_failed, failed_fast, cancelled, interrupted,
    timed_out, limited, adaptive, with_probabilities, retry_of_failed, callable_rows,
    series_of_scalars, list_of_mappings, repeated, empty, empty_callable, one_row,
]  # fmt: skip


@pytest.mark.parametrize("make", RUNS)
def test_a_result_comes_back_whole(make: Callable[[], ParallelResult], tmp_path: Path) -> None:
    run = make()
    read = again(run, tmp_path)
    assert_same(read, run)
    assert_same(again(read, tmp_path), run)  # what was read can be written


def test_the_runs_are_what_their_names_say() -> None:
    """Else the test above would prove less than it seems to."""
    assert set(all_failed().rows["status"]) == {"error"}
    assert {"ok", "cancelled", "not_started"} <= set(cancelled().rows["status"])
    assert cancelled().stopped == "enough"
    assert interrupted()._record.stopped is not None
    assert {"error", "cancelled", "not_started"} <= set(failed_fast().rows["status"])
    assert retried().metrics.retries
    assert retried()._record.holds
    assert limited()._record.holds
    assert limited().usage.cost_usd
    assert adaptive()._record.limits
    assert typed().frame["llm_huge"].dtype == object
    assert nested().frame["part"].dtype == object
    assert with_probabilities().rows["probabilities"].notna().sum() == 1
    assert retry_of_failed().metrics.attempts == 7


def test_real_threads_and_a_real_clock(tmp_path: Path) -> None:
    met = threading.Barrier(3)

    def wait(row: Mapping[str, Any]) -> int:
        met.wait(10)
        return threading.get_ident()

    assert_same(again(run := questions(9).llm.parallel_map(wait, max_workers=3), tmp_path), run)


def test_statuses_and_messages_of_a_real_server(tmp_path: Path) -> None:
    def rule(messages: list[dict[str, str]], _: dict[str, Any]) -> Any:
        answers = {"0": Status(400, {"error": "too long"}), "1": "no JSON", "2": Status(500, b"")}
        return answers.get(messages[-1]["content"].split()[-1], json.dumps({"answer": "yes"}))

    with serve() as server:
        server.rule = rule
        model = revkit.OpenAICompatible("m", base_url=server.url + "/v1")
        run = questions().llm.parallel_map(ANSWER, model=model, retry=Retry(attempts=1))
    read = again(run, tmp_path)
    assert_same(read, run)
    assert read.errors["status"].tolist() == [400, pd.NA, 500]
    assert read.errors["text"].tolist()[1] == "no JSON"


def test_rows_from_the_store_and_duplicates(tmp_path: Path) -> None:
    df = pd.DataFrame({"question": ["a", "b", "a", "c", "a"]})
    store = tmp_path / "replies.sqlite"
    model = fake(lambda _: {"answer": "yes"})
    df[:2].copy().llm.parallel_map(ANSWER, model=model, store=store)
    run = df.iloc[1:].llm.parallel_map(ANSWER, model=model, store=store, inplace=False)
    assert {"store", "model"} <= set(run.rows["source"])
    twins = pd.DataFrame({"question": ["x", "x"]}).llm.parallel_map(
        ANSWER, model=fake(lambda _: {"answer": "no"}), store=tmp_path / "other.sqlite"
    )
    assert "duplicate" in set(twins.rows["source"])
    for result in (run, twins):
        read = again(result, tmp_path)
        assert_same(read, result)
        assert read.provenance["options"]["store"].endswith(".sqlite")


def test_a_read_result_draws_what_the_run_drew(tmp_path: Path) -> None:
    run = adaptive()
    assert again(run, tmp_path)._repr_html_() == run._repr_html_()


# -- frames of every kind -------------------------------------------------------------------------

INDEXES = {
    "duplicate": pd.Index([7, 7, 1]),
    "labels": pd.Index(list("cab"), name="who"),
    "named as a column": pd.Index([3, 2, 1], name="question"),
    "several levels": pd.MultiIndex.from_tuples([("a", 1), ("a", 1), ("b", 2)], names=["x", None]),
    "times": pd.DatetimeIndex(["2026-01-01", "2026-01-03", "2026-01-02"], tz="UTC"),
    "a range": pd.RangeIndex(10, 4, -2),
    "a named range": pd.RangeIndex(3, name=0),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_any_index(kind: str, tmp_path: Path) -> None:
    run = (
        questions(3)
        .set_axis(INDEXES[kind])
        .llm.parallel_map(lambda row: 1 / int(row["question"][-1]))
    )
    assert_same(again(run, tmp_path), run)


def test_columns_of_many_types(tmp_path: Path) -> None:
    df = questions(
        2,
        text=pd.array(["a", None], dtype="string"),
        whole=pd.array([1, None], dtype="Int64"),
        when=pd.to_datetime(["2026-01-01", None], utc=True),
        day=[datetime.date(2026, 1, 1), None],
        span=pd.to_timedelta([1, 2], unit="ms"),
        month=pd.period_range("2026-01", periods=2, freq="M"),
        lists=pd.array([[1, 2], None], dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
        rank=pd.Categorical([2, None], [3, 2, 1], ordered=True),
        nothing=pd.Series([np.nan, np.nan], dtype=object),
        gaps=pd.Series(["a", np.nan], dtype=object),
        other_gaps=pd.Series([pd.NA, 1], dtype=object),
        both_gaps=pd.Series([None, np.nan], dtype=object),
        mappings=pd.Series([{"a": 1}, {"b": [None, 2]}], dtype=object),
        same_lists=pd.Series([[1, 2], [3, 4]], dtype=object),
        half=pd.Series(["\ud800", "ok"], dtype=object),
    )
    df.columns.name = "facts"
    df.attrs["of"] = {"mine": [1]}
    run = df.llm.parallel_map(lambda row: 1, on="question")
    read = again(run, tmp_path)
    assert_same(read, run)
    assert read.frame["nothing"].map(repr).tolist() == ["nan", "nan"]
    assert read.frame["both_gaps"].map(repr).tolist() == ["None", "nan"]
    assert read.frame["mappings"].tolist() == [{"a": 1}, {"b": [None, 2]}]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, min_size=1, max_size=3)
    ),
)
TEXTS = st.none() | st.text(st.characters(exclude_categories=()))


@examples(40)
@example([[None], [{"": 0}]])
@example([[{"": None, "0": None}]])
@given(st.one_of(st.lists(kind, max_size=5) for kind in (PLAIN, TEXTS, st.dates())))
def test_whatever_a_function_returns_comes_back(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any]
) -> None:
    """Of text, numbers, dates, lists and mappings: the same values of the same types."""
    answers = [{"answer": value} for value in values]
    run = pd.Series(range(len(values)), name="n").llm.parallel_map(lambda n: answers[n])
    path = tmp_path_factory.mktemp("saved") / "run.parquet"
    run.to_parquet(path)
    read = ParallelResult.read_parquet(path)
    for name in run.outputs:
        found, wanted = read.completions[name], run.completions[name]
        assert found.dtype == wanted.dtype
        assert list(map(repr, as_python(found))) == list(map(repr, as_python(wanted)))


def as_python(column: pd.Series) -> list[Any]:
    """The values as Python's own: pandas makes floats of whole numbers in mappings beside None."""
    if isinstance(column.dtype, pd.ArrowDtype):
        return pa.array(column).to_pylist()
    return column.tolist()


# -- what the file is to others -------------------------------------------------------------------


def test_plain_pandas_reads_it(tmp_path: Path) -> None:
    run = typed()
    run.to_parquet(tmp_path / "run.parquet")
    frame = pd.read_parquet(tmp_path / "run.parquet")
    assert list(frame.columns[: run.frame.shape[1]]) == list(run.frame.columns)
    same = ["question", "llm_label", "llm_grade", "llm_count", "llm_share", "llm_sure", "error"]
    assert_frame_equal(frame[same], run.frame[same])
    assert frame["revkit.status"].tolist() == run.rows["status"].tolist()
    assert frame["revkit.worker"].tolist() == run.rows["worker"].tolist()
    assert frame["revkit.prompt_tokens"].dtype == "Int64"
    assert [len(attempts) for attempts in frame["revkit.attempts"]] == [1, 1, 1, 2, 1, 1]
    last = frame["revkit.attempts"][3][1]
    assert (last["outcome"], last["text"], last["start_s"]) == ("failed", "nothing", 2.0)
    kept = json.loads(pq.read_schema(tmp_path / "run.parquet").metadata[b"revkit"])
    assert kept["provenance"] == run.provenance


def test_provenance_says_what_the_run_was_made_of(tmp_path: Path) -> None:
    with serve(json.dumps({"answer": "yes"})) as server:
        run = questions(3).llm.parallel_map(
            ANSWER,
            model=revkit.Ollama("m", host=server.url, temperature=0.5, options={"top_p": 0.9}),
            max_workers=2, retry=Retry(attempts=5, max_pause=math.inf), timeout=60,
            rate_limit=RateLimit(requests_per_minute=6000), max_failures=0.5,
            store=tmp_path / "replies.sqlite",
        )  # fmt: skip
    told = run.provenance
    assert told == json.loads(json.dumps(told, allow_nan=False))
    assert told["run_id"] == run._record.run_id
    started = datetime.datetime.fromisoformat(told["started_at"])
    assert started.utcoffset() == datetime.timedelta(0)
    assert told["task"]["kind"] == "signature"
    assert told["task"]["outputs"]["properties"] == {"answer": {"type": "string"}}
    assert run.task is not None
    assert told["task"]["fingerprint"] == run.task.fingerprint
    assert told["model"]["name"] == "ollama:m"
    assert told["model"]["settings"]["options"] == {"temperature": 0.5, "top_p": 0.9}
    assert told["options"]["on"] == {"question": "question"}
    assert told["options"]["retry"]["attempts"] == 5
    assert told["options"]["retry"]["max_pause"] == "inf"
    assert told["options"]["rate_limit"]["requests_per_minute"] == 6000
    assert (told["options"]["max_failures"], told["options"]["timeout_s"]) == (1, 60.0)
    assert (told["options"]["max_workers"], told["options"]["workers"]) == (2, 2)
    assert told["options"]["store"] == str(tmp_path / "replies.sqlite")
    assert told["versions"]["revkit"] == revkit.__version__
    assert told["versions"]["pandas"] == pd.__version__


def test_provenance_of_templates_and_functions() -> None:
    template = plain().provenance["task"]
    assert (template["kind"], template["template"]) == ("template", "Say: {question}")
    assert list(template["outputs"]["properties"]) == ["response"]
    function = callable_rows().provenance
    assert function["task"]["name"] == f"{__name__}.callable_rows.<locals>.check"
    assert function["model"] is None
    assert adaptive().provenance["options"]["max_workers"] == {"minimum": 2, "maximum": 16}


def test_the_digest_of_the_weights_is_told_where_it_was_asked_for(tmp_path: Path) -> None:
    model = fake(lambda _: {"answer": "yes"})
    model.facts = lambda: {"weights": "sha256:1234"}  # type: ignore[method-assign]
    run = questions(2).llm.parallel_map(ANSWER, model=model, store=tmp_path / "replies.sqlite")
    assert again(run, tmp_path).provenance["model"]["weights"] == "sha256:1234"


# -- what is refused ------------------------------------------------------------------------------


def square(df: pd.DataFrame) -> ParallelResult:
    run: ParallelResult = df.llm.parallel_map(lambda row: 1, on=df.columns[0])
    return run


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame[::-1],
        lambda frame: frame[::-1].reset_index(drop=True),
        lambda frame: frame[1:],
        lambda frame: frame.drop(columns="answer"),
        lambda frame: frame.assign(answer="other"),
    ],
)
def test_a_frame_that_is_no_longer_the_runs(
    change: Callable[[pd.DataFrame], pd.DataFrame], tmp_path: Path
) -> None:
    df = questions(3)
    run = df.llm.parallel_map(lambda row: row["question"], output="answer")
    run.frame = change(run.frame)
    with pytest.raises(UsageError, match=r"run\.frame = df"):
        run.to_parquet(tmp_path / "run.parquet")
    assert list(tmp_path.iterdir()) == []
    run.frame = df
    assert_same(again(run, tmp_path), run)


def test_columns_of_the_users_own_may_be_added(tmp_path: Path) -> None:
    run = square(questions(3))
    run.frame["checked"] = [True, False, True]
    assert_same(again(run, tmp_path), run)


@pytest.mark.parametrize(
    ("df", "told"),
    [
        (pd.DataFrame({0: ["a"]}), r"0 has a name that is no text.*columns\.map\(str\)"),
        (questions(1, **{"revkit.status": 1}), r'"revkit\.status".*rename'),
        (questions(1).rename_axis(index="revkit.attempts"), r'"revkit\.attempts"'),
        (
            pd.DataFrame([["a", 1, 2]], columns=["question", "b", "b"]),
            'several columns "b"; rename',
        ),
        (questions(1, odd=[object()]), r'the column "odd".*run\.frame\["odd"\]\.map\(str\)'),
        (questions(1, odd=[1j]), r'the column "odd"'),
        (questions(2).set_axis(pd.Index(["a", 1])), "the frame's index"),
    ],
)
def test_a_frame_that_parquet_cannot_hold(df: pd.DataFrame, told: str, tmp_path: Path) -> None:
    run = square(df)
    with pytest.raises(UsageError, match=told):
        run.to_parquet(tmp_path / "run.parquet")
    assert list(tmp_path.iterdir()) == []


def test_the_ways_out_that_are_named_lead_out(tmp_path: Path) -> None:
    run = square(pd.DataFrame({0: ["a"], "odd": [object()]}))
    run.frame.columns = run.frame.columns.map(str)
    run.frame["odd"] = run.frame["odd"].map(str)
    assert_same(again(run, tmp_path), run)


def test_an_output_that_parquet_cannot_hold_can_be_saved_as_text(tmp_path: Path) -> None:
    run = questions(1).llm.parallel_map(lambda row: {"odd": object()})
    path = tmp_path / "run.parquet"
    with pytest.raises(UsageError, match="save the frame alone") as refused:
        run.to_parquet(path)
    _, _, way_out = str(refused.value).rpartition("as text: ")
    eval(way_out)  # what the message says is what helps
    assert pd.read_parquet(path)["odd"].str.startswith("<object").all()


def test_attrs_that_are_not_json(tmp_path: Path) -> None:
    df = questions(1)
    df.attrs["of"] = object()
    with pytest.raises(UsageError, match=r"attrs\['of'\] is not JSON"):
        square(df).to_parquet(tmp_path / "run.parquet")


def test_there_is_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make it first"):
        plain().to_parquet(tmp_path / "none" / "run.parquet")


def test_a_read_result_cannot_be_run_again(tmp_path: Path) -> None:
    run = missing_inputs()
    read = again(run, tmp_path)
    assert read.task is None
    with pytest.raises(UsageError, match="neither the function nor the model") as refused:
        read.retry_failed()
    with pytest.raises(UsageError, match="neither the function nor the model"):
        asyncio.run(read.aretry_failed())
    _, _, way_out = str(refused.value).partition("again: ")
    left = eval(way_out.partition(".llm.")[0], {"run": read})
    assert_frame_equal(left, run.frame[run.frame["error"].notna()])
    task = Signature("Answer.", inputs=["question", "other"], outputs={"answer": str})
    left.fillna({"question": "q", "other": 1.0}).llm.parallel_map(
        task, model=fake(lambda _: {"answer": "now"})
    )


# -- files that are not ours, or not whole --------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "run.parquet"
    retried().to_parquet(place)
    return place


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ParallelResult.read_parquet(tmp_path / "none.parquet")


@pytest.mark.parametrize("data", [b"", b"question,answer\n1,2\n", b"PK\x03\x04" * 99])
def test_not_a_parquet_file(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"run\.parquet is not a Parquet file"):
        ParallelResult.read_parquet(path)


def test_a_parquet_file_of_somebody_else(path: Path) -> None:
    questions().to_parquet(path)
    with pytest.raises(UsageError, match=r"not a result .* pandas\.read_parquet reads it"):
        ParallelResult.read_parquet(path)


@pytest.mark.parametrize("left", [0.01, 0.5, 0.99])
def test_a_file_that_is_cut_short(left: float, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(UsageError, match="is cut short or damaged"):
        ParallelResult.read_parquet(path)


def told(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pq.read_schema(path).metadata[b"revkit"])
    return found


def tell(path: Path, kept: Any) -> None:
    table = pq.read_table(path)
    metadata = table.schema.metadata | {b"revkit": json.dumps(kept).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_a_newer_format(path: Path) -> None:
    tell(path, {"format": 99})
    with pytest.raises(UsageError, match=r"written by a newer revkit \(format 99.*update revkit"):
        ParallelResult.read_parquet(path)


@pytest.mark.parametrize("key", ["provenance", "run", "price", "outputs", "inputs", "frame"])
@pytest.mark.parametrize("value", [None, "x", 1, [[1, 2]]])
def test_metadata_that_is_damaged(key: str, value: Any, path: Path) -> None:
    kept = told(path)
    kept.pop(key)
    if value is not None:
        kept[key] = value
    tell(path, kept)
    with pytest.raises(UsageError, match=r"is damaged"):
        ParallelResult.read_parquet(path)


def test_a_failed_row_without_its_error(path: Path) -> None:
    all_failed().to_parquet(path)
    table = pq.read_table(path)
    place = table.column_names.index("revkit.error_type")
    gone = pa.nulls(table.num_rows, pa.string())
    pq.write_table(table.set_column(place, "revkit.error_type", gone), path)
    with pytest.raises(UsageError, match=r"is damaged.*failed without an error"):
        ParallelResult.read_parquet(path)


def test_a_flipped_bit_in_the_data_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    group = pq.read_metadata(path).row_group(0)
    for column in map(group.column, range(group.num_columns)):
        begin = column.dictionary_page_offset or column.data_page_offset
        changed = bytearray(data)
        changed[begin + column.total_compressed_size - 1] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(UsageError, match="damaged"):
            ParallelResult.read_parquet(path)


def test_a_write_that_breaks_off_leaves_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def broken(table: pa.Table, where: Any, **_: Any) -> None:
        Path(where).write_bytes(b"PAR1 half")
        raise OSError("no space left on the device")

    monkeypatch.setattr(pq, "write_table", broken)
    with pytest.raises(OSError, match="no space"):
        plain().to_parquet(os.fspath(path))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
