"""revkit: run a language model over every row of a DataFrame, and see where the time went.

The packages, in the order to read them; each imports only from those before it:

    errors      every error, drawn as a tree
    task        what is asked, and what counts as an answer
    scheduling  which row is tried when, and what becomes of it
    tables      from frames and lists to rows
    record      what happened, as columns
    clients     how each provider is asked; prices and the embedded model
    store       every good reply, kept
    observers   events of a run, and who receives them
    runtime     one run: engines, drain and lifecycle
    plot        pictures
    display     text, HTML and progress
    results     what a run gives back
    api         the public calls
    cli         the commands
    dask        the same call on a Dask cluster
    testing     for users' own tests
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ._version import __version__
from .api import accessor as _accessor
from .api.accessor import register_accessor
from .api.call import aparallel_map, parallel_map
from .api.data import data_file, load_reviews
from .api.finish import last_result
from .clients.agent_file import load_agent
from .clients.contract import Client
from .clients.registry import BUILT_IN, register_client, use
from .clients.secret import Secret
from .errors import (
    AccessDenied,
    AttemptTimeout,
    BadOutput,
    BadReply,
    BudgetReached,
    ColumnExists,
    ConnectionFailed,
    ContentFiltered,
    CutOff,
    FactoryFailed,
    Interrupted,
    MissingColumn,
    MissingExtra,
    MissingInput,
    ModelError,
    ModelMissing,
    ModelRefused,
    ModelUnavailable,
    NoModel,
    PromptTooLong,
    PromptTruncated,
    QuotaUsedUp,
    RevkitError,
    RowFailure,
    RunCancelled,
    RunFailed,
    RunTimeout,
    ServerError,
    UsageError,
)
from .observers import Event, register_observer
from .record.metrics import Metrics, Usage
from .record.record import RowResult
from .results.result import ParallelResult
from .runtime.cancel import CancelToken
from .runtime.work import Context
from .scheduling.adaptive import Adaptive
from .scheduling.events import Status
from .scheduling.limits import Budget, RateLimit
from .scheduling.policy import Retry
from .task.chat import Message, Reply
from .task.kinds import Signature
from .task.outputs import Field
from .task.sentiment import SENTIMENT, SENTIMENT_WITH_REASON
from .task.tokens import Price

if TYPE_CHECKING:
    from . import store as store
    from .api.chain import Chain, ChainResult, Step, chain
    from .api.chunks import map_chunks
    from .api.conversation import Conversation
    from .api.parquet import ParquetResult, map_parquet
    from .api.preview import Preview, apreview, preview
    from .clients.local.client import Local as Local
    from .clients.ollama import Ollama as Ollama
    from .clients.openai import OpenAICompatible as OpenAICompatible
    from .dask import collect as collect
    from .results.bottleneck import Bottleneck
    from .results.compare import Comparison
    from .results.evaluate import Evaluation
    from .results.forecast import WhatIf

__all__ = [
    "SENTIMENT",
    "SENTIMENT_WITH_REASON",
    "AccessDenied",
    "Adaptive",
    "AttemptTimeout",
    "BadOutput",
    "BadReply",
    "Bottleneck",
    "Budget",
    "BudgetReached",
    "CancelToken",
    "Chain",
    "ChainResult",
    "Client",
    "ColumnExists",
    "Comparison",
    "ConnectionFailed",
    "ContentFiltered",
    "Context",
    "Conversation",
    "CutOff",
    "Evaluation",
    "Event",
    "FactoryFailed",
    "Field",
    "Interrupted",
    "Message",
    "Metrics",
    "MissingColumn",
    "MissingExtra",
    "MissingInput",
    "ModelError",
    "ModelMissing",
    "ModelRefused",
    "ModelUnavailable",
    "NoModel",
    "ParallelResult",
    "ParquetResult",
    "Preview",
    "Price",
    "PromptTooLong",
    "PromptTruncated",
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
    "Status",
    "Step",
    "Usage",
    "UsageError",
    "WhatIf",
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
    "register_client",
    "register_observer",
    "use",
    *(cls for _, cls in BUILT_IN.values()),
]

_accessor.register_default()

if "dask.dataframe" in sys.modules:  # else ``import revkit.dask`` does it
    from . import dask as _dask  # noqa: F401


#: Names that are imported when they are first used, and their modules: a session uses few of them.
_LATE = {
    "Bottleneck": "results.bottleneck",
    "Chain": "api.chain",
    "ChainResult": "api.chain",
    "Comparison": "results.compare",
    "Conversation": "api.conversation",
    "Evaluation": "results.evaluate",
    "ParquetResult": "api.parquet",
    "Preview": "api.preview",
    "Step": "api.chain",
    "WhatIf": "results.forecast",
    **{cls: f"clients.{module}" for module, cls in BUILT_IN.values()},
    "apreview": "api.preview",
    "chain": "api.chain",
    "collect": "dask",
    "map_chunks": "api.chunks",
    "map_parquet": "api.parquet",
    "preview": "api.preview",
}


if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> object:
        import importlib

        if name == "store":
            return importlib.import_module(".store", __name__)
        if name in _LATE:
            return getattr(importlib.import_module(f".{_LATE[name]}", __name__), name)
        hint = f"; write `import revkit.{name}`" if name in ("dask", "testing") else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*__all__, "collect", "store"})
