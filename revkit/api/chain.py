"""Steps in sequence: each is parallel over rows, and sees the columns of those before it.

A :class:`Chain` is a plan that can be run on several frames. What a run that stopped has done is
kept in it, so that running it again on the same rows goes on from there.
"""

from __future__ import annotations

import html
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Unpack, overload

import pandas as pd

from ..errors import ColumnExists, Interrupted, MissingColumn, RunFailed, UsageError, nearest
from ..record import columns
from ..results.result import ParallelResult
from ..runtime.options import (
    PARAMETERS,
    ChainOptions,
    Inputs,
    Options,
    RunOptions,
)
from ..tables.dtypes import same_rows
from ..task.kinds import CallableTask, ModelTask
from .arguments import TaskLike, checked, shows_options
from .call import arun_task, run_task
from .finish import last_result
from .prepare import Prepared, prepare, written_columns

__all__ = ["Chain", "ChainResult", "Step", "chain"]


class Step:
    """One step of a :func:`chain`: a task, and how it is run.

    Args:
        task: as for :func:`revkit.parallel_map`.
        name: what the step is called in results and messages. None: the name of a function, else
            ``output=``, else the first output of the task, else ``"response"``.
        options: those of :func:`revkit.parallel_map`. Two have other defaults here, so that steps
            do not get in each other's way: ``output=`` of a function or template is the step's
            name, and ``error=`` is ``"<name>_error"``.

    >>> import revkit
    >>> revkit.Step("Summarise: {review}", output="summary", max_workers=4)
    Step('summary')
    """

    @shows_options("inplace", "batch_key")
    def __init__(self, task: TaskLike, *, name: str | None = None, **options: Unpack[Options]):
        self.task = task
        self.options: dict[str, Any] = dict(options)
        self.name = _name_of(task, self.options) if name is None else name
        if not isinstance(self.name, str) or not self.name:
            raise UsageError(f"Step(name={name!r}): a name is a text")
        names_its_own = isinstance(task, ModelTask) or hasattr(task, "model_fields")
        #: its task is a function, so that options about models are none of its own
        self.is_callable = callable(task) and not names_its_own
        #: the columns that it writes are known before it has run
        self.is_open = self.is_callable and (
            "output" not in self.options or self.options.get("repeat", Inputs.repeat) != 1
        )
        if not names_its_own:
            self.options.setdefault("output", self.name)
        self.options.setdefault("error", f"{self.name}_error")

    def __repr__(self) -> str:
        return f"Step({self.name!r})"


def _name_of(task: Any, options: Mapping[str, Any]) -> str:
    named = getattr(task, "__name__", None)
    if named is not None and named != "<lambda>":
        return str(named)
    if options.get("output") is not None:
        return str(options["output"])
    return next(iter(task.outputs)) if isinstance(task, ModelTask) else "response"


#: Options that go only with tasks that ask a model.
_OF_MODELS = frozenset({"model", "store", "rate_limit", "budget", "truncated"})


class ChainResult(Sequence[ParallelResult]):
    """The result of each step of a :func:`chain`, by position or by name.

    Attributes:
        names: of the steps that have a result, in their order.
        frame: the frame with the columns of all of these steps.
    """

    def __init__(self, names: Iterable[str], results: Iterable[ParallelResult]):
        self._results = list(results)
        self.names = list(names)[: len(self._results)]

    @property
    def frame(self) -> pd.DataFrame:
        return self._results[-1].frame

    @overload
    def __getitem__(self, which: int | str) -> ParallelResult: ...
    @overload
    def __getitem__(self, which: slice) -> ChainResult: ...
    def __getitem__(self, which: int | str | slice) -> ParallelResult | ChainResult:
        if isinstance(which, slice):
            return ChainResult(self.names[which], self._results[which])
        if isinstance(which, str):
            if which not in self.names:
                raise KeyError(f'no step "{which}" has a result; {nearest(which, self.names)}')
            which = self.names.index(which)
        return self._results[which]

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        lines = [f"ChainResult: {len(self)} step{'s' * (len(self) != 1)}"]
        for name, result in zip(self.names, self._results, strict=True):
            lines.append(
                f"  {name}: {repr(result).splitlines()[0].removeprefix('ParallelResult: ')}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return "".join(
            f"<h4>{html.escape(name)}</h4>{result._repr_html_()}"
            for name, result in zip(self.names, self._results, strict=True)
        )


@dataclass
class _Work:
    """One run of a chain: how far it is.

    Attributes:
        source: what the first step gets.
        before: the same as a frame, to know it again.
        options: of each step.
        done: results of the steps that are finished.
        partial: what the step that stopped had done, None where it had not begun.
    """

    source: Any
    before: pd.DataFrame
    options: list[RunOptions]
    done: list[ParallelResult] = field(default_factory=list)
    partial: ParallelResult | None = None

    @property
    def input(self) -> Any:
        """What the next step gets."""
        return self.done[-1].frame if self.done else self.source


class Chain:
    """Steps in sequence; made by :func:`chain`.

    Attributes:
        steps: in their order.
        results: of the last run: one for each step that is finished, and the partial one of the
            step that stopped; None before the first.
    """

    def __init__(self, steps: Iterable[Step], options: Mapping[str, Any]):
        self.steps = list(steps)
        self.results: ChainResult | None = None
        self._options = dict(options)
        self._stopped: _Work | None = None

    def run(self, frame: Any) -> ChainResult:
        """Run the steps over a frame's rows, one step after the other.

        A step's outputs are columns for the steps after it. A row that failed in one step is NA
        in those columns: a later step that needs one does not run that row, which fails there
        with ``MissingInput``.

        Where a step stops the run (it raises), running the same chain on the same rows again goes
        on from there. "The same rows" are an equal index and equal values in all columns. Then

        - the steps before it are not run again: their results are kept in the chain;
        - of the step that stopped, the rows that are ok are kept; those that failed, were
          cancelled or never started are run (:meth:`~revkit.ParallelResult.retry_failed`);
        - the steps after it are run.

        With other rows, or after a run that came to its end, it starts anew. So it does in
        another process, or for a chain that was made anew (as when one cell makes and runs it):
        then replies of models come from the store where there is one, and functions are called
        for every row again.

        Args:
            frame: a DataFrame, which is not written to; or what :func:`revkit.parallel_map` takes.

        Returns:
            One result for each step; ``.frame`` has the columns of all.

        Raises:
            UsageError: a step cannot be carried out as it is written (a column that it needs is
                neither in the frame nor written by a step before it, two steps write the same
                column, ...). All is checked before the first step begins, but for the outputs of
                a function without ``output=``, which are known only when it has run.
            RunFailed, Interrupted: as for ``parallel_map``; ``.results`` has what is done.
        """
        work = self._begin(frame)
        for step, options in self._remaining(work):
            with self._partial_kept(work, step):
                if work.partial is not None:
                    result = work.partial.retry_failed()
                else:
                    result = run_task(work.input, step.task, options)
            self._finish_step(work, result)
        return self._end(work)

    async def arun(self, frame: Any) -> ChainResult:
        """:meth:`run`, awaited: runs on the caller's event loop.

        Raises:
            asyncio.CancelledError: the awaiting task was cancelled; :attr:`results` has what is
                done.
        """
        work = self._begin(frame)
        for step, options in self._remaining(work):
            with self._partial_kept(work, step):
                if work.partial is not None:
                    result = await work.partial.aretry_failed()
                else:
                    result = await arun_task(work.input, step.task, options)
            self._finish_step(work, result)
        return self._end(work)

    def _begin(self, source: Any) -> _Work:
        """Check all steps; go on with what stopped, if this is the same."""
        if isinstance(source, Iterable) and not isinstance(
            source, pd.DataFrame | pd.Series | Mapping | str | bytes
        ):
            source = list(source)  # it is read more than once
        work = self._checked(source)
        stopped, self._stopped = self._stopped, None
        if stopped is not None and _same(stopped.before, work.before):
            return stopped
        return work

    def _remaining(self, work: _Work) -> Iterator[tuple[Step, RunOptions]]:
        """The steps that are not finished, and their options."""
        while len(work.done) < len(self.steps):
            yield self.steps[len(work.done)], work.options[len(work.done)]

    def _finish_step(self, work: _Work, result: ParallelResult) -> None:
        work.done.append(result)
        work.partial = None

    def _end(self, work: _Work) -> ChainResult:
        self.results = ChainResult([step.name for step in self.steps], work.done)
        return self.results

    @contextmanager
    def _partial_kept(self, work: _Work, step: Step) -> Iterator[None]:
        """Keep what is done when a step ends in an exception, and say so."""
        before, source = last_result(), work.input
        try:
            yield
        except BaseException as error:
            if isinstance(error, RunFailed | Interrupted):
                work.partial = error.result
            elif not isinstance(error, Exception):  # cancelled: it carries no result
                last = last_result()
                if last is not None and last is not before and _is_of(last, step, source):
                    work.partial = last
            self._stopped = work
            results = [*work.done, *([work.partial] if work.partial is not None else [])]
            self.results = ChainResult([one.name for one in self.steps], results)
            if isinstance(error, RunFailed | Interrupted):
                error.results = self.results
            number = f"step {len(work.done) + 1} of {len(self.steps)}"
            on = "running the same chain on the same rows goes on from there"
            if isinstance(error, UsageError):
                on = "mend the step, and make the chain anew (replies of models are in the store)"
            error.add_note(
                f'This was {number} of the chain, "{step.name}". What is done is in '
                f"chain.results; {on}."
            )
            raise

    def _checked(self, source: Any) -> _Work:
        """Refuse what no step has to begin for; gives each step the options that it runs with."""
        found: list[RunOptions] = []
        before: pd.DataFrame | None = None
        written: dict[Hashable, str] = {}
        like, is_open = source, False
        for number, step in enumerate(self.steps, start=1):
            shared = {
                name: value
                for name, value in self._options.items()
                if not (step.is_callable and name in _OF_MODELS)
            }
            try:
                options = checked(Step, {**shared, **step.options})
                call, like = _prepared(step, like, options, is_open=is_open)
                labels = written_columns(call.plan.task, options, is_open=step.is_open)
                twice = [label for label in labels if label in written]
                if twice and not options.writing.overwrite:
                    raise ColumnExists(
                        f'the column "{twice[0]}" is written by step "{written[twice[0]]}" before '
                        'it; give one of them Step(..., prefix="…"), or another output= or error=; '
                        "or pass overwrite=True"
                    )
            except UsageError as error:
                error.add_note(f'This is step {number} of the chain, "{step.name}".')
                raise
            if call.plan.client is not None:
                options = options.replace(
                    model=call.plan.client
                )  # the same one, whatever is set meanwhile
            found.append(options)
            if before is None:
                before, like = call.before, call.before.iloc[:0]
            is_open = is_open or step.is_open
            written |= dict.fromkeys(labels, step.name)
            like, nothing = like.copy(), pd.array([], dtype="object")
            columns.write(like, dict.fromkeys(labels, nothing), call.plan.task.fingerprint)
        assert before is not None
        return _Work(source, before, found)

    def __repr__(self) -> str:
        return f"Chain({' -> '.join(step.name for step in self.steps)})"


def _prepared(step: Step, like: Any, options: RunOptions, *, is_open: bool) -> tuple[Prepared, Any]:
    """Decide about a step on what it will get: the columns, without their rows.

    Args:
        is_open: a step before it may write columns that are not known yet: one that is missing
            is added.
    """
    while True:
        try:
            call = prepare(like, step.task, options)
        except MissingColumn as error:
            if not is_open or error.column is None or error.column in like.columns:
                raise
            like = like.copy()
            like[error.column] = pd.array([], dtype="object")
        else:
            return call, like


def _same(before: pd.DataFrame, now: pd.DataFrame) -> bool:
    return list(before.columns) == list(now.columns) and same_rows(now, before, before.columns)


def _is_of(result: ParallelResult, step: Step, source: Any) -> bool:
    """Whether a result is what the step made of its input; another run may have ended meanwhile."""
    made = result.task.fn if isinstance(result.task, CallableTask) else result.task
    if made is not step.task and not isinstance(step.task, str | type):
        return False
    if not isinstance(source, pd.DataFrame):
        return len(result.frame) == len(source)
    return same_rows(result.frame, source, source.columns)


@shows_options(*(PARAMETERS.keys() - ChainOptions.__annotations__))
def chain(steps: Iterable[Step | TaskLike], **options: Unpack[ChainOptions]) -> Chain:
    """Put steps in sequence: each is parallel over rows, and sees the columns of those before it.

    Args:
        steps: a :class:`Step` each; or a task alone, which then has the defaults of one.
        options: for every step that does not say otherwise itself, with the meaning that they
            have in :func:`revkit.parallel_map`: each bounds one step, but a ``budget``,
            ``rate_limit`` or ``cancel`` is one object that all steps share. Steps that are
            functions do not get those about models.

    Returns:
        A chain, to be run on one frame or several: :meth:`Chain.run`, or ``await`` its
        :meth:`Chain.arun`.

    Raises:
        UsageError: there is no step, or two have the same name.

    >>> import pandas as pd, revkit
    >>> from revkit.testing import FakeModel
    >>> def words(row):
    ...     return len(row["review"].split())
    >>> def verdict(row):
    ...     return f"{row['sentiment']} in {row['words']} words"
    >>> pipeline = revkit.chain([revkit.SENTIMENT, words, verdict],
    ...                         model=FakeModel(["positive", "negative"]))
    >>> results = pipeline.run(pd.DataFrame({"review": ["so good", "it broke at once"]}))
    >>> results
    ChainResult: 3 steps
      sentiment: 2 rows, 2 ok
      words: 2 rows, 2 ok
      verdict: 2 rows, 2 ok
    >>> results.frame["verdict"].tolist()
    ['positive in 2 words', 'negative in 4 words']
    >>> results["sentiment"].summary()["count"].to_dict()
    {'positive': 1, 'neutral': 0, 'negative': 1}
    """
    if isinstance(steps, str | bytes | Step | Mapping) or not isinstance(steps, Iterable):
        raise UsageError(
            f"chain() takes a list of steps, not {type(steps).__name__}: "
            "chain([first_task, revkit.Step(second_task, on=…)])"
        )
    listed = [step if isinstance(step, Step) else Step(step) for step in steps]
    if not listed:
        raise UsageError("chain([]): at least one step is needed")
    names = [step.name for step in listed]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f'two steps are called "{name}"; give them names: revkit.Step(task, name="…")'
            )
    known = list(ChainOptions.__annotations__)
    for option in options:  # as Python does, and with the nearest name
        if option not in known:
            raise TypeError(
                f"chain has no argument {option}=; {nearest(option, known)} Others go to a step: "
                f"revkit.Step(task, {option}=…)"
            )
    return Chain(listed, options)
