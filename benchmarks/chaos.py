"""Trouble of every kind at random, and every promise checked: prints a table.

    python benchmarks/chaos.py [--minutes 30] [--seed 0] [--stories N]

A *story* is drawn from its seed: a task, a client, an engine, options, a server that is more or
less well, and one trouble, such as a kill at the 40th request. Its first act is one process (or two
at once) in that trouble. Its second act runs the same rows to the end, against a server that is
well. Troubles come at a request, not at a time, and the server keeps books of all that it was
asked. A promise that did not hold is printed with the seed of its story: ``--seed N --stories 1``
tells it again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pandas as pd
from failing import number_in
from servers import Answer, serve
from unwell import TEXT, TYPED, Unwell, reply, right, text

import revkit
from revkit import CancelToken, Interrupted, Retry, RunFailed

#: What happens in the first act; each as often as the others.
TROUBLES = (
    "nothing",
    "kill",
    "interrupt",
    "timeout",
    "cancel",
    "max_failures",
    "store deleted",
    "store damaged",
    "few descriptors",
    "two processes",
)
#: Seconds after which a process has got stuck. No story comes near it.
STUCK = 120
#: Tokens that the books count for each reply of a server that is well.
PROMPT, COMPLETION = 20, 8


@dataclass(frozen=True)
class Story:
    """What one seed stands for."""

    seed: int
    trouble: str
    at: int  #: the request at which it comes
    rows: int
    engine: str
    client: str
    workers: Any
    typed: bool
    store: str  #: "file", "directory" or "none"
    unwell: bool

    @classmethod
    def of(cls, seed: int) -> Story:
        chance = random.Random(f"story {seed}")
        rows = chance.choice([20, 60, 150, 400])
        trouble = TROUBLES[seed % len(TROUBLES)]
        return cls(
            seed,
            trouble,
            at=chance.randrange(1, rows),
            rows=rows,
            engine=chance.choice(["thread", "async"]),
            client=chance.choice(["ollama", "openai"]),
            workers=chance.choice([1, 4, 16, 64, "adaptive"]),
            typed=chance.random() < 0.6,
            # Without a store there is nothing to delete, and nothing to share.
            store="file"
            if trouble in ("store deleted", "store damaged", "two processes", "kill")
            else chance.choice(["file", "file", "directory", "none"]),
            unwell=chance.random() < 0.6,
        )


class Books:
    """A rule for the server, and what it was asked.

    Attributes:
        requests, asked: of the act at hand, in all and by row.
    """

    def __init__(self, story: Story):
        self._story = story
        self._unwell = Unwell(story.seed, typed=story.typed, away=(15, 400))
        self._is_well = not story.unwell
        self._lock = threading.Lock()
        self._trouble: Callable[[], object] | None = None
        self.requests = 0
        self.asked: Counter[int] = Counter()

    def begin(self, *, well: bool, trouble: Callable[[], object] | None = None) -> None:
        """Begin an act; ``trouble`` is called at the request that the story says."""
        with self._lock:
            self._is_well = self._is_well or well
            self._trouble = trouble
            self.requests = 0
            self.asked = Counter()

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        n = number_in(messages)
        with self._lock:
            self.requests += 1
            self.asked[n] += 1
            now = self._trouble if self.requests == self._story.at else None
            is_well = self._is_well
        if now is not None:
            now()
        if not is_well:
            return self._unwell(messages, body)
        said = json.dumps(right(n)) if self._story.typed else text(n)
        return reply(body, said, usage=(PROMPT, COMPLETION))

    def may_end_with(self, n: int) -> set[str]:
        """The types of error that a row may have after the first act."""
        return self._unwell.may_end_with(n)


# -- a process with one run in it ------------------------------------------------------------------


class Lines:
    """An observer that writes each event to a file at once, so that a kill leaves them there."""

    def __init__(self, path: Path):
        self._file = path.open("a", buffering=1)

    def on_event(self, event: Any) -> None:
        self._file.write(event.to_json() + "\n")


def child(said: str) -> None:
    """Run a story's rows, and write down what came of them."""
    import warnings

    warnings.simplefilter("ignore")
    given = json.loads(said)
    story, out = Story(**given["story"]), Path(given["out"])
    calm = given["calm"]
    if story.trouble == "few descriptors" and not calm:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    frame = pd.DataFrame({"review": [f"review {n}" for n in range(story.rows)]})
    token = CancelToken()
    options: dict[str, Any] = {
        "engine": story.engine,
        "max_workers": story.workers,
        "retry": Retry(attempts=4, initial=0.001, maximum=0.01),
        "store": given["store"] or False,
        "observer": Lines(Path(given["events"])),
        "cancel": token,
    }
    if not calm and story.trouble == "timeout":
        options["timeout"] = 0.001 * story.at
    if not calm and story.trouble == "max_failures":
        options["max_failures"] = 2
    if not calm and story.trouble == "cancel":
        seen = 0

        def progress(completed: int, total: int, row: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == story.at:
                token.cancel("enough")

        options["progress"] = progress
    model: revkit.Client
    if story.client == "ollama":
        model = revkit.Ollama("m", host=given["url"])
    else:
        model = revkit.OpenAICompatible("m", base_url=given["url"] + "/v1", api_key="")
    end = "done"
    try:
        run = frame.llm.parallel_map(TYPED if story.typed else TEXT, model=model, **options)
    except (RunFailed, Interrupted) as error:
        end, run = type(error).__name__, error.result
    rows = run.rows
    outputs = ["label", "number"] if story.typed else ["response"]
    columns = {name: [None if pd.isna(x) else x for x in frame[name]] for name in outputs}
    out.write_text(
        json.dumps(
            {
                "end": end,
                "status": rows["status"].tolist(),
                "error_type": [None if pd.isna(x) else x for x in rows["error_type"]],
                "error": [None if pd.isna(x) else x for x in frame["error"]],
                "columns": columns,
                "metrics": {k: v for k, v in dataclasses.asdict(run.metrics).items() if _plain(v)},
                "tokens": [run.usage.prompt_tokens, run.usage.completion_tokens],
            },
            default=int,
        )
    )


def _plain(value: Any) -> bool:
    return isinstance(value, int | float | str | type(None))


@dataclass
class Told:
    """What a process left: None where it was killed; and its events."""

    result: Mapping[str, Any] | None
    events: list[dict[str, Any]]
    code: int | None

    @property
    def settled(self) -> dict[int, str]:
        """Row -> the status that its event gave it."""
        return {
            event["data"]["item_index"]: event["data"]["status"]
            for event in self.events
            if event["type"] == "row.settled"
        }


class Process:
    """One child."""

    def __init__(self, story: Story, url: str, store: str, folder: Path, *, name: str, calm: bool):
        self._out, self._events = folder / f"{name}.json", folder / f"{name}.events"
        given = {
            "story": dataclasses.asdict(story),
            "url": url,
            "store": store,
            "out": str(self._out),
            "events": str(self._events),
            "calm": calm,
        }
        self._errors = (folder / f"{name}.stderr").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps(given)],
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )

    def told(self) -> Told:
        """Wait for its end."""
        try:
            code: int | None = self.process.wait(STUCK)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        events = []
        for line in self._events.read_text().splitlines() if self._events.exists() else ():
            try:
                events.append(json.loads(line))
            except ValueError:
                break  # the last line of one that was killed
        result = json.loads(self._out.read_text()) if self._out.exists() else None
        return Told(result, events, code)

    def stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-1500:]


# -- what must hold --------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What one story showed."""

    story: Story
    broken: list[str] = field(default_factory=list)
    ok: int = 0
    errors: int = 0
    unfinished: int = 0
    requests: int = 0
    again: int = 0  #: rows that were ok before, and asked once more in the second act

    def check(self, holds: bool, promise: str) -> None:
        if not holds:
            self.broken.append(promise)


def check_rows(verdict: Verdict, told: Told, books: Books, *, calm: bool) -> None:
    """Each row is accounted for, and has its own value or a true error."""
    story, result = verdict.story, told.result
    assert result is not None
    statuses = result["status"]
    counts = Counter(statuses)
    metrics = result["metrics"]
    verdict.check(len(statuses) == story.rows, "every row has a status")
    verdict.check(
        [counts[name] for name in ("ok", "error", "cancelled", "not_started")]
        == [metrics[name] for name in ("succeeded", "failed", "cancelled", "not_started")],
        "the metrics count the rows",
    )
    if result["end"] == "done":
        verdict.check(
            not counts["cancelled"] and not counts["not_started"], "a run that ends well is whole"
        )
    for n, status in enumerate(statuses):
        value = {name: values[n] for name, values in result["columns"].items()}
        wanted = right(n) if story.typed else {"response": text(n)}
        if status == "ok":
            verdict.check(value == wanted, f"row {n} is ok and has its own value, not {value}")
        else:
            verdict.check(
                all(part is None for part in value.values()), f"row {n} has a value and no ok"
            )
        verdict.check((result["error"][n] is None) == (status == "ok"), f"row {n}: error iff no ok")
        if status == "error" and story.trouble != "few descriptors":
            may = {"ConnectionFailed"} if calm else books.may_end_with(n)
            kind = result["error_type"][n]
            verdict.check(kind in may, f"row {n}: {kind}, which it has not met")


def check_events(verdict: Verdict, told: Told) -> None:
    """The events tell each thing once, in order, and what the result says."""
    kinds = Counter(event["type"] for event in told.events)
    settled = Counter(
        event["data"]["item_index"] for event in told.events if event["type"] == "row.settled"
    )
    verdict.check(kinds["parallel.start"] <= 1, "a run starts once")
    verdict.check(set(settled.values()) <= {1}, "a row is settled once")
    if told.result is None:
        return
    verdict.check(kinds["parallel.complete"] == 1, "a run is told to be complete once")
    verdict.check(len(settled) == verdict.story.rows, "each row is told to be settled")
    same = all(told.result["status"][n] == status for n, status in told.settled.items())
    verdict.check(same, "events and result have the same statuses")


def check_books(verdict: Verdict, told: Told, books: Books) -> None:
    """Attempts and tokens are what the server counted."""
    result, story = told.result, verdict.story
    if result is None or result["end"] != "done":
        return  # an attempt that was cancelled may not have reached the server
    attempts = result["metrics"]["attempts"]
    if story.trouble != "few descriptors":
        verdict.check(attempts == books.requests, f"{attempts} attempts, {books.requests} requests")
    if not story.unwell and result["metrics"]["failed"] == 0:
        good = books.requests * PROMPT, books.requests * COMPLETION
        kept = result["metrics"]["from_store"] + result["metrics"]["duplicates"]
        if not kept:
            verdict.check(tuple(result["tokens"]) == good, f"tokens {result['tokens']}, not {good}")


def damage(path: Path, chance: random.Random) -> None:
    """Overwrite a page in the middle of the file, as a bad disk does."""
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    size = path.stat().st_size
    if size > 3 * 4096:
        with path.open("r+b") as file:
            file.seek(4096 * chance.randrange(2, size // 4096))
            file.write(chance.randbytes(4096))


def tell(story: Story) -> Verdict:
    """Play a story, and check what came of it."""
    verdict, chance = Verdict(story), random.Random(f"trouble {story.seed}")
    books = Books(story)
    with tempfile.TemporaryDirectory() as name, serve(books) as server:
        folder = Path(name)
        store = {
            "file": str(folder / "replies.sqlite"),
            "directory": str(folder / "shared") + "/",
            "none": "",
        }[story.store]
        first: list[Process] = []

        def trouble() -> None:
            if story.trouble == "kill":
                first[0].process.kill()
            elif story.trouble == "interrupt":
                first[0].process.send_signal(signal.SIGINT)
            elif story.trouble == "store deleted":
                for path in folder.glob("replies.sqlite*"):
                    path.unlink(missing_ok=True)

        books.begin(well=False, trouble=trouble)
        began = time.monotonic()
        many = 2 if story.trouble == "two processes" else 1
        first += [
            Process(story, server.url, store, folder, name=f"first{number}", calm=False)
            for number in range(many)
        ]
        told = [process.told() for process in first]
        for process, one in zip(first, told, strict=True):
            verdict.check(one.code is not None, "no process gets stuck")
            if one.result is not None:
                check_rows(verdict, one, books, calm=False)
            elif story.trouble != "kill":
                early = story.trouble == "interrupt" and one.code in (1, -signal.SIGINT)
                verdict.check(early, f"exit code {one.code}: {process.stderr()}")
            check_events(verdict, one)
        if many == 1:
            check_books(verdict, told[0], books)
        elif not story.unwell:
            paid = books.requests
            verdict.check(
                paid <= 1.1 * story.rows + 128, f"two processes paid {paid} for {story.rows}"
            )
        verdict.requests = books.requests
        done = {n for one in told for n, status in one.settled.items() if status == "ok"}
        if story.trouble == "store damaged" and Path(store).exists():
            damage(Path(store), chance)
        books.begin(well=True)
        again = Process(story, server.url, store, folder, name="second", calm=True)
        last = again.told()
        if last.result is None:
            verdict.check(False, f"the second run ended with {last.code}: {again.stderr()}")
            return verdict
        check_rows(verdict, last, books, calm=True)
        check_events(verdict, last)
        verdict.check(last.result["end"] == "done", f"the second run ended: {last.result['end']}")
        counts = Counter(last.result["status"])
        verdict.ok, verdict.errors = counts["ok"], counts["error"]
        verdict.unfinished = story.rows - len(done)
        verdict.again = sum(n in done for n in books.asked)
        if story.store != "none" and story.trouble != "store damaged":
            verdict.check(
                not verdict.again, f"{verdict.again} rows that were ok were asked for once more"
            )
        verdict.check(time.monotonic() - began < STUCK, "a story ends")
    return verdict


def table(verdicts: list[Verdict]) -> str:
    """One line for each trouble."""
    lines = [
        "| trouble | stories | rows | unfinished in act 1 | requests in act 1 | ok in act 2 "
        "| errors | asked for once more | broken promises |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    by: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by[verdict.story.trouble].append(verdict)
    for name in (*TROUBLES, "all"):
        some = verdicts if name == "all" else by[name]
        sums = [
            len(some),
            sum(one.story.rows for one in some),
            *(
                sum(getattr(one, attribute) for one in some)
                for attribute in ("unfinished", "requests", "ok", "errors", "again")
            ),
            sum(len(one.broken) for one in some),
        ]
        lines.append(f"| {name} | " + " | ".join(f"{number:,}" for number in sums) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first story")
    parser.add_argument("--stories", type=int, help="tell so many, however long it takes")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    verdicts: list[Verdict] = []
    until, seed = time.monotonic() + 60 * given.minutes, given.seed
    while len(verdicts) < given.stories if given.stories else time.monotonic() < until:
        verdict = tell(Story.of(seed))
        verdicts.append(verdict)
        for promise in verdict.broken[:5]:
            print(f"seed {seed}: {promise}\n    {verdict.story}", flush=True)
        seed += 1
    print(f"\nSeeds {given.seed} to {seed - 1}.\n\n{table(verdicts)}")
    sys.exit(any(verdict.broken for verdict in verdicts))


if __name__ == "__main__":
    main()
