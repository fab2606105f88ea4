"""What a run was made of, as plain JSON: task, model, options, versions.

It goes with a result into its file, so that a figure can be traced to what made it. Never a key:
of the model there is only what its client says of itself (:meth:`Client.settings`).
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from .._version import __version__
from ..record.record import Record
from ..runtime.plan import Plan
from ..scheduling.limits import Budget, RateLimit
from ..task.kinds import CallableTask, ModelTask, Template

__all__ = ["of_call", "of_run"]


def of_call(plan: Plan, *, inputs: Iterable[Hashable]) -> dict[str, Any]:
    """What is known before anything is sent.

    Args:
        inputs: the columns that the inputs are bound to, in the inputs' order.
    """
    client = plan.client
    return {
        "task": describe(plan.task),
        "model": None
        if client is None
        else {
            "name": client.name,
            "provider": client.provider,
            "settings": _plain(client.key_settings()),
            "weights": None,
        },
        "options": {
            "on": _plain(dict(zip(plan.rows.names, inputs, strict=False))),
            **{name: _plain(value) for name, value in plan.options.recorded()},
            "engine": plan.engine,
            "workers": plan.workers,
            "max_tokens": None if client is None else client.max_tokens,
            "store": None,
        },
        "versions": {
            "revkit": __version__,
            "python": platform.python_version(),
            "pandas": pd.__version__,
            "numpy": np.__version__,
            "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
    }


def of_run(call: Mapping[str, Any], record: Record) -> dict[str, Any]:
    """The same with what only the run could tell: its name and start, its store, its model.

    ``facts`` is what the server said of the model; ``served`` and ``formats`` count the ok rows by
    the model that answered, as the server names it, and by how the reply's form was asked for.
    """
    model = call["model"]
    if model is not None:
        served, formats = record.answered()
        model = model | {
            "weights": record.facts.get("weights"),
            "facts": dict(record.facts),
            "served": served,
            "formats": formats,
        }
    return {
        "run_id": record.run_id,
        "started_at": record.started_at.isoformat(),
        **call,
        "model": model,
        "options": call["options"] | {"store": record.store},
    }


def describe(task: ModelTask | CallableTask) -> dict[str, Any]:
    """A task in words: enough to know what was asked, not to ask it again."""
    if isinstance(task, CallableTask):
        module = getattr(task.fn, "__module__", None)
        return {
            "kind": "callable",
            "name": f"{module}.{task.name}" if module else task.name,
            "output": task.output,
            "fingerprint": task.fingerprint,
        }
    free_text = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in task.outputs},
    }
    return {
        "kind": type(task).__name__.lower(),
        **({"template": task.text} if isinstance(task, Template) else {}),
        "instructions": task.instructions,
        "inputs": {
            name: {"type": getattr(field.type, "__name__", repr(field.type))}
            | ({"description": field.description} if field.description else {})
            for name, field in task.inputs.items()
        },
        "outputs": _plain(task.outputs.json_schema or free_text),
        "examples": _plain(task.examples),
        "fingerprint": task.fingerprint,
    }


def _plain(value: Any) -> Any:
    """A copy in which there is nothing but what JSON has; other things stand as their text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, RateLimit):
        counts = ("requests_per_minute", "tokens_per_minute")
        return {name: getattr(value, name) for name in counts}
    if isinstance(value, Budget):
        return {"tokens": value.tokens, "usd": value.usd}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    return str(value)
