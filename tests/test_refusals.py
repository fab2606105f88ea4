"""Refusals by a server that is busy: what they mean for the run, for their row and its attempts."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from servers import Status, serve

import revkit
from revkit import Retry
from revkit.scheduling.events import Attempt, Decision, Failure, HoldKind, Success
from revkit.scheduling.policy import Retry as Policy
from revkit.scheduling.scheduler import DONE, Scheduler

GOOD = Success({"response": 1})


def busy(pause: float | None = None, *, reset: float | None = None, status: int = 429) -> Failure:
    return Failure("ServerError", "busy", status=status, transient=True, pause=pause, reset=reset)


def take(scheduler: Scheduler, worker: int = 0, now: float = 0.0) -> Attempt:
    step = scheduler.take(worker, now)
    assert isinstance(step, Attempt), step
    return step


def settle(scheduler: Scheduler, attempt: Attempt, outcome: Any, now: float) -> Decision:
    return scheduler.settle(attempt, outcome, now)


# -- a pause that was asked for ----------------------------------------------------------------


def test_a_row_waits_as_long_as_its_backoff_where_the_pause_is_shorter() -> None:
    scheduler = Scheduler(range(1), max_workers=1, chance=lambda: 1.0)
    settle(scheduler, take(scheduler), busy(0.02), 1.0)
    assert scheduler.take(0, 1.02) == 1.5
    settle(scheduler, take(scheduler, now=1.5), busy(0.02), 2.0)
    assert scheduler.take(0, 2.02) == 3.0


def test_the_run_pauses_longer_while_it_is_refused_and_a_success_resets_that() -> None:
    scheduler = Scheduler(range(99), max_workers=3, chance=lambda: 1.0)
    now, pauses = 1.0, []
    for _ in range(4):
        settle(scheduler, take(scheduler, now=now), busy(0.1), now)
        until = scheduler.take(0, now)
        assert isinstance(until, float)
        pauses.append(round(until - now, 6))
        now = until
    assert pauses == [0.1, 0.5, 1.0, 2.0]
    settle(scheduler, take(scheduler, now=now), GOOD, now)
    settle(scheduler, take(scheduler, now=now), busy(0.1), now)
    assert scheduler.take(0, now) == pytest.approx(now + 0.1)


def test_refusals_of_what_ran_already_are_one_pause() -> None:
    scheduler = Scheduler(range(9), max_workers=3, chance=lambda: 1.0)
    attempts = [take(scheduler, worker) for worker in range(3)]
    for attempt in attempts:
        settle(scheduler, attempt, busy(0.1), 1.0)
    assert scheduler.take(0, 1.0) == 1.1


# -- a limit that is full again ----------------------------------------------------------------


def test_a_reset_is_an_upper_bound_and_never_ends_the_run() -> None:
    scheduler = Scheduler(range(9), max_workers=1, chance=lambda: 1.0, retry=Policy(attempts=1))
    now, pauses = 0.0, []
    for _ in range(9):  # nor does it use up an attempt
        assert settle(scheduler, take(scheduler, now=now), busy(reset=360.0), now) is Decision.RETRY
        until = scheduler.take(0, now)
        assert isinstance(until, float)
        pauses.append(until - now)
        now = until
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert scheduler.stopped is None
    assert {hold.kind for hold in scheduler.holds} == {HoldKind.PAUSE}
    settle(scheduler, take(scheduler, now=now), busy(reset=3.0), now)
    assert scheduler.take(0, now) == pytest.approx(now + 3.0)


# -- a row that the server has something against -----------------------------------------------


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("pause", [0.02, 1.0, 30.0])
@pytest.mark.parametrize("reset", [False, True])
def test_a_row_that_is_refused_while_others_succeed_waits_alone_and_fails(
    workers: int, pause: float, reset: bool
) -> None:
    """Else it would pause the whole run again and again, until ``max_elapsed``."""
    scheduler = Scheduler(range(40), max_workers=workers, chance=lambda: 0.5)
    outcome = busy(reset=pause) if reset else busy(pause)
    ended, refused, now, running = Counter[Decision](), 0, 0.0, list[Attempt]()
    while (step := scheduler.take(len(running), now)) is not DONE:
        if isinstance(step, Attempt):
            running.append(step)
        elif running:
            now += 0.1
            attempt = running.pop(0)
            refused += attempt.row == 5
            ended[settle(scheduler, attempt, outcome if attempt.row == 5 else GOOD, now)] += 1
        else:
            assert isinstance(step, float)
            now = step
    assert (ended[Decision.OK], ended[Decision.FAIL]) == (39, 1)
    assert refused < 12
    pauses = [hold for hold in scheduler.holds if hold.kind is HoldKind.PAUSE]
    assert len(pauses) <= 5
    assert now < 60 + 8 * max(pause, 8.0)


def test_a_pause_that_is_too_long_for_a_single_row_does_not_end_the_run() -> None:
    scheduler = Scheduler(range(99), max_workers=2, chance=lambda: 0.5)
    bad, now = take(scheduler), 0.0
    for number in range(2, 6):
        for _ in range(9):
            settle(scheduler, take(scheduler, 1, now), GOOD, now)
        settle(scheduler, bad, busy(10.0), now)
        now += 20.0
        bad = take(scheduler, now=now)
        assert (bad.row, bad.number) == (0, number)
    assert settle(scheduler, bad, busy(1000.0), now) is Decision.FAIL
    assert scheduler.stopped is None


@given(st.integers(1, 12), st.integers(2, 40), st.integers(0, 2**16))
@example(6, 21, 0)
@example(6, 21, 7)
@example(6, 23, 466)
def test_rows_that_wait_their_turn_are_not_taken_for_such_rows(
    accepted: int, workers: int, seed: int
) -> None:
    """Of each wave the server takes the first few, so the last are refused again and again."""
    scheduler = Scheduler(
        range(80),
        max_workers=workers,
        retry=Policy(attempts=1),
        chance=random.Random(seed).random,
    )
    ok, now = 0, 0.0
    while (step := scheduler.take(0, now)) is not DONE:
        if isinstance(step, float):
            now = step
            continue
        wave = []
        while isinstance(step, Attempt):
            wave.append(step)
            step = scheduler.take(0, now)
        for place, attempt in enumerate(wave):
            decision = settle(scheduler, attempt, GOOD if place < accepted else busy(1.0), now)
            assert decision is not Decision.FAIL
            ok += decision is Decision.OK
    assert ok == 80


# -- a 429 that says nothing -------------------------------------------------------------------


def test_where_nothing_succeeds_each_refusal_uses_up_an_attempt() -> None:
    scheduler = Scheduler(range(3), max_workers=1, chance=lambda: 0.0)
    for decision in [Decision.RETRY, Decision.RETRY, Decision.FAIL] * 3:
        assert settle(scheduler, take(scheduler), busy(), 0.0) is decision
    assert scheduler.take(0, 0.0) is DONE


def refused_beside_others(retry: Policy, *, until: float, status: int = 429) -> list[float]:
    """When a row is started that is refused each time, while another succeeds every second."""
    scheduler = Scheduler(range(10_000), max_workers=2, retry=retry, chance=lambda: 1.0)
    bad, starts, now = take(scheduler), [0.0], 0.0
    while now < until:
        if settle(scheduler, bad, busy(status=status), now) is not Decision.RETRY:
            break
        again = False
        while not again:
            other = scheduler.take(1, now)
            if isinstance(other, Attempt) and other.row == 0:
                bad, again = other, True
                starts.append(now)
            elif isinstance(other, Attempt):
                settle(scheduler, other, GOOD, now)
                now += 1.0
            else:
                assert isinstance(other, float)
                now = other
    return starts


def test_it_uses_up_no_attempt_while_others_succeed_but_waits_longer_each_time() -> None:
    starts = refused_beside_others(Policy(attempts=2, max_elapsed=200.0), until=1e6)
    waits = [after - before for before, after in itertools.pairwise(starts)]
    assert len(starts) > 9
    assert waits == sorted(waits)
    assert 30.0 <= waits[-1] <= 31.0
    assert 170.0 <= starts[-1] <= 200.0  # max_elapsed bounds it


def test_other_statuses_use_up_attempts_as_ever() -> None:
    assert len(refused_beside_others(Policy(attempts=3), until=1e6, status=500)) == 3


@pytest.mark.parametrize("status", [503, 529])
def test_a_row_that_alone_is_refused_soon_uses_up_attempts(status: int) -> None:
    assert len(refused_beside_others(Policy(attempts=3), until=1e6, status=status)) == 5


@pytest.mark.parametrize("rows", [80, 1000])
def test_a_last_row_that_alone_is_refused_ends(rows: int) -> None:
    """Without a word of why: its text may be longer than the account allows in a minute."""
    scheduler = Scheduler(range(rows), max_workers=4, chance=lambda: 0.5)
    now, attempts, running = 0.0, 0, list[Attempt]()
    while True:
        step = scheduler.take(len(running), now)
        if isinstance(step, Attempt):
            running.append(step)
            if len(running) < 4:
                continue
        if not running:
            if not isinstance(step, float):
                break
            now = step
            continue
        now, attempt = now + 0.01, running.pop(0)
        attempts += attempt.row == 40
        settle(scheduler, attempt, busy() if attempt.row == 40 else GOOD, now)
    assert attempts <= 10
    assert now < 60


def test_without_a_wait_it_uses_up_attempts() -> None:
    assert len(refused_beside_others(Policy(initial=0, maximum=0), until=1e6)) == 3


def test_one_attempt_is_never_tried_again() -> None:
    assert len(refused_beside_others(Policy(attempts=1), until=1e6)) == 1


def test_others_that_are_served_count_before_they_have_succeeded() -> None:
    """A reply takes long: where the first ones are on their way, the server accepts requests."""
    scheduler = Scheduler(range(9), max_workers=3, chance=lambda: 0.5)
    scheduler.take(0, 0.0)
    refused, now = take(scheduler, 1, 1.0), 1.0
    for _ in range(9):
        assert settle(scheduler, refused, busy(), now + 0.02) is Decision.RETRY
        now += 40.0
        refused = take(scheduler, 1, now)
        assert refused.row == 1


# -- against real servers ----------------------------------------------------------------------


def ollama(url: str) -> Any:
    return revkit.Ollama("m", host=url)


def openai(url: str) -> Any:
    return revkit.OpenAICompatible("m", base_url=url + "/v1", api_key="sk-test")


CLIENTS = pytest.mark.parametrize("client", [ollama, openai])
ENGINES = pytest.mark.parametrize("engine", ["thread", "async"])


def reviews(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"r{i}" for i in range(rows)]})


class Refuses:
    """Answers two of three requests with ``status``, for each row so many times."""

    def __init__(self, status: Callable[[], Status], times: int, rows: set[str] | None = None):
        self.status, self.times, self.rows = status, times, rows
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        row = messages[-1]["content"]
        with self._lock:
            self.asked[row] += 1
            mine = row in self.rows if self.rows is not None else int(row[1:]) % 3 > 0
            return self.status() if mine and self.asked[row] <= self.times else row


QUICK = Retry(initial=0.002, maximum=0.01, attempts=2)


@CLIENTS
@ENGINES
@pytest.mark.parametrize(
    "status",
    [
        Status(429, {"error": {"message": "Limit 3. Please try again in 4ms. Visit us."}}),
        Status(429, {"error": "busy, try again in 4ms"}),
        Status(429, {"error": {"message": "busy", "retry_after_ms": 4}}),
        Status(429, {"error": {"message": "busy", "retry_after": 0.004}}),
        Status(503, {"error": {"message": "busy"}, "retry_after_seconds": "0.004"}),
        Status(429, {"error": {"message": "busy", "details": [{"retryDelay": "0.004s"}]}}),
        Status(
            429,
            {"error": "busy"},
            {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"},
        ),
        Status(
            429,
            {"error": "busy"},
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2999-01-01T00:00:00Z",
            },
        ),
        Status(
            429,
            [
                {
                    "error": {
                        "code": 429,
                        "message": "You exceeded your current quota, please check your plan and "
                        "billing details.\nPlease retry in 4.5ms.",
                        "status": "RESOURCE_EXHAUSTED",
                        "details": [{"@type": "RetryInfo", "retryDelay": "0.004s"}],
                    }
                }
            ],
        ),
        Status(429, {"error": "busy"}, {"x-ratelimit-reset-tokens": "6m0s"}),  # no hint
        Status(429, {"error": "busy"}),
    ],
    ids=range(11),
)
def test_no_row_is_lost_that_is_refused_more_often_than_it_may_fail(
    client: Any, engine: str, status: Status
) -> None:
    rule = Refuses(lambda: status, 2)
    with serve(rule) as server:
        run = reviews(30).llm.parallel_map(
            "{review}",
            model=client(server.url),
            engine=engine,
            max_workers=1,  # so that the first row has succeeded before one is refused
            retry=QUICK,
        )
    assert run.frame["response"].tolist() == [f"r{i}" for i in range(30)]
    assert run.rows["attempts"].tolist() == [1, 3, 3] * 10


@CLIENTS
@ENGINES
def test_words_ask_for_a_pause_of_the_whole_run(client: Any, engine: str) -> None:
    rule = Refuses(lambda: Status(429, {"error": "Try again in 61 seconds."}), 1, {"r1"})
    with serve(rule) as server, pytest.raises(revkit.RunFailed, match="a pause of 61 s, longer"):
        reviews(5).llm.parallel_map(
            "{review}", model=client(server.url), engine=engine, max_workers=1
        )
    assert sum(rule.asked.values()) == 2


@CLIENTS
@ENGINES
@pytest.mark.parametrize(
    ("status", "said", "asked"),
    [(503, "false", 1), (429, "false", 1), (400, "true", 3), (503, "true", 3), (400, "", 1)],
)
def test_a_server_that_says_whether_to_retry_is_obeyed(
    client: Any, engine: str, status: int, said: str, asked: int
) -> None:
    answer = Status(status, {"error": "no"}, {"x-should-retry": said})
    rule = Refuses(lambda: answer, 99, {"r1"})
    with serve(rule) as server:
        run = reviews(3).llm.parallel_map(
            "{review}",
            model=client(server.url),
            engine=engine,
            max_workers=1,
            retry=Retry(initial=0, maximum=0),
        )
    assert run.rows["status"].tolist() == ["ok", "error", "ok"]
    assert rule.asked["r1"] == asked


@CLIENTS
@ENGINES
def test_a_row_that_is_always_refused_with_a_pause_costs_the_others_nothing(
    client: Any, engine: str
) -> None:
    answer = Status(429, {"error": "no"}, {"retry-after-ms": "3"})
    rule = Refuses(lambda: answer, 10**6, {"r7"})
    with serve(rule) as server:
        run = reviews(60).llm.parallel_map(
            "{review}", model=client(server.url), engine=engine, max_workers=2, retry=QUICK
        )
    assert run.rows["status"].tolist() == ["ok"] * 7 + ["error"] + ["ok"] * 52
    assert rule.asked["r7"] < 40


@CLIENTS
@ENGINES
def test_a_server_that_refuses_all_from_the_start_fails_as_ever(client: Any, engine: str) -> None:
    rule = Refuses(lambda: Status(429, {"error": "no"}), 10**6, {f"r{i}" for i in range(6)})
    with serve(rule) as server, pytest.raises(revkit.RunFailed, match="429"):
        reviews(6).llm.parallel_map(
            "{review}",
            model=client(server.url),
            engine=engine,
            max_workers=2,
            retry=Retry(initial=0.001),
        )
    assert set(rule.asked.values()) == {3}
