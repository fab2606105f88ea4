"""Files that revkit 0.1.0 wrote are read by this version, to the same values, and nothing is sent.

``kept/make.py`` has the calls that made them, and says what each file is.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from kept import make

import revkit
import revkit.dask
from revkit import ParallelResult

KEPT = Path(make.__file__).parent
GOOD = {"mood": "good", "urgent": False, "words": ["Great!"]}
BROKE = {"mood": "bad", "urgent": True, "words": ["Broke", "twice."]}
NONE = {"mood": None, "urgent": None, "words": None}


def bad(*words: str) -> dict[str, Any]:
    return {"mood": "bad", "urgent": False, "words": list(words)}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy, as users have it: their files can be written."""
    copy = tmp_path / "kept"
    shutil.copytree(KEPT, copy)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    os.utime(copy / "source.parquet", ns=(make.SOURCE_TIME_NS, make.SOURCE_TIME_NS))
    return copy


def records(frame: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    """The rows as plain Python: None for NA, lists for arrays."""
    return [
        {name: plain(value) for name, value in zip(columns, row, strict=True)}
        for row in frame[list(columns)].astype(object).itertuples(index=False)
    ]


def plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if not isinstance(value, list) and pd.isna(value) else value


def values(frame: pd.DataFrame, column: str) -> list[Any]:
    return [one[column] for one in records(frame, column)]


# ------------------------------------------------------------------ a saved result


def test_a_saved_result(kept: Path) -> None:
    run = ParallelResult.read_parquet(kept / "result.parquet")
    wanted = [GOOD, BROKE, NONE, GOOD, bad("busy:", "hm"), NONE, bad("好", "😀"), BROKE, bad()]
    wanted.append(bad("known"))
    for frame in (run.frame, run.rows):
        assert frame.index.tolist() == [f"r{row}" for row in range(10)]
        assert frame.index.name == "id"
        assert records(frame, "mood", "urgent", "words") == wanted
    assert run.frame["mood"].cat.categories.tolist() == ["good", "bad", "mixed"]
    assert str(run.frame["urgent"].dtype) == "boolean"
    assert values(run.frame, "review") == values(make.REVIEWS, "review")
    assert values(run.frame, "city") == values(make.REVIEWS, "city")
    failed = {"r2": "MissingInput", "r5": "BadOutput"}
    errors = run.frame["error"].dropna()
    assert {row: text.partition(":")[0] for row, text in errors.items()} == failed
    assert dict(zip(run.errors["index"], run.errors["error_type"], strict=True)) == failed
    assert values(run.errors, "attempts") == [0, 2]
    assert run.completions.index.tolist() == [f"r{row}" for row in (0, 1, 3, 4, 6, 7, 8, 9)]

    model, twice = "model", "duplicate"
    assert values(run.rows, "source") == [
        *(model, model, "none", twice, model, model, model, twice, model, "store")
    ]
    assert values(run.rows, "status") == [
        "error" if row in (2, 5) else "ok" for row in range(10)
    ]  # fmt: skip
    assert values(run.rows, "attempts") == [1, 1, 0, 0, 2, 2, 1, 0, 1, 0]
    assert values(run.rows, "prompt_tokens") == [57, 58, None, None, 58, 20, 60, None, 56, None]
    assert values(run.rows, "worker") == [0, 1, None, None, 0, 1, 0, None, 1, None]
    assert values(run.rows, "text")[5] == "sorry"
    assert json.loads(values(run.rows, "text")[9]) == bad("known")
    starts = [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert values(run.attempts, "start_s") == pytest.approx(starts, abs=0.1)
    assert sorted(values(run.attempts, "outcome")) == ["failed"] + ["ok"] * 5 + ["retried"] * 2

    metrics = run.metrics
    assert (metrics.total, metrics.succeeded, metrics.failed) == (10, 8, 2)
    assert (metrics.from_store, metrics.duplicates) == (1, 2)
    assert (metrics.attempts, metrics.retries, metrics.workers) == (8, 2, 2)
    assert (metrics.wall_s, metrics.mean_concurrency) == (4.0, 2.0)
    assert (run.usage.prompt_tokens, run.usage.completion_tokens) == (309, 7)
    assert run.latency.tolist() == [1000.0] * 7
    assert run.summary("mood")["count"].to_dict() == {"good": 2, "bad": 6, "mixed": 0}
    assert run.provenance["versions"]["revkit"] == "0.1.0"
    assert run.provenance["task"]["instructions"] == "Judge the review."
    assert run.provenance["options"]["retry"]["attempts"] == 2
    assert run.model_name == "fake"
    assert run.stopped is None
    assert run.report()
    assert run._repr_html_()


def test_a_saved_result_with_three_samples_per_row(kept: Path) -> None:
    run = ParallelResult.read_parquet(kept / "repeat.parquet")
    tied = ["r1", "r7"]  # three samples, three moods
    frame = run.frame.drop("r2")
    assert len(run.frame) == 10
    assert values(run.frame.loc[["r2"]], "mood") == [None]
    assert values(frame, "mood") == ["good"] * 9
    shares = [1 / 3 if row in tied else 2 / 3 for row in frame.index]
    assert values(frame, "mood_agreement") == pytest.approx(shares)
    assert frame.index[frame["mood_tied"]].tolist() == tied
    assert frame.index[frame["urgent"]].tolist() == tied
    assert values(frame, "words_agreement") == [1.0] * 9
    assert values(frame, "words")[0] == ["Great!"]

    assert len(run.rows) == 30
    assert values(run.rows, "sample") == [0, 1, 2] * 10
    asked = run.rows.drop("r2")
    assert values(asked.drop(tied), "mood") == ["good", "bad", "good"] * 7
    assert values(asked.loc[tied], "mood") == ["good", "bad", "mixed"] * 2
    assert values(asked, "source") == ["model"] * 27
    metrics = run.metrics
    assert (metrics.total, metrics.succeeded, metrics.failed) == (30, 27, 3)
    assert (metrics.attempts, metrics.samples, metrics.wall_s) == (27, 3, 14.0)
    assert (run.usage.prompt_tokens, run.usage.completion_tokens) == (1557, 27)
    assert run.summary("mood")["count"].to_dict() == {"good": 9, "bad": 0, "mixed": 0}


# ------------------------------------------------------------------ both kinds of store


def found_frame(name: str) -> pd.DataFrame:
    """The rows whose replies are in the store.

    The client of all calls but one has a temperature: there the second row with a prompt is a draw
    of its own, for which revkit 0.1.0 kept no reply.
    """
    frame = make.stored_frame()
    return frame if name == "signature" else frame.drop_duplicates("review")


def check_found(name: str, run: ParallelResult) -> None:
    """Every reply of this call came from the store, and is the one that was stored."""
    assert set(run.rows["source"]) == {"store"}
    assert len(run.rows) == {"signature": 6, "samples": 8}.get(name, 4)
    assert run.store_problem is None
    assert run.metrics.attempts == 0
    assert run.frame["error"].isna().all()
    if name == "template":
        assert values(run.frame, "response") == [
            f"In short: Summarise for {city}: {review}".strip()
            for city, review in zip(run.frame["city"], run.frame["review"], strict=True)
        ]
    else:
        wanted = [GOOD, BROKE, GOOD, bad("好", "😀"), BROKE, bad()]
        if name != "signature":
            wanted = [wanted[row] for row in (0, 1, 3, 5)]
        assert records(run.frame, "mood", "urgent", "words") == wanted


@pytest.mark.parametrize("name", make.stored_calls())
def test_a_store_answers_the_same_calls(kept: Path, name: str) -> None:
    task, options = make.stored_calls()[name]
    run = found_frame(name).llm.parallel_map(task, store=kept / "replies.sqlite", **options)
    check_found(name, run)


def test_a_second_row_with_a_prompt_is_asked_where_the_model_has_a_temperature(kept: Path) -> None:
    task, options = make.stored_calls()["server"]
    store = kept / "replies.sqlite"
    run = make.stored_frame().llm.parallel_map(task, store=store, **options)
    wanted = ["store", "store", "model", "store", "model", "store"]
    assert values(run.rows, "source") == wanted
    assert run.errors["error_type"].tolist() == ["ConnectionFailed"] * 2


@pytest.mark.parametrize("name", make.stored_calls())
def test_a_shared_store_answers_the_same_calls(kept: Path, name: str) -> None:
    task, options = make.stored_calls()[name]
    # Draws are numbered by partition, and the replies were kept by a run of one.
    frame = dd.from_pandas(found_frame(name), npartitions=2 if name == "signature" else 1)
    with dask.config.set(scheduler="synchronous"):
        run = revkit.dask.collect(frame.llm.parallel_map(task, store=kept / "replies", **options))
    check_found(name, run)


def test_a_store_still_takes_new_replies(kept: Path) -> None:
    store = kept / "replies.sqlite"
    before = revkit.store.info(store)
    assert before.by_model == {"openai:qwen3": 12, "fake": 4}
    assert before.problem is None
    task, options = make.stored_calls(make.answer)["signature"]
    frame = pd.concat([make.stored_frame(), pd.DataFrame({"review": ["new"]}, index=["r10"])])
    run = frame.llm.parallel_map(task, store=store, **options)
    assert values(run.rows, "source") == ["store"] * 6 + ["model"]
    assert revkit.store.info(store).by_model == {"openai:qwen3": 12, "fake": 5}
    assert sorted(path.name for path in kept.glob("replies.sqlite*")) == ["replies.sqlite"]


def test_store_keys_do_not_change(tmp_path: Path) -> None:
    """A changed key would send every stored prompt again. The prompts show what has changed."""
    wanted = json.loads((KEPT / "keys.json").read_text(encoding="utf-8"))
    assert len(wanted) == 10
    made = make.golden_keys(tmp_path)
    assert {name: one["prompt"] for name, one in made.items()} == {
        name: one["prompt"] for name, one in wanted.items()
    }
    assert made == wanted


# ------------------------------------------------------------------ map_parquet


def test_a_finished_sink_is_not_made_again(kept: Path) -> None:
    task, options = make.sink_call(make.refuse)
    sink = kept / "finished.parquet"
    before = sink.read_bytes()
    done = revkit.map_parquet(kept / "source.parquet", task, sink, **options)
    assert options["model"].calls == []
    assert sink.read_bytes() == before
    assert (done.metrics.total, done.metrics.succeeded, done.metrics.failed) == (12, 11, 1)
    assert done.usage.total_tokens == 648
    assert values(done.errors, "row") == [6]
    check_sink(pd.read_parquet(sink), failed=[6])


def check_sink(found: pd.DataFrame, failed: list[int]) -> None:
    wanted = pd.read_parquet(KEPT / "source.parquet")
    pd.testing.assert_frame_equal(found[list(wanted)], wanted)
    assert [row for row, error in enumerate(found["error"].notna()) if error] == failed
    for row, made in enumerate(records(found, "mood", "urgent", "words")):
        review = wanted["review"].iloc[row]
        assert made == (NONE if row in failed else make.answer(review))
    assert found["mood"].cat.categories.tolist() == ["good", "bad", "mixed"]


def test_an_unfinished_sink_goes_on_after_its_last_chunk(kept: Path) -> None:
    asked: list[str] = []

    def rule(text: str) -> Any:
        asked.append(text)
        return make.answer(text)

    task, options = make.sink_call(rule)
    sink = kept / "sink.parquet"
    done = revkit.map_parquet(kept / "source.parquet", task, sink, **options)
    assert [text.split()[-1] for text in asked] == ["8", "9", "10", "11"]
    assert (done.metrics.total, done.metrics.succeeded, done.metrics.failed) == (12, 10, 2)
    assert values(done.errors, "row") == [5, 6]
    check_sink(pd.read_parquet(sink), failed=[5, 6])
    assert not sink.with_name("sink.parquet.parts").exists()


def test_an_unfinished_sink_of_a_function_goes_on(kept: Path) -> None:
    make.MEASURED.clear()
    task, options = make.function_call()
    sink = kept / "lengths.parquet"
    done = revkit.map_parquet(kept / "source.parquet", task, sink, **options)
    assert make.MEASURED == ["review 8", "review 9", "review 10", "review 11"]
    assert (done.metrics.total, done.metrics.succeeded) == (12, 11)
    lengths = [len(text) for text in make.source()["review"].dropna()]
    assert pd.read_parquet(sink)["length"].dropna().tolist() == lengths
