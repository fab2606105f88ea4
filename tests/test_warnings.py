"""A warning points to the line of the user's code that led to it."""

from __future__ import annotations

import ast
import asyncio
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import revkit

HERE = __file__
#: One output has the name of a column, which is warned of when the run is over.
WARNS = "it was written as"


def frame() -> pd.DataFrame:
    return pd.DataFrame({"stars": [1, 2]})


def taken(row: Any) -> dict[str, int]:
    return {"stars": 5}


def by_accessor() -> Any:
    return frame().llm.parallel_map(taken)


def by_function() -> Any:
    return revkit.parallel_map(frame(), taken)


def by_pandas_pipe() -> Any:
    return frame().pipe(revkit.parallel_map, taken)


def by_chain() -> Any:
    return revkit.chain([taken]).run(frame())


def by_chunks() -> Any:
    return list(revkit.map_chunks([frame()], taken))


def by_await() -> Any:
    async def main() -> Any:
        return await frame().llm.aparallel_map(taken)

    return asyncio.run(main())


def by_gather() -> Any:
    async def main() -> Any:
        return await asyncio.gather(frame().llm.aparallel_map(taken))

    return asyncio.run(main())


def by_a_thread_of_the_user() -> Any:
    def work() -> None:
        frame().llm.parallel_map(taken)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def by_a_dask_frame() -> Any:
    dd = pytest.importorskip("dask.dataframe")
    import revkit.dask

    ddf = dd.from_pandas(pd.DataFrame({"review": ["a"]}), npartitions=1)
    return ddf.llm.parallel_map(revkit.SENTIMENT, model=revkit.Ollama("m", host="127.0.0.1:9"))


def by_a_callback_of_the_user() -> Any:
    """Inside a run of revkit stands a function of the user's, and in that another run."""

    def inner(row: Any) -> int:
        frame().llm.parallel_map(taken)
        return 1

    return revkit.parallel_map([1], inner)


@pytest.mark.parametrize(
    "door",
    [
        by_accessor,
        by_function,
        by_pandas_pipe,
        by_chain,
        by_chunks,
        by_await,
        by_gather,
        by_a_thread_of_the_user,
        by_a_dask_frame,
        by_a_callback_of_the_user,
    ],
)
def test_a_warning_points_to_the_users_line(door: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        door()
    (warning,) = caught
    assert warning.category is UserWarning
    assert warning.filename == HERE
    code = door.__code__
    last = max(line for *_, line in code.co_lines() if line is not None)
    assert code.co_firstlineno < warning.lineno <= last


def test_in_a_notebook_it_points_to_the_cell() -> None:
    name = "/tmp/ipykernel_1/42.py"
    cell = compile("\n\nrun = df.llm.parallel_map(taken)", name, "exec")
    with pytest.warns(UserWarning, match=WARNS) as caught:
        exec(cell, {"__name__": "__main__", "df": frame(), "taken": taken})
    assert (caught[0].filename, caught[0].lineno) == (name, 3)


def test_a_thread_without_a_line_of_the_user_names_the_file_that_warns() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=revkit.parallel_map, args=(frame(), taken))
        thread.start()
        thread.join()
    (warning,) = caught
    assert Path(warning.filename).is_relative_to(Path(revkit.__file__).parent)


def test_filters_of_the_user_apply_to_the_users_module() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=__name__)
        by_accessor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=WARNS):
            by_accessor()


def test_no_stack_levels_are_counted_by_hand() -> None:
    calls = [
        f"{path.name}:{node.lineno}"
        for path in Path(revkit.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
    ]
    assert calls == []
