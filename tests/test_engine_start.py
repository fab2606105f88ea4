"""An engine that cannot be started leaves no loop and no thread behind, on any clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import revkit
from revkit.runtime.drain import Drain
from revkit.runtime.engines import beside
from revkit.runtime.engines.beside import LoopBeside, LoopThread
from revkit.runtime.wiring import Wiring
from revkit.testing import FakeModel

LIMIT = 10.0


def loops() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "revkit-run-loop"]


def fails(error: BaseException, before: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function that fails, after the one in its place if that is given."""

    def failing(*args: Any, **options: Any) -> Any:
        if before is not None:
            before(*args, **options)
        raise error

    return failing


POINTS: dict[str, tuple[Any, str]] = {
    "the loop's clock is read": (beside, "clock_of"),
    "the engine is made": (LoopBeside, "__init__"),
    "the engine is started": (LoopBeside, "start"),
    "the drain is told": (Drain, "starts"),
    "the wiring is told": (Wiring, "started"),
}


@pytest.mark.parametrize("with_store", [False, True])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("point", POINTS)
def test_a_virtual_loop_ends_wherever_its_start_fails(
    point: str,
    error: BaseException,
    with_store: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    place, name = POINTS[point]
    after = None if point.startswith(("the loop's", "the engine is made")) else getattr(place, name)
    monkeypatch.setattr(place, name, fails(error, after))
    df = pd.DataFrame({"review": ["good"] * 20})
    fake = FakeModel(lambda text: "positive", latency=1.0, clock="virtual")
    store = tmp_path / "store" if with_store else False
    with pytest.raises(type(error)):
        df.llm.parallel_map(model=fake, max_workers=4, store=store)
    for loop in loops():
        loop.join(LIMIT)
    assert loops() == []
    monkeypatch.undo()
    assert df.llm.parallel_map(model=fake, max_workers=4, store=store).metrics.failed == 0


def test_a_loop_is_closed_whose_thread_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    from revkit.testing.clock import VirtualClockLoop

    made: list[VirtualClockLoop] = []

    def factory() -> VirtualClockLoop:
        made.append(VirtualClockLoop())
        return made[-1]

    monkeypatch.setattr(threading.Thread, "start", fails(RuntimeError("can't start new thread")))
    with pytest.raises(RuntimeError, match="new thread"):
        LoopThread(factory, "revkit-run-loop")
    assert made[0].is_closed()


def test_no_thread_of_a_loop_is_left_after_a_run() -> None:
    df = pd.DataFrame({"review": ["good"]})
    run = df.llm.parallel_map(model=FakeModel(["positive"], clock="virtual"))
    assert isinstance(run, revkit.ParallelResult)
    for loop in loops():
        loop.join(LIMIT)
    assert loops() == []
