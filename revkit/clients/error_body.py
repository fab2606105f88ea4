"""What an error response says, as facts: the one place that knows how each provider words it.

A message may quote the text of a row. So a fact is taken from a code, a type or a reason first, and
from words only where the whole message, or its beginning, is the provider's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from .body import decoded
from .redact import MAX_QUOTE

__all__ = ["ErrorBody", "error_body"]

#: Where a message, or what holds it, may stand.
_MESSAGES = ("error", "message", "detail", "msg")
#: How deep it may lie.
_DEEPEST = 8

#: Codes and types of an account without quota or money.
_NO_CREDIT = {
    "insufficient_quota",  # OpenAI
    "billing_hard_limit_reached",
    "billing_not_active",
    "exceeded_current_quota_error",  # Moonshot
    "enforced_spend_limit_reached",  # Anthropic
    "billing_error",
    "arrearage",  # DashScope
    "insufficient_credits",
    "insufficient_balance",
}
#: How messages about an account without credit begin.
_NO_CREDIT_WORDS = (
    r"You exceeded your current quota, please check your plan\b",  # OpenAI
    r"Your credit balance is too low to access\b",  # Anthropic
    r"You have reached your specified API usage limits\.",
    r"enforced_spend_limit_reached\b",
    r"This request would exceed your account's monthly spend limit\.",
    r"Your team \S+ has either used all available credits or reached its monthly spending limit\.",
    r"Your newly created team doesn't have any credits\b",  # xAI
    r"You have run out of credits or need a Grok subscription\b",
    r"Account \S+ is suspended, possibly due to reaching the monthly spending limit\b",  # Fireworks
    r"Your account \S+(?: <\S+>)? is suspended due to insufficient balance\b",  # Moonshot
    r"Insufficient (?:Balance|balance|credits)\.?$",  # DeepSeek's resellers
)
#: Codes and types of a model that the server does not have.
_NO_MODEL = {
    "model_not_found",  # OpenAI, Groq
    "invalid_model",  # Mistral
    "deploymentnotfound",  # Azure
    "model_not_available",  # Together
    "model_not_exist",
    "model_decommissioned",  # Groq
    "model_deprecated",
}
#: How messages about a missing model begin; ``{model}`` is its name.
_NO_MODEL_WORDS = (
    r"{model} is not a valid model ID\.?$",  # OpenRouter
    r"No endpoints found for {model}\.?$",
    r"Model Not Exist\.?$",  # DeepSeek
    r"The provided model identifier is invalid\.?$",  # Bedrock
    r"Invalid model: {model}$",  # Mistral
    r"model: {model}$",  # Anthropic
    r"(?:\d+: )?(?:\{{'error': ')?(?:/\S+: )?Invalid model name passed in model={model}(?!\S*\w)",
)
#: How the message of a 404 begins that is about the model, in the words of most servers.
_NOT_FOUND = re.compile(
    r"(?is)no such model\b|no models? (?:is |are )?loaded\b|"
    r"(?:the |requested |publisher |failed to load |unable to access )*"
    r"models?\b.{0,300}?\b(?:not found|not exist|not available|not deployed|not loaded)"
)
#: Codes, types and reasons of a key that is not accepted, whatever the status.
_BAD_KEY = {"api_key_invalid", "invalid_api_key", "invalidapikey", "authentication_error"}
#: Whole messages about a key that is not accepted.
_BAD_KEY_WORDS = (
    r"API key not valid\. Please pass a valid API key\.",  # Gemini
    r"API key expired\. Please renew the API key\.",
    r"(?i:API key not found)\. Please pass a valid API key\.",
    r"Incorrect API key provided: \S+ You can (?:find|obtain) (?:an|your) API key \S+ \S+",  # xAI
)
#: The status that a name stands for, where it comes without one.
_STATUSES: Final[Mapping[str, int]] = {
    # OpenAI's
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "invalid_api_key": 401,
    "model_not_found": 404,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "server_error": 500,
    "internal_server_error": 500,
    # Anthropic's
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
    # Google's
    "invalid_argument": 400,
    "failed_precondition": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "resource_exhausted": 429,
    "internal": 500,
    "unavailable": 503,
    "deadline_exceeded": 504,
}


#: OpenAI, Groq: "... on tokens per min (TPM): Limit 30000, Requested 41000".
_TOO_LARGE_WORDS = (r"(?is)request too large\b.{0,200}?\brequested \d+",)


class ErrorBody(NamedTuple):
    """What an error response says.

    Attributes:
        message: the server's own words; empty where it says nothing.
        upstream: the words of the provider behind it; empty where there is none, or it is silent.
        code: a number as text, or a name; empty where there is none.
        kind: the type of the error; empty where there is none.
        param: the parameter that it is about; empty where there is none.
        reasons: further names of what went wrong (Google's ``reason`` and ``status``).
        is_error: whether the body has an error of its own at all.
    """

    message: str = ""
    upstream: str = ""
    code: str = ""
    kind: str = ""
    param: str = ""
    reasons: tuple[str, ...] = ()
    is_error: bool = False

    @property
    def words(self) -> str:
        """The message as it is shown, with what the provider behind the server said."""
        if not self.upstream or self.upstream in self.message:
            return self.message
        return f"{self.message}: {self.upstream}"

    @property
    def names(self) -> set[str]:
        """Code, type and reasons, in lower case."""
        return {name.lower() for name in (self.code, self.kind, *self.reasons) if name}

    @property
    def status(self) -> int | None:
        """The HTTP status of an error that its code is, or stands for; None: it does not say."""
        if self.code.isdecimal():
            return int(self.code) if 400 <= int(self.code[:4]) < 600 else None
        names = (self.code, self.kind, *self.reasons)
        return next((_STATUSES[n.lower()] for n in names if n.lower() in _STATUSES), None)

    def is_out_of_credit(self, status: int) -> bool:
        """Whether the account has no quota or no money left, so that no waiting helps."""
        if status == 402:
            return True
        if not 400 <= status < 500:
            return False
        if self.names & _NO_CREDIT:
            return True
        # Google says OpenAI's words of a limit by the minute, and how long to wait.
        return "resource_exhausted" not in self.names and self._begins(_NO_CREDIT_WORDS)

    def is_model_missing(self, status: int, model: str) -> bool:
        """Whether the server does not have the model."""
        if not 400 <= status < 500:
            return False
        if self.names & _NO_MODEL:
            return True
        words = (words.format(model=re.escape(model)) for words in _NO_MODEL_WORDS)
        if status in (400, 404, 422) and self._begins(words):
            return True
        return status == 404 and _NOT_FOUND.match(self.message.strip()) is not None

    def is_too_large(self, status: int) -> bool:
        """Whether one request asks for more tokens than the account may use in a minute."""
        return status in (413, 429) and self._begins(_TOO_LARGE_WORDS)

    def is_bad_key(self, status: int) -> bool:
        """Whether the server does not accept the key."""
        if status == 401:
            return True
        return status in (400, 403) and (
            bool(self.names & _BAD_KEY)
            or any(re.fullmatch(words, self.message.strip()) for words in _BAD_KEY_WORDS)
        )

    def _begins(self, wordings: Iterable[str]) -> bool:
        message = self.message.strip()
        return any(re.match(words, message) for words in wordings)


def error_body(body: bytes) -> ErrorBody:
    """Read an error response: the common shapes of JSON, else the text itself.

    >>> error_body(b'{"error": {"message": "no such model", "code": 404}}').status
    404
    >>> error_body(b'[{"error": {"message": "no", "status": "INVALID_ARGUMENT"}}]').reasons
    ('INVALID_ARGUMENT',)
    """
    found = decoded(body)
    if isinstance(found, list) and found:  # Google's
        found = found[0]
    if not isinstance(found, dict):
        return ErrorBody(found if isinstance(found, str) else _plain_text(body))
    error = found.get("error")
    inner = error if isinstance(error, dict) else found
    message, place = _message(found)
    return ErrorBody(
        message=message or _plain_text(body),
        upstream=_upstream(inner),
        code=_name(inner.get("code")),
        kind=_name(inner.get("type")),
        param=_name(inner.get("param")) or place,
        reasons=tuple(_reasons(inner)),
        is_error=bool(error) or found.get("object") == "error" or found.get("type") == "error",
    )


def _plain_text(body: bytes) -> str:
    """A body that is no JSON, without the markup of a page."""
    text = body[: 16 * MAX_QUOTE].decode("utf-8", "replace")
    return re.sub(r"(?s)<(style|script).*?</\1>|<[^>]*>", " ", text)


def _message(found: Any) -> tuple[str, str]:
    """The message in an error, however deep it lies, and the field that it is about.

    The field is the ``loc`` of FastAPI and Mistral; the message then starts with it.
    """
    place = ""
    for _ in range(_DEEPEST):
        if isinstance(found, list):
            found = found[0] if found and isinstance(found[0], dict) else None
        if not isinstance(found, dict):
            break
        if isinstance(loc := found.get("loc"), list):
            place = ".".join(str(part) for part in loc if part != "body")
        found = next((found[key] for key in _MESSAGES if found.get(key)), None)
    if not isinstance(found, str):
        return "", place
    return f"{place}: {found}" if place else found, place


def _upstream(error: Mapping[str, Any]) -> str:
    """What the provider behind a gateway said (OpenRouter); it may be the body of an error."""
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if isinstance(raw, dict):
        return _message(raw)[0]
    return error_body(raw.encode("utf-8", "replace")).message if isinstance(raw, str) else ""


def _name(found: Any) -> str:
    if isinstance(found, bool) or not isinstance(found, int | str):
        return ""
    return str(found)


def _reasons(error: Mapping[str, Any]) -> Iterator[str]:
    if status := _name(error.get("status")):
        yield status
    details = error.get("details")
    for detail in details if isinstance(details, list) else [details]:
        if isinstance(detail, dict):
            found = (detail.get("reason"), detail.get("error_code"))
            yield from (reason for reason in found if isinstance(reason, str))
