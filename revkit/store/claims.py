"""The claims of runs on one machine to the keys of one store, in its file.

An owner of claims is a run. It lives as long as it has a lock on a file of its own beside the
store: the system drops the lock of a process that ends, in whatever way. A number of a process says
less, for processes in two containers may have the same one.

All claims of an owner are one row of the table, which each claim replaces. A run that is alone pays
for one short transaction in as many rows as it has workers.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sqlite3
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from .file import SQLITE_ERRORS, Identity, Warn, identity
from .rows import LOOKUP, transaction

__all__ = ["FileClaims"]

#: Seconds between two looks for keys that became free, and in which a claim to a key without a
#: reply is released.
_LOOK, _RELEASE = 0.1, 0.5
#: Seconds in which others look whether an owner lives.
_PATIENCE = 2.0
_TRIES = 5

Connection = Callable[[], AbstractContextManager[sqlite3.Connection | None]]


class FileClaims:
    """The :class:`~revkit.store.contract.Claims` of one run.

    Where a claim cannot be written, the run goes on without any: in doubt a reply is paid for
    twice, and no row waits for ever.

    Args:
        path: of the store.
        connection: gives its connection, to one thread at a time.
        warn: called with a kind and a message.
    """

    at_once: int | None = None

    def __init__(self, path: Path, connection: Connection, warn: Warn):
        self._path = path
        self._connection = connection
        self._warn = warn
        self._owner: _Owner | None = None
        self._is_off = False
        #: keys that are claimed, in order, and in hex
        self._mine: dict[bytes, str] = {}
        self._look_at, self._release_at = -math.inf, math.inf

    @property
    def version(self) -> object:
        if not self._is_off:
            with self._may_fail(), self._connection() as db:
                if db is not None:
                    return _version(db)
        return object()

    def claim(self, keys: Sequence[bytes]) -> tuple[Collection[bytes], object]:
        dead: set[str] = set()
        if self._is_off:
            return (), object()
        with self._may_fail():
            if self._owner is None or not self._owner.stands:
                dead = self._begin()
            while True:
                others, version = self._write(keys, dead)
                taken = {key: owner for owner, theirs in others.items() for key in theirs}
                dead = self._dead(taken[key] for key in keys if key in taken)
                if not dead:
                    return [key for key in keys if key in taken], version
        return (), object()

    @property
    def has_news(self) -> bool:
        return time.monotonic() >= self._look_at

    def freed(self, keys: Sequence[bytes]) -> Collection[bytes]:
        self._look_at = time.monotonic() + _LOOK
        if self._is_off:
            return keys
        with self._may_fail(), self._connection() as db:
            if db is None:
                return keys
            others = _others(db, self._name)
            free = set(keys).difference(*others.values())
            for start in range(0, len(keys), LOOKUP):
                some = keys[start : start + LOOKUP]
                marks = ", ".join("?" * len(some))
                query = f"SELECT key FROM replies WHERE key IN ({marks})"
                free.update(key for (key,) in db.execute(query, some))
            taken = {owner for owner, theirs in others.items() if not free.issuperset(keys)}
            for owner in self._dead(taken):
                free |= others[owner]
            return [key for key in keys if key in free]
        return keys

    def release(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._mine.pop(key, None)
        if self._release_at == math.inf:
            self._release_at = time.monotonic() + _RELEASE

    @property
    def is_due(self) -> bool:
        return self._release_at < math.inf and time.monotonic() >= self._release_at

    def flush(self) -> None:
        self._release_at = math.inf
        if self._owner is not None and not self._is_off:
            with self._may_fail():
                self._write((), set())

    @property
    def _name(self) -> str:
        return "" if self._owner is None else self._owner.name

    def close(self) -> None:
        """Release all claims. Closing twice does nothing."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        try:
            self._mine.clear()
            with contextlib.suppress(*SQLITE_ERRORS), self._connection() as db:
                if db is not None:
                    db.execute("DELETE FROM claims WHERE owner = ?", (owner.name,))
        finally:
            owner.close()

    def _begin(self) -> set[str]:
        """Begin to be an owner; returns the dead ones."""
        if self._owner is not None:
            self._owner.close()
        self._owner = _Owner(self._path)
        with self._connection() as db:
            return set() if db is None else self._dead(_others(db, self._name))

    def _write(self, keys: Sequence[bytes], dead: set[str]) -> tuple[dict[str, set[bytes]], object]:
        """Write the claims as they are now, and those to free keys; returns others' claims."""
        with self._connection() as db:
            if db is None:
                return {}, object()
            with transaction(db):
                for name in dead:
                    db.execute("DELETE FROM claims WHERE owner = ?", (name,))
                others = _others(db, self._name)
                theirs: set[bytes] = set().union(*others.values())
                for key in keys:
                    if key not in theirs:
                        self._mine[key] = key.hex()
                mine = " ".join(self._mine.values())
                db.execute("REPLACE INTO claims (owner, keys) VALUES (?, ?)", (self._name, mine))
                version = _version(db)
        self._release_at = math.inf
        return others, version

    def _dead(self, owners: Iterable[str]) -> set[str]:
        return {name for name in set(owners) if not _lives(self._path, name)}

    @contextlib.contextmanager
    def _may_fail(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, *SQLITE_ERRORS) as error:
            self._is_off, self._release_at = True, math.inf
            self._warn(
                "unclaimed",
                f"the store {self._path} can take no claims at present ({error}): a run of the "
                "same rows at the same time may pay for them, too",
            )


class _Owner:
    """A file that is locked as long as this process and this object live."""

    def __init__(self, store: Path):
        for _ in range(_TRIES):
            self.name = uuid.uuid4().hex
            self._path = _file_of(store, self.name)
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._lock = _connected(self._path, _PATIENCE)
            self._identity: Identity | None = identity(self._path)
            try:
                self._lock.execute("BEGIN EXCLUSIVE")
            except BaseException:
                self.close()
                raise
            if self.stands:  # else another took it for dead before it was locked
                return
            self._lock.close()
        raise OSError(f"the files beside {store} are removed again and again")

    @property
    def stands(self) -> bool:
        """Whether others find the file."""
        return self._identity is not None and identity(self._path) == self._identity

    def close(self) -> None:
        self._lock.close()
        self._path.unlink(missing_ok=True)


def _lives(store: Path, owner: str) -> bool:
    """Whether an owner lives; removes the file of a dead one."""
    if not re.fullmatch("[0-9a-f]{32}", owner):  # no name of ours
        return False
    path = _file_of(store, owner)
    try:
        with contextlib.closing(_connected(path, 0.0)) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            path.unlink(missing_ok=True)
    except sqlite3.Error as error:
        return getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
    except OSError:
        return False
    return False


def _file_of(store: Path, owner: str) -> Path:
    return store.with_name(f"{store.name}.owner-{owner}")


def _connected(path: Path, patience: float) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=patience,
    )
    try:
        db.execute("PRAGMA journal_mode=MEMORY")  # nothing is written to it: no file beside it
    except BaseException:  # another one has the lock
        db.close()
        raise
    return db


def _others(db: sqlite3.Connection, owner: str) -> dict[str, set[bytes]]:
    """The claims of the other owners."""
    rows = db.execute("SELECT owner, keys FROM claims WHERE owner != ?", (owner,))
    return {name: set(map(bytes.fromhex, keys.split())) for name, keys in rows}


def _version(db: sqlite3.Connection) -> object:
    """Differs from before where another connection has written."""
    return db.execute("PRAGMA data_version").fetchone()
