"""The parts of one run, made from its plan: each run gets its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..clients.descriptors import make_room
from ..record.record import Record
from ..scheduling.adaptive import AdaptiveLimit
from ..scheduling.events import Stop
from ..scheduling.throttle import Throttle
from ..task.answer import Answers
from ..task.kinds import CallableTask, ModelTask
from .lookahead import Lookahead
from .plan import Plan
from .prompts import Prompts
from .state import States
from .work import CallableWork, ModelWork, Work

if TYPE_CHECKING:
    from ..observers import ObserverSpec
    from ..store.contract import ReplyStore

__all__ = ["Display", "Wiring"]


class Display(Protocol):
    """What shows a run while it goes on; only its drain calls it."""

    def update(self, record: Record) -> None:
        """Show how far the run is, if it is time to; cheap to call for every row."""

    def close(self) -> None:
        """Show the last state, and leave it standing. Closing twice does no harm."""


class Wiring:
    """Makes the parts of one run. A subclass can replace any of them.

    Args:
        open_store: opens the store of replies, or gives None; None: there is none.
        open_display: opens a progress bar or a live display for so many rows, or None.

    Attributes:
        prompts: of the run's rows, shared by its parts.
        callback: called for each settled row, or None.
        observers: are told of each event.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        open_store: Callable[[], ReplyStore | None] | None = None,
        open_display: Callable[[int], Display] | None = None,
    ):
        self.plan = plan
        self.open_store = open_store
        self.open_display = open_display
        self.prompts = Prompts(plan.task, plan.rows)
        self.callback = plan.options.showing.callback
        self.observers: Sequence[ObserverSpec] = plan.options.showing.observers

    def make_room(self) -> str:
        """Let there be no more workers than this process may have connections.

        Returns:
            What to tell the user of it; empty where there is nothing to say.
        """
        plan = self.plan
        if plan.client is None or not plan.client.opens_connections:
            return ""
        workers, notice = make_room(plan.workers)
        self.plan = dataclasses.replace(plan, workers=workers)
        return notice

    @property
    def answers(self) -> Answers:
        """Reads the replies of the run, live and kept ones."""
        plan = self.plan
        assert isinstance(plan.task, ModelTask)
        return Answers(
            plan.task,
            truncated=plan.options.failures.truncated,
            max_tokens=None if plan.client is None else plan.client.max_tokens,
        )

    def lookahead(
        self,
        store: ReplyStore,
        todo: Iterable[int] | None = None,
        *,
        offline: bool = False,
        claims: bool = True,
    ) -> Lookahead:
        """Looks rows up in the store, and keeps the prompts of the others in ``prompts``.

        Args:
            todo: the rows to look at; None: all that were not refused.
            claims: rows that need the model will be run, and are claimed.
        """
        plan = self.plan
        assert plan.client is not None
        assert isinstance(plan.task, ModelTask)
        return Lookahead(
            plan.task,
            plan.client,
            self.prompts,
            plan.todo if todo is None else todo,
            store,
            answers=self.answers,
            sample=lambda row: plan.place(row)[1],
            draw=None if plan.draws is None else plan.draw,
            offline=offline,
            workers=plan.workers,
            claims=store.claims if claims else None,
        )

    def throttle(self) -> Throttle | None:
        """The limits of the run, None where it has none."""
        plan = self.plan
        limits, adaptive = plan.options.limits, plan.options.pool.adaptive
        if limits.rate_limit is None and limits.budget is None and adaptive is None:
            return None
        return Throttle(
            plan.workers,
            rate_limit=limits.rate_limit,
            budget=limits.budget,
            adaptive=None if adaptive is None else AdaptiveLimit(adaptive),
            size=self.prompts.size if isinstance(plan.task, ModelTask) else None,
            max_tokens=None if plan.client is None else plan.client.max_tokens,
            price=plan.price,
        )

    def work(self, warn: Callable[[str], object]) -> Work:
        """What a worker does.

        Args:
            warn: takes what the user is told when the run is over.
        """
        plan, pool = self.plan, self.plan.options.pool
        if isinstance(plan.task, CallableTask):
            states = None
            if pool.factory is not None or pool.instances is not None:
                states = States(pool.factory, pool.instances, warn)
            max_pause = plan.options.failures.retry.max_pause
            return CallableWork(plan.task, plan.rows, states, plan.place, max_pause=max_pause)
        assert plan.client is not None
        return ModelWork(plan.task, plan.client, self.prompts, self.answers)

    def ready(self) -> None:
        """What the client does once before a run; may block."""
        plan = self.plan
        if plan.client is not None and isinstance(plan.task, ModelTask):
            plan.client.ready(plan.task, max_workers=plan.workers)

    def started(
        self, stop: Callable[[Stop], object], apply: Callable[[Callable[[], object]], object]
    ) -> None:
        """The run's engine is at work; for who steers it from outside.

        Args:
            stop: starts nothing more, and cancels what runs if the stop says so.
            apply: makes a change where the engine makes its own, and lets a worker that waits ask
                again.
        """
