"""The options of a run: each is typed, given its default and checked here, and nowhere else.

Callers write flat keyword arguments, typed first. Inside they stand in frozen groups, which are
handed on whole. What an option means: :func:`revkit.parallel_map`. Whether an option fits the task
and the frame is decided in ``api/prepare.py``.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from ..clients.contract import Client
from ..errors import UsageError
from ..observers import ObserverLike, ObserverSpec, resolve
from ..record.record import RowResult
from ..scheduling.adaptive import Adaptive
from ..scheduling.limits import Budget, RateLimit
from ..scheduling.policy import Retry, failure_limit, worker_count
from .cancel import CancelToken

__all__ = [
    "PARAMETERS",
    "ChainOptions",
    "Failures",
    "FrameOptions",
    "Inputs",
    "ItemOptions",
    "Limits",
    "Options",
    "Pool",
    "Progress",
    "Replies",
    "RunOptions",
    "Showing",
    "Writing",
]

On = Hashable | list[Any] | Mapping[str, Hashable] | None
Progress = Callable[[int, int, RowResult], object]


class ChainOptions(TypedDict, total=False):
    """The keyword arguments that several runs in sequence can have in common."""

    model: str | Client | None
    store: bool | str | os.PathLike[str] | None
    max_workers: int | Adaptive | Literal["adaptive"] | None
    worker_cap: int
    progress: bool | Literal["live"] | Progress
    observer: ObserverLike
    fail_fast: bool
    max_failures: float | None
    attempt_timeout: float | None
    retry: Retry | None
    truncated: Literal["error", "keep"]
    cancel: CancelToken | None
    rate_limit: RateLimit | None
    budget: Budget | None


class Options(ChainOptions, total=False):
    """The keyword arguments of every ``parallel_map``."""

    on: On
    output: str | None
    instructions: str | None
    repeat: int
    engine: Literal["auto", "thread", "async"]
    loop: Literal["background", "notebook"]
    factory: Callable[[int], Any] | None
    instances: Sequence[Any] | None
    prefix: str
    error: str | None
    overwrite: bool
    timeout: float | None


class ItemOptions(Options, total=False):
    """Those of ``revkit.parallel_map``."""

    batch_key: str | None


class FrameOptions(Options, total=False):
    """Those of ``df.llm.parallel_map``."""

    inplace: bool


def _recorded(name: str) -> dict[str, str]:
    """Marks an option that stands in ``run.provenance``, under this name."""
    return {"recorded": name}


def _set(group: object, name: str, value: object) -> None:
    object.__setattr__(group, name, value)  # its own __post_init__ may, though it is frozen


def _kind(name: str, given: Any, kind: type[Any]) -> Any:
    if given is not None and not isinstance(given, kind):
        raise UsageError(f"{name}={given!r}: give a revkit.{kind.__name__}, or leave it out")
    return given


def _seconds(name: str, given: Any) -> float | None:
    """A time that was given, None for none; refuses what is none."""
    if given is None or (
        isinstance(given, int | float) and not isinstance(given, bool) and given > 0
    ):
        return None if given is None else float(given)
    raise UsageError(f"{name}={given!r}: give seconds above 0, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Which columns or items are the inputs, and what is made of them."""

    on: On = None
    output: str | None = None
    instructions: str | None = None
    batch_key: str | None = None
    repeat: int = field(default=1, metadata=_recorded("repeat"))

    def __post_init__(self) -> None:
        given = self.repeat
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise UsageError(f"repeat={given!r}: give how often each row is run, 1 or more")


@dataclass(frozen=True, kw_only=True)
class Replies:
    """Which model replies, and where its replies are kept."""

    model: str | Client | None = None
    store: bool | str | os.PathLike[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Pool:
    """How many workers there are, where they run, and what each of them works with."""

    engine: Literal["auto", "thread", "async"] = field(default="auto", metadata=_recorded("engine"))
    loop: Literal["background", "notebook"] = field(
        default="background", metadata=_recorded("loop")
    )
    max_workers: int | Adaptive | Literal["adaptive"] | None = field(
        default=None, metadata=_recorded("max_workers")
    )
    worker_cap: int = 16
    factory: Callable[[int], Any] | None = None
    instances: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        if self.engine not in ("auto", "thread", "async"):
            raise UsageError(f'engine={self.engine!r}: there are "auto", "thread" and "async"')
        if self.loop not in ("background", "notebook"):
            raise UsageError(f'loop={self.loop!r}: there are "background" and "notebook"')
        if self.instances is not None:
            self._check_instances(self.instances)
            _set(self, "max_workers", len(self.instances))
        elif self.factory is not None and not callable(self.factory):
            raise UsageError(
                f"factory={self.factory!r}: give a function that makes a state from a worker's "
                "number"
            )
        if self.max_workers == "adaptive":
            _set(self, "max_workers", Adaptive())
        self.count(0, cpus=1)

    def _check_instances(self, given: Any) -> None:
        if self.factory is not None:
            raise UsageError("give factory= or instances=, not both")
        if not isinstance(given, Sequence) or isinstance(given, str) or not given:
            raise UsageError("instances= takes a list of states, one for each worker")
        if len({id(instance) for instance in given}) < len(given):
            raise UsageError(
                "instances= has the same object twice, and no two workers may share one; use "
                "factory= to make one for each worker"
            )
        if self.max_workers is not None and self.max_workers != len(given):
            raise UsageError(
                f"there are as many workers as instances ({len(given)}): leave max_workers= out"
            )

    @property
    def adaptive(self) -> Adaptive | None:
        """The bounds of a number that is found in the run; None: it does not change."""
        return self.max_workers if isinstance(self.max_workers, Adaptive) else None

    def count(self, rows: int, *, cpus: int) -> int:
        """How many workers a run of so many rows gets; see :func:`worker_count`."""
        wanted: Any = self.max_workers if self.adaptive is None else self.adaptive.maximum
        return worker_count(rows, cpus, max_workers=wanted, worker_cap=self.worker_cap)


@dataclass(frozen=True, kw_only=True)
class Showing:
    """Who is told how the run goes.

    Attributes:
        observers: those that ``observer`` names.
    """

    progress: bool | Literal["live"] | Progress = False
    observer: ObserverLike = "noop"
    observers: Sequence[ObserverSpec] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _set(self, "observers", resolve(self.observer))
        given: Any = self.progress
        is_live = isinstance(given, str) and given == "live"
        if not (callable(given) or isinstance(given, bool) or is_live):
            raise UsageError(
                f'progress={given!r}: True for a bar, "live" for a display with the '
                "timeline, False for none, or a function of (completed, total, row_result)"
            )

    @property
    def callback(self) -> Progress | None:
        """The user's own function, None where there is none."""
        return self.progress if callable(self.progress) else None


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Which columns are written, and whether into the caller's frame."""

    prefix: str = field(default="", metadata=_recorded("prefix"))
    error: str | None = field(default="error", metadata=_recorded("error"))
    overwrite: bool = False
    inplace: bool = True


@dataclass(frozen=True, kw_only=True)
class Failures:
    """When an attempt has failed, whether it is tried again, and how many failures stop a run.

    Attributes:
        truncated: whether a text that was cut at a limit of tokens is a failure.
    """

    fail_fast: bool = field(default=False, metadata=_recorded("fail_fast"))
    max_failures: float | None = field(default=None, metadata=_recorded("max_failures"))
    attempt_timeout: float | None = field(default=None, metadata=_recorded("attempt_timeout_s"))
    retry: Retry = field(default=Retry(), metadata=_recorded("retry"))
    truncated: Literal["error", "keep"] = field(default="error", metadata=_recorded("truncated"))

    def __post_init__(self) -> None:
        if self.truncated not in ("error", "keep"):
            raise UsageError(f'truncated={self.truncated!r}: there are "error" and "keep"')
        _set(self, "retry", _kind("retry", self.retry, Retry) or Retry())
        self.limit(0)
        _set(self, "attempt_timeout", _seconds("attempt_timeout", self.attempt_timeout))

    def limit(self, rows: int) -> int | None:
        """How many of so many rows may fail before the run stops; None: all."""
        return failure_limit(self.max_failures, fail_fast=self.fail_fast, rows=rows)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a run may take and what it may use; all but ``timeout`` can be shared by runs."""

    timeout: float | None = field(default=None, metadata=_recorded("timeout_s"))
    cancel: CancelToken | None = None
    rate_limit: RateLimit | None = field(default=None, metadata=_recorded("rate_limit"))
    budget: Budget | None = field(default=None, metadata=_recorded("budget"))

    def __post_init__(self) -> None:
        for name, kind in (("cancel", CancelToken), ("rate_limit", RateLimit), ("budget", Budget)):
            _kind(name, getattr(self, name), kind)
        _set(self, "timeout", _seconds("timeout", self.timeout))


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """All options of one run, checked."""

    inputs: Inputs = Inputs()
    replies: Replies = Replies()
    pool: Pool = Pool()
    showing: Showing = Showing()
    writing: Writing = Writing()
    failures: Failures = Failures()
    limits: Limits = Limits()

    def replace(self, **changed: Any) -> RunOptions:
        """The same options with some replaced, each by its own name.

        Raises:
            UsageError: one of them is impossible.

        >>> RunOptions().replace(timeout=5, max_workers=2).limits.timeout
        5.0
        """
        groups = {}
        for group in dataclasses.fields(self):
            old = getattr(self, group.name)
            own = {one.name: changed.pop(one.name) for one in _given(old) if one.name in changed}
            if own:
                groups[group.name] = dataclasses.replace(old, **own)
        if changed:
            raise TypeError(f"there is no option {next(iter(changed))}=")
        return dataclasses.replace(self, **groups)

    def recorded(self) -> Iterator[tuple[str, Any]]:
        """The options that stand in ``run.provenance``, by their names there."""
        for group in dataclasses.fields(self):
            values = getattr(self, group.name)
            for one in _given(values):
                if "recorded" in one.metadata:
                    yield one.metadata["recorded"], getattr(values, one.name)


def _given(group: Any) -> list[dataclasses.Field[Any]]:
    """The options of a group, without what is made of them."""
    return [one for one in dataclasses.fields(group) if one.init]


#: Each option as a keyword argument with its default, for the signatures of public functions.
PARAMETERS: Mapping[str, inspect.Parameter] = {
    one.name: inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type
    )
    for group in dataclasses.fields(RunOptions)
    for one in _given(group.default)
}
