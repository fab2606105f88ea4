"""What a run is going to do: everything that is decided before anything is sent."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..clients.contract import Client
from ..errors import UsageError
from ..scheduling.events import Failure
from ..tables.rows import Rows
from ..task.kinds import CallableTask, ModelTask
from ..task.tokens import Price
from .draws import Draws
from .options import RunOptions

if TYPE_CHECKING:
    import asyncio

    from .draws import PartitionDraws, PromptCounts

__all__ = ["Plan", "available_cpus", "choose_engine"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A task, its rows and its model, and the options as they hold for these.

    Attributes:
        refused: rows that fail without an attempt, and why.
        engine: ``"thread"`` or ``"async"``.
        workers: how many there are at most.
        samples: of each of the caller's rows; each is a row here (``record/samples.py``).
        positions: which of all rows they are, where the run has not all of them.
        price: of the model's tokens, for a budget in dollars.
        draws: numbers the rows that have one prompt; None: they share its reply.
        answered: the model has replied to other rows of the call, in an earlier run.
        alive: it has replied to rows of the chunks before this one, in the same call.
    """

    task: ModelTask | CallableTask
    rows: Rows
    total: int
    client: Client | None
    engine: Literal["thread", "async"]
    workers: int
    options: RunOptions
    refused: Mapping[int, Failure] = field(default_factory=dict)
    samples: int = 1
    positions: Sequence[int] | None = None
    price: Price | None = None
    draws: Draws | PartitionDraws | None = None
    answered: bool = False
    alive: bool = False

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

    def repeated(self, samples: int) -> Plan:
        """A plan in which each row is run so often."""
        return dataclasses.replace(
            self,
            rows=self.rows.repeated(samples),
            refused={
                row * samples + sample: failure
                for row, failure in self.refused.items()
                for sample in range(samples)
            },
            total=self.total * samples,
            samples=samples,
            draws=None,
        )

    def with_draws(self, counts: PromptCounts | None = None, *, first: int = 0) -> Plan:
        """The same plan; its rows are draws of their own where the model does not repeat itself.

        Args:
            counts: of the rows before these.
            first: number of the first draw.
        """
        client, task = self.client, self.task
        if client is None or isinstance(task, CallableTask) or client.repeats_itself(task):
            return self
        return dataclasses.replace(self, draws=Draws(self, counts=counts, first=first))

    def draw(self, row: int, key: bytes) -> int:
        """The number of a row's draw; ``key`` is its key as the first one."""
        if self.draws is None:
            return 0
        return self.draws.number(row if self.positions is None else self.positions[row], key)

    def name(self, row: int) -> str:
        """What the caller calls a row: ``row 3``, or ``row 3, sample 0`` with ``repeat=``."""
        number, sample = self.place(row)
        return f"row {number}" + (f", sample {sample}" if self.samples > 1 else "")

    def place(self, row: int) -> tuple[int, int]:
        """The caller's number of a row, and the number of its sample; both from 0."""
        return divmod(row if self.positions is None else self.positions[row], self.samples)


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
