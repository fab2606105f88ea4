"""A partition's side of the claims: what it does not find in the shared store, it claims.

A row whose key another partition has claimed waits, and holds no worker. The coordinator says when
the claim was given up (:mod:`revkit.dask.claims`); then the row is looked at again, and finds
the reply in the store, or has the key for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from ..runtime.lookahead import Lookahead, Seen
from ..runtime.plan import Plan
from ..runtime.prompts import Prompts
from ..store.shared import SharedStore
from ..task.chat import Reply
from ..task.kinds import ModelTask
from .seat import Seat

__all__ = ["ClaimingLookahead", "ClaimingStore"]

#: Where a partition has nothing but rows that wait, it looks up so often (seconds), so that an
#: interrupt and the run's timeout never wait for another partition. It asks nobody anything then.
_TICK = 0.1


class ClaimingStore:
    """A shared store as one partition sees it: what it does not find in it, it claims.

    Args:
        name: what the store is called on all machines.

    Attributes:
        taken: keys of the last :meth:`get` that another partition asks the model for.
    """

    def __init__(self, shared: SharedStore, seat: Seat, name: str):
        self._shared = shared
        self._seat = seat
        self._name = name
        self._parts = 0
        self.path = shared.path
        self.taken: set[bytes] = set()

    @property
    def problem(self) -> str | None:
        return self._shared.problem

    def get(self, keys: Sequence[bytes], *, weights: str | None = None) -> dict[bytes, Reply]:
        found = self._shared.get(keys, weights=weights)
        missing = [key for key in keys if key and key not in found]
        self.taken = set()
        if missing:
            told = self._seat.claim(self._name, missing, parts=self._parts, part=self._shared.part)
            parts = told.get("parts", ())
            self._parts += len(parts)
            # Whoever had a claim before us has given it up after its reply was on the disk.
            self._shared.look_into(parts)
            came = self._shared.get(missing, weights=weights)
            found |= came
            self.taken = set(told.get("taken", ())) - set(came)
            self.let_go(key for key in came if key not in self.taken)
        return found

    def put(self, items: Iterable[tuple[bytes, Reply]], **about: Any) -> bool:
        return self._shared.put(items, **about)

    def forget(self, keys: Iterable[bytes]) -> None:
        self._shared.forget(keys)

    def let_go(self, keys: Iterable[bytes]) -> None:
        """Give claims up."""
        if keys := list(keys):
            self._seat.let_go(self._name, keys)

    def close(self) -> None:
        """Write what waits. The process's store stays open for its other partitions."""
        self._shared.flush()


class ClaimingLookahead(Lookahead):
    """A lookahead in which rows may have to wait for another partition's reply."""

    def __init__(self, plan: Plan, prompts: Prompts, store: ClaimingStore, seat: Seat):
        assert isinstance(plan.task, ModelTask)
        assert plan.client is not None
        super().__init__(
            plan.task,
            plan.client,
            prompts,
            plan.todo,
            store,
            sample=lambda row: plan.place(row)[1],
        )
        self._claims = store
        self._seat = seat
        #: key that another partition asks for -> the rows that wait for it
        self._waiting: dict[bytes, list[int]] = {}
        #: no row is left but those that wait
        self._only_waiting = False

    @property
    def ready(self) -> bool:
        if not self._only_waiting or self._seat.has_news:
            return True
        # Before there is an engine the run would end if nothing were left to look at.
        return not self._seat.at_work

    def look(self) -> Seen:
        seat = self._seat
        if self._only_waiting and not seat.has_news:
            seat.wait(_TICK)
        if seat.stop is not None:
            return Seen(more=False)
        freed = seat.freed()
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
        seat.waiting = sum(map(len, self._waiting.values()))
        return seen

    def settled(self, row: int) -> None:
        if key := self._key.get(row):
            self._claims.let_go([key])
        super().settled(row)
