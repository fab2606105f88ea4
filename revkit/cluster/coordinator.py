"""What the partitions of a run share: everything that decides about a cluster is here.

A *run* is one computation of what ``ddf.llm.parallel_map`` returned. A *seat* is one of its
partitions while a Dask worker works it off. Seats report, and are told in reply what they may do:

    begin ─> run      open ─> seat      exchange, claim …      close

The coordinator is a pure machine, as a run's scheduler is: it knows no Dask, no thread and no
clock. One instance lives on the Dask scheduler (:mod:`revkit.cluster.plugin`), or in the process
where Dask runs in one. What it is told and what it says are plain mappings, for they travel.

No share is given twice: what a seat might still be using counts as its own until it has said that
it is not, or is gone. So never more attempts are running than the run may have, at no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..adaptive import Adaptive, AdaptiveLimit
from ..buckets import PICO, TokenBucket
from ..events import Stop, StopKind
from ..policy import worker_count
from .shares import fair

__all__ = ["TICK", "UNKNOWN", "Coordinator"]

#: Seconds between two reports of a seat, and of one that waits for its share; and how many reports
#: a second are enough for all.
TICK, _WAITING_TICK = 0.1, 0.02
_REPORTS = 500
#: Starts under a rate limit are planned so far ahead (seconds).
_HORIZON = 1.0
#: What a seat is told that nobody knows: it was taken for dead, and others have its share.
UNKNOWN = "unknown seat"


@dataclass(slots=True)
class _Rate:
    """A rate limit that runs share."""

    requests: TokenBucket
    tokens: TokenBucket

    def plan(self, starts: int, tokens: int, now: float) -> list[float]:
        """The times of the next starts, as many as are asked for and near enough."""
        planned: list[float] = []
        while len(planned) < starts:
            when = max(self.requests.ready, self.tokens.ready, now)
            if when > now + _HORIZON:
                break
            self.requests.take(1, when)
            self.tokens.take(tokens, when)
            planned.append(when)
        return planned


Amounts = tuple[int, int]  #: tokens and picodollars


def _plus(one: Amounts, other: Amounts, sign: int = 1) -> Amounts:
    return one[0] + sign * other[0], one[1] + sign * other[1]


@dataclass(slots=True)
class _Purse:
    """A budget that runs share; None: no limit."""

    limit: tuple[int | None, int | None]
    spent: Amounts = (0, 0)  #: by seats that are closed
    given: Amounts = (0, 0)  #: to seats that are open
    short: bool = False  #: somebody asked for more than is free

    def room(self, amounts: Amounts) -> int:
        """For how many attempts of this size there is room."""
        used = _plus(self.spent, self.given)
        rooms = [
            (limit - used_) // amount
            for limit, used_, amount in zip(self.limit, used, amounts, strict=True)
            if limit is not None and amount > 0
        ]
        return max(0, min(rooms, default=1_000_000))


@dataclass(slots=True)
class _Seat:
    """One partition that is being worked off.

    Attributes:
        held: attempts that it may have running, as far as anybody can know.
        demand: rows that it has left.
        given, spent: of the budget, in this seat.
    """

    run: _Run
    worker: str
    partition: int
    demand: int
    held: int = 0
    running: int = 0
    failed: int = 0
    ok: int = 0
    given: Amounts = (0, 0)
    spent: Amounts = (0, 0)
    claims: dict[str, set[bytes]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Run:
    """One computation.

    Attributes:
        failed, ok: rows that have failed, and that are ok, in partitions that are through.
        error: what the first row that failed says.
        lost: attempts that were running on workers that died.
        collected: its partitions' records go to the client, so that they do not raise.
        ended: all its partitions are through, and that was told.
    """

    name: str
    key: str
    terms: Mapping[str, Any]
    began: float
    workers: int
    collected: bool
    adaptive: AdaptiveLimit | None
    seats: dict[str, _Seat] = field(default_factory=dict)
    failed: int = 0
    ok: int = 0
    error: str | None = None
    lost: int = 0
    ended: bool = False
    stop: Stop | None = None
    paused_until: float = float("-inf")
    shares: dict[str, int] | None = None

    @property
    def limit(self) -> int:
        return self.workers if self.adaptive is None else min(self.workers, self.adaptive.limit)

    def share(self, name: str) -> int:
        """What a seat should have."""
        if self.shares is None:
            demands = [seat.demand for seat in self.seats.values()]
            self.shares = dict(zip(self.seats, fair(self.limit, demands), strict=True))
        return self.shares[name]

    def stop_for(self, stop: Stop) -> None:
        if self.stop is None:
            self.stop = stop
        elif stop.cancels:
            self.stop = self.stop._replace(cancels=True)


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
        self._runs: dict[str, _Run] = {}
        self._seats: dict[str, _Seat] = {}
        #: key of the task that began a run -> the run
        self._begun: dict[str, _Run] = {}
        self._renewed: set[str] = set()
        #: jobs whose next run is collected
        self._collected: set[str] = set()
        self._rates: dict[str, _Rate] = {}
        self._purses: dict[str, _Purse] = {}
        #: store -> key -> the seat that asks the model for it
        self._claims: dict[str, dict[bytes, str]] = {}
        #: store -> names of its part files that were written to, in order
        self._parts: dict[str, list[str]] = {}
        self._named = 0  #: runs and tasks that were given a number

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
            terms: what was asked for: see :func:`revkit.cluster.job.terms_of`.
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
        run = _Run(
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
            self._rates.setdefault(
                rate["id"],
                _Rate(TokenBucket(rate["requests"] or 1e12), TokenBucket(rate["tokens"] or 1e12)),
            )
        if budget := terms.get("budget"):
            limit = (budget["tokens"], budget["pico"])
            purse = self._purses.setdefault(budget["id"], _Purse(limit, tuple(budget["spent"])))
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

    def _forget(self, run: _Run) -> None:
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

    def _tell_end(self, run: _Run) -> None:
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
                run.stop_for(_stop(stop))

    def spent(self, budget: str) -> Amounts:
        """What is spent of a budget, in tokens and picodollars; what may be in flight included."""
        purse = self._purses.get(budget)
        return (0, 0) if purse is None else _plus(purse.spent, purse.given)

    # -- seats ---------------------------------------------------------------------------------

    def open(
        self, run: str, *, worker: str, partition: int, rows: int, now: float
    ) -> dict[str, Any]:
        """A worker begins with a partition."""
        found = self._runs.get(run)
        if found is None:
            return {"error": "nobody waits for this run any more"}
        name = f"{run}/{self._number()}"
        seat = self._seats[name] = found.seats[name] = _Seat(found, worker, partition, rows)
        found.shares = None
        timeout = found.terms.get("timeout")
        return {
            "seat": name,
            "began": found.began,
            "workers": found.workers,
            "collected": found.collected,
            "timeout": None if timeout is None else max(0.0, found.began + timeout - now),
            **self._answer(name, seat, now),
        }

    def exchange(self, name: str, report: Mapping[str, Any], *, now: float) -> dict[str, Any]:
        """A seat reports, and is told what it may do.

        Args:
            report: ``limit`` and ``running``: attempts that it may have, and has; ``demand``: rows
                that are left; ``failed``, ``ok``: rows that have failed, and that are ok. Where
                there is something to say: ``error``: of the first that failed; ``stop``;
                ``pause``: seconds for which the server asked; ``ended``: attempts, as seconds
                since their start and end, and outcome; ``starts`` that it would have, ``tokens``
                of one, ``unused`` starts and ``extra`` tokens; ``spent`` of the budget, ``need``:
                what an attempt may use, and ``back``: what it does not need.
        """
        seat = self._seats.get(name)
        if seat is None:
            return {"error": UNKNOWN}
        self._hear(seat, report, now)
        return self._answer(name, seat, now, report)

    def close(self, name: str, report: Mapping[str, Any], *, now: float) -> dict[str, Any]:
        """A seat is through with its partition."""
        seat = self._seats.get(name)
        if seat is None:
            return {"error": UNKNOWN}
        self._hear(seat, report, now)
        run = seat.run
        self._leave(name, seat, spent=seat.spent)
        path = [] if run.adaptive is None else run.adaptive.path
        stop = {} if run.stop is None else {"stop": _said(run.stop)}
        limits = [list(step) for step in path]
        return {"now": now, "workers": run.workers, "limits": limits, "lost": run.lost, **stop}

    def lost(self, worker: str) -> None:
        """A worker is gone, and what its seats held is free.

        What they had of a budget counts as spent: it may have been billed.
        """
        for name, seat in list(self._seats.items()):
            if seat.worker == worker:
                seat.run.lost += seat.running
                self._leave(name, seat, spent=seat.given)

    def _leave(self, name: str, seat: _Seat, *, spent: Amounts) -> None:
        run = seat.run
        del self._seats[name], run.seats[name]
        run.failed += seat.failed
        run.ok += seat.ok
        run.shares = None
        purse = self._purse(run)
        if purse is not None:
            purse.given = _plus(purse.given, seat.given, -1)
            purse.spent = _plus(purse.spent, spent)
        for store, keys in seat.claims.items():
            for key in keys:
                self._claims[store].pop(key, None)
        self._forget(run)

    def _purse(self, run: _Run) -> _Purse | None:
        budget = run.terms.get("budget")
        return None if not budget else self._purses[budget["id"]]

    def _rate(self, run: _Run) -> _Rate | None:
        rate = run.terms.get("rate_limit")
        return None if not rate else self._rates[rate["id"]]

    def _hear(self, seat: _Seat, report: Mapping[str, Any], now: float) -> None:
        run = seat.run
        seat.running = report["running"]
        seat.held = max(report["limit"], seat.running)
        demand = min(report["demand"], run.workers)
        if demand != min(seat.demand, run.workers):
            run.shares = None
        seat.demand = demand
        seat.failed, seat.ok = report.get("failed", 0), report.get("ok", 0)
        run.error = run.error or report.get("error")
        if stop := report.get("stop"):
            run.stop_for(_stop(stop))
        self._count_failures(run)
        if pause := report.get("pause"):
            run.paused_until = max(run.paused_until, now + pause)
        if run.adaptive is not None:
            running = sum(other.running for other in run.seats.values())
            for start, end, outcome in report.get("ended", ()):
                limit = run.limit
                run.adaptive.settled(
                    start=now - start,
                    end=now - end,
                    running=min(limit, running),
                    outcome=outcome,
                )
                if run.limit != limit:
                    run.shares = None
        rate = self._rate(run)
        if rate is not None:
            rate.requests.take(-report.get("unused", 0), now)
            rate.tokens.take(report.get("extra", 0), now)
        purse = self._purse(run)
        if purse is not None and "spent" in report:
            seat.spent = tuple(report["spent"])
            back = tuple(report.get("back", (0, 0)))
            seat.given = _plus(seat.given, back, -1)
            purse.given = _plus(purse.given, back, -1)
        for store, keys in report.get("let", ()):
            for key in keys:
                seat.claims.get(store, set()).discard(key)
                self._claims.get(store, {}).pop(key, None)

    def _count_failures(self, run: _Run) -> None:
        most = run.terms.get("max_failures")
        failed = run.failed + sum(seat.failed for seat in run.seats.values())
        if most is None or failed <= most:
            return
        fast = bool(run.terms.get("fail_fast"))
        reason = (
            "a row failed, and fail_fast=True"
            if fast
            else f"{failed} row{'' if failed == 1 else 's'} failed, "
            f"more than max_failures allows ({most})"
        )
        run.stop_for(Stop(StopKind.FAILURES, reason, cancels=fast))

    def _answer(
        self, name: str, seat: _Seat, now: float, report: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        run, report = seat.run, report or {}
        wanted = run.share(name)
        free = run.limit - sum(other.held for other in run.seats.values())
        limit = min(wanted, seat.held + max(0, free))
        seat.held = max(seat.held, limit)
        answer: dict[str, Any] = {
            "limit": limit,
            "now": now,
            "tick": max(TICK if limit >= wanted else _WAITING_TICK, len(self._seats) / _REPORTS),
        }
        if run.stop is not None:
            answer["stop"] = _said(run.stop)
        if run.paused_until > now:
            answer["pause"] = run.paused_until - now
        rate = self._rate(run)
        if rate is not None and report.get("starts"):
            planned = rate.plan(report["starts"], report.get("tokens", 0), now)
            answer["starts"] = [when - now for when in planned]
            answer["tokens"] = report.get("tokens", 0)
        purse = self._purse(run)
        if purse is not None:
            self._give(seat, purse, report, answer)
        return answer

    def _give(
        self, seat: _Seat, purse: _Purse, report: Mapping[str, Any], answer: dict[str, Any]
    ) -> None:
        need: Amounts = tuple(report.get("need", (0, 0)))
        if any(need):
            attempts = min(report.get("attempts", 1), purse.room(need))
            if attempts:
                given = need[0] * attempts, need[1] * attempts
                seat.given = _plus(seat.given, given)
                purse.given = _plus(purse.given, given)
                answer["given"] = list(given)
            purse.short = not attempts
            if not attempts and self._is_used_up(purse, need):
                stop = Stop(StopKind.BUDGET, _used_up(purse, need), cancels=False)
                seat.run.stop_for(stop)
                answer["stop"] = _said(seat.run.stop or stop)
        if purse.short:
            answer["short"] = True  # what nobody uses is asked back

    def _is_used_up(self, purse: _Purse, need: Amounts) -> bool:
        """Whether there is too little even when all that is in flight comes back."""
        spent = purse.spent
        for seat in self._seats.values():
            if self._purse(seat.run) is purse:
                spent = _plus(spent, seat.spent)
        return any(
            limit is not None and used + amount > limit
            for limit, used, amount in zip(purse.limit, spent, need, strict=True)
        )

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
        seat = self._seats.get(name)
        if seat is None:
            return {"error": UNKNOWN}
        claims = self._claims.setdefault(store, {})
        known = self._parts.setdefault(store, [])
        if part not in known:
            known.append(part)
        mine = seat.claims.setdefault(store, set())
        taken = []
        for key in keys:
            if claims.setdefault(key, name) == name:
                mine.add(key)
            else:
                taken.append(key)
        return {"taken": taken, "parts": known[parts:]}


def _stop(said: Sequence[Any]) -> Stop:
    kind, reason, cancels = said
    return Stop(StopKind(kind), reason, bool(cancels))


def _said(stop: Stop) -> list[Any]:
    return [stop.kind.value, stop.reason, stop.cancels]


def _used_up(purse: _Purse, need: Amounts) -> str:
    needs, left = f"{need[0]:,} tokens", []
    tokens, pico = purse.limit
    if need[1]:
        needs += f" (${need[1] / PICO:.6f})"
    if tokens is not None:
        left.append(f"tokens={tokens!r}")
    if pico is not None:
        left.append(f"usd={pico / PICO!r}")
    return (
        f"the next attempt may need {needs}, more than is left of Budget({', '.join(left)}); "
        "to go on, give it more"
    )
