"""A partition's side of the claims: it claims the keys that it does not find in the shared store.

The coordinator reports when a claim was released (:mod:`revkit.dask.claims`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ..runtime.lookahead import Lookahead, Seen
from ..runtime.plan import Plan
from ..runtime.prompts import Prompts
from ..store.contract import NO_FACTS, Claims, Facts
from ..store.shared import SharedStore
from ..task.answer import Answers
from ..task.chat import Reply
from ..task.kinds import ModelTask
from .session import PartitionSession

__all__ = ["ClaimingLookahead", "ClaimingStore"]


class ClaimingStore:
    """A shared store, and the claims of one partition to its keys.

    Args:
        name: the store's name on all machines.
    """

    #: a claim travels to the coordinator, which takes longer than many rows
    at_once: int | None = 256
    is_due = False

    def __init__(self, shared: SharedStore, session: PartitionSession, name: str):
        self._shared = shared
        self._session = session
        self._name = name
        self._parts = 0
        self.path = shared.path

    @property
    def problem(self) -> str | None:
        return self._shared.problem

    @property
    def claims(self) -> Claims | None:
        return self

    def get(self, keys: Sequence[bytes], *, facts: Facts = NO_FACTS) -> dict[bytes, Reply]:
        return self._shared.get(keys, facts=facts)

    def put(self, items: Iterable[tuple[bytes, Reply]], **about: Any) -> bool:
        return self._shared.put(items, **about)

    def forget(self, keys: Iterable[bytes]) -> None:
        self._shared.forget(keys)

    @property
    def version(self) -> object:
        """Any may have written."""
        return object()

    def claim(self, keys: Sequence[bytes]) -> tuple[Collection[bytes], object]:
        reply = self._session.claim(
            self._name, list(keys), parts=self._parts, part=self._shared.part
        )
        parts = reply.get("parts", ())
        self._parts += len(parts)
        # A claim is released after its reply is on the disk.
        self._shared.look_into(parts)
        return set(reply.get("taken", ())), self.version

    @property
    def has_news(self) -> bool:
        return self._session.news.is_set()

    def freed(self, keys: Sequence[bytes]) -> Collection[bytes]:
        freed = self._session.freed()
        return keys if freed is None else freed.intersection(keys)

    def release(self, keys: Iterable[bytes]) -> None:
        if keys := list(keys):
            self._session.release(self._name, keys)

    def flush(self) -> None:
        """They are reported with all else."""

    def close(self) -> None:
        """Write pending replies. The process's store stays open for its other partitions."""
        self._shared.flush()


class ClaimingLookahead(Lookahead):
    """A lookahead that tells the session how many rows wait for another partition."""

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
            workers=plan.workers,
            claims=store,
        )
        self._session = session

    def is_ready(self, tried: int) -> bool:
        return self._session.stop is not None or super().is_ready(tried)

    def look(self) -> Seen:
        if self._session.stop is not None:
            return Seen(more=False)
        seen = super().look()
        self._session.waiting = self.waiting
        return seen
