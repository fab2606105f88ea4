"""How well ``Adaptive`` finds the knee of simulated servers: ``python benchmarks/adaptive.py PNG``.

Prints tables, and draws the limit over time for servers of 4, 32 and 200 slots, of which half go
away in mid-run. All is virtual time, in units of the mean service time. Texts have a log-normal
length (mean 64 words), the service time of one is proportional to its length and log-normal about
that, and 2 % of all attempts are answered 429 at random.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from revkit.scheduling.adaptive import Adaptive, AdaptiveLimit
from revkit.scheduling.policy import Retry

ROWS = {4: 3_000, 32: 10_000, 200: 40_000}  # by slots
SEEDS = range(10)


class Limit(Protocol):
    @property
    def limit(self) -> int: ...
    def settled(self, *, start: float, end: float, running: int, outcome: Any) -> None: ...


@dataclass
class Server:
    """Works on so many requests at once; the others wait in the order they came.

    Args:
        slots: how many.
        queues: False answers 429 instead of letting a request wait.
        growth: how much longer all slots take than one alone, as where a GPU batches requests.
        sigma: of the log-normal service time of a text of a given length; 0 is a constant, for
            texts of every length.
        words: "log-normal", or "bimodal" for short and long ones.
        refused: share of attempts that are answered 429 at random.
        refusal: how long that takes.
    """

    slots: int
    queues: bool = True
    growth: float = 0.0
    sigma: float = 0.5
    words: str = "log-normal"
    refused: float = 0.02
    refusal: float = 0.02

    def text(self, chance: random.Random) -> float:
        """Length of a text, as a multiple of the mean."""
        if self.words == "log-normal":
            return chance.lognormvariate(-(0.6**2) / 2, 0.6)
        short = chance.random() < 0.7
        return chance.lognormvariate(0, 0.2) * (20 if short else 300) / 104

    def seconds(self, text: float, busy: int, chance: random.Random) -> float:
        """Service time of a text while so many slots are busy, this one included."""
        slower = 1 + self.growth * busy / self.slots
        if not self.sigma:
            return slower
        return slower * text * chance.lognormvariate(-(self.sigma**2) / 2, self.sigma)


@dataclass
class Change:
    """Of the server, when a share of the rows is answered."""

    slots: int
    after: float = 0.5
    slower: float = 1.0  #: factor on the service times


@dataclass
class Run:
    """What came of a simulated run."""

    end: float = 0.0
    changed: float = 0.0  #: when the server changed
    answered: list[float] = field(default_factory=list)  #: when
    refused: int = 0
    failed: int = 0  #: rows that were refused as often as ``Retry`` allows


@dataclass
class Knows:
    """An oracle: the limit is the server's slots at any time."""

    server: Server
    maximum: int = 256

    @property
    def limit(self) -> int:
        return min(self.server.slots, self.maximum)

    def settled(self, **_: Any) -> None: ...


@dataclass
class Fixed:
    limit: int

    def settled(self, **_: Any) -> None: ...


def simulate(
    control: Limit, server: Server, rows: int, seed: int = 0, change: Change | None = None
) -> Run:
    """Run rows through a server with as many attempts at once as ``control`` lets run."""
    chance = random.Random(seed)
    retry, run = Retry(), Run()
    now, slower, events = 0.0, 1.0, 0
    busy = running = started = 0
    waiting: deque[tuple[float, float, int]] = deque()  # start, text, attempt
    ending: list[tuple[float, int, bool, tuple[float, float, int]]] = []
    again: list[tuple[float, float, int]] = []  # when, text, attempt

    def serve(job: tuple[float, float, int]) -> None:
        nonlocal busy, events
        busy, events = busy + 1, events + 1
        done = now + slower * server.seconds(job[1], busy, chance)
        heapq.heappush(ending, (done, events, True, job))

    while True:
        while running < control.limit:
            if again and again[0][0] <= now:
                _, text, attempt = heapq.heappop(again)
            elif started < rows:
                started, text, attempt = started + 1, server.text(chance), 1
            else:
                break
            running += 1
            full = busy >= server.slots
            if chance.random() < server.refused or (full and not server.queues):
                events += 1
                when = now + server.refusal * chance.uniform(0.5, 1.5)
                heapq.heappush(ending, (when, events, False, (now, text, attempt)))
            elif full:
                waiting.append((now, text, attempt))
            else:
                serve((now, text, attempt))
        if again and running < control.limit and (not ending or again[0][0] < ending[0][0]):
            now = again[0][0]
            continue
        if not ending:
            run.end = now
            return run
        now, _, ok, (start, text, attempt) = heapq.heappop(ending)
        if ok:
            busy -= 1
            run.answered.append(now)
            if change and not run.changed and len(run.answered) >= change.after * rows:
                run.changed, server.slots, slower = now, change.slots, change.slower
            while waiting and busy < server.slots:
                serve(waiting.popleft())
        else:
            run.refused += 1
            if attempt < retry.attempts:
                wait = retry.wait(attempt, chance=chance.random())
                heapq.heappush(again, (now + wait, text, attempt + 1))
            else:
                run.failed += 1
        outcome = "ok" if ok else "overloaded"
        control.settled(start=start, end=now, running=running, outcome=outcome)
        running -= 1


def stretches(path: list[tuple[float, int]], start: float, end: float) -> list[tuple[float, int]]:
    """How long each limit was held between two times."""
    ends = [*(time for time, _ in path[1:]), math.inf]
    held = [
        (min(until, end) - max(time, start), limit)
        for (time, limit), until in zip(path, ends, strict=True)
    ]
    return [(seconds, limit) for seconds, limit in held if seconds > 0]


def median_limit(path: list[tuple[float, int]], start: float, end: float) -> int:
    """The limit below and above which it was for half of the time."""
    held = sorted(stretches(path, start, end), key=lambda one: one[1])
    left = sum(seconds for seconds, _ in held) / 2
    for seconds, limit in held:
        left -= seconds
        if left <= 0:
            return limit
    return held[-1][1]


def near(path: list[tuple[float, int]], start: float, end: float, knee: int) -> float:
    """Share of the time in which the limit was within 20 % of the knee."""
    held = stretches(path, start, end)
    inside = sum(seconds for seconds, limit in held if abs(limit - knee) <= 0.2 * knee)
    return inside / sum(seconds for seconds, _ in held)


def settling_time(path: list[tuple[float, int]], start: float, end: float, knee: int) -> float:
    """Until the limit is within 20 % of the knee for most of the 20 service times that follow."""
    for time in [start, *(time for time, _ in path if start < time < end)]:
        if near(path, time, min(time + 20, end), knee) > 0.5:
            return time - start
    return math.inf


@dataclass
class Verdict:
    """On one run: of both parts of it where the server changed, else of one."""

    settled: list[int]  #: median limit in the last half of a part
    ratio: list[float]  #: of that to the knee
    near: list[float]  #: share of that half in which it was within 20 % of the knee
    time: list[float]  #: to settle, in mean service times
    rows: list[int]  #: to settle
    lost: float  #: share of the throughput of an oracle that knows the knee
    refused: float  #: attempts that were answered 429, per row
    failed: float  #: share of the rows
    path: list[tuple[float, int]]
    run: Run


def judge(
    server: dict[str, Any],
    rows: int,
    seed: int,
    change: Change | None = None,
    maximum: int = 256,
) -> Verdict:
    control = AdaptiveLimit(Adaptive(maximum=maximum))
    run = simulate(control, Server(**server), rows, seed, change)
    changing = Server(**server)
    best = simulate(Knows(changing, maximum), changing, rows, seed, change)
    parts = [(0.0, run.changed or run.end, server["slots"])]
    if change:
        parts.append((run.changed, run.end, change.slots))
    told = Verdict([], [], [], [], [], 1 - best.end / run.end, 0, 0, control.path, run)
    told.refused, told.failed = run.refused / rows, run.failed / rows
    for start, end, slots in parts:
        knee, middle = min(slots, maximum), (start + end) / 2
        told.settled.append(median_limit(control.path, middle, end))
        told.ratio.append(told.settled[-1] / knee)
        told.near.append(near(control.path, middle, end, knee))
        told.time.append(settling_time(control.path, start, end, knee))
        settled_at = start + told.time[-1]
        told.rows.append(sum(start < time <= settled_at for time in run.answered))
    return told


def line(name: str, verdicts: list[Verdict], knees: list[int]) -> str:
    """Medians over the seeds, and of the ratios the extremes."""
    cells = [f"{name:34}"]
    for part in (0, 1):
        if part >= len(knees):
            cells.append(" " * 52)
            continue
        ratios = [v.ratio[part] for v in verdicts]
        cells.append(
            f"{knees[part]:4} {statistics.median(v.settled[part] for v in verdicts):6.1f} "
            f"{statistics.median(ratios):5.2f} ({min(ratios):.2f}–{max(ratios):.2f}) "
            f"{statistics.median(v.near[part] for v in verdicts):5.0%} "
            f"{statistics.median(v.time[part] for v in verdicts):6.0f} "
            f"{statistics.median(v.rows[part] for v in verdicts):7.0f} "
        )
    cells.append(f"{statistics.median(v.lost for v in verdicts):6.1%}")
    cells.append(f"{statistics.median(v.refused for v in verdicts):6.1%}")
    cells.append(f"{statistics.median(v.failed for v in verdicts):7.2%}")
    return " |".join(cells)


def tables() -> dict[int, Verdict]:
    """Print them; a run of each of the three servers, to be drawn."""
    part = "knee median ratio (extremes)  near   time    rows "
    print(f"{'':34} |{part} |{part} |  lost |   429 | failed")
    drawn = {}
    for slots, rows in ROWS.items():
        change = Change(slots // 2)
        verdicts = [judge({"slots": slots}, rows, seed, change) for seed in SEEDS]
        drawn[slots] = verdicts[0]
        print(line(f"{slots} slots, half go away", verdicts, [slots, slots // 2]), flush=True)
    endless = 10**9
    others: list[tuple[str, dict[str, Any], int, Change | None]] = [
        ("no queue: 429 above 4", {"slots": 4, "queues": False}, 3_000, Change(2)),
        ("no queue: 429 above 32", {"slots": 32, "queues": False}, 10_000, Change(16)),
        ("no queue: 429 above 200", {"slots": 200, "queues": False}, 40_000, Change(100)),
        ("no limit", {"slots": endless}, 15_000, None),
        ("no limit, constant latency", {"slots": endless, "sigma": 0}, 15_000, None),
        ("8, batching, growth 0.5", {"slots": 8, "growth": 0.5}, 5_000, Change(4)),
        ("32, batching, growth 0.5", {"slots": 32, "growth": 0.5}, 10_000, Change(16)),
        ("32, batching, growth 1", {"slots": 32, "growth": 1}, 10_000, Change(16)),
        ("32, constant latency", {"slots": 32, "sigma": 0}, 10_000, Change(16)),
        ("4, bimodal lengths", {"slots": 4, "words": "bimodal"}, 3_000, Change(2)),
        ("32, bimodal lengths", {"slots": 32, "words": "bimodal"}, 10_000, Change(16)),
        ("32, no 429", {"slots": 32, "refused": 0}, 10_000, Change(16)),
        ("32, 10 % of 429 at random", {"slots": 32, "refused": 0.1}, 10_000, Change(16)),
        ("4, doubles", {"slots": 4}, 4_000, Change(8)),
        ("16, doubles", {"slots": 16}, 10_000, Change(32)),
        ("100, doubles", {"slots": 100}, 40_000, Change(200)),
        ("64, an eighth is left", {"slots": 64}, 15_000, Change(8)),
        ("8, becomes 64", {"slots": 8}, 15_000, Change(64, after=0.3)),
        ("32, 3 times slower, same knee", {"slots": 32}, 10_000, Change(32, slower=3)),
        ("1", {"slots": 1}, 2_000, None),
        ("32, 300 rows", {"slots": 32}, 300, None),
    ]
    for name, server, rows, change in others:
        verdicts = [judge(server, rows, seed, change) for seed in SEEDS]
        knees = [min(256, server["slots"]), *([change.slots] if change else [])]
        print(line(name, verdicts, knees), flush=True)
    few = []
    for seed in SEEDS:
        adaptive = simulate(AdaptiveLimit(Adaptive()), Server(32), 12, seed).end
        few.append(adaptive / simulate(Fixed(4), Server(32), 12, seed).end)
    print(f"12 rows: {statistics.median(few):.2f} of the time of 4 fixed workers")
    return drawn


def draw(runs: dict[int, Verdict], to: Path) -> None:
    """The limit over time, with the knee."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    for axes, (slots, told) in zip(figure.subplots(len(runs)), runs.items(), strict=True):
        times, limits = zip(*told.path, (told.run.end, told.path[-1][1]), strict=True)
        axes.step(times, limits, where="post", color="#5b9bd5", linewidth=1.2, label="limit")
        axes.step(
            [0, told.run.changed, told.run.end],
            [slots, slots // 2, slots // 2],
            where="post",
            color="#a3202f",
            linestyle="--",
            linewidth=1.2,
            label="knee: the server's slots",
        )
        axes.set_xlim(0, told.run.end)
        axes.set_ylim(0, 2.2 * slots)
        axes.set_ylabel("attempts at once")
        axes.set_title(
            f"{slots} slots; {slots // 2} from the middle of {ROWS[slots]:,} rows on",
            loc="left",
            fontsize=10,
        )
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("time, in mean service times")
    figure.axes[0].legend(frameon=False, loc="upper right")
    figure.savefig(to, dpi=144)


if __name__ == "__main__":
    drawn = tables()
    if len(sys.argv) > 1:
        draw(drawn, Path(sys.argv[1]))
