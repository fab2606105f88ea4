"""How revkit makes and lists the clients of one provider."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .contract import Client

__all__ = ["Provider"]


@dataclass(frozen=True)
class Provider:
    """One line of the registry, filled in where the client is defined.

    Attributes:
        make: makes a client: ``make(model, base_url=..., max_tokens=..., temperature=...,
            seed=...)``. An agent file passes the options that it has, a name passes none.
        title: heads its line in ``revkit doctor``.
        choices: how to choose it, for ``NoModel``: pairs of a short description and the code.
        example: a model's name, for examples and for ``revkit doctor``; empty where the provider's
            name alone is a model.
        parallelism: the setting that raises the number of requests that its server works on at
            once.
    """

    make: Callable[..., Client]
    title: str
    choices: Sequence[tuple[str, str]]
    example: str = ""
    parallelism: str = "its number of parallel requests is a setting of the server"
