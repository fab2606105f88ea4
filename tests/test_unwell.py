"""Nothing is ok that is not the model's whole answer, whatever a server does (``unwell.py``)."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
import pytest
from examples import examples
from servers import serve
from unwell import TEXT, TYPED, Unwell, right, text

import revkit
from revkit import Retry, RunFailed
from revkit.task.kinds import ModelTask

Engine = Literal["thread", "async"]

#: In the profile that runs at night (``conftest.py``) 20 seeds and 5,000 rows.
SEEDS, ROWS = (examples(per_cent).max_examples for per_cent in (2, 500))
#: Waits that a test can afford; the server is away for few requests, so that few probes do.
QUICK = Retry(attempts=4, initial=0.001, maximum=0.01)


def run_over(
    server: Unwell, rows: int, *, task: ModelTask, engine: Engine, client: str, **options: Any
) -> revkit.ParallelResult:
    """A run of so many rows over a server that is not well, whole or not."""
    frame = pd.DataFrame({"review": [f"review {n}" for n in range(rows)]})
    with serve(server) as at:
        model: revkit.Client
        if client == "ollama":
            model = revkit.Ollama("m", host=at.url)
        else:
            model = revkit.OpenAICompatible("m", base_url=f"{at.url}/v1", api_key="")
        options = {"max_workers": 16, "retry": QUICK, "store": False} | options
        try:
            return frame.llm.parallel_map(task, model=model, engine=engine, **options)
        except RunFailed as failed:
            result: revkit.ParallelResult = failed.result
            return result


def check(run: revkit.ParallelResult, server: Unwell, task: ModelTask) -> None:
    """Every row has its own value, or an error that says what the server did."""
    rows = run.rows.to_dict("records")
    for n, row in enumerate(rows):
        if row["status"] == "ok":
            found = {name: row[name] for name in task.outputs}
            wanted = right(n) if task is TYPED else {"response": text(n)}
            assert found == wanted, f"row {n} met {server.met[n]}"
        else:
            assert row["status"] == "error", f"row {n}: {row['error']}"
            assert row["error_type"] in server.may_end_with(n), (
                f"row {n} met {server.met[n]}: {row['error']}"
            )
            assert row["error"]


@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("task", [TYPED, TEXT], ids=["typed", "text"])
@pytest.mark.parametrize("engine", ["thread", "async"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_value_is_its_rows_own(
    seed: int, engine: Engine, task: ModelTask, client: str
) -> None:
    server = Unwell(seed, typed=task is TYPED, away=(20, 300))
    run = run_over(server, ROWS, task=task, engine=engine, client=client)
    check(run, server, task)
    assert run.metrics.succeeded > 0.8 * ROWS
    assert run.metrics.not_started == 0
