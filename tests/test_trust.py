"""Stores that others can write, or that belong to others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from revkit import Reply, UsageError
from revkit.store import Store, StoreWarning, trust
from revkit.testing import FakeModel

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no owners")

STRANGER = 54_321
is_root = pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can give files away"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store in a directory of its own."""
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    with Store.open(place) as store:
        store.put([(b"key", Reply("good"))], task="t", model="m")
    return place / "replies.sqlite"


@pytest.fixture(autouse=True)
def every_group_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_is_private", lambda group: False)


@pytest.mark.parametrize(
    ("file", "place", "says"),
    [
        (0o600, 0o700, None),
        (0o644, 0o755, None),
        (0o600, 0o1777, None),
        (0o600, 0o1770, None),
        (0o666, 0o700, "anyone can write .*replies.sqlite"),
        (0o660, 0o700, "group .* can write .*replies.sqlite"),
        (0o600, 0o777, "anyone can replace files in"),
        (0o600, 0o770, "group .* can replace files in"),
        (0o666, 0o777, "anyone can write .*anyone can replace"),
    ],
)
def test_a_store_that_others_can_write_is_used_with_a_warning(
    path: Path, file: int, place: int, says: str | None
) -> None:
    path.chmod(file)
    path.parent.chmod(place)
    if says is None:
        store = Store.open(path)
    else:
        with pytest.warns(StoreWarning, match=f"{says}.*store= a path in a directory of your own"):
            store = Store.open(path)
    with store:
        assert store.get([b"key"]) == {b"key": Reply("good")}
        assert store.problem is None  # it can do all that it is for


@is_root
@pytest.mark.parametrize("mode", [0o777, 0o1777])
@pytest.mark.parametrize("planted", ["", "-wal", "-journal"])
def test_what_a_stranger_could_have_planted_is_refused(path: Path, mode: int, planted: str) -> None:
    import pandas as pd

    path.parent.chmod(mode)
    file = Path(f"{path}{planted}")
    file.touch()
    os.chown(file, STRANGER, STRANGER)
    fake = FakeModel(["positive"])
    with pytest.raises(UsageError, match=r"belongs to another user .*may be made up.*remove"):
        pd.DataFrame({"review": ["good"]}).llm.parallel_map(model=fake, store=path)
    assert fake.calls == []


@is_root
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_store_of_another_user_is_used_with_a_warning(path: Path, what: str) -> None:
    os.chown(path if what == "file" else path.parent, STRANGER, STRANGER)
    with (
        pytest.warns(StoreWarning, match=r"belongs to another user .*54321.*used as they are"),
        Store.open(path) as store,
    ):
        assert store.get([b"key"]) == {b"key": Reply("good")}


@is_root
def test_a_link_of_another_user_is_refused(path: Path) -> None:
    link = path.with_name("link.sqlite")
    link.symlink_to(path)
    Store.open(link).close()
    os.lchown(link, STRANGER, STRANGER)
    with pytest.raises(UsageError, match=r"a link of another user .*54321.*the file itself"):
        Store.open(link)


def test_a_group_of_one_user_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd

    monkeypatch.undo()
    user = pwd.struct_passwd(("ann", "x", 1000, 1000, "", "/", "/"))
    members: list[str] = []
    monkeypatch.setattr(pwd, "getpwuid", lambda number: user)
    monkeypatch.setattr(
        grp, "getgrgid", lambda number: grp.struct_group((name, "x", number, members))
    )
    name = "ann"
    assert trust._is_private(1000)
    assert not trust._is_private(1001)
    members.append("bob")
    assert not trust._is_private(1000)
    members.clear()
    name = "users"
    assert not trust._is_private(1000)


@is_root
def test_nobody_can_tell_where_owners_are_made_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.chmod(0o777)
    os.chown(path, STRANGER, STRANGER)
    monkeypatch.setattr("revkit.store.file.network_file_system", lambda path: "9p")
    Store.open(path).close()
