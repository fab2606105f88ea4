"""What an error response says, as facts: the one place that knows how each provider words it.

A message may quote the text of a row. So a fact is taken from a code, a type or a reason first, and
from words only where the whole message, or its beginning, is the provider's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from .redact import MAX_QUOTE

__all__ = ["ErrorBody", "error_body"]

#: Codes and types of an account without quota or money.
_NO_CREDIT = {
    "insufficient_quota",  # OpenAI
    "billing_hard_limit_reached",
    "billing_not_active",
    "exceeded_current_quota_error",  # Moonshot
    "enforced_spend_limit_reached",  # Anthropic
    "billing_error",
    "insufficient_credits",
    "insufficient_balance",
}
#: How messages of such an account begin.
_NO_CREDIT_WORDS = re.compile(
    r"(?i)your credit balance is too low|insufficient (balance|credits?|funds)\b"
    r"|you exceeded your current quota, please check your plan"
)
#: Statuses with which such an account is refused, and those that say so alone.
_NO_CREDIT_STATUSES = frozenset({400, 402, 403, 429})
#: Codes and types of a model that the server does not have.
_NO_MODEL = {
    "model_not_found",  # OpenAI, Groq
    "invalid_model",  # Mistral
    "deploymentnotfound",  # Azure
    "model_not_available",
    "model_not_exist",
}
#: Whole messages about such a model; ``{model}`` is its name.
_NO_MODEL_WORDS = (
    "{model} is not a valid model ID",  # OpenRouter
    "Model Not Exist",  # DeepSeek
    "The provided model identifier is invalid.",  # Bedrock
    "Invalid model: {model}",  # Mistral
    "model: {model}",  # Anthropic
)
#: Codes, types and reasons of a key that is not accepted, whatever the status.
_BAD_KEY = {"api_key_invalid", "invalid_api_key", "authentication_error"}
_BAD_KEY_WORDS = re.compile(r"(?i)api key not valid\b|api key not found\b|api key expired\b")


class ErrorBody(NamedTuple):
    """What an error response says.

    Attributes:
        message: the server's own words; empty where it says nothing.
        code: a number as text, or a name; empty where there is none.
        kind: the type of the error; empty where there is none.
        param: the parameter that it is about; empty where there is none.
        reasons: further names of what went wrong (Google's ``reason`` and ``status``).
        is_error: whether the body has an error of its own at all.
    """

    message: str = ""
    code: str = ""
    kind: str = ""
    param: str = ""
    reasons: tuple[str, ...] = ()
    is_error: bool = False

    @property
    def names(self) -> set[str]:
        """Code, type and reasons, in lower case."""
        return {name.lower() for name in (self.code, self.kind, *self.reasons) if name}

    @property
    def status(self) -> int | None:
        """The code, where it is an HTTP status of an error."""
        if self.code.isdecimal() and 400 <= int(self.code[:4]) < 600:
            return int(self.code)
        return None

    def is_out_of_credit(self, status: int) -> bool:
        """Whether the account has no quota or no money left, so that no waiting helps."""
        if status not in _NO_CREDIT_STATUSES:
            return False
        if status == 402 or self.names & _NO_CREDIT:
            return True
        # Google says the same words of a limit by the minute, and how long to wait.
        words = _NO_CREDIT_WORDS.match(self.message)
        return words is not None and "resource_exhausted" not in self.names

    def is_model_missing(self, status: int, model: str) -> bool:
        """Whether the server does not have the model."""
        if status not in (400, 404, 422):
            return False
        message = self.message.strip()
        if self.names & _NO_MODEL or any(
            message == words.format(model=model) for words in _NO_MODEL_WORDS
        ):
            return True
        said = message.lower()
        return status == 404 and "model" in said and ("not found" in said or "not exist" in said)

    def is_bad_key(self, status: int) -> bool:
        """Whether the server does not accept the key."""
        if status == 401:
            return True
        if status not in (400, 403):
            return False
        return bool(self.names & _BAD_KEY) or _BAD_KEY_WORDS.match(self.message) is not None


def error_body(body: bytes) -> ErrorBody:
    """Read an error response: the common shapes of JSON, else the text itself.

    >>> error_body(b'{"error": {"message": "no such model", "code": 404}}').status
    404
    >>> error_body(b'[{"error": {"message": "no", "status": "INVALID_ARGUMENT"}}]').reasons
    ('INVALID_ARGUMENT',)
    """
    text = body[: 16 * MAX_QUOTE].decode("utf-8", "replace")
    try:
        found = orjson.loads(body)
    except ValueError:
        return ErrorBody(re.sub(r"(?s)<(style|script).*?</\1>|<[^>]*>", " ", text))
    if isinstance(found, list) and found:  # Google's
        found = found[0]
    if not isinstance(found, dict):
        text = (
            found if isinstance(found, str) else body[: 16 * MAX_QUOTE].decode("utf-8", "replace")
        )
        return ErrorBody(text)
    error = found.get("error")
    inner = error if isinstance(error, dict) else found
    return ErrorBody(
        message=_message(found) or text,
        code=_name(inner.get("code")),
        kind=_name(inner.get("type")),
        param=_name(inner.get("param")),
        reasons=tuple(_reasons(inner)),
        is_error=bool(error),
    )


def _message(found: Any) -> str:
    """The message in the error, however deep it lies."""
    for _ in range(8):
        if isinstance(found, str):
            return found
        if isinstance(found, list) and found:
            found = found[0]
        if not isinstance(found, dict):
            return ""
        found = next(
            (found[key] for key in ("error", "message", "detail", "msg") if found.get(key)), None
        )
    return ""


def _name(found: Any) -> str:
    if isinstance(found, bool) or not isinstance(found, int | str):
        return ""
    return str(found)


def _reasons(error: dict[str, Any]) -> Iterator[str]:
    if status := _name(error.get("status")):
        yield status
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and isinstance(reason := detail.get("reason"), str):
            yield reason
