"""Files that revkit writes are there whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import revkit
from revkit.store import files
from revkit.store.files import replacing


def squares(rows: int) -> revkit.ParallelResult:
    return revkit.parallel_map([{"n": n} for n in range(rows)], lambda row: row["n"] ** 2)


SAVES: dict[str, Callable[[revkit.ParallelResult, Path], Any]] = {
    "a result": lambda run, path: run.to_parquet(path),
    "a trace": lambda run, path: run.to_trace(path),
}


def test_threads_that_write_to_one_path_each_write_a_file_of_their_own(tmp_path: Path) -> None:
    path, together = tmp_path / "f", threading.Barrier(4)
    texts = [f"{number}" * 100_000 for number in range(4)]

    def write(text: str) -> None:
        with replacing(path) as (_, unfinished), unfinished.open("w") as file:
            for start in range(0, len(text), 10_000):
                together.wait(10)  # all are in the middle of it
                file.write(text[start : start + 10_000])

    threads = [threading.Thread(target=write, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", SAVES)
def test_threads_that_save_to_one_path_leave_a_whole_file(kind: str, tmp_path: Path) -> None:
    run, path = squares(50), tmp_path / "run.json"
    SAVES[kind](run, path)
    whole = path.read_bytes()
    together = threading.Barrier(4)

    def save() -> None:
        together.wait(10)
        SAVES[kind](run, path)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="makes links")
@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("kind", SAVES)
def test_a_link_is_not_followed(
    kind: str, dangling: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, path = tmp_path / "other", tmp_path / "run.json"
    if not dangling:
        other.write_text("mine")
    names = iter(["taken", "taken", "free"])
    monkeypatch.setattr(files, "_token", lambda: next(names))
    laid = tmp_path / "run.json.taken.part"
    laid.symlink_to(other)
    path.symlink_to(other)
    SAVES[kind](squares(3), path)
    assert laid.is_symlink()
    assert not path.is_symlink()
    assert path.stat().st_size > 10
    assert not other.exists() if dangling else other.read_text() == "mine"


def test_a_file_that_is_not_finished_is_removed_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as (_, unfinished):
            unfinished.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such pipes")
def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        squares(3).to_trace(pipe)
        assert os.read(reader, 10_000).startswith(b"{")
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.skipif(sys.platform == "win32", reason="has no modes")
def test_the_users_umask_decides_who_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        squares(3).to_parquet(tmp_path / "run.parquet")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.parquet").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_the_demo_leaves_an_old_file_where_it_cannot_write(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from revkit.cli.demo import _write

    target = tmp_path / name
    target.write_text("old")

    def broken(self: pd.DataFrame, path: Any, **options: Any) -> None:
        Path(path).write_text("half")
        raise OSError("no space left")

    for method in ("to_csv", "to_parquet"):
        monkeypatch.setattr(pd.DataFrame, method, broken)
    with pytest.raises(OSError, match="no space"):
        _write(pd.DataFrame({"n": [1]}), target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
