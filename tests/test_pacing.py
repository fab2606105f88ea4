"""Starts are slowed where the server refuses most of them and that helps: simulated servers.

The real scheduler hands out attempts on a virtual clock. A refusal takes 20 ms, a reply about ten
times as long. Nothing says how long to wait.
"""

from __future__ import annotations

import heapq
import random
import statistics
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol
from unittest import mock

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import Status, serve

import revkit
from revkit import Retry
from revkit.scheduling.adaptive import Adaptive, AdaptiveLimit
from revkit.scheduling.events import Attempt, Decision, Failure, HoldKind, Success
from revkit.scheduling.pacing import Pacer
from revkit.scheduling.scheduler import DONE, Scheduler
from revkit.scheduling.throttle import Throttle

BUSY = Failure("ServerError", "busy", status=429, transient=True)


class Server(Protocol):
    def accepts(self, now: float) -> bool: ...
    def replied(self) -> None: ...


class Bucket:
    """Refilled at an even rate."""

    def __init__(self, rate: float, size: float):
        self.rate, self.size, self.left, self.at = rate, size, size, 0.0

    def accepts(self, now: float) -> bool:
        self.left = min(self.size, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def replied(self) -> None: ...


class Window:
    """Takes so many requests in each minute, as fast as they come."""

    def __init__(self, requests: int):
        self.requests, self.minute, self.left = requests, 0, requests

    def accepts(self, now: float) -> bool:
        if now // 60 > self.minute:
            self.minute, self.left = int(now // 60), self.requests
        self.left -= 1
        return self.left >= 0

    def replied(self) -> None: ...


class Slots:
    """Works on so many at once."""

    def __init__(self, slots: int):
        self.free = slots

    def accepts(self, now: float) -> bool:
        if not self.free:
            return False
        self.free -= 1
        return True

    def replied(self) -> None:
        self.free += 1


class AtRandom:
    """Refuses this share, whatever runs."""

    def __init__(self, share: float, seed: int):
        self.share, self.chance = share, random.Random(seed)

    def accepts(self, now: float) -> bool:
        return self.chance.random() >= self.share

    def replied(self) -> None: ...


class Later:
    """Is one server until a time, and then another."""

    def __init__(self, first: Server, until: float, second: Server):
        self.first, self.until, self.second = first, until, second

    def accepts(self, now: float) -> bool:
        return (self.first if now < self.until else self.second).accepts(now)

    def replied(self) -> None: ...


class Flapping:
    """Refuses four of five in every other second."""

    def __init__(self, seed: int):
        self.well, self.busy = AtRandom(0, seed), AtRandom(0.8, seed)

    def accepts(self, now: float) -> bool:
        return (self.busy if now % 2 >= 1 else self.well).accepts(now)

    def replied(self) -> None: ...


class Run(NamedTuple):
    """What came of a simulated run."""

    end: float
    most: float  #: when nine tenths of the rows had succeeded: no single row's backoff decides it
    per_row: float  #: requests
    lost: int
    paced: float  #: seconds


def simulate(
    server: Server,
    rows: int,
    workers: int,
    *,
    seed: int = 0,
    latency: float = 0.2,
    pacer: Pacer | None = None,
    adaptive: AdaptiveLimit | None = None,
) -> Run:
    chance = random.Random(seed)
    throttle = None if adaptive is None else Throttle(workers, adaptive=adaptive)
    with mock.patch("revkit.scheduling.scheduler.Pacer", return_value=pacer or Pacer()):
        scheduler = Scheduler(
            range(rows), max_workers=workers, throttle=throttle, chance=chance.random
        )
    now, made, lost = 0.0, 0, 0
    idle = list(range(workers))
    ending: list[tuple[float, int, Attempt, bool]] = []
    succeeded: list[float] = []
    while True:
        wake = float("inf")
        step: Any = None
        while idle:
            step = scheduler.take(idle[0], now)
            if not isinstance(step, Attempt):
                wake = step if isinstance(step, float) else wake
                break
            heapq.heappop(idle)
            made += 1
            accepted = server.accepts(now)
            seconds = latency * chance.lognormvariate(0, 0.3) if accepted else 0.02
            heapq.heappush(ending, (now + seconds, made, step, accepted))
        if step is DONE and not ending:
            break
        if wake < (ending[0][0] if ending else float("inf")):
            assert wake > now
            now = wake
            continue
        now, _, attempt, accepted = heapq.heappop(ending)
        if accepted:
            server.replied()
            succeeded.append(now)
        outcome = Success({}) if accepted else BUSY
        lost += scheduler.settle(attempt, outcome, now) is Decision.FAIL
        heapq.heappush(idle, attempt.worker)
    assert len(succeeded) + lost == rows
    paced = sum(hold.end - hold.start for hold in scheduler.holds if hold.kind is HoldKind.PACING)
    most = succeeded[int(0.9 * len(succeeded)) - 1] if succeeded else now
    return Run(now, most, made / rows, lost, paced)


class Never(Pacer):
    """Leaves the starts alone."""

    def refused(self, row: int, start: float, now: float) -> None: ...


SEEDS = range(5)


@pytest.mark.parametrize("latency", [0.2, 1.0])
def test_a_bucket_is_used_well_with_few_requests(latency: float) -> None:
    for seed in SEEDS:
        run = simulate(Bucket(40, 40), 600, 32, seed=seed, latency=latency)
        assert run.lost == 0
        assert run.end <= 600 / 32 * latency + 600 / 40 / 0.7
        assert run.per_row <= 3
    assert simulate(Bucket(40, 40), 600, 32, pacer=Never()).per_row > 4  # the test can tell


@pytest.mark.parametrize(
    ("server", "rows", "workers", "latency", "ideal", "requests"),
    [
        pytest.param(lambda: Bucket(5, 5), 300, 64, 0.2, 60, 2.5, id="slow"),
        pytest.param(lambda: Bucket(5, 5), 300, 64, 5.0, 65, 2.5, id="slow, with long replies"),
        pytest.param(lambda: Bucket(40, 1), 600, 32, 0.2, 15, 2.5, id="without bursts"),
        pytest.param(lambda: Bucket(40, 40), 1200, 128, 2.0, 32, 2.5, id="128 workers"),
        pytest.param(lambda: Window(60), 300, 16, 0.2, 240, 4.0, id="60 a minute"),
        pytest.param(lambda: Window(60), 150, 1, 0.2, 120, 4.0, id="60 a minute, one worker"),
        pytest.param(lambda: Slots(4), 400, 32, 1.0, 110, 3.0, id="four at once"),
        pytest.param(lambda: Slots(4), 400, 8, 1.0, 110, 3.0, id="four at once, 8 workers"),
        pytest.param(
            lambda: Later(Bucket(10, 10), 20, Bucket(100, 10)), 1000, 32, 0.2, 28, 2.0, id="rises"
        ),
        pytest.param(
            lambda: Later(Bucket(100, 100), 3, Bucket(10, 10)), 500, 32, 0.2, 23, 2.0, id="falls"
        ),
        pytest.param(
            lambda: Later(Bucket(1e9, 1e9), 2, Later(AtRandom(1, 0), 22, AtRandom(0, 0))),
            1000, 32, 0.2, 27, 2.0, id="shut for 20 s",
        ),
    ],
)  # fmt: skip
def test_no_row_is_lost_and_the_rate_is_kept(
    server: Callable[[], Server],
    rows: int,
    workers: int,
    latency: float,
    ideal: float,
    requests: float,
) -> None:
    runs = [simulate(server(), rows, workers, seed=seed, latency=latency) for seed in SEEDS]
    assert sum(run.lost for run in runs) == 0
    assert statistics.median(ideal / run.end for run in runs) >= 0.68
    assert statistics.median(run.per_row for run in runs) <= requests
    assert max(run.per_row for run in runs) <= requests + 2


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("workers", [8, 32])
def test_a_server_that_refuses_at_random_is_not_asked_more_slowly(
    share: float, workers: int
) -> None:
    def times(pacer: Callable[[], Pacer]) -> list[Run]:
        return [
            simulate(AtRandom(share, seed), 600, workers, seed=seed, pacer=pacer())
            for seed in range(10)
        ]

    free, paced = times(Never), times(Pacer)
    fast = [one.most / other.most for one, other in zip(free, paced, strict=True)]
    assert statistics.median(fast) > 0.9
    assert statistics.mean(fast) > 0.8
    assert sum(run.lost for run in paced) == 0


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_nor_is_it_with_an_adaptive_number_of_workers(share: float) -> None:
    settled = []
    for seed in SEEDS:
        limit = AdaptiveLimit(Adaptive(maximum=64))
        run = simulate(AtRandom(share, seed), 2000, 64, seed=seed, adaptive=limit)
        assert run.lost == 0
        settled.append(max(found for _, found in limit.path[len(limit.path) // 2 :]))
    assert statistics.median(settled) > 32


@pytest.mark.parametrize("rows", [30, 300, 3000])
def test_a_server_that_accepts_nothing_fails_as_fast_as_ever(rows: int) -> None:
    for seed in SEEDS:
        run = simulate(AtRandom(1, seed), rows, 16, seed=seed)
        assert (run.lost, run.paced) == (rows, 0)
        assert run.end < 3 + rows * 3 * 0.02 / 16


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_server_that_flaps_loses_no_row(adaptive: bool) -> None:
    for seed in SEEDS:
        limit = AdaptiveLimit(Adaptive(maximum=64)) if adaptive else None
        run = simulate(Flapping(seed), 3000, 64, seed=seed, adaptive=limit)
        assert run.lost == 0
        assert run.per_row < 3


def test_an_adaptive_run_uses_a_bucket_well() -> None:
    for seed in SEEDS:
        limit = AdaptiveLimit(Adaptive(maximum=64))
        run = simulate(Bucket(40, 40), 1500, 64, seed=seed, adaptive=limit)
        assert (run.lost, run.end < 1500 / 40 / 0.7) == (0, True)


def test_a_server_that_changes_its_kind_is_not_held_down() -> None:
    """A bucket that becomes a server that refuses at random, such as behind a new gateway."""
    runs = [
        simulate(Later(Bucket(20, 20), 10, AtRandom(0.5, seed)), 1500, 32, seed=seed)
        for seed in range(10)
    ]
    assert statistics.median(run.most for run in runs) < 75  # at 20 a second


def test_without_a_refusal_nothing_is_counted() -> None:
    pacer = Pacer()
    run = simulate(Slots(99), 100, 32, pacer=pacer)
    assert (run.per_row, run.paced, pacer.on) == (1.0, 0.0, False)


def test_it_lets_go_when_all_is_well_again() -> None:
    pacer = Pacer()
    simulate(Later(Bucket(10, 10), 5, AtRandom(0, 0)), 2000, 32, pacer=pacer)
    assert not pacer.on


events = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "refused", "refused", "good", "other", "wait"]),
        st.sampled_from([0.0, 0.0, 1e-6, 0.02, 0.3, 10.0]),  # seconds since the last one
        st.integers(1, 40),  # so often
    ),
    max_size=60,
)


@given(events)
def test_whatever_happens_a_start_waits_no_longer_than_two_seconds(
    history: list[tuple[str, float, int]],
) -> None:
    pacer, now, running, row = Pacer(), 0.0, dict[int, float](), 0
    pacer.refused(-1, 0.0, 0.0)
    for event, seconds, times in history:
        for _ in range(times):
            now += seconds
            if pacer.on:
                until = pacer.until(now)
                assert now <= until <= now + 2.0 + 1e-6
                assert pacer.until(until) <= until or not pacer.on
            if event == "start":
                now = max(now, pacer.until(now)) if pacer.on else now
                row += 1
                running[row] = now
                if pacer.on:
                    pacer.started(row, now)
            elif running and event != "wait":
                one = next(iter(running))
                start = running.pop(one)
                if event == "refused":
                    pacer.refused(one, start, now)
                elif pacer.on:
                    pacer.ended(one, accepted=event == "good")


# -- against real servers ----------------------------------------------------------------------


class FewAtOnce:
    """Refuses what comes while it works on ``slots`` requests; works on them until ``enough``."""

    def __init__(self, slots: int, status: int):
        self.slots, self.status = slots, status
        self.busy = 0
        self.enough = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        with self._lock:
            if self.busy >= self.slots:
                return Status(self.status, {"error": "busy"})
            self.busy += 1
        self.enough.wait(30)
        with self._lock:
            self.busy -= 1
        return messages[-1]["content"]


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_real_server_that_refuses_most_of_all_loses_no_row_and_the_run_shows_it(
    engine: str, status: int
) -> None:
    rule = FewAtOnce(2, status)  # while its first requests run, all others are refused
    frame = pd.DataFrame({"review": [f"r{i}" for i in range(60)]})
    limited: set[str] = set()

    class Observer:
        def on_event(self, event: Any) -> None:
            if event.type == "worker.limited":
                limited.add(event.data["reason"])
                rule.enough.set()

    with serve(rule) as server:
        run = frame.llm.parallel_map(
            "{review}",
            model=revkit.Ollama("m", host=server.url),
            engine=engine,
            max_workers=8,
            retry=Retry(initial=0.1, maximum=0.5, attempts=30),
            observer=Observer(),
        )
    assert run.frame["response"].tolist() == frame["review"].tolist()
    assert limited == {"pacing"}
    assert run.metrics.paced_s > 0
    assert run.metrics.outages == 0
    assert "slower starts after many refusals" in run.report()
    assert "slowed after refusals" in str(
        [text.get_text() for text in run.plot_timeline().figure.axes[1].get_legend().get_texts()]
    )
