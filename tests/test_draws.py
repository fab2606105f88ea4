"""Rows with one prompt share a reply where the model repeats itself; else each has its own."""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from calls import Run, awaited, by_loop, by_thread
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from servers import serve

import revkit
import revkit.dask
from revkit import Retry, RunFailed
from revkit.errors import AccessDenied, ModelError
from revkit.runtime.draws import PromptCounts
from revkit.testing import FakeModel

STORY = "Write a {genre} story"
ONCE = Retry(attempts=1)


class Writer(FakeModel):
    """Never writes the same story twice."""

    def __init__(self, *, faults: dict[int, Exception] | None = None, begin: int = 0):
        self.numbers = itertools.count(begin)
        self.faults = faults or {}
        super().__init__(self.write)

    def write(self, text: str) -> str:
        number = next(self.numbers)
        if number in self.faults:
            raise self.faults[number]
        return f"{text} {number}"

    def repeats_itself(self, task: Any) -> str | None:
        return None

    def __getstate__(self) -> dict[str, Any]:
        raise AssertionError("not sent to another process here")


def refused() -> Writer:
    """A writer that must not be asked."""
    return Writer(faults=dict.fromkeys(range(100), AssertionError("asked")))


def genres(*names: str) -> pd.DataFrame:
    return pd.DataFrame({"genre": list(names)})


def stories(run: Any) -> list[str]:
    return [str(x) for x in run.frame["response"]]


def write(df: pd.DataFrame, model: Any, store: Any, **options: Any) -> Any:
    options = {"store": store, "retry": ONCE, "overwrite": True, **options}
    return df.llm.parallel_map(STORY, model=model, inplace=False, **options)


# ------------------------------------------------------------------ one call


@pytest.mark.parametrize("run_on", [by_thread, by_loop, awaited])
def test_each_row_has_its_own_story_and_the_next_run_finds_it(run_on: Run, tmp_path: Path) -> None:
    store, df = tmp_path / "s.sqlite", genres(*["crime"] * 5, "love")
    run = run_on(df, STORY, model=Writer(), store=store)
    assert run.rows["source"].tolist() == ["model"] * 6
    assert len(set(stories(run))) == 6
    again = run_on(df, STORY, model=refused(), store=store)
    assert again.rows["source"].tolist() == ["store"] * 6
    assert stories(again) == stories(run)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, 1),
        ({"temperature": 0.0}, 1),
        ({"temperature": 1.0}, 3),
        ({"temperature": None}, 3),
        ({"temperature": 1.0, "seed": 7}, 1),
    ],
)
def test_what_the_client_is_configured_to_do_decides(
    options: dict[str, Any], asked: int, tmp_path: Path
) -> None:
    with serve("a story") as server:
        for number, client in enumerate(
            (
                revkit.Ollama("m", host=server.url, **options),
                revkit.OpenAICompatible("m", base_url=f"{server.url}/v1", **options),
            )
        ):
            before = len(server.chats)
            write(genres("crime", "crime", "crime"), client, tmp_path / f"{number}.sqlite")
            assert len(server.chats) - before == asked


@pytest.mark.parametrize("field", [{"temperature": 1.0}, {"temperature": 1.0, "seed": 3}])
def test_extra_body_is_a_part_of_the_configuration(field: dict[str, Any], tmp_path: Path) -> None:
    with serve("a story") as server:
        client = revkit.OpenAICompatible("m", base_url=f"{server.url}/v1", extra_body=field)
        write(genres("crime", "crime"), client, tmp_path / "s.sqlite")
        assert len(server.chats) == (1 if "seed" in field else 2)


def test_a_fake_model_says_whether_it_repeats_itself(tmp_path: Path) -> None:
    rule, answers = FakeModel(lambda text: "a story"), FakeModel(["one", "two"])
    assert write(genres("x", "x"), rule, tmp_path / "a.sqlite").metrics.duplicates == 1
    assert stories(write(genres("x", "x"), answers, tmp_path / "b.sqlite")) == ["one", "two"]


def test_samples_of_a_draw_are_its_own(tmp_path: Path) -> None:
    store, df = tmp_path / "s.sqlite", genres("crime", "crime")
    run = write(df, Writer(), store, repeat=3)
    assert run.metrics.attempts == 6
    assert run.rows["response"].nunique() == 6
    again = write(df, refused(), store, repeat=3)
    assert again.rows["response"].tolist() == run.rows["response"].tolist()
    first = [run.rows["response"].iloc[0], run.rows["response"].iloc[3]]
    assert stories(write(df, refused(), store)) == first


def test_what_is_kept_is_the_first_draw(tmp_path: Path) -> None:
    store = tmp_path / "s.sqlite"
    (one,) = stories(write(genres("crime"), Writer(), store))
    run = write(genres("crime", "crime"), Writer(begin=10), store)
    assert stories(run)[0] == one
    assert run.rows["source"].tolist() == ["store", "model"]


def test_a_retry_of_failed_rows_keeps_their_draws(tmp_path: Path) -> None:
    store, df = tmp_path / "s.sqlite", genres(*["crime"] * 6)
    faults: dict[int, Exception] = {1: ModelError("no"), 3: AccessDenied("stop", status=401)}
    with pytest.raises(RunFailed) as failed:
        write(df, Writer(faults=faults), store, max_workers=1)
    assert failed.value.result is not None
    run = failed.value.result.retry_failed()
    assert len(set(stories(run))) == 6
    assert stories(write(df, refused(), store)) == stories(run)


def test_a_preview_asks_for_the_draws_of_its_rows(tmp_path: Path) -> None:
    store, df = tmp_path / "s.sqlite", genres(*["crime"] * 9)
    model = Writer()
    look = df.llm.preview(STORY, n=3, model=model, store=store)
    assert (look.rows.from_store, look.rows.duplicates, look.rows.to_ask) == (3, 0, 6)
    assert look.answers is not None
    run = write(df, model, store)
    assert Counter(run.rows["source"]) == {"store": 3, "model": 6}
    kept = run.rows.index[run.rows["source"] == "store"]
    assert kept.tolist() == look.answers["row"].tolist()
    assert [stories(run)[row] for row in kept] == look.answers["response"].tolist()


def test_rows_without_an_input_have_no_draw(tmp_path: Path) -> None:
    store = tmp_path / "s.sqlite"
    df = pd.DataFrame({"genre": [None, "crime", None, "crime"]})
    run = write(df, Writer(), store)
    again = write(df.dropna(), refused(), store)
    assert stories(again) == [stories(run)[1], stories(run)[3]]


def test_steps_of_a_chain_are_calls_of_their_own(tmp_path: Path) -> None:
    store, df = tmp_path / "s.sqlite", genres("crime", "crime")
    steps = [
        revkit.Step(STORY, output="story"),
        revkit.Step("Title of a {genre} story", name="title"),
        revkit.Step(STORY, name="again", output="story", prefix="other_"),
    ]
    frame = revkit.chain(steps, model=Writer(), store=store).run(df).frame
    assert frame["other_story"].tolist() == frame["story"].tolist()  # the same call again
    assert frame["title"].nunique() == frame["story"].nunique() == 2


def test_counts_of_prompts() -> None:
    counts = PromptCounts()
    keys = [b"a" * 20, b"b" * 20, b"a" * 20, b"a" * 20, b"b" * 20]
    assert [counts.add(key) for key in keys] == [0, 0, 1, 2, 1]


# ------------------------------------------------------------------ however a call is divided

prompts = st.lists(st.sampled_from("abc"), min_size=1, max_size=12)


@st.composite
def divided(draw: st.DrawFn) -> tuple[list[str], list[int]]:
    """Prompts, and the sizes of the chunks that they are divided into."""
    rows = draw(prompts)
    cuts = sorted(draw(st.sets(st.integers(1, len(rows)), max_size=4)) | {len(rows)})
    return rows, [end - start for start, end in itertools.pairwise([0, *cuts])]


def frames(rows: Sequence[str], sizes: Sequence[int]) -> Iterator[pd.DataFrame]:
    start = 0
    for size in sizes:
        yield genres(*rows[start : start + size])
        start += size


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@examples(25)
@given(divided(), divided())
def test_chunks_have_the_draws_of_the_whole(
    one: tuple[list[str], list[int]], other: tuple[list[str], list[int]]
) -> None:
    (rows, sizes), (_, others) = one, other
    with folder() as place:
        store, model = place / "s.sqlite", Writer()
        options: dict[str, Any] = {"store": store, "retry": ONCE}
        chunks = revkit.map_chunks(list(frames(rows, sizes)), STORY, model=model, **options)
        told = [story for run in chunks for story in stories(run)]
        assert len(set(told)) == len(told) == len(rows)
        assert all(
            story.startswith(f"Write a {row} ") for story, row in zip(told, rows, strict=True)
        )
        assert stories(write(genres(*rows), refused(), store)) == told
        if sum(others) >= len(rows):
            chunks = revkit.map_chunks(
                [frame for frame in frames(rows, others) if len(frame)], STORY, model=refused(),
                **options,
            )  # fmt: skip
            assert [story for run in chunks for story in stories(run)] == told


@examples(25)
@given(prompts, st.sets(st.integers(0, 14), max_size=3), st.integers(1, 3), st.booleans())
def test_a_run_that_was_stopped_goes_on_with_its_draws(
    rows: list[str], stops: set[int], workers: int, retry: bool
) -> None:
    faults: dict[int, Exception] = {at: AccessDenied("stop", status=401) for at in stops}
    with folder() as place:
        store, df, model = place / "s.sqlite", genres(*rows), Writer(faults=faults)
        again, run = None, None
        while run is None:
            try:
                if again is not None and retry:
                    run = again.retry_failed()
                else:
                    run = write(df, model, store, max_workers=workers)
            except RunFailed as failed:
                again = failed.result
        assert len(set(stories(run))) == len(rows)
        assert stories(write(df, refused(), store)) == stories(run)
        assert len(model.calls) <= len(rows) + workers * len(stops)


@examples(15)
@given(prompts, st.integers(1, 5), st.sets(st.integers(0, 14), max_size=2))
def test_a_parquet_file_that_was_stopped_goes_on_with_its_draws(
    rows: list[str], chunk_rows: int, stops: set[int]
) -> None:
    faults: dict[int, Exception] = {at: AccessDenied("stop", status=401) for at in stops}
    with folder() as place:
        store, source, sink = place / "s.sqlite", place / "in.parquet", place / "out.parquet"
        genres(*rows).to_parquet(source)
        model = Writer(faults=faults)
        options: dict[str, Any] = {"store": store, "retry": ONCE, "max_workers": 1}
        done = None
        while done is None:
            with contextlib.suppress(RunFailed):
                done = revkit.map_parquet(
                    source, STORY, sink, model=model, chunk_rows=chunk_rows, **options
                )
        told = pd.read_parquet(sink)["response"].tolist()
        assert len(set(told)) == len(rows)
        assert stories(write(genres(*rows), refused(), store)) == told


# ------------------------------------------------------------------ partitions


def computed(df: pd.DataFrame, partitions: int, model: Any, store: Path, **options: Any) -> Any:
    frame = dd.from_pandas(df, npartitions=partitions, sort=False)
    with dask.config.set(scheduler="synchronous"):
        lazy = frame.llm.parallel_map(STORY, model=model, store=store, retry=ONCE, **options)
        return revkit.dask.collect(lazy)


@examples(10)
@given(prompts, st.integers(1, 3), st.integers(1, 2))
def test_partitions_have_draws_of_their_own_that_each_compute_finds(
    rows: list[str], partitions: int, samples: int
) -> None:
    with folder() as place:
        df = genres(*rows)
        run = computed(df, partitions, Writer(), place / "s", repeat=samples)
        told = run.rows["response"].tolist()
        assert len(set(told)) == len(told) == len(rows) * samples
        again = computed(df, partitions, refused(), place / "s", repeat=samples)
        assert again.rows["response"].tolist() == told


def test_a_retry_in_one_process_keeps_the_draws_of_partitions(tmp_path: Path) -> None:
    df, store = genres(*["crime"] * 6), tmp_path / "s"
    faults: dict[int, Exception] = dict.fromkeys((1, 4), ModelError("no"))
    run = computed(df, 2, Writer(faults=faults), store, max_workers=1)
    assert run.metrics.failed == 2
    whole = run.retry_failed()
    assert len(set(stories(whole))) == 6
    assert stories(computed(df, 2, refused(), store)) == stories(whole)


def test_the_first_partition_has_the_draws_of_a_plain_run(tmp_path: Path) -> None:
    df, store = genres("crime", "crime", "love", "crime"), tmp_path / "s"
    told = stories(computed(df, 1, Writer(), store))
    run = computed(df, 2, Writer(begin=10), store)
    assert run.rows["source"].tolist() == ["store", "store", "model", "model"]
    assert stories(run)[:2] == told[:2]


# ------------------------------------------------------------------ docs/store.md


def test_the_code_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "store.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```python\n(.*?)^```\n+```\n(.*?)^```", page, flags=re.M | re.S)
    numbers = itertools.count()

    class Novelist(Writer):
        def write(self, text: str) -> str:
            return f"a {text.split()[2]}, no. {next(numbers)}"

    names = {
        "pd": pd,
        "reviews": pd.DataFrame({"review": ["so good", "so bad", "well"]}),
        "model": FakeModel(lambda text: "positive"),
        "writer": Novelist(),
    }
    assert len(shown) == 2
    for code, output in shown:
        *statements, last = code.strip().splitlines()
        exec("\n".join(statements), names)
        assert str(eval(last, names)) == output.rstrip("\n")
