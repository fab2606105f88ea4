"""The protocol of OpenAI's ``POST /chat/completions``, which most servers speak in part.

What a server refuses of it is found out by asking: a request that is refused because of an
optional part is sent again without that part, within the same exchange, and once a reply has
come the session leaves it out for the rest of the run. See :class:`Dialect`.
"""

from __future__ import annotations

import copy
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from ..errors import BadOutput, ModelError, ModelRefused, ServerError, UsageError
from ..task.chat import Message, Reply
from .body import encode, static_body
from .contract import Exchange, Finding, Response, repeats
from .error_body import error_body
from .http_client import HttpClient
from .http_session import HttpSession
from .message_parts import said
from .model_facts import model_facts
from .provider import Provider
from .redact import public
from .secret import Secret

if TYPE_CHECKING:
    from ..scheduling.limits import RateLimit
    from ..task.kinds import ModelTask
    from .http import UserHttp

__all__ = ["OpenAICompatible"]

DEFAULT_BASE_URL = "https://api.openai.com/v1"
Format = Literal["prompt", "json", "schema"]
#: Hosts that say nothing of a model that its name does not.
_SERVICES = ("api.openai.com", ".openai.azure.com")


class OpenAICompatible(HttpClient):
    """A model behind OpenAI's API or one that is like it: vLLM, llama.cpp, LM Studio, gateways.

    Args:
        model: its name at the server.
        base_url: the URL up to and with ``/v1``; by default ``OPENAI_BASE_URL``, else OpenAI's.
        api_key: the key, or a :class:`~revkit.Secret` that says where it stands; by default
            ``OPENAI_API_KEY``; a server of your own needs none.
        max_tokens: most tokens of one reply.
        temperature: 0, the default, makes replies as repeatable as the server can, and is left
            out where a model takes no temperature; None leaves it to the server.
        seed: of the sampling.
        extra_body: fields that are added to each request as they are.
        headers: sent with every request; one named ``Authorization`` goes before ``api_key``.
        http: an ``httpx.Client``, ``httpx.AsyncClient`` or transport to send with.
        timeout: seconds for one whole reply.
        rate_limit: a :class:`~revkit.RateLimit` of all runs that use this client.

    Raises:
        UsageError: an argument cannot be used.

    >>> OpenAICompatible("qwen3", base_url="http://me:secret@127.0.0.1:8000/v1", api_key="secret")
    OpenAICompatible('qwen3', base_url='http://127.0.0.1:8000/v1')
    """

    path = "/chat/completions"
    model_list = ("/models", "data", "id")

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | Secret | None = None,
        max_tokens: int | None = None,
        temperature: float | None = 0.0,
        seed: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str | Secret] | None = None,
        http: UserHttp | None = None,
        timeout: float = 120.0,
        rate_limit: RateLimit | None = None,
    ):
        if base_url is None:
            base_url = os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
        # A key read from a file ends in a newline, which no header may hold.
        own = (os.environ.get("OPENAI_API_KEY") or "").strip()
        if api_key is None:
            key = own
        else:
            key = api_key.read() if isinstance(api_key, Secret) else api_key.strip()
        self._fixed = {"base_url": base_url}
        if own and api_key in (None, own):  # it is read again where the client goes
            self._fixed["api_key"] = Secret(env="OPENAI_API_KEY")
        super().__init__(
            name=f"openai:{model}",
            model=model,
            url=base_url,
            headers=({"authorization": f"Bearer {key}"} if key else {}) | _lower(headers or {}),
            body=extra_body,
            http=http,
            timeout=timeout,
            rate_limit=rate_limit,
            hint="is the server running, and is base_url= (or OPENAI_BASE_URL) right?",
        )
        self._has_key = bool(key)
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.seed = seed
        self.extra_body = dict(extra_body or {})

    def ready(self, task: ModelTask, *, max_workers: int) -> None:
        """Refuse to ask OpenAI itself without a key; a server of one's own may want none."""
        if self.endpoint == DEFAULT_BASE_URL and "authorization" not in self._headers:
            raise UsageError(
                "OPENAI_API_KEY is not set; set it, pass api_key=, or name a server of your own "
                "with base_url= or OPENAI_BASE_URL"
            )

    def session(self, task: ModelTask) -> OpenAISession:
        return OpenAISession(self, task)

    def settings(self) -> dict[str, Any]:
        return {
            "protocol": "openai",
            "endpoint": self.endpoint,
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "extra_body": public(self.extra_body),
        }

    def facts(self) -> Mapping[str, str]:
        """What vLLM and llama.cpp say of the model; OpenAI and Azure are not asked."""
        host = urllib.parse.urlsplit(self.endpoint).hostname or ""
        if host.endswith(_SERVICES):
            return {}
        return model_facts(self.get("/models").get("data"), self.model, props=self._props)

    def _props(self) -> dict[str, Any]:
        """What a llama.cpp server says of itself."""
        root = copy.copy(self)
        root._base = self._base.removesuffix("/v1")
        return root.get("/props")

    def repeats_itself(self, task: ModelTask) -> str | None:
        sent = {"temperature": self.temperature, "seed": self.seed, **self.extra_body}
        return repeats(sent["temperature"], sent["seed"])

    def access_hint(self) -> str:
        if self._has_key:
            return "check OPENAI_API_KEY or api_key=, and that the key may use this model"
        return "set OPENAI_API_KEY, or pass api_key="

    def check(self) -> Finding:
        if self.endpoint == DEFAULT_BASE_URL and "authorization" not in self._headers:
            return Finding(
                False,
                "neither OPENAI_API_KEY nor OPENAI_BASE_URL is set",
                f"set the key for {DEFAULT_BASE_URL}, or the URL of a server of your own",
            )
        finding = super().check()
        if finding.ok and (known := self.known_slots()):
            slots = f"it works on {known[0]} at once (llama.cpp: --parallel)"
            return finding._replace(found=f"{finding.found}; {slots}")
        return finding

    def known_slots(self) -> tuple[int, str] | None:
        """Those of a llama.cpp server, which lists them. Costs nothing."""
        if self.endpoint == DEFAULT_BASE_URL:
            return None
        slots = self._props().get("total_slots")
        if not isinstance(slots, int) or isinstance(slots, bool) or slots < 1:
            return None
        return slots, "as the server itself says (llama.cpp: --parallel)"


def _lower(headers: Mapping[str, str | Secret]) -> dict[str, str | Secret]:
    return {name.lower(): value for name, value in headers.items()}


class Dialect(NamedTuple):
    """How much of the protocol a request uses.

    Attributes:
        format: how the reply's form is asked for: 2 by JSON schema, 1 by JSON mode, 0 by the
            prompt alone.
        new_limit: ``max_tokens`` goes by its newer name, ``max_completion_tokens``.
        temperature: it is sent.
    """

    format: int
    new_limit: bool = False
    temperature: bool = True

    def without(self, refusal: Response, *, worked: bool) -> Dialect | None:
        """The dialect to try after ``refusal``, or None if it was not about the dialect.

        ``worked`` says that this dialect has brought a reply in this run. Then only a refusal
        that names what it refuses counts; before, any refusal may be about the format.
        """
        if refusal.status not in (400, 404, 415, 422, 500, 501):
            return None
        found = error_body(refusal.body)
        reason = f"{found.param} {found.words}"
        if _UNSUPPORTED.search(f"{found.code} {reason}"):
            if not self.new_limit and re.search(r"\bmax_tokens\b", reason):
                return self._replace(new_limit=True)
            if self.temperature and "temperature" in reason:
                return self._replace(temperature=False)
        if self.format:
            vague = not worked and refusal.status in (400, 422)
            if _FORMAT.search(reason) or vague:
                return self._replace(format=self.format - 1)
        return None

    def meet(self, other: Dialect) -> Dialect:
        """What both allow."""
        return Dialect(
            min(self.format, other.format),
            self.new_limit or other.new_limit,
            self.temperature and other.temperature,
        )


#: The format of a reply, by ``Dialect.format``.
_FORMATS: tuple[Format, ...] = ("prompt", "json", "schema")
#: The same, by the type of a ``response_format``.
_OWN_FORMATS: Mapping[Any, Format] = {
    "json_schema": "schema",
    "json_object": "json",
    "text": "prompt",
}
_BAD_GATEWAY = 502
_FORMAT = re.compile(
    r"(?i)response_?format|json_?(schema|object|mode)|json mode|schema|structured|grammar|guided"
)
_UNSUPPORTED = re.compile(
    r"(?i)unsupported|not support|n't support|unrecogni[sz]ed|unknown|extra|not (permitted|allowed)"
)


class OpenAISession(HttpSession):
    """One run's conversation with a server, and what has been learned of its dialect.

    Shared by all workers of the run, on threads or a loop, without a lock: the dialect is one
    attribute that only ever loses parts. Two workers that learn at the same moment may cost a
    request more, never a wrong one.
    """

    def __init__(self, client: OpenAICompatible, task: ModelTask):
        super().__init__(client, "an OpenAI-compatible server")
        self._client = client
        self._schema = task.outputs.json_schema
        own = client.extra_body.get("response_format")  # which goes before ours
        own = _OWN_FORMATS.get(own.get("type")) if isinstance(own, Mapping) else None
        #: how a request asks for the form of the reply, by ``Dialect.format``; None: it may be any
        self._formats: Sequence[Format | None] = _FORMATS
        if own is not None or self._schema is None:
            self._formats = (own,) * len(_FORMATS)
        self._dialect = Dialect(
            format=0 if self._schema is None else 2,
            temperature=client.temperature is not None,
        )
        self._dialect_worked = False  #: the present dialect has brought a reply
        self._static: dict[Dialect, bytes] = {}  #: the part of the body that rows share
        self._static_body(self._dialect)  # so that a body that is not JSON fails here

    def exchange(self, messages: Sequence[Message]) -> Exchange:
        """Ask for one reply. Raises :class:`~revkit.errors.RowFailure` kinds."""
        dialect = self._dialect
        while True:
            response = yield from self.send(encode(self._static_body(dialect), messages))
            if 200 <= response.status < 300:
                break
            failure = self.failure(response)
            # An error that says more than its status is not about the form of the request.
            weaker = self._weaker(dialect, response) if type(failure) is ServerError else None
            if weaker is None:
                raise failure
            dialect = weaker
        reply = self._read(self.json(response), response, dialect)
        if dialect is not self._dialect:
            self._dialect = self._dialect.meet(dialect)
        self._dialect_worked = self.worked = True
        return reply

    def _weaker(self, dialect: Dialect, refusal: Response) -> Dialect | None:
        weaker = dialect.without(refusal, worked=self._dialect_worked and dialect == self._dialect)
        if weaker is None:
            return None
        # Only our default of 0 may be left out silently: another one is the user's wish.
        if dialect.temperature and not weaker.temperature and self._client.temperature:
            return None
        if weaker.new_limit and self._client.max_tokens is None:
            return None
        return weaker

    def _static_body(self, dialect: Dialect) -> bytes:
        found = self._static.get(dialect)
        if found is None:
            found = self._static[dialect] = static_body(self._fields(dialect), "extra_body=")
        return found

    def _fields(self, dialect: Dialect) -> dict[str, Any]:
        client = self._client
        fields: dict[str, Any] = {"model": client.model, "stream": False}
        if client.max_tokens is not None:
            name = "max_completion_tokens" if dialect.new_limit else "max_tokens"
            fields[name] = client.max_tokens
        if dialect.temperature:
            fields["temperature"] = client.temperature
        if client.seed is not None:
            fields["seed"] = client.seed
        if dialect.format == 2:
            schema = {"name": "outputs", "strict": True, "schema": self._schema}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif dialect.format == 1:
            fields["response_format"] = {"type": "json_object"}
        return fields | client.extra_body

    def _read(self, found: dict[str, Any], response: Response, dialect: Dialect) -> Reply:
        choices = found.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        choice = choice if isinstance(choice, dict) else {}
        message, reason = choice.get("message"), choice.get("finish_reason")
        error = choice.get("error")
        broken = reason == "error" or bool(error)
        if not isinstance(message, dict) and not broken:
            raise self.bad_reply(
                f"{self._client.endpoint} answered with JSON that is not a chat completion (no "
                "message in choices)",
                status=response.status,
            )
        message = message if isinstance(message, dict) else {}
        text, thought, refusal = said(message)
        usage = found.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        model = found.get("model")
        reply = Reply(
            text or refusal,
            prompt_tokens=usage.get("prompt_tokens"),  # who reads the reply checks them
            completion_tokens=usage.get("completion_tokens"),
            finish_reason=reason if isinstance(reason, str) else None,
            thought=thought or None,
            model=model if model and isinstance(model, str) else None,
            format=self._formats[dialect.format],
        )
        if broken:
            raise self._broken_off(error, reply, response)
        if refusal:
            raise ModelRefused(
                self._client.quote(f'the model refused to answer: "{refusal}"'), reply=reply
            )
        if not text and (message.get("tool_calls") or message.get("function_call")):
            raise BadOutput(
                "the model called a tool instead of replying; take tools out of extra_body=",
                reply=reply,
            )
        return reply

    def _broken_off(self, error: Any, part: Reply, response: Response) -> ModelError:
        """The error for a reply that the provider behind the server broke off."""
        if error:
            body = orjson.dumps({"error": error})
            status = error_body(body).status or _BAD_GATEWAY
            failure = self.failure(replace(response, body=body), status)
        else:
            where = self._client.endpoint
            failure = ServerError(
                f'{where} broke the reply off (finish reason "error")', status=_BAD_GATEWAY
            )
        if part.text or part.completion_tokens:  # which may be billed
            failure.reply, failure.text = part, part.text
        return failure


PROVIDER = Provider(
    make=OpenAICompatible,
    title="OpenAI-compatible server",
    example="gpt-4.1-mini",
    choices=(
        ("OpenAI", 'revkit.use("openai:gpt-4.1-mini")   with OPENAI_API_KEY set'),
        (
            "any OpenAI-compatible one",
            'revkit.use(revkit.OpenAICompatible("name", base_url="http://..."))',
        ),
    ),
    parallelism="what raises that number is a setting of the server, where it is yours (llama.cpp: "
    "--parallel; vLLM: --max-num-seqs)",
)
