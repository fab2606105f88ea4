"""A task from one Parquet file into another: nothing half written, nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

import revkit
from revkit import UsageError, map_parquet
from revkit.testing import FakeModel

STRINGS = "str" if pd.__version__ >= "3" else "string"


def double(row: Any) -> int:
    return int(row["n"]) * 2


def odd_fails(row: Any) -> int:
    if row["n"] % 2:
        raise ValueError("odd")
    return int(row["n"])


#: How often ``square`` was called with which number, and with which it fails.
CALLS: Counter[int] = Counter()
BROKEN: set[int] = set()


def square(row: Any) -> int:
    CALLS[row["n"]] += 1
    if row["n"] in BROKEN:
        raise ValueError(f"not {row['n']}")
    return int(row["n"]) ** 2


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten rows in row groups of three, with an index of its own."""
    frame = pd.DataFrame(
        {
            "n": range(10),
            "kind": pd.Categorical(list("abcabcabca"), list("cbaz")),
            "when": pd.date_range("2026-01-01", periods=10, tz="Europe/Oslo"),
            "maybe": pd.array([1, None] * 5, dtype="Int64"),
            "parts": [["x"], [], None, ["y", "z"], ["x"]] * 2,
        },
        index=pd.Index([f"r{n}" for n in range(10)], name="id"),
    )
    path = tmp_path / "source.parquet"
    frame.to_parquet(path, row_group_size=3)
    return path


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "sink.parquet"
    yield path
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("rows", [1, 2, 4, 10, 100])
def test_the_sink_has_the_rows_of_the_source_and_the_outputs(
    source: Path, sink: Path, rows: int
) -> None:
    done = map_parquet(source, double, sink, output="twice", chunk_rows=rows)
    assert done.path == sink
    assert done.metrics.total == done.metrics.succeeded == 10
    assert done.metrics.runs == -(-10 // rows)
    before, after = pd.read_parquet(source), pd.read_parquet(sink)
    pd.testing.assert_frame_equal(after[before.columns], before)
    assert after["twice"].tolist() == [2 * n for n in range(10)]
    assert after["twice"].dtype == "Int64"
    assert after["error"].dtype == STRINGS
    assert after["error"].isna().all()
    assert not list(sink.parent.glob("*.parts"))
    assert repr(done) == "ParquetResult: 10 rows, 10 ok, in sink.parquet"


class Review(BaseModel):
    label: Literal["good", "bad"]
    stars: int
    share: float
    sure: bool
    words: list[str]
    more: dict[str, int]


def test_the_types_of_a_task_are_the_same_in_all_chunks(source: Path, sink: Path) -> None:
    def answer(text: str) -> Any:
        number = int(text)
        if number >= 6:
            raise ValueError("no")  # chunks without any value
        extra = {"a": number} if number % 2 else {}
        return {
            "label": "good",
            "stars": number,
            "share": 0.5,
            "sure": True,
            "words": ["w"] * number,
            "more": extra,
        }

    done = map_parquet(
        source,
        Review,
        sink,
        instructions="Judge.",
        on="n",
        model=FakeModel(answer),
        chunk_rows=2,
        retry=revkit.Retry(attempts=1),
    )
    assert done.metrics.failed == 4
    assert done.errors["row"].tolist() == [6, 7, 8, 9]
    assert done.errors["error_type"].unique().tolist() == ["ValueError"]
    assert "4 x ValueError" in repr(done)
    assert done.usage.total_tokens
    after = pd.read_parquet(sink)
    assert after["label"].cat.categories.tolist() == ["good", "bad"]
    assert after["label"].tolist()[:6] == ["good"] * 6
    assert after["label"].isna().sum() == 4
    dtypes = {name: str(after[name].dtype) for name in ("stars", "share", "sure")}
    assert dtypes == {"stars": "Int64", "share": "Float64", "sure": "boolean"}
    assert [list(words) for words in after["words"][:3]] == [[], ["w"], ["w", "w"]]
    assert json.loads(after["more"].iloc[1]) == {"a": 1}
    assert after["error"].str.startswith("ValueError").sum() == 4


def test_labels_that_are_numbers_stay_so(source: Path, sink: Path) -> None:
    task = revkit.Signature("Rate.", inputs="n", outputs={"stars": [3, 1, 2]})
    map_parquet(source, task, sink, model=FakeModel(lambda t: {"stars": 1}), chunk_rows=4)
    assert pd.read_parquet(sink)["stars"].tolist() == [1] * 10


def test_repeated_rows_are_combined_and_another_number_of_samples_is_another_run(
    source: Path, sink: Path
) -> None:
    task = revkit.Signature("Sort.", inputs="n", outputs={"label": ["a", "b"]})
    options: dict[str, Any] = {"model": FakeModel(["b"] * 30), "chunk_rows": 4}
    done = map_parquet(source, task, sink, repeat=3, **options)
    assert repr(done) == "ParquetResult: 10 rows x 3 samples, 30 ok, in sink.parquet"
    after = pd.read_parquet(sink)
    assert after["label"].tolist() == ["b"] * 10
    assert after["label_agreement"].tolist() == [1.0] * 10
    with pytest.raises(UsageError, match="another repeat="):
        map_parquet(source, task, sink, repeat=5, **options)


def test_a_function_gets_types_that_hold_the_values_of_all_chunks(source: Path, sink: Path) -> None:
    def outputs(row: Any) -> dict[str, Any]:
        n = int(row["n"])
        made: dict[str, Any] = {
            "number": n if n < 5 else n / 2,
            "late": None if n < 7 else True,
            "never": None,
            "mapping": {"n": n},
        }
        return made | ({"second": "here"} if n >= 5 else {})

    map_parquet(source, outputs, sink, chunk_rows=5)
    after = pd.read_parquet(sink)
    assert after["number"].dtype == "Float64"
    assert after["number"].tolist() == [0, 1, 2, 3, 4, 2.5, 3, 3.5, 4, 4.5]
    assert after["late"].dtype == "boolean"
    assert after["late"].isna().sum() == 7
    assert after["never"].isna().all()
    assert [json.loads(text)["n"] for text in after["mapping"]] == list(range(10))
    assert after["second"].tolist()[5:] == ["here"] * 5
    assert after["second"].isna().sum() == 5


def test_values_of_no_common_type_are_written_as_text_and_that_is_said(
    source: Path, sink: Path
) -> None:
    def mixed(row: Any) -> Any:
        return f"text {row['n']}" if row["n"] >= 5 else int(row["n"])

    with pytest.warns(UserWarning, match='output "mixed" are of different types') as told:
        map_parquet(source, mixed, sink, output="mixed", chunk_rows=5)
    assert told[0].filename == __file__
    assert pd.read_parquet(sink)["mixed"].tolist()[3:7] == ["3", "4", "text 5", "text 6"]


def test_a_file_of_no_rows_gets_its_columns(tmp_path: Path, sink: Path) -> None:
    pd.DataFrame({"n": pd.array([], "int64")}).to_parquet(tmp_path / "empty.parquet")
    done = map_parquet(tmp_path / "empty.parquet", double, sink, output="twice")
    assert done.metrics.total == 0
    assert list(pd.read_parquet(sink).columns) == ["n", "twice", "error"]


def test_files_without_pandas_metadata_and_directories_of_files(tmp_path: Path, sink: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3):
        part = pa.table({"n": pa.array(range(4 * number, 4 * number + 4), pa.int32())})
        pq.write_table(part, folder / f"{number}.parquet")
    map_parquet(folder, double, sink, output="twice", chunk_rows=3)
    after = pd.read_parquet(sink)
    assert after["n"].tolist() == list(range(12))
    assert after["twice"].tolist() == [2 * n for n in range(12)]
    assert after["n"].dtype == "int32"
    assert after["twice"].dtype == "Int64"
    pq.write_table(pa.table({"m": [1]}), folder / "3.parquet")
    with pytest.raises(UsageError, match="other columns"):
        map_parquet(folder, double, sink, output="twice")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output": "n"}, revkit.ColumnExists, "there already"),
        ({"on": "m"}, revkit.MissingColumn, "m"),
        ({"chunk_rows": 0}, UsageError, "chunk_rows"),
        ({"max_workers": 0}, UsageError, "max_workers"),
        ({"max_failures": -1}, UsageError, "max_failures"),
        ({"progress": "live"}, UsageError, "live"),
        ({"outptu": "x"}, TypeError, "map_parquet has no argument outptu="),
        ({"inplace": True}, TypeError, "inplace"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_and_nothing_is_written(
    source: Path, sink: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        map_parquet(source, double, sink, **options)
    assert [path.name for path in sink.parent.iterdir()] == ["source.parquet"]


def test_files_that_cannot_be_a_source_or_a_sink_are_refused(source: Path, sink: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        map_parquet(source.with_name("no.parquet"), double, sink)
    with pytest.raises(UsageError, match="is the source"):
        map_parquet(source, double, source)
    with pytest.raises(UsageError, match="there is no directory"):
        map_parquet(source, double, sink.parent / "no" / "sink.parquet")
    (sink.parent / "nothing").mkdir()
    with pytest.raises(UsageError, match="no file"):
        map_parquet(sink.parent / "nothing", double, sink)
    pd.DataFrame({"mine": [1]}).to_parquet(sink)
    with pytest.raises(UsageError, match="map_parquet did not make it"):
        map_parquet(source, double, sink)
    assert pd.read_parquet(sink)["mine"].tolist() == [1]
    assert map_parquet(source, double, sink, restart=True).metrics.total == 10


def test_a_finished_sink_is_not_made_again_and_another_tasks_is_refused(
    source: Path, sink: Path
) -> None:
    first = map_parquet(source, odd_fails, sink, output="even", chunk_rows=3)
    changed = sink.stat().st_mtime_ns
    again = map_parquet(source, odd_fails, sink, output="even", chunk_rows=5, max_workers=2)
    assert again.metrics == first.metrics
    assert sink.stat().st_mtime_ns == changed
    for task, options, what in (
        (double, {"output": "even"}, "another task"),
        (odd_fails, {"output": "odd"}, "another task"),
        (
            odd_fails,
            {"output": "even", "prefix": "x"},
            "another prefix=",
        ),
    ):
        with pytest.raises(UsageError, match=what):
            map_parquet(source, task, sink, **options)  # type: ignore[arg-type]
    pd.DataFrame({"n": [1]}).to_parquet(source)
    with pytest.raises(UsageError, match="another source"):
        map_parquet(source, odd_fails, sink, output="even")
    assert sink.stat().st_mtime_ns == changed


def test_the_same_task_on_its_own_sink_takes_the_place_of_its_columns(
    source: Path, sink: Path
) -> None:
    map_parquet(source, odd_fails, sink, output="even", chunk_rows=3)
    second = sink.with_name("second.parquet")
    map_parquet(sink, odd_fails, second, output="even", chunk_rows=4)
    assert list(pd.read_parquet(second).columns) == list(pd.read_parquet(sink).columns)
    with pytest.raises(revkit.ColumnExists):
        map_parquet(sink, double, second.with_name("third.parquet"), output="even")
    frame = pd.read_parquet(sink)  # and so it does in memory
    assert frame.llm.parallel_map(odd_fails, output="even").metrics.failed == 5


def test_a_stop_keeps_what_is_finished_and_the_same_call_goes_on(source: Path, sink: Path) -> None:
    calls = CALLS
    calls.clear()
    BROKEN.add(5)

    def run(**options: Any) -> revkit.ParquetResult:
        return map_parquet(source, square, sink, output="square", max_workers=1, **options)

    with pytest.raises(revkit.RunFailed, match="not 5") as stopped:
        run(chunk_rows=2, fail_fast=True)
    assert "4 rows are finished" in stopped.value.__notes__[0]
    assert not sink.exists()
    BROKEN.clear()
    told: list[tuple[int, int, int]] = []
    done = run(chunk_rows=5, progress=lambda c, t, row: told.append((c, t, row.row)))
    assert told == [(n + 1, 10, n) for n in range(4, 10)]
    assert calls == {n: 1 + (n in (4, 5)) for n in range(10)}
    assert done.metrics.total == 10
    assert done.metrics.runs == 4
    assert pd.read_parquet(sink)["square"].tolist() == [n * n for n in range(10)]


def test_failures_of_finished_chunks_count(source: Path, sink: Path) -> None:
    with pytest.raises(revkit.RunFailed, match=r"more than max_failures allows \(2\)"):
        map_parquet(source, odd_fails, sink, chunk_rows=2, max_failures=2, max_workers=1)
    with pytest.raises(UsageError, match="2 rows of the finished chunks"):
        map_parquet(source, odd_fails, sink, chunk_rows=2, max_failures=1)
    assert map_parquet(source, odd_fails, sink, max_failures=0.5).metrics.failed == 5


def test_where_no_row_is_ok_the_sink_says_so_and_the_run_raises(source: Path, sink: Path) -> None:
    def never(row: Any) -> int:
        raise ValueError("no")

    with pytest.raises(revkit.RunFailed, match="all 10 rows failed"):
        map_parquet(source, never, sink, chunk_rows=4)
    assert pd.read_parquet(sink)["error"].tolist() == ["ValueError: no"] * 10


def test_an_interrupt_keeps_what_is_finished(source: Path, sink: Path) -> None:
    def press(completed: int, total: int, row: revkit.RowResult) -> None:
        if completed == 6:
            raise KeyboardInterrupt

    with pytest.raises(revkit.Interrupted) as stopped:
        map_parquet(source, double, sink, output="twice", chunk_rows=4, progress=press)
    assert "4 rows are finished" in stopped.value.__notes__[0]
    assert map_parquet(source, double, sink, output="twice").metrics.runs == 2


def test_two_calls_at_once_do_not_write_the_same_sink(source: Path, sink: Path) -> None:
    pytest.importorskip("fcntl")

    def meddle(row: Any) -> str:
        if row["n"]:
            return "nothing"
        with pytest.raises(UsageError) as refused:
            map_parquet(source, meddle, sink, max_workers=1)
        return str(refused.value)

    map_parquet(source, meddle, sink, output="said", max_workers=1)
    said = pd.read_parquet(sink)["said"].iloc[0]
    assert "is being written by another process, or another call" in said


def test_what_was_begun_anew_and_stopped_is_gone_on_with(source: Path, sink: Path) -> None:
    map_parquet(source, double, sink, output="twice")
    old = sink.read_bytes()

    def run(**options: Any) -> revkit.ParquetResult:
        return map_parquet(
            source, square, sink, output="square", chunk_rows=2, max_workers=1, **options
        )

    CALLS.clear()
    BROKEN.add(5)
    with pytest.raises(revkit.RunFailed):
        run(restart=True, fail_fast=True)
    assert sink.read_bytes() == old  # replaced when the new one is whole
    with pytest.raises(UsageError, match="another task"):
        map_parquet(source, double, sink, output="twice")
    BROKEN.clear()
    assert run().metrics.total == 10
    assert [CALLS[n] for n in range(6)] == [1, 1, 1, 1, 2, 2]
    assert pd.read_parquet(sink)["square"].tolist() == [n * n for n in range(10)]
    left = sink.with_name("sink.parquet.parts.finished")  # by a kill while parts were removed
    left.mkdir()
    run()
    assert CALLS[0] == 1
    assert not left.exists()


def test_damaged_parts_are_made_again(source: Path, sink: Path) -> None:
    def run() -> revkit.ParquetResult:
        return map_parquet(
            source, square, sink, output="square", chunk_rows=2, fail_fast=True, max_workers=1
        )

    CALLS.clear()
    BROKEN.add(8)
    with pytest.raises(revkit.RunFailed):
        run()
    BROKEN.clear()
    parts = sorted(sink.with_name("sink.parquet.parts").glob("*.parquet"))
    assert len(parts) == 4
    parts[2].write_bytes(b"torn")
    (parts[0].parent / "x.123.part").write_bytes(b"left by a kill")
    assert run().metrics.runs == 5
    assert {n: 1 if n < 4 else 2 for n in range(10)} | {9: 1} == CALLS
    assert pd.read_parquet(sink)["square"].tolist() == [n * n for n in range(10)]


def test_a_function_that_is_made_of_something_else_is_another_task(
    source: Path, sink: Path
) -> None:
    def times(factor: int) -> Any:
        def product(row: Any) -> int:
            if row["n"] == 9 and factor == 2:
                raise ValueError("stop")
            return int(row["n"]) * factor

        return product

    with pytest.raises(revkit.RunFailed):
        map_parquet(source, times(2), sink, chunk_rows=3, fail_fast=True)
    with pytest.raises(UsageError, match="another task"):
        map_parquet(source, times(3), sink, chunk_rows=3)
    done = map_parquet(source, times(3), sink, output="product", chunk_rows=3, restart=True)
    assert done.metrics.runs == 4
    assert pd.read_parquet(sink)["product"].tolist() == [3 * n for n in range(10)]


KILLED = """
import os, signal, sys
from pathlib import Path
import revkit

def work(row):
    folder = Path(os.environ["CALLS"])
    with open(folder / str(row["n"]), "a") as file:
        file.write("x")
    if row["n"] == 7 and "KILL" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(row["n"]) * 10

if __name__ == "__main__":
    source, sink = sys.argv[1:]
    print(revkit.map_parquet(source, work, sink, output="ten", chunk_rows=3, max_workers=1))
"""


def test_a_killed_process_loses_the_chunk_at_hand_and_no_more(
    source: Path, sink: Path, tmp_path: Path
) -> None:
    script, calls = tmp_path / "work.py", tmp_path / "calls"
    script.write_text(KILLED)
    calls.mkdir()
    command = [sys.executable, str(script), str(source), str(sink)]
    environment = {**os.environ, "CALLS": str(calls)}
    killed = subprocess.run(command, env={**environment, "KILL": "1"}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not sink.exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.stdout == "ParquetResult: 10 rows, 10 ok, in sink.parquet\n", again.stderr
    made = {path.name: len(path.read_text()) for path in calls.iterdir()}
    assert made == {str(n): 2 if n in (6, 7) else 1 for n in range(10)}
    assert pd.read_parquet(sink)["ten"].tolist() == [10 * n for n in range(10)]


def test_a_chunk_that_was_lost_is_not_paid_for_again(source: Path, sink: Path) -> None:
    model = FakeModel(lambda text: "yes" if text != "7" or allowed else ValueError("no"))
    allowed = False

    def run() -> revkit.ParquetResult:
        return map_parquet(
            source,
            "{n}",
            sink,
            output="said",
            model=model,
            chunk_rows=5,
            max_workers=1,
            fail_fast=True,
            store=sink.with_name("replies.sqlite"),
        )

    with pytest.raises(revkit.RunFailed):
        run()
    asked = len(model.calls)
    assert asked == 8
    allowed = True
    done = run()
    assert len(model.calls) == asked + 3
    assert done.metrics.from_store == 2
    assert done.metrics.succeeded == 10


def test_memory_holds_a_chunk(tmp_path: Path, sink: Path) -> None:
    """A huge row group is read in pieces: seen by what Arrow has allocated at each call."""
    rows, text = 20_000, "x" * 2_000
    frame = pd.DataFrame({"n": np.arange(rows), "text": [text + str(n) for n in range(rows)]})
    frame.to_parquet(tmp_path / "large.parquet", row_group_size=rows)
    del frame
    seen: list[int] = []

    def look(row: Any) -> int:
        seen.append(pa.total_allocated_bytes())
        return 1

    before = pa.total_allocated_bytes()
    map_parquet(tmp_path / "large.parquet", look, sink, chunk_rows=500, max_workers=1)
    assert max(seen) - before < rows * len(text) / 4


@pytest.mark.parametrize(
    ("first", "then", "texts"),
    [
        (2**60 + 1, 0.5, [str(2**60 + 1), "0.5"]),
        ([2**60 + 1], [0.5], [f"[{2**60 + 1}]", "[0.5]"]),
    ],
)
def test_values_that_no_common_type_holds_are_text(
    first: Any, then: Any, texts: list[str], tmp_path: Path
) -> None:
    pd.DataFrame({"n": range(4)}).to_parquet(tmp_path / "in.parquet")

    def value(row: Any) -> Any:
        return first if row["n"] < 2 else then

    with pytest.warns(UserWarning, match="of different types in different chunks"):
        done = revkit.map_parquet(
            tmp_path / "in.parquet", value, tmp_path / "out.parquet", chunk_rows=2
        )
    read = pd.read_parquet(done.path)["response"].tolist()
    assert read == [texts[0]] * 2 + [texts[1]] * 2


def test_a_source_that_is_divided_by_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "year=2023").mkdir(parents=True)
    pd.DataFrame({"n": [1]}).to_parquet(tmp_path / "in" / "year=2023" / "a.parquet")
    with pytest.raises(UsageError, match='the directory "year=2023" holds values'):
        revkit.map_parquet(tmp_path / "in", len, tmp_path / "out.parquet")


def test_a_finish_that_was_interrupted_is_made_up_for_where_all_rows_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from revkit.api.parquet.sink import Sink

    pd.DataFrame({"n": range(2)}).to_parquet(tmp_path / "in.parquet")

    def fails(row: Any) -> Any:
        raise ValueError("no")

    def interrupted(sink: Any) -> Any:
        raise KeyboardInterrupt

    paths = tmp_path / "in.parquet", fails, tmp_path / "out.parquet"
    with monkeypatch.context() as patched:
        patched.setattr(Sink, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            revkit.map_parquet(*paths)
    done = revkit.map_parquet(*paths)
    assert (done.metrics.failed, len(pd.read_parquet(done.path))) == (2, 2)


def test_a_mix_within_a_chunk_is_text_and_that_is_said(tmp_path: Path) -> None:
    pd.DataFrame({"n": range(4)}).to_parquet(tmp_path / "in.parquet")

    def value(row: Any) -> Any:
        return row["n"] if row["n"] % 2 else "even"

    with pytest.warns(UserWarning, match=r"no one type for \(int, str\)") as told:
        done = revkit.map_parquet(tmp_path / "in.parquet", value, tmp_path / "out.parquet")
    assert told[0].filename == __file__
    assert pd.read_parquet(done.path)["response"].tolist() == ["even", "1", "even", "3"]


def as_unfinished(path: Path) -> None:
    """Note of a file what revkit 0.1.0 noted of a chunk that a timeout had cut short."""
    table = pq.read_table(path)
    note = json.loads(table.schema.metadata[b"revkit.map_parquet"])
    note.get("totals", note)["succeeded"] = 1
    metadata = {**table.schema.metadata, b"revkit.map_parquet": json.dumps(note).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_a_part_that_was_kept_unfinished_is_run_again(source: Path, sink: Path) -> None:
    CALLS.clear()
    BROKEN.update({9})
    with pytest.raises(revkit.RunFailed):
        map_parquet(source, square, sink, chunk_rows=3, fail_fast=True)
    BROKEN.clear()
    parts = sorted(Path(f"{sink}.parts").glob("*.parquet"))
    assert [path.stem[-2:] for path in parts] == ["03", "06", "09"]
    as_unfinished(parts[1])
    with pytest.warns(UserWarning, match="2 rows of 3 were not finished; rows 3 and after are run"):
        done = map_parquet(source, square, sink, chunk_rows=3)
    assert done.metrics.total == done.metrics.succeeded == 10
    assert [CALLS[n] for n in range(10)] == [1] * 3 + [2] * 7
    assert pd.read_parquet(sink)["response"].tolist() == [n**2 for n in range(10)]


def test_a_sink_that_was_finished_with_unfinished_rows_is_made_again(
    source: Path, sink: Path
) -> None:
    map_parquet(source, double, sink)
    as_unfinished(sink)
    with pytest.warns(UserWarning, match="9 rows of 10 were not finished; all rows are run again"):
        done = map_parquet(source, double, sink)
    assert done.metrics.succeeded == 10
    assert map_parquet(source, double, sink).metrics.succeeded == 10


@pytest.mark.parametrize("settled", [0, 2])
def test_a_chunk_with_unfinished_rows_is_never_kept(
    source: Path, sink: Path, settled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it comes about that an engine is through before its rows are."""
    from revkit.scheduling.scheduler import DONE, Scheduler

    take, taken = Scheduler.take, 0

    def ends_early(self: Scheduler, worker: int, now: float) -> Any:
        nonlocal taken
        taken += 1
        return DONE if taken > settled else take(self, worker, now)

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "take", ends_early)
        with pytest.raises(revkit.RunFailed) as failed:
            map_parquet(source, double, sink, chunk_rows=4, max_workers=1)
        assert failed.value.result.metrics.not_started == 4 - settled
        assert not list(Path(f"{sink}.parts").glob("*.parquet"))
        taken = 0
        with pytest.raises(revkit.RunFailed, match=r"(was|were) not finished"):
            revkit.parallel_map([{"n": 1}, {"n": 2}, {"n": 3}], double, max_workers=1)
    assert map_parquet(source, double, sink, chunk_rows=4).metrics.succeeded == 10
