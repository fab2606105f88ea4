"""A partition's side of the claims: it claims the keys that it does not find in the shared store.

A row whose key another partition has claimed waits, and holds no worker. When the coordinator
reports that the claim was released (:mod:`revkit.dask.claims`), the row is looked up again. It
finds the reply in the store, or gets the claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from ..runtime.lookahead import Lookahead, Seen
from ..runtime.plan import Plan
from ..runtime.prompts import Prompts
from ..store.contract import NO_FACTS, Facts
from ..store.shared import SharedStore
from ..task.answer import Answers
from ..task.chat import Reply
from ..task.kinds import ModelTask
from .session import PartitionSession

__all__ = ["ClaimingLookahead", "ClaimingStore"]

#: Seconds between two looks of a partition in which all rows wait, so that an interrupt and the
#: timeout never wait for another partition. It sends no request then.
_TICK = 0.1


class ClaimingStore:
    """A shared store that claims the keys it does not find, for one partition.

    Args:
        name: the store's name on all machines.

    Attributes:
        taken: keys of the last :meth:`get` that another partition has claimed.
    """

    def __init__(self, shared: SharedStore, session: PartitionSession, name: str):
        self._shared = shared
        self._session = session
        self._name = name
        self._parts = 0
        self.path = shared.path
        self.taken: set[bytes] = set()

    @property
    def problem(self) -> str | None:
        return self._shared.problem

    def get(self, keys: Sequence[bytes], *, facts: Facts = NO_FACTS) -> dict[bytes, Reply]:
        found = self._shared.get(keys, facts=facts)
        missing = [key for key in keys if key and key not in found]
        self.taken = set()
        if missing:
            reply = self._session.claim(
                self._name, missing, parts=self._parts, part=self._shared.part
            )
            parts = reply.get("parts", ())
            self._parts += len(parts)
            # A claim is released after its reply is on the disk.
            self._shared.look_into(parts)
            arrived = self._shared.get(missing, facts=facts)
            found |= arrived
            self.taken = set(reply.get("taken", ())) - set(arrived)
            self.release(arrived)
        return found

    def put(self, items: Iterable[tuple[bytes, Reply]], **about: Any) -> bool:
        return self._shared.put(items, **about)

    def forget(self, keys: Iterable[bytes]) -> None:
        self._shared.forget(keys)

    def release(self, keys: Iterable[bytes]) -> None:
        """Release claims."""
        if keys := list(keys):
            self._session.release(self._name, keys)

    def close(self) -> None:
        """Write pending replies. The process's store stays open for its other partitions."""
        self._shared.flush()


class ClaimingLookahead(Lookahead):
    """A lookahead in which rows may have to wait for another partition's reply."""

    def __init__(
        self,
        plan: Plan,
        prompts: Prompts,
        store: ClaimingStore,
        session: PartitionSession,
        answers: Answers,
    ):
        assert isinstance(plan.task, ModelTask)
        assert plan.client is not None
        super().__init__(
            plan.task,
            plan.client,
            prompts,
            plan.todo,
            store,
            answers=answers,
            sample=lambda row: plan.place(row)[1],
            draw=None if plan.draws is None else plan.draw,
        )
        self._claims = store
        self._session = session
        #: key that another partition has claimed -> the rows that wait for it
        self._waiting: dict[bytes, list[int]] = {}
        #: all rows that are left wait
        self._only_waiting = False

    @property
    def ready(self) -> bool:
        if not self._only_waiting or self._session.news.is_set():
            return True
        # Before there is an engine the run would end if nothing were left to look at.
        return not self._session.engine_started

    def look(self) -> Seen:
        session = self._session
        if self._only_waiting and not session.news.is_set():
            session.news.wait(_TICK)
        if session.stop is not None:
            return Seen(more=False)
        freed = session.freed()
        keys = list(self._waiting) if freed is None else sorted(freed & self._waiting.keys())
        if self._only_waiting and not keys:
            return Seen()
        again = [row for key in keys for row in self._waiting.pop(key)]
        self._todo = chain(sorted(again), self._todo)
        seen = super().look()
        taken = self._claims.taken
        waits = {row: key for row in seen.run if (key := self._key[row]) in taken}
        for row, key in waits.items():
            del self._first[key], self._key[row]
            self._prompts.drop(row)
            self._waiting.setdefault(key, []).append(row)
        for row, twin in seen.twins:
            if twin in waits:
                self._waiting[waits[twin]].append(row)
        seen.run = [row for row in seen.run if row not in waits]
        seen.twins = [(row, twin) for row, twin in seen.twins if twin not in waits]
        self._only_waiting = not seen.more
        seen.more = seen.more or bool(self._waiting)
        session.waiting = sum(map(len, self._waiting.values()))
        return seen

    def settled(self, row: int) -> None:
        if key := self._key.get(row):
            self._claims.release([key])
        super().settled(row)
