"""Agent files: a model at a provider, as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import UsageError, nearest
from .contract import Client
from .registry import make_client, provider_of, providers

__all__ = ["load_agent"]


def load_agent(path: str | os.PathLike[str]) -> Client:
    """Read an agent file: a model at a provider, as JSON.

    The form is ``{"name": …, "client": {"provider": {"name": …, "base_url": …,
    "model": {"name": …, "capabilities": {"chat": {"max_tokens": …, "temperature": …}}}}}}``;
    ``data/config.llama.json`` is one. The provider's name is one that ``model="name:…"`` takes too.
    Keys never stand in the file: ``OPENAI_API_KEY`` is read from the environment.

    Args:
        path: the file.

    Returns:
        A client, for ``model=`` or :func:`use`.

    Raises:
        UsageError: the file cannot be read, or something in it is unknown or missing.

    >>> import revkit
    >>> revkit.load_agent(revkit.data_file("config.llama.json"))
    Ollama('llama3.2:3b', host='http://localhost:11434')
    """
    try:
        agent = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"the agent file {path} cannot be read: {error}") from error

    def part(of: Any, where: str, known: list[str], required: list[str]) -> dict[str, Any]:
        if not isinstance(of, dict):
            raise UsageError(f"{path}: {where or 'the file'} must be a JSON object")
        dot = f"{where}." if where else ""
        for key in of:
            if key not in known:
                raise UsageError(f'{path}: unknown key "{dot}{key}"; {nearest(key, known)}')
        for key in required:
            if key not in of:
                raise UsageError(f'{path}: "{dot}{key}" is missing')
        return of

    agent = part(agent, "", ["name", "client"], ["client"])
    client = part(agent["client"], "client", ["provider"], ["provider"])
    at = "client.provider"
    provider = part(client["provider"], at, ["name", "base_url", "model"], ["name", "model"])
    at += ".model"
    model = part(provider["model"], at, ["name", "capabilities"], ["name"])
    at += ".capabilities"
    capabilities = part(model.get("capabilities", {}), at, ["chat"], [])
    options = part(
        capabilities.get("chat", {}), f"{at}.chat", ["max_tokens", "temperature", "seed"], []
    )
    name = str(provider["name"])
    known = provider_of(name)
    if known is None:
        raise UsageError(f'{path}: unknown provider "{name}"; {nearest(name, providers())}')
    if provider.get("base_url") is not None:
        options["base_url"] = provider["base_url"]
    try:
        return make_client(name, known, model["name"], **options)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
