"""Spans and metrics, as the in-memory exporters of OpenTelemetry's own SDK get them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import revkit
from revkit import Event
from revkit.observers import Observers, resolve
from revkit.testing import FakeModel

LIMIT = 60
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOON_NS = 1_769_860_800 * 10**9
SECRET = "the text of a row"

START = {
    "item_count": 2, "worker_count": 2, "engine": "async", "fail_fast": False,
    "max_failures": None, "adaptive": False, "task": "sentiment", "model": "llama3.2:3b",
    "provider": "ollama", "has_progress": False, "store": True,
}  # fmt: skip
COMPLETE = {
    "items_processed": 1, "items_failed": 1, "items_cancelled": 0, "items_not_started": 0,
    "from_store": 0, "duplicates": 0, "attempts": 2, "retries": 1, "wall_s": 1.5,
    "prompt_tokens": 9, "completion_tokens": 2, "stopped": None, "error": None,
}  # fmt: skip
GOOD = {
    "total_items": 2, "outcome": "ok", "service_ms": 250.5, "error": None, "error_type": None,
    "http_status": None, "prompt_tokens": 90, "completion_tokens": 2, "finish_reason": "stop",
}  # fmt: skip
BUSY = {
    **GOOD, "outcome": "retried", "error": f"503: {SECRET}", "error_type": "ServerError",
    "http_status": 503, "prompt_tokens": None, "completion_tokens": None, "finish_reason": None,
}  # fmt: skip


def event(seconds: float, type_: str, **data: Any) -> Event:
    at = (NOON + timedelta(seconds=seconds)).isoformat(timespec="microseconds")
    return Event(type_, at, "revkit.parallel_map", "7c9e", data)


def attempt(row: int, number: int = 1, worker: int = 0) -> dict[str, int]:
    return {"worker_id": worker, "item_index": row, "attempt": number}


@dataclass
class Seen:
    """What the exporters got."""

    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans.get_finished_spans() if span.name == name]

    @property
    def run(self) -> ReadableSpan:
        (span,) = self.named("parallel_map")
        return span

    def points(self, metric: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for one in scope.metrics
            if one.name == metric
            for point in one.data.data_points
        ]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Providers of this test's own: the real ones can be set only once in a process."""
    seen = Seen()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(seen.spans))
    meters = MeterProvider([seen.reader])
    monkeypatch.setattr(trace, "get_tracer", tracers.get_tracer)
    monkeypatch.setattr(metrics, "get_meter", meters.get_meter)
    return seen


def observe(*events: Event) -> list[str]:
    observers = Observers(resolve("otel"))
    for one in events:
        observers.send(one)
    return observers.close(timeout=LIMIT)


def a_run(*between: Event, start: Any = (), complete: Any = ()) -> list[str]:
    return observe(
        event(0, "parallel.start", **{**START, **dict(start)}),
        *between,
        event(10, "parallel.complete", **{**COMPLETE, **dict(complete)}),
    )


def test_a_good_attempt_is_a_client_span_by_the_conventions(seen: Seen) -> None:
    assert a_run(event(1, "worker.complete", **attempt(1, worker=3), **GOOD)) == []
    (span,) = seen.named("chat llama3.2:3b")
    assert span.kind is SpanKind.CLIENT
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ollama",
        "gen_ai.request.model": "llama3.2:3b",
        "gen_ai.usage.input_tokens": 90,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ("stop",),
        "revkit.run_id": "7c9e",
        "revkit.worker_id": 3,
        "revkit.item_index": 1,
        "revkit.attempt": 1,
        "revkit.outcome": "ok",
    }
    assert span.status.status_code is StatusCode.UNSET
    assert (span.start_time, span.end_time) == (NOON_NS + 749_500_000, NOON_NS + 10**9)


def test_a_run_is_an_internal_span_above_its_attempts_and_below_the_callers(seen: Seen) -> None:
    with trace.get_tracer("the caller").start_as_current_span("a job") as job:
        assert a_run(event(1, "worker.complete", **attempt(0), **GOOD)) == []
    (inner,) = seen.named("chat llama3.2:3b")
    run = seen.run
    assert run.kind is SpanKind.INTERNAL
    assert run.parent is not None
    assert run.parent.span_id == job.get_span_context().span_id
    assert inner.parent is not None
    assert run.context is not None
    assert inner.parent.span_id == run.context.span_id
    assert (run.start_time, run.end_time) == (NOON_NS, NOON_NS + 10 * 10**9)
    attributes = dict(run.attributes or {})
    assert attributes["revkit.item_count"] == 2
    assert attributes["revkit.model"] == "llama3.2:3b"
    assert attributes["revkit.items_failed"] == 1
    assert "revkit.max_failures" not in attributes  # there is none
    assert not any(name.startswith("gen_ai.") for name in attributes)  # it is no request itself
    assert run.status.status_code is StatusCode.UNSET


def test_a_run_without_a_span_around_it_begins_a_trace(seen: Seen) -> None:
    assert a_run() == []
    assert seen.run.parent is None


def test_each_attempt_has_its_span_and_failed_ones_say_why_without_any_text(seen: Seen) -> None:
    bad = {**GOOD, "outcome": "failed", "error": SECRET, "error_type": "BadOutput"}
    assert a_run(
        event(1, "worker.complete", **attempt(0), **BUSY),
        event(1, "worker.retry", item_index=0, worker_id=0, attempt=2, delay_ms=500.0,
              error_type="ServerError", error=SECRET),
        event(2, "worker.limited", item_index=0, worker_id=0, reason="pause", delay_ms=100.0),
        event(3, "worker.complete", **attempt(0, 2), **bad),
        event(3, "row.settled", item_index=0, status="error", source="model", attempts=2,
              error=SECRET),
    ) == []  # fmt: skip
    busy, failed = seen.named("chat llama3.2:3b")
    for span, kind in ((busy, "ServerError"), (failed, "BadOutput")):
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == kind
    assert (busy.attributes or {})["http.response.status_code"] == 503
    assert (busy.attributes or {})["revkit.outcome"] == "retried"
    assert "gen_ai.usage.input_tokens" not in (busy.attributes or {})
    assert (failed.attributes or {})["gen_ai.usage.input_tokens"] == 90
    retry, limited = seen.run.events
    assert (retry.name, retry.timestamp) == ("worker.retry", NOON_NS + 10**9)
    assert dict(retry.attributes or {}) == {
        "revkit.item_index": 0,
        "revkit.worker_id": 0,
        "revkit.attempt": 2,
        "revkit.delay_ms": 500.0,
        "revkit.error_type": "ServerError",
    }
    assert (limited.attributes or {})["revkit.reason"] == "pause"
    assert SECRET not in "".join(span.to_json() for span in seen.spans.get_finished_spans())


def test_rows_that_need_no_attempt_have_no_span(seen: Seen) -> None:
    assert a_run(
        event(1, "row.settled", item_index=0, status="ok", source="store", attempts=0, error=None),
        event(1, "row.settled", item_index=1, status="ok", source="duplicate", attempts=0,
              error=None),
        event(1, "store.write", replies=3, duration_ms=1.0),
    ) == []  # fmt: skip
    assert [span.name for span in seen.spans.get_finished_spans()] == ["parallel_map"]


def test_attempts_that_are_open_at_the_end_are_cancelled(seen: Seen) -> None:
    cancelled = {**BUSY, "outcome": "cancelled", "error_type": None, "http_status": None}
    assert a_run(
        event(1, "worker.start", **attempt(0), total_items=2),
        event(2, "worker.start", **attempt(1, worker=1), total_items=2),
        event(3, "worker.complete", **attempt(0), **cancelled),
    ) == []  # fmt: skip
    told, open_ = seen.named("chat llama3.2:3b")
    for span in (told, open_):
        assert (span.attributes or {})["revkit.outcome"] == "cancelled"
        assert (span.attributes or {})["error.type"] == "cancelled"
        assert span.status.status_code is StatusCode.ERROR
    assert (open_.attributes or {})["revkit.item_index"] == 1
    assert (open_.start_time, open_.end_time) == (NOON_NS + 2 * 10**9, NOON_NS + 10 * 10**9)


@pytest.mark.parametrize(
    ("stopped", "kind"),
    [("timeout", "timeout"), ("interrupted", "interrupted"), (None, "RunFailed")],
)
def test_a_run_that_failed_is_an_error(seen: Seen, stopped: str | None, kind: str) -> None:
    assert a_run(complete={"stopped": stopped, "error": SECRET}) == []
    assert seen.run.status.status_code is StatusCode.ERROR
    assert (seen.run.attributes or {})["error.type"] == kind
    assert SECRET not in seen.run.to_json()


def test_a_functions_attempts_have_no_model(seen: Seen) -> None:
    nothing = {"prompt_tokens": None, "completion_tokens": None, "finish_reason": None}
    assert a_run(
        event(1, "worker.complete", **attempt(0), **{**GOOD, **nothing}),
        start={"model": None, "provider": None, "task": "my_function"},
    ) == []  # fmt: skip
    (span,) = seen.named("attempt")
    assert span.kind is SpanKind.INTERNAL
    assert not any(name.startswith("gen_ai.") for name in span.attributes or {})
    assert seen.points("gen_ai.client.operation.duration") == []


def test_metrics_by_the_conventions(seen: Seen) -> None:
    assert a_run(
        event(1, "worker.complete", **attempt(0), **GOOD),
        event(2, "worker.complete", **attempt(1), **{**GOOD, "service_ms": 1000.0}),
        event(3, "worker.complete", **attempt(1), **BUSY),
    ) == []  # fmt: skip
    model = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ollama",
        "gen_ai.request.model": "llama3.2:3b",
    }
    durations = {
        point.attributes.get("error.type"): point
        for point in seen.points("gen_ai.client.operation.duration")
    }
    assert set(durations) == {None, "ServerError"}
    assert dict(durations[None].attributes) == model
    assert (durations[None].count, durations[None].sum) == (2, 1.2505)
    assert durations[None].explicit_bounds == (
        0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
    )  # fmt: skip
    tokens = {
        point.attributes["gen_ai.token.type"]: point
        for point in seen.points("gen_ai.client.token.usage")
    }
    assert dict(tokens["input"].attributes) == {**model, "gen_ai.token.type": "input"}
    assert (tokens["input"].count, tokens["input"].sum) == (2, 180)
    assert (tokens["output"].count, tokens["output"].sum) == (2, 4)
    assert tokens["input"].explicit_bounds == (
        1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("provider", "name", "address", "port"),
    [
        ("https://api.openai.com/v1", "openai", "api.openai.com", 443),
        ("http://127.0.0.1:8000/v1", "openai", "127.0.0.1", 8000),
        ("http://vllm/v1", "openai", "vllm", 80),
        ("https://api.groq.com/openai/v1", "groq", "api.groq.com", 443),
        ("https://me.openai.azure.com/v1", "azure.ai.openai", "me.openai.azure.com", 443),
        ("local", "local", None, None),
        ("", "_OTHER", None, None),
        (None, "_OTHER", None, None),
    ],
)
def test_a_provider_has_its_name_in_the_conventions(
    seen: Seen, provider: str | None, name: str, address: str | None, port: int | None
) -> None:
    assert a_run(
        event(1, "worker.complete", **attempt(0), **GOOD), start={"provider": provider}
    ) == []  # fmt: skip
    (span,) = seen.named("chat llama3.2:3b")
    (point,) = seen.points("gen_ai.client.operation.duration")
    for attributes in (span.attributes or {}, point.attributes):
        assert attributes["gen_ai.provider.name"] == name
        assert attributes.get("server.address") == address
        assert attributes.get("server.port") == port


def test_a_run_whose_end_is_not_seen_is_ended(seen: Seen) -> None:
    assert observe(event(0, "parallel.start", **START)) == []
    assert seen.run.end_time is not None


def test_without_a_provider_it_does_nothing() -> None:
    """The API alone gives tracers and meters that record nothing."""
    assert a_run(event(1, "worker.complete", **attempt(0), **GOOD)) == []


def test_the_sdk_is_not_needed() -> None:
    script = """
import sys
sys.modules["opentelemetry.sdk"] = None
from revkit.observers import Observers, resolve
from revkit.testing import FakeModel
print(Observers(resolve("otel")).close(30))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert done.stdout == "[]\n"


# -- whole runs ------------------------------------------------------------------------------------


def by_thread(df: pd.DataFrame, **options: Any) -> None:
    df.llm.parallel_map(engine="thread", **options)


def by_loop(df: pd.DataFrame, **options: Any) -> None:
    df.llm.parallel_map(engine="async", **options)


def awaited(df: pd.DataFrame, **options: Any) -> None:
    asyncio.run(df.llm.aparallel_map(**options))


@pytest.mark.parametrize("run_on", [by_thread, by_loop, awaited])
@pytest.mark.parametrize("stored", [False, True])
def test_the_spans_of_a_run_stand_below_the_one_that_called_it(
    run_on: Callable[..., None], stored: bool, seen: Seen, tmp_path: Path
) -> None:
    answers = iter([revkit.ConnectionFailed("gone")])
    model = FakeModel(lambda text: next(answers, "positive"))
    df = pd.DataFrame({"review": ["a", "b", None]})
    with trace.get_tracer("mine").start_as_current_span("mine") as mine:
        run_on(df, model=model, observer="otel", retry=revkit.Retry(initial=0.001),
               store=tmp_path / "replies.sqlite" if stored else False)  # fmt: skip
    asked = seen.named("chat fake")
    assert len(asked) == 3
    assert seen.run.parent is not None
    assert seen.run.parent.span_id == mine.get_span_context().span_id
    assert {span.parent and span.parent.span_id for span in asked} == {seen.run.context.span_id}
    assert sorted(str(dict(span.attributes or {})["revkit.outcome"]) for span in asked) == [
        "ok",
        "ok",
        "retried",
    ]
    assert sum(p.count for p in seen.points("gen_ai.client.operation.duration")) == 3
