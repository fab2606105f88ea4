"""``repeat=n``: each row run so often, and one value made of its samples."""

from __future__ import annotations

import asyncio
import enum
import statistics
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import serve

import revkit
from revkit import ColumnExists, Field, ModelError, RowResult, RunFailed, Signature, UsageError
from revkit.record.samples import vote
from revkit.testing import FakeModel

MOOD = Signature("Judge.", inputs="review", outputs={"mood": ["good", "bad", "mixed"]})


class Keeping(FakeModel):
    """Its replies are kept in the store."""

    keeps_replies = True


def reviews(*texts: Any) -> pd.DataFrame:
    return pd.DataFrame({"review": texts}, index=[7] * len(texts))


def moods(*said: Any) -> FakeModel:
    return FakeModel([{"mood": x} if isinstance(x, str) else x for x in said])


def repeated(df: pd.DataFrame, model: Any, **options: Any) -> Any:
    return df.llm.parallel_map(MOOD, model=model, max_workers=1, **options)


def test_the_majority_its_agreement_and_ties() -> None:
    df = reviews("a", "b")
    fake = moods("bad", "good", "bad", "good", "mixed", "mixed", "good", "bad")
    run = repeated(df, fake, repeat=4)
    assert df.columns.tolist() == ["review", "mood", "mood_agreement", "mood_tied", "error"]
    assert df["mood"].tolist() == ["good", "mixed"]  # of a tie what was declared first
    assert df["mood"].dtype == pd.CategoricalDtype(["good", "bad", "mixed"])
    assert df["mood_agreement"].tolist() == [0.5, 0.5]
    assert df["mood_agreement"].dtype == "Float64"
    assert df["mood_tied"].tolist() == [True, False]
    assert df["mood_tied"].dtype == "boolean"
    assert df["error"].isna().all()
    rows = run.rows
    assert rows["row"].tolist() == [0] * 4 + [1] * 4
    assert rows["sample"].tolist() == [0, 1, 2, 3] * 2
    assert rows.index.tolist() == [7] * 8
    assert rows["mood"].tolist() == ["bad", "good", "bad", "good", "mixed", "mixed", "good", "bad"]
    assert (
        run.attempts[["row", "sample"]].to_numpy().tolist()
        == rows[["row", "sample"]].to_numpy().tolist()
    )
    assert repr(run).startswith("ParallelResult: 2 rows x 4 samples, 8 ok")
    assert run.repeat == run.metrics.samples == 4
    assert run.summary()["count"].to_dict() == {"good": 1, "bad": 0, "mixed": 1}
    assert run.completions.columns.tolist() == ["mood", "mood_agreement", "mood_tied"]
    assert run.completions.iloc[0].tolist() == ["good", 0.5, True]
    assert run.latency_by("mood")["count"].tolist() == [3, 3, 2]
    assert run.plot_timeline().get_title("left") == "2 rows x 4 samples on 1 worker"
    assert run.evaluate(["good", "good"]).accuracy == 0.5


def test_mappings_agree_in_whatever_order_their_keys_come() -> None:
    answers = iter([{"who": {"a": 1, "b": [2]}}, {"who": {"b": [2], "a": 1}}, {"who": {"a": 9}}])
    df = pd.DataFrame({"n": [1]})
    run = df.llm.parallel_map(lambda row: next(answers), repeat=3, max_workers=1)
    assert run.frame["who"].tolist() == [{"a": 1, "b": [2]}]
    assert run.frame["who_agreement"].tolist() == pytest.approx([2 / 3])
    assert run.frame["who_tied"].tolist() == [False]


def test_a_sample_that_fails_agrees_with_none_and_one_good_one_is_enough() -> None:
    df = reviews("a", "b", None)
    no = ModelError("no")
    run = repeated(df, moods(no, "bad", "bad", no, no, no), repeat=3)
    assert df["mood"].tolist()[0] == "bad"
    assert df["mood_agreement"].tolist()[0] == pytest.approx(2 / 3)
    assert df.iloc[1:][["mood", "mood_agreement", "mood_tied"]].isna().all(axis=None)
    assert pd.isna(df["error"].tolist()[0])
    assert df["error"].tolist()[1:] == [
        "ModelError: no",
        'MissingInput: the input "review" is missing (NA); nothing was sent',
    ]
    assert (run.metrics.total, run.metrics.succeeded, run.metrics.failed) == (9, 2, 7)
    assert run.errors["row"].tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert run.errors["sample"].tolist() == [0, 0, 1, 2, 0, 1, 2]
    assert run.errors["item"].tolist()[1] == {"review": "b"}
    assert len(run.completions) == 1


def test_what_failed_is_sampled_again() -> None:
    no = ModelError("no")
    fake = moods(no, "bad", no, no, "good", "bad", "bad", "good")
    df = reviews("a", "b")
    again = repeated(df, fake, repeat=2).retry_failed()
    # samples 0 of "a", and both of "b"
    assert again.rows["mood"].tolist() == ["good", "bad", "bad", "bad"]
    assert df["mood"].tolist() == ["good", "bad"]
    assert df["mood_tied"].tolist() == [True, False]
    assert again.metrics.succeeded == 4


class Size(enum.Enum):
    SMALL = 1
    LARGE = 2


def test_each_type_of_output() -> None:
    task = Signature(
        "Rate.",
        inputs="review",
        outputs={
            "stars": int,
            "price": Field(float | None),
            "fair": bool,
            "word": str,
            "size": Size,
            "tags": list[str],
            "kind": Literal["x", "y"],
        },
    )
    one = {"stars": 1, "price": None, "fair": True, "word": "w", "size": 2, "tags": ["t"],
           "kind": "y"}  # fmt: skip
    two = {"stars": 2, "price": 3.0, "fair": False, "word": "v", "size": 1, "tags": ["t"],
           "kind": "x"}  # fmt: skip
    df = reviews("a")
    df.llm.parallel_map(task, model=FakeModel([one, two]), repeat=2, max_workers=1)
    assert df["stars"].dtype == df["price"].dtype == "Float64"
    assert df["stars"].tolist() == [1.5]  # the median
    assert df["price"].tolist() == [3.0]
    assert "stars_agreement" not in df.columns
    # of a tie the label that was declared first, of other values the one that came first
    first = df.iloc[0]
    assert first[["fair", "word", "size", "kind"]].tolist() == [True, "w", 1, "x"]
    assert first[[f"{x}_tied" for x in ("fair", "word", "size", "kind", "tags")]].tolist() == [
        *[True] * 4,
        False,
    ]
    assert list(first["tags"]) == ["t"]
    assert first["tags_agreement"] == 1.0


def test_functions() -> None:
    said = iter([3, 1, 2, 2])
    run = revkit.parallel_map(["a", "b"], lambda text: next(said), repeat=2, max_workers=1)
    assert run.frame["response"].tolist() == [2.0, 2.0]
    assert run.frame.columns.tolist() == ["item", "response", "error"]
    said = iter([{"x": "p", "n": 1}, {"x": "q", "n": 2}])  # type: ignore[assignment]
    run = revkit.parallel_map(["a"], lambda text: next(said), repeat=2, max_workers=1)
    assert run.frame.columns.tolist() == ["item", "x", "x_agreement", "x_tied", "n", "error"]
    assert run.frame.iloc[0].tolist()[:5] == ["a", "p", 0.5, True, 1.5]
    own = iter([{"x": "p", "x_tied": "mine"}] * 2)
    run = revkit.parallel_map(["a"], lambda text: next(own), repeat=2, max_workers=1)
    assert run.frame["x_tied"].tolist() == ["mine"]


def test_a_function_is_told_which_sample_it_makes() -> None:
    def task(item: str, context: revkit.Context) -> Any:
        return {"told": f"{item}{context.row}{context.sample}"}

    run = revkit.parallel_map(["a", "b"], task, repeat=2)
    assert run.rows["told"].tolist() == ["a00", "a01", "b10", "b11"]


def test_each_sample_has_its_own_place_in_the_store(tmp_path: Path) -> None:
    store, df = tmp_path / "replies.sqlite", reviews("a", "a", "b")

    def model(*said: str) -> Keeping:
        return Keeping([{"mood": x} for x in said])

    # The second "a" is a draw of its own, and so are its samples.
    said = ["good", "bad", "bad", "good", "good", "bad", "mixed", "mixed", "mixed"]
    run = repeated(df, model(*said), repeat=3, store=store)
    assert run.rows["source"].tolist() == ["model"] * 9
    assert df["mood"].tolist() == ["bad", "good", "mixed"]
    none = model()
    assert repeated(df, none, repeat=3, store=store).metrics.from_store == 9
    assert repeated(df, none, store=store).frame["mood"].tolist() == ["good", "good", "mixed"]
    assert none.calls == []
    more = model("bad", "good", "good")
    assert repeated(df, more, repeat=4, store=store).metrics.from_store == 9
    assert len(more.calls) == 3
    preview = df.llm.preview(MOOD, n=1, send=False, model=model(), repeat=5, store=store)
    assert (preview.rows.total, preview.rows.from_store, preview.rows.to_ask) == (15, 12, 3)
    assert preview.prompts["row"].unique().tolist() == [1]


def test_limits_and_progress_count_samples() -> None:
    told: list[tuple[int, int, RowResult]] = []
    df, no = reviews("a", "b", "c"), ModelError("no")
    with pytest.raises(RunFailed, match="of 6 samples 2 are done, 2 failed and 2") as failed:
        repeated(
            df,
            moods("good", no, "bad", no),
            repeat=2,
            max_failures=1,
            progress=lambda *row: told.append(row),
        )
    assert [(row.row, row.sample, row.ok) for _, _, row in told] == [
        (0, 0, True),
        (0, 1, False),
        (1, 0, True),
        (1, 1, False),
    ]
    assert {total for _, total, _ in told} == {6}
    assert "The first was row 0, sample 1: ModelError: no" in str(failed.value)
    assert df["mood"].tolist()[:2] == ["good", "bad"]
    assert df["error"].tolist()[2].startswith("NotStarted: ")
    assert failed.value.result.rows["status"].tolist()[4:] == ["not_started"] * 2


def test_events_tell_the_sample() -> None:
    heard: list[revkit.Event] = []

    class Ear:
        def on_event(self, event: revkit.Event) -> None:
            heard.append(event)

    repeated(reviews("a", "b"), moods(*["good"] * 4), repeat=2, observer=Ear())
    settled = [event.data for event in heard if event.type == "row.settled"]
    assert [(data["item_index"], data["sample"]) for data in settled] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    start = heard[0].data
    assert (start["item_count"], start["samples"]) == (4, 2)


def test_a_trace_tells_the_sample(tmp_path: Path) -> None:
    run = repeated(reviews("a"), moods("good", "bad"), repeat=2)
    text = run.to_trace(tmp_path / "run.json").read_text()
    assert '"row 0, sample 1"' in text


def test_runs_with_samples_are_compared_by_row() -> None:
    df = reviews("a", "b")
    once = repeated(df, moods("good", "bad"), inplace=False)
    often = repeated(df, moods("good", "good", "good", "good"), repeat=2, inplace=False)
    compared = once.compare(often)
    assert (compared.rows, compared.ok_in_both) == (2, 2)
    assert compared.agreement["agreed"].to_dict() == {"mood": 1}
    assert compared.changed["item"].tolist() == [{"review": "b"}]
    assert often.compare(once).changed["item"].tolist() == [{"review": "b"}]


def test_an_awaited_run_and_an_empty_one() -> None:
    async def main() -> Any:
        return await reviews("a").llm.aparallel_map(
            MOOD, model=moods("bad", "bad", "good"), repeat=3, max_workers=1
        )

    assert asyncio.run(main()).frame["mood"].tolist() == ["bad"]
    empty = reviews()
    repeated(empty, moods(), repeat=3)
    assert empty.columns.tolist() == ["review", "mood", "mood_agreement", "mood_tied", "error"]
    assert empty["mood_agreement"].dtype == "Float64"


def test_columns_of_the_users_own_are_safe() -> None:
    df = reviews("a").assign(mood_agreement=0)
    with pytest.raises(ColumnExists, match='column "mood_agreement" is there already'):
        repeated(df, moods("good"), repeat=2)
    clash = Signature("Judge.", inputs="review", outputs={"x": bool, "x_tied": bool})
    with pytest.raises(UsageError, match='two outputs would be written to the column "x_tied"'):
        reviews("a").llm.parallel_map(clash, model=moods(), repeat=2)


@pytest.mark.parametrize("repeat", [0, -1, 1.5, True, "3", None])
def test_a_number_that_is_none_is_refused(repeat: Any) -> None:
    with pytest.raises(UsageError, match="give how often each row is run"):
        repeated(reviews("a"), moods("good"), repeat=repeat)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(0, 4))
def test_vote(said: list[str], failed: int) -> None:
    """Against ``statistics``: of several modes, multimode gives them in order of first use."""
    samples = len(said) + failed
    value, agreement, tied = vote(said, samples)
    modes = statistics.multimode(said)
    assert value == modes[0]
    assert tied == (len(modes) > 1)
    assert agreement == Counter(said)[value] / samples
    assert vote(said, samples, labels="cba").value == max(modes)


def test_true_is_not_one() -> None:
    assert vote([1, True, True], 3).value is True
    assert vote([[1], [2], [2]], 3).value == [2]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "its temperature is 0"),
        ({"temperature": 0.7, "seed": 3}, "its seed is always 3"),
        ({"temperature": 0.7}, None),
        ({"temperature": None}, None),
    ],
)
def test_a_model_that_repeats_itself_is_told_of(
    options: dict[str, Any], why: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    def answer(messages: Any, body: Any) -> str:
        return '{"mood": "good"}'

    with serve(answer) as server:
        for model in (
            revkit.Ollama("m", host=server.url, **options),
            revkit.OpenAICompatible("m", base_url=server.url + "/v1", api_key="k", **options),
        ):
            recwarn.clear()
            revkit.parallel_map(["a"], MOOD, model=model, repeat=2)
            told = [str(warning.message) for warning in recwarn.list]
            if why is None:
                assert told == []
                continue
            assert len(told) == 1
            assert why in told[0]
            assert recwarn.list[0].filename == __file__
            recwarn.clear()
            revkit.parallel_map(["a"], MOOD, model=model)
            assert recwarn.list == []


def test_a_number_that_no_float_holds_loses_no_row() -> None:
    huge = 10**400
    run = revkit.parallel_map(range(3), lambda n: huge if n == 1 else n, repeat=2)
    assert run.frame["response"].tolist() == [0.0, huge, 2.0]
    ends = iter([float("inf"), float("-inf")])
    run = revkit.parallel_map([0], lambda n: next(ends), repeat=2, max_workers=1)
    assert run.frame["response"].tolist() == [float("-inf")]
    assert run.frame["error"].isna().all()


def test_what_was_said_of_other_samples_does_not_stay_beside_new_values() -> None:
    df = reviews("a")
    repeated(df, moods("good", "good"), repeat=2)
    repeated(df, moods("bad"))
    assert df.columns.tolist() == ["review", "mood", "error"]
    assert df["mood"].tolist() == ["bad"]
    assert list(df.attrs["revkit"]) == ["mood", "error"]
    mine = reviews("a").assign(mood_tied="mine")
    repeated(mine, moods("bad"))
    assert mine["mood_tied"].tolist() == ["mine"]
