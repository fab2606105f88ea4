"""The store's one SQLite file: how it is opened, and what is done where it cannot be used.

Nothing here deletes a file. What cannot be read is renamed and stays beside the new file; what is
not a store, or is a newer one, is not touched.

A process must never open the file but through SQLite: closing any other handle would drop the
locks that a second connection of the same process holds (POSIX). Hence ``stat`` and no ``open``.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError, plural
from .lock import locked
from .recover import Remains
from .rows import CLAIMS, COLUMNS, FIRST, LATER, TABLE, Row, copy, transaction
from .trust import exposure

__all__ = [
    "SQLITE_ERRORS",
    "File",
    "identity",
    "is_damage",
    "network_file_system",
    "open_file",
]

#: Goes up with the table; stands in the file as ``user_version``.
SCHEMA = 1
#: "rvkt": says that a file is a store of ours.
APPLICATION = 0x72766B74
#: What a statement raises; the second, where a damaged name stands in SQLite's own message.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
#: Others commit in milliseconds: who has to wait longer than this (seconds) goes on without.
_PATIENCE = 2.0
#: Errors of a place in which nothing can be made or written.
_NO_ENTRY = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR_SHM")
#: What SQLite keeps beside its file: logs, without which the file is not whole, and their index.
_LOGS = ("-wal", "-journal")
_COMPANIONS = (*_LOGS, "-shm")
#: Names that say "this is an SQLite file": one of these that is none is damaged, not foreign.
_SUFFIXES = {".sqlite", ".sqlite3", ".db"}

#: File systems on which processes of two machines may meet, or that do not share memory mappings:
#: SQLite's write-ahead log is unsafe there.
_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "lustre"),
    *("gpfs", "beegfs", "ncpfs", "ocfs2", "gfs2", "vboxsf", "virtiofs", "fuse.sshfs"),
    *("fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.vmhgfs-fuse"),
}
#: Those of them that make owners and modes up.
_OWNERLESS = {*("cifs", "smb", "smb2", "smb3", "smbfs", "9p", "vboxsf", "virtiofs")}
_OWNERLESS |= {kind for kind in _NETWORK if kind.startswith("fuse.")}
_MOUNTS = Path("/proc/self/mounts")

Identity = tuple[int, int]
Warn = Callable[[str, str], None]


class File(NamedTuple):
    """An opened store.

    Attributes:
        db: the connection; None where not even reading is possible.
        reader: a second one that reads while the first one writes; None where it cannot.
        writable: whether it can be written.
        identity: which file it is, whatever stands at its path later.
        journal: ``"wal"``, or ``"delete"`` on a network file system.
        is_new: it was begun by this call.
        columns: those of :data:`COLUMNS` that it has.
    """

    db: sqlite3.Connection | None = None
    reader: sqlite3.Connection | None = None
    writable: bool = False
    identity: Identity | None = None
    journal: str = ""
    is_new: bool = False
    columns: tuple[str, ...] = COLUMNS

    def close(self) -> None:
        # The last one to be closed moves the log into the file, which takes one that can write.
        for db in (self.reader, self.db):
            if db is not None:
                with contextlib.suppress(sqlite3.Error):
                    db.close()


class _Outdated(Exception):
    """The file has another schema; ``args[0]`` says which."""


@dataclass
class _Aside:
    """A file that was set aside.

    Attributes:
        kept: where it is now.
        found: the replies in it that can be read go into the new one.
    """

    kind: str
    was: str
    kept: Path
    found: Remains | None = None
    copied: int = 0

    def __str__(self) -> str:
        message = f"{self.was}: it is kept as {self.kept.name}, and a new one is begun"
        if self.found is None:
            return message
        lost = len(self.found.known - self.found.read)
        message += f" with {plural(self.copied, 'reply')} that can still be read"
        return message + (
            f"; {plural(lost, 'reply', 'are lost')}, to be asked for again" if lost else ""
        )


def open_file(
    path: Path,
    warn: Warn,
    *,
    damaged: Identity | None = None,
    held: sqlite3.Connection | None = None,
) -> File:
    """Open the store at ``path``, and begin it where there is none.

    Args:
        path: absolute.
        warn: called with a kind and a message for everything that could not be done.
        damaged: the file that was found damaged in use: set aside, if it is still at ``path``.
        held: a connection to the file that was at ``path`` before; its replies are copied.

    Raises:
        UsageError: there is something at ``path`` that is not a store, or a stranger could have
            planted it.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        warn("off", f"the directory {path.parent} cannot be made ({error.strerror}): {_OFF}")
        return File()
    real = network_file_system(path) not in _OWNERLESS
    if real and (exposed := exposure(path, _beside(path, _COMPANIONS))) is not None:
        warn("", exposed)  # it is no trouble of the store's
    aside: _Aside | None = None
    # One process at a time begins a file or sets one aside; who waits too long goes on without.
    with locked(path.parent, wait_s=_PATIENCE):
        try:
            if damaged is not None and damaged == identity(path):
                aside = _set_aside(path, "damaged", "is damaged")
            elif identity(path) is None and _beside(path, _COMPANIONS):
                # Others may have them in use still, and a new file must not meet them.
                aside = _set_aside(path, "removed", "was removed, but not its log")
            for _ in range(2):
                try:
                    file = _open(path, warn)
                except _Outdated as outdated:
                    (version,) = outdated.args
                    if version > SCHEMA:
                        warn(
                            "off",
                            f"{path} was written by a newer revkit (format {version}, this one "
                            f"knows {SCHEMA}) and is left as it is: {_OFF}; upgrade revkit, or "
                            "pass store= another path",
                        )
                        return File()
                    was = f"has an older format ({version}) than this revkit's ({SCHEMA})"
                    aside = _set_aside(path, f"format{version}", was)
                except SQLITE_ERRORS as error:
                    if not is_damage(error):
                        raise
                    if path.suffix not in _SUFFIXES and _name(error) == "SQLITE_NOTADB":
                        raise UsageError(
                            f"{path} is not a store of revkit, nor any SQLite file; pass store= "
                            'a directory, or a path at which there is nothing ("replies.sqlite")'
                        ) from None
                    aside = _set_aside(path, "damaged", f"is damaged ({error})")
                else:
                    try:
                        _fill(file, path, aside, held, warn)
                    except BaseException:
                        file.close()
                        raise
                    return file
            warn("off", f"{path} is damaged again as soon as it is begun: {_OFF}")
        except (OSError, sqlite3.Error) as error:
            if aside is not None:
                warn(aside.kind, f"the store {path} {aside}")
            warn("off", f"the store {path} cannot be opened ({error}): {_OFF}")
    return File()


def _fill(
    file: File, path: Path, aside: _Aside | None, held: sqlite3.Connection | None, warn: Warn
) -> None:
    """Copy the replies that are left of the file before into the new one."""
    copied = 0
    if file.db is not None and file.writable:
        # What cannot be copied now stays in the file that was set aside.
        with contextlib.suppress(*SQLITE_ERRORS, OSError):
            if held is not None:
                copied = copy(file.db, file.columns, _held(held))
            if aside is not None and aside.found is not None:
                aside.copied = copy(file.db, file.columns, aside.found.rows())
    if held is not None:
        was = "was removed or replaced while it was in use"
        if aside is not None:
            was += f" (its log is kept as {aside.kept.name}-wal)"
            copied += aside.copied
        warn(
            "removed",
            f"the store {path} {was}; {plural(copied, 'reply')} that it still held "
            f"{'is' if copied == 1 else 'are'} copied to the new file",
        )
    elif aside is not None:
        warn(aside.kind, f"the store {path} {aside}")


def _held(db: sqlite3.Connection) -> Iterator[Row]:
    """The replies of a file that may have no name any more."""
    there = _columns(db)
    names = ", ".join(name if name in there else "NULL" for name in COLUMNS)
    yield from db.execute(f"SELECT {names} FROM replies")


_OFF = "replies of this run are not kept"


def _open(path: Path, warn: Warn) -> File:
    is_new = _make(path)
    try:
        db = _connect(path, "mode=rw")
    except sqlite3.OperationalError as error:
        if not _name(error).startswith(_NO_ENTRY):
            raise
        # In a directory that cannot be written, or on a full disk, SQLite cannot make the files
        # that go with the log. The file alone is whole where no log or journal is left over.
        if any(log.stat().st_size for log in _beside(path, _LOGS)):
            raise
        db = _connect(path, "mode=ro&immutable=1")
    try:
        version = _version(db, path)
        network = network_file_system(path)
        journal = "delete" if network else "wal"
        # A kill of this process loses nothing that was committed: it is with the system by then.
        # NORMAL leaves out what only a power cut would need, and is whole even after that; without
        # the log it would not be.
        db.execute(f"PRAGMA synchronous={'FULL' if network else 'NORMAL'}")
        writable = _is_writable(db)
        if not writable and version is None:
            raise sqlite3.OperationalError("it is empty and cannot be written")
        if version is None:
            path.chmod(0o600)  # before SQLite makes its companions, which take the same mode
        if writable:
            # Another connection may be in the way; then its mode is ours.
            with contextlib.suppress(sqlite3.OperationalError):
                db.execute(f"PRAGMA journal_mode={journal}")
            if version is None:
                _begin(db)
            _add_later(db)
        else:
            reason = "cannot be written: replies are read from it, and new ones are not kept"
            warn("readonly", f"the store {path} {reason}")
        _check(db)
        (journal,) = db.execute("PRAGMA journal_mode").fetchone()
        reader = _connect(path, "mode=ro") if writable and journal == "wal" else None
        is_new = is_new or version is None
        return File(db, reader, writable, identity(path), journal, is_new, _columns(db))
    except BaseException:
        db.close()
        raise


def _make(path: Path) -> bool:
    """Make the file, for its owner only; SQLite gives its companions the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"store={str(path)!r} is neither a file nor a directory") from None
        return False
    return True


def _connect(path: Path, how: str) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.as_uri()}?{how}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_PATIENCE,
    )
    try:
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # reads the file
    except BaseException:
        db.close()
        raise
    return db


def _version(db: sqlite3.Connection, path: Path) -> int | None:
    """Check that this is a store of this format; None where it is empty."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (things,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION:
        if application or version or things:
            raise UsageError(
                f"{path} is the SQLite database of another program; pass store= a path of its own"
            )
        return None
    if version != SCHEMA:
        raise _Outdated(version)
    return SCHEMA


def _begin(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        # Where directories cannot be locked, another process may have begun it just now.
        if db.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
            db.execute(TABLE)
            db.execute(f"PRAGMA application_id={APPLICATION}")
            db.execute(f"PRAGMA user_version={SCHEMA}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _columns(db: sqlite3.Connection) -> tuple[str, ...]:
    """The columns that the file has, of those that we know."""
    there = {name for _, name, *_ in db.execute("PRAGMA table_info(replies)")}
    return tuple(name for name in COLUMNS if name in there)


def _add_later(db: sqlite3.Connection) -> None:
    """Add what a file of an earlier revkit lacks; it can be used without."""
    query = "SELECT count(*) FROM sqlite_master WHERE name = 'claims'"
    if len(_columns(db)) == len(COLUMNS) and db.execute(query).fetchone() == (1,):
        return
    with contextlib.suppress(sqlite3.OperationalError), transaction(db):  # in use, or no room
        there = _columns(db)  # another process may have been faster
        for name, kind in LATER.items():
            if name not in there:
                db.execute(f"ALTER TABLE replies ADD COLUMN {name} {kind}")
        db.execute(CLAIMS)


def _check(db: sqlite3.Connection) -> None:
    try:
        db.execute(f"SELECT {', '.join(FIRST)} FROM replies LIMIT 0").fetchone()
    except sqlite3.OperationalError as error:
        if _name(error) == "SQLITE_ERROR":  # no such table, no such column
            raise sqlite3.DatabaseError(f"malformed: {error}") from None
        raise


def _is_writable(db: sqlite3.Connection) -> bool:
    """Try it: a file may be open for reading only without saying so."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    try:
        db.execute("BEGIN IMMEDIATE")
        db.execute(f"PRAGMA user_version={version}")
    except sqlite3.OperationalError as error:
        return not _name(error).startswith(_NO_ENTRY)
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
    return True


def _beside(path: Path, suffixes: Iterable[str]) -> list[Path]:
    """Those of the files beside the one at ``path`` that are there."""
    files = (path.with_name(path.name + suffix) for suffix in suffixes)
    return [file for file in files if file.exists()]


def _set_aside(path: Path, kind: str, was: str) -> _Aside:
    """Rename the file and its log. The caller has closed its own connections."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    kept, number = path.with_name(f"{path.name}.{kind}-{stamp}"), 0
    while _beside(kept, ("", *_COMPANIONS)):
        number += 1
        kept = path.with_name(f"{path.name}.{kind}-{stamp}-{number}")
    for suffix in ("", *_COMPANIONS):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(f"{kept}{suffix}")
    return _Aside(kind, was, kept, Remains(kept) if kind in ("damaged", "removed") else None)


def identity(path: Path) -> Identity | None:
    """Which file stands at ``path``; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _name(error: Exception) -> str:
    return getattr(error, "sqlite_errorname", "")


def is_damage(error: Exception) -> bool:
    """Whether what is in the file is at fault, not its place or its users."""
    if isinstance(error, ValueError):  # no text, no JSON
        return True
    if not _name(error):  # raised by Python's side
        return "malformed" in str(error) or "decode" in str(error)
    return _name(error).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR_CORRUPTFS"))


def network_file_system(path: Path) -> str | None:
    """The type of the network file system that ``path`` is on (Linux); None elsewhere."""
    try:
        mounts = _MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    where = Path(os.path.realpath(path))
    best, found = -1, ""
    for line in mounts:
        _, at, kind, *_ = line.split(" ")
        mount = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), at))
        if where.is_relative_to(mount) and len(mount.parts) >= best:  # the last one covers others
            best, found = len(mount.parts), kind
    return found if found in _NETWORK else None
