"""Runs as parts of something larger: method chains, state graphs, other agents, other runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypedDict

import pandas as pd
import pytest

import revkit
from revkit.testing import FakeModel

TRIAGE = revkit.Signature(
    "Sort a ticket.", inputs="ticket", outputs={"topic": ["billing", "delivery"]}
)


def topic_of(text: str) -> str:
    return "billing" if "charged" in text else "delivery"


def tickets() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "ticket": ["charged twice", "no parcel", "charged again", "parcel came open"],
            "country": ["NO", "FR", "FR", "NO"],
        },
        index=[3, 1, 2, 0],
    )


def test_a_run_stands_in_a_chain_of_pandas_methods() -> None:
    model = FakeModel(topic_of)
    frame = tickets()
    counted = (
        frame.assign(words=lambda df: df["ticket"].str.split().str.len())
        .pipe(lambda df: df[df["words"] == 2])
        .pipe(lambda df: df.llm.parallel_map(TRIAGE, model=model, inplace=False).frame)
        .groupby("topic", observed=False)["ticket"]
        .agg(list)
    )
    assert counted.to_dict() == {
        "billing": ["charged twice", "charged again"],
        "delivery": ["no parcel"],
    }
    assigned = frame.assign(
        topic=lambda df: df["ticket"].llm.parallel_map(TRIAGE, model=model).frame["topic"]
    )
    assert assigned["topic"].tolist() == ["billing", "delivery", "billing", "delivery"]
    grouped = [
        group.llm.parallel_map(f"{country}: {{ticket}}", output="seen", model=FakeModel(str))
        for country, group in frame.groupby("country")
    ]
    seen = pd.concat([run.frame for run in grouped]).loc[frame.index, "seen"]
    assert seen.tolist()[:2] == ["NO: charged twice", "FR: no parcel"]
    assert list(frame.columns) == ["ticket", "country"]


class State(TypedDict):
    tickets: list[dict[str, Any]]
    failed: int
    rounds: int


def graph_of(sort: Callable[[State], Any]) -> Any:
    """A graph that runs a node again, at most three times, while rows of it fail."""
    graphs = pytest.importorskip("langgraph.graph")
    graph = graphs.StateGraph(State)
    graph.add_node("sort", sort)
    graph.add_edge(graphs.START, "sort")
    graph.add_conditional_edges(
        "sort", lambda state: "sort" if state["failed"] and state["rounds"] < 3 else graphs.END
    )
    return graph.compile()


def changed(state: State, run: revkit.ParallelResult) -> dict[str, Any]:
    return {
        "tickets": run.frame.astype(object).to_dict("records"),
        "failed": run.metrics.failed,
        "rounds": state["rounds"] + 1,
    }


def test_a_run_is_a_node_of_a_state_graph() -> None:
    broken = ["no parcel"]  # fails once

    def answer(text: str) -> str:
        if text in broken:
            broken.remove(text)
            raise ValueError("not yet")
        return topic_of(text)

    model = FakeModel(answer)

    def sort(state: State) -> dict[str, Any]:
        return changed(
            state, revkit.parallel_map(state["tickets"], TRIAGE, model=model, overwrite=True)
        )

    start: State = {"tickets": tickets().to_dict("records"), "failed": 0, "rounds": 0}
    state = graph_of(sort).invoke(start)
    assert state["rounds"] == 2
    assert [ticket["topic"] for ticket in state["tickets"]] == [
        *("billing", "delivery", "billing", "delivery")
    ]
    assert [ticket["country"] for ticket in state["tickets"]] == ["NO", "FR", "FR", "NO"]


def test_awaited_it_runs_on_the_graphs_own_loop() -> None:
    loops: set[int] = set()

    async def topic(row: Any) -> str:
        loops.add(id(asyncio.get_running_loop()))
        return topic_of(row["ticket"])

    async def sort(state: State) -> dict[str, Any]:
        return changed(state, await revkit.aparallel_map(state["tickets"], topic, overwrite=True))

    async def main() -> tuple[State, int]:
        start: State = {"tickets": tickets().to_dict("records"), "failed": 0, "rounds": 0}
        return await graph_of(sort).ainvoke(start), id(asyncio.get_running_loop())

    state, loop = asyncio.run(main())
    assert state["failed"] == 0
    assert loops == {loop}


def test_a_row_asks_another_agent_through_a_hub() -> None:
    days = {"NO": 2}

    async def main() -> tuple[pd.DataFrame, int]:
        inbox: asyncio.Queue[tuple[str, asyncio.Future[int]]] = asyncio.Queue()
        waiting = most = 0

        async def carrier() -> None:
            while True:
                country, reply = await inbox.get()
                try:
                    reply.set_result(days[country])
                except LookupError as error:
                    reply.set_exception(error)

        async def ask(row: Any) -> int:
            nonlocal waiting, most
            reply = asyncio.get_running_loop().create_future()
            waiting += 1
            most = max(most, waiting)
            inbox.put_nowait((row["country"], reply))
            try:
                return int(await reply)
            finally:
                waiting -= 1

        agent = asyncio.create_task(carrier())
        run = await tickets().llm.aparallel_map(ask, output="days", max_workers=2)
        agent.cancel()
        return run.frame, most

    frame, most = asyncio.run(main())
    assert frame["days"].isna().tolist() == [False, True, True, False]
    assert frame["error"].tolist()[1] == "KeyError: 'FR'"
    assert most == 2


def test_several_frames_at_once_share_the_models_limits() -> None:
    model = FakeModel(topic_of, latency=0.001)
    model.max_tokens = 5
    model.rate_limit = revkit.RateLimit(requests_per_minute=60_000)
    budget = revkit.Budget(tokens=100_000)
    taken: list[float] = []
    reserve = model.rate_limit.reserve

    def counted(tokens: int, now: float) -> float | None:
        refused = reserve(tokens, now)
        if refused is None:
            taken.append(now)
        return refused

    model.rate_limit.reserve = counted  # type: ignore[method-assign]

    async def main() -> list[revkit.ParallelResult]:
        frames = [tickets() for _ in range(3)]
        return await asyncio.gather(
            *(
                frame.llm.aparallel_map(TRIAGE, model=model, budget=budget, max_workers=2)
                for frame in frames
            )
        )

    runs = asyncio.run(main())
    assert [run.metrics.succeeded for run in runs] == [4, 4, 4]
    assert budget.spent_tokens == sum(run.usage.total_tokens or 0 for run in runs)
    assert len(taken) == 12  # each request asked the one limit
    assert model.most_in_flight <= 6


def test_runs_from_several_threads_share_the_background_loop() -> None:
    loops: set[int] = set()
    met = threading.Barrier(2, timeout=60)

    async def where(row: Any) -> str:
        loops.add(id(asyncio.get_running_loop()))
        return "here"

    def run() -> int:
        met.wait()
        return tickets().llm.parallel_map(where).metrics.succeeded

    async def main() -> list[int]:
        return await asyncio.gather(asyncio.to_thread(run), asyncio.to_thread(run))

    assert asyncio.run(main()) == [4, 4]
    assert len(loops) == 1
