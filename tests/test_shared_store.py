"""The shared directory of replies when the disk, or another process, is in trouble."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import revkit
from revkit.clients.base import Reply
from revkit.store import StoreWarning, clear, info, to_parquet
from revkit.store import shared as module
from revkit.store.shared import SharedStore


def put(store: SharedStore, key: bytes, text: str = "good") -> bool:
    return store.put([(key, Reply(text))], task="a task", model="a model")


def texts(path: Path, *keys: bytes) -> list[str | None]:
    store = SharedStore(path)
    found = store.get(keys)
    store.close()
    return [found[key].text if key in found else None for key in keys]


def test_a_full_disk_loses_no_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, whole = SharedStore(tmp_path), module._write_all
    assert put(store, b"1")

    def half(file: int, data: bytes) -> None:
        os.write(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write_all", half)
    with pytest.warns(StoreWarning, match=r"cannot be written at present.*No space left"):
        assert not put(store, b"2")
    assert not put(store, b"3")  # which is not said again
    assert store.problem is not None
    assert texts(tmp_path, b"1", b"3") == ["good", None]
    monkeypatch.setattr(module, "_write_all", whole)
    assert put(store, b"4")
    assert store.problem is None
    assert texts(tmp_path, b"1", b"2", b"3", b"4") == ["good"] * 4
    store.close()


def test_a_line_that_is_not_whole_is_read_when_it_is(tmp_path: Path) -> None:
    writer, reader = SharedStore(tmp_path), SharedStore(tmp_path)
    put(writer, b"1")
    put(writer, b"2")
    part = tmp_path / writer.part
    whole = part.read_bytes()
    part.write_bytes(whole[:-5])  # as it is while it is being written, or after a kill
    reader.look_into([writer.part])
    assert reader.get([b"1", b"2"]) == {b"1": Reply("good")}
    part.write_bytes(whole)
    reader.look_into([writer.part])
    assert reader.get([b"1", b"2"]).keys() == {b"1", b"2"}
    writer.close()
    reader.close()


def test_a_directory_that_is_removed_is_said_and_the_replies_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "replies"
    store = SharedStore(place)
    shutil.rmtree(place)
    with pytest.warns(StoreWarning, match="cannot be written at present"):
        assert not put(store, b"1")
    assert store.get([b"1"]) == {}
    place.mkdir()
    assert put(store, b"2")
    store.close()
    assert sorted(len(part.read_bytes().splitlines()) for part in place.glob("*.jsonl")) == [2]


def test_a_directory_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", denied)
    with pytest.raises(revkit.UsageError, match=r"cannot be written: .*Permission denied"):
        SharedStore(tmp_path)


def test_what_is_for_one_machines_file_says_what_a_shared_directory_is(tmp_path: Path) -> None:
    SharedStore(tmp_path).close()
    for ask in (
        lambda: info(tmp_path),
        lambda: clear(tmp_path),
        lambda: to_parquet(tmp_path.with_suffix(".parquet"), store=tmp_path),
    ):
        with pytest.raises(revkit.UsageError, match=r"workers of a Dask cluster share.*read_json"):
            ask()
