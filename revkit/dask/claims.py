"""Which partition asks the model for which key, so that no two pay for the same row.

Everything that decides it is here. A key that is not in the shared store is claimed before its row
is started. Who is refused it hears when it is free: its reply is in the store then, or it has
failed, or its worker is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Claims"]


class Claims:
    """The claims of all seats, by store and key.

    >>> claims = Claims()
    >>> claims.claim("one", "replies", [b"a", b"b"])
    []
    >>> claims.claim("another", "replies", [b"b", b"c"])
    [b'b']
    >>> claims.let_go("one", "replies", [b"b"])
    >>> claims.freed("another")
    [b'b']
    >>> claims.freed("another")
    []
    """

    def __init__(self) -> None:
        #: (store, key) -> the seat that asks the model for it
        self._owner: dict[tuple[str, bytes], str] = {}
        #: (store, key) -> seats that were refused it
        self._waiting: dict[tuple[str, bytes], set[str]] = {}
        #: seat -> what it has claimed
        self._mine: dict[str, set[tuple[str, bytes]]] = {}
        #: seat -> keys that it was refused and that are free, until it is told
        self._freed: dict[str, set[bytes]] = {}
        #: store -> names of its part files that were written to, in order
        self._parts: dict[str, list[str]] = {}

    def claim(self, seat: str, store: str, keys: Iterable[bytes]) -> list[bytes]:
        """A seat is going to ask the model for these keys; gives those that another one has."""
        mine, taken = self._mine.setdefault(seat, set()), []
        for key in keys:
            place = store, key
            if self._owner.setdefault(place, seat) == seat:
                mine.add(place)
            else:
                self._waiting.setdefault(place, set()).add(seat)
                taken.append(key)
        return taken

    def let_go(self, seat: str, store: str, keys: Iterable[bytes]) -> None:
        """A seat asks for these keys no longer."""
        for key in keys:
            self._free(seat, (store, key))

    def _free(self, seat: str, place: tuple[str, bytes]) -> None:
        if self._owner.get(place) != seat:
            return
        del self._owner[place]
        self._mine[seat].discard(place)
        for waiting in self._waiting.pop(place, ()):
            self._freed.setdefault(waiting, set()).add(place[1])

    def freed(self, seat: str) -> list[bytes]:
        """Keys that the seat was refused and that became free since it was told the last time."""
        return sorted(self._freed.pop(seat, ()))

    def leave(self, seat: str) -> None:
        """The seat is gone, and what it claimed is free."""
        for place in list(self._mine.get(seat, ())):
            self._free(seat, place)
        self._mine.pop(seat, None)
        self._freed.pop(seat, None)
        for place in [place for place, seats in self._waiting.items() if seat in seats]:
            self._waiting[place].discard(seat)
            if not self._waiting[place]:
                del self._waiting[place]

    def parts(self, store: str, part: str, *, known: int) -> Sequence[str]:
        """The store's part files, but for the first ones that are known already.

        Args:
            part: the file that the asking seat writes to, which is one of them from now on.
        """
        parts = self._parts.setdefault(store, [])
        if part not in parts:
            parts.append(part)
        return parts[known:]
