"""A run as a trace: its events fit the documented format and say what the run's attempts say."""

from __future__ import annotations

import gzip
import itertools
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pandas as pd
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from records import empty_record

import revkit
from revkit import ConnectionFailed, ModelError, ParallelResult, Retry, RunFailed
from revkit.results.trace import write_trace
from revkit.scheduling.events import Attempt, Attempted, Decision, Failure, Hold, HoldKind, Success
from revkit.testing import FakeModel

#: The reserved names of chrome://tracing's palette, which are all that ``cname`` may be.
COLOURS = {
    "thread_state_uninterruptible",
    "thread_state_iowait",
    "thread_state_running",
    "thread_state_runnable",
    "thread_state_sleeping",
    "thread_state_unknown",
    "background_memory_dump",
    "light_memory_dump",
    "detailed_memory_dump",
    "vsync_highlight_color",
    "generic_work",
    "good",
    "bad",
    "terrible",
    "black",
    "grey",
    "white",
    "yellow",
    "olive",
    "rail_response",
    "rail_animation",
    "rail_idle",
    "rail_load",
    "startup",
    "heap_dump_stack_frame",
    "heap_dump_object_type",
    "heap_dump_child_node_arrow",
    "cq_build_running",
    "cq_build_passed",
    "cq_build_failed",
    "cq_build_abandoned",
    "cq_build_attempt_runnig",
    "cq_build_attempt_passed",
    "cq_build_attempt_failed",
}

WHOLE = {"type": "integer", "minimum": 0}
NAME = {"type": "string", "minLength": 1}


def event(ph: str, required: str, **properties: Any) -> dict[str, Any]:
    """What the format asks of an event of that phase; every property that occurs is listed."""
    common = {"ph": {"const": ph}, "pid": WHOLE, "tid": WHOLE, "name": NAME, "cat": NAME}
    timed = {"ts": WHOLE} if ph != "M" else {}
    return {
        "type": "object",
        "properties": {**common, **timed, **properties},
        "required": ["ph", "pid", "name", *timed, *required.split()],
        "additionalProperties": False,
    }


def only(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


#: By "Trace Event Format", the document that Perfetto's pages and chrome://tracing refer to.
SCHEMA = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "traceEvents": {
            "type": "array",
            "items": {
                "oneOf": [
                    event("M", "args", name={"const": "process_name"}, args=only(name=NAME)),
                    event("M", "tid args", name={"const": "thread_name"}, args=only(name=NAME)),
                    event("M", "tid args", name={"const": "thread_sort_index"},
                          args=only(sort_index=WHOLE)),
                    event("X", "tid dur cat", dur=WHOLE, args={"type": "object"},
                          cname={"enum": sorted(COLOURS)}),
                    event("C", "args", args={"type": "object", "minProperties": 1,
                          "additionalProperties": {"type": "number"}}),
                    event("i", "s", s={"enum": ["g", "p", "t"]}),
                    event("s", "tid id cat", id=WHOLE),
                    event("f", "tid id cat bp", id=WHOLE, bp={"const": "e"}),
                    event("b", "id cat", id=NAME),
                    event("e", "id cat", id=NAME),
                ]
            },
        },
        "otherData": {"type": "object"},
    },
    "additionalProperties": False,
}  # fmt: skip
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    trace: dict[str, Any] = orjson.loads(
        gzip.decompress(content) if path.suffix == ".gz" else content
    )
    errors = [error.message for error in VALIDATOR.iter_errors(trace)]
    assert errors == []
    return trace


def events(path: Path, ph: str, name: str | None = None) -> list[dict[str, Any]]:
    found = [event for event in read(path)["traceEvents"] if event["ph"] == ph]
    return [event for event in found if name is None or event["name"] == name]


def small_run() -> ParallelResult:
    """Four rows on two workers of a virtual clock: one is retried, one fails."""
    broken = iter([ConnectionFailed("it broke"), "positive"])

    def answer(text: str) -> Any:
        if text == "again":
            return next(broken)
        return ModelError("no reply, but secret text") if text == "never" else "positive"

    model = FakeModel(answer, latency=lambda t: 1.5 if t == "long" else 1.0, clock="virtual")
    frame = pd.DataFrame({"review": ["long", "again", "never", "fine"]})
    retry = Retry(attempts=2, initial=0.001, maximum=0.001)
    result: ParallelResult = frame.llm.parallel_map(
        on="review", model=model, max_workers=2, retry=retry
    )
    return result


# -- what a run becomes ---------------------------------------------------------------------------


def test_each_attempt_is_a_complete_event_on_its_workers_thread(tmp_path: Path) -> None:
    run = small_run()
    complete = events(run.to_trace(tmp_path / "run.json"), "X")
    attempts = run.attempts
    assert len(complete) == len(attempts) == 5
    for told, (_, attempt) in zip(complete, attempts.iterrows(), strict=True):
        assert told["tid"] == attempt["worker"] + 1
        assert told["ts"] == pytest.approx(attempt["start_s"] * 1e6, abs=1)
        assert told["dur"] == pytest.approx(attempt["service_ms"] * 1e3, abs=1)
        assert told["cat"] == told["args"]["outcome"] == attempt["outcome"]
        assert told["args"]["row"] == attempt["row"]
        assert told["args"]["attempt"] == attempt["attempt"]
        assert told["args"].get("prompt_tokens", pd.NA) is pd.NA or (
            told["args"]["prompt_tokens"] == attempt["prompt_tokens"]
        )
        if attempt["outcome"] == "ok":
            assert told["args"]["completion_tokens"] == attempt["completion_tokens"]
        else:
            assert told["args"]["error_type"] == attempt["error_type"]


def test_the_name_and_the_colour_tell_the_outcome(tmp_path: Path) -> None:
    complete = events(small_run().to_trace(tmp_path / "run.json"), "X")
    assert {event["name"] for event in complete} == {
        "row 0", "row 1", "row 1 retried", "row 2 failed", "row 3",
    }  # fmt: skip
    colours = {event["cat"]: event["cname"] for event in complete}
    assert len(set(colours.values())) == len(colours) == 3


def test_threads_are_named_and_ordered_as_workers(tmp_path: Path) -> None:
    path = small_run().to_trace(tmp_path / "run.json")
    names = {event["tid"]: event["args"]["name"] for event in events(path, "M", "thread_name")}
    assert names == {1: "worker 0", 2: "worker 1"}
    order = {e["tid"]: e["args"]["sort_index"] for e in events(path, "M", "thread_sort_index")}
    assert order == {1: 0, 2: 1}
    (process,) = events(path, "M", "process_name")
    assert process["args"]["name"] == "revkit: fake"


def test_an_arrow_leads_from_a_retried_attempt_to_the_next(tmp_path: Path) -> None:
    path = small_run().to_trace(tmp_path / "run.json")
    (start,), (end,) = events(path, "s"), events(path, "f")
    assert (start["id"], start["cat"], start["name"]) == (end["id"], end["cat"], end["name"])
    of_row = [event for event in events(path, "X") if event["args"]["row"] == 1]
    for flow, attempt in zip((start, end), of_row, strict=True):
        assert flow["tid"] == attempt["tid"]
        assert attempt["ts"] <= flow["ts"] < attempt["ts"] + attempt["dur"]


def test_the_counter_is_how_many_attempts_are_running(tmp_path: Path) -> None:
    path = small_run().to_trace(tmp_path / "run.json")
    levels = [(event["ts"], event["args"]["attempts"]) for event in events(path, "C", "running")]
    assert levels[0] == (0, 2)
    assert levels[-1][1] == 0
    complete = events(path, "X")
    for (at, level), (until, _) in itertools.pairwise(levels):
        middle = (at + until) / 2
        assert level == sum(e["ts"] <= middle < e["ts"] + e["dur"] for e in complete)


def test_an_adaptive_limit_is_a_counter(tmp_path: Path) -> None:
    model = FakeModel(lambda text: "positive", latency=0.1, clock="virtual")
    frame = pd.DataFrame({"review": [f"r{i}" for i in range(300)]})
    run = frame.llm.parallel_map(on="review", model=model, max_workers="adaptive")
    told = events(run.to_trace(tmp_path / "run.json"), "C", "limit")
    assert [event["args"]["attempts"] for event in told] == [n for _, n in run._record.limits]
    assert len(told) > 1


def test_a_stop_is_an_instant_event(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as failed:
        revkit.parallel_map([0, 1], lambda n: 1 / n, fail_fast=True, max_workers=1)
    path = failed.value.result.to_trace(tmp_path / "run.json")
    (stop,) = events(path, "i")
    assert (stop["name"], stop["s"]) == ("stopped: failures", "p")


def test_nothing_of_rows_or_replies_is_told(tmp_path: Path) -> None:
    content = small_run().to_trace(tmp_path / "run.json").read_text("utf-8")
    for secret in ("long", "again", "never", "positive", "it broke", "secret"):
        assert secret not in content


def test_the_metadata_tells_what_was_run(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    told = read(small_run().to_trace(tmp_path / "run.json"))["otherData"]
    assert before <= datetime.fromisoformat(told.pop("started_at")) <= datetime.now(UTC)
    assert told == {"revkit": revkit.__version__, "model": "fake", "engine": "async", "rows": 4}


# -- files ----------------------------------------------------------------------------------------


def test_gz_is_gzipped_and_holds_the_same(tmp_path: Path) -> None:
    run = small_run()
    plain, packed = run.to_trace(tmp_path / "run.json"), run.to_trace(tmp_path / "run.json.gz")
    assert packed.read_bytes()[:2] == b"\x1f\x8b"
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()


def test_a_file_that_is_there_is_overwritten_and_the_path_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("something else that is longer than nothing" * 1000)
    assert small_run().to_trace(str(path)) == path
    read(path)


def test_an_empty_run_is_a_trace_without_attempts(tmp_path: Path) -> None:
    path = revkit.parallel_map([], lambda x: x).to_trace(tmp_path / "run.json")
    assert Counter(event["ph"] for event in read(path)["traceEvents"]) == {"M": 1}


def test_a_run_and_its_retry_are_one_trace(tmp_path: Path) -> None:
    answers = iter([1, ValueError("not yet"), 3, 2])

    def next_answer(n: int) -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    again = revkit.parallel_map([1, 2, 3], next_answer, max_workers=1).retry_failed()
    path = again.to_trace(tmp_path / "run.json")
    assert len(events(path, "X")) == 4
    assert (len(events(path, "s")), len(events(path, "f"))) == (1, 1)


# -- whatever the times ---------------------------------------------------------------------------


def test_holds_are_asynchronous_events_within_the_run(tmp_path: Path) -> None:
    record = empty_record(0, asks_model=True)
    record.began, record.ended = 100.0, 110.0
    record.holds = [
        Hold(HoldKind.PAUSE, 101.0, 103.0),
        Hold(HoldKind.RATE_LIMIT, 102.0, 102.5),
        Hold(HoldKind.BUDGET, 99.0, 120.0),
    ]
    path = write_trace(record, tmp_path / "run.json")
    begins = {event["id"]: event for event in events(path, "b")}
    ends = {event["id"]: event for event in events(path, "e")}
    assert begins.keys() == ends.keys()
    told = {b["name"]: (b["ts"], ends[at]["ts"]) for at, b in begins.items()}
    assert told == {
        "pause": (1_000_000, 3_000_000),
        "rate_limit": (2_000_000, 2_500_000),
        "budget": (0, 10_000_000),
    }


attempts = st.lists(
    st.tuples(
        st.integers(0, 2),  # worker
        st.floats(0, 3, allow_nan=False),  # idle before
        st.floats(0, 3, allow_nan=False),  # service time
        st.sampled_from(list(Decision)),
    ),
    max_size=25,
)


@examples(50)
@given(began=st.floats(0, 1e9), made=attempts)
def test_attempts_of_a_worker_never_overlap_and_the_counter_ends_at_0(
    tmp_path_factory: pytest.TempPathFactory, began: float, made: list[Any]
) -> None:
    record = empty_record(len(made), ["out"])
    record.began, free = began, defaultdict(lambda: began)
    for row, (worker, idle, service, decision) in enumerate(made):
        start = free[worker] + idle
        free[worker] = end = start + service
        outcome = Success({"out": row}) if decision is Decision.OK else Failure("E", "e")
        record.attempted(Attempted(Attempt(row, 1, worker), start, end, outcome, decision))
    record.ended = max(free.values(), default=began)
    path = write_trace(record, tmp_path_factory.getbasetemp() / "property.json")
    by_thread: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for told in events(path, "X"):
        by_thread[told["tid"]].append((told["ts"], told["ts"] + told["dur"]))
    for spans in by_thread.values():
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end <= start
    levels = [event["args"]["attempts"] for event in events(path, "C", "running")]
    assert all(0 <= level <= 3 for level in levels)
    assert levels[-1:] in ([0], [])
