"""What each worker works with: a state that no other worker uses.

A factory makes it, or it comes ready-made. It is made and closed where it is used, on the
worker's own thread or in its task, because some states (an SQLite connection, a session of an
event loop) can be used nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from typing import Any

from ..errors import FactoryFailed, said
from .cancel import is_done_to

__all__ = ["States"]

#: Values that cannot be changed.
_PLAIN = (str, bytes, int, float, bool, tuple, frozenset, type(None))


class States:
    """The states of one run's workers.

    A state that the factory made is closed when its worker is through: a context manager is
    left (it was entered, and what that gave is the state), then ``aclose`` or ``close`` is called
    where there is one. Ready-made ones are left to who made them.

    Args:
        factory: makes a state from the number of its worker; for tasks it may be a coroutine
            function.
        instances: ready-made states, one for each worker, in place of a factory.
        warn: is told where a state could not be closed.
    """

    def __init__(
        self,
        factory: Callable[[int], Any] | None,
        instances: Sequence[Any] | None,
        warn: Callable[[str], object],
    ):
        self._factory = factory
        self._instances = instances
        self._warn = warn
        #: id of each state in use -> whose it is, and the state, so that the id stays its own
        self._in_use: dict[int, tuple[object, Any]] = {}

    @property
    def replaceable(self) -> bool:
        """Whether a worker that was abandoned with its state can have another one."""
        return self._instances is None

    @contextmanager
    def of(self, worker: int) -> Iterator[Callable[[], Any]]:
        """A way for a thread to get its state, which is made when it is first asked for.

        Getting it raises :class:`~revkit.FactoryFailed`.
        """
        if self._instances is not None:
            ready = self._instances[worker]
            yield lambda: ready
            return
        stack = ExitStack()
        made: list[Any] = []

        def get() -> Any:
            if not made:
                with self._may_fail(worker, lambda error: False):
                    new = self._make(worker)
                    self._claim(new, stack)
                    made.append(_enter(stack, new))
            return made[0]

        try:
            yield get
        finally:
            try:
                stack.close()
            except BaseException as error:  # noqa: BLE001 - reported; its rows are done
                self._not_closed(worker, error)

    @asynccontextmanager
    async def aof(self, worker: int) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
        """:meth:`of` for a task."""
        from asyncio import current_task

        stack, task = AsyncExitStack(), current_task()
        made: list[Any] = []

        async def get() -> Any:
            if not made:
                if self._instances is not None:
                    made.append(self._instances[worker])
                    return made[0]
                with self._may_fail(worker, partial(is_done_to, task)):
                    new = self._make(worker)
                    if inspect.isawaitable(new):
                        new = await new
                    self._claim(new, stack)
                    made.append(await _aenter(stack, new))
            return made[0]

        try:
            yield get
        finally:
            try:
                await stack.aclose()
            except BaseException as error:
                if is_done_to(task, error):
                    raise
                self._not_closed(worker, error)

    def _make(self, worker: int) -> Any:
        assert self._factory is not None
        return self._factory(worker)

    def _claim(self, made: Any, stack: ExitStack | AsyncExitStack) -> None:
        """Refuse what another worker has; what cannot be changed may be the same for all."""
        if isinstance(made, _PLAIN):
            return
        owner, _ = self._in_use.setdefault(id(made), (stack, made))  # whoever is first has it
        if owner is not stack:
            raise ValueError("it gave an object that another worker has, and no two may share one")
        stack.callback(self._in_use.pop, id(made), None)

    @contextmanager
    def _may_fail(
        self, worker: int, is_no_failure: Callable[[BaseException], bool]
    ) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if is_no_failure(error):
                raise
            raise FactoryFailed(
                f"factory({worker}) raised {said(error)}; worker {worker} has no "
                "state without it, so mend the factory and run it again"
            ) from error

    def _not_closed(self, worker: int, error: BaseException) -> None:
        self._warn(f"the state of worker {worker} could not be closed: {said(error)}")


def _enter(stack: ExitStack, made: Any) -> Any:
    close = getattr(made, "close", None)
    if callable(close):
        stack.callback(close)
    return stack.enter_context(made) if isinstance(made, AbstractContextManager) else made


async def _aenter(stack: AsyncExitStack, made: Any) -> Any:
    close = getattr(made, "aclose", None) or getattr(made, "close", None)
    if callable(close):
        stack.push_async_callback(_call, close)
    if isinstance(made, AbstractAsyncContextManager):
        return await stack.enter_async_context(made)
    return stack.enter_context(made) if isinstance(made, AbstractContextManager) else made


async def _call(close: Callable[[], Any]) -> None:
    closed = close()
    if inspect.isawaitable(closed):
        await closed
