"""Which store a run keeps its replies in: the argument, the environment, the default place."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..clients.contract import Client

if TYPE_CHECKING:
    from .contract import ReplyStore
    from .replies import Store

__all__ = ["store_of"]


def store_of(store: Any, client: Client) -> Callable[[], ReplyStore | None] | None:
    """What opens the store of a run; None where it certainly has none."""
    if store is False or (store is None and not client.keeps_replies):
        return None
    return functools.partial(_open_store, store)


def _open_store(store: Any) -> Store | None:
    """Open the store of replies that ``store=`` and ``REVKIT_STORE`` ask for, if any.

    Where it was not asked for and is begun, one line says where it is.

    Raises:
        UsageError: ``store`` is not a path, True or False; or something else is at the path.
    """
    from .manage import configured

    opened = configured(store)
    if opened is not None and opened.is_new and store is None:
        print(  # noqa: T201 - the first time that texts of rows are kept, the user must know
            f"revkit: replies are kept in {opened.path}, so that no call is paid for twice "
            "(store=False keeps none; revkit.store.clear() empties it)",
            file=sys.stderr,
        )
    return opened
