"""``revkit doctor``: which models can be reached from here, and what to do about the others."""

from __future__ import annotations

import os
import platform

from .._version import __version__
from ..clients import registry
from ..clients.contract import Client, Finding
from ..clients.http_client import HttpClient
from ..clients.provider import Provider
from ..display import harmless, printable, setting_of
from ..errors import UsageError
from .probe import MAX_TOKENS, REQUESTS, probe

__all__ = ["doctor"]


def doctor(parallel: str | None = None) -> int:
    """Print what was found; 0 where a model can be reached, else 1.

    Args:
        parallel: a model that is asked for some replies, to find out how many requests its server
            works on at once; None: no model is asked for anything. Then 0 where that was found.

    Raises:
        UsageError: it is not the name of a model.
    """
    asked = None if parallel is None else registry.client_for(parallel)
    print(f"revkit {__version__}, Python {platform.python_version()}, {platform.system()}")
    usable = False
    for name, provider in registry.providers().items():
        finding = _check(name, provider)
        usable |= finding.ok
        print(printable(f"\n{'ok ' if finding.ok else '-- '} {provider.title}: {finding.found}"))
        advice = finding.advice
        if finding.models and not advice:
            advice = f'revkit.use("{name}:{harmless(finding.models[0], 80)}")'
        if advice:
            print(printable(f"     {advice}"))
    named = os.environ.get("REVKIT_MODEL")
    chosen = "the embedded one, for sentiment"
    if named:
        try:
            chosen = f"{registry.client_for(named).name} (REVKIT_MODEL)"
        except UsageError as error:
            chosen = f"none: REVKIT_MODEL cannot be used: {error}"
    print(printable(f"\na run that names no model takes: {chosen}"))
    print(printable(f"replies: {_replies()}"))
    if asked is not None:
        return 0 if _at_once(asked) else 1
    return 0 if usable else 1


def _check(name: str, provider: Provider) -> Finding:
    """What a client of the provider says of its server."""
    model = [provider.example] if provider.example else []
    try:
        return registry.make_client(name, provider, *model).check()
    except UsageError as error:
        return Finding(False, str(error))
    except Exception as error:  # noqa: BLE001 - a registered factory's own
        return Finding(False, f"{type(error).__name__}: {error}", "see its factory")


def _at_once(client: Client) -> bool:
    """Print how many requests a model's server works on at once; whether that was found out."""
    print(printable(f"\nhow many requests {client.name} works on at once:"))
    known = client.known_slots()
    if known is not None:
        print(printable(f"     {known[0]}, {known[1]}; nothing was sent"))
        return True
    where = f" to {client.endpoint}" if isinstance(client, HttpClient) else ""
    plan = f"sending {REQUESTS} short requests{where}, for at most {MAX_TOKENS} tokens each"
    print(printable(f"     {plan}"), flush=True)
    found = probe(client)
    for line in found.lines():
        print(printable(f"     {line}"))
    if found.slots is not None:
        print(printable(f"     {setting_of(client.settings())}"))
    return found.problem is None or found.slots is not None


def _replies() -> str:
    """Where replies of models are kept, and how many there are."""
    from ..store.manage import info, is_off

    if is_off():
        return "none are kept (REVKIT_STORE)"
    try:
        return repr(info())
    except UsageError as error:
        return f"none can be kept: {error}"
