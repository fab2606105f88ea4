"""A damaged store: the new one begins with all replies that can still be read."""

from __future__ import annotations

import contextlib
import random
import re
import sqlite3
import tempfile
from pathlib import Path

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from revkit import Reply
from revkit.errors import plural
from revkit.store import Store, StoreWarning
from revkit.store.recover import Remains
from revkit.store.rows import COLUMNS

PAGE = 4096


def key(number: int) -> bytes:
    return number.to_bytes(20, "big")


def keys_of(count: int) -> list[bytes]:
    """In no order, as hashes are."""
    return random.Random(count).sample([key(n) for n in range(count)], count)


def fill(path: Path, replies: dict[bytes, Reply]) -> None:
    with Store.open(path) as store:
        assert store.put(replies.items(), task="t", model="m", facts={"root": "r"})


def many(count: int) -> dict[bytes, Reply]:
    return {
        k: Reply(f"reply {n} " + "x" * (n % 300), n, 1, "stop")
        for n, k in enumerate(keys_of(count))
    }


def garble(path: Path, page: int) -> None:
    """Overwrite a page, by its number from 0."""
    with path.open("r+b") as file:
        file.seek(PAGE * page)
        file.write(b"\xa5" * PAGE)


def kinds(path: Path) -> dict[int, list[int]]:
    """The pages of each kind of page, by their numbers from 0."""
    data, found = path.read_bytes(), dict[int, list[int]]()
    for page in range(1, len(data) // PAGE):
        found.setdefault(data[page * PAGE], []).append(page)
    return found


def read_all(path: Path, replies: dict[bytes, Reply], new: bytes = b"") -> dict[bytes, Reply]:
    with Store.open(path) as store:
        if new:  # which finds damage that reading alone does not
            assert store.put([(new, Reply(""))], task="t", model="m")
        return store.get(list(replies))


@pytest.mark.parametrize("kind", [2, 5, 10, 13])
def test_a_damaged_page_costs_its_own_replies_only(tmp_path: Path, kind: int) -> None:
    path, replies = tmp_path / "r.sqlite", many(5_000)
    fill(path, replies)
    of_kind = kinds(path)
    garble(path, of_kind[kind][len(of_kind[kind]) // 2])
    with pytest.warns(StoreWarning, match="is damaged.*kept as.*can still be read") as told:
        found = read_all(path, replies, b"another")
    assert found.items() <= replies.items()
    lost = len(replies) - len(found)
    assert (0 < lost < 60) if kind == 13 else lost == 0
    (message,) = {str(one.message) for one in told}
    saved = int(re.findall(r"with ([\d,]+) replies", message)[0].replace(",", ""))
    assert saved - len(found) in (0, 1)  # the new one may have been written before
    assert (f"; {plural(lost, 'reply', 'are lost')}" in message) == (lost > 0)


def test_a_damaged_head_costs_no_reply(tmp_path: Path) -> None:
    path, replies = tmp_path / "r.sqlite", many(500)
    fill(path, replies)
    garble(path, 0)
    with pytest.warns(StoreWarning, match="damaged.*500 replies that can still be read$"):
        assert read_all(path, replies) == replies


def test_a_lookup_that_meets_damage_finds_what_is_left(tmp_path: Path) -> None:
    path, replies = tmp_path / "r.sqlite", many(5_000)
    fill(path, replies)
    with Store.open(path) as store:
        for page in kinds(path)[13][3:6]:
            garble(path, page)
        with pytest.warns(StoreWarning, match="damaged"):
            found = store.get(list(replies))
    assert len(replies) - 200 < len(found) < len(replies)
    assert found.items() <= replies.items()


def test_every_column_is_kept_and_a_damaged_value_is_not(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    shares = {"sentiment": {"good": 0.75, "bad": 0.25}}
    rich = Reply("half \ud800", -3, 2**40, "length", shares, "thought", "served", "schema", True)
    fill(path, {b"rich": rich, b"long": Reply("long " * 9_000), b"bad": Reply("bad")})
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE replies SET text = CAST(x'7bff' AS TEXT) WHERE key = ?", (b"bad",))
        before = db.execute(f"SELECT {', '.join(COLUMNS)} FROM replies WHERE key != ?", (b"bad",))
        rows = before.fetchall()
    garble(path, 0)
    with pytest.warns(StoreWarning, match="with 2 replies.*1 reply is lost"):
        Store.open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert sorted(db.execute(f"SELECT {', '.join(COLUMNS)} FROM replies")) == sorted(rows)


def test_a_page_that_is_in_the_log_is_read_there(tmp_path: Path) -> None:
    path, replies = tmp_path / "r.sqlite", many(300)
    with Store.open(path) as store:
        store.put(replies.items(), task="t", model="m")
        assert Path(f"{path}-wal").stat().st_size > PAGE
        copy = tmp_path / "copy.sqlite"
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    found = Remains(copy)
    assert {row[0] for row in found.rows()} == replies.keys() == found.known


@pytest.mark.parametrize("size", [512, 1024, 65536])
def test_a_page_may_have_any_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "r.sqlite"
    replies = many(300) | {b"long": Reply("long " * 40_000)}
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size={size}")
        db.execute("VACUUM")
    fill(path, replies)
    assert {row[0]: row[1] for row in Remains(path).rows()} == {
        k: reply.text for k, reply in replies.items()
    }


texts = st.text(max_size=20) | st.integers(0, 12_000).map(lambda n: "ä" * n)


@examples(60)
@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=20),
        st.tuples(texts, st.integers(-(2**63), 2**63 - 1) | st.none(), texts | st.none()),
        max_size=40,
    ),
    st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=5_000)), max_size=3),
)
def test_whole_replies_are_read_and_no_damage_is_an_error(
    given_: dict[bytes, tuple[str, int | None, str | None]], damage: list[tuple[int, bytes]]
) -> None:
    replies = {k: Reply(a, n, None, None, thought=b or None) for k, (a, n, b) in given_.items()}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "r.sqlite"
        fill(path, replies)
        whole = {row[0]: row for row in Remains(path).rows()}
        assert {k: (row[1], row[2], row[12]) for k, row in whole.items()} == {
            k: (reply.text, reply.prompt_tokens, reply.thought) for k, reply in replies.items()
        }
        size = path.stat().st_size
        with path.open("r+b") as file:
            for at, data in damage:
                file.seek(at % size)
                file.write(data)
        found = Remains(path)
        assert sum(1 for _ in found.rows()) == len(found.read)


def test_nothing_is_read_of_what_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    assert list(Remains(path).rows()) == []
    path.write_bytes(random.Random(5).randbytes(9_999))
    assert list(Remains(path).rows()) == []
