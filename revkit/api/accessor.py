"""``df.llm`` and ``series.llm``: the doors for pandas users.

An accessor only hands its frame on; pandas 3 makes a new one at each ``df.llm``, so it keeps no
state. Columns become rows and results become columns in ``record/columns.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from ..errors import UsageError, warn
from ..results.result import ParallelResult
from ..runtime.options import FrameOptions, Options
from ..task.sentiment import SENTIMENT
from .arguments import TaskLike, checked, shows_options
from .call import arun_task, run_task

if TYPE_CHECKING:
    from .preview import Preview

__all__ = ["DataFrameAccessor", "SeriesAccessor", "register_accessor"]


class DataFrameAccessor:
    """``df.llm``: run a language model, or a function, over every row of a frame."""

    def __init__(self, frame: pd.DataFrame):
        self._frame = frame

    @shows_options("batch_key")
    def parallel_map(
        self, task: TaskLike = SENTIMENT, **options: Unpack[FrameOptions]
    ) -> ParallelResult:
        """Run a task over every row, in parallel, and write the outputs back in row order.

        Args:
            inplace: write the output columns and ``error`` into this frame (default). Where its
                rows were changed while the run went on, nothing is written and a warning says
                so; ``run.frame`` is the finished frame either way.

        The other arguments, what is returned and what is raised: :func:`revkit.parallel_map`.

        >>> import pandas as pd, revkit
        >>> df = pd.DataFrame({"review": ["Superb!", "Broken."]}, index=[7, 7])
        >>> run = df.llm.parallel_map(lambda row: len(row["review"]), output="length")
        >>> df
            review  length error
        7  Superb!       7  <NA>
        7  Broken.       7  <NA>
        """
        return run_task(self._frame, task, checked(DataFrameAccessor.parallel_map, options))

    @shows_options("batch_key", "loop")
    async def aparallel_map(
        self, task: TaskLike = SENTIMENT, **options: Unpack[FrameOptions]
    ) -> ParallelResult:
        """:meth:`parallel_map`, awaited: runs on the caller's event loop."""
        return await arun_task(self._frame, task, checked(DataFrameAccessor.aparallel_map, options))

    @shows_options("batch_key")
    def preview(
        self,
        task: TaskLike = SENTIMENT,
        n: int = 3,
        *,
        send: bool = True,
        **options: Unpack[FrameOptions],
    ) -> Preview:
        """Show what a run would send, and by a sample of rows what it makes of it and may cost.

        Args:
            n: rows in the sample.
            send: ask the model for the sample, whose replies are kept; False: send nothing.

        Nothing is written to this frame. The other arguments, what is returned and what is
        raised: :func:`revkit.preview`.

        >>> import pandas as pd, revkit
        >>> from revkit.testing import FakeModel
        >>> df = pd.DataFrame({"city": ["Oslo", "Lyon", None]})
        >>> df.llm.preview("Which country is {city} in?", n=1, model=FakeModel(["France"]))
        Preview: 3 rows, 1 without an input, 2 to ask
        model: fake
        expected: 10 prompt tokens, 2 completion tokens, 12 total tokens
          estimated from 1 row
        longest prompt: row 0, 25 characters, about 5 tokens; needs a context of 1,024
        <BLANKLINE>
        row 1
          user
            Which country is Lyon in?
          -> response: France
        """
        from .preview import run_preview

        return run_preview(self._frame, task, n, send, checked(DataFrameAccessor.preview, options))

    @shows_options("batch_key", "loop")
    async def apreview(
        self,
        task: TaskLike = SENTIMENT,
        n: int = 3,
        *,
        send: bool = True,
        **options: Unpack[FrameOptions],
    ) -> Preview:
        """:meth:`preview`, awaited: runs on the caller's event loop."""
        from .preview import arun_preview

        return await arun_preview(
            self._frame, task, n, send, checked(DataFrameAccessor.apreview, options)
        )


class SeriesAccessor:
    """``series.llm``: the same over the values of a Series; the results are in ``run.frame``."""

    def __init__(self, series: pd.Series):
        self._series = series

    @shows_options("inplace", "on", "batch_key")
    def parallel_map(
        self, task: TaskLike = SENTIMENT, **options: Unpack[Options]
    ) -> ParallelResult:
        """Run a task over every value; a callable gets the value itself.

        The arguments, what is returned and what is raised: :func:`revkit.parallel_map`.

        >>> import pandas as pd, revkit
        >>> run = pd.Series(["a", "bb"], name="word").llm.parallel_map(len, output="length")
        >>> run.frame
          word  length error
        0    a       1  <NA>
        1   bb       2  <NA>
        """
        return run_task(
            self._series, task, checked(SeriesAccessor.parallel_map, options, hidden="on")
        )

    @shows_options("inplace", "on", "batch_key", "loop")
    async def aparallel_map(
        self, task: TaskLike = SENTIMENT, **options: Unpack[Options]
    ) -> ParallelResult:
        """:meth:`parallel_map`, awaited: runs on the caller's event loop."""
        return await arun_task(
            self._series, task, checked(SeriesAccessor.aparallel_map, options, hidden="on")
        )

    @shows_options("inplace", "on", "batch_key")
    def preview(
        self,
        task: TaskLike = SENTIMENT,
        n: int = 3,
        *,
        send: bool = True,
        **options: Unpack[Options],
    ) -> Preview:
        """Show what a run would send, and by a sample of values what it makes of it and may cost.

        The arguments, what is returned and what is raised: :func:`revkit.preview`.
        """
        from .preview import run_preview

        return run_preview(
            self._series, task, n, send, checked(SeriesAccessor.preview, options, hidden="on")
        )

    @shows_options("inplace", "on", "batch_key", "loop")
    async def apreview(
        self,
        task: TaskLike = SENTIMENT,
        n: int = 3,
        *,
        send: bool = True,
        **options: Unpack[Options],
    ) -> Preview:
        """:meth:`preview`, awaited: runs on the caller's event loop."""
        from .preview import arun_preview

        return await arun_preview(
            self._series, task, n, send, checked(SeriesAccessor.apreview, options, hidden="on")
        )


def register_accessor(name: str) -> None:
    """Register the accessors under another name than ``llm``.

    Args:
        name: an identifier; ``df.<name>.parallel_map`` is then the door.

    Raises:
        UsageError: the name is no identifier, or frames or Series have it already.

    >>> import pandas as pd, revkit
    >>> revkit.register_accessor("revkit")
    >>> pd.Series([3]).revkit.parallel_map(lambda x: x + 1).frame["response"].tolist()
    [4]
    """
    if not name.isidentifier():
        raise UsageError(f"{name!r} cannot be the name of an accessor: it is not an identifier")
    if not _free(name):
        raise UsageError(f'"{name}" is taken already on DataFrame or Series; choose another name')
    _register(name)


def _free(name: str) -> bool:
    """Whether no one else has the name: revkit's own accessor may be registered again."""
    found: list[Any] = [getattr(kind, name, None) for kind in (pd.DataFrame, pd.Series)]
    return all(thing is None or getattr(thing, "__module__", None) == __name__ for thing in found)


def _register(name: str) -> None:
    for kind, register, accessor in (
        (pd.DataFrame, pd.api.extensions.register_dataframe_accessor, DataFrameAccessor),
        (pd.Series, pd.api.extensions.register_series_accessor, SeriesAccessor),
    ):
        if not hasattr(kind, name):
            register(name)(accessor)


def register_default() -> None:
    """Register ``llm`` at import, unless another package was there first."""
    if _free("llm"):
        _register("llm")
        return
    warn(
        "another package has registered the accessor `llm`, so revkit leaves it alone; "
        'revkit.register_accessor("revkit") gives it another name'
    )
