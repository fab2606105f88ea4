"""What an OpenAI-compatible server says of a model in its list, to tell it from others.

Only what stays the same as long as the model does: ``created`` and ``permission`` change at every
request, and other fields may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["model_facts"]

#: Fields of llama.cpp's ``meta``.
_META = ("vocab_type", "n_vocab", "n_ctx_train", "n_embd", "n_params", "size")
#: Characters of one fact.
_LONGEST = 1_000


def model_facts(
    listed: Any, model: str, *, props: Callable[[], Mapping[str, Any]]
) -> dict[str, str]:
    """The facts of a model in a server's list of models.

    Args:
        listed: the list, or anything else that a server may send.
        model: its name.
        props: asks a llama.cpp server for ``/props``.

    >>> listed = [{"id": "qwen", "root": "/models/qwen3-8b", "created": 1735689600}]
    >>> model_facts(listed, "qwen", props=dict)
    {'root': '/models/qwen3-8b'}
    """
    models = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    # llama.cpp with one model answers with it, whatever name the request has.
    alone = len(models) == 1 and models[0].get("owned_by") == "llamacpp"
    found = models if alone else [one for one in models if one.get("id") == model]
    if not found:
        return {}
    (one, *_) = found
    meta = one.get("meta")
    facts: dict[str, Any] = {"root": one.get("root")}
    if isinstance(meta, dict):
        facts |= {f"meta.{name}": meta.get(name) for name in _META}
    if alone:
        facts["model_path"] = props().get("model_path")
    return {
        name: str(value)[:_LONGEST]
        for name, value in facts.items()
        if isinstance(value, str | int | float) and value != ""
    }
