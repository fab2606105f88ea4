"""What a run is going to do: everything that is decided before anything is sent."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..clients.contract import Client
from ..clients.prices import known_price
from ..errors import UsageError
from ..record.record import Record, RowResult
from ..scheduling.adaptive import Adaptive, AdaptiveLimit
from ..scheduling.events import Failure, Stop
from ..scheduling.limits import Budget, RateLimit
from ..scheduling.policy import Retry
from ..scheduling.throttle import Throttle
from ..tables.rows import Rows
from ..task.kinds import CallableTask, ModelTask
from ..task.tokens import Price, prompt_size
from .cancel import CancelToken
from .lookahead import Lookahead
from .state import States
from .work import CallableWork, ModelWork, Work

if TYPE_CHECKING:
    import asyncio

    from ..observers import ObserverSpec
    from ..store.contract import ReplyStore
    from ..task.chat import Message

__all__ = ["Display", "Plan", "Progress", "available_cpus", "choose_engine", "repeated"]

Progress = Callable[[int, int, RowResult], object]


class Display(Protocol):
    """What shows a run while it goes on; only its drain calls it."""

    def update(self, record: Record) -> None:
        """Show how far the run is, if it is time to; cheap to call for every row."""

    def close(self) -> None:
        """Show the last state, and leave it standing. Closing twice does no harm."""


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before anything is sent.

    Attributes:
        refused: rows that fail without an attempt, and why.
        engine: ``"thread"`` or ``"async"``.
        loop: where the async engine runs when the caller does not await it.
        open_display: opens a progress bar or a live display for so many rows, or None.
        callback: the user's progress callback, or None.
        observers: are told of each event.
        samples: of each of the caller's rows; each is a row here (``record/samples.py``).
        positions: which of all rows they are, where the run has not all of them.
        retry: when a failed attempt is tried again.
        max_failures: the run is stopped when more rows than this have failed; None: never.
        fail_fast: a stop for failures cancels what is running.
        timeout: seconds for the whole run, or None.
        attempt_timeout: seconds for one attempt, or None.
        cancel: the user's token, or None.
        rate_limit, budget: shared with other runs, or None.
        price: of the model's tokens, for a budget in dollars.
        adaptive: how many workers may run is found in the run; None: all of them.
        open_store: opens the store of replies, or gives None; None: there is none.
        factory, instances: what makes a state for each worker, or ready-made ones; at most one.
    """

    task: ModelTask | CallableTask
    rows: Rows
    total: int
    client: Client | None
    engine: Literal["thread", "async"]
    loop: Literal["background", "notebook"]
    workers: int
    refused: Mapping[int, Failure] = field(default_factory=dict)
    open_display: Callable[[int], Display] | None = None
    callback: Progress | None = None
    observers: Sequence[ObserverSpec] = ()
    samples: int = 1
    positions: Sequence[int] | None = None
    retry: Retry = field(default_factory=Retry)
    max_failures: int | None = None
    fail_fast: bool = False
    timeout: float | None = None
    attempt_timeout: float | None = None
    cancel: CancelToken | None = None
    rate_limit: RateLimit | None = None
    budget: Budget | None = None
    price: Price | None = None
    adaptive: Adaptive | None = None
    open_store: Callable[[], ReplyStore | None] | None = None
    factory: Callable[[int], Any] | None = None
    instances: Sequence[Any] | None = None

    @property
    def todo(self) -> Iterable[int]:
        """The rows that were not refused, in order."""
        if not self.refused:
            return range(self.total)
        return (row for row in range(self.total) if row not in self.refused)

    def only(self, rows: Sequence[int]) -> Plan:
        """A plan for some of the rows, none of which was refused."""
        return dataclasses.replace(
            self,
            rows=self.rows.only(rows),
            positions=rows,
            total=len(rows),
            refused={},
            workers=max(1, min(self.workers, len(rows))),
        )

    @property
    def loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """What makes the loop that the client brings, one on a virtual clock, say."""
        return None if self.client is None else self.client.loop_factory

    @property
    def find_price(self) -> Callable[[], Price | None]:
        """Looks up what the model's tokens cost; holds neither the client nor its key."""
        if self.client is None:
            return lambda: None
        prices = None if self.budget is None else self.budget.prices
        model = self.client.model or self.client.name
        return functools.partial(known_price, self.client.provider, model, prices)

    def repeated(self, samples: int) -> Plan:
        """A plan in which each row is run so often."""
        rows, refused = repeated(self.rows, self.refused, samples)
        total = self.total * samples
        return dataclasses.replace(self, rows=rows, refused=refused, total=total, samples=samples)

    def place(self, row: int) -> tuple[int, int]:
        """The caller's number of a row, and the number of its sample; both from 0."""
        return divmod(row if self.positions is None else self.positions[row], self.samples)

    def work(self, rendered: Mapping[int, list[Message]], warn: Callable[[str], object]) -> Work:
        """What a worker does.

        Args:
            rendered: prompts of rows, where they are made already.
            warn: is told what the user is to be told when the run is over.
        """
        if isinstance(self.task, CallableTask):
            states = None
            if self.factory is not None or self.instances is not None:
                states = States(self.factory, self.instances, warn)
            return CallableWork(self.task, self.rows, states, self.place)
        assert self.client is not None
        return ModelWork(self.task, self.client, self.rows, rendered)

    def throttle(self, rendered: Mapping[int, list[Message]]) -> Throttle | None:
        """The limits of the run; ``rendered`` as for :meth:`work`."""
        if self.rate_limit is None and self.budget is None and self.adaptive is None:
            return None

        def size(row: int) -> int:
            assert isinstance(self.task, ModelTask)
            try:
                return prompt_size(rendered.get(row) or self.task.messages(self.rows.mapping(row)))
            except Exception:  # noqa: BLE001 - the attempt fails with it, as that row's error
                return 0

        return Throttle(
            self.workers,
            rate_limit=self.rate_limit,
            budget=self.budget,
            adaptive=None if self.adaptive is None else AdaptiveLimit(self.adaptive),
            size=size if isinstance(self.task, ModelTask) else None,
            max_tokens=None if self.client is None else self.client.max_tokens,
            price=self.price,
        )

    def lookahead(
        self, store: ReplyStore, rendered: MutableMapping[int, list[Message]]
    ) -> Lookahead:
        """What looks rows up in the store, and puts the prompts of the others into ``rendered``."""
        assert self.client is not None
        assert isinstance(self.task, ModelTask)
        return Lookahead(
            self.task,
            self.client,
            self.rows,
            self.todo,
            store,
            rendered,
            sample=lambda row: self.place(row)[1],
        )

    def started(
        self, stop: Callable[[Stop], object], tell: Callable[[Callable[[], object]], object]
    ) -> None:
        """The run's engine is at work; for who steers it from outside.

        Args:
            stop: starts nothing more, and cancels what runs if the stop says so.
            tell: makes a change where the engine makes its own, and lets a worker that waits ask
                again.
        """

    def prepare(self) -> None:
        """What the client does once before a run; may block."""
        if self.client is not None and isinstance(self.task, ModelTask):
            self.client.ready(self.task, max_workers=self.workers)


def repeated(
    rows: Rows, refused: Mapping[int, Failure], samples: int
) -> tuple[Rows, dict[int, Failure]]:
    """So many rows for each one, and which of those are refused."""
    return rows.repeated(samples), {
        row * samples + sample: failure
        for row, failure in refused.items()
        for sample in range(samples)
    }


def available_cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_engine(
    wanted: str, task: ModelTask | CallableTask, client: Client | None
) -> Literal["thread", "async"]:
    """The engine for a task.

    Raises:
        UsageError: the task or its client cannot run on the engine that was asked for.
    """
    if wanted not in ("auto", "thread", "async"):
        raise UsageError(f'engine={wanted!r}: there are "auto", "thread" and "async"')
    can: tuple[str, ...]
    if isinstance(task, CallableTask):
        can = ("async",) if task.is_async else ("thread",)
        why = (
            f"{task.name} is a coroutine function, which runs on a loop"
            if task.is_async
            else f"{task.name} is a plain function, which would block the loop"
        )
    else:
        assert client is not None
        can = client.engines
        why = f"{client!r} runs on the other engine only"
    engine = can[0] if wanted == "auto" else wanted
    if engine not in can:
        raise UsageError(f'engine="{wanted}": {why}; leave engine= out, or pass "{can[0]}"')
    return "thread" if engine == "thread" else "async"
