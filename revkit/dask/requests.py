"""How the coordinator is asked, wherever it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .coordinator import Coordinator

__all__ = ["HANDLER", "ask"]

#: What the coordinator is called on the Dask scheduler.
HANDLER = "revkit"


def ask(
    coordinator: Coordinator, what: str, message: Mapping[str, Any], *, now: float
) -> dict[str, Any]:
    """Carry a message out; those that need the time get it."""
    if what in ("open", "exchange", "close"):
        message = {**message, "now": now}
    answer = getattr(coordinator, what)(**message)
    return answer if isinstance(answer, dict) else {"answer": answer}
