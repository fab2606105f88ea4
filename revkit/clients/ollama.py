"""Ollama's own protocol, ``POST /api/chat``, in which ``format`` forces typed outputs."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BadReply, CutOff, UsageError
from ..task.chat import Message, Reply, count
from .body import encode, static_body
from .contract import Exchange, Response, repeats
from .http_client import HttpClient
from .http_session import HttpSession
from .prompt_check import PromptCheck
from .provider import Provider
from .redact import public
from .secret import Secret

if TYPE_CHECKING:
    from ..scheduling.limits import RateLimit
    from ..task.kinds import ModelTask
    from .http import UserHttp

__all__ = ["Ollama"]

#: The smallest default context of a server.
SMALLEST_CONTEXT = 2048


class Ollama(HttpClient):
    """A model that an Ollama server runs.

    Args:
        model: its name, as ``ollama list`` shows it.
        host: where the server is; by default ``OLLAMA_HOST``, read as Ollama's own client reads
            it, else ``http://127.0.0.1:11434``.
        options: of the model, by Ollama's names (``top_p``, …); they go before the arguments
            below. ``num_ctx`` is the context: prompts that do not fit into it fail.
        keep_alive: how long the model stays loaded: seconds, or text such as ``"10m"``.
        max_tokens: most tokens of one reply (Ollama's ``num_predict``).
        temperature: 0, the default, makes replies as repeatable as the server can; None leaves it
            to the model.
        seed: of the sampling.
        headers: sent with every request, for a server behind a gateway; a value that is a key may
            be a :class:`~revkit.Secret`.
        http: an ``httpx.Client``, ``httpx.AsyncClient`` or transport to send with.
        timeout: seconds for one whole reply. The first one includes loading the model.
        rate_limit: a :class:`~revkit.RateLimit` of all runs that use this client.

    Raises:
        UsageError: an argument cannot be used.

    >>> Ollama("llama3.2:3b", host="gpu-box")
    Ollama('llama3.2:3b', host='http://gpu-box:11434')
    """

    path = "/api/chat"
    model_list = ("/api/tags", "models", "name")

    def __init__(
        self,
        model: str = "llama3.2:3b",
        *,
        host: str | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: float | str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = 0.0,
        seed: int | None = None,
        headers: Mapping[str, str | Secret] | None = None,
        http: UserHttp | None = None,
        timeout: float = 120.0,
        rate_limit: RateLimit | None = None,
    ):
        url = read_host(os.environ.get("OLLAMA_HOST") if host is None else host)
        self._fixed = {"host": url}
        super().__init__(
            name=f"ollama:{model}",
            model=model,
            url=url,
            headers=headers,
            body=options,
            http=http,
            timeout=timeout,
            rate_limit=rate_limit,
            parameter="host",
            hint="start Ollama with `ollama serve` or `docker compose up -d`, or pass host= or "
            "set OLLAMA_HOST if it runs elsewhere",
        )
        given = {"temperature": temperature, "num_predict": max_tokens, "seed": seed}
        self.options = {k: v for k, v in given.items() if v is not None} | dict(options or {})
        self.provider = "ollama"
        self.max_tokens = self.options.get("num_predict")
        self.keep_alive = keep_alive

    @property
    def num_ctx(self) -> int | None:
        """The context that it asks for; None: it leaves that to the server."""
        return count(self.options.get("num_ctx")) or None

    @property
    def tagged_model(self) -> str:
        """The model's name with its tag, as the server lists it."""
        return self.model if ":" in self.model else f"{self.model}:latest"

    def session(self, task: ModelTask) -> OllamaSession:
        return OllamaSession(self, task)

    def settings(self) -> dict[str, Any]:
        return {
            "protocol": "ollama",
            "endpoint": self.endpoint,
            "model": self.model,
            "options": public(self.options),
        }

    def repeats_itself(self, task: ModelTask) -> str | None:
        return repeats(self.options.get("temperature"), self.options.get("seed"))

    def context_advice(self, tokens: int) -> str | None:
        if self.num_ctx is None and tokens > SMALLEST_CONTEXT:
            own = f"the server's own context may be only {SMALLEST_CONTEXT:,} or 4,096 tokens"
        elif self.num_ctx is not None and tokens > self.num_ctx:
            own = f"num_ctx is {self.num_ctx:,}"
        else:
            return None
        return f'{own}, and longer prompts fail: pass options={{"num_ctx": {tokens}}}'

    def facts(self) -> Mapping[str, str]:
        """The digest that the server gives for the model, if it gives one."""
        models = self.get("/api/tags").get("models")
        for model in models if isinstance(models, list) else ():
            if isinstance(model, dict) and model.get("name") == self.tagged_model:
                digest = model.get("digest")
                return {"weights": digest} if isinstance(digest, str) else {}
        return {}

    def model_hint(self) -> str:
        return f"run `ollama pull {self.model}`"

    def no_models_hint(self) -> str:
        return "`ollama pull llama3.2:3b` brings a model of 2 GB"


class OllamaSession(HttpSession):
    """One run's conversation with an Ollama server."""

    def __init__(self, client: Ollama, task: ModelTask):
        super().__init__(client, "an Ollama server")
        self._client = client
        # Newer versions then refuse a prompt that is too long; others do not know these fields.
        fields: dict[str, Any] = {"model": client.model, "stream": False}
        fields |= {"truncate": False, "shift": False}
        if client.options:
            fields["options"] = client.options
        if client.keep_alive is not None:
            fields["keep_alive"] = client.keep_alive
        self._check = PromptCheck(client, fields)
        schema = task.outputs.json_schema
        if schema is not None:
            fields["format"] = schema
        self._is_typed = schema is not None
        self._static = static_body(fields, "options= or keep_alive=")

    def exchange(self, messages: Sequence[Message]) -> Exchange:
        """Ask for one reply. Raises :class:`~revkit.errors.RowFailure` kinds."""
        body = encode(self._static, messages)
        size = len(body) - len(self._static)
        sending = self.send(body)
        del body  # as in send()
        response = yield from sending
        self._check.saw(response)
        reply = self._read(self.json(response), response)
        self.worked = True
        if self._check.passes(size, reply):
            return reply
        return (yield from self._check.checked(messages, size, reply))

    # -- a reply ----------------------------------------------------------------------------

    def _read(self, found: dict[str, Any], response: Response) -> Reply:
        client = self._client
        message = found.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(message, dict) or not isinstance(text, str) or found.get("done") is False:
            raise self.bad_reply(
                f"{client.endpoint} answered with JSON that is not a whole chat reply of Ollama's "
                "(no text in message.content)",
                status=response.status,
            )
        reason, thought, served = (
            value if isinstance(value, str) and value else None
            for value in (found.get("done_reason"), message.get("thinking"), found.get("model"))
        )
        if not text and reason in ("load", "unload"):
            raise BadReply(
                f"{client.endpoint} only {reason}ed the model and gave no reply; see the server's "
                "log",
                status=response.status,
            )
        reply = Reply(
            text,
            prompt_tokens=count(found.get("prompt_eval_count")),
            completion_tokens=count(found.get("eval_count")),
            finish_reason=reason,
            thought=thought,
            model=served,
            format="schema" if self._is_typed else None,
        )
        if not text and reason == "length":
            if thought is None:
                problem = "the model used up its tokens before it said anything; raise max_tokens="
            else:
                problem = (
                    "the model used up its tokens while it was still thinking; raise max_tokens=, "
                    "or lower reasoning="
                )
            raise CutOff(problem, reply=reply)
        return reply


def read_host(host: str | None) -> str:
    """The URL that a host stands for, as Ollama's own client reads ``OLLAMA_HOST``.

    A scheme brings its own port, without one it is 11434. Servers are told to listen on all
    addresses by ``0.0.0.0`` or ``[::]``, which nobody can connect to everywhere: loopback it is.

    >>> read_host(None), read_host(":8080"), read_host("https://box/ollama/")
    ('http://127.0.0.1:11434', 'http://127.0.0.1:8080', 'https://box:443/ollama')

    Raises:
        UsageError: it is not a host.
    """
    given = (host or "").strip().strip("\"'")
    scheme, _, rest = given.partition("://")
    if rest:
        port = {"http": 80, "https": 443}.get(scheme, 11434)
    else:
        scheme, rest, port = "http", given, 11434
    try:
        parts = urllib.parse.urlsplit(f"{scheme}://{rest}")
        port = parts.port or port
    except ValueError:  # whose words might hold a password
        raise UsageError("host= or OLLAMA_HOST is not a host such as 127.0.0.1:11434") from None
    name = parts.hostname or "127.0.0.1"
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    if ":" in name:
        name = f"[{name}]"
    login, at, _ = parts.netloc.rpartition("@")
    path = parts.path.strip("/")
    query = f"?{parts.query}" if parts.query else ""
    return f"{scheme}://{login}{at}{name}:{port}{'/' + path if path else ''}{query}"


def _make(model: str, *, base_url: str | None = None, **options: Any) -> Ollama:
    return Ollama(model, host=base_url, **options)


PROVIDER = Provider(
    make=_make,
    title="Ollama",
    example="llama3.2:3b",
    choices=(("Ollama on this machine", 'revkit.use("ollama:llama3.2:3b")'),),
    parallelism="OLLAMA_NUM_PARALLEL raises that number, where Ollama runs (start it again then)",
)
