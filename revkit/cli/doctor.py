"""``revkit doctor``: which models can be reached from here, and what to do about the others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from .._version import __version__
from ..clients import registry
from ..clients.contract import Client, Request
from ..clients.http_client import HttpClient
from ..clients.local.client import Local
from ..clients.ollama import Ollama
from ..clients.openai import DEFAULT_BASE_URL, OpenAICompatible
from ..display import harmless, printable, setting_of
from ..errors import ModelError, UsageError
from .probe import MAX_TOKENS, REQUESTS, probe, told_slots

__all__ = ["Finding", "check_embedded", "check_ollama", "check_openai", "doctor"]

_TIMEOUT = 5.0  # seconds for one server to list its models
_LISTED = 8  # models that are named of each server


class Finding(NamedTuple):
    """What was found about one kind of model."""

    name: str
    ok: bool
    found: str
    advice: str = ""  #: what to do; empty where nothing needs doing


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
    findings = [check() for check in (check_embedded, check_ollama, check_openai)]
    for name, ok, found, advice in findings:
        print(printable(f"\n{'ok ' if ok else '-- '} {name}: {found}"))
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
    return 0 if any(finding.ok for finding in findings) else 1


def _at_once(client: Client) -> bool:
    """Print how many requests a model's server works on at once; whether that was found out."""
    print(printable(f"\nhow many requests {client.name} works on at once:"))
    if isinstance(client, Local):
        print(
            f"     {client.slots}, as revkit.Local(slots={client.slots}) has it; nothing was sent"
        )
        return True
    if isinstance(client, OpenAICompatible) and (slots := told_slots(client)):
        print(f"     {slots}, as the server itself says (llama.cpp: --parallel); nothing was sent")
        return True
    where = f" to {client.endpoint}" if isinstance(client, HttpClient) else ""
    said = f"sending {REQUESTS} short requests{where}, for at most {MAX_TOKENS} tokens each"
    print(printable(f"     {said}"), flush=True)
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


def check_embedded() -> Finding:
    """The small model that revkit brings: its runtime and its file."""
    from ..clients.local import model_file

    name = "embedded model"
    if importlib.util.find_spec("xllamacpp") is None:
        return Finding(
            name, False, "its runtime is not installed", 'pip install "revkit[local]" installs it'
        )
    runtime = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    path = model_file.cached_model()
    if not path.is_file() or path.stat().st_size != model_file.SIZE:
        return Finding(
            name,
            True,
            f"{runtime}; the model (93 MB) is fetched at the first use",
            "`revkit demo` fetches it now",
        )
    return Finding(name, True, f"{runtime}; the model is at {path}")


def check_ollama() -> Finding:
    """Ollama at ``OLLAMA_HOST``, and the models that it has."""

    def read(found: dict[str, object]) -> list[str]:
        return [str(m["name"]) for m in _list(found.get("models")) if "name" in m]

    try:
        client = Ollama(timeout=_TIMEOUT)
    except UsageError as error:
        return Finding("Ollama", False, str(error))
    return _ask(
        "Ollama",
        client,
        "/api/tags",
        read,
        none="`ollama pull llama3.2:3b` brings a model of 2 GB",
        use=lambda model: f'revkit.use("ollama:{model}")',
    )


def check_openai() -> Finding:
    """The server at ``OPENAI_BASE_URL``, or OpenAI's where there is a key."""
    name = "OpenAI-compatible server"
    base, key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if not base and not key:
        return Finding(
            name,
            False,
            "neither OPENAI_API_KEY nor OPENAI_BASE_URL is set",
            f"set the key for {DEFAULT_BASE_URL}, or the URL of a server of your own",
        )

    def read(found: dict[str, object]) -> list[str]:
        return [str(m["id"]) for m in _list(found.get("data")) if "id" in m]

    try:
        client = OpenAICompatible("none", timeout=_TIMEOUT)
    except UsageError as error:
        return Finding(name, False, str(error))
    found = _ask(
        name,
        client,
        "/models",
        read,
        none="the server has no model loaded; load one there",
        use=lambda model: f'revkit.use("openai:{model}")',
    )
    if found.ok and (slots := told_slots(client)):
        return found._replace(
            found=f"{found.found}; it works on {slots} at once (llama.cpp: --parallel)"
        )
    return found


def _list(found: object) -> list[dict[str, object]]:
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _ask(
    name: str,
    client: HttpClient,
    path: str,
    read: Callable[[dict[str, object]], list[str]],
    *,
    none: str,
    use: Callable[[str], str],
) -> Finding:
    """Ask a server which models it has."""
    try:
        with closing(client.transport(max_workers=1)) as transport:
            response = transport.send(Request(client.url(path), headers=client._headers))
        models = [harmless(model, 80) for model in read(client.decode(response))]
    except (ModelError, UsageError) as error:
        return Finding(name, False, str(error))
    if not models:
        return Finding(name, False, f"{client.endpoint} answers, and has no models", none)
    more = f" and {len(models) - _LISTED} more" if len(models) > _LISTED else ""
    listed = ", ".join(models[:_LISTED])
    return Finding(name, True, f"{client.endpoint} has {listed}{more}", use(models[0]))
