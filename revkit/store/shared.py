"""The replies of models in a directory that several machines see.

Each process writes to a part file of its own, whose name no other one has, and only ever appends
to it: a commit is some whole lines and an ``fsync``. Readers merge all parts. A line that is not
whole (its writer died, or is still writing) is no reply, and is looked at again later. So there is
no lock, which network file systems keep badly, and nothing to repair after a kill. A process whose
part is no longer at its place puts what it wrote into a new one.

    replies/
        revkit-store.json       says that the directory is a store
        <host>-<pid>-<random>.jsonl
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UsageError, plural, warn
from ..task.chat import Reply
from .beside import FIELDS, contradict, fields_of, read_facts, read_fields, write_facts
from .contract import NO_FACTS, Claims, Facts
from .file import Identity, identity
from .files import replacing
from .replies import StoreWarning

__all__ = ["MARK", "SharedStore", "shared_store"]

#: The file that says that a directory is such a store; in it, the version of its parts' form.
MARK = "revkit-store.json"
_VERSION = 1
_SUFFIX = ".jsonl"
#: Seconds in which others' parts are read once, at most, where nobody says that there is news.
_FRESH = 0.5
#: How often one commit is tried, where its part is gone from its place each time.
_TRIES = 3


class _Place(NamedTuple):
    """Where a reply stands."""

    part: str
    start: int
    length: int
    facts: Facts
    created: float


class SharedStore:
    """A :class:`~revkit.store.contract.ReplyStore` in a directory, as one process sees it.

    Of several replies to a key the newest one stands.

    Args:
        path: the directory; it is made where there is none.

    Raises:
        UsageError: it is no directory, holds other things, or cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     one, other = SharedStore(Path(directory)), SharedStore(Path(directory))
    ...     one.put([(b"a key", Reply("positive"))], task="a task", model="a model")
    ...     other.get([b"a key", b"another"])[b"a key"].text
    ...     one.close(); other.close()
    True
    'positive'
    """

    #: the partitions of a Dask run have theirs elsewhere
    claims: Claims | None = None

    def __init__(self, path: Path):
        self.path = path
        #: kind of trouble -> what is told of it
        self._troubles: dict[str, str] = {}
        #: the name of the part that this process writes to
        self.part = _new_part()
        self._lock = threading.Lock()
        self._index: dict[bytes, _Place] = {}
        #: part -> bytes of it that were read
        self._read: dict[str, int] = {}
        #: the part, open from the first write on, and which file that is
        self._file: io.FileIO | None = None
        self._identity: Identity | None = None
        self._waiting: list[tuple[bytes, bytes, Facts, float]] = []
        self._refreshed = float("-inf")
        self.open()

    @property
    def problem(self) -> str | None:
        return "; ".join(self._troubles.values()) or None

    def open(self) -> None:
        """See that there is a store at the path; raises :class:`UsageError` where there is none."""
        with self._lock:
            if self._file is None and not self._waiting:  # unused since it was closed
                self._troubles.clear()
            self._make()

    def _make(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the store {self.path} is no directory: {error}") from None
        mark = self.path / MARK
        if mark.exists():
            version = _json(mark).get("version")
            if version != _VERSION:
                raise UsageError(
                    f"the store {self.path} was made by another revkit (version {version} of its "
                    f"form, this one knows {_VERSION}); name another directory"
                )
            return
        # Another process may be at the same: its unfinished mark, and what follows once it is there
        strange = any(not entry.name.startswith(MARK) for entry in self.path.iterdir())
        if strange and not mark.exists():
            raise UsageError(
                f"{self.path} is no store, and is not empty: name a directory for the replies alone"
            )
        try:
            with replacing(mark) as (_, unfinished):
                unfinished.write_text(json.dumps({"version": _VERSION}))
        except OSError as error:
            if mark.exists():  # another process was faster, and on Windows reads it now
                return
            raise UsageError(f"the store {self.path} cannot be written: {error}") from None

    def get(self, keys: Sequence[bytes], *, facts: Facts = NO_FACTS) -> dict[bytes, Reply]:
        with self._lock:
            stale = time.monotonic() - self._refreshed > _FRESH
            if stale and any(key not in self._index for key in keys):
                self._refresh()
            found = {}
            with contextlib.ExitStack() as stack:
                files = {} if self._file is None else {self.part: self._file}
                for key in keys:
                    place = self._index.get(key)
                    if place is None or contradict(place.facts, facts):
                        continue
                    try:
                        if place.part not in files:
                            files[place.part] = stack.enter_context(
                                open(self.path / place.part, "rb", buffering=0)
                            )
                        files[place.part].seek(place.start)
                        line = files[place.part].read(place.length)
                        found[key] = _reply(key, json.loads(line))
                    except (OSError, ValueError, KeyError):  # somebody has removed or replaced it
                        del self._index[key]
                        if place.part in self._read:
                            self._read[place.part] = 0
            return found

    def look_into(self, parts: Iterable[str]) -> None:
        """Read what others have written, in these parts as well.

        By name, for a network file system may list a new file only half a minute later.
        """
        with self._lock:
            for part in parts:
                if part != self.part and re.fullmatch(r"[A-Za-z0-9.-]+\.jsonl", part):
                    self._read.setdefault(part, 0)
            self._refresh()

    def put(
        self,
        items: Iterable[tuple[bytes, Reply]],
        *,
        task: str,
        model: str,
        facts: Facts = NO_FACTS,
    ) -> bool:
        now = time.time()
        with self._lock:
            for key, reply in items:
                known = self._index.get(key)
                if known is None or contradict(known.facts, facts):
                    line = _line(key, reply, task=task, model=model, facts=facts, created=now)
                    self._waiting.append((key, line, facts, now))
            return self._write()

    def forget(self, keys: Iterable[bytes]) -> None:
        with self._lock:
            for key in keys:
                self._index.pop(key, None)

    def flush(self) -> None:
        """Write what waits, if it can be written now."""
        with self._lock:
            self._write()

    def close(self) -> None:
        with self._lock:
            if not self._write():
                del self._troubles["unwritten"]
                self._warn(
                    "lost",
                    f"{len(self._waiting)} replies could not be written to {self.path}, and are "
                    "not kept: the next run asks for them again",
                )
                self._waiting.clear()
            self._end_part()

    def _write(self) -> bool:
        """Write what waits; says whether it is in a file that stands at its place."""
        if not self._waiting:
            return True
        data = b"".join(line for _, line, _, _ in self._waiting)
        for _ in range(_TRIES):
            try:
                part = self._begin_part()
            except (OSError, UsageError) as error:
                return self._unwritten(error)
            start = part.seek(0, os.SEEK_END)
            try:
                _write_all(part, data)
                os.fsync(part)
            except OSError as error:
                # What was half written ends this part; another one is begun.
                if not _ends_at(part, start):
                    self.part = _new_part()
                self._end_part()
                return self._unwritten(error)
            if self._stands():
                break
        else:
            return self._unwritten("its files are removed again and again")
        for key, line, facts, created in self._waiting:
            self._index[key] = _Place(self.part, start, len(line), facts, created)
            start += len(line)
        self._waiting.clear()
        self._troubles.pop("unwritten", None)
        return True

    def _stands(self) -> bool:
        """Whether the part that is open is the file at its place."""
        return self._identity is not None and identity(self.path / self.part) == self._identity

    def _begin_part(self) -> io.FileIO:
        """Open a part that stands at its place."""
        if self._file is not None and self._stands():
            return self._file
        was, name = self._file, self.part if self._file is None else _new_part()
        gone = was is not None or not (self.path / MARK).exists()
        if gone:
            self._make()
        # It is also read: replies of its own, and all of it where it has to be begun anew.
        with contextlib.ExitStack() as stack:
            part = stack.enter_context(open(self.path / name, "a+b", buffering=0, opener=_private))
            copied = 0 if was is None else _copy(was, part)
            stack.pop_all()
        self._end_part()
        self.part, self._file, self._identity = name, part, identity(self.path / name)
        if gone:
            # Which others are there, and what is in them, is found out anew.
            self._index.clear()
            self._read, self._refreshed = dict.fromkeys(self._read, 0), float("-inf")
            with (self.path / name).open("rb") as lines:
                self._take(name, 0, lines)
            self._warn(
                "removed",
                f"the store {self.path} was removed or replaced while it was in use. It was begun "
                f"anew with {plural(copied, 'reply')} that this process still had; others may be "
                "lost",
            )
        return part

    def _end_part(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = self._identity = None

    def _unwritten(self, error: Exception | str) -> bool:
        """The disk is full, say."""
        self._warn("unwritten", f"the store {self.path} cannot be written at present ({error})")
        return False

    def _warn(self, kind: str, message: str) -> None:
        """Note a trouble, and warn of it once for each kind."""
        known = kind in self._troubles
        self._troubles[kind] = message
        if not known:
            with contextlib.suppress(StoreWarning):
                warn(message, StoreWarning)

    def _refresh(self) -> None:
        """Read what others have written since the last time."""
        self._refreshed = time.monotonic()
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.path):
                if entry.name.endswith(_SUFFIX) and entry.name != self.part:
                    self._read.setdefault(entry.name, 0)
        for part, start in self._read.items():
            # Opened anew each time: that is when a network file system looks at the server.
            with contextlib.suppress(OSError), (self.path / part).open("rb") as file:
                if file.seek(0, os.SEEK_END) < start:
                    start = 0  # another file has taken its place
                file.seek(start)
                self._read[part] = self._take(part, start, file)

    def _take(self, part: str, start: int, lines: Iterable[bytes]) -> int:
        """Put a part's lines into the index; gives how far they were whole."""
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                fields = json.loads(line)
                key, created = bytes.fromhex(fields["key"]), float(fields["created"])
                facts, _ = read_facts(fields.get("facts"), fields.get("weights"))
            except (ValueError, KeyError, TypeError):
                if b"\0" in line:  # a page that has not arrived yet; what follows is read with it
                    break
                self._warn(
                    "damaged", f"a line of {self.path / part} is damaged, and is passed over"
                )
                start += len(line)
                continue
            known = self._index.get(key)
            if known is None or known.created <= created:
                self._index[key] = _Place(part, start, len(line), facts, created)
            start += len(line)
        return start

    def __len__(self) -> int:
        with self._lock:
            self._refresh()
            return len(self._index)

    def __repr__(self) -> str:
        return f"SharedStore({str(self.path)!r})"


def _new_part() -> str:
    """The name of a part that no process has."""
    host = re.sub(r"[^A-Za-z0-9.]+", "-", socket.gethostname())[:60]
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex[:12]}{_SUFFIX}"


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner can read."""
    return os.open(path, flags, 0o600)


def _copy(source: io.FileIO, target: io.FileIO) -> int:
    """Append the lines of a file to another one, as far as they can be read; gives how many."""
    count = 0
    with (
        open(source.fileno(), "rb", closefd=False) as lines,
        open(target.fileno(), "ab", closefd=False) as copy,
    ):
        lines.seek(0)
        while True:
            try:
                line = lines.readline()
            except OSError:  # of a network file system, where another machine has removed it
                return count
            if not line.endswith(b"\n"):
                return count
            copy.write(line)
            count += 1


def _ends_at(file: io.FileIO, size: int) -> bool:
    try:
        return os.fstat(file.fileno()).st_size == size
    except OSError:
        return False


def _write_all(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _line(
    key: bytes, reply: Reply, *, task: str, model: str, facts: Facts, created: float
) -> bytes:
    fields = {
        "key": key.hex(),
        "text": reply.text,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "finish_reason": reply.finish_reason,
        "probabilities": reply.probabilities,
        "task": task,
        "model": model,
        "weights": facts.get("weights"),
        "created": created,
        **fields_of(reply),
        "facts": write_facts(facts),
    }
    # In ASCII, so that half of a surrogate pair, which a reply may hold, can be written.
    return (
        json.dumps({k: v for k, v in fields.items() if v is not None}, default=str).encode() + b"\n"
    )


def _reply(key: bytes, fields: dict[str, Any]) -> Reply:
    if fields["key"] != key.hex():
        raise ValueError("the reply to another key")
    return Reply(
        fields["text"],
        fields.get("prompt_tokens"),
        fields.get("completion_tokens"),
        fields.get("finish_reason"),
        fields.get("probabilities"),
        **read_fields([fields.get(name) for name in FIELDS]),
    )


#: Kept while the process lives: what was read of a directory is not read again.
_stores: dict[tuple[int, Path], SharedStore] = {}
_users: Counter[tuple[int, Path]] = Counter()
_opening = threading.Lock()


@contextlib.contextmanager
def shared_store(path: str | os.PathLike[str]) -> Iterator[SharedStore]:
    """The store of this process at ``path``; who uses it at the same time has the same one.

    Raises:
        UsageError: as :class:`SharedStore` does.
    """
    where = os.getpid(), Path(path).expanduser().absolute()
    with _opening:
        if where in _stores:
            _stores[where].open()
        else:
            _stores[where] = SharedStore(where[1])
        _users[where] += 1
    try:
        yield _stores[where]
    finally:
        with _opening:
            _users[where] -= 1
            if not _users[where]:
                _stores[where].close()
