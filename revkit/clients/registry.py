"""Which model a task gets: the argument, ``revkit.use``, the environment, the embedded one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NoModel, UsageError, nearest
from .contract import Client

if TYPE_CHECKING:
    from ..task.kinds import ModelTask

__all__ = ["client_for", "load_agent", "resolve", "use"]

#: The model that ``use`` has set for this process.
_used: Client | None = None
_told_embedded = False

_CHOICES = """\
  Ollama on this machine      revkit.use("ollama:llama3.2:3b")
  OpenAI                      revkit.use("openai:gpt-4.1-mini")   with OPENAI_API_KEY set
  any OpenAI-compatible one   revkit.use(revkit.OpenAICompatible("name", base_url="http://..."))
  a GGUF file of yours        revkit.use(revkit.Local("model.gguf"))
  the embedded model          revkit.use("local")   135 million parameters: a demonstration
or pass the same as model=..., or set REVKIT_MODEL. `revkit doctor` says which can be reached."""


def use(model: str | Client | None) -> Client | None:
    """Set the model for all later runs of this process.

    Args:
        model: a name such as ``"local"``, ``"ollama:llama3.2:3b"`` or ``"openai:gpt-4.1-mini"``;
            a client; or None, to go back to the environment and the defaults.

    Returns:
        The client, None for None.

    Raises:
        UsageError: the name is not one of these.

    >>> import revkit
    >>> revkit.use("ollama:llama3.2:3b")
    Ollama('llama3.2:3b', host='http://127.0.0.1:11434')
    >>> revkit.use(None)
    """
    global _used
    _used = None if model is None else client_for(model)
    return _used


def client_for(model: Any) -> Client:
    """The client that ``model=`` stands for. Raises :class:`~revkit.UsageError`."""
    if isinstance(model, Client):
        return model
    if not isinstance(model, str):
        raise UsageError(
            f"model= takes a name or a client, not {type(model).__name__}; choices:\n{_CHOICES}"
        )
    provider, _, name = model.partition(":")
    if provider == "local":
        from .local.client import Local

        return Local(name or None)
    if provider == "ollama" and name:
        from .ollama import Ollama

        return Ollama(name)
    if provider == "openai" and name:
        from .openai import OpenAICompatible

        return OpenAICompatible(name)
    if provider in ("ollama", "openai"):
        hint = f'write "{provider}:" and the name of the model.'
    else:
        hint = nearest(provider, ["local", "ollama", "openai"])
    raise UsageError(f'model="{model}" is not the name of a model; {hint} Choices:\n{_CHOICES}')


def resolve(model: Any, task: ModelTask) -> Client:
    """The client for a task, by the order in this module's first line.

    Raises:
        NoModel: nothing is configured, and the embedded model does not serve the task.
    """
    global _told_embedded
    if model is not None:
        return client_for(model)
    if _used is not None:
        return _used
    named = os.environ.get("REVKIT_MODEL")
    if named:
        return client_for(named)
    from ..task.sentiment import SENTIMENT, SENTIMENT_WITH_REASON

    if task not in (SENTIMENT, SENTIMENT_WITH_REASON):
        raise NoModel(
            f"{task!r} needs a language model and none is configured (the embedded one serves "
            f"the sentiment tasks only). Choose one:\n{_CHOICES}"
        )
    from .local.client import Local

    if not _told_embedded:
        _told_embedded = True
        print(  # noqa: T201 - one line, once, that the user must see
            "revkit: no model is configured, so the small embedded one answers "
            '(revkit.use("ollama:llama3.2:3b") chooses another)',
            file=sys.stderr,
        )
    return Local()


def load_agent(path: str | os.PathLike[str]) -> Client:
    """Read an agent file: a model at a provider, as JSON.

    The form is ``{"name": …, "client": {"provider": {"name": "ollama" | "openai", "base_url": …,
    "model": {"name": …, "capabilities": {"chat": {"max_tokens": …, "temperature": …}}}}}}``;
    ``data/config.llama.json`` is one. Keys never stand in it: ``OPENAI_API_KEY`` is read from the
    environment.

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
    import json

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
    if provider["name"] == "ollama":
        from .ollama import Ollama

        return Ollama(model["name"], host=provider.get("base_url"), **options)
    if provider["name"] == "openai":
        from .openai import OpenAICompatible

        return OpenAICompatible(model["name"], base_url=provider.get("base_url"), **options)
    raise UsageError(
        f'{path}: unknown provider "{provider["name"]}"; '
        f"{nearest(str(provider['name']), ['ollama', 'openai'])}"
    )
