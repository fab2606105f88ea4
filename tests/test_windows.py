"""What is kept on the disk is kept without the functions that Python lacks on Windows, too."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from failing import TASK, right, right_answer
from servers import serve

import revkit
import revkit.dask
from revkit import store
from revkit.store.shared import SharedStore
from revkit.task.chat import Reply

LACKED = (
    *("chown", "fchmod", "fchown", "fork", "getuid", "geteuid", "posix_fadvise", "posix_fallocate"),
    *("pread", "preadv", "pwrite", "pwritev", "sched_getaffinity", "sendfile", "O_NOFOLLOW"),
)


@pytest.fixture(autouse=True)
def windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LACKED:
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    write = os.write
    # A descriptor that os.open gave without os.O_BINARY translates ends of lines.
    monkeypatch.setattr(
        os, "write", lambda file, data: write(file, bytes(data).replace(b"\n", b"\r\n"))
    )


def put(replies: Any, *keys: bytes) -> bool:
    items = [(key, Reply(key.decode())) for key in keys]
    done: bool = replies.put(items, task="a task", model="a model")
    return done


def test_a_shared_directory_keeps_replies(tmp_path: Path) -> None:
    one, other = SharedStore(tmp_path), SharedStore(tmp_path)
    assert put(one, b"1", b"2")
    assert put(other, b"3")
    one.look_into([other.part])
    for replies in (one, other):
        found = replies.get([b"3", b"1", b"2", b"4"])
        assert {key: reply.text for key, reply in found.items()} == {
            b"1": "1",
            b"2": "2",
            b"3": "3",
        }
        replies.close()
        assert replies.problem is None
    again = SharedStore(tmp_path)
    assert put(again, b"4")
    assert again.get([b"1", b"2", b"3", b"4"]).keys() == {b"1", b"2", b"3", b"4"}
    again.close()


def test_a_directory_that_two_processes_begin_at_once_is_one_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def refused(source: Path, target: Path) -> None:
        """As Windows does where the other process has the file open."""
        replace(source, target)
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(os, "replace", refused)
    replies = SharedStore(tmp_path)
    assert put(replies, b"1")
    replies.close()


def test_a_file_keeps_replies(tmp_path: Path) -> None:
    place = tmp_path / "replies.sqlite"
    with store.Store.open(place) as replies:
        assert put(replies, b"1", b"2")
    with store.Store.open(place) as replies:
        assert replies.get([b"1", b"2"]).keys() == {b"1", b"2"}
        assert replies.problem is None
    store.to_parquet(tmp_path / "replies.parquet", store=place)
    assert len(pd.read_parquet(tmp_path / "replies.parquet")) == 2
    assert store.info(place).replies == 2
    assert store.clear(place) == 2


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    place = tmp_path / "replies.sqlite"
    place.write_bytes(b"garbage" * 1000)
    with (
        pytest.warns(store.StoreWarning, match="is damaged"),
        store.Store.open(place) as replies,
    ):
        assert put(replies, b"1")


def test_partitions_keep_their_replies(tmp_path: Path) -> None:
    df = pd.DataFrame({"review": [f"review {row}" for row in range(12)]})
    with serve(right_answer) as server, dask.config.set(scheduler="synchronous"):
        model = revkit.Ollama("m", host=server.url)
        for _ in range(2):
            out = dd.from_pandas(df, npartitions=3).llm.parallel_map(
                TASK, model=model, store=tmp_path / "replies"
            )
            assert all(right(out.compute()))
        assert len(server.chats) == len(df)


CALLS: list[int] = []
BROKEN: set[int] = set()


def square(row: Any) -> int:
    CALLS.append(row["n"])
    if row["n"] in BROKEN:
        raise ValueError("broken")
    return int(row["n"]) ** 2


def test_a_parquet_file_that_was_not_finished_is_gone_on_with(tmp_path: Path) -> None:
    source, sink = tmp_path / "source.parquet", tmp_path / "sink.parquet"
    pd.DataFrame({"n": range(6)}).to_parquet(source)
    BROKEN.add(3)

    def run() -> revkit.ParquetResult:
        options: Any = {"output": "square", "chunk_rows": 2, "max_workers": 1, "fail_fast": True}
        return revkit.map_parquet(source, square, sink, **options)

    with pytest.raises(revkit.RunFailed, match="broken"):
        run()
    BROKEN.clear()
    assert run().metrics.succeeded == 6
    assert CALLS == [0, 1, 2, 3, 2, 3, 4, 5]
    assert pd.read_parquet(sink)["square"].tolist() == [n * n for n in range(6)]
