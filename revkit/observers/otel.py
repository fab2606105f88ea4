"""Spans and metrics for OpenTelemetry, by its semantic conventions for generative AI.

``gen_ai.*`` names follow version 1.42 of the conventions
(https://opentelemetry.io/docs/specs/semconv/gen-ai/); ``revkit.*`` are revkit's own. The
text of prompts, replies and error messages is never in them.

=====================  ============================================================================
a run                  span ``parallel_map`` (internal), below the one that was current where
                       ``parallel_map`` was called; retries and waits for a limit are its events
an attempt             span ``chat {model}`` (client), or ``attempt`` (internal) of a function
an attempt at a model  ``gen_ai.client.operation.duration`` (s), ``gen_ai.client.token.usage``
=====================  ============================================================================

Each attempt has a span of its own, not each row: an attempt is one request, and waits between two
of them hold no worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from .._version import __version__
from .event import Event

__all__ = ["OpenTelemetry"]

#: The boundaries that the conventions ask for.
_SECONDS = [0.01 * 2**n for n in range(14)]
_TOKENS = [4**n for n in range(14)]

#: Hosts of OpenAI-compatible servers whose provider has a name of its own in the conventions.
_PROVIDERS = {
    "api.anthropic.com": "anthropic",
    "api.cohere.ai": "cohere",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
}
#: What a span has of its event.
_ABOUT = ("worker_id", "item_index", "sample", "attempt", "outcome")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Attributes = dict[str, Any]


class OpenTelemetry:
    """Makes spans and metrics of a run's events, for the tracer and meter providers that the
    user has set up; without any, OpenTelemetry does nothing.
    """

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("revkit", __version__)
        meter = metrics.get_meter("revkit", __version__)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._run: Span | None = None
        self._model: _Attributes = {}
        #: worker, row and attempt -> the event that started it
        self._open: dict[tuple[int, int, int], Event] = {}

    def on_event(self, event: Event) -> None:
        match event.type:
            case "parallel.start":
                self._begin(event)
            case "worker.start":
                self._open[_key(event.data)] = event
            case "worker.complete":
                self._open.pop(_key(event.data), None)
                end = _nanoseconds(event)
                start = end - round(event.data["service_ms"] * 1e6)
                self._attempted(event, event.data, start, end)
            case "worker.retry" | "worker.limited" if self._run is not None:
                about = {name: event.data[name] for name in event.data if name != "error"}
                self._run.add_event(event.type, _own(about), _nanoseconds(event))
            case "parallel.complete":
                self._end(event)

    def close(self) -> None:
        """End the run's span where the end of the run was not seen."""
        if self._run is not None:
            self._run.end()

    def _begin(self, event: Event) -> None:
        data = event.data
        self._model = {} if data["model"] is None else _model(data["model"], data["provider"])
        self._run = self._tracer.start_span(
            "parallel_map",
            kind=SpanKind.INTERNAL,
            attributes={"revkit.run_id": event.run_id, **_own(data)},
            start_time=_nanoseconds(event),
        )

    def _attempted(self, event: Event, data: Mapping[str, Any], start: int, end: int) -> None:
        error: _Attributes = {}
        if data["outcome"] == "cancelled":
            error = {"error.type": "cancelled"}
        elif data["outcome"] != "ok":
            error = {"error.type": data["error_type"] or "_OTHER"}
        about = {name: data[name] for name in _ABOUT if name in data}
        seen = {
            "http.response.status_code": data["http_status"],
            "gen_ai.usage.input_tokens": data["prompt_tokens"],
            "gen_ai.usage.output_tokens": data["completion_tokens"],
            "gen_ai.response.finish_reasons": data["finish_reason"] and [data["finish_reason"]],
        }
        model = self._model
        span = self._tracer.start_span(
            f"{model['gen_ai.operation.name']} {model['gen_ai.request.model']}"
            if model
            else "attempt",
            context=None if self._run is None else trace.set_span_in_context(self._run),
            kind=SpanKind.CLIENT if model else SpanKind.INTERNAL,
            attributes={
                "revkit.run_id": event.run_id,
                **_own(about),
                **model,
                **{name: value for name, value in seen.items() if value is not None},
                **error,
            },
            start_time=start,
        )
        if error:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)
        if model:
            self._duration.record((end - start) / 1e9, {**model, **error})
            for kind, tokens in (
                ("input", data["prompt_tokens"]),
                ("output", data["completion_tokens"]),
            ):
                if tokens is not None:
                    self._tokens.record(tokens, {**model, "gen_ai.token.type": kind})

    def _end(self, event: Event) -> None:
        end = _nanoseconds(event)
        for started in self._open.values():
            nothing = dict.fromkeys(
                ("http_status", "prompt_tokens", "completion_tokens", "finish_reason")
            )
            data = {**started.data, **nothing, "outcome": "cancelled"}
            self._attempted(event, data, _nanoseconds(started), end)
        self._open.clear()
        if self._run is None:
            return
        self._run.set_attributes(_own({**event.data, "error": None}))
        if event.data["error"] is not None:
            self._run.set_attribute("error.type", event.data["stopped"] or "RunFailed")
            self._run.set_status(Status(StatusCode.ERROR))
        self._run.end(end)
        self._run = None


def _key(data: Mapping[str, Any]) -> tuple[int, int, int]:
    return data["worker_id"], data["item_index"], data["attempt"]


def _nanoseconds(event: Event) -> int:
    """Its time since the epoch, exact."""
    since = datetime.fromisoformat(event.timestamp) - _EPOCH
    return since // timedelta(microseconds=1) * 1000


def _own(data: Mapping[str, Any]) -> _Attributes:
    return {f"revkit.{name}": value for name, value in data.items() if value is not None}


def _model(model: str, provider: str | None) -> _Attributes:
    """What is the same for all requests of a run.

    revkit knows the provider of an OpenAI-compatible server by its URL. A server that the
    conventions do not name is "openai" to them, which stands for the protocol.
    """
    server: _Attributes = {}
    if provider and "://" in provider:
        url = urlsplit(provider)
        host = url.hostname or ""
        server = {
            "server.address": host,
            "server.port": url.port or (443 if url.scheme == "https" else 80),
        }
        azure = host.endswith(".openai.azure.com")
        provider = "azure.ai.openai" if azure else _PROVIDERS.get(host, "openai")
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider or "_OTHER",
        "gen_ai.request.model": model,
        **server,
    }
