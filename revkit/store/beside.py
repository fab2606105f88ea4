"""What stands beside a kept reply, and is not hashed: only the server says it, with its reply or
before the first one.

Facts of the model (:meth:`Client.facts`) decide whether a kept reply is reused. All others are
there to be shown.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..task.chat import Reply

__all__ = [
    "FIELDS",
    "NO_FIELDS",
    "contradict",
    "fields_of",
    "read_facts",
    "read_fields",
    "write_facts",
]

#: Fields of a reply that revkit 0.1.0 did not know, as they are kept: name -> attribute.
FIELDS = {"served": "model", "format": "format", "thought": "thought", "truncated": "truncated"}
NO_FIELDS = [None] * len(FIELDS)


def contradict(kept: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether a fact that is known both times has changed.

    >>> contradict({"root": "a"}, {"root": "b"}), contradict({"root": "a"}, {"weights": "w"})
    (True, False)
    """
    return any(kept.get(name, value) != value for name, value in now.items())


def write_facts(facts: Mapping[str, str]) -> str | None:
    """Facts as text; None where there are none."""
    return json.dumps(dict(facts), sort_keys=True) if facts else None


@functools.lru_cache(maxsize=1024)  # the replies of a run have the same
def read_facts(text: str | None, weights: str | None) -> tuple[Mapping[str, str], bool]:
    """Facts out of their text, and whether they go with the reply that they stand beside.

    Args:
        weights: the digest of the weights, which revkit 0.1.0 kept alone. It replaces a reply where
            that differs, and leaves the fields that it does not know as they were.

    Raises:
        ValueError: the text is damaged.
    """
    found = {} if text is None else json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("malformed: the facts beside a reply are no JSON object")
    if found.get("weights") == weights:
        return found, True
    return ({} if weights is None else {"weights": weights}), False


def fields_of(reply: Reply) -> dict[str, Any]:
    """The fields of a reply that are set, by their names here."""
    found = {name: getattr(reply, attribute) for name, attribute in FIELDS.items()}
    return {name: value for name, value in found.items() if value}


def read_fields(values: Sequence[Any]) -> dict[str, Any]:
    """Attributes of a reply, of values in the order of :data:`FIELDS`; half a surrogate pair is
    bytes."""
    found = {
        attribute: value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value
        for attribute, value in zip(FIELDS.values(), values, strict=True)
    }
    found["truncated"] = bool(found["truncated"])
    return found
