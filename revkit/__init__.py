"""revkit: run a language model over every row of a DataFrame, and see where the time went.

A reading order, from what decides to what touches the world:

    errors      every error, drawn as a tree
    events      the words that the parts of a run speak to each other
    outputs     typed outputs: declared, described to a model, read out of its reply
    task        what is done to each row: a signature, a template, a callable
    tokens      how many a prompt has, before it is sent, and what they cost
    buckets     the arithmetic of rate limits and budgets
    adaptive    how many attempts may run, found by what they do to the server's throughput
    throttle    one run's side of its limits
    scheduler   which row is tried next, by whom, and what becomes of it
    record      everything that is known about a run, as columns
    samples     several samples of one row as one value
    stream      the events of a run, for observers
    metrics     the figures of a run
    whatif      the same run with other numbers of workers: fitted and replayed
    bottleneck  whether the server was what limited a run
    keys        under which key a reply is kept
    state       what each worker works with, and no other
    work        what a worker does in one attempt
    engines/    threads and the event loop: two thin ways to run workers
    clients/    Ollama, OpenAI-compatible servers, the embedded model
    store/      every good reply, in one SQLite file
    observers/  who is told what happens in a run, and how
    plan        what a run is going to do: all that is decided before anything is sent
    lookahead   ahead of the workers: which rows need the model at all
    drain       the one drain of a run, which owns every effect
    run         one run: starts an engine and drains it; cancel and interrupt stop it
    columns     between a frame's columns and a run's rows
    provenance  what a run was made of, as plain JSON
    tables      the record of a run as frames
    result      what a run gives back; plot, display, progress and live show it
    forecast    what a what-if gives back
    compare     two runs on the same rows, side by side
    evaluate    an output against labels that are known to be right
    trace       a run as a trace that Perfetto opens
    files       files that are there whole or not at all
    saved/      a whole result in one Parquet file
    batch       the ways to give parallel_map its rows
    api         parallel_map; accessor is its door for frames
    chain       steps in sequence
    totals      what many runs come to, in memory that does not grow
    chunks      one task over chunk after chunk
    parquet/    the same from one Parquet file into another
    preview     a look before a run: what would be sent, and what it may cost
    limits      RateLimit and Budget, which runs share
    prices      what models cost, by a price list
    config      which model a task gets
    conversation  a session that remembers what was said
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from . import accessor as _accessor
from ._version import __version__
from .accessor import register_accessor
from .adaptive import Adaptive
from .api import aparallel_map, last_result, parallel_map
from .cancel import CancelToken
from .chain import Chain, ChainResult, Step, chain
from .chat import Reply
from .clients.base import Client
from .clients.secret import Secret
from .config import load_agent, use
from .data import data_file, load_reviews
from .errors import (
    AccessDenied,
    AttemptTimeout,
    BadOutput,
    BadReply,
    BudgetReached,
    ColumnExists,
    ConnectionFailed,
    FactoryFailed,
    Interrupted,
    MissingColumn,
    MissingExtra,
    MissingInput,
    ModelError,
    ModelMissing,
    ModelUnavailable,
    NoModel,
    QuotaUsedUp,
    RevkitError,
    RowFailure,
    RunCancelled,
    RunFailed,
    RunTimeout,
    ServerError,
    UsageError,
)
from .limits import Budget, RateLimit
from .observers import Event, register_observer
from .outputs import Field
from .policy import Retry
from .preview import Preview, apreview, preview
from .record import RowResult
from .result import ParallelResult
from .sentiment import SENTIMENT, SENTIMENT_WITH_REASON
from .task import Signature
from .tokens import Price
from .work import Context

if TYPE_CHECKING:
    from .chunks import map_chunks
    from .clients.local import Local
    from .clients.ollama import Ollama
    from .clients.openai import OpenAICompatible
    from .conversation import Conversation
    from .parquet import ParquetResult, map_parquet

__all__ = [
    "SENTIMENT",
    "SENTIMENT_WITH_REASON",
    "AccessDenied",
    "Adaptive",
    "AttemptTimeout",
    "BadOutput",
    "BadReply",
    "Budget",
    "BudgetReached",
    "CancelToken",
    "Chain",
    "ChainResult",
    "Client",
    "ColumnExists",
    "ConnectionFailed",
    "Context",
    "Conversation",
    "Event",
    "FactoryFailed",
    "Field",
    "Interrupted",
    "Local",
    "MissingColumn",
    "MissingExtra",
    "MissingInput",
    "ModelError",
    "ModelMissing",
    "ModelUnavailable",
    "NoModel",
    "Ollama",
    "OpenAICompatible",
    "ParallelResult",
    "ParquetResult",
    "Preview",
    "Price",
    "QuotaUsedUp",
    "RateLimit",
    "Reply",
    "Retry",
    "RevkitError",
    "RowFailure",
    "RowResult",
    "RunCancelled",
    "RunFailed",
    "RunTimeout",
    "Secret",
    "ServerError",
    "Signature",
    "Step",
    "UsageError",
    "__version__",
    "aparallel_map",
    "apreview",
    "chain",
    "data_file",
    "last_result",
    "load_agent",
    "load_reviews",
    "map_chunks",
    "map_parquet",
    "parallel_map",
    "preview",
    "register_accessor",
    "register_observer",
    "use",
]

_accessor.register_default()

if "dask.dataframe" in sys.modules:  # else ``import revkit.dask`` does it
    from . import dask as _dask  # noqa: F401


#: What is imported when it is used, and where it stands: a session uses little of it.
_LATE = {
    "Conversation": "conversation",
    "Local": "clients.local",
    "Ollama": "clients.ollama",
    "OpenAICompatible": "clients.openai",
    "ParquetResult": "parquet",
    "collect": "dask",
    "map_chunks": "chunks",
    "map_parquet": "parquet",
}


def __getattr__(name: str) -> object:
    import importlib

    if name == "store":
        return importlib.import_module(".store", __name__)
    if name in _LATE:
        return getattr(importlib.import_module(f".{_LATE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE, "store"})
