"""Prompts that do not fit into the model's context: how servers refuse them, as one error.

Each server has its own words. A code or a type decides where there is one. Otherwise the message
decides, read from its first word on: a message that quotes a row's text has it further on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ..errors import PromptTooLong, PromptTruncated
from ..task.chat import Reply
from .body import decoded
from .error_body import error_body

__all__ = ["context_for", "is_too_long", "num_ctx_advice", "too_long", "truncated"]

#: Tokens of a reply for which a context needs room, where ``max_tokens`` is not given.
ROOM: Final = 512
#: Contexts are suggested in steps of this.
STEP: Final = 1024
#: A longer body is no error message.
_LONGEST: Final = 100_000

_CODES = frozenset(
    {
        "context_length_exceeded",
        "context_window_exceeded",
        "exceed_context_size_error",
        "model_context_window_exceeded",
        "request_too_large",  # Anthropic, of a request of too many bytes
    }
)
#: llama.cpp's own type of this error.
_LLAMA_CPP = "exceed_context_size_error"

_N, _C = r"(?P<tokens>\d+)", r"(?P<context>\d+)"
_WORDINGS = tuple(
    re.compile(rf"(?is)(?:[\w.]*(?:error|exception)\b[\s:-]*)*{wording}")
    for wording in (
        # OpenAI, vLLM, DeepSeek, OpenRouter
        rf"this (?:model|endpoint)'s maximum context length is {_C} tokens\b(?:.{{0,200}}?"
        rf"(?:\({_N} in the messages|prompt contains (?:at least )?(?P<contained>\d+)"
        r"|messages resulted in (?P<resulted>\d+)))?",
        rf"the (?:decoder )?prompt \(length {_N}\) is longer than the maximum model length of {_C}",
        # SGLang, Together
        rf"(?:the )?input \({_N} tokens\) is longer than the model's context length \({_C} tokens",
        rf"requested token count exceeds the model's maximum context length of {_C} tokens",
        # OpenAI's Responses, Bedrock, Groq
        r"your input exceeds the context window of this model",
        r"input is too long for requested model",
        r"please reduce the length of the messages or completion",
        # Anthropic
        rf"prompt is too long(?:: {_N} tokens > {_C} maximum)?",
        r"input length and `?max_tokens`? exceed context limit",
        # Gemini, Mistral, xAI, Moonshot, Qwen
        rf"the input token count (?:\({_N}\) )?exceeds the maximum number of tokens allowed"
        rf"(?: \(?{_C})?",
        rf"prompt contains {_N} tokens.{{0,80}}?too large for model with {_C} maximum context",
        rf"this model's maximum prompt length is {_C} but the request contains {_N} tokens",
        rf"your request exceeded model token limit: {_C}(?: \(requested: {_N}\))?",
        rf"(?:<\d+> )?(?:internalerror\.\S+: )?range of input length should be \[1, {_C}\]",
        # llama.cpp, LM Studio
        rf"(?:the )?request (?:\({_N} tokens\) )?exceeds the available context size"
        rf"(?: \({_C} tokens\))?",
        rf"trying to keep the first {_N} tokens when context the overflows.{{0,80}}?only {_C}",
        r"the number of tokens to keep from the initial prompt is greater than the context length",
        # Ollama
        r"(?:the )?input length exceeds (?:the |maximum )+context length",
        r"(?:the )?input length exceeds context length",
        r"prompt too long; exceeded (?:max )?context length",
        r"the prompt is longer than the context length currently available",
        # TGI
        rf"(?:input validation error: )?`inputs` tokens \+ `max_new_tokens` must be <= {_C}\. "
        rf"given: {_N} `inputs` tokens",
        rf"(?:input validation error: )?`inputs` must have less than {_C} tokens\. given: {_N}",
    )
)


def context_for(prompt_tokens: int, max_tokens: int | None = None) -> int:
    """The context that a prompt and its reply need, rounded up.

    >>> context_for(6870), context_for(6870, 2000)
    (8192, 9216)
    """
    room = ROOM if max_tokens is None or max_tokens < 1 else max_tokens
    return -(-(prompt_tokens + room) // STEP) * STEP


def num_ctx_advice(prompt_tokens: int | None, max_tokens: int | None) -> str:
    """What makes Ollama take a prompt of so many tokens.

    >>> num_ctx_advice(6870, None)
    'pass options={"num_ctx": 8192} to revkit.Ollama()'
    """
    if prompt_tokens is None:
        return "raise num_ctx in options= of revkit.Ollama()"
    return (
        f'pass options={{"num_ctx": {context_for(prompt_tokens, max_tokens)}}} to revkit.Ollama()'
    )


def is_too_long(status: int, body: bytes) -> bool:
    """Whether a server refused a prompt because it does not fit into the model's context."""
    return _read(status, body) is not None


def too_long(
    status: int, body: bytes, *, max_tokens: int | None = None, is_ollama: bool = False
) -> PromptTooLong | None:
    """The error for a refused prompt; None where the response is about something else.

    >>> print(too_long(400, b'{"error": "prompt is too long: 900 tokens > 800 maximum"}'))
    the prompt has 900 tokens, and the model's context takes 800; choose a model with a larger \
context, or shorten the text
    """
    found = _read(status, body)
    if found is None:
        return None
    tokens, context = found.tokens, found.context
    problem = _problem("" if tokens is None else f"{tokens:,}", context)
    if is_ollama:
        advice = num_ctx_advice(tokens, max_tokens)
    elif found.is_llama_cpp:
        needed = "" if tokens is None else f" ({context_for(tokens, max_tokens)} for each slot)"
        advice = f"start the server with a larger --ctx-size{needed}"
    else:
        advice = "choose a model with a larger context"
    return PromptTooLong(f"{problem}; {advice}, or shorten the text", status=status)


def truncated(
    tokens: int, reply: Reply, *, context: int | None, max_tokens: int | None
) -> PromptTruncated:
    """The error for a prompt of which the server dropped a part, and answered the rest."""
    read = "less of it" if reply.prompt_tokens is None else f"{reply.prompt_tokens:,} of them"
    return PromptTruncated(
        f"{_problem(f'about {tokens:,}', context)}: the server dropped a part, and the model read "
        f"{read}; {num_ctx_advice(tokens, max_tokens)}, or shorten the text",
        status=200,
        reply=reply,
    )


def _problem(tokens: str, context: int | None) -> str:
    if tokens and context is not None:
        return f"the prompt has {tokens} tokens, and the model's context takes {context:,}"
    if context is not None:
        return f"the prompt has more than the {context:,} tokens that the model's context takes"
    if tokens:
        return f"the prompt has {tokens} tokens, more than the model's context takes"
    return "the prompt has more tokens than the model's context takes"


class _Refusal(NamedTuple):
    tokens: int | None
    context: int | None
    is_llama_cpp: bool


def _read(status: int, body: bytes) -> _Refusal | None:
    if status < 400 or len(body) > _LONGEST:
        return None
    error = error_body(body)
    said = error.message.strip()
    match = next(filter(None, (wording.match(said) for wording in _WORDINGS)), None)
    if _CODES.isdisjoint(error.names) and (match is None or status not in (400, 413, 422, 500)):
        return None
    numbers = {} if match is None else match.groupdict()
    exact = _counts(body) if _LLAMA_CPP in error.names else {}
    tokens = [exact.get("n_prompt_tokens"), *map(numbers.get, ("tokens", "contained", "resulted"))]
    context = [exact.get("n_ctx"), numbers.get("context")]
    return _Refusal(_first(tokens), _first(context), _LLAMA_CPP in error.names)


def _counts(body: bytes) -> Mapping[str, Any]:
    """llama.cpp's own error object, which has the numbers."""
    found = decoded(body)
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {}


def _first(found: list[Any]) -> int | None:
    """The first number of tokens among the values found."""
    for value in found:
        if isinstance(value, str) and value.isdecimal() and len(value) < 12:
            return int(value)
        if type(value) is int and value > 0:
            return value
    return None
