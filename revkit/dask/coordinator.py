"""What the partitions of a run share: everything that decides about a cluster is here.

A *run* is one computation of what ``ddf.llm.parallel_map`` returned. A *seat* is one of its
partitions while a Dask worker works it off. Seats report, and are told in reply what they may do:

    begin ─> run      open ─> seat      exchange, claim …      close

The coordinator is a pure machine, as a run's scheduler is: it knows no Dask, no thread and no
clock. One instance lives on the Dask scheduler (:mod:`revkit.dask.plugin`), or in the process
where Dask runs in one. What it is told and what it says are plain mappings, for they travel.

No share is given twice: what a seat might still be using counts as its own until it has said that
it is not, or is gone. So never more attempts are running than the run may have, at no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..scheduling.adaptive import Adaptive, AdaptiveLimit
from ..scheduling.events import Stop, StopKind
from ..scheduling.policy import worker_count
from .claims import Claims
from .purse import Amounts, Purse
from .rate import Rate
from .runs import Run, Seated, said_of, stop_of

__all__ = ["TICK", "UNKNOWN", "Coordinator"]

#: Seconds between two reports of a seat, and of one that waits for its share; and how many reports
#: a second are enough for all.
TICK, _WAITING_TICK = 0.1, 0.02
_REPORTS = 500
#: What a seat is told that nobody knows: it was taken for dead, and others have its share.
UNKNOWN = "unknown seat"


class Coordinator:
    """Keeps one budget for all seats of all runs.

    Times are in seconds, on the clock of whoever holds it.

    Args:
        ended: is told, once, of each run whose partitions are all through: see :meth:`through`.

    >>> coordinator = Coordinator()
    >>> run = coordinator.begin("a key", {"job": "j", "max_workers": 3}, threads=8, now=0.0)["run"]
    >>> one = coordinator.open(run, worker="w1", partition=0, rows=10, now=0.0)
    >>> two = coordinator.open(run, worker="w2", partition=1, rows=10, now=0.0)
    >>> one["limit"], two["limit"]  # the first one has all, and is asked to give some back
    (3, 0)
    >>> coordinator.exchange(one["seat"], {"limit": 3, "running": 3, "demand": 9}, now=0.1)["limit"]
    2
    >>> coordinator.exchange(one["seat"], {"limit": 2, "running": 2, "demand": 8}, now=0.2)["limit"]
    2
    >>> coordinator.exchange(two["seat"], {"limit": 0, "running": 0, "demand": 9}, now=0.2)["limit"]
    1
    """

    def __init__(self, ended: Callable[[Mapping[str, Any]], object] = lambda told: None) -> None:
        self._ended = ended
        #: jobs that have had a run
        self._known: set[str] = set()
        self._runs: dict[str, Run] = {}
        self._seats: dict[str, Seated] = {}
        #: key of the task that began a run -> the run
        self._begun: dict[str, Run] = {}
        self._renewed: set[str] = set()
        #: jobs whose next run is collected
        self._collected: set[str] = set()
        self._rates: dict[str, Rate] = {}
        self._purses: dict[str, Purse] = {}
        self._claims = Claims()
        self._named = 0  #: runs and seats that were given a number

    # -- runs ----------------------------------------------------------------------------------

    def _number(self) -> int:
        self._named += 1
        return self._named

    def begin(
        self, key: str, terms: Mapping[str, Any], *, threads: int, now: float
    ) -> dict[str, Any]:
        """Begin a run, or find the one that goes on: a worker that died may have it begun again.

        Args:
            key: of the task that begins it.
            terms: what was asked for: see :func:`revkit.dask.job.terms_of`.
            threads: of all Dask workers together.

        Returns:
            ``run``: its name; ``began``; ``again``: the job has had a run before.
        """
        known = self._begun.get(key)
        if known is not None and key not in self._renewed:
            return {"run": known.name, "began": known.began, "again": False}
        self._renewed.discard(key)
        bounds = terms.get("adaptive")
        job = str(terms["job"])
        run = Run(
            name=f"{job}-{self._number()}",
            key=key,
            terms=terms,
            began=now,
            workers=worker_count(
                10**9,
                threads,
                max_workers=terms.get("max_workers"),
                worker_cap=terms.get("worker_cap", 16),
            ),
            collected=job in self._collected,
            adaptive=AdaptiveLimit(Adaptive(*bounds), now=now) if bounds else None,
        )
        self._collected.discard(job)
        self._runs[run.name] = self._begun[key] = run
        if known is not None:
            self._forget(known)
        again = job in self._known
        self._known.add(job)
        if rate := terms.get("rate_limit"):
            self._rates.setdefault(rate["id"], Rate(rate["requests"], rate["tokens"]))
        if budget := terms.get("budget"):
            limit = (budget["tokens"], budget["pico"])
            purse = self._purses.setdefault(budget["id"], Purse(limit, tuple(budget["spent"])))
            purse.limit = limit  # which may have been raised
        return {"run": run.name, "began": now, "again": again}

    def renewed(self, keys: Iterable[str]) -> None:
        """Somebody asks for these tasks to be computed (again)."""
        self._renewed.update(key for key in keys if key in self._begun)

    def over(self, key: str) -> None:
        """Nobody wants the run any more that this task began: what is left of it is stopped."""
        run = self._begun.pop(key, None)
        self._renewed.discard(key)
        if run is not None:
            if not run.seats:
                self._tell_end(run)
            run.stop_for(Stop(StopKind.INTERRUPTED, "nobody waits for it any more", cancels=True))
            self._forget(run)

    def _forget(self, run: Run) -> None:
        if not run.seats and self._begun.get(run.key) is not run:
            self._runs.pop(run.name, None)
            self._tell_end(run)

    def through(self, key: str) -> None:
        """No partition waits any more for the run that this task began.

        Who listens is told ``job``, ``failed`` and ``ok`` rows, and ``error``, the first one.
        Of a run that was stopped or is collected, which says it all by itself, only ``job``.
        """
        run = self._begun.get(key)
        if run is not None and not run.seats:
            self._tell_end(run)

    def _tell_end(self, run: Run) -> None:
        if run.ended:
            return
        run.ended = True
        told: dict[str, Any] = {"job": run.terms["job"]}
        if run.stop is None and not run.collected:
            told |= {"failed": run.failed, "ok": run.ok, "error": run.error}
        self._ended(told)

    def collect(self, job: str) -> None:
        """The next run of the job is collected: its partitions do not raise."""
        self._collected.add(job)

    def stop(self, job: str, stop: Sequence[Any]) -> None:
        """Stop all that runs of a job."""
        self._collected.discard(job)
        for run in self._runs.values():
            if run.terms["job"] == job:
                run.stop_for(stop_of(stop))

    def spent(self, budget: str) -> Amounts:
        """What is spent of a budget, in tokens and picodollars; what may be in flight included."""
        purse = self._purses.get(budget)
        return (0, 0) if purse is None else purse.in_use

    # -- seats ---------------------------------------------------------------------------------

    def open(
        self, run: str, *, worker: str, partition: int, rows: int, now: float
    ) -> dict[str, Any]:
        """A worker begins with a partition."""
        found = self._runs.get(run)
        if found is None:
            return {"error": "nobody waits for this run any more"}
        name = f"{run}/{self._number()}"
        seat = self._seats[name] = found.sit(name, worker, partition, rows)
        timeout = found.terms.get("timeout")
        return {
            "seat": name,
            "began": found.began,
            "workers": found.workers,
            "collected": found.collected,
            "timeout": None if timeout is None else max(0.0, found.began + timeout - now),
            **self._answer(seat, {}, now),
        }

    def exchange(self, name: str, report: Mapping[str, Any], *, now: float) -> dict[str, Any]:
        """A seat reports, and is told what it may do.

        Args:
            report: ``limit`` and ``running``: attempts that it may have, and has; ``demand``: rows
                that it might run; ``failed``, ``ok``: rows that have failed, and that are ok. Where
                there is something to say: ``error``: of the first that failed; ``stop``;
                ``pause``: seconds for which the server asked; ``ended``: attempts, as seconds
                since their start and end, and outcome; ``starts``: how many it would have, with
                ``tokens`` of one, times that it gives ``back``, and ``extra`` tokens; ``given``:
                what it has of the budget, with what it has ``spent`` of that, and for how many
                ``attempts`` of the size ``need`` it would have more; ``let``: keys that it asks
                for no longer.

        Returns:
            ``limit``; ``now``; ``tick``: when to report again, in seconds. Where there is something
            to say: ``stop``; ``pause``; times of the next ``starts``, with ``tokens`` of each; what
            more is ``given`` of the budget, and whether others are ``short`` of it; ``freed``: keys
            that it was refused and may claim now.
        """
        seat = self._seats.get(name)
        if seat is None:
            return {"error": UNKNOWN}
        self._hear(seat, report, now)
        return self._answer(seat, report, now)

    def close(self, name: str, report: Mapping[str, Any], *, now: float) -> dict[str, Any]:
        """A seat is through with its partition."""
        seat = self._seats.get(name)
        if seat is None:
            return {"error": UNKNOWN}
        self._hear(seat, report, now)
        run = seat.run
        self._leave(seat, lost=False)
        path = [] if run.adaptive is None else run.adaptive.path
        stop = {} if run.stop is None else {"stop": said_of(run.stop)}
        limits = [list(step) for step in path]
        return {"now": now, "workers": run.workers, "limits": limits, "lost": run.lost, **stop}

    def lost(self, worker: str) -> None:
        """A worker is gone, and what its seats held is free.

        What they had of a budget counts as spent: it may have been billed.
        """
        for seat in list(self._seats.values()):
            if seat.worker == worker:
                self._leave(seat, lost=True)

    def _leave(self, seat: Seated, *, lost: bool) -> None:
        del self._seats[seat.name]
        seat.run.leave(seat, lost=lost)
        purse = self._purse(seat.run)
        if purse is not None:
            purse.close(seat.name, lost=lost)
        self._claims.leave(seat.name)
        self._forget(seat.run)

    def _purse(self, run: Run) -> Purse | None:
        budget = run.terms.get("budget")
        return None if not budget else self._purses[budget["id"]]

    def _rate(self, run: Run) -> Rate | None:
        rate = run.terms.get("rate_limit")
        return None if not rate else self._rates[rate["id"]]

    def _hear(self, seat: Seated, report: Mapping[str, Any], now: float) -> None:
        run = seat.run
        run.hear(seat, report, now)
        rate = self._rate(run)
        if rate is not None:
            rate.hear(back=report.get("back", ()), extra=report.get("extra", 0), now=now)
        purse = self._purse(run)
        if purse is not None and "given" in report:
            purse.hear(seat.name, given=tuple(report["given"]), spent=tuple(report["spent"]))
        for store, keys in report.get("let", ()):
            self._claims.let_go(seat.name, store, keys)

    def _answer(self, seat: Seated, report: Mapping[str, Any], now: float) -> dict[str, Any]:
        run = seat.run
        limit, wanted = run.grant(seat)
        answer: dict[str, Any] = {
            "limit": limit,
            "now": now,
            "tick": max(TICK if limit >= wanted else _WAITING_TICK, len(self._seats) / _REPORTS),
        }
        rate = self._rate(run)
        if rate is not None and report.get("starts"):
            tokens = report.get("tokens", 0)
            planned = rate.plan(report["starts"], tokens=tokens, now=now)
            answer |= {"starts": planned, "tokens": tokens}
        purse = self._purse(run)
        if purse is not None:
            need: Amounts = tuple(report.get("need", (0, 0)))
            given = purse.give(seat.name, need, attempts=report.get("attempts", 0))
            if given is not None:
                answer["given"] = list(given)
            elif any(need) and purse.is_used_up(need):
                run.stop_for(Stop(StopKind.BUDGET, purse.why_used_up(need), cancels=False))
            answer["short"] = purse.is_short_for(seat.name)
        if freed := self._claims.freed(seat.name):
            answer["freed"] = freed
        if run.stop is not None:
            answer["stop"] = said_of(run.stop)
        if run.paused_until > now:
            answer["pause"] = run.paused_until - now
        return answer

    # -- claims --------------------------------------------------------------------------------

    def claim(
        self, name: str, store: str, keys: Iterable[bytes], *, parts: int, part: str
    ) -> dict[str, Any]:
        """A seat is going to ask the model for these keys, which it has not found in the store.

        Args:
            store: what the store is called everywhere.
            parts: part files that the seat knows of.
            part: the file that the seat itself writes to.

        Returns:
            ``taken``: keys that another seat is asking for; ``parts``: the other part files.
        """
        if name not in self._seats:
            return {"error": UNKNOWN}
        taken = self._claims.claim(name, store, keys)
        return {"taken": taken, "parts": self._claims.parts(store, part, known=parts)}
