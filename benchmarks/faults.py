"""What is lost where a third of all attempts fails, and what a kill costs: prints both tables.

    python benchmarks/faults.py [--rows 2000] [--workers 32]

The server is that of the tests: it fails by plan, on loopback, in every way that a server can
fail. A row is lost where it ends without its values, and wrong where it has other values than its
own. The faults at the end of the table would come again with each attempt, so they are never tried
again: each is met by ten rows more, and is their error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from failing import FAULTS, TASK, Faults, Plan, a_third, ollama, reviews, right
from kills import Moment, history, random_moments
from servers import serve

from revkit import Retry

ENGINES = ("async", "thread")


def met(rows: int) -> Faults:
    final = [name for name, fault in FAULTS.items() if fault.again == "never"] * 10
    return {**a_third(range(rows)), **{rows + i: [name] for i, name in enumerate(final)}}


def matrix(engine: str, faults: Faults, workers: int) -> None:
    plan, df = Plan(faults), reviews(len(faults))
    with serve(plan) as server:
        run = df.llm.parallel_map(
            TASK,
            model=ollama(server.url, timeout=1.0),
            engine=engine,
            max_workers=workers,
            retry=Retry(attempts=12, initial=0.001, maximum=0.01),
            store=False,
        )
        requests = len(server.chats)
    lost, wrong = Counter[str](), Counter[str]()
    for row, (status, is_right) in enumerate(zip(run.rows["status"], right(df), strict=True)):
        for name in {*faults[row], "all"}:
            lost[name] += status != "ok"
            wrong[name] += status == "ok" and not is_right
    hits = {**plan.hits, "all": plan.hits.total()}
    shown = f"{len(df):,} rows, {workers} workers, engine={engine!r}, {requests:,} requests"
    print(f"\n{shown}, of which {hits['all'] / requests:.0%} failed")
    print(f"{'fault':16}{'attempts hit':>14}{'rows lost':>12}{'rows wrong':>12}")
    for name in [*FAULTS, "all"]:
        print(f"{name:16}{hits.get(name, 0):>14,}{lost[name]:>12}{wrong[name]:>12}")


def kills(engine: str, moments: list[Moment], rows: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "replies.sqlite")
        lives = history(path, moments, rows=rows, workers=workers, engine=engine)
    missing = rows - len(lives[-2].kept)
    lost = [len(set(life.asked) - set(life.kept)) for life in lives[:-1]]
    print(
        f"{rows} rows, {workers} workers, engine={engine!r}, {len(moments)} kill(s): "
        f"{len(lives[-1].asked)} requests after the last kill for the {missing} rows that were "
        f"missing; {sum(len(life.asked) for life in lives)} in all; "
        f"lost in flight at each kill: {lost}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=32)
    options = parser.parse_args()
    for engine in ENGINES:
        matrix(engine, met(options.rows), options.workers)
    print()
    for engine in ENGINES:
        kills(engine, [Moment("request", 150)], rows=300, workers=8)
        kills(engine, random_moments(seed=6, kills=10, most=40), rows=300, workers=8)


if __name__ == "__main__":
    main()
