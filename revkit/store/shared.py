"""The replies of models in a directory that several machines see.

Each process writes to a part file of its own, whose name no other one has, and only ever appends
to it: a commit is some whole lines and an ``fsync``. Readers merge all parts. A line that is not
whole (its writer died, or is still writing) is no reply, and is looked at again later. So there is
no lock, which network file systems keep badly, and nothing to repair after a kill.

    replies/
        revkit-store.json       says that the directory is a store
        <host>-<pid>-<random>.jsonl
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..clients.base import Reply
from ..errors import UsageError
from .mark import MARK
from .replies import StoreWarning

__all__ = ["MARK", "SharedStore", "shared_store"]

_VERSION = 1
_SUFFIX = ".jsonl"
#: Seconds in which others' parts are read once, at most, where nobody says that there is news.
_FRESH = 0.5


class _Place(NamedTuple):
    """Where a reply stands."""

    part: str
    start: int
    length: int
    weights: str | None
    created: float


class SharedStore:
    """The replies in one directory, to one process. Usable from any thread.

    Has what runs ask of :class:`~revkit.store.Store`. Where a key has several replies, the newest
    one stands.

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

    def __init__(self, path: Path):
        self.path = path
        self.problem: str | None = None
        #: the name of the part that this process writes to
        host = re.sub(r"[^A-Za-z0-9.]+", "-", socket.gethostname())[:60]
        self.part = f"{host}-{os.getpid()}-{uuid.uuid4().hex[:12]}{_SUFFIX}"
        self._lock = threading.Lock()
        self._index: dict[bytes, _Place] = {}
        #: part -> bytes of it that were read
        self._read: dict[str, int] = {}
        self._written: int | None = None  #: file descriptor, once there is something to write
        self._waiting: list[tuple[bytes, bytes, str | None, float]] = []
        self._refreshed = float("-inf")
        self.open()

    def open(self) -> None:
        """See that there is a store at the path; raises :class:`UsageError` where there is none."""
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
        unfinished = mark.with_name(f"{MARK}.{uuid.uuid4().hex}")
        try:
            unfinished.write_text(json.dumps({"version": _VERSION}))
            unfinished.replace(mark)
        except OSError as error:
            raise UsageError(f"the store {self.path} cannot be written: {error}") from None

    def get(self, keys: Sequence[bytes], *, weights: str | None = None) -> dict[bytes, Reply]:
        """The replies that are kept, by key; keys without one are left out.

        Args:
            weights: digest of the model's weights as they are now. A reply by others is left out;
                None, not known: whatever is kept will do.
        """
        with self._lock:
            stale = time.monotonic() - self._refreshed > _FRESH
            if stale and any(key not in self._index for key in keys):
                self._refresh()
            found = {}
            with contextlib.ExitStack() as stack:
                files: dict[str, int] = {}
                for key in keys:
                    place = self._index.get(key)
                    if place is None or (
                        weights is not None and place.weights not in (None, weights)
                    ):
                        continue
                    with contextlib.suppress(OSError, ValueError, KeyError):
                        if place.part not in files:
                            files[place.part] = os.open(self.path / place.part, os.O_RDONLY)
                            stack.callback(os.close, files[place.part])
                        line = os.pread(files[place.part], place.length, place.start)
                        found[key] = _reply(json.loads(line))
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
        weights: str | None = None,
    ) -> bool:
        """Keep replies, in one commit.

        Returns:
            Whether they are on the disk: from then on no end of the process loses them. Where they
            could not be written they are tried again with a later call.
        """
        now = time.time()
        with self._lock:
            for key, reply in items:
                known = self._index.get(key)
                if known is None or (weights is not None and known.weights not in (weights,)):
                    line = _line(key, reply, task=task, model=model, weights=weights, created=now)
                    self._waiting.append((key, line, weights, now))
            return self._write()

    def forget(self, keys: Iterable[bytes]) -> None:
        """Drop replies that no longer do, so that others can be put in their place."""
        with self._lock:
            for key in keys:
                self._index.pop(key, None)

    def close(self) -> None:
        """Write what waits. Closing twice does nothing."""
        with self._lock:
            if self._waiting and not self._write():
                self.problem = f"{len(self._waiting)} replies could not be written to {self.path}"
                self._waiting.clear()
            if self._written is not None:
                os.close(self._written)
                self._written = None

    def _write(self) -> bool:
        if not self._waiting:
            return True
        data = b"".join(line for _, line, _, _ in self._waiting)
        try:
            if self._written is None:
                # Never a part that is there already: what its last line is, nobody can tell.
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._written = os.open(self.path / self.part, flags, 0o600)
            start = os.lseek(self._written, 0, os.SEEK_END)
            _write_all(self._written, data)
            os.fsync(self._written)
        except OSError as error:
            self._give_up(error)
            return False
        for key, line, weights, created in self._waiting:
            self._index[key] = _Place(self.part, start, len(line), weights, created)
            start += len(line)
        self._waiting.clear()
        self.problem = None
        return True

    def _give_up(self, error: OSError) -> None:
        """The disk is full, say. What was half written ends this part; another one is begun."""
        if self._written is not None:
            with contextlib.suppress(OSError):
                os.close(self._written)
            self._written = None
        self.part = f"{self.part.removesuffix(_SUFFIX)[:100]}-{uuid.uuid4().hex[:6]}{_SUFFIX}"
        if self.problem is None:
            self.problem = f"the store {self.path} cannot be written at present ({error})"
            with contextlib.suppress(StoreWarning):
                warnings.warn(self.problem, StoreWarning, stacklevel=4)

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
                file.seek(start)
                self._read[part] = self._take(part, start, file)

    def _take(self, part: str, start: int, lines: Iterable[bytes]) -> int:
        """Put a part's lines into the index; gives how far they were whole."""
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                said = json.loads(line)
                key, created = bytes.fromhex(said["key"]), float(said["created"])
            except (ValueError, KeyError, TypeError):
                break  # a page that has not arrived yet; what follows is read with it
            known = self._index.get(key)
            if known is None or known.created <= created:
                self._index[key] = _Place(part, start, len(line), said.get("weights"), created)
            start += len(line)
        return start

    def __len__(self) -> int:
        with self._lock:
            self._refresh()
            return len(self._index)

    def __repr__(self) -> str:
        return f"SharedStore({str(self.path)!r})"


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _line(
    key: bytes, reply: Reply, *, task: str, model: str, weights: str | None, created: float
) -> bytes:
    said = {
        "key": key.hex(),
        "text": reply.text,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "finish_reason": reply.finish_reason,
        "probabilities": reply.probabilities,
        "task": task,
        "model": model,
        "weights": weights,
        "created": created,
    }
    # In ASCII, so that half of a surrogate pair, which a reply may hold, can be written.
    return (
        json.dumps({k: v for k, v in said.items() if v is not None}, default=str).encode() + b"\n"
    )


def _reply(said: dict[str, Any]) -> Reply:
    return Reply(
        said["text"],
        said.get("prompt_tokens"),
        said.get("completion_tokens"),
        said.get("finish_reason"),
        said.get("probabilities"),
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
