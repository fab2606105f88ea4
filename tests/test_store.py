"""The store keeps what it acknowledged, and no trouble with its file ends a run.

Each trouble is produced for real: processes that are killed, pages that are overwritten, disks
that are full, directories that cannot be written.
"""
# ruff: noqa: PT031 - one warning for all that is done in a block is what is tested

from __future__ import annotations

import contextlib
import os
import pickle
import pydoc
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import revkit
from revkit import Reply, store
from revkit.errors import RevkitError, UsageError
from revkit.store import Store, StoreWarning
from revkit.store import file as store_file
from revkit.store.rows import COLUMNS

FULL = Reply("positive", 120, 3, "stop", {"sentiment": {"positive": 0.75, "negative": 0.25}})
COUNT = 2_000


@pytest.fixture(autouse=True)
def not_switched_off(nothing_configured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REVKIT_STORE")


def key(number: int) -> bytes:
    return number.to_bytes(20, "big")


def many(first: int = 0, count: int = COUNT) -> list[tuple[bytes, Reply]]:
    return [(key(n), Reply(f"reply {n}", n, 1, "stop")) for n in range(first, first + count)]


def put(replies: Store, items: Iterable[tuple[bytes, Reply]], model: str = "a model") -> bool:
    return replies.put(items, task="a task", model=model)


def filled(path: Path, count: int = COUNT) -> Path:
    with Store.open(path) as replies:
        assert put(replies, many(count=count))
        assert replies.problem is None
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replies.sqlite"


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory of a user to whom permissions apply, as they do not to root."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        if os.geteuid() != 0:
            yield directory
            return
        os.chown(directory, 65534, 65534)
        os.seteuid(65534)
        try:
            if not os.path.exists(directory):
                pytest.skip("the place of temporary files is closed to other users")
            yield directory
        finally:
            os.seteuid(0)


# ------------------------------------------------------------------ what it is for


def test_a_reply_comes_back_as_it_was(path: Path) -> None:
    with Store.open(path) as replies:
        assert replies.is_new
        assert put(replies, [(key(1), FULL), (key(2), Reply(""))])
        assert replies.get([key(2), key(1), key(3), key(1)]) == {key(1): FULL, key(2): Reply("")}
    with Store.open(path) as replies:
        assert not replies.is_new
        assert replies.get([key(1)]) == {key(1): FULL}
        assert replies.journal == "wal"
        assert replies.problem is None


def test_the_first_reply_stands_until_it_is_forgotten(path: Path) -> None:
    with Store.open(path) as replies:
        assert put(replies, [(key(1), Reply("first"))])
        assert put(replies, [(key(1), Reply("second")), (key(2), Reply("new"))])
        assert replies.get([key(1), key(2)]) == {key(1): Reply("first"), key(2): Reply("new")}
        replies.forget([key(1), key(9)])
        assert replies.get([key(1)]) == {}
        assert put(replies, [(key(1), Reply("third"))])
        assert replies.get([key(1)]) == {key(1): Reply("third")}


def test_any_number_of_keys_is_looked_up(path: Path) -> None:
    with Store.open(path) as replies:
        assert put(replies, many())
        assert replies.get([key(n) for n in range(2 * COUNT)]) == dict(many())
        assert replies.get([]) == {}
        assert put(replies, [])


shares = st.dictionaries(
    st.text(max_size=5), st.dictionaries(st.text(max_size=5), st.floats(0, 1), max_size=3)
)
counts = st.none() | st.integers(0, 2**63 - 1)
any_text = st.text(st.one_of(st.characters(), st.sampled_from("\0\ud800\udc00\x1b")))
any_reply = st.builds(Reply, any_text, counts, counts, st.none() | any_text, st.none() | shares)


@given(st.lists(any_reply, max_size=5))
@examples(50)
def test_any_reply_comes_back_as_it_was(replies: list[Reply]) -> None:
    items = [(key(n), reply) for n, reply in enumerate(replies)]
    with tempfile.TemporaryDirectory() as directory, Store.open(directory) as kept:
        assert put(kept, items)
        assert kept.get([key(n) for n in range(len(replies))]) == dict(items)
        store.to_parquet(Path(directory, "replies.parquet"), store=kept.path)


def test_what_no_server_says_costs_no_other_reply(path: Path) -> None:
    odd = Reply("odd", 10**30, probabilities={"a": {"b": object()}})  # type: ignore[dict-item]
    with Store.open(path) as replies:
        assert put(replies, [(key(1), odd), (key(2), FULL)])
        assert replies.get([key(1), key(2)]) == {key(1): Reply("odd"), key(2): FULL}


def test_a_count_of_any_type_is_a_whole_number(path: Path) -> None:
    counts: list[object] = [np.int64(3), 3.0, float("nan"), float("inf")]
    with Store.open(path) as replies:
        items = [(key(n), Reply("", count)) for n, count in enumerate(counts)]  # type: ignore[arg-type]
        assert put(replies, items)
        found = replies.get([key(n) for n in range(4)])
        assert [found[key(n)].prompt_tokens for n in range(4)] == [3, 3, None, None]
        store.to_parquet(path.with_name("replies.parquet"), store=path)


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with Store.open(made / "replies.sqlite") as replies:
        assert put(replies, many())
        files = sorted(made.iterdir())
        assert [f.name.removeprefix("replies.sqlite") for f in files] == ["", "-shm", "-wal"]
        assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch(mode=0o666)
    with Store.open(path) as replies:
        assert replies.is_new
        assert put(replies, many(count=1))
        modes = {stat.S_IMODE(f.stat().st_mode) for f in path.parent.iterdir()}
        assert modes == {0o600}


def test_threads_share_one_store(path: Path) -> None:
    with Store.open(path) as replies:

        def work(part: int) -> None:
            for n in range(part, 400, 4):
                put(replies, many(n, 1))
                assert replies.get([key(n)])

        threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert replies.get([key(n) for n in range(400)]) == dict(many(count=400))


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_reading_does_not_wait_for_a_commit_beside_a_log(
    path: Path, monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    monkeypatch.setattr(store_file, "_PATIENCE", 30.0)
    if journal == "delete":
        mounts(monkeypatch, path.parent, f"server:/x {path.parent} nfs rw 0 0\n")
    order: list[object] = []
    begun = threading.Event()

    def items() -> Iterator[tuple[bytes, Reply]]:
        begun.set()
        yield from many(5, 5)

    with Store.open(path) as replies, contextlib.closing(sqlite3.connect(path)) as other:
        assert replies.journal == journal
        assert put(replies, many(0, 5))

        def write() -> None:
            order.append(put(replies, items()))

        def read() -> None:
            order.append(replies.get([key(n) for n in range(10)]))

        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")  # its end is what the commit waits for
        writing, reading = threading.Thread(target=write), threading.Thread(target=read)
        writing.start()
        assert begun.wait(60)
        reading.start()
        if journal == "wal":
            reading.join(60)
        other.execute("ROLLBACK")
        writing.join()
        reading.join()
        assert replies.problem is None
    if journal == "wal":
        assert order == [dict(many(0, 5)), True]
    else:
        assert order == [True, dict(many(0, 10))]


@pytest.mark.filterwarnings("ignore::revkit.store.StoreWarning")
@pytest.mark.parametrize("trouble", ["removed", "damaged"])
def test_reading_goes_on_while_the_file_is_begun_again(path: Path, trouble: str) -> None:
    wanted = dict(many(count=50))
    done = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        try:
            while not done.is_set():
                wrong.extend(replies.get(list(wanted)).items() - wanted.items())
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            wrong.append(error)

    with Store.open(path) as replies:
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        try:
            for _ in range(10):
                assert put(replies, many(count=50))
                if trouble == "removed":
                    path.unlink()
                else:
                    scribble(path)
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert put(replies, many(count=50))
        assert replies.get(list(wanted)) == wanted
    assert wrong == []


def test_a_closed_store_is_quiet(path: Path) -> None:
    replies = Store.open(path)
    replies.close()
    replies.close()
    assert not put(replies, many(count=1))
    assert replies.get([key(0)]) == {}
    replies.forget([key(0)])
    assert replies.problem is None


# ------------------------------------------------------------------ which file


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(given: object = None) -> Path | None:
        replies = store.configured(given)  # type: ignore[arg-type]
        if replies is None:
            return None
        replies.close()
        assert replies.path.is_file()
        return replies.path

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    default = store.default_path()
    assert default.is_relative_to(tmp_path)
    assert opened() == opened(True) == opened("on") == default
    assert opened(False) is opened("off") is None
    assert opened(tmp_path) == opened(str(tmp_path)) == tmp_path / "replies.sqlite"
    assert opened(tmp_path / "mine.db") == tmp_path / "mine.db"
    assert opened(f"{tmp_path}/new/") == tmp_path / "new" / "replies.sqlite"
    assert opened("~/mine.db") == tmp_path / "home" / "mine.db"
    for word in ("0", "off", "False"):
        monkeypatch.setenv("REVKIT_STORE", word)
        assert opened() is opened(False) is None
        assert opened(True) == default
        assert opened(tmp_path / "mine.db") == tmp_path / "mine.db"
        assert store.info().path == default
    for word in ("1", "on", ""):
        monkeypatch.setenv("REVKIT_STORE", word)
        assert opened() == default
    monkeypatch.setenv("REVKIT_STORE", str(tmp_path / "Named.sqlite"))
    assert opened() == opened(True) == store.info().path == tmp_path / "Named.sqlite"
    assert opened(False) is None
    monkeypatch.chdir(tmp_path)
    assert opened("here.sqlite") == tmp_path / "here.sqlite"


@pytest.mark.parametrize("wrong", ["", 3, object(), b""])
def test_what_is_no_place_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError, match="store= takes a path"):
        store.configured(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["reviews.csv", "reviews"])
def test_a_users_file_is_refused_and_not_touched(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("id,review\n" * 100)
    with pytest.raises(UsageError, match="not a store"):
        Store.open(path)
    assert path.read_text() == "id,review\n" * 100
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_another_programs_database_is_refused_and_not_touched(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE replies (text)")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="another program"):
        Store.open(path)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="neither a file nor a directory"):
        Store.open("/dev/null")


def test_a_link_leads_to_the_store(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "real.sqlite"
    target.parent.mkdir()
    path.symlink_to(target)
    with Store.open(path) as replies:  # nothing is there yet
        assert put(replies, many())
        assert store.info(path).bytes > target.stat().st_size  # with the log
    target.write_bytes(b"garbage")
    with pytest.warns(StoreWarning, match="damaged"), Store.open(path) as replies:
        assert put(replies, many(count=3))
    assert path.is_symlink()
    assert [f.read_bytes() for f in kept_aside(target)] == [b"garbage"]
    assert store.info(target).replies == 3


def test_a_link_that_leads_nowhere(path: Path) -> None:
    path.symlink_to(path)
    assert store.info(path).replies == 0
    with pytest.warns(StoreWarning, match="cannot be opened"), Store.open(path) as replies:
        assert not put(replies, many(count=1))


# ------------------------------------------------------------------ processes

PUT = """
import sys
from revkit import Reply
from revkit.store import Store

first, last, step = map(int, sys.argv[2:])
with Store.open(sys.argv[1]) as replies:
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(first, last, step):
        numbers = range(n, n + step)
        items = [(m.to_bytes(20, "big"), Reply(f"reply {m}", m, 1, "stop")) for m in numbers]
        if not replies.put(items, task="a task", model="a model"):
            break
        print(n + step, flush=True)
sys.exit(replies.problem)
"""


def writer(path: Path, first: int, last: int, step: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PUT, str(path), str(first), str(last), str(step)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def test_two_processes_begin_and_write_one_file_at_once(path: Path) -> None:
    # Their keys overlap in the middle third.
    one, other = writer(path, 0, 1000, 5), writer(path, 500, 1500, 5)
    start(one, other)
    for process in (one, other):
        _, said = process.communicate()
        assert (process.returncode, said) == (0, "")
    assert store.info(path).replies == 1500
    with Store.open(path) as replies:
        assert replies.get([key(n) for n in range(1500)]) == dict(many(count=1500))


def test_what_another_process_writes_can_be_read_at_once(path: Path) -> None:
    with Store.open(path) as replies, writer(path, 0, 500, 5) as process:
        start(process)
        assert process.stdout is not None
        for line in process.stdout:
            last = int(line)
            assert dict(many(count=last)).items() <= replies.get([*map(key, range(500))]).items()
        assert last == 500
        assert replies.problem is None


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9")
@pytest.mark.parametrize("acknowledged", [1, 40])
def test_a_kill_loses_nothing_that_was_acknowledged(path: Path, acknowledged: int) -> None:
    with writer(path, 0, 1_000_000, 10) as process:
        start(process)
        assert process.stdout is not None
        for _ in range(acknowledged):
            last = int(process.stdout.readline())
        process.kill()
        for line in process.stdout:  # acknowledged before it was dead
            last = int(line) if line.endswith("\n") else last
    assert process.returncode == -signal.SIGKILL
    assert last >= 10 * acknowledged
    with Store.open(path) as replies:
        assert replies.get([key(n) for n in range(last)]) == dict(many(count=last))
        assert replies.problem is None
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_lock_that_is_not_let_go_delays_replies_and_loses_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "_PATIENCE", 0.0)
    with Store.open(path) as replies, contextlib.closing(sqlite3.connect(path)) as other:
        assert put(replies, many(count=5))
        other.execute("BEGIN IMMEDIATE")
        with pytest.warns(StoreWarning, match="cannot be written at present.*locked") as told:
            for n in range(5, 10):
                assert not put(replies, many(n, 1))
        assert len(told) == 1
        assert "locked" in (replies.problem or "")
        assert len(replies.get([key(n) for n in range(10)])) == 5  # reading goes on
        other.execute("ROLLBACK")
        while not put(replies, many(10, 1)):  # tried again when twice as many wait
            pass
        assert replies.problem is None
        assert len(replies.get([key(n) for n in range(11)])) == 11


def test_what_waits_is_written_at_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_file, "_PATIENCE", 0.0)
    with Store.open(path) as replies, contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.warns(StoreWarning, match="locked"):
            assert not put(replies, many(count=3))
        other.execute("ROLLBACK")
        replies.close()
        assert replies.problem is None
    assert store.info(path).replies == 3


def test_what_could_not_be_written_at_the_end_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "_PATIENCE", 0.0)
    with contextlib.closing(sqlite3.connect(path)) as other:
        with Store.open(path) as replies:
            other.execute("BEGIN IMMEDIATE")
            with pytest.warns(StoreWarning, match="locked"):
                assert not put(replies, many(count=3))
            with pytest.warns(StoreWarning, match="3 replies could not be written.*asks again for"):
                replies.close()
            replies.close()  # once
        assert "3 replies could not be written" in (replies.problem or "")


def test_replies_that_a_store_could_take_no_more_are_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorname = "SQLITE_READONLY"
        raise error

    with Store.open(path) as replies:
        monkeypatch.setattr("revkit.store.replies.insert", refuse)
        with pytest.warns(StoreWarning, match="cannot be written any more"):
            assert not put(replies, many(count=3))
        with pytest.warns(StoreWarning, match="3 replies could not be written"):
            replies.close()


# ------------------------------------------------------------------ damage


def kept_aside(path: Path) -> list[Path]:
    return sorted(
        f
        for f in path.parent.iterdir()
        if f.name.startswith(f"{path.name}.") and not f.name.endswith(("-wal", "-shm"))
    )


@pytest.mark.parametrize("garbage", [b"\xff" * 8192, b"no header"])
def test_a_file_with_a_garbage_header_is_set_aside(path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage)
    with pytest.warns(StoreWarning, match="damaged.*kept as.*a new one") as told:
        replies = Store.open(path)
    assert len(told) == 1
    with replies:
        (kept,) = kept_aside(path)
        assert kept.read_bytes() == garbage
        assert kept.name in (replies.problem or "")
        assert replies.is_new
        assert put(replies, many(count=3))
    assert store.info(path).replies == 3


def test_two_damaged_files_are_both_kept(path: Path) -> None:
    for garbage in (b"one", b"two", b"three"):
        path.write_bytes(garbage)
        with pytest.warns(StoreWarning):
            Store.open(path).close()
    assert sorted(f.read_bytes() for f in kept_aside(path)) == [b"one", b"three", b"two"]


def test_a_truncated_file_is_set_aside(path: Path) -> None:
    size = filled(path).stat().st_size
    os.truncate(path, size // 2)
    with pytest.warns(StoreWarning, match="damaged"), Store.open(path) as replies:
        replies.get([key(n) for n in range(COUNT)])
        assert put(replies, many())
        assert len(replies.get([key(n) for n in range(COUNT)])) == COUNT
    (kept,) = kept_aside(path)
    assert kept.stat().st_size == size // 2


def scribble(path: Path) -> None:
    """Overwrite every page but the first, which says that all is well."""
    with path.open("r+b") as f:
        f.seek(4096)
        f.write(b"\xa5" * (path.stat().st_size - 4096))


def misname(path: Path) -> None:
    """Give the index a name that is no text: SQLite's own message has it in it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_master SET name = CAST(x'ff' AS TEXT) WHERE type = 'index'")
        (version,) = db.execute("PRAGMA schema_version").fetchone()
        db.execute(f"PRAGMA schema_version={version + 1}")  # says that it is to be read again


@pytest.mark.parametrize(("damage", "left"), [(scribble, 0), (misname, COUNT)])
@pytest.mark.parametrize("found_by", ["get", "put", "forget"])
def test_damage_found_in_use_is_set_aside(
    path: Path, found_by: str, damage: Callable[[Path], None], left: int
) -> None:
    # The first page of the table is good, so that the file can be opened.
    filled(path)
    with Store.open(path) as replies:
        damage(path)
        with pytest.warns(StoreWarning, match="damaged.*kept as") as told:
            if found_by == "get":
                assert replies.get([key(n) for n in range(COUNT)]) == dict(many(count=left))
            elif found_by == "forget":
                replies.forget([key(n) for n in range(COUNT)])
            assert put(replies, many(5, 5))
        assert len(told) == 1
        wanted = dict(many(count=left)) | dict(many(5, 5))
        assert replies.get([key(n) for n in range(COUNT)]) == wanted
    kept, *logs = kept_aside(path)
    assert logs == []
    assert kept.stat().st_size > 50_000


def test_a_name_that_is_no_text_is_damage(path: Path) -> None:
    misname(filled(path))
    with pytest.warns(StoreWarning, match="damaged"), Store.open(path) as replies:
        assert put(replies, many(count=1))
    assert len(kept_aside(path)) == 1


def test_a_store_without_its_table_is_set_aside(path: Path) -> None:
    filled(path, 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ALTER TABLE replies RENAME COLUMN text TO words")
    with pytest.warns(StoreWarning, match="no such column"), Store.open(path) as replies:
        assert put(replies, many(count=1))
    assert len(kept_aside(path)) == 1


@pytest.mark.parametrize("column", ["text", "probabilities"])
def test_a_value_that_is_no_text_is_damage(path: Path, column: str) -> None:
    filled(path, 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"UPDATE replies SET {column} = CAST(x'7bff' AS TEXT)")
    with Store.open(path) as replies, pytest.warns(StoreWarning, match="damaged"):
        assert replies.get([key(0)]) == {}
        assert put(replies, many(count=1))
        assert replies.get([key(0)]) == dict(many(count=1))


def test_two_stores_find_the_same_damage(path: Path) -> None:
    """Who comes second must not set the first one's new file aside."""
    filled(path)
    with Store.open(path) as one, Store.open(path) as other:
        scribble(path)
        with pytest.warns(StoreWarning, match="damaged"):
            assert put(one, many(0, 5))
        with warnings.catch_warnings():  # it may, or may not, have seen the damage
            warnings.simplefilter("ignore", StoreWarning)
            other.get([key(n) for n in range(COUNT)])
            assert put(other, many(5, 5))
        assert one.get([key(n) for n in range(COUNT)]) == dict(many(0, 10))
    assert len(kept_aside(path)) == 1
    assert store.info(path).replies == 10


@pytest.mark.filterwarnings("ignore::revkit.store.StoreWarning")
@pytest.mark.parametrize("attempt", range(5))
def test_who_opens_a_damaged_file_at_once_finds_one_new_one(path: Path, attempt: int) -> None:
    path.write_bytes(b"garbage")
    together = threading.Barrier(4)
    kept: list[bool] = []

    def work(part: int) -> None:
        together.wait()
        with Store.open(path) as replies:
            kept.append(put(replies, many(5 * part, 5)))

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept == [True] * 4
    assert [f.read_bytes() for f in kept_aside(path)] == [b"garbage"]
    assert store.info(path).replies == 20


def remove(path: Path) -> None:
    for name in ("", "-wal", "-shm"):
        Path(f"{path}{name}").unlink()


@pytest.mark.parametrize("found_by", ["put", "close"])
def test_a_file_that_was_removed_in_use_is_begun_again(path: Path, found_by: str) -> None:
    filled(path)  # of another run
    with Store.open(path) as replies:
        assert put(replies, many(COUNT, 5))
        remove(path)
        with pytest.warns(StoreWarning, match=r"removed.*2,005 replies that .* copied") as told:
            if found_by == "put":
                assert put(replies, many(COUNT + 5, 5))
                assert put(replies, many(COUNT + 10, 5))
            else:
                replies.close()
        assert len(told) == 1
    last = COUNT + (15 if found_by == "put" else 5)
    with Store.open(path) as replies:
        assert replies.get([key(n) for n in range(last)]) == dict(many(count=last))
        assert len(kept_aside(path)) == 0


def test_a_file_of_which_nothing_was_written_is_not_begun_again(path: Path) -> None:
    filled(path)
    with Store.open(path) as replies:
        assert len(replies.get([key(0)])) == 1
        remove(path)
    assert not path.exists()


def test_two_stores_bring_a_removed_file_back(path: Path) -> None:
    with Store.open(path) as one, Store.open(path) as other:
        assert put(one, many(0, 5))
        assert put(other, many(5, 5))
        remove(path)
        for store_, first in ((one, 10), (other, 15)):
            with pytest.warns(StoreWarning, match="removed"):
                assert put(store_, many(first, 5))
        assert one.get([key(n) for n in range(20)]) == dict(many(0, 20))


def test_a_file_that_was_removed_without_its_log_is_begun_again(path: Path) -> None:
    """The new file must not meet the log of the old one, which others may have in use."""
    with Store.open(path) as one, writer(path, 5, 10, 5) as other:
        assert put(one, many(0, 5))
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        path.unlink()
        with pytest.warns(StoreWarning, match="removed.*log is kept as.*5 replies") as told:
            assert put(one, many(10, 5))
        assert len(told) == 1
        _, said = other.communicate("\n")
        assert other.returncode == 1  # it has copied as well, and says so
        assert "was removed or replaced while it was in use" in said
        assert one.get([key(n) for n in range(20)]) == dict(many(0, 15))
    logs = list(path.parent.glob("replies.sqlite.removed-*-wal"))
    assert [b"reply 4" in log.read_bytes() for log in logs] == [True]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9")
def test_the_log_of_a_removed_file_is_read_by_the_next_run(path: Path) -> None:
    with writer(path, 0, 1_000_000, 10) as process:
        start(process)
        assert process.stdout is not None
        last = int(process.stdout.readline())
        process.kill()
        for line in process.stdout:
            last = int(line) if line.endswith("\n") else last
    path.unlink()
    with pytest.warns(StoreWarning, match="removed, but not its log.*can still be read"):
        replies = Store.open(path)
    with replies:
        found = replies.get([key(n) for n in range(last)])
    assert found.items() <= dict(many(count=last)).items()
    assert len(found) > 0


def test_a_file_that_another_program_replaced_in_use_is_left_alone(path: Path) -> None:
    with Store.open(path) as replies:
        assert put(replies, many(0, 5))
        path.rename(path.with_name("moved.sqlite"))
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE theirs (x)")
        with pytest.warns(StoreWarning, match="another program"):
            assert not put(replies, many(5, 5))
        assert replies.get([key(0)]) == {}


# ------------------------------------------------------------------ older and newer


def stamp(path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version={version}")


def test_an_older_store_is_set_aside(path: Path) -> None:
    stamp(filled(path, 3), 0)
    with pytest.warns(StoreWarning, match="older format.*kept as"), Store.open(path) as replies:
        assert replies.get([key(0)]) == {}
        assert put(replies, many(count=1))
    (kept,) = kept_aside(path)
    stamp(kept, 1)
    assert store.info(kept).replies == 3


def test_a_newer_store_is_left_as_it_is(path: Path) -> None:
    stamp(filled(path, 3), 2)
    before = path.read_bytes()
    with pytest.warns(StoreWarning, match="newer revkit"), Store.open(path) as replies:
        assert not put(replies, many(5, 5))
        assert replies.get([key(0)]) == {}
        assert "not kept" in (replies.problem or "")
    assert path.read_bytes() == before
    assert kept_aside(path) == []
    with pytest.warns(StoreWarning), pytest.raises(RevkitError, match="cannot be cleared"):
        store.clear(path)
    with pytest.warns(StoreWarning):
        assert "newer" in (store.info(path).problem or "")


# ------------------------------------------------------------------ places that cannot be written


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are of another kind")
@pytest.mark.parametrize("what", ["file", "directory", "both"])
def test_where_writing_is_not_allowed_reading_works(unprivileged: Path, what: str) -> None:
    path = filled(unprivileged / "replies.sqlite", 5)
    if what != "directory":
        path.chmod(0o400)
    if what != "file":
        unprivileged.chmod(0o500)
    try:
        with pytest.warns(StoreWarning, match="cannot be written") as told:
            replies = Store.open(path)
            assert not put(replies, many(5, 5))
            assert not put(replies, many(10, 5))
        assert len(told) == 1
        assert replies.get([key(n) for n in range(20)]) == dict(many(count=5))
        assert "new ones are not kept" in (replies.problem or "")
        replies.close()
        with pytest.warns(StoreWarning):
            assert store.info(path).replies == 5
        with pytest.warns(StoreWarning), pytest.raises(RevkitError, match="cannot be cleared"):
            store.clear(path)
    finally:
        unprivileged.chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are of another kind")
def test_where_nothing_can_be_made_the_store_is_off(unprivileged: Path) -> None:
    unprivileged.chmod(0o500)
    try:
        for path in (unprivileged / "replies.sqlite", unprivileged / "new" / "replies.sqlite"):
            with pytest.warns(StoreWarning, match="not kept"), Store.open(path) as replies:
                assert not put(replies, many(count=1))
                assert replies.get([key(0)]) == {}
                assert replies.journal == ""
        assert list(unprivileged.iterdir()) == []
    finally:
        unprivileged.chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are of another kind")
def test_a_damaged_file_that_cannot_be_set_aside_stays(unprivileged: Path) -> None:
    path = unprivileged / "replies.sqlite"
    path.write_bytes(b"garbage")
    unprivileged.chmod(0o500)
    try:
        with pytest.warns(StoreWarning, match="not kept"), Store.open(path) as replies:
            assert not put(replies, many(count=1))
        assert path.read_bytes() == b"garbage"
    finally:
        unprivileged.chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are of another kind")
def test_a_half_written_file_that_cannot_be_mended_is_not_read(
    unprivileged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts(monkeypatch, unprivileged, f"server:/x {unprivileged} nfs rw 0 0\n")
    path = filled(unprivileged / "replies.sqlite")
    left = unprivileged / "left"
    left.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size=2")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE replies SET text = 'never committed'")
        for name in (path.name, f"{path.name}-journal"):  # as a crash leaves them
            shutil.copy(unprivileged / name, left / name)
            (left / name).chmod(0o400)
    assert b"never committed" in (left / path.name).read_bytes()
    left.chmod(0o500)
    try:
        with pytest.warns(StoreWarning, match="not kept"), Store.open(left) as replies:
            assert replies.get([key(n) for n in range(COUNT)]) == {}
        left.chmod(0o700)
        for f in left.iterdir():
            f.chmod(0o600)
        with Store.open(left) as replies:
            assert replies.get([key(n) for n in range(COUNT)]) == dict(many())
            assert replies.problem is None
    finally:
        left.chmod(0o700)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB, where this process may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_costs_no_reply_that_was_kept(small_disk: Path) -> None:
    path = small_disk / "replies.sqlite"
    with Store.open(path) as replies:
        last = 0
        with pytest.warns(StoreWarning, match="cannot be written at present.*full") as told:
            while put(replies, many(last, 100)):
                last += 100
            for n in range(last + 100, last + 500, 100):
                assert not put(replies, many(n, 100))
        assert len(told) == 1
        assert last >= 100
        assert replies.get([key(n) for n in range(last)]) == dict(many(count=last))
        # Somebody makes room: what came in the meantime is written after all.
        subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert replies.problem is None
    assert store.info(path).replies == last + 500


def test_a_store_on_a_full_disk_can_be_read(small_disk: Path) -> None:
    path = filled(small_disk / "replies.sqlite", 100)
    with (small_disk / "ballast").open("wb", buffering=0) as f, contextlib.suppress(OSError):
        while f.write(b"\0" * 512):
            pass
    with pytest.warns(StoreWarning, match="cannot be written"), Store.open(path) as replies:
        assert not put(replies, many(100, 100))
        assert replies.get([key(n) for n in range(200)]) == dict(many(count=100))
    # Not even an empty one can be begun.
    with pytest.warns(StoreWarning, match="not kept"), Store.open(small_disk / "new") as replies:
        assert not put(replies, many(count=1))


def test_a_full_file_costs_no_reply_that_was_kept(path: Path) -> None:
    with Store.open(path) as replies:
        with replies.connection() as db:
            assert db is not None
            db.execute("PRAGMA max_page_count=20")
        last = 0
        with pytest.warns(StoreWarning, match="full"):
            while put(replies, many(last, 100)):
                last += 100
        assert last >= 100
        assert replies.get([key(n) for n in range(last)]) == dict(many(count=last))
    assert "100 replies could not be written" in (replies.problem or "")
    assert store.info(path).replies == last


def test_warnings_as_errors_stop_before_the_run_and_not_in_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "_PATIENCE", 0.0)
    with Store.open(path) as replies, contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not put(replies, many(count=1))  # pytest makes warnings errors
        other.execute("ROLLBACK")
    path.write_bytes(b"garbage")
    with pytest.raises(StoreWarning, match="damaged"):
        Store.open(path)


# ------------------------------------------------------------------ network file systems


def mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    table = tmp_path / "mounts"
    table.write_text(text)
    monkeypatch.setattr(store_file, "_MOUNTS", table)


def test_network_file_systems_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = (
        "/dev/vda / ext4 rw 0 0\n"
        "server:/home /home nfs4 rw 0 0\n"
        "tmpfs /home/local tmpfs rw 0 0\n"
        "//server/x /mnt/with\\040space cifs rw 0 0\n"
        "server:/covered /covered nfs rw 0 0\n"
        "/dev/vdb /covered ext4 rw 0 0\n"
        "me@there: /home/local/there fuse.sshfs rw 0 0\n"
    )
    mounts(monkeypatch, tmp_path, table)
    expected = {
        "/var/x": None,
        "/home/me/x": "nfs4",
        "/homes/me/x": None,
        "/home/local/x": None,
        "/home/local/there/x": "fuse.sshfs",
        "/mnt/with space/x": "cifs",
        "/covered/x": None,
    }
    assert {p: store_file.network_file_system(Path(p)) for p in expected} == expected
    monkeypatch.setattr(store_file, "_MOUNTS", tmp_path / "nowhere")
    assert store_file.network_file_system(Path("/home/me/x")) is None


def test_no_log_on_a_network_file_system(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path, 5)
    mounts(monkeypatch, tmp_path, f"server:/x {tmp_path} nfs rw 0 0\n")
    with Store.open(path) as replies:
        assert replies.journal == "delete"
        assert put(replies, many(5, 5))
        assert not Path(f"{path}-wal").exists()
        assert replies.problem is None
    found = store.info(path)
    assert (found.replies, found.network) == (10, "nfs")


# ------------------------------------------------------------------ looking after it


def test_info(path: Path) -> None:
    assert store.info(path).replies == 0
    assert not path.exists()
    before = datetime.now(UTC) - timedelta(seconds=1)
    with Store.open(path) as replies:
        put(replies, many(0, 3), model="small")
        put(replies, many(3, 1200), model="openai:large")
        found = store.info(path)  # while it is in use
    assert found.replies == 1203
    assert list(found.by_model.items()) == [("openai:large", 1200), ("small", 3)]
    assert found.bytes > 50_000
    assert found.oldest is not None
    assert found.newest is not None
    assert before <= found.oldest <= found.newest <= datetime.now(UTC)
    shown = repr(found)
    assert shown.startswith(f"1,203 replies in {path} (0.")
    assert "  openai:large  1,200\n  small             3\n  from 20" in shown


def test_clear(path: Path) -> None:
    assert store.clear(path) == 0
    assert not path.exists()
    with Store.open(path) as replies:
        put(replies, many(0, 30), model="one")
        put(replies, many(30, 1000), model="other")
        with replies.connection() as db:
            assert db is not None
            moment = int(datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp())
            db.execute("UPDATE replies SET created = ? WHERE model = 'one'", [moment])
    assert store.clear(path, model="none") == 0
    assert store.clear(path, before="2026-01-31T12:00:00+00:00") == 0
    assert store.clear(path, model="other", before="2026-01-31T12:00:01+00:00") == 0
    assert store.clear(path, before=datetime(2026, 1, 31, 12, 0, 1, tzinfo=UTC)) == 30
    assert store.info(path).by_model == {"other": 1000}
    size = path.stat().st_size
    with Store.open(path) as replies:  # in use
        assert store.clear(path) == 1000
        assert replies.get([key(100)]) == {}
        assert put(replies, many(0, 1))
    assert path.stat().st_size < size / 2
    assert b"reply 100" not in path.read_bytes()
    assert store.clear(path, before=date(2026, 1, 1)) == 0


@pytest.mark.parametrize("wrong", ["yesterday", 3])
def test_clear_refuses_what_is_no_moment(path: Path, wrong: object) -> None:
    filled(path, 1)
    with pytest.raises(UsageError, match="before="):
        store.clear(path, before=wrong)  # type: ignore[arg-type]
    assert store.info(path).replies == 1


def test_to_parquet(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd
    import pyarrow.parquet as pq

    monkeypatch.setattr("revkit.store.manage._BATCH", 3)
    target = tmp_path / "replies.parquet"
    store.to_parquet(target, store=path)
    names = list(COLUMNS)
    assert list(pd.read_parquet(target).columns) == names
    with Store.open(path) as replies:
        put(replies, [*many(0, 7), (key(7), FULL), (key(8), Reply("half \ud800"))], model="m")
    store.to_parquet(target, store=path)
    frame = pd.read_parquet(target)
    assert list(frame.columns) == names
    assert frame["key"].tolist() == [key(n).hex() for n in range(9)]
    assert frame["text"].tolist() == [*(f"reply {n}" for n in range(7)), "positive", "half ?"]
    assert frame["probabilities"].iloc[7] == ('{"sentiment": {"positive": 0.75, "negative": 0.25}}')
    assert set(frame["model"]) == {"m"}
    assert str(frame["created"].dtype).endswith("UTC]")
    # In the file: how pandas shows a column of strings, or of none at all, depends on its version.
    kinds = {field.name: str(field.type) for field in pq.read_schema(target)}
    assert kinds == dict.fromkeys(names, "string") | {
        "prompt_tokens": "int64",
        "completion_tokens": "int64",
        "created": "timestamp[ms, tz=UTC]",
        "truncated": "bool",
    }
    assert sorted(f.name for f in tmp_path.iterdir()) == ["replies.parquet", "replies.sqlite"]


def test_a_damaged_store_is_no_parquet_file(path: Path, tmp_path: Path) -> None:
    filled(path)
    with path.open("r+b") as f:
        f.seek(path.stat().st_size // 2 // 4096 * 4096)
        f.write(b"\xa5" * 40960)
    with pytest.raises(RevkitError, match="cannot be read"):
        store.to_parquet(tmp_path / "replies.parquet", store=path)
    assert [f.name for f in tmp_path.iterdir()] == ["replies.sqlite"]


# ------------------------------------------------------------------ what is in it


def test_no_prompt_and_no_pickle_is_in_it(path: Path) -> None:
    with Store.open(path) as replies:
        put(replies, [(key(1), FULL)])
    with contextlib.closing(sqlite3.connect(path)) as db:
        (row,) = db.execute("SELECT * FROM replies")
        columns = [name for _, name, *_ in db.execute("PRAGMA table_info(replies)")]
    assert tuple(columns) == COLUMNS
    assert row[:9] == (
        *(key(1), "positive", 120, 3, "stop"),
        *('{"sentiment": {"positive": 0.75, "negative": 0.25}}', "a task", "a model", None),
    )
    assert abs(row[9] - time.time()) < 86_400
    assert row[10:] == (None,) * 5


def test_the_interrupted_write_leaves_nothing_half_done(path: Path) -> None:
    class Interrupting(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            yield key(0)
            raise KeyboardInterrupt

    filled(path, 5)
    with Store.open(path) as replies:
        with pytest.raises(KeyboardInterrupt):
            replies.forget(Interrupting())
        assert len(replies.get([key(n) for n in range(5)])) == 5
        assert put(replies, many(5, 5))
        assert replies.problem is None


def test_what_is_imported_late_looks_as_if_it_were_there() -> None:
    assert dir(store) == store.__all__
    shown = pydoc.plain(pydoc.render_doc(store))
    starred: dict[str, Any] = {}
    exec("from revkit.store import *", starred)
    for name in store.__all__:
        assert starred[name] is getattr(store, name)
        assert pickle.loads(pickle.dumps(starred[name])) is starred[name]
        assert re.search(rf"^    (class )?{name}\(", shown, re.MULTILINE)
    with pytest.raises(AttributeError, match=r"'revkit\.store' has no attribute 'inof'"):
        store.inof  # noqa: B018


def test_import_revkit_does_not_load_it() -> None:
    script = "import sys, revkit; sys.exit('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert revkit.__version__
