"""Keeping what was paid for: every good reply, in one SQLite file, under what decides the answer.

The response cache, resuming after a crash or an interrupt, and asking twins once are all this one
thing: a prompt whose key is in the file is not sent. No prompt and no key of a service is in it.
``docs/store.md`` says what decides whether a reply is reused.

    keys      the key of a reply
    contract  ReplyStore and Claims: what a run asks of a store
    beside    what stands beside a reply: facts of the model, its thought, its format
    rows      the table of replies
    recover   reads what is left of a damaged file
    trust     who else can write the file
    file      opens the file, and sets a damaged one aside
    replies   Store: replies in one SQLite file
    claims    which of several runs asks the model for which key
    shared    SharedStore: replies in a directory that the workers of a cluster share
    choice    which store a run gets
    manage    what users call: info, clear, to_parquet
    files     files that are there whole or not at all
    lock      a directory that one process at a time works in

>>> import tempfile
>>> from revkit import Reply, store
>>> with tempfile.TemporaryDirectory() as place:
...     with store.Store.open(place) as replies:
...         replies.put([(b"a key", Reply("positive"))], task="a task", model="ollama:llama3.2:3b")
...     store.info(place).by_model
...     store.clear(place)
True
{'ollama:llama3.2:3b': 1}
1
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .manage import StoreInfo, clear, configured, info, is_off, to_parquet
    from .replies import Store, StoreWarning, default_path

__all__ = [
    "Store",
    "StoreInfo",
    "StoreWarning",
    "clear",
    "configured",
    "default_path",
    "info",
    "is_off",
    "to_parquet",
]


if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import manage, replies  # which import SQLite

        return getattr(manage if hasattr(manage, name) else replies, name)


def __dir__() -> list[str]:
    return list(__all__)
