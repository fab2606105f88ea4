"""What users do with a store: look what is in it, empty it, write it to Parquet."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from ..errors import RevkitError, UsageError, plural
from .beside import FIELDS, read_facts
from .file import SQLITE_ERRORS, network_file_system
from .files import replacing
from .replies import Store, default_path, locate
from .rows import COLUMNS
from .shared import MARK

__all__ = ["StoreInfo", "clear", "configured", "info", "is_off", "to_parquet"]

StorePath = str | os.PathLike[str]

_OFF = {"0", "off", "false", "no"}
_ON = {"1", "on", "true", "yes"}
_BATCH = 10_000


def configured(store: bool | StorePath | None = None) -> Store | None:
    """Open the store that ``store=`` and ``REVKIT_STORE`` ask for.

    Args:
        store: a path (a file, or a directory for one in it); False or ``"off"``: none; True,
            ``"on"`` or None: the path in ``REVKIT_STORE``, else the default place. With
            ``REVKIT_STORE`` as ``0``, ``off``, ``false`` or ``no``, None means none.

    Raises:
        UsageError: ``store`` is none of these, or something at its path is not a store.
    """
    if is_off(store):
        return None
    if store is None or store is True or _word(store) in _ON:
        return Store(_place(None))
    if not isinstance(store, str | os.PathLike) or not os.fspath(store):
        raise UsageError(f"store= takes a path, True or False, not {store!r}")
    return Store.open(store)


def is_off(store: bool | StorePath | None = None) -> bool:
    """Whether ``store=`` and ``REVKIT_STORE`` say that no reply is kept."""
    return store is False or _word(store) in _OFF


def _word(store: bool | StorePath | None) -> str:
    named = os.environ.get("REVKIT_STORE", "").strip() if store is None else store
    return named.casefold() if isinstance(named, str) else ""


def _place(path: StorePath | None) -> Path:
    """The file that is meant, whether or not it is there."""
    if path is not None:
        return locate(path)
    named = os.environ.get("REVKIT_STORE", "").strip()
    if not named or named.casefold() in _OFF | _ON:
        return default_path()
    return locate(named)


def _own_place(path: StorePath | None) -> Path:
    """:func:`_place`, but for a directory that the workers of a Dask cluster share."""
    place = _place(path)
    if (place.parent / MARK).exists() and not place.exists():
        raise UsageError(
            f"{place.parent} is a store that the workers of a Dask cluster share, of JSON lines: "
            "read its *.jsonl files with pandas.read_json(…, lines=True); to clear it, delete the "
            "directory while nothing runs"
        )
    return place


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    Attributes:
        path: the file.
        replies: number of replies.
        bytes: size on disk, with the log.
        by_model: name of the model to its number of replies, the largest first.
        oldest, newest: when the first and the last of them came (UTC); None where there are none.
        problem: what cannot be done with it, None where all is well.
        network: type of the network file system it is on, None elsewhere (known on Linux only).
    """

    path: Path
    replies: int = 0
    bytes: int = 0
    by_model: Mapping[str, int] = field(default_factory=dict)
    oldest: datetime | None = None
    newest: datetime | None = None
    problem: str | None = None
    network: str | None = None

    def __repr__(self) -> str:
        lines = [f"{plural(self.replies, 'reply')} in {self.path} ({self.bytes / 1e6:.1f} MB)"]
        width = max(map(len, self.by_model), default=0)
        digits = len(f"{max(self.by_model.values(), default=0):,}")
        lines += [f"  {name:{width}}  {n:{digits},}" for name, n in self.by_model.items()]
        if self.oldest is not None and self.newest is not None:
            lines.append(f"  from {self.oldest:%Y-%m-%d %H:%M} to {self.newest:%Y-%m-%d %H:%M} UTC")
        if self.problem is not None:
            lines.append(f"  {self.problem}")
        return "\n".join(lines)


def info(path: StorePath | None = None) -> StoreInfo:
    """What the store holds.

    Args:
        path: the store's file or directory; None: the one that runs use by default.

    Raises:
        UsageError: there is something at ``path`` that is not a store.

    >>> import revkit.store
    >>> revkit.store.info("where/there/is/none.sqlite").replies
    0
    """
    place = _own_place(path)
    if not place.exists():
        return StoreInfo(place, network=network_file_system(place))
    with Store(place) as store, store.connection() as db:
        count, oldest, newest, by_model = 0, None, None, {}
        problem = store.problem
        if db is not None:
            try:
                count, oldest, newest = db.execute(
                    "SELECT count(*), min(created), max(created) FROM replies"
                ).fetchone()
                by_model = dict(
                    db.execute("SELECT model, count(*) FROM replies GROUP BY 1 ORDER BY 2 DESC, 1")
                )
            except SQLITE_ERRORS as error:
                problem = f"it cannot be read to its end: {error}"
        return StoreInfo(
            place,
            count,
            sum(f.stat().st_size for f in (store.path, Path(f"{store.path}-wal")) if f.exists()),
            by_model,
            None if oldest is None else datetime.fromtimestamp(oldest, UTC),
            None if newest is None else datetime.fromtimestamp(newest, UTC),
            problem,
            network_file_system(place),
        )


def clear(
    path: StorePath | None = None,
    *,
    model: str | None = None,
    before: datetime | date | str | None = None,
) -> int:
    """Remove replies, and give their space back.

    Args:
        path: the store's file or directory; None: the one that runs use by default.
        model: only those of this model, by its name in :func:`info`.
        before: only those that came before this moment: a datetime (local time if it has no zone),
            a date, or either as ISO 8601 text, such as ``"2026-01-31"``.

    Returns:
        Number of replies removed.

    Raises:
        UsageError: ``before`` is not a moment, or something at ``path`` is not a store.
        RevkitError: the store cannot be written.
    """
    where: list[str] = []
    values: list[Any] = []
    if model is not None:
        where.append("model = ?")
        values.append(model)
    if before is not None:
        where.append("created < ?")
        values.append(_moment(before))
    place = _own_place(path)
    if not place.exists():
        return 0
    chosen = f" WHERE {' AND '.join(where)}" if where else ""
    with Store(place) as store, store.connection() as db:
        if db is None or not store.writable:
            raise RevkitError(f"the store {place} cannot be cleared: {store.problem}")
        try:
            # Texts that somebody wants gone are gone: overwritten, in the log as well.
            db.execute("PRAGMA secure_delete=ON")
            removed = db.execute(f"DELETE FROM replies{chosen}", values).rowcount
            with contextlib.suppress(sqlite3.OperationalError):  # no room to do it, or in use
                db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except SQLITE_ERRORS as error:
            raise RevkitError(f"the store {place} cannot be cleared: {error}") from error
    return removed


def _moment(given: datetime | date | str) -> float:
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError:
            raise UsageError(
                f'before={given!r} is not a moment; write it as "2026-01-31" or '
                '"2026-01-31T12:00:00+00:00"'
            ) from None
    if not isinstance(given, date):
        raise UsageError(f"before= takes a datetime, a date or ISO 8601 text, not {given!r}")
    if not isinstance(given, datetime):
        given = datetime.combine(given, time())
    return given.timestamp()


def to_parquet(path: StorePath, *, store: StorePath | None = None) -> None:
    """Write all that a store holds to a Parquet file, the oldest replies first.

    Args:
        path: the Parquet file; one that is there is replaced when the new one is whole.
        store: the store's file or directory; None: the one that runs use by default.

    The columns are ``key`` (40 hex digits), ``text``, ``prompt_tokens``, ``completion_tokens``,
    ``finish_reason``, ``probabilities`` (JSON), ``task`` (a fingerprint), ``model``,
    ``weights`` (a digest), ``created`` (a timestamp in UTC), ``served`` (the model that answered,
    as the server names it), ``format`` (``schema``, ``json`` or ``prompt``), ``thought``,
    ``truncated`` (a boolean: the text was cut, and kept) and ``facts`` (JSON: what the server said
    of the model). The others are strings, but for the counts.

    Raises:
        UsageError: there is something at ``store`` that is not a store, or there is no directory
            to write the file to.
        RevkitError: the store cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        "prompt_tokens": pa.int64(),
        "completion_tokens": pa.int64(),
        "created": pa.timestamp("s", tz="UTC"),
        "truncated": pa.bool_(),
    }
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    place = _own_place(store)
    try:
        with replacing(path) as (_, unfinished), pq.ParquetWriter(unfinished, schema) as writer:
            for rows in _batches(place):
                columns = zip(*map(_exported, rows), strict=True)
                arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
    except SQLITE_ERRORS as error:
        raise RevkitError(f"the store {place} cannot be read: {error}") from error


def _batches(place: Path) -> Iterator[list[tuple[Any, ...]]]:
    if not place.exists():
        return
    with Store(place) as store, store.connection() as db:
        if db is None:
            raise RevkitError(f"the store {place} cannot be read: {store.problem}")
        there = store.columns
        known = [name if name in there else "NULL" for name in COLUMNS[1:]]
        names = ", ".join(["lower(hex(key))", *known])
        cursor = db.execute(f"SELECT {names} FROM replies ORDER BY created, rowid")
        with contextlib.closing(cursor):
            while rows := cursor.fetchmany(_BATCH):
                yield rows


def _exported(row: tuple[Any, ...]) -> list[Any]:
    fields = dict(zip(COLUMNS, map(_plain, row), strict=True))
    if not read_facts(fields["facts"], fields["weights"])[1]:
        fields |= dict.fromkeys((*FIELDS, "facts"))  # those of the reply that was replaced
    if fields["truncated"] is not None:
        fields["truncated"] = bool(fields["truncated"])
    return list(fields.values())


def _plain(value: Any) -> Any:
    """Half of a surrogate pair is kept as bytes, and Parquet takes none: it becomes ``?``."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogatepass").encode("utf-8", "replace").decode()
    return value
