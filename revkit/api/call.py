"""The public function and its awaited twin: ``parallel_map`` and ``aparallel_map``.

A call has four steps: ``arguments.checked`` turns keyword arguments into options, ``prepare``
decides everything, ``runtime.run`` carries it out, and ``finish`` makes the result of its record.
"""

from __future__ import annotations

from typing import Any, Unpack

from ..results.result import ParallelResult
from ..runtime.draws import PromptCounts
from ..runtime.interrupt import noted_interrupts
from ..runtime.options import ItemOptions, RunOptions
from ..runtime.run import aexecute, execute
from ..task.sentiment import SENTIMENT
from .arguments import TaskLike, checked, shows_options
from .finish import finish, unless_interrupted
from .prepare import prepare

__all__ = ["aparallel_map", "arun_task", "parallel_map", "run_task"]


def run_task(
    source: Any,
    task: Any,
    options: RunOptions,
    counts: PromptCounts | None = None,
    *,
    alive: bool = False,
) -> ParallelResult:
    """Run a task over a frame, a Series or a list; for the rest see :func:`prepare`."""
    call = prepare(source, task, options, counts, alive=alive)
    with noted_interrupts() as interrupts:
        result = finish(call, execute(call.wiring(), interrupts))
    return unless_interrupted(result, interrupts)


async def arun_task(source: Any, task: Any, options: RunOptions) -> ParallelResult:
    """:func:`run_task` on the running loop."""
    call = prepare(source, task, options)
    return finish(call, await aexecute(call.wiring()))


@shows_options("inplace")
def parallel_map(
    items: Any, task: TaskLike = SENTIMENT, **options: Unpack[ItemOptions]
) -> ParallelResult:
    """Run a task over every item of a list, in parallel, and keep the order.

    For frames there is the accessor, ``df.llm.parallel_map``, which takes the same arguments.

    Args:
        items: a list of mappings, or of single values (a callable then gets the value itself); a
            mapping of equally long lists, in which any other value is the same for all rows, or
            one without a list, which is one row. Text is no list. A DataFrame or Series is taken
            as well, and not written to.
        task: a :class:`~revkit.Signature`; a template such as ``"Summarise: {review}"``; a
            pydantic model class (with ``instructions=`` and ``on=``); or a function, plain or
            ``async``, that takes a row (a mapping of its columns) and returns one value, or several
            by name: a mapping, a pydantic object, a dataclass's, a named tuple. What no column can
            hold (an iterator, an open file, a function) is that row's error. A parameter named
            ``context`` gets a :class:`~revkit.Context`.
        on: which columns are the inputs: a column for the only input, or a mapping of input to
            column. What is not bound binds by name. For a function: the columns it gets (None:
            all). A row with NA in an input fails with ``MissingInput``; nothing is sent. A
            function without ``on`` gets every row as it is.
        output: the output's name for a template, or a function that returns a scalar
            (``"response"``).
        instructions: for a pydantic model class, what to do.
        batch_key: the key of a mapping under which the list of items stands; its other entries
            play no part.
        repeat: run each row so often, and take the value that most of its samples gave (numbers:
            their median, a float), with ``<output>_agreement``, the share of all samples that gave
            it (Float64, 0 to 1; a failed sample agrees with none), and ``<output>_tied``
            (boolean), where another value was given as often: then the label that was declared
            first is taken, of other values the one that came first. One good sample is enough for
            a row to be ok; ``run.rows`` has each sample, and limits and counts count samples. A
            model needs a temperature above 0 for it: with the default, 0, its samples are alike,
            and a warning says so.
        model: a name (``"local"``, ``"ollama:llama3.2:3b"``, ``"openai:gpt-4.1-mini"``) or a
            client; None: ``revkit.use``, then ``REVKIT_MODEL``, then the embedded model.
        store: where good replies of models are kept, so that the same call is never paid for
            twice: a path; None: ``REVKIT_STORE``, else a file in the user's data directory; False:
            nowhere, and every row is asked for.
        engine: ``"auto"``: async for models and coroutine functions, threads for plain ones.
        loop: ``"background"``: beside the notebook's loop; ``"notebook"``: on it, for functions
            that use objects bound to it.
        max_workers: exactly so many, though never more than the rows; None: min(2 x CPUs,
            ``worker_cap``, rows); a :class:`~revkit.Adaptive` or ``"adaptive"``: as many as the
            server's throughput grows with, found in the run.
        worker_cap: upper limit of the automatic number.
        factory: makes a state for each worker from its number (a session with history, a
            connection), which a function finds in ``context.state``. It is made on the worker's
            own thread, or in its task, where it is first needed; no other worker uses it; it is
            closed there at the end (as a context manager, by ``aclose`` or ``close``). The state
            of an abandoned attempt is not used again. One that cannot be made, or that another
            worker has, ends the run. For a coroutine function plain factories and ``close`` run on
            the loop, and hold it up as long as they take.
        instances: ready-made states instead, and as many workers; they are left open.
        progress: True for a bar; ``"live"``, in a notebook, for one output with counts, errors and
            timeline that is drawn anew in place (elsewhere a bar); or a function
            ``(completed, total, row_result)`` that is called for each settled row, one at a time.
        observer: what is told of each event of the run: ``"jsonl"`` (a line each to standard
            output), ``"logging"`` (the logger ``revkit``), ``"otel"`` (OpenTelemetry), a name
            given to :func:`~revkit.register_observer`, an object with ``on_event(event)``, or a
            list of these; ``"noop"``: nothing.
        prefix: put before the name of each output column.
        error: name of the error column, None for none.
        overwrite: replace columns that this task did not write.
        fail_fast: stop at the first failed row, and cancel what is running.
        max_failures: stop when more rows than this have failed (an int), or more than this share
            of all rows (a float between 0 and 1); what is running may finish.
        attempt_timeout: seconds for one attempt. A function in a thread cannot be cancelled: it is
            abandoned and its thread replaced, at most as often as there are workers. A coroutine
            that blocks its event loop cannot be cancelled either: the run is stopped.
        retry: a :class:`~revkit.Retry`: when a failed attempt is tried again.
        truncated: what becomes of text that was cut at ``max_tokens``: ``"error"``: the row fails
            with ``CutOff``; ``"keep"``: the row is ok and has the cut text, ``run.rows`` marks it,
            and the report counts such rows. Only free text is kept: JSON that was cut is no
            answer, so typed outputs fail either way.
        timeout: seconds for the whole run; what is running then is cancelled, and the run ends
            within about two seconds. A coroutine that blocks the caller's own loop in
            ``aparallel_map``, a hanging disk or a blocking progress callback can delay that. The
            time in which the embedded model is fetched or started does not count.
        cancel: a :class:`~revkit.CancelToken`, which cancels the run from any thread.
        rate_limit: a :class:`~revkit.RateLimit`: most requests and tokens a minute; None: the
            client's own. Runs that are given the same object share it.
        budget: a :class:`~revkit.Budget`: most tokens or dollars. When it has no room for another
            attempt the run is stopped; what is running may finish.

    Returns:
        The result; its ``frame`` has the items, the outputs and ``error``, in the items' order.

    Raises:
        UsageError: the call cannot be carried out as written; nothing was sent.
        RunFailed: every row failed, or the run was stopped; ``.result`` has what was done.
            ``RunTimeout``, ``RunCancelled`` and ``BudgetReached`` are kinds of it.
        Interrupted: the user interrupted the run; ``.result`` has what was done.

    >>> import revkit
    >>> run = revkit.parallel_map([{"n": 1}, {"n": 2}], lambda row: row["n"] * 10, output="ten")
    >>> run.frame
       n  ten error
    0  1   10  <NA>
    1  2   20  <NA>
    """
    return run_task(items, task, checked(parallel_map, options))


@shows_options("inplace", "loop")
async def aparallel_map(
    items: Any, task: TaskLike = SENTIMENT, **options: Unpack[ItemOptions]
) -> ParallelResult:
    """:func:`parallel_map`, awaited: runs on the caller's event loop.

    Raises:
        asyncio.CancelledError: the awaiting task was cancelled; what was done is in
            :func:`last_result`.
    """
    return await arun_task(items, task, checked(aparallel_map, options))
