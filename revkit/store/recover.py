"""Reading what is left of a damaged file, page by page, past SQLite.

SQLite's own reading ends where the way to a page is damaged. Here each page is read by itself, as
the program ``sqlite3`` does in its ``.recover``. A page of replies needs no other, but for long
texts. The form of a page is that of https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .rows import COLUMNS, FIRST, Row, is_whole

__all__ = ["Remains"]

#: Kinds of pages: inner and outer ones of an index, and outer ones of a table.
_INNER_KEYS, _KEYS, _ROWS = 2, 10, 13
#: The size of a page where the file does not say it.
_USUAL = 4096
_HEAD, _LOG_HEAD, _FRAME_HEAD = 100, 32, 24
#: Bytes of the integers in a record, by their code.
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class Remains:
    """The replies that can still be read in a file, and its log.

    Whoever has the file open through SQLite in this process loses the locks on it: it must be out
    of use.

    Attributes:
        known: keys that an index names or that were read.
        read: keys that were read.
    """

    def __init__(self, path: Path):
        self._path = path
        self.known: set[bytes] = set()
        self.read: set[bytes] = set()

    def rows(self) -> Iterator[Row]:
        """Each reply that can be read, once."""
        with contextlib.ExitStack() as stack:
            pages = _Pages(self._path, stack)
            for number in pages:
                page = pages[number]
                start = _HEAD if number == 1 else 0
                if len(page) < start + 12:
                    continue
                kind = page[start]
                if kind not in (_INNER_KEYS, _KEYS, _ROWS):
                    continue
                (cells,) = struct.unpack_from(">H", page, start + 3)
                pointers = start + (12 if kind == _INNER_KEYS else 8)
                for at in range(pointers, min(pointers + 2 * cells, len(page) - 1), 2):
                    (cell,) = struct.unpack_from(">H", page, at)
                    try:
                        record = _record(pages, page, cell, kind)
                    except (ValueError, IndexError, struct.error):
                        continue
                    yield from self._take(record, kind)

    def _take(self, record: list[Any], kind: int) -> Iterator[Row]:
        if kind != _ROWS:
            if len(record) == 2 and isinstance(record[0], bytes) and isinstance(record[1], int):
                self.known.add(record[0])
            return
        row = (*record[: len(COLUMNS)], *[None] * (len(COLUMNS) - len(record)))
        if len(record) >= len(FIRST) and is_whole(row) and row[0] not in self.read:
            self.known.add(row[0])
            self.read.add(row[0])
            yield row


class _Pages:
    """The pages of a file, by number from 1; what the log has of a page is newer."""

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self._file = _opened(path, stack)
        self._log = _opened(path.with_name(path.name + "-wal"), stack)
        head, log_head = _bytes(self._file, 0, _HEAD), _bytes(self._log, 0, _LOG_HEAD)
        in_file = int.from_bytes(head[16:18], "big")
        sizes = [65536 if in_file == 1 else in_file, int.from_bytes(log_head[8:12], "big")]
        self.size = next((n for n in sizes if n.bit_count() == 1 and 512 <= n <= 65536), _USUAL)
        #: bytes of a page that are in use
        self.usable = self.size - (head[20] if len(head) > 20 and head[20] < 64 else 0)
        #: page -> where the log has it
        self._in_log: dict[int, int] = {}
        at = _LOG_HEAD
        while len(frame := _bytes(self._log, at, _FRAME_HEAD)) == _FRAME_HEAD:
            at += _FRAME_HEAD
            if frame[8:16] == log_head[16:24]:  # else of before the log was begun again
                self._in_log[int.from_bytes(frame[:4], "big")] = at
            at += self.size
        self._last = -(-_size(self._file) // self.size)

    def __iter__(self) -> Iterator[int]:
        yield from range(1, self._last + 1)
        yield from (number for number in self._in_log if number > self._last)

    def __getitem__(self, number: int) -> bytes:
        if number in self._in_log:
            return _bytes(self._log, self._in_log[number], self.size)
        return _bytes(self._file, (number - 1) * self.size, self.size)


def _opened(path: Path, stack: contextlib.ExitStack) -> BinaryIO | None:
    try:
        return stack.enter_context(path.open("rb"))
    except OSError:
        return None


def _bytes(file: BinaryIO | None, at: int, count: int) -> bytes:
    """Bytes of a file, none where the disk cannot read them."""
    if file is None or at < 0:
        return b""
    try:
        file.seek(at)
        return file.read(count)
    except OSError:
        return b""


def _size(file: BinaryIO | None) -> int:
    return 0 if file is None else file.seek(0, 2)


def _record(pages: _Pages, page: bytes, cell: int, kind: int) -> list[Any]:
    """The values of a cell.

    Raises:
        ValueError, IndexError, struct.error: it is none.
    """
    at = cell + 4 if kind == _INNER_KEYS else cell
    length, at = _varint(page, at)
    usable = pages.usable
    most = usable - 35
    if kind == _ROWS:
        _, at = _varint(page, at)  # the number of the row
    else:
        most = (usable - 12) * 64 // 255 - 23
    here = length
    if length > most:
        least = (usable - 12) * 32 // 255 - 23
        here = least + (length - least) % (usable - 4)
        here = here if here <= most else least
    payload = page[at : at + here]
    if length > here:
        (number,) = struct.unpack_from(">I", page, at + here)
        payload += _overflow(pages, number, length - here)
    if len(payload) != length:
        raise ValueError("a cell that does not end")
    return _values(payload)


def _overflow(pages: _Pages, number: int, length: int) -> bytes:
    parts = []
    while length > 0:
        page = pages[number]
        (number,) = struct.unpack_from(">I", page, 0)
        part = page[4 : min(pages.usable, 4 + length)]
        if not part:
            raise ValueError("a text that does not end")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _values(payload: bytes) -> list[Any]:
    end, at = _varint(payload, 0)
    codes, start = [], end
    while at < end:
        code, at = _varint(payload, at)
        codes.append(code)
    values: list[Any] = []
    for code in codes:
        size = _INTEGERS.get(code, 0)
        if code == 7:
            size = 8
        elif code >= 12:
            size = (code - 12) // 2
        data = payload[start : start + size]
        start += size
        if len(data) != size or code in (10, 11):
            raise ValueError("a value that does not end")
        if code >= 12:
            values.append(data.decode() if code % 2 else data)
        elif code == 7:
            values += struct.unpack(">d", data)
        elif code in (8, 9):
            values.append(code - 8)
        else:
            values.append(int.from_bytes(data, "big", signed=True) if code else None)
    return values


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends."""
    value = 0
    for place in range(at, at + 8):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    return value << 8 | data[at + 8], at + 9
