"""The shared directory of replies when the disk, or another process, is in trouble."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import revkit
from revkit.store import StoreWarning, clear, info, to_parquet
from revkit.store import shared as module
from revkit.store.shared import SharedStore, shared_store
from revkit.task.chat import Reply


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

    def half(file: io.FileIO, data: bytes) -> None:
        file.write(data[: len(data) // 2])
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


def test_a_damaged_line_costs_no_other(tmp_path: Path) -> None:
    writer, reader = SharedStore(tmp_path), SharedStore(tmp_path)
    put(writer, b"1")
    with (tmp_path / writer.part).open("ab") as part:
        part.write(b"garbage\n")
    put(writer, b"2")
    with pytest.warns(StoreWarning, match="is damaged, and is passed over"):
        reader.look_into([writer.part])
    assert reader.get([b"1", b"2"]).keys() == {b"1", b"2"}
    writer.close()
    reader.close()


REMOVED = "was removed or replaced while it was in use"


@pytest.mark.parametrize("removes", ["directory", "part"])
@pytest.mark.parametrize("replaced", [False, True])
def test_what_is_written_to_a_store_that_is_removed_is_put_again(
    tmp_path: Path, removes: str, replaced: bool
) -> None:
    place = tmp_path / "replies"
    store = SharedStore(place)
    assert put(store, b"1")
    part = place / store.part
    (place if removes == "directory" else part).rename(tmp_path / "aside")
    if replaced:
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(b"")
        (place / module.MARK).write_text('{"version": 1}')
    assert store.get([b"1"]) == {b"1": Reply("good")}  # nobody asks for it again
    with pytest.warns(StoreWarning, match=f"{REMOVED}.* 1 reply that this process"):
        assert put(store, b"2")
    shutil.rmtree(place)
    assert put(store, b"3")  # which is not said again
    assert store.problem is not None
    assert texts(place, b"1", b"2", b"3") == ["good"] * 3
    assert store.get([b"1", b"2", b"3"]).keys() == {b"1", b"2", b"3"}
    store.close()


def test_a_store_that_is_removed_during_a_commit_has_it_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, whole = tmp_path / "replies", module._write_all
    store = SharedStore(place)
    removals = 1

    def write_and_remove(file: io.FileIO, data: bytes) -> None:
        nonlocal removals
        whole(file, data)
        if removals:
            removals -= 1
            shutil.rmtree(place)

    monkeypatch.setattr(module, "_write_all", write_and_remove)
    with pytest.warns(StoreWarning, match=REMOVED):
        assert put(store, b"1")
    assert texts(place, b"1") == ["good"]
    removals = 100
    with pytest.warns(StoreWarning, match="removed again and again"):
        assert not put(store, b"2")
    removals = 0
    store.close()
    assert texts(place, b"1", b"2") == ["good"] * 2


def test_a_store_that_is_removed_between_two_runs_is_begun_anew(tmp_path: Path) -> None:
    place = tmp_path / "replies"
    with shared_store(place) as store:
        assert put(store, b"1", "one")
        assert put(store, b"2", "two")
    shutil.rmtree(place)
    with shared_store(place) as store:  # the same one: it is this process's
        assert put(store, b"3", "new")
        # It stands where the first one stood, in as many bytes.
        assert store.get([b"1", b"2", b"3"]) == {b"3": Reply("new")}
        assert put(store, b"1", "uno")
        assert store.problem is None
    assert texts(place, b"1", b"2", b"3") == ["uno", None, "new"]


@pytest.mark.parametrize("removes", ["directory", "part"])
def test_what_others_wrote_is_looked_for_anew_in_a_store_that_was_removed(
    tmp_path: Path, removes: str
) -> None:
    place = tmp_path / "replies"
    store, other = SharedStore(place), SharedStore(place)
    assert put(other, b"theirs")
    assert put(store, b"mine")
    assert store.get([b"theirs"])
    if removes == "directory":
        shutil.rmtree(place)
    else:
        (place / store.part).unlink()
    with pytest.warns(StoreWarning, match=REMOVED):
        assert put(store, b"new")
    if removes == "directory":
        assert put(store, b"theirs")
    assert store.get([b"theirs"])
    assert texts(place, b"theirs", b"mine", b"new") == ["good"] * 3
    store.close()
    other._end_part()


def test_the_newest_reply_stands_in_whatever_order_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = SharedStore(tmp_path), SharedStore(tmp_path)
    for store, key, created in ((one, b"1", 1), (two, b"1", 2), (two, b"2", 1), (one, b"2", 2)):
        monkeypatch.setattr(module.time, "time", lambda now=created: float(now))
        assert put(store, key, f"{created}")
    assert texts(tmp_path, b"1", b"2") == ["2", "2"]
    one.close()
    two.close()


def test_others_read_a_store_that_was_replaced_from_its_beginning(tmp_path: Path) -> None:
    writer, reader = SharedStore(tmp_path), SharedStore(tmp_path)
    for key in (b"1", b"2"):
        put(writer, key)
    reader.look_into([])
    part = tmp_path / writer.part
    last = part.read_bytes().splitlines(keepends=True)[1]
    part.unlink()
    part.write_bytes(last)  # where the other one stood
    assert reader.get([b"1"]) == {}
    assert put(reader, b"1", "anew")
    reader.look_into([])
    assert {key: reply.text for key, reply in reader.get([b"1", b"2"]).items()} == {
        b"1": "anew",
        b"2": "good",
    }
    writer.close()
    reader.close()


def test_a_write_that_is_denied_is_tried_again_in_the_same_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, whole = SharedStore(tmp_path), module._write_all
    assert put(store, b"1")

    def denied(file: io.FileIO, data: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, "_write_all", denied)
    with pytest.warns(StoreWarning, match=r"cannot be written at present.*Permission denied"):
        assert not put(store, b"2")
    assert not put(store, b"3")
    monkeypatch.setattr(module, "_write_all", whole)
    store.flush()
    assert store.problem is None
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    assert texts(tmp_path, b"1", b"2", b"3") == ["good"] * 3
    store.close()


def test_a_disk_that_is_full_at_the_end_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: io.FileIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with shared_store(tmp_path) as store:
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", full)
            with pytest.warns(StoreWarning, match="cannot be written at present"):
                assert not put(store, b"1")
            assert not put(store, b"2")
            with pytest.warns(StoreWarning, match="2 replies could not be written to"):
                store.close()
        assert store.problem is not None
    with shared_store(tmp_path) as store:
        assert store.problem is None
        assert put(store, b"3")


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
