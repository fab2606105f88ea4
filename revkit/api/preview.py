"""A look before a run: what would be sent, what the model makes of it, and what it may cost.

A few rows are run as ``parallel_map`` would run them, and their replies are kept like any others;
then all rows are looked up as a run would look them up, without being sent. What the few used is
scaled to the size of all prompts that are left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd

from ..clients.prices import price_finder
from ..clients.too_long import context_for
from ..errors import UsageError, plural
from ..record import columns, metrics
from ..runtime.options import ItemOptions, RunOptions
from ..runtime.plan import Plan
from ..runtime.prompts import Prompts
from ..runtime.run import aexecute, execute
from ..runtime.wiring import Wiring
from ..tables.dtypes import strings
from ..task.kinds import ModelTask
from ..task.sentiment import SENTIMENT
from ..task.tokens import TokenEstimate, prompt_size
from .arguments import TaskLike, checked, shows_options
from .prepare import Prepared, prepare

if TYPE_CHECKING:
    from ..record.record import Record
    from ..task.chat import Message

__all__ = [
    "Expected",
    "LongestPrompt",
    "Preview",
    "RowCounts",
    "apreview",
    "arun_preview",
    "preview",
    "run_preview",
]

#: Most rows that are looked up; what is counted in them is scaled to all.
_LOOKED_AT = 100_000


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What a run would do with each row; the last four add up to ``total``.

    Attributes:
        total: rows; with ``repeat=`` each counts as often as it is repeated, here and below.
        missing_input: rows that fail without being sent, because an input is NA.
        from_store: rows whose reply is kept, the sample's among them.
        duplicates: rows that would share the outcome of a row before them with the same prompt.
        to_ask: rows that are left for the model.
        looked_at: rows that this was counted in: all with their inputs, or 100,000 evenly spaced
            ones, whose counts are scaled.
    """

    total: int
    missing_input: int
    from_store: int
    duplicates: int
    to_ask: int
    looked_at: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run would use for the rows that are left to ask: an estimate.

    Attributes:
        prompt_tokens: by the sample's tokens for each byte, else 3 bytes a token.
        completion_tokens: by the sample's mean; else at most, by the model's ``max_tokens``; None
            where neither is known.
        total_tokens: both; None where one is not known.
        cost_usd: US dollars, by today's price; None where tokens or price are not known.
        time_s: seconds: rows times the sample's mean service time / workers, or what the rate
            limit needs, if that is more. It takes the server to answer all workers at once as
            fast as it answered the sample. None where the sample had no good attempt, and where
            the number of workers is found in the run.
        sampled: rows of the sample whose tokens the estimate rests on.
        basis: in words.
    """

    prompt_tokens: int
    completion_tokens: int | None
    total_tokens: int | None
    cost_usd: float | None
    time_s: float | None
    sampled: int
    basis: str


@dataclass(frozen=True, slots=True)
class LongestPrompt:
    """The longest prompt in bytes, of the sample and the rows that are left to ask.

    Attributes:
        row: its position from 0.
        characters: of all its chat turns.
        tokens: of the prompt: an estimate as in :class:`Expected`, unless they are measured.
        measured: the server has counted the tokens.
        context: tokens of the context that it needs with its reply (``max_tokens``, or 512),
            rounded up to a multiple of 1,024.
        advice: what to do so that it fits; None where nothing needs doing as far as is known.
    """

    row: int
    characters: int
    tokens: int
    measured: bool
    context: int
    advice: str | None


@dataclass(frozen=True, eq=False, repr=False)
class Preview:
    """A look before a run; a notebook shows all of it.

    Attributes:
        prompts: the chat turns of each row of the sample, exactly as they are sent: one line a
            turn, with the frame's index. Columns: ``row`` (int64, position from 0), ``role``,
            ``content``.
        answers: one line for each row of the sample, with the frame's index: ``row``, each output
            (as ``output_<name>`` where its name is taken), ``error``. None where nothing was sent.
        rows: how many rows a run would ask the model for, and what of the others.
        expected: tokens, cost and time of those that are left to ask.
        longest: the longest prompt that is looked at, and the context that it needs; None where
            there is none.
        workers: that the run would have for them, at most.
        model_name: the model's name.
        task: what would be done to each row.
    """

    prompts: pd.DataFrame
    answers: pd.DataFrame | None
    rows: RowCounts
    expected: Expected
    longest: LongestPrompt | None
    workers: int
    model_name: str
    task: ModelTask

    def __repr__(self) -> str:
        from .. import display

        return display.preview_text(self)

    def _repr_html_(self) -> str:
        from .. import display

        return display.preview_html(self)


def run_preview(source: Any, task: Any, n: int, send: bool, options: RunOptions) -> Preview:
    """Preview a task over a frame, a Series or a list."""
    call = prepare(source, task, options)
    sample = _sample(call.plan, n)
    return _read(call, sample, execute(_few(call, sample)) if send else None)


async def arun_preview(source: Any, task: Any, n: int, send: bool, options: RunOptions) -> Preview:
    """:func:`run_preview` on the running loop."""
    import asyncio

    call = prepare(source, task, options)
    sample = _sample(call.plan, n)
    record = await aexecute(_few(call, sample)) if send else None
    return await asyncio.to_thread(_read, call, sample, record)


@shows_options("inplace")
def preview(
    items: Any,
    task: TaskLike = SENTIMENT,
    n: int = 3,
    *,
    send: bool = True,
    **options: Unpack[ItemOptions],
) -> Preview:
    """Show what a run would send, and by a sample of rows what it makes of it and may cost.

    The sample's replies are kept in the store like any others: the run that follows does not ask
    for them again. Nothing is written to a frame, and a row that fails is shown, not raised.

    Args:
        items: as for :func:`revkit.parallel_map`; for frames there is ``df.llm.preview``.
        task: one that asks a model.
        n: rows in the sample, evenly spaced over those that have their inputs; the same rows
            each time.
        send: ask the model for the sample. False: nothing is sent, to no one; tokens are
            estimated by the prompts' sizes.

    The other arguments are those of :func:`revkit.parallel_map`, and are checked as there. Those
    on progress and on where outputs are written have no effect.

    Returns:
        The preview: ``prompts``, ``answers``, ``rows`` (counts) and ``expected`` (tokens, cost in
        US dollars, time in seconds) for the rows that are left to ask; ``longest`` (prompt, with
        the context that it needs).

    Raises:
        UsageError: the call cannot be carried out as written, or the task is a function.

    >>> import revkit
    >>> from revkit.testing import FakeModel
    >>> fake = FakeModel(lambda text: text.split()[-1], latency=2.0, clock="virtual")
    >>> look = revkit.preview(["red wine", "hot milk"] * 50, "Shorten: {item}", n=2, model=fake,
    ...                       max_workers=10)
    >>> look.rows.to_ask, look.expected.prompt_tokens, look.expected.time_s
    (100, 300, 20.0)
    >>> look.prompts
        row  role            content
    25   25  user  Shorten: hot milk
    75   75  user  Shorten: hot milk
    """
    return run_preview(items, task, n, send, checked(preview, options))


@shows_options("inplace", "loop")
async def apreview(
    items: Any,
    task: TaskLike = SENTIMENT,
    n: int = 3,
    *,
    send: bool = True,
    **options: Unpack[ItemOptions],
) -> Preview:
    """:func:`preview`, awaited: runs on the caller's event loop."""
    return await arun_preview(items, task, n, send, checked(apreview, options))


def _sample(plan: Plan, n: Any) -> list[int]:
    """The rows of the sample."""
    if not isinstance(plan.task, ModelTask):
        raise UsageError(
            f"a preview shows prompts, and {plan.task.name} is a function, which has none: call "
            "it on a row yourself"
        )
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UsageError(f"n={n!r}: give a whole number of rows, at least 1")
    return _spread(list(plan.todo), n)


def _spread(rows: Sequence[int], n: int) -> list[int]:
    """At most ``n`` of the rows, evenly spaced: the middle of each n-th part.

    >>> _spread(range(12), 3), _spread(range(2), 3)
    ([2, 6, 10], [0, 1])
    """
    n = min(n, len(rows))
    return [rows[(2 * i + 1) * len(rows) // (2 * n)] for i in range(n)]


def _few(call: Prepared, sample: list[int]) -> Wiring:
    """The sample's run: as the whole one, but all of it is tried, and only the result shown."""
    plan = call.plan.only(sample)
    options = plan.options.replace(
        progress=False, observer=None, max_failures=None, fail_fast=False
    )
    return Wiring(dataclasses.replace(plan, options=options), open_store=call.open_store)


def _read(call: Prepared, sample: list[int], record: Record | None) -> Preview:
    """Make the preview; looks all rows up, and may block."""
    plan, index, wiring = call.plan, call.before.index, call.wiring()
    assert isinstance(plan.task, ModelTask)
    assert plan.client is not None
    places = [plan.place(row)[0] for row in sample]
    answers = None
    if record is not None:
        if record.ended_by is not None:
            raise record.ended_by
        made = {
            f"output_{name}" if name in ("row", "error") else name: values
            for name, values in columns.finished(record.values, plan.task.outputs).items()
        }
        made["error"] = strings([record.error(row) for row in range(record.total)])
        answers = pd.DataFrame({"row": np.array(places, np.int64), **made}, index.take(places))
    prompts = [_messages(wiring.prompts, row) for row in sample]
    turns = [(row, turn) for row, turns in zip(places, prompts, strict=True) for turn in turns]
    rows = [row for row, _ in turns]
    sizes = list(map(prompt_size, prompts))
    counts, left = _look(wiring, offline=record is None)
    return Preview(
        prompts=pd.DataFrame(
            {
                "row": np.array(rows, np.int64),
                "role": strings([turn["role"] for _, turn in turns]),
                "content": strings([turn["content"] for _, turn in turns]),
            },
            index.take(rows),
        ),
        answers=answers,
        rows=counts,
        expected=_expected(plan, counts.to_ask, list(left.values()), record, sizes),
        longest=_longest(wiring, left | dict(zip(sample, sizes, strict=True)), sample, record),
        workers=max(1, min(plan.workers, counts.to_ask)),
        model_name=plan.client.name,
        task=plan.task,
    )


def _messages(prompts: Prompts, row: int) -> list[Message]:
    """The row's chat turns; none where it cannot be rendered, as its error says."""
    try:
        return prompts.render(row)
    except Exception:  # noqa: BLE001 - a value of the user's own may raise anything
        return []


def _look(wiring: Wiring, *, offline: bool) -> tuple[RowCounts, dict[int, int]]:
    """What a run would do with each row, and by row the bytes of each prompt that is left.

    Where not all rows were looked at, a size stands for several prompts.
    """
    plan = wiring.plan
    todo = list(plan.todo)
    looked = _spread(todo, _LOOKED_AT)
    kept = twins = 0
    sizes: dict[int, int] = {}
    store = None if wiring.open_store is None else wiring.open_store()
    if store is None:  # every row is asked for
        sizes = {row: wiring.prompts.size(row) for row in looked}
    else:
        with contextlib.closing(store):
            ahead = wiring.lookahead(store, looked, offline=offline, claims=False)
            more = True
            while more:
                seen = ahead.look()
                more = seen.more
                kept += len(seen.kept)
                twins += len(seen.twins)
                for row in seen.run:
                    sizes[row] = wiring.prompts.size(row)
                    ahead.settled(row)
    scale = len(todo) / max(1, len(looked))
    kept, twins = round(kept * scale), round(twins * scale)
    return RowCounts(
        total=plan.total,
        missing_input=len(plan.refused),
        from_store=kept,
        duplicates=twins,
        to_ask=len(todo) - kept - twins,
        looked_at=len(looked),
    ), sizes


def _expected(
    plan: Plan,
    left: int,
    sizes: list[int],
    record: Record | None,
    sample_sizes: list[int],
) -> Expected:
    """What the rows that are left may use, by what the sample has used."""
    assert plan.client is not None
    prompts, completions = ({}, {}) if record is None else _used(record)
    estimate = TokenEstimate()
    for row, size in enumerate(sample_sizes):
        estimate.observe(size, prompts.get(row))
    most = plan.client.max_tokens
    each: float | None = 0.0 if not left else most
    if completions:
        each = sum(completions.values()) / len(completions)
    scale = left / max(1, len(sizes))
    prompt = estimate.expected(round(sum(sizes) * scale))
    completion = None if each is None else round(each * left)
    total = None if completion is None else prompt + completion
    price, cost = price_finder(plan.client, plan.options.limits.budget)(), None
    if price is not None and (each is not None or not price.cost(1, 1)):
        used = ((estimate.expected(size), each or 0.0) for size in sizes)
        cost = math.fsum(price.cost(*tokens) for tokens in used) * scale
    if completions:
        basis = f"estimated from {plural(len(completions), 'row')}"
    elif most is not None:
        basis = "prompt tokens at 3 bytes each, completion tokens at most, by max_tokens"
    else:
        basis = "prompt tokens at 3 bytes each, completion tokens not known before a reply"
    return Expected(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cost_usd=cost,
        time_s=_time(plan, left, total, record),
        sampled=len(completions),
        basis=basis,
    )


def _longest(
    wiring: Wiring, sizes: dict[int, int], sample: list[int], record: Record | None
) -> LongestPrompt | None:
    """The longest of the prompts, whose sizes in bytes are given by row."""
    client = wiring.plan.client
    assert client is not None
    if not any(sizes.values()):
        return None
    estimate, counted = TokenEstimate(), dict[int, int]()
    for place, row in enumerate(sample if record is not None else ()):
        assert record is not None
        reply, failure = record.replies.get(place), record.failures.get(place)
        # Of a prompt that was cut, the server has counted what was left.
        if reply is None or (failure is not None and failure.type == "PromptTruncated"):
            continue
        estimate.observe(sizes[row], reply.prompt_tokens)
        if reply.prompt_tokens is not None:
            counted[row] = reply.prompt_tokens
    longest = max(sizes, key=lambda row: sizes[row])
    tokens = counted.get(longest, estimate.expected(sizes[longest]))
    context = context_for(tokens, client.max_tokens)
    return LongestPrompt(
        row=wiring.plan.place(longest)[0],
        characters=sum(len(turn["content"]) for turn in wiring.prompts.render(longest)),
        tokens=tokens,
        measured=longest in counted,
        context=context,
        advice=client.context_advice(context),
    )


def _used(record: Record) -> tuple[dict[int, int], dict[int, int]]:
    """Prompt and completion tokens of each row, by all its attempts, or by its kept reply."""
    used: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for row, *counts in zip(
        record.row, record.prompt_tokens, record.completion_tokens, strict=True
    ):
        for count, by_row in zip(counts, used, strict=True):
            if count >= 0:
                by_row[row] = by_row.get(row, 0) + count
    for row, reply in record.replies.items():
        if row in used[0]:  # a run has few probes, so its other rows do not use as many
            used[0][row] -= reply.probe_tokens
        kept = (reply.prompt_tokens, reply.completion_tokens)
        for kept_count, by_row in zip(kept, used, strict=True):
            if kept_count is not None:
                by_row.setdefault(row, kept_count)
    return used


def _time(plan: Plan, left: int, tokens: int | None, record: Record | None) -> float | None:
    """Seconds for the rows that are left, None where they cannot be told."""
    if record is None or plan.options.pool.adaptive is not None:
        return None
    if not left:
        return 0.0
    service = metrics.latency(record)["mean"] / 1e3
    if math.isnan(service):
        return None
    times = [left * service / min(plan.workers, left)]
    rate_limit = plan.options.limits.rate_limit
    if rate_limit is not None:
        if rate_limit.requests_per_minute:
            times.append(left * 60 / rate_limit.requests_per_minute)
        if rate_limit.tokens_per_minute and tokens is not None:
            times.append(tokens * 60 / rate_limit.tokens_per_minute)
    return max(times)
