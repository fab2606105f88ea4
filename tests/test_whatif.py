"""What-if tells what other runs then do; and where a run cannot know, it says so."""

from __future__ import annotations

import asyncio
import heapq
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from records import empty_record

import revkit
import revkit.testing
from revkit import Adaptive, RateLimit, UsageError
from revkit.plot import draw_what_if
from revkit.results.fitting import fit
from revkit.results.forecast import WhatIf
from revkit.results.replay import replay
from revkit.results.server import Attempts, Server
from revkit.results.whatif import predict
from revkit.scheduling.events import Attempt, Attempted, Decision, Success
from revkit.testing import FakeModel

ROWS = 150
FIGURES = ["wall_s", "rows_per_s", "p95_ms", "mean_concurrency"]


def base_time(text: str) -> float:
    """Seconds that a row needs of the server alone; the same in every run."""
    return random.Random(text).lognormvariate(0, 0.5)


def queueing(slots: int, seconds: Callable[[str], float] = base_time, **options: Any) -> FakeModel:
    """A model on so many slots, in which later requests wait their turn."""
    free = [0.0] * slots

    def latency(text: str) -> float:
        now = asyncio.get_running_loop().time()
        done = max(now, heapq.heappop(free)) + seconds(text)
        heapq.heappush(free, done)
        return done - now

    return FakeModel(lambda text: "positive", latency=latency, clock="virtual", **options)


def run_of(model: FakeModel, rows: int = ROWS, **options: Any) -> revkit.ParallelResult:
    frame = pd.DataFrame({"review": [f"review {n}" for n in range(rows)]})
    run: revkit.ParallelResult = frame.llm.parallel_map(model=model, **options)
    return run


def simulated(
    work: np.ndarray, server: Server, workers: Callable[[int], int]
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of rows on a server, step by step and with none of revkit's code.

    ``workers`` says how many there are when so many rows are done.
    """
    slots = 10**9 if server.slots is None else server.slots
    start, end = np.zeros(len(work)), np.zeros(len(work))
    left: dict[int, float] = {}
    queue: list[int] = []
    now, begun = 0.0, 0
    for done in range(len(work)):
        while len(left) + len(queue) < workers(done) and begun < len(work):
            start[begun] = now
            if server.shares or len(left) < slots:
                left[begun] = work[begun]
            else:
                queue.append(begun)
            begun += 1
        speed = min(1.0, slots / len(left)) if server.shares else 1.0
        one = min(left, key=left.__getitem__)
        seconds = left.pop(one) / speed
        left = {row: rest - seconds * speed for row, rest in left.items()}
        now += seconds
        end[one] = now
        if queue:
            row = queue.pop(0)
            left[row] = work[row]
    return start, end


def attempts_of(start: Any, end: Any, ok: Any = None) -> Attempts:
    start, end = np.asarray(start, float), np.asarray(end, float)
    good = np.ones(len(start), bool) if ok is None else np.asarray(ok)
    return Attempts.of(np.arange(len(start)), start, end, good)


def alone(work: Any) -> Attempts:
    """Attempts that never met, so that their base times are known."""
    start = np.arange(len(work)) * 1e3
    return attempts_of(start, start + np.asarray(work))


# -- against other runs -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [8, 16, 32])
def test_a_run_beyond_the_slots_tells_what_all_others_take(workers: int) -> None:
    what_if = run_of(queueing(4), max_workers=workers).what_if([1, 2, 4, 8, 16, 32])
    others = {other: run_of(queueing(4), max_workers=other) for other in what_if.frame.index}
    assert what_if.slots == 4
    assert not what_if.shares
    for other, run in others.items():
        told = what_if.frame.loc[other]
        assert told["wall_s"] == pytest.approx(run.metrics.wall_s, rel=1e-3)
        assert told["rows_per_s"] == pytest.approx(run.metrics.rows_per_s, rel=1e-3)
        assert told["p95_ms"] == pytest.approx(run.latency["p95"], rel=1e-3)
        assert told["mean_concurrency"] == pytest.approx(run.metrics.mean_concurrency, rel=1e-3)


def test_the_base_time_is_without_the_wait_at_the_server() -> None:
    run = run_of(queueing(4), max_workers=16)
    mean_ms = float(np.mean([base_time(f"review {n}") for n in range(ROWS)])) * 1e3
    assert run.latency["mean"] > 3 * mean_ms
    assert run.what_if().base_service_ms == pytest.approx(mean_ms, rel=1e-3)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_where_nothing_waited_more_workers_cannot_be_told(workers: int) -> None:
    run = run_of(queueing(4), max_workers=workers)
    what_if = run.what_if([1, 2, 4, 5, 64])
    assert what_if.slots is None
    assert "cannot be told" in what_if.basis
    for other in what_if.frame.index:
        told = what_if.frame.loc[other]
        if other > workers:
            assert told[FIGURES].isna().all()
            assert told["basis"].startswith(f"cannot tell: never more than {workers} at once")
        else:
            wall_s = run_of(queueing(4), max_workers=other).metrics.wall_s
            assert told["wall_s"] == pytest.approx(wall_s, rel=1e-3)


def test_slots_that_are_given_are_used() -> None:
    what_if = run_of(queueing(4), max_workers=2).what_if([8], slots=4)
    wall_s = run_of(queueing(4), max_workers=8).metrics.wall_s
    assert what_if.slots == 4
    assert what_if.frame.loc[8, "wall_s"] == pytest.approx(wall_s, rel=1e-3)
    assert what_if.frame.loc[8, "basis"] == "4 slots, as given"


def test_the_runs_own_workers_stand_there_as_measured() -> None:
    run = run_of(queueing(4), max_workers=8)
    what_if = run.what_if([16, 2, 16])
    assert what_if.frame.index.tolist() == [2, 8, 16]
    told = what_if.frame.loc[8]
    assert what_if.measured == 8
    assert told["basis"] == "measured: this run"
    assert told["wall_s"] == run.metrics.wall_s
    assert told["rows_per_s"] == pytest.approx(run.metrics.rows_per_s)
    assert told["p95_ms"] == pytest.approx(run.latency["p95"])
    assert told["mean_concurrency"] == pytest.approx(run.metrics.mean_concurrency)


def test_an_adaptive_run_shows_the_slots_too() -> None:
    run = run_of(queueing(6), rows=400, max_workers=Adaptive(maximum=32))
    what_if = run.what_if([4, 16])
    assert what_if.measured is None
    assert what_if.slots == 6
    assert what_if.frame.index.tolist() == [4, 16]
    for other in (4, 16):
        wall_s = run_of(queueing(6), rows=400, max_workers=other).metrics.wall_s
        assert what_if.frame.loc[other, "wall_s"] == pytest.approx(wall_s, rel=0.01)


def test_there_are_no_more_workers_than_rows() -> None:
    what_if = run_of(queueing(99), rows=5, max_workers=5).what_if([1000])
    assert what_if.frame.loc[1000, "wall_s"] == pytest.approx(what_if.frame.loc[5, "wall_s"])


def test_a_run_that_a_rate_held_back_tells_nothing() -> None:
    run = run_of(queueing(99), max_workers=8, rate_limit=RateLimit(requests_per_minute=60))
    what_if = run.what_if([1, 8, 16], slots=99)
    assert what_if.frame.loc[[1, 16], FIGURES].isna().all(axis=None)
    assert "idle" in what_if.frame.loc[16, "basis"]
    assert "a rate limit" in what_if.basis
    assert what_if.frame.loc[8, "wall_s"] == run.metrics.wall_s


def test_fewer_than_ever_ran_is_called_an_upper_bound() -> None:
    basis = run_of(queueing(4), max_workers=16).what_if([2, 4]).frame["basis"]
    assert "an upper bound" in basis[2]
    assert basis[4] == "4 slots, fitted"


def test_attempts_that_are_made_again_are_replayed_with_their_wait() -> None:
    broken = {"review 3", "review 40"}

    def answer(text: str) -> str:
        if text in broken:
            broken.remove(text)
            raise revkit.ConnectionFailed("it broke")
        return "positive"

    model = FakeModel(answer, latency=2.0, clock="virtual")
    run = run_of(model, rows=60, max_workers=4, retry=revkit.Retry(initial=4.0))
    assert run.metrics.retries == 2
    told = run.what_if([1]).frame.loc[1]
    assert told["wall_s"] == pytest.approx(62 * 2.0)
    assert told["mean_concurrency"] == pytest.approx(1.0)


def test_rows_from_the_store_cost_nothing(tmp_path: Path) -> None:
    class Kept(FakeModel):
        keeps_replies = True

    frame = pd.DataFrame({"review": [f"review {n}" for n in range(40)]})

    def run(rows: int) -> revkit.ParallelResult:
        model = Kept(lambda text: "positive", latency=1.0, clock="virtual")
        done: revkit.ParallelResult = frame.head(rows).llm.parallel_map(
            model=model, max_workers=4, store=tmp_path / "store.sqlite"
        )
        return done

    run(20)
    half = run(40)
    assert half.metrics.from_store == 20
    assert half.what_if([1]).frame.loc[1, "wall_s"] == pytest.approx(20.0, rel=1e-2)
    with pytest.raises(UsageError, match="nothing to replay"):
        run(40).what_if()


# -- arguments --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> revkit.ParallelResult:
    model = FakeModel(lambda text: "positive", latency=1.0, clock="virtual")
    return run_of(model, rows=6, max_workers=3)


@pytest.mark.parametrize("wrong", [[], [0], [4, -1], [True], [2.0], ["2"], "16", 16, [None]])
def test_numbers_of_workers_are_whole_and_positive(small: Any, wrong: Any) -> None:
    with pytest.raises(UsageError, match="max_workers"):
        small.what_if(wrong)


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "4"])
def test_slots_are_whole_and_positive(small: Any, wrong: Any) -> None:
    with pytest.raises(UsageError, match="slots"):
        small.what_if(slots=wrong)


def test_numbers_may_come_from_numpy_and_from_a_generator(small: Any) -> None:
    assert small.what_if(np.array([1, 2])).frame.index.tolist() == [1, 2, 3]
    assert small.what_if(n for n in (1, 2)).frame.index.tolist() == [1, 2, 3]


# -- the frame, the cell, the plot ------------------------------------------------------------


def test_the_frame_has_its_dtypes(small: Any) -> None:
    frame = small.what_if([64, 1]).frame
    assert frame.index.name == "max_workers"
    assert frame.index.dtype == "int64"
    assert frame.columns.tolist() == [*FIGURES, "basis"]
    assert (frame[FIGURES].dtypes == "float64").all()
    assert frame["basis"].dtype == "string"
    assert frame["basis"].notna().all()


def test_what_time_decides_is_marked_in_html_and_not_in_the_repr(small: Any) -> None:
    what_if = small.what_if([1, 2, 64])
    assert not re.search("[0-9]", repr(what_if))
    shown = what_if._repr_html_()
    assert "<td>64</td>" in shown
    assert "6.00 s" in shown
    assert "n/a" in shown
    unmarked = re.sub('<span class="revkit-time">[^<]*</span>', "", shown)
    numbers = re.findall(
        r"\b[0-9]+", re.sub("<style>.*?</style>|<[^>]*>", " ", unmarked, flags=re.S)
    )
    assert numbers == ["1", "2", "3", "64"]


def test_text_is_escaped_in_html(small: Any) -> None:
    what_if: WhatIf = small.what_if([1])
    what_if.basis = "<b>bold</b>"
    assert "<b>" not in what_if._repr_html_()


def test_the_plot_has_what_the_frame_has(small: Any) -> None:
    what_if = small.what_if([1, 2, 64])
    ax = what_if.plot()
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert lines["predicted"].get_xydata().tolist() == [[1, 6.0], [2, 3.0], [3, 2.0]]
    assert lines["measured"].get_xydata().tolist() == [[3, 2.0]]
    assert lines["cannot tell"].get_xdata().tolist() == [64]
    assert not any("slots" in str(label) for label in lines)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "3", "64"]
    png, size = ax._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert size["width"] > size["height"]


def test_the_plot_shows_the_slots_and_draws_into_the_users_axes(small: Any) -> None:
    from matplotlib.figure import Figure

    mine = Figure().add_subplot()
    assert small.what_if([1, 8], slots=4).plot(ax=mine) is mine
    (slots,) = (line for line in mine.get_lines() if line.get_label() == "4 slots")
    assert list(slots.get_xdata()) == [4, 4]


def test_a_plot_of_nothing_that_can_be_told_is_drawn(tmp_path: Path) -> None:
    nothing = pd.Series([float("nan")], index=[4])
    ax = draw_what_if(nothing, measured=None, slots=None)
    ax.figure.savefig(tmp_path / "nothing.png")
    with Image.open(tmp_path / "nothing.png") as picture:
        assert picture.size[0] > 100


# -- the replay -------------------------------------------------------------------------------

TIMES = st.lists(st.floats(0.01, 10), min_size=1, max_size=40)
SERVERS = st.builds(Server, st.none() | st.integers(1, 8), st.booleans())


def walls(times: list[float], server: Server, workers: int) -> tuple[Any, Any]:
    """Replay rows of known base times, on whatever server."""
    attempts = alone(times)
    return replay(attempts, server, workers)


@given(times=TIMES, server=SERVERS)
def test_one_worker_takes_the_sum_of_the_base_times(times: list[float], server: Server) -> None:
    start, end = walls(times, server, 1)
    assert end.max() == pytest.approx(sum(times))
    np.testing.assert_allclose(end - start, times, rtol=1e-6, atol=1e-9)


@given(times=TIMES, server=SERVERS, workers=st.integers(1, 20))
def test_the_server_is_neither_idle_nor_faster_than_it_can(
    times: list[float], server: Server, workers: int
) -> None:
    start, end = walls(times, server, workers)
    wall, least = end.max(), max(times)
    at_once = min(workers, server.slots or workers)
    assert wall >= max(sum(times) / at_once, least) * (1 - 1e-9)
    # Graham, "Bounds on multiprocessing timing anomalies", 1969: of any list schedule.
    assert wall <= (sum(times) / at_once + least * (workers - 1)) * (1 + 1e-9)
    if not server.shares:
        assert wall <= (sum(times) + least * (at_once - 1)) / at_once * (1 + 1e-9)
    assert (end - start).sum() / wall <= workers * (1 + 1e-9)
    assert (np.diff(start) >= 0).all()  # rows start in their order


@given(times=TIMES, slots=st.none() | st.integers(1, 8), workers=st.integers(1, 20))
def test_more_workers_never_take_longer(
    times: list[float], slots: int | None, workers: int
) -> None:
    few = walls(times, Server(slots), workers)[1].max()
    more = walls(times, Server(slots), workers + 1)[1].max()
    assert more <= few * (1 + 1e-9)


@given(times=TIMES, server=SERVERS, workers=st.integers(1, 12))
def test_the_replay_does_what_a_simulation_of_single_steps_does(
    times: list[float], server: Server, workers: int
) -> None:
    start, end = walls(times, server, workers)
    expected = simulated(np.array(times), server, lambda done: workers)
    np.testing.assert_allclose(start, expected[0], atol=1e-6)
    np.testing.assert_allclose(end, expected[1], atol=1e-6)


@given(times=TIMES, server=SERVERS, workers=st.integers(1, 12))
def test_with_its_own_workers_a_run_comes_out_as_it_was(
    times: list[float], server: Server, workers: int
) -> None:
    run = attempts_of(*simulated(np.array(times), server, lambda done: workers))
    again = replay(run, server, workers)
    np.testing.assert_allclose(again[1], run.end, atol=1e-6)


def test_what_a_run_took_before_and_after_its_attempts_it_takes_again() -> None:
    record = empty_record(2)
    for row, start in enumerate((5.0, 7.0)):
        done = Attempted(Attempt(row, 1, worker=0), start, start + 2, Success({}), Decision.OK)
        record.attempted(done)
    record.began, record.ended, record.workers = 2.0, 10.0, 1
    (one, two) = predict(record, [2], slots=4).each
    assert (one.wall_s, two.wall_s) == (8.0, 6.0)
    assert two.rows_per_s == pytest.approx(2 / 6)


def test_the_client_needs_its_gap_between_two_attempts() -> None:
    assert replay(alone([1.0] * 10), Server(), 1, gap=0.5)[1].max() == pytest.approx(14.5)


def test_a_row_that_waits_to_be_tried_again_holds_no_worker() -> None:
    # Row 0 fails at 1 s and is tried again 5 s later; rows 1 to 5 take 1 s each meanwhile.
    row = np.array([0, 1, 2, 3, 4, 5, 0])
    start = np.array([0.0, 10, 20, 30, 40, 50, 6])
    ok = np.array([False, *[True] * 6])
    attempts = Attempts.of(row, start, start + 1, ok)
    begun, end = replay(attempts, Server(), 1)
    assert end.max() == pytest.approx(7.0)
    retried = attempts.after[0]
    assert (begun[retried], end[retried]) == (6.0, 7.0)


# -- the fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [2, 3, 4])
def test_the_slots_are_found_where_many_waited(times: int) -> None:
    """An estimate: about one in 300 is off, mostly by one, so these are always the same runs."""
    wrong = []
    for slots in range(1, 13):
        chance = np.random.default_rng(slots)
        work = chance.lognormal(0, chance.uniform(0.2, 0.8), 300)
        workers = times * slots
        run = attempts_of(*simulated(work, Server(slots), lambda done, workers=workers: workers))
        if fit(run) != Server(slots):
            wrong.append(slots)
            continue
        for other in (workers // 2, 2 * workers):
            expected = simulated(work, Server(slots), lambda done, other=other: other)[1].max()
            assert replay(run, Server(slots), other)[1].max() == pytest.approx(expected, rel=0.01)
    assert len(wrong) <= 1


@examples(25)
@given(
    seed=st.integers(0, 10_000),
    workers=st.integers(1, 24),
    kind=st.sampled_from(["log-normal", "gamma", "constant", "nearly constant", "drifting"]),
)
def test_no_slots_are_found_where_there_are_none(seed: int, workers: int, kind: str) -> None:
    chance = np.random.default_rng(seed)
    work = {
        "log-normal": chance.lognormal(0, 0.7, 200),
        "gamma": chance.gamma(2, 0.5, 200),
        "constant": np.ones(200),
        "nearly constant": chance.normal(1, 0.002, 200),
        "drifting": np.linspace(0.5, 3, 200) * chance.lognormal(0, 0.3, 200),
    }[kind]
    run = attempts_of(*simulated(work, Server(), lambda done: workers))
    assert fit(run) == Server()


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_the_client_is_no_sign_of_slots(seed: int) -> None:
    chance = np.random.default_rng(seed)
    start, end = simulated(np.full(300, 1.002), Server(), lambda done: 4)
    start += chance.uniform(0.001, 0.002, 300)  # four at a time, which end one after the other
    end += chance.uniform(-0.001, 0.0, 300)
    assert fit(attempts_of(start, end)) == Server()


@pytest.mark.parametrize("slots", [3, 8])
def test_a_server_that_shares_is_known_by_a_run_whose_concurrency_varied(slots: int) -> None:
    work = np.random.default_rng(5).lognormal(0, 0.4, 600)
    sharing = Server(slots, shares=True)
    levels = [2, 4, 8, 16, 32, 16, 8, 4, 12, 2]
    run = attempts_of(*simulated(work, sharing, lambda done: levels[done // 60]))
    found = fit(run)
    assert found.shares
    assert found.slots == pytest.approx(slots, rel=0.15)
    for workers in (2, 8, 24):
        expected = simulated(work, sharing, lambda done, workers=workers: workers)[1].max()
        assert replay(run, found, workers)[1].max() == pytest.approx(expected, rel=0.1)


def test_attempts_that_the_server_refused_held_no_slot() -> None:
    work = np.random.default_rng(1).lognormal(0, 0.5, 300)
    start, end = simulated(work, Server(4), lambda done: 12)
    at = np.linspace(5, end.max() - 5, 60)  # answered 429 at once, while others waited
    refused = np.repeat([False, True], [300, 60])
    run = attempts_of(np.append(start, at), np.append(end, at + 0.01), ~refused)
    assert fit(run) == Server(4)
    alone_s = replay(run, Server(4), 1)[1].max()
    assert alone_s == pytest.approx(work.sum() + 60 * 0.01, abs=0.05)


def test_many_slots_are_found_to_the_unit() -> None:
    work = np.random.default_rng(2).lognormal(0, 0.5, 1_500)
    run = attempts_of(*simulated(work, Server(83), lambda done: 200))
    assert fit(run) == Server(83)


@pytest.mark.parametrize(("rows", "workers"), [(100, 8), (1000, 64), (2000, 16)])
def test_rows_that_all_take_as_long_tell_nothing_of_slots(rows: int, workers: int) -> None:
    """However many workers: none waited. A single slot would do, but for the first ones."""

    def latency(text: str) -> float:
        return 0.05 + random.Random(text).expovariate(1000.0)

    model = FakeModel(lambda text: "positive", latency=latency, clock="virtual")
    df = pd.DataFrame({"review": [f"review {n}" for n in range(rows)]})
    found = df.llm.parallel_map(model=model, max_workers=workers).what_if([1])
    assert found.slots is None
    assert found.frame.loc[1, "wall_s"] == pytest.approx(0.051 * rows, rel=0.05)
    assert "upper bound" in found.frame.loc[1, "basis"]


def test_the_report_has_what_the_frame_has(small: Any) -> None:
    report = small.what_if([1, 64]).report()
    assert str(small.what_if([1, 64])) == report
    assert "6.00 s" in report
    assert "cannot tell" in report
    assert max(map(len, report.splitlines())) <= 100
