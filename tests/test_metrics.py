"""Where the time went: every figure against NumPy, on runs whose times are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import empty_record

import revkit
from revkit import (
    Budget,
    ConnectionFailed,
    ModelError,
    RateLimit,
    Retry,
    RunFailed,
    ServerError,
    Signature,
    UsageError,
)
from revkit.record.metrics import waits
from revkit.record.record import DECISIONS
from revkit.scheduling.events import Decision, Hold, HoldKind
from revkit.testing import FakeModel

FIGURES = ["min", "mean", "p50", "p90", "p95", "p99", "max"]


def reviews(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"r{i}" for i in range(rows)]})


def virtual(answer: Callable[[str], Any] = str, latency: Any = 1.0) -> FakeModel:
    return FakeModel(answer, latency=latency, clock="virtual")


def once(fault: Exception, row: str = "r1", times: int = 1) -> Callable[[str], Any]:
    """Raises the fault for that row, so many times."""
    faults = [fault] * times
    return lambda text: faults.pop() if text == row and faults else text


def said_by_numpy(sample: Any) -> list[float]:
    sample = np.asarray(sample, dtype=float)
    if not len(sample):
        return [np.nan] * len(FIGURES)
    quantiles = np.quantile(sample, [0.5, 0.9, 0.95, 0.99], method="linear")
    return [sample.min(), sample.mean(), *quantiles, sample.max()]


def assert_told(line: Any, sample: Any) -> None:
    """A line of a table of latencies tells that sample of milliseconds."""
    assert line["count"] == len(sample)
    wanted = dict(zip(FIGURES, said_by_numpy(sample), strict=True))
    for name in line.index.drop("count"):
        assert line[name] == pytest.approx(wanted[name], rel=1e-12, nan_ok=True), name


# -- service time ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed() -> revkit.ParallelResult:
    """Rows with random service times, of which some fail and some are tried again."""
    chance = np.random.default_rng(3)
    seconds = {f"r{i}": chance.lognormal() for i in range(300)}
    broken = {f"r{i}" for i in range(0, 300, 11)}
    unlucky = {f"r{i}" for i in range(0, 300, 7)}

    def answer(text: str) -> Any:
        if text in broken:
            return ModelError("no")
        if text in unlucky:
            unlucky.remove(text)
            return ConnectionFailed("once")
        # "neutral" is never said
        return "positive" if int(text[1:]) % 3 else "negative"

    return reviews(300).llm.parallel_map(
        on="review", model=virtual(answer, seconds.__getitem__), max_workers=7, retry=Retry(2)
    )


def test_latency_is_that_of_the_good_attempts(mixed: revkit.ParallelResult) -> None:
    good = mixed.attempts.query("outcome == 'ok'")["service_ms"]
    assert 0 < len(good) < len(mixed.attempts)
    assert list(mixed.latency.index) == FIGURES
    np.testing.assert_allclose(mixed.latency, said_by_numpy(good), rtol=1e-12)


def test_latency_by_worker(mixed: revkit.ParallelResult) -> None:
    table = mixed.latency_by("worker")
    assert table.index.tolist() == list(range(7))
    assert list(table.columns) == ["count", *FIGURES]
    assert table.dtypes.tolist() == [np.dtype("int64"), *[np.dtype("float64")] * 7]
    good = mixed.attempts.query("outcome == 'ok'")
    for worker, line in table.iterrows():
        assert_told(line, good.loc[good["worker"] == worker, "service_ms"])


def test_latency_by_status_is_that_of_each_rows_last_attempt(mixed: revkit.ParallelResult) -> None:
    table = mixed.latency_by("status")
    assert table.index.tolist() == ["ok", "error", "cancelled", "not_started"]
    last = mixed.attempts.drop_duplicates("row", keep="last").set_index("row")["service_ms"]
    for status, line in table.iterrows():
        assert_told(line, last[(mixed.rows["status"] == status).to_numpy()[last.index]])
    assert table["count"].tolist()[1:] == [28, 0, 0]


def test_latency_by_wave_takes_the_first_attempt_of_each_worker_apart(
    mixed: revkit.ParallelResult,
) -> None:
    table = mixed.latency_by("wave")
    first = mixed.attempts.sort_values("start_s").drop_duplicates("worker").index
    good = mixed.attempts.query("outcome == 'ok'")
    in_first = good.index.isin(first)
    assert 0 < in_first.sum() < 7  # some of the first attempts were not good
    assert table.index.tolist() == ["first", "rest"]
    assert_told(table.loc["first"], good.loc[in_first, "service_ms"])
    assert_told(table.loc["rest"], good.loc[~in_first, "service_ms"])
    medians = table["p50"]
    assert mixed.metrics.cold_start_ms == pytest.approx(medians["first"] - medians["rest"])


def test_latency_by_a_class_output_has_its_labels_in_declared_order(
    mixed: revkit.ParallelResult,
) -> None:
    table = mixed.latency_by("sentiment")
    assert table.index.tolist() == ["positive", "neutral", "negative"]
    assert table.index.name == "sentiment"
    good = mixed.attempts.query("outcome == 'ok'").set_index("row")["service_ms"]
    said = mixed.frame["sentiment"].loc[good.index]
    for label, line in table.iterrows():
        assert_told(line, good[said == label])
    assert table.loc["neutral", "count"] == 0


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([2, 1, 2, None], [2, 1]),
        ([0.5, 1.5, 1.5], [1.5, 0.5]),
        ([True, False, False], [False, True]),
        (["b", "a", "b"], ["b", "a"]),
        ([[1, 2], [1], [1]], [(1,), (1, 2)]),
        ([7, "x", 7], [7, "x"]),
    ],
)
def test_latency_by_values_has_the_most_frequent_first(
    values: list[Any], groups: list[Any]
) -> None:
    run = revkit.parallel_map(range(len(values)), lambda i: {"value": values[i]}, max_workers=1)
    table = run.latency_by("value")
    assert table.index.tolist() == run.summary("value").index.tolist() == groups
    service = run.rows["service_ms"].to_numpy()
    for group, line in zip(groups, table.iloc, strict=True):
        same = [tuple(v) if isinstance(v, list) else v for v in values]
        assert_told(line, service[[v == group for v in same]])


def test_latency_by_an_output_of_too_many_values_is_refused() -> None:
    fifty = revkit.parallel_map(range(100), lambda i: {"n": i % 50})
    assert len(fifty.latency_by("n")) == 50
    more = revkit.parallel_map(range(51), lambda i: {"n": i})
    with pytest.raises(UsageError, match=r'"n" has 51 different values.* at most 50; run\.rows'):
        more.latency_by("n")


def test_latency_by_a_class_output_may_have_any_number_of_labels() -> None:
    labels = [f"l{i}" for i in range(60)]
    task = Signature("x", inputs="review", outputs={"label": labels})
    run = reviews(1).llm.parallel_map(task, model=virtual(lambda text: {"label": "l7"}))
    assert run.latency_by("label")["count"].tolist() == [int(i == 7) for i in range(60)]


def test_latency_by_an_unknown_name_names_the_nearest(mixed: revkit.ParallelResult) -> None:
    with pytest.raises(UsageError, match='no "sentimnet"; did you mean "sentiment"'):
        mixed.latency_by("sentimnet")
    with pytest.raises(UsageError, match='no "output_sentiment"; did you mean "sentiment"'):
        mixed.latency_by("output_sentiment")
    with pytest.raises(UsageError, match='"worker", "status", "wave", "sentiment"'):
        mixed.latency_by("model")


def test_an_output_that_is_called_as_a_group_has_its_name_in_run_rows() -> None:
    run = revkit.parallel_map(range(4), lambda i: {"status": i > 2, "n": 0}, max_workers=1)
    assert run.latency_by("status")["count"].to_dict() == {
        "ok": 4, "error": 0, "cancelled": 0, "not_started": 0,
    }  # fmt: skip
    assert "output_status" in run.rows
    table = run.latency_by("output_status")
    assert table["count"].to_dict() == {False: 3, True: 1}
    with pytest.raises(UsageError, match='no "output_wave"'):
        run.latency_by("output_wave")


def test_what_was_not_asked_has_no_latency(tmp_path: Any) -> None:
    frame, store = reviews(6), str(tmp_path / "replies.sqlite")
    model = virtual(latency=2.0)
    model.keeps_replies = True
    frame.head(4).llm.parallel_map("{review}", model=model, store=store)
    run = frame.llm.parallel_map("{review}", model=model, store=store)
    assert run.metrics.from_store == 4
    assert run.latency_by("response")["count"].tolist() == [0, 0, 0, 0, 1, 1]
    assert run.latency_by("status")["count"]["ok"] == 2
    assert run.waiting["count"].tolist() == [2] * 4
    assert run.rows["queue_ms"].notna().tolist() == [False] * 4 + [True] * 2


# -- the first wave --------------------------------------------------------------------------------


def test_the_cold_start_is_what_the_first_wave_took_longer() -> None:
    cold = virtual(latency=lambda text: 5.0 if text in ("r0", "r1", "r2") else 1.0)
    run = reviews(20).llm.parallel_map("{review}", model=cold, max_workers=3)
    assert run.metrics.cold_start_ms == 4000.0
    assert run.latency_by("wave")["max"].tolist() == [5000.0, 1000.0]


def test_there_is_no_cold_start_where_there_is_one_wave_only() -> None:
    run = reviews(3).llm.parallel_map("{review}", model=virtual(), max_workers=3)
    assert run.latency_by("wave")["count"].tolist() == [3, 0]
    assert np.isnan(run.metrics.cold_start_ms)


# -- waiting ---------------------------------------------------------------------------------------

WAITS = ["queue_ms", "limit_ms", "backoff_ms"]


def waited(run: revkit.ParallelResult) -> dict[str, list[float]]:
    """Seconds by kind, to the microsecond; and what holds in every run is checked."""
    rows = run.rows
    tried = rows["attempts"] > 0
    assert (rows[WAITS].sum(axis=1)[tried] == rows["wait_ms"][tried]).all()
    assert rows.loc[~tried, [*WAITS, "wait_ms"]].isna().all(axis=None)
    assert (rows.loc[tried, WAITS] >= 0).all(axis=None)
    busy = run.attempts.groupby("row")["service_ms"].sum().to_numpy()
    end = run.attempts.groupby("row")["end_s"].max().to_numpy() * 1e3
    np.testing.assert_allclose(rows["wait_ms"][tried], end - busy, atol=1e-6)
    table = run.waiting
    assert table.index.tolist() == ["queue", "limit", "backoff", "total"]
    assert list(table.columns) == ["count", *FIGURES[1:]]
    for name, column in zip(table.index, [*WAITS, "wait_ms"], strict=True):
        assert_told(table.loc[name], rows.loc[tried, column])
    return {name: (rows[name] / 1e3).round(6).tolist() for name in WAITS}


def test_rows_queue_for_the_workers() -> None:
    run = reviews(5).llm.parallel_map("{review}", model=virtual(latency=2.0), max_workers=2)
    assert waited(run) == {
        "queue_ms": [0, 0, 2, 2, 4], "limit_ms": [0] * 5, "backoff_ms": [0] * 5,
    }  # fmt: skip
    assert run.metrics.pauses == run.metrics.limited_s == 0


def test_rows_wait_for_a_rate_limit_while_workers_are_free() -> None:
    run = reviews(6).llm.parallel_map(
        "{review}", model=virtual(), max_workers=6, rate_limit=RateLimit(requests_per_minute=6)
    )
    starts = run.attempts.set_index("row")["start_s"].sort_index()
    assert starts[5] > 45
    assert waited(run) == {
        "queue_ms": [0] * 6, "limit_ms": starts.round(6).tolist(), "backoff_ms": [0] * 6,
    }  # fmt: skip
    assert run.metrics.limited_s == pytest.approx(starts[5])
    assert run.metrics.pauses == 0


def test_a_rate_limit_that_the_workers_do_not_reach_is_no_wait() -> None:
    run = reviews(4).llm.parallel_map(
        "{review}",
        model=virtual(latency=30.0),
        max_workers=1,
        rate_limit=RateLimit(requests_per_minute=6),
    )
    assert waited(run) == {
        "queue_ms": [0, 30, 60, 90], "limit_ms": [0] * 4, "backoff_ms": [0] * 4,
    }  # fmt: skip


def test_queue_and_limit_are_told_apart_within_one_row() -> None:
    """Three requests a minute, of 10 s each, and one worker: it is busy, then it is held."""
    run = reviews(3).llm.parallel_map(
        "{review}",
        model=virtual(latency=10.0),
        max_workers=1,
        rate_limit=RateLimit(requests_per_minute=3),
    )
    start = run.attempts["start_s"].to_numpy()
    found = waited(run)
    assert found["queue_ms"] == [0, 10, 20]
    np.testing.assert_allclose(found["limit_ms"], start - [0, 10, 20], atol=1e-5)
    assert found["limit_ms"][1] > 5


def test_rows_wait_for_a_budget_that_attempts_in_flight_may_need() -> None:
    model = virtual(lambda text: revkit.Reply(text, prompt_tokens=1, completion_tokens=1))
    model.max_tokens = 10
    budget = Budget(tokens=100)  # of which any one attempt may need most
    run = reviews(3).llm.parallel_map("{review}", model=model, max_workers=3, budget=budget)
    found = waited(run)
    assert found["queue_ms"] == [0, 0, 0]
    np.testing.assert_allclose(found["limit_ms"], [0, 1, 2], atol=0.1)
    assert run.metrics.limited_s == pytest.approx(2, abs=0.1)


def test_a_pause_is_backoff_for_the_row_that_was_refused_and_a_limit_for_all_others() -> None:
    answer = once(ServerError("busy", status=429, pause=30.0))
    run = reviews(4).llm.parallel_map("{review}", model=virtual(answer), max_workers=2)
    # r0 and r1 run until 1; nothing starts until 31, when r1 and r2 do; r3 queues until 32
    assert waited(run) == {
        "queue_ms": [0, 0, 1, 2], "limit_ms": [0, 0, 30, 30], "backoff_ms": [0, 30, 0, 0],
    }  # fmt: skip
    assert (run.metrics.pauses, run.metrics.paused_s, run.metrics.limited_s) == (1, 30.0, 0.0)


def test_a_failed_row_backs_off_while_others_work() -> None:
    run = reviews(40).llm.parallel_map(
        "{review}",
        model=virtual(once(ConnectionFailed("no"), times=3)),
        max_workers=40,
        retry=Retry(attempts=4, initial=8.0, maximum=20.0),
    )
    tries = run.attempts.query("row == 1")
    gaps = tries["start_s"].to_numpy()[1:] - tries["end_s"].to_numpy()[:-1]
    found = waited(run)
    assert found["backoff_ms"][1] == pytest.approx(gaps.sum())
    assert gaps.sum() > 0
    assert sum(found["backoff_ms"]) == found["backoff_ms"][1]
    assert found["queue_ms"] == found["limit_ms"] == [0] * 40


def test_a_row_that_is_due_again_but_finds_no_worker_queues() -> None:
    run = reviews(3).llm.parallel_map(
        "{review}",
        model=virtual(once(ConnectionFailed("no"), "r0"), latency=50.0),
        max_workers=1,
        retry=Retry(initial=1.0, maximum=1.0),
    )
    # r0 ends at 50 and is due within a second, which is after r1 has the only worker, until 100
    found = waited(run)
    assert found["backoff_ms"][0] <= 1
    assert found["queue_ms"][0] == pytest.approx(50 - found["backoff_ms"][0])


def test_a_reply_that_is_corrected_is_due_at_once() -> None:
    task = Signature("x", inputs="review", outputs={"n": int})
    run = reviews(1).llm.parallel_map(
        task, model=FakeModel(["bad", {"n": 1}], latency=2, clock="virtual")
    )
    assert run.metrics.attempts == 2
    assert waited(run) == {"queue_ms": [0], "limit_ms": [0], "backoff_ms": [0]}


def test_a_row_that_was_given_up_waits_for_the_second_run() -> None:
    fault = once(ModelError("no"), "r0")
    run = reviews(3).llm.parallel_map("{review}", model=virtual(fault), max_workers=1)
    both = run.retry_failed()
    # r0 fails at 1; the first run ends at 3, and the second one starts it again
    assert both.rows["attempts"].tolist() == [2, 1, 1]
    assert waited(both) == {
        "queue_ms": [0, 1, 2], "limit_ms": [0] * 3, "backoff_ms": [2, 0, 0],
    }  # fmt: skip


def test_rows_of_a_stopped_run_that_were_never_tried_have_no_wait() -> None:
    with pytest.raises(RunFailed) as failed:
        reviews(5).llm.parallel_map(
            "{review}",
            model=virtual(once(ModelError("no"))),
            max_workers=1,
            fail_fast=True,
        )
    run = failed.value.result
    assert np.isnan(waited(run)["queue_ms"]).tolist() == [False, False, True, True, True]
    assert run.waiting["count"].tolist() == [2] * 4


def test_a_row_that_the_first_run_never_tried_queues_through_both() -> None:
    with pytest.raises(RunFailed) as failed:
        reviews(3).llm.parallel_map(
            "{review}", model=virtual(once(ModelError("no"))), max_workers=1, fail_fast=True
        )
    both = failed.value.result.retry_failed()
    # r1 fails at 2, and is tried again at once by the second run; r2 comes after it
    assert waited(both) == {
        "queue_ms": [0, 1, 3], "limit_ms": [0] * 3, "backoff_ms": [0] * 3,
    }  # fmt: skip


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_on_a_real_clock_the_waits_add_up_too(engine: Literal["thread", "async"]) -> None:
    model = FakeModel(once(ConnectionFailed("no")), latency=0.001)
    run = reviews(30).llm.parallel_map(
        "{review}",
        model=model,
        engine=engine,
        max_workers=3,
        retry=Retry(initial=0.01),
        rate_limit=RateLimit(requests_per_minute=60_000),
    )
    assert waited(run)["queue_ms"][29] >= 0


def test_an_empty_run_has_tables_without_a_count() -> None:
    run = revkit.parallel_map([], lambda x: {"n": x})
    assert run.waiting["count"].tolist() == [0] * 4
    assert run.waiting.drop(columns="count").isna().all(axis=None)
    for by in ("worker", "status", "wave"):
        table = run.latency_by(by)
        assert table["count"].sum() == 0
        assert list(table.columns) == ["count", *FIGURES]
        assert table.drop(columns="count").isna().all(axis=None)


# -- against a clock that ticks --------------------------------------------------------------------


class Try(NamedTuple):
    """One attempt at a row, in whole seconds: how long after the one before, and how long."""

    backoff: int
    wait: int
    service: int


tries = st.lists(
    st.builds(Try, backoff=st.integers(0, 4), wait=st.integers(0, 9), service=st.integers(0, 4)),
    max_size=4,
)
# In order of their starts; some overlap, some are of no length, some touch.
holds = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=8)


@given(rows=st.lists(tries, max_size=5), gaps=holds, began=st.integers(0, 1000))
def test_every_second_is_counted_once(
    rows: list[list[Try]], gaps: list[tuple[int, int]], began: int
) -> None:
    held: set[int] = set()
    record = empty_record(len(rows))
    record.began, now = float(began), began
    for gap, length in gaps:
        now += gap
        record.holds.append(Hold(HoldKind.PAUSE, float(now), float(now + length)))
        held |= set(range(now, now + length))
    wanted = {"queue": [0.0] * len(rows), "limit": [0.0] * len(rows), "backoff": [0.0] * len(rows)}
    ended = []
    for row, attempts in enumerate(rows):
        now = began
        for number, (backoff, wait, service) in enumerate(attempts, 1):
            due = now + backoff if number > 1 else now
            for second in range(now, now + wait):  # it may start before it is due
                why = "backoff" if second < due else "limit" if second in held else "queue"
                wanted[why][row] += 1
            start, end = now + wait, now + wait + service
            ended.append((end, row, number, start, due if number > 1 else float("nan")))
            now = end
        if not attempts:
            for each in wanted.values():
                each[row] = float("nan")
    for end, row, number, start, due in sorted(ended, key=lambda fact: (fact[0], fact[2])):
        record.row.append(row)
        record.number.append(number)
        record.worker.append(row)
        record.start.append(start)
        record.end.append(end)
        record.due.append(due)
        record.decision.append(DECISIONS.index(Decision.RETRY))
    for name, seconds in waits(record)._asdict().items():
        np.testing.assert_allclose(seconds, wanted[name], atol=1e-9)
