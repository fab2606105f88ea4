"""Which model a task gets: the argument, ``revkit.use``, the environment, the embedded one.

A model is named ``"provider:model"``. The table below has the providers that revkit brings, and
:func:`register_client` adds others. Messages, agent files, ``revkit doctor`` and ``--help`` read
them from here.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import NoModel, UsageError, nearest
from .contract import Client
from .provider import Provider

if TYPE_CHECKING:
    from ..task.kinds import ModelTask

__all__ = [
    "BUILT_IN",
    "choices",
    "client_for",
    "examples",
    "make_client",
    "provider_of",
    "providers",
    "register_client",
    "resolve",
    "use",
]

#: The providers that revkit brings: name -> module and class, imported when they are first used.
#: The module defines ``PROVIDER``. A new provider is its file and its line here.
BUILT_IN = {
    "ollama": ("ollama", "Ollama"),
    "openai": ("openai", "OpenAICompatible"),
    "local": ("local.client", "Local"),
}
_registered: dict[str, Provider] = {}

#: The model that ``use`` has set for this process.
_used: Client | None = None
_announced_embedded = False


def register_client(
    name: str,
    factory: Callable[..., Client],
    *,
    description: str = "",
    example: str = "MODEL",
) -> None:
    """Name a provider, so that ``"name:model"`` is a model everywhere.

    That is in ``model=``, :func:`revkit.use`, ``REVKIT_MODEL`` and agent files. ``revkit doctor``,
    ``--help`` and error messages list it.

    Args:
        name: lower-case letters, digits, ``-``, ``_`` and ``.``. Registering a name again replaces
            its factory, as when a cell is run again. The built-in names cannot be replaced:
            they mean the same model in every notebook.
        factory: makes a client: ``factory("model")``. A client class is a factory. An agent file
            also passes ``base_url=``, ``max_tokens=``, ``temperature=`` and ``seed=``, those that
            it has.
        description: what it is, in a few words; stands in the list of choices.
        example: the name of a model; stands in the list of choices, and ``revkit doctor`` makes
            its client.

    Raises:
        UsageError: the name is built in or cannot be used, or the factory cannot be called.

    >>> import revkit
    >>> def gateway(model, **options):
    ...     return revkit.OpenAICompatible(model, **{"base_url": "http://gateway/v1", **options})
    >>> revkit.register_client("gateway", gateway, description="our gateway")
    >>> revkit.use("gateway:qwen3")
    OpenAICompatible('qwen3', base_url='http://gateway/v1')
    >>> revkit.use(None)
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise UsageError(
            f"{name!r} cannot name a client: use lower-case letters, digits, -, _ and ., "
            'as in "gateway"'
        )
    if name in BUILT_IN:
        raise UsageError(f'the client "{name}" is built in: choose another name')
    if not isinstance(example, str) or not example:
        raise UsageError(f'the example of the client "{name}" is the name of a model')
    if not _has_signature(factory) or inspect.iscoroutinefunction(factory):
        raise UsageError(
            f'the factory of the client "{name}" must be a client class, or a plain function of a '
            "model's name that returns a client"
        )
    _registered[name] = Provider(
        make=factory,
        title=name,
        example=example,
        choices=((description or "registered here", f'revkit.use("{name}:{example}")'),),
    )


def _has_signature(factory: object) -> bool:
    try:
        return callable(factory) and bool(inspect.signature(factory).parameters)
    except ValueError:  # a function written in C
        return False


def providers() -> dict[str, Provider]:
    """All providers by name, the built-in ones first."""
    return {name: _built_in(name) for name in BUILT_IN} | _registered


def provider_of(name: str) -> Provider | None:
    """The provider of this name; None where there is none. Imports no other provider."""
    return _built_in(name) if name in BUILT_IN else _registered.get(name)


def _built_in(name: str) -> Provider:
    provider: Provider = importlib.import_module(f".{BUILT_IN[name][0]}", __package__).PROVIDER
    return provider


def examples() -> list[str]:
    """A model of each provider, as ``model=`` takes it.

    >>> examples()[:3]
    ['ollama:llama3.2:3b', 'openai:gpt-4.1-mini', 'local']
    """
    return [f"{n}:{p.example}" if p.example else n for n, p in providers().items()]


def choices() -> str:
    """How to choose a model, for error messages."""
    pairs = [pair for provider in providers().values() for pair in provider.choices]
    return (
        "".join(f"  {what:<26}  {code}\n" for what, code in pairs)
        + "or pass the same as model=..., or set REVKIT_MODEL. "
        "`revkit doctor` says which can be reached."
    )


def make_client(name: str, provider: Provider, *model: str, **options: Any) -> Client:
    """Make a client of a provider.

    Raises:
        UsageError: the provider does not take these options, or its factory makes no client.
    """
    try:
        inspect.signature(provider.make).bind(*model, **options)
    except TypeError as error:
        raise UsageError(f'the provider "{name}" cannot make this client: {error}') from None
    client = provider.make(*model, **options)
    if not isinstance(client, Client):
        raise UsageError(
            f'the factory of the provider "{name}" returned {type(client).__name__}; it must '
            "return a revkit.Client"
        )
    return client


def use(model: str | Client | None) -> Client | None:
    """Set the model for all later runs of this process.

    Args:
        model: a name such as ``"local"``, ``"ollama:llama3.2:3b"``, ``"openai:gpt-4.1-mini"`` or
            one of :func:`revkit.register_client`; a client; or None, to go back to the environment
            and the defaults.

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
            f"model= takes a name or a client, not {type(model).__name__}; choices:\n{choices()}"
        )
    name, _, of_provider = model.partition(":")
    provider = provider_of(name)
    if provider is None:
        hint = nearest(name, providers())
    elif of_provider:
        return make_client(name, provider, of_provider)
    elif not provider.example:
        return make_client(name, provider)
    else:
        hint = f'write "{name}:" and the name of the model.'
    raise UsageError(f'model="{model}" is not the name of a model; {hint} Choices:\n{choices()}')


def resolve(model: Any, task: ModelTask) -> Client:
    """The client for a task, by the order in this module's first line.

    Raises:
        NoModel: nothing is configured, and the embedded model does not serve the task.
    """
    global _announced_embedded
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
            f"the sentiment tasks only). Choose one:\n{choices()}"
        )
    if not _announced_embedded:
        _announced_embedded = True
        print(  # noqa: T201 - one line, once, that the user must see
            "revkit: no model is configured, so the small embedded one answers "
            '(revkit.use("ollama:llama3.2:3b") chooses another)',
            file=sys.stderr,
        )
    return client_for("local")
