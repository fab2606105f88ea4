"""The table of replies: its columns, and how a reply becomes a row of it and comes back."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from ..task.chat import Reply
from .beside import FIELDS, NO_FIELDS, contradict, read_facts, read_fields

__all__ = [
    "CLAIMS",
    "COLUMNS",
    "FIRST",
    "LATER",
    "LOOKUP",
    "TABLE",
    "Row",
    "copy",
    "insert",
    "is_whole",
    "read_columns",
    "reply_of",
    "row_of",
    "transaction",
]

#: The values of a reply, in the order of :data:`COLUMNS`.
Row = tuple[Any, ...]

#: The columns that revkit 0.1.0 knew. It names them in all that it writes, so it can still use a
#: file that has more.
FIRST = (
    "key",
    "text",
    "prompt_tokens",
    "completion_tokens",
    "finish_reason",
    "probabilities",
    "task",
    "model",
    "weights",
    "created",
)
#: Those that came later, each of which may be NULL: a file gets them when it is first written.
LATER = {
    "served": "TEXT",  # name of the model that answered, as the server gives it
    "format": "TEXT",  # how the reply's form was asked for
    "thought": "TEXT",  # what the model thought before it answered
    "truncated": "INTEGER",  # 1: the text was cut, and kept
    "facts": "TEXT",  # JSON: what the server said of the model
}
COLUMNS = (*FIRST, *LATER)
TABLE = """
CREATE TABLE replies (
    key BLOB PRIMARY KEY,       -- see keys.py
    text TEXT NOT NULL,         -- what the model said
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    finish_reason TEXT,
    probabilities TEXT,         -- JSON: output -> label -> probability
    task TEXT NOT NULL,         -- fingerprint of the task that asked
    model TEXT NOT NULL,
    weights TEXT,               -- digest of the model's weights, where it is known
    created INTEGER NOT NULL    -- seconds since 1970, UTC
)"""
#: See ``claims.py``; a file gets it when it is first written.
CLAIMS = """
CREATE TABLE IF NOT EXISTS claims (
    owner TEXT PRIMARY KEY,     -- names the file that the owner has locked
    keys TEXT NOT NULL          -- in hex, with blanks between them
)"""
#: Keys looked up by one statement; every build of SQLite takes 999 variables.
LOOKUP = 500
#: Replies put in by one statement. SQLite's module gives the interpreter away at each row of an
#: ``executemany``, and gets it back in competition with the loop that replies come in on.
_INSERTED = 999 // len(COLUMNS)
#: Replies that are copied in one commit.
_COPIED = 5_000


def insert(db: sqlite3.Connection, columns: tuple[str, ...], rows: list[Row]) -> None:
    """All or nothing."""
    outdated = _outdated(db, columns, rows)
    if not outdated and len(rows) <= _INSERTED:  # a statement is a transaction
        _insert_some(db, columns, rows)
        return
    with transaction(db):
        db.executemany("DELETE FROM replies WHERE key = ?", [(key,) for key in outdated])
        for start in range(0, len(rows), _INSERTED):
            _insert_some(db, columns, rows[start : start + _INSERTED])


def copy(db: sqlite3.Connection, columns: tuple[str, ...], rows: Iterator[Row]) -> int:
    """Add rows to those that are there, in commits of thousands; returns how many were new."""
    before = db.total_changes
    while some := list(itertools.islice(rows, _COPIED)):
        with transaction(db):
            for start in range(0, len(some), _INSERTED):
                _insert_some(db, columns, some[start : start + _INSERTED])
    return db.total_changes - before


def _insert_some(db: sqlite3.Connection, columns: tuple[str, ...], rows: list[Row]) -> None:
    if len(columns) < len(COLUMNS):  # of a file that could not get the later ones
        rows = [row[: len(columns)] for row in rows]
    db.execute(_insertion(columns, len(rows)), list(itertools.chain.from_iterable(rows)))


@functools.cache
def _insertion(columns: tuple[str, ...], rows: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return (
        f"INSERT INTO replies ({', '.join(columns)}) VALUES {', '.join([row] * rows)} "
        "ON CONFLICT (key) DO NOTHING"
    )


def _outdated(db: sqlite3.Connection, columns: tuple[str, ...], rows: list[Row]) -> list[bytes]:
    """The keys whose kept reply has other facts than the new one."""
    new = {row[0]: read_facts(row[-1], row[_WEIGHTS])[0] for row in rows if row[-1] is not None}
    keys, outdated = list(new), []
    facts = "facts" if "facts" in columns else "NULL"
    for start in range(0, len(keys), LOOKUP):
        some = keys[start : start + LOOKUP]
        marks = ", ".join("?" * len(some))
        query = f"SELECT key, weights, {facts} FROM replies WHERE key IN ({marks})"
        for key, weights, text in db.execute(query, some):
            try:
                is_outdated = contradict(read_facts(text, weights)[0], new[key])
            except ValueError:  # no JSON
                is_outdated = True
            if is_outdated:
                outdated.append(key)
    return outdated


#: Where the digest of the weights stands in a row.
_WEIGHTS = COLUMNS.index("weights")


#: What is read of a row to make a reply of it.
_WANTED = (*COLUMNS[:6], "weights", *FIELDS, "facts")


@functools.cache
def read_columns(columns: tuple[str, ...]) -> list[str]:
    """What is read of a row: NULL for what the file does not have."""
    return [name if name in columns else "NULL" for name in _WANTED]


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing, whatever ends it: an interrupt, too."""
    try:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")


def row_of(key: bytes, reply: Reply, about: Row, facts: str | None) -> Row:
    return (
        key,
        _text(reply.text),
        _count(reply.prompt_tokens),
        _count(reply.completion_tokens),
        reply.finish_reason and _text(reply.finish_reason),
        _shares(reply),
        *about,
        reply.model and _text(reply.model),
        reply.format,
        reply.thought and _text(reply.thought),
        reply.truncated or None,
        facts,
    )


def _text(text: str) -> str | bytes:
    """Text for SQLite, which refuses half of a surrogate pair; a reply may hold one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _shares(reply: Reply) -> str | None:
    if reply.probabilities is None:
        return None
    try:
        return json.dumps(
            {
                output: {str(label): float(share) for label, share in shares.items()}
                for output, shares in reply.probabilities.items()
            }
        )
    except (TypeError, ValueError, AttributeError):  # a user's own client; the text is what counts
        return None


def _count(tokens: int | None) -> int | None:
    """A server may count to anything; SQLite counts to 2**63."""
    return int(tokens) if tokens is not None and -(2**63) <= tokens < 2**63 else None


def reply_of(row: Row, *, whole: bool) -> Reply:
    """The reply of a row, without the later fields where these are another reply's."""
    _, text, prompt_tokens, completion_tokens, reason, probabilities, _, *more, _ = row
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogatepass")
    if isinstance(reason, bytes):
        reason = reason.decode("utf-8", "surrogatepass")
    if probabilities is not None:
        probabilities = json.loads(probabilities)
    fields = read_fields(more) if whole and more != NO_FIELDS else {}
    return Reply(text, prompt_tokens, completion_tokens, reason, probabilities, **fields)


def is_whole(row: Row) -> bool:
    """Whether a row that was read past SQLite is one of this table, and can be read again."""
    fields = dict(zip(COLUMNS, row, strict=True))
    texts = fields["task"], fields["model"]
    known = isinstance(fields["key"], bytes) and all(isinstance(text, str) for text in texts)
    if not known or not isinstance(fields["created"], int):
        return False
    try:
        read = [fields.get(name) for name in _WANTED]
        _, whole = read_facts(read[-1], read[6])
        reply = reply_of(tuple(read), whole=whole)
    except (ValueError, TypeError, AttributeError):
        return False
    counts = reply.prompt_tokens, reply.completion_tokens
    return isinstance(reply.text, str) and all(isinstance(n, int | None) for n in counts)
