"""Which partition asks the model for which key, so that no two pay for the same prompt.

A key that is not in the shared store is claimed before its row starts. A session whose claim was
refused learns when the key is free: its reply is in the store then, or it has failed, or the
worker that asked for it has died.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Claims"]


class Claims:
    """The claims of all sessions, by store and key.

    >>> claims = Claims()
    >>> claims.claim("one", "replies", [b"a", b"b"])
    []
    >>> claims.claim("another", "replies", [b"b", b"c"])
    [b'b']
    >>> claims.release("one", "replies", [b"b"])
    >>> claims.freed("another")
    [b'b']
    >>> claims.freed("another")
    []
    """

    def __init__(self) -> None:
        #: (store, key) -> the session that asks the model for it
        self._owner: dict[tuple[str, bytes], str] = {}
        #: (store, key) -> sessions whose claim was refused
        self._waiting: dict[tuple[str, bytes], set[str]] = {}
        #: session -> what it has claimed
        self._claimed: dict[str, set[tuple[str, bytes]]] = {}
        #: session -> keys it was refused that are free now, until it has learnt of them
        self._freed: dict[str, set[bytes]] = {}
        #: store -> names of its part files that were written to, in order
        self._parts: dict[str, list[str]] = {}

    def claim(self, session: str, store: str, keys: Iterable[bytes]) -> list[bytes]:
        """Claim these keys for a session; returns those that another session has claimed."""
        claimed, taken = self._claimed.setdefault(session, set()), []
        for key in keys:
            place = store, key
            if self._owner.setdefault(place, session) == session:
                claimed.add(place)
            else:
                self._waiting.setdefault(place, set()).add(session)
                taken.append(key)
        return taken

    def release(self, session: str, store: str, keys: Iterable[bytes]) -> None:
        """A session gives its claims to these keys up."""
        for key in keys:
            self._release(session, (store, key))

    def _release(self, session: str, place: tuple[str, bytes]) -> None:
        if self._owner.get(place) != session:
            return
        del self._owner[place]
        self._claimed[session].discard(place)
        for waiting in self._waiting.pop(place, ()):
            self._freed.setdefault(waiting, set()).add(place[1])

    def freed(self, session: str) -> list[bytes]:
        """Keys that the session was refused, and that became free since the last call."""
        return sorted(self._freed.pop(session, ()))

    def close(self, session: str) -> None:
        """The session is closed, and its claims are released."""
        for place in list(self._claimed.get(session, ())):
            self._release(session, place)
        self._claimed.pop(session, None)
        self._freed.pop(session, None)
        for place in [place for place, waits in self._waiting.items() if session in waits]:
            self._waiting[place].discard(session)
            if not self._waiting[place]:
                del self._waiting[place]

    def parts(self, store: str, part: str, *, known: int) -> Sequence[str]:
        """The store's part files, without the first ones, which the session knows.

        Args:
            part: the file that the session writes to; it is listed from now on.
        """
        parts = self._parts.setdefault(store, [])
        if part not in parts:
            parts.append(part)
        return parts[known:]
