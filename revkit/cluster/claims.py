"""So that no two workers pay for the same row: keys that are asked for are claimed.

A key that is not in the shared store is claimed at the coordinator before its row is started. A row
whose key another partition has claimed is looked at again, now and then, until its reply is in the
store, or until the claim is given up (the other one failed, or its worker is gone) and this
partition gets it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

from ..clients.base import Message, Reply
from ..lookahead import Lookahead, Seen
from ..plan import Plan
from ..store.shared import SharedStore
from ..task import ModelTask
from .seat import Seat

__all__ = ["ClaimingLookahead", "ClaimingStore"]

#: Seconds after which a row that waits for another partition is looked at again.
_AGAIN = 0.05


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
        """The process's store stays open for its other partitions."""


class ClaimingLookahead(Lookahead):
    """A lookahead in which rows may have to wait for another partition's reply."""

    def __init__(
        self,
        plan: Plan,
        store: ClaimingStore,
        rendered: MutableMapping[int, list[Message]],
        seat: Seat,
    ):
        assert isinstance(plan.task, ModelTask)
        assert plan.client is not None
        super().__init__(
            plan.task,
            plan.client,
            plan.rows,
            plan.todo,
            store,  # type: ignore[arg-type]
            rendered,
            sample=lambda row: plan.place(row)[1],
        )
        self._claims = store
        self._seat = seat
        #: rows that wait for a reply which another partition has asked for
        self._waiting: list[int] = []
        self._looked = float("-inf")
        self._only_waiting = False

    @property
    def ready(self) -> bool:
        if not self._only_waiting or not self._key:
            return True  # with nothing else to do, it waits in ``look``
        return time.monotonic() - self._looked >= _AGAIN

    def look(self) -> Seen:
        if self._seat.stop is not None:
            return Seen(more=False)
        if self._only_waiting and not self._key:
            time.sleep(_AGAIN)
        seen = super().look()
        taken = self._claims.taken
        waits = {row for row in seen.run if self._key[row] in taken}
        for row in waits:
            self._first.pop(self._key.pop(row), None)
            self._rendered.pop(row, None)
        later = [row for row, twin in seen.twins if twin in waits]
        seen.run = [row for row in seen.run if row not in waits]
        seen.twins = [(row, twin) for row, twin in seen.twins if twin not in waits]
        self._waiting += sorted([*waits, *later])
        if not seen.more and self._waiting:
            self._todo, self._waiting = iter(self._waiting), []
            seen.more = self._only_waiting = True
            self._looked = time.monotonic()
            self._seat.waiting = len(waits) + len(later)
        elif not seen.more:
            self._only_waiting, self._seat.waiting = False, 0
        return seen

    def settled(self, row: int) -> None:
        if key := self._key.get(row):
            self._claims.let_go([key])
        super().settled(row)
