"""The sink for replies: good ones are committed, and kept ones settle rows without an attempt."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...record.record import Record
from ...scheduling.events import Attempted, Status, Success
from ...scheduling.scheduler import Scheduler
from ...task.chat import Reply
from ..lookahead import Lookahead, Seen

__all__ = ["StoreSink"]


class StoreSink:
    """Takes replies to the store, and rows out of it.

    Args:
        lookahead: looks rows up, and keeps their replies.

    Attributes:
        found_work: a row needs the model.
        apply: makes a change of the scheduler where the engine makes its own.
    """

    def __init__(self, lookahead: Lookahead, record: Record, scheduler: Scheduler):
        self._lookahead = lookahead
        self._record = record
        self._scheduler = scheduler
        self.found_work = False
        self.apply: Callable[[Callable[[], object]], object] = lambda change: change()
        #: good replies that are not committed
        self._good: list[tuple[int, Reply]] = []
        self._seen: Seen | None = None
        #: rows are left to be looked up
        self._more = True
        #: row that runs or waits -> later ones that have the same prompt
        self._followers: dict[int, list[int]] = {}
        #: the last commit: how many replies, and how long it took (seconds)
        self._committed: tuple[int, float] | None = None

    def take(self, fact: Attempted) -> None:
        """An attempt has ended: keep its reply, if it is a good one."""
        if isinstance(fact.outcome, Success) and fact.outcome.reply is not None:
            self._good.append((fact.attempt.row, fact.outcome.reply))

    @property
    def has_work(self) -> bool:
        """Whether :meth:`visit` has something to do."""
        return bool(self._good) or self.wants_rows or self._lookahead.is_due

    @property
    def has_news(self) -> bool:
        """Whether :meth:`report` has something to say."""
        return bool(self._good) or self._seen is not None

    @property
    def has_rows(self) -> bool:
        """Whether rows are left to be looked up, now or when another run lets them go."""
        return self._more and self._scheduler.stopped is None

    @property
    def wants_rows(self) -> bool:
        """Whether it is time to look up more rows."""
        return self.has_rows and self._lookahead.is_ready(self._scheduler.tried)

    def visit(self) -> None:
        """Put good replies away, in one commit, and look up the next rows. May block."""
        if self._lookahead.is_due:
            self._lookahead.flush()
        if self._good:
            began = time.monotonic()
            if replies := self._lookahead.keep(self._good):
                self._committed = replies, time.monotonic() - began
        if self.wants_rows:
            self._seen = self._lookahead.look()

    def committed(self) -> tuple[int, float] | None:
        """The last commit, said once: how many replies, and how long it took (seconds)."""
        committed, self._committed = self._committed, None
        return committed

    def settled(self, row: int) -> list[int]:
        """A row was settled by its attempt; gives the rows that share its outcome."""
        self._lookahead.settled(row)
        return [one for one in self._followers.pop(row, ()) if self._share(one, row)]

    def settle_kept(self) -> list[int]:
        """Settle the rows that were seen to need no attempt; gives them.

        Rows that need the model go to the scheduler with :meth:`hand_on`.
        """
        seen, record = self._seen, self._record
        settled: list[int] = []
        if seen is None:
            return settled
        self._more = seen.more
        for row, values, reply in seen.kept:
            record.kept(row, values, reply)
            settled.append(row)
        for row, twin in seen.twins:
            if record.status[twin] is Status.NOT_STARTED:
                self._followers.setdefault(twin, []).append(row)
            elif self._share(row, twin):
                settled.append(row)
        return settled

    def hand_on(self, *, failed: int, ended: bool) -> bool:
        """Let the scheduler know of commits, new rows, and rows that failed without an attempt.

        Returns:
            Whether more rows can be looked up at once.
        """
        rows = [] if self._seen is None else self._seen.run
        kept = self._seen is not None and bool(self._seen.kept)
        committed, more, scheduler = len(self._good), self._more, self._scheduler
        elsewhere = self._lookahead.only_waits
        self._good, self._seen = [], None
        self.found_work = self.found_work or bool(rows)
        if ended:
            return False

        def change() -> None:
            if kept:
                scheduler.answered()
            scheduler.committed(committed)
            scheduler.failed_without(failed)
            scheduler.add(rows, more=more, elsewhere=elsewhere)

        self.apply(change)
        return self.wants_rows

    def close(self) -> None:
        """Write what could not be written so far, and close the store. May block."""
        self._lookahead.close()

    def end(self) -> list[int]:
        """The run is over: gives the rows that share the outcome of one that was to run again."""
        record, lookahead = self._record, self._lookahead
        record.store, record.store_problem = lookahead.path, lookahead.problem
        record.facts = lookahead.facts
        return [
            follower
            for row, followers in self._followers.items()
            for follower in followers
            if self._share(follower, row)
        ]

    def _share(self, row: int, twin: int) -> bool:
        """Let a row share its twin's outcome; it stays as it is if that one was cancelled."""
        if self._record.status[twin] not in (Status.OK, Status.ERROR):
            return False
        self._record.shared(row, twin)
        return True
