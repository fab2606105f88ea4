"""Everything that is known about a run, as columns: written by the drain, read by the result.

Attempts are kept as typed arrays and outputs as one list for each column, because a run may have
millions of rows. What can be derived from them (a row's worker, its number of attempts) is not
kept.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..scheduling.events import (
    Attempted,
    Away,
    Decision,
    Failure,
    Hold,
    Source,
    Status,
    Stop,
    Success,
)
from ..task.chat import Reply
from .join import Position, join

__all__ = ["DECISIONS", "SOURCES", "Record", "RowResult"]

#: A decision is kept as its place in this list.
DECISIONS: list[Decision] = [decision for decision in Decision if decision is not Decision.PARK]
_CODE = {decision: code for code, decision in enumerate(DECISIONS)}
#: A source is kept as its place in this list; 0 is none.
SOURCES = list(Source)
_MODEL, _STORE, _DUPLICATE = map(SOURCES.index, (Source.MODEL, Source.STORE, Source.DUPLICATE))
_NAN = float("nan")
_STATUS = {
    Decision.OK: Status.OK,
    Decision.FAIL: Status.ERROR,
    Decision.CANCEL: Status.CANCELLED,
}
#: The columns of attempts; those of tokens are empty for callables.
_ATTEMPTS = ("row", "number", "worker", "decision", "start", "end", "due")
_TOKENS = ("prompt_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class RowResult:
    """One settled row, as a progress callback gets it.

    Attributes:
        row: position of the row, from 0.
        sample: number of its sample, from 0, where rows are repeated.
        status: ``"ok"``, ``"error"`` or ``"cancelled"``.
        values: output name to value; empty where the row is not ok.
        error: what went wrong, None where the row is ok.
        source: ``"model"``, ``"store"`` (its reply was kept), ``"duplicate"`` (a row before it has
            the same prompt), or ``"none"``.
        attempts: attempts made of its own; 0 where an input was missing.
        worker: worker of the last attempt, None where there was none.
        service_s: seconds that the last attempt took, None where there was none.
    """

    row: int
    status: str
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    source: str = Source.NONE.value
    attempts: int = 0
    worker: int | None = None
    service_s: float | None = None
    sample: int = 0

    @property
    def ok(self) -> bool:
        """Whether the row has its values."""
        return self.status == Status.OK.value


class Record:
    """The columns of one run of ``total`` rows.

    Attributes:
        samples: of each of the caller's rows, which are so many rows here (``samples.py``).
        run_id: a name that no other run has.
        started_at: when it began, in UTC.
        status: of each row.
        source: of each row, as a place in :data:`SOURCES`.
        values: output name to its values by row position; None where there is no value.
        failures: row to the failure that stands in its ``error`` column.
        replies: row to the last reply, for tasks that ask a model.
        row, number, worker, decision, start, end: the attempts in the order in which they ended;
            times in seconds on the engine's clock, decisions as places in :data:`DECISIONS`.
        due: of each attempt, when it might start, on the same clock; NaN: as soon as the run did
            (the first one, where this is the record of two).
        prompt_tokens, completion_tokens: of each attempt, -1 where not known; empty for callables.
        began, ended: when the run started and ended, on the same clock; while it goes on and is
            shown, ``ended`` is how far it is.
        tokens: all of them.
        attempt_failures: place among the attempts -> why that attempt failed.
        first_refused: the first row that failed without an attempt, None where none did.
        stopped: why the run was stopped before its end, else None.
        stopped_at: when that was, on the same clock.
        holds: when no attempt might start, in order of time, on the same clock.
        away: since when the server is away, on the same clock; None where it is not, and when the
            run is over.
        visits: when rows were settled without an attempt, and how many; on the same clock.
        limits: how many attempts were allowed to run from when on; empty where that never changed.
        warnings: what the user is told when the run is over.
        store: path of the store that the run used, None where there was none.
        store_problem: what the store could not do, else None.
        facts: what the server said of the model, where it was asked.
        places: host and process of each worker, by its number, of a run on a cluster; a place that
            is None is this process. None: all of them.
        ended_by: the exception that ended it (an interrupt, a fault of revkit), else None.
    """

    def __init__(
        self,
        total: int,
        outputs: Iterable[str] = (),
        *,
        asks_model: bool,
        samples: int = 1,
        run_id: str,
        started_at: datetime,
    ):
        self.run_id = run_id
        self.started_at = started_at
        self.total = total
        self.samples = samples
        self.asks_model = asks_model
        self.status = [Status.NOT_STARTED] * total
        self.source = bytearray(total)
        self.values: dict[Any, list[Any]] = {name: [None] * total for name in outputs}
        self.failures: dict[int, Failure] = {}
        self.replies: dict[int, Reply] = {}
        self.attempt_failures: dict[int, Failure] = {}
        self.row, self.number, self.worker = array("q"), array("q"), array("q")
        self.decision = array("b")
        self.start, self.end, self.due = array("d"), array("d"), array("d")
        self.prompt_tokens, self.completion_tokens = array("q"), array("q")
        self.began: float = 0.0
        self.ended: float = 0.0
        self.settled = self.failed = self.from_store = self.tokens = 0
        self.first_refused: tuple[int, Failure] | None = None
        self.stopped: Stop | None = None
        self.stopped_at: float | None = None
        self.holds: list[Hold] = []
        self.away: Away | None = None
        self._known_retried: tuple[int, Mapping[int, Failure]] | None = None
        #: row whose last attempt is undecided -> the place of that attempt
        self._parked: dict[int, int] = {}
        self.visits: list[tuple[float, int]] = []
        self.limits: list[tuple[float, int]] = []
        self.warnings: list[str] = []
        self.store: str | None = None
        self.store_problem: str | None = None
        self.facts: Mapping[str, str] = {}
        self.places: Sequence[tuple[str, str] | None] | None = None
        self.ended_by: BaseException | None = None
        self.workers = 0
        self.engine = ""

    def attempted(self, fact: Attempted) -> bool:
        """Write down one attempt; says whether its row is settled by it."""
        attempt, start, end, outcome, decision, _ = fact
        row = attempt.row
        self.source[row] = _MODEL
        self.row.append(row)
        self.number.append(attempt.number)
        self.worker.append(attempt.worker)
        self.start.append(start)
        self.end.append(end)
        self.due.append(_NAN if attempt.due is None else attempt.due)
        if decision is Decision.PARK:  # retried, unless :meth:`decided` says otherwise
            self._parked[row] = len(self.decision)
            decision = Decision.RETRY
        self.decision.append(_CODE[decision])
        if isinstance(outcome, Success):
            self.status[row] = Status.OK
            self._keep(row, outcome.values)
            self.failures.pop(row, None)
            reply = outcome.reply
        elif isinstance(outcome, Failure):
            self.failures[row] = outcome
            self.attempt_failures[len(self.row) - 1] = outcome
            reply = outcome.reply
        else:
            reply = None
        if self.asks_model:
            if reply is not None:
                self.replies[row] = reply
            prompt = reply.prompt_tokens if reply is not None else None
            if reply is not None and reply.probe_tokens:
                prompt = reply.used_prompt_tokens
            completion = reply.completion_tokens if reply is not None else None
            self.prompt_tokens.append(-1 if prompt is None else prompt)
            self.completion_tokens.append(-1 if completion is None else completion)
            self.tokens += (prompt or 0) + (completion or 0)
        if decision is Decision.RETRY:
            return False
        self.settled += 1
        if decision is not Decision.OK:
            self.failed += decision is Decision.FAIL
            self.status[row] = _STATUS[decision]
        return True

    def decided(self, fact: Attempted) -> bool:
        """Write down what became of a row that was parked; says whether it is settled by it."""
        row = fact.attempt.row
        place = self._parked.pop(row)
        if fact.decision is not Decision.FAIL:
            return False
        self.decision[place] = _CODE[Decision.FAIL]
        self.status[row] = Status.ERROR
        self.settled += 1
        self.failed += 1
        return True

    def _keep(self, row: int, values: Mapping[str, Any]) -> None:
        columns = self.values
        for name, value in values.items():
            try:
                columns[name][row] = value
            except KeyError:
                columns[name] = [None] * self.total
                columns[name][row] = value

    def kept(self, row: int, values: Mapping[str, Any], reply: Reply) -> None:
        """Write down a row whose reply was in the store."""
        self.status[row] = Status.OK
        self.source[row] = _STORE
        self._keep(row, values)
        self.replies[row] = reply
        self.settled += 1
        self.from_store += 1

    def shared(self, row: int, twin: int) -> None:
        """Write down a row that shares the outcome of a settled one, which is ok or has failed."""
        self.status[row] = self.status[twin]
        self.source[row] = _DUPLICATE
        for values in self.values.values():
            values[row] = values[twin]
        if twin in self.replies:
            self.replies[row] = self.replies[twin]
        if self.status[twin] is Status.ERROR:
            self.failures[row] = self.failures[twin]
            self.failed += 1
        self.settled += 1

    def refused(self, row: int, failure: Failure) -> None:
        """Write down a row that fails without an attempt."""
        self.status[row] = Status.ERROR
        self.failures[row] = failure
        self.settled += 1
        self.failed += 1
        if self.first_refused is None:
            self.first_refused = (row, failure)

    @property
    def first_failure(self) -> tuple[int, Failure] | None:
        """The first failure in time of a row that stayed without its values, and its row.

        Rows that failed without an attempt come last: they say nothing of the model.
        """
        for at, failure in self.attempt_failures.items():
            if self.status[self.row[at]] is Status.ERROR:
                return self.row[at], failure
        return self.first_refused

    def close(self, *, ended: float, stopped: Stop | None, away: bool = False) -> None:
        """End the record: a row that was to be tried again has failed.

        Args:
            away: the server was away in the end. Rows that waited for it count as not started.
        """
        self.away = None
        self.ended = ended
        self.stopped = stopped
        if stopped is not None:
            self.stopped_at = ended if self.stopped_at is None else min(ended, self.stopped_at)
        self.holds = [
            hold._replace(end=min(hold.end, ended)) for hold in self.holds if hold.start < ended
        ]
        waiting = [row for row in self.failures if self.status[row] is Status.NOT_STARTED]
        for row in waiting:  # it was to be tried again when the run was stopped
            if away:
                del self.failures[row]
            else:
                self.status[row] = Status.ERROR

    @property
    def has_unfinished(self) -> bool:
        """Whether there are rows that neither are ok nor have failed."""
        return Status.NOT_STARTED in self.status or Status.CANCELLED in self.status

    def name(self, row: int) -> str:
        """What a row is called: ``row 3``, or ``row 3, sample 0`` where rows are repeated."""
        number, sample = divmod(row, self.samples)
        return f"row {number}" + (f", sample {sample}" if self.samples > 1 else "")

    def error(self, row: int) -> str | None:
        """What stands in the ``error`` column for ``row``: None exactly where it is ok."""
        status = self.status[row]
        if status is Status.OK:
            return None
        if status is Status.ERROR:
            return str(self.failures[row])
        why = self.stopped.reason if self.stopped is not None else "the run ended"
        if status is Status.CANCELLED:
            return f"Cancelled: this row was running when the run was stopped: {why}"
        if row in self._retried:
            return (
                f"NotStarted: an attempt failed ({self._retried[row]}), and the run was stopped "
                f"before the next one: {why}"
            )
        return f"NotStarted: the run was stopped before this row: {why}"

    @property
    def _retried(self) -> Mapping[int, Failure]:
        """The last failure of each row that was to be tried again when the run was stopped."""
        known = self._known_retried
        if known is None or known[0] != len(self.attempt_failures):
            failures = self.attempt_failures.items()
            found = {self.row[at]: failure for at, failure in failures}
            known = self._known_retried = len(self.attempt_failures), found
        return known[1]

    def continued(self, again: Record, rows: Sequence[int]) -> Record:
        """This run, and another one that tried some of its rows again, as one record.

        The second run's attempts follow on the first one's in time, without what lay between.

        Args:
            again: the second run's record; its row ``i`` is row ``rows[i]`` here.
        """
        both = Record(
            self.total,
            asks_model=self.asks_model,
            samples=self.samples,
            run_id=again.run_id,
            started_at=self.started_at,
        )
        both.began = self.began
        join(both, self, Position(range(self.total)))
        # The user knows them from the first run; those of the second are not known yet.
        both.warnings, both.store, both.store_problem, both.facts = [], None, None, {}
        shift, lanes = self.ended - again.began, 0
        if self.places is not None:  # on a cluster: the second run is on other workers
            lanes = len(self.places)
            both.places = [*self.places, *[None] * (max(again.worker, default=-1) + 1)]
        join(
            both,
            again,
            Position(
                rows,
                seconds=shift,
                worker=lambda worker: lanes + worker,
                due=again.began + shift,
                tried=Counter(self.row),
            ),
        )
        both.count_rows()
        return both

    def answered(self) -> tuple[dict[str, int], dict[str, int]]:
        """The ok rows by the model that answered, and by how the form of the reply was asked for.

        Most frequent first; unknown values are left out.
        """
        status = self.status
        good = [reply for row, reply in self.replies.items() if status[row] is Status.OK]
        models = Counter([reply.model for reply in good])
        formats: Counter[str | None] = Counter([reply.format for reply in good])
        return _known(models), _known(formats)

    def count_rows(self) -> None:
        """Count the settled and the failed rows by their statuses."""
        self.settled = self.total - self.status.count(Status.NOT_STARTED)
        self.failed = self.status.count(Status.ERROR)

    def sort_attempts(self) -> None:
        """Put attempts of several records in the order in which they ended."""
        order = sorted(range(len(self.end)), key=self.end.__getitem__)
        for name in (*_ATTEMPTS, *_TOKENS):
            column = getattr(self, name)
            if len(column):
                setattr(self, name, array(column.typecode, [column[place] for place in order]))
        self.attempt_failures = {
            place: self.attempt_failures[was]
            for place, was in enumerate(order)
            if was in self.attempt_failures
        }

    def row_result(self, fact: Attempted) -> RowResult:
        """The row that ``fact`` settled, for a progress callback."""
        attempt, start, end, outcome, *_ = fact
        return RowResult(
            row=attempt.row,
            status=self.status[attempt.row].value,
            values=outcome.values if isinstance(outcome, Success) else {},
            error=self.error(attempt.row),
            source=Source.MODEL.value,
            attempts=attempt.number,
            worker=attempt.worker,
            service_s=end - start,
        )

    def unattempted(self, row: int) -> RowResult:
        """A row that is settled without an attempt of its own, for a progress callback."""
        status = self.status[row]
        good = status is Status.OK
        return RowResult(
            row=row,
            status=status.value,
            values={name: values[row] for name, values in self.values.items()} if good else {},
            error=self.error(row),
            source=SOURCES[self.source[row]].value,
        )


def _known(counts: Counter[str | None]) -> dict[str, int]:
    return {name: count for name, count in counts.most_common() if name is not None}
