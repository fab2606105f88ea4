"""Runs within limits: a rate, a budget, and a number of workers that is found in the run."""

from __future__ import annotations

import threading
from typing import Any

import pandas as pd
import pytest
from servers import Status, closed_port, serve

import revkit
from revkit import Adaptive, Budget, BudgetReached, Price, RateLimit, Retry, UsageError
from revkit.testing import FakeModel


def reviews(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"review {i}" for i in range(rows)]})


def fake(**options: Any) -> FakeModel:
    return FakeModel(lambda text: "positive", **{"latency": 0.5, "clock": "virtual"} | options)


def metered(max_tokens: int | None = 10, **options: Any) -> FakeModel:
    model = fake(**options)
    model.max_tokens = max_tokens
    return model


# -- rate ------------------------------------------------------------------------------------------


def test_requests_start_no_faster_than_they_may() -> None:
    run = reviews(20).llm.parallel_map(
        model=fake(), max_workers=8, rate_limit=RateLimit(requests_per_minute=120)
    )
    starts = run.attempts["start_s"].sort_values()
    assert starts.diff().min() >= 0.5 - 0.02  # a start may make up for a late timer
    assert run.metrics.wall_s == pytest.approx(19 * 0.5 + 0.5, rel=0.05)  # and no slower


def test_attempts_that_are_made_again_count_as_well() -> None:
    model = FakeModel(
        [revkit.ConnectionFailed("it broke"), *["positive"] * 5], latency=0.1, clock="virtual"
    )
    run = reviews(5).llm.parallel_map(
        model=model,
        max_workers=5,
        rate_limit=RateLimit(requests_per_minute=60),
        retry=Retry(initial=0.1),
    )
    assert run.attempts["start_s"].sort_values().diff().min() >= 1.0
    assert run.metrics.succeeded == 5


def test_tokens_are_estimated_before_and_corrected_after() -> None:
    model = metered(latency=0.1)
    run = reviews(50).llm.parallel_map(
        model=model, max_workers=4, rate_limit=RateLimit(tokens_per_minute=6000)
    )
    used = run.usage.total_tokens
    assert used is not None
    # From the second reply on the estimate is right to a few tokens, so the rate is, too.
    assert run.metrics.wall_s == pytest.approx(used / 100, rel=0.15)


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_rate_limit_is_shared_by_the_runs_of_a_client(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[float] = []
    reserve = RateLimit.reserve

    def watched(self: RateLimit, tokens: int, now: float) -> float | None:
        when = reserve(self, tokens, now)
        if when is None:
            started.append(now)
        return when

    monkeypatch.setattr(RateLimit, "reserve", watched)
    with serve("positive") as server:
        limit = RateLimit(requests_per_minute=3000)
        client = revkit.Ollama(host=server.url, rate_limit=limit)
        runs = [
            threading.Thread(
                target=lambda: reviews(10).llm.parallel_map(
                    model=client, engine=engine, max_workers=4
                )
            )
            for _ in range(2)
        ]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        assert len(server.chats) == 20
    assert max(started) - min(started) >= 19 * 60 / 3000 - 0.02


def test_a_functions_own_calls_can_be_limited() -> None:
    run = reviews(5).llm.parallel_map(
        lambda row: 1, max_workers=4, rate_limit=RateLimit(requests_per_minute=6000)
    )
    assert run.metrics.succeeded == 5


def test_waiting_for_a_rate_ends_with_the_run() -> None:
    with pytest.raises(revkit.RunTimeout) as stopped:
        reviews(10).llm.parallel_map(
            model=fake(),
            max_workers=4,
            timeout=3.0,
            rate_limit=RateLimit(requests_per_minute=60),
        )
    assert stopped.value.result.metrics.succeeded == 3
    assert stopped.value.result.metrics.not_started == 7


# -- budget ----------------------------------------------------------------------------------------


def test_a_budget_ends_the_run_before_it_is_exceeded() -> None:
    df, model, budget = reviews(500), metered(), Budget(tokens=3000)
    with pytest.raises(BudgetReached, match="more than is left of Budget") as stopped:
        df.llm.parallel_map(model=model, max_workers=4, budget=budget)
    run = stopped.value.result
    assert run.metrics.succeeded > 20
    assert run.metrics.cancelled == 0  # what was running has finished
    assert run.metrics.succeeded + run.metrics.not_started == 500
    assert budget.spent_tokens == run.usage.total_tokens
    assert 0.9 * 3000 < budget.spent_tokens <= 3000
    assert budget.reserved_tokens == 0
    assert df["error"].str.startswith("NotStarted").sum() == run.metrics.not_started


def test_a_budget_is_what_runs_spend_together() -> None:
    budget = Budget(tokens=2000)
    first = reviews(3).llm.parallel_map(model=metered(), budget=budget)
    second = reviews(3).llm.parallel_map(model=metered(), budget=budget)
    used = [run.usage.total_tokens for run in (first, second)]
    assert budget.spent_tokens == sum(filter(None, used))
    with pytest.raises(BudgetReached):
        reviews(50).llm.parallel_map(model=metered(), budget=budget)


def test_dollars_are_tokens_at_a_price() -> None:
    budget = Budget(usd=0.01, prices=Price(10, 20))
    with pytest.raises(BudgetReached) as stopped:
        reviews(500).llm.parallel_map(model=metered(), max_workers=2, budget=budget)
    usage = stopped.value.result.usage
    assert usage.prompt_tokens is not None
    assert usage.completion_tokens is not None
    spent = (10 * usage.prompt_tokens + 20 * usage.completion_tokens) / 1e6
    assert budget.spent_usd == pytest.approx(spent)
    assert budget.spent_usd <= 0.01


def test_what_the_server_refused_costs_nothing() -> None:
    budget = Budget(tokens=2000)
    with serve(lambda messages, body: Status(400, {"error": "no"})) as server:
        client = revkit.Ollama(host=server.url, max_tokens=10)
        with pytest.raises(revkit.RunFailed):
            reviews(50).llm.parallel_map(model=client, max_workers=2, budget=budget)
        assert len(server.chats) == 50
    assert (budget.spent_tokens, budget.reserved_tokens) == (0, 0)


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_what_was_never_sent_costs_nothing(engine: str) -> None:
    budget = Budget(tokens=3000)
    with closed_port() as url:
        client = revkit.Ollama(host=url, max_tokens=10)
        with pytest.raises(revkit.RunFailed, match="cannot connect") as failed:
            reviews(8).llm.parallel_map(
                model=client, engine=engine, budget=budget, retry=Retry(initial=0.001)
            )
    assert failed.value.result.metrics.failed == 8
    assert (budget.spent_tokens, budget.reserved_tokens) == (0, 0)


def test_a_budget_can_be_raised_and_the_run_goes_on() -> None:
    budget, df = Budget(tokens=2000), reviews(30)
    with pytest.raises(BudgetReached) as stopped:
        df.llm.parallel_map(model=metered(), max_workers=1, budget=budget)
    done = stopped.value.result.metrics.succeeded
    assert 0 < done < 30
    budget.tokens = 100_000
    run = stopped.value.result.retry_failed()
    assert run.metrics.succeeded == 30
    with pytest.raises(UsageError):
        budget.tokens = -1


@pytest.mark.parametrize("engine", ["thread", "async"])
def test_what_was_cancelled_may_have_been_billed(engine: str) -> None:
    budget, cancel, release = Budget(tokens=2000), revkit.CancelToken(), threading.Event()

    def answer(messages: Any, body: Any) -> str:
        cancel.cancel()
        release.wait(20)
        return "positive"

    with serve(answer) as server:
        client = revkit.Ollama(host=server.url, max_tokens=10)
        with pytest.raises(revkit.RunCancelled):
            reviews(1).llm.parallel_map(model=client, engine=engine, budget=budget, cancel=cancel)
        release.set()
    assert budget.reserved_tokens == 0
    assert budget.spent_tokens > 10  # all that it had reserved


def test_a_run_waits_for_what_another_one_holds() -> None:
    """The first run's only call holds nearly the whole budget until the second has asked for it."""
    asked, release = threading.Event(), threading.Event()

    class Watched(Budget):
        def reserve(self, *args: Any) -> Any:
            found = super().reserve(*args)
            if found is revkit.scheduling.accounts.Refusal.LATER:
                asked.set()
            return found

    def answer(messages: Any, body: Any) -> str:
        release.wait(20)
        return "positive"

    budget = Watched(tokens=1500)
    with serve(answer) as server:
        client = revkit.Ollama(host=server.url, max_tokens=300)
        results: list[revkit.ParallelResult] = []
        runs = [
            threading.Thread(
                target=lambda: results.append(
                    reviews(1).llm.parallel_map(model=client, budget=budget)
                )
            )
            for _ in range(2)
        ]
        for run in runs:
            run.start()
        assert asked.wait(20)
        release.set()
        for run in runs:
            run.join()
    assert [run.metrics.succeeded for run in results] == [1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": metered(None), "budget": Budget(tokens=10)}, "give the model max_tokens="),
        ({"model": metered(), "budget": Budget(usd=1)}, "the price of fake is not known"),
        (
            {"model": revkit.Ollama("m", max_tokens=5), "budget": Budget(usd=1)},
            "costs nothing; use Budget",
        ),
        ({"task": len, "budget": Budget(tokens=10)}, "len is a function"),
        ({"task": len, "rate_limit": RateLimit(tokens_per_minute=10)}, "len is a function"),
        ({"budget": 10}, "give a revkit.Budget"),
        ({"rate_limit": 10}, "give a revkit.RateLimit"),
        ({"max_workers": "many"}, "max_workers='many'"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(options: dict[str, Any], words: str) -> None:
    options = {"model": metered()} | options
    if "task" in options:
        del options["model"]
    with pytest.raises(UsageError, match=words):
        reviews(2).llm.parallel_map(**options)


# -- adaptive --------------------------------------------------------------------------------------


def shares(slots: int) -> FakeModel:
    """A server whose requests share so many slots."""
    model = fake(latency=lambda text: max(1.0, model._in_flight / slots))
    return model


@pytest.mark.parametrize("wanted", ["adaptive", Adaptive(maximum=64)])
def test_workers_are_added_while_it_helps(wanted: Any) -> None:
    model = shares(12)
    run = reviews(3000).llm.parallel_map(model=model, max_workers=wanted)
    assert run.metrics.succeeded == 3000
    # A few more than the slots where it was trying; by the time it takes, close to the best.
    assert 12 < model.most_in_flight <= 48
    assert run.metrics.mean_concurrency == pytest.approx(12, rel=0.4)
    assert run.metrics.wall_s < 1.25 * 3000 / 12


def test_the_bounds_are_kept() -> None:
    model = fake()
    reviews(300).llm.parallel_map(model=model, max_workers=Adaptive(minimum=2, maximum=5))
    assert model.most_in_flight == 5


def test_the_limit_is_shown_below_the_lanes() -> None:
    df = reviews(1500)
    run = df.llm.parallel_map(model=shares(8), max_workers="adaptive")
    lanes, strip = run.plot_timeline().figure.axes
    (line,) = strip.get_lines()
    assert line.get_ydata()[0] == 4
    assert len(line.get_ydata()) > 3
    assert strip.get_ylabel() == "Running"
    assert lanes.get_ylim()[0] < 64  # not the 256 that there might have been
    assert run.timeline_png().startswith(b"\x89PNG")
    fixed = df.llm.parallel_map(model=shares(8), max_workers=4)
    (line,) = fixed.plot_timeline().figure.axes[1].get_lines()
    assert set(line.get_ydata()) == {4}


def test_the_report_says_where_it_ended() -> None:
    run = reviews(1500).llm.parallel_map(model=shares(8), max_workers="adaptive")
    assert run.metrics.limit in range(6, 13)
    assert f"{run.metrics.limit} of at most 256 (async, adaptive)" in run.report()


def test_the_path_goes_on_where_the_rest_is_tried_again() -> None:
    down = [True]

    def answer(text: str) -> Any:
        return revkit.BadReply("no") if down[0] and text.endswith("7") else "positive"

    model = FakeModel(answer, latency=0.5, clock="virtual")
    run = reviews(300).llm.parallel_map(model=model, max_workers=Adaptive(maximum=8))
    down[0] = False
    (line,) = run.retry_failed().plot_timeline().figure.axes[1].get_lines()
    times = line.get_xdata()
    assert sorted(times) == list(times)
    assert times[2] > 0


def test_limits_and_a_store_go_together(tmp_path: Any) -> None:
    budget, model = Budget(tokens=100_000), metered()
    for asked in (100, 100):
        run = reviews(100).llm.parallel_map(
            model=model,
            max_workers=Adaptive(maximum=16),
            budget=budget,
            rate_limit=RateLimit(requests_per_minute=60_000),
            store=tmp_path,
        )
        assert run.metrics.succeeded == 100
        assert len(model.calls) == asked
    assert run.metrics.from_store == 100
    assert budget.reserved_tokens == 0
