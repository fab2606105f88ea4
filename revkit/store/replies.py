"""The replies of models, kept in one SQLite file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError, plural, warn
from ..task.chat import Reply
from .beside import contradict, read_facts, write_facts
from .claims import FileClaims
from .contract import NO_FACTS, Claims, Facts
from .file import SQLITE_ERRORS, File, identity, is_damage, open_file
from .rows import LOOKUP, Row, insert, read_columns, reply_of, row_of, transaction
from .trust import refuse_link

__all__ = ["Store", "StoreWarning", "default_path", "locate"]

_FILE = "replies.sqlite"


class StoreWarning(UserWarning):
    """The store cannot do its part; the run goes on without it."""


def default_path() -> Path:
    """Where replies are kept if nothing else is said.

    The user's data directory, not a cache that gets purged: these replies were paid for.
    """
    import platformdirs

    return platformdirs.user_data_path("revkit", appauthor=False) / _FILE


def locate(path: str | os.PathLike[str]) -> Path:
    """The file that ``path`` means: itself, or one in it where it is a directory."""
    given = os.fspath(path)
    found = Path(given).expanduser().absolute()
    return found / _FILE if found.is_dir() or given.endswith(("/", os.sep)) else found


class Store:
    """A :class:`~revkit.store.contract.ReplyStore` in one SQLite file.

    Several stores may use one file at the same time, in one process or in several. A :meth:`put`
    in one thread makes :meth:`get` in another wait only where :attr:`journal` is not ``"wal"``.

    Attributes:
        path: the file.

    >>> import tempfile
    >>> from revkit import Reply
    >>> with tempfile.TemporaryDirectory() as directory, Store.open(directory) as store:
    ...     store.put([(b"a key", Reply("positive"))], task="a task", model="a model")
    ...     kept = store.get([b"a key", b"another"])
    True
    >>> kept == {b"a key": Reply("positive")}
    True
    """

    def __init__(self, path: Path):
        self.path = path
        if path.is_symlink():
            refuse_link(path)
            # SQLite keeps its log beside the file that the link leads to.
            self.path = Path(os.path.realpath(path))
        #: For all but reading. The file's connections are closed under both, this one taken first.
        self._lock = threading.Lock()
        self._read_lock = threading.Lock()
        #: Kind of trouble -> what it keeps the store from doing.
        self._troubles: dict[str, str] = {}
        #: Rows that could not be written yet, and how many there are when it is tried again: twice
        #: as many each time, so that a disk that stays full costs next to nothing.
        self._waiting: list[Row] = []
        self._try_at = 0
        #: replies that could not be written, and never will be; and whether any was
        self._lost, self._wrote = 0, False
        self._in_use = False
        self._claims = FileClaims(self.path, self.connection, self._warn)
        self._file = open_file(self.path, self._warn)
        self._in_use = True

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> Store:
        """Open the store at ``path``, and begin it where there is none.

        Args:
            path: a file, or a directory for a file ``replies.sqlite`` in it; None: the default
                place. What is made is readable by its owner only.

        Raises:
            UsageError: there is something at ``path`` that is not a store.
        """
        return cls(default_path() if path is None else locate(path))

    @property
    def problem(self) -> str | None:
        return "; ".join(self._troubles.values()) or None

    @property
    def writable(self) -> bool:
        """Whether new replies can be kept."""
        return self._file.writable

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the file has: all, unless an earlier revkit's could not be written."""
        return self._file.columns

    @property
    def is_new(self) -> bool:
        """Whether the file was begun when this store was opened."""
        return self._file.is_new

    @property
    def journal(self) -> str:
        """``"wal"``; ``"delete"`` on a network file system; empty where the store is off."""
        return self._file.journal

    @property
    def claims(self) -> Claims | None:
        """None where the file cannot be written, or is on a network file system."""
        return self._claims if self.writable and self.journal == "wal" else None

    def get(self, keys: Sequence[bytes], *, facts: Facts = NO_FACTS) -> dict[bytes, Reply]:
        for _ in range(2):  # a damaged file is begun again with what can be read of it
            try:
                with self._reading() as db:
                    return {} if db is None else _find(db, self._file.columns, keys, facts)
            except (sqlite3.Error, ValueError) as error:
                with self._lock:
                    if db in (self._file.db, self._file.reader):  # nobody has seen to it meanwhile
                        self._unread(error)
                if not is_damage(error):
                    break
        return {}

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection to read with, to one thread at a time; None where the store is off."""
        with self._read_lock:
            if self._file.reader is not None:
                yield self._file.reader
                return
        with self._lock:
            yield self._file.db

    def put(
        self,
        items: Iterable[tuple[bytes, Reply]],
        *,
        task: str,
        model: str,
        facts: Facts = NO_FACTS,
    ) -> bool:
        """Keep replies, in one transaction; a key's first reply stands while its facts do."""
        now = int(time.time())
        with self._lock:
            if not self._file.writable:
                return False
            about, told = (task, model, facts.get("weights"), now), write_facts(facts)
            self._waiting.extend(row_of(key, reply, about, told) for key, reply in items)
            return len(self._waiting) >= self._try_at and self._write()

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection | None]:
        """The connection itself, to one thread at a time; None where the store is off."""
        with self._lock:
            yield self._file.db

    def forget(self, keys: Iterable[bytes]) -> None:
        with self._lock:
            if self._file.db is None or not self._file.writable:
                return
            try:
                with transaction(self._file.db) as db:
                    db.executemany("DELETE FROM replies WHERE key = ?", [(key,) for key in keys])
            except SQLITE_ERRORS as error:
                self._trouble(error)

    def close(self) -> None:
        """Write what waits, and close the file. Closing twice does nothing."""
        self._claims.close()
        with self._lock:
            if self._wrote and identity(self.path) != self._file.identity:
                self._reopen()
            if self._waiting and not self._write():
                self._lost += len(self._waiting)
                self._waiting.clear()
            if self._lost:
                self._troubles.pop("unwritten", None)
                self._warn(
                    "lost",
                    f"{plural(self._lost, 'reply')} could not be written to {self.path}: the next "
                    "run asks again for what is not kept",
                )
            self._wrote, self._lost = False, 0
            self._close_file()

    def _write(self) -> bool:
        """Write what waits; says whether it is written."""
        if not self._waiting:
            return True
        if identity(self.path) != self._file.identity:
            # Somebody set the file aside or removed it: what is written to it now is lost.
            self._reopen()
        for _ in range(2):
            if self._file.db is None or not self._file.writable:
                self._lost += len(self._waiting)
                self._waiting.clear()
                return False
            try:
                insert(self._file.db, self._file.columns, self._waiting)
            except SQLITE_ERRORS as error:
                if not self._trouble(error):
                    return False
            else:
                self._waiting.clear()
                self._wrote, self._try_at = True, 0
                self._troubles.pop("unwritten", None)
                return True
        return False

    def _trouble(self, error: Exception) -> bool:
        """Do what can be done about an error; says whether it is worth to try again at once."""
        if is_damage(error):
            self._replace()
            return True
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_READONLY"):
            self._file = self._file._replace(writable=False)
            self._lost += len(self._waiting)
            self._waiting.clear()
            self._warn("readonly", f"the store {self.path} cannot be written any more ({error})")
            return False
        self._try_at = 2 * len(self._waiting)
        self._warn(
            "unwritten",
            f"the store {self.path} cannot be written at present ({error}); what it holds is safe, "
            "and new replies are tried again later in the run",
        )
        return False

    def _unread(self, error: Exception) -> None:
        if is_damage(error):
            self._replace()
        else:
            self._warn("unread", f"the store {self.path} cannot be read ({error})")

    def _replace(self) -> None:
        """Set a damaged file aside and begin a new one."""
        if self._file.writable:
            self._reopen(damaged=True)
        else:
            self._close_file()
            self._warn("off", f"the store {self.path} is damaged, and its place cannot be written")

    def _reopen(self, *, damaged: bool = False) -> None:
        """Begin the file again, with what can be read of the one that was open."""
        was = self._file
        if damaged:
            self._close_file()
        try:
            opened = open_file(
                self.path,
                self._warn,
                damaged=was.identity if damaged else None,
                held=None if damaged else was.db,
            )
        except UsageError as error:  # somebody put another file there in the meantime
            self._warn("off", str(error))
            opened = File()
        with self._read_lock:
            self._file.close()
            self._file = opened

    def _close_file(self) -> None:
        with self._read_lock:
            self._file.close()
            self._file = File()

    def _warn(self, kind: str, message: str) -> None:
        """Note a trouble, and warn of it once for each kind; without a kind it is none."""
        if kind:
            known = kind in self._troubles
            self._troubles[kind] = message
            if known:
                return
        try:
            warn(message, StoreWarning)
        except StoreWarning:
            # Warnings are errors here. Before the run that is one; in it, it would cost replies.
            if not self._in_use:
                raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"


def _find(
    db: sqlite3.Connection, columns: tuple[str, ...], keys: Sequence[bytes], facts: Facts
) -> dict[bytes, Reply]:
    found = {}
    for start in range(0, len(keys), LOOKUP):
        some: list[Any] = list(keys[start : start + LOOKUP])
        marks = ", ".join("?" * len(some))
        names = ", ".join(read_columns(columns))
        for row in db.execute(
            f"SELECT {names} FROM replies WHERE key IN ({marks})", some
        ).fetchall():
            kept, whole = read_facts(row[-1], row[6])
            if not contradict(kept, facts):
                found[row[0]] = reply_of(row, whole=whole)
    return found
