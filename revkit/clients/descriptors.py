"""File descriptors: how many connections this process may have open.

Each connection takes one, and a system gives a process a limited number: 256 on macOS, 1,024 on
most Linux. The decision (:func:`room_for`) is pure; the rest asks the system, or changes its limit.
"""

from __future__ import annotations

import errno
import math
import os
from typing import NamedTuple

try:
    import resource
except ImportError:  # Windows, where sockets have no such limit
    resource = None  # type: ignore[assignment]

__all__ = ["Limits", "Room", "are_few", "is_no_descriptor", "make_room", "room_for"]

#: Descriptors left to everything else: stores, name look-ups, imports, the user's own files. A
#: quarter of the limit where that is less.
_RESERVE = 64
#: A look-up of a name opens a few files. With fewer left, it fails for want of them.
_FEW = 8
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class Limits(NamedTuple):
    """The process's limits on descriptors, ``inf`` where there is none, and how many are open."""

    soft: float
    hard: float
    used: int


class Room(NamedTuple):
    """How many connections fit, and the soft limit that this takes; None: the one there is."""

    connections: int
    raise_to: int | None = None


def room_for(wanted: int, limits: Limits) -> Room:
    """How many of so many connections may be open, and whether the limit must be raised for them.

    >>> room_for(1000, Limits(soft=256, hard=math.inf, used=40))
    Room(connections=1000, raise_to=1104)
    >>> room_for(1000, Limits(soft=256, hard=512, used=40))
    Room(connections=408, raise_to=512)
    >>> room_for(100, Limits(soft=256, hard=512, used=40))
    Room(connections=100, raise_to=None)
    """
    needed = limits.used + wanted + _RESERVE
    if needed <= limits.soft:
        return Room(wanted)
    soft = max(limits.soft, min(limits.hard, needed))
    free = int(soft) - limits.used - min(_RESERVE, int(soft) // 4)
    return Room(max(1, min(wanted, free)), int(soft) if soft > limits.soft else None)


def make_room(wanted: int) -> tuple[int, str]:
    """How many of so many connections may be open; raises the process's limit where it must.

    Returns:
        The number, and what to tell the user; empty where there is nothing to say.
    """
    limits = _limits()
    if limits is None:
        return wanted, ""
    room, was = room_for(wanted, limits), f"{limits.soft:,}"
    if room.raise_to is not None and not _raise_to(room.raise_to):
        room = room_for(wanted, limits._replace(hard=limits.soft))
    if room.connections < wanted:
        now = int(limits.soft) if room.raise_to is None else room.raise_to
        return room.connections, (
            f"{wanted:,} workers need a connection each, and this process may have {now:,} files "
            f"and connections open: the run used {room.connections:,} workers; raise the limit "
            "(ulimit -n) before Python starts, or set max_workers="
        )
    if room.raise_to is None:
        return wanted, ""
    return wanted, (
        f"{wanted:,} workers need a connection each: the run raised this process's limit of open "
        f"files from {was} to {room.raise_to:,}"
    )


def is_no_descriptor(error: BaseException) -> bool:
    """Whether an error of a library says that no descriptor was left, in any of its causes."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        if isinstance(link, OSError) and (
            link.errno in _NO_DESCRIPTOR  # OpenSSL's own numbers are smaller
            or any(os.strerror(number) in str(link) for number in _NO_DESCRIPTOR)
        ):
            return True
        todo += [link.__cause__, link.__context__]
        if isinstance(link, BaseExceptionGroup):
            todo += link.exceptions
    return False


def are_few() -> bool:
    """Whether next to no descriptor is left: then a name cannot be looked up either."""
    limits = _limits()
    return limits is not None and limits.used + _FEW > limits.soft


def _limits() -> Limits | None:
    """The limits of this process; None where there are none, or they cannot be told."""
    if resource is None:
        return None
    soft, hard = (
        math.inf if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:  # none is left for the listing itself, or there is no such folder
        used = int(soft) if _is_full() else 0
    return Limits(soft, hard, used)


def _is_full() -> bool:
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno in _NO_DESCRIPTOR
    return False


def _raise_to(soft: int) -> bool:
    """Raise the soft limit; False where the system does not allow it."""
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )
    except (OSError, ValueError):  # macOS has a lower bound of its own than it says
        return False
    return True
