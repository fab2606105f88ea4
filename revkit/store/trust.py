"""Who else can write a store: what a stranger could have planted is refused, the rest is said.

POSIX only: elsewhere, and on file systems that make owners and modes up, nobody can tell.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ..errors import UsageError

__all__ = ["exposure", "refuse_link"]

_YOURS = "pass store= a path in a directory of your own"


def refuse_link(path: Path) -> None:
    """Refuse a link that a stranger has made, and can lead elsewhere.

    Raises:
        UsageError: it belongs to another user.
    """
    if hasattr(os, "geteuid") and (owner := path.lstat().st_uid) not in (os.geteuid(), 0):
        raise UsageError(
            f"store={str(path)!r} is a link of another user ({_user(owner)}), who can lead it to "
            f"any file; pass store= the file itself, or {_YOURS[12:]}"
        )


def exposure(path: Path, companions: Iterable[Path]) -> str | None:
    """How others can change the store at ``path``, and what to do; None where they cannot.

    Args:
        companions: the files that SQLite keeps beside it.

    Raises:
        UsageError: a file may have been planted: it belongs to another user, in a directory in
            which anyone can make files.
    """
    if not hasattr(os, "geteuid"):
        return None
    trusted, place = (os.geteuid(), 0), path.parent.stat()
    found = []
    for file in (path, *companions):
        try:
            there = file.lstat()
        except OSError:
            continue
        if there.st_uid not in trusted:
            owner = _user(there.st_uid)
            if place.st_mode & stat.S_IWOTH:
                raise UsageError(
                    f"{file} belongs to another user ({owner}), in a directory in which anyone can "
                    f"make files, so its replies may be made up; {_YOURS}, or remove the file"
                )
            found.append(f"{file} belongs to another user ({owner})")
        elif stat.S_ISREG(there.st_mode) and (who := _writers(there)) is not None:
            found.append(f'{who} can write {file} (chmod go-w "{file}")')
    if place.st_uid not in trusted:
        found.append(f"{path.parent} belongs to another user ({_user(place.st_uid)})")
    elif not place.st_mode & stat.S_ISVTX and (who := _writers(place)) is not None:
        found.append(f'{who} can replace files in {path.parent} (chmod go-w "{path.parent}")')
    if not found:
        return None
    return (
        f"others can change the replies in the store {path}: {'; '.join(found)}. They are used as "
        f"they are; close it to others, or {_YOURS}"
    )


def _writers(file: os.stat_result) -> str | None:
    """Who may write it beside its owner."""
    if file.st_mode & stat.S_IWOTH:
        return "anyone"
    if file.st_mode & stat.S_IWGRP and not _is_private(file.st_gid):
        return f"group {_group(file.st_gid)}"
    return None


def _is_private(group: int) -> bool:
    """Whether a group has no member but this user, or is the system's own.

    Many systems give each user a group of the same name, and let it write all that is made.
    """
    import grp
    import pwd

    if group == 0:
        return True
    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    alone = set(found.gr_mem) <= {user.pw_name}
    return alone and user.pw_gid == group and user.pw_name == found.gr_name


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    import grp

    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
