"""What is shown of a run, in text and HTML alike: in words, and harmless."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..clients.provider import Provider
from ..clients.registry import provider_of
from .words import NONE, dollars, duration, harmless, number, plural, rows_of

if TYPE_CHECKING:
    import pandas as pd

    from ..record.metrics import Metrics, Usage

__all__ = [
    "Figure",
    "Group",
    "Line",
    "RunFacts",
    "Share",
    "answered",
    "bottleneck",
    "counts",
    "cut_off",
    "errors",
    "figures",
    "latency",
    "next_steps",
    "row_name",
    "setting_of",
    "summaries",
    "time_on_hold",
    "troubles",
    "truncated",
    "usage",
]

_LABELS = 20  # labels that are shown of one output
_GROUPS = 10  # kinds of error that are shown


class RunFacts(Protocol):
    """What is read of a run to show it: a :class:`revkit.ParallelResult` has it all."""

    outputs: dict[str, tuple[Any, ...] | None]
    model_name: str | None
    stopped: str | None
    store: str | None
    store_problem: str | None
    provenance: dict[str, Any]

    @property
    def metrics(self) -> Metrics: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def errors(self) -> pd.DataFrame: ...
    @property
    def latency(self) -> pd.Series: ...
    @property
    def waiting(self) -> pd.DataFrame: ...
    @property
    def bottleneck(self) -> Any: ...
    def latency_by(self, by: str) -> pd.DataFrame: ...
    def summary(self, output: str | None = None) -> pd.DataFrame: ...
    def timeline_png(self) -> bytes: ...


class Share(NamedTuple):
    """A label, and how many rows have it."""

    label: str
    rows: int
    share: float  # 0 to 1


class Figure(NamedTuple):
    """A figure that time decides."""

    name: str
    value: str
    note: str = ""  # what the value rests on


class Line(NamedTuple):
    """A line of the latency table."""

    name: str
    meaning: str
    values: dict[str, str]  # name of a column -> a duration


class Group(NamedTuple):
    """Failed rows whose errors read the same."""

    kind: str
    message: str
    rows: int
    example: str


def counts(metrics: Metrics) -> list[str]:
    """How many rows there are, how many went well, and whatever else happened."""
    optional = {
        "failed": metrics.failed,
        "cancelled": metrics.cancelled,
        "not started": metrics.not_started,
        "from the store": metrics.from_store,
        "duplicates" if metrics.duplicates != 1 else "duplicate": metrics.duplicates,
    }
    return [
        rows_of(metrics.total, metrics.samples),
        f"{metrics.succeeded:,} ok",
        *(f"{count:,} {name}" for name, count in optional.items() if count),
        *([plural(metrics.attempts, "attempt")] if metrics.retries else []),
    ]


def troubles(result: RunFacts) -> list[str]:
    """Why the run was stopped, what the store could not do, and which replies were cut off."""
    metrics = result.metrics
    problems = {"stopped": result.stopped, "store": result.store_problem}
    lines = [f"{what}: {harmless(why, 500)}" for what, why in problems.items() if why is not None]
    if metrics.cut_off:
        limit = result.provenance.get("options", {}).get("max_tokens")
        lines.append(cut_off(metrics.cut_off, metrics.samples, limit))
    if metrics.truncated:
        lines.append(f'{truncated(metrics.truncated)}: run.rows["truncated"] marks them')
    return lines


def truncated(replies: int) -> str:
    """How many replies were cut and kept."""
    were = "reply was" if replies == 1 else "replies were"
    return f'{replies:,} {were} cut at max_tokens and kept (truncated="keep")'


def cut_off(rows: int, samples: int, max_tokens: object = None) -> str:
    """How many rows were cut off, and which setting helps."""
    where = "a limit of tokens" if max_tokens is None else f"max_tokens={harmless(max_tokens, 20)}"
    what = "row" if samples == 1 else "sample"
    were = f"{what} was" if rows == 1 else f"{what}s were"
    return f"{rows:,} {were} cut off at {where}: raise max_tokens="


#: How the form of a reply was asked for.
_FORMS = {"schema": "JSON schema", "json": "JSON mode", "prompt": "prompt alone"}


def answered(result: RunFacts) -> list[str]:
    """Which models answered, if several did; and how the form was asked for, if not by schema."""
    model, lines = result.provenance.get("model") or {}, []
    served, formats = model.get("served") or {}, model.get("formats") or {}
    if len(served) > 1:
        each = [f"{harmless(name, 60)} ({plural(n, 'row')})" for name, n in served.items()]
        more = len(each) - _GROUPS
        each = each[:_GROUPS] + ([f"{more:,} more"] if more > 0 else [])
        lines.append(f"{len(served)} models answered: {', '.join(each)}")
    is_typed = (result.provenance.get("task") or {}).get("kind") != "template"
    if is_typed and set(formats) - {"schema"}:
        parts = [
            f"{_FORMS.get(name) or harmless(name, 20)} {plural(n, 'row')}"
            for name, n in formats.items()
        ]
        lines.append(f"form: {', '.join(parts)}")
    return lines


def summaries(result: RunFacts) -> Iterator[tuple[str, list[Share], str]]:
    """Each class output: its name, its labels in declared order, and what is left out."""
    for name, labels in result.outputs.items():
        if labels:
            table = result.summary(name)
            columns = table.index.tolist(), table["count"].tolist(), table["share"].tolist()
            shares = [
                Share(harmless(label, 39), count, share)  # beside the bar, a line of 100
                for label, count, share in zip(*columns, strict=True)
            ]
            more = len(shares) - _LABELS
            yield (
                harmless(name, 40),
                shares[:_LABELS],
                f"{more:,} more: run.summary({name!r})" if more > 0 else "",
            )


def figures(metrics: Metrics) -> list[Figure]:
    """What time decides of the whole run."""
    rate = metrics.rows_per_s
    attempted = metrics.succeeded + metrics.failed
    speedup = metrics.speedup_estimate
    times = "" if speedup != speedup else " x"
    return [
        Figure("total time", duration(metrics.wall_s)),
        Figure("per row", duration(1 / rate if rate > 0 else float("nan"))),
        Figure("rows per second", number(rate)),
        Figure("success rate", f"{metrics.succeeded / attempted:.1%}" if attempted else NONE),
        Figure("mean concurrency", number(metrics.mean_concurrency)),
        Figure("speed-up, at most", number(speedup) + times, harmless(metrics.speedup_basis)),
        Figure("workers", _workers(metrics)),
    ]


def _workers(metrics: Metrics) -> str:
    if metrics.limit is None:
        return f"{metrics.workers:,} ({metrics.engine})"
    return f"{metrics.limit:,} of at most {metrics.workers:,} ({metrics.engine}, adaptive)"


#: The groups of ``run.latency_by("wave")``: what each line is called, and what it means.
_WAVES = {
    "first": ("first wave", "of these, the first attempt of each worker"),
    "rest": ("the rest", "of these, all others"),
}
#: The waits of ``run.waiting``: what each line is called, and what it means.
_WAITS = {
    "queue": ("queue wait", "other rows had the workers"),
    "limit": ("limit wait", "a rate limit, a budget, or a pause of the server let nobody start"),
    "backoff": ("backoff wait", "after an attempt that failed, until it was time to try again"),
}


def latency(result: RunFacts) -> list[Line]:
    """Service times, and what rows waited for; the first line is there if any attempt was made.

    The others are there where they tell something, which time decides.
    """
    if not result.metrics.attempts:
        return []
    lines = [
        Line("service time", "of the good attempts, from request to reply", _spans(result.latency))
    ]
    waves = result.latency_by("wave").T
    if waves.loc["count"].all():
        lines += [Line(*names, _spans(waves[wave])) for wave, names in _WAVES.items()]
    waiting = result.waiting.T
    lines += [
        Line(*names, _spans(waiting[what]))
        for what, names in _WAITS.items()
        if waiting[what]["max"] > 0
    ]
    return lines


def time_on_hold(metrics: Metrics) -> str:
    """For how long nothing could be started, and why; empty where that never happened."""
    parts = []
    if metrics.outages:
        times = "" if metrics.outages == 1 else f" {metrics.outages} times"
        parts.append(f"server away{times}, {duration(metrics.away_s)}")
    if metrics.pauses:
        pauses = plural(metrics.pauses, "pause")
        parts.append(f"{pauses} of the server, {duration(metrics.paused_s)}")
    if metrics.paced_s > 0:
        parts.append(f"slower starts after many refusals, {duration(metrics.paced_s)}")
    if metrics.limited_s > 0:
        parts.append(f"rate limit or budget, {duration(metrics.limited_s)}")
    return "; ".join(parts)


def bottleneck(result: RunFacts) -> str:
    """That the server was the limit, how that shows, and what helps; empty where it was not."""
    found = result.bottleneck
    if found is None:
        return ""
    model = result.provenance.get("model") or {}
    return (
        f"was the limit: {found.workers:,} workers, but it worked on about {found.slots:,} at a "
        f"time, and a reply took {number(found.stretch)} x as long as the work on it "
        f"({duration(found.service_s)} instead of {duration(found.base_s)}). More workers cannot "
        f"help; {found.slots:,} would be about as fast, with shorter waits. To be faster: "
        f"{setting_of(model.get('settings', {}))}"
    )


def setting_of(settings: Mapping[str, Any]) -> str:
    """What raises the number of requests at once, for a client of these settings."""
    return (provider_of(settings.get("protocol", "")) or Provider).parallelism


def _spans(milliseconds: pd.Series) -> dict[str, str]:
    return {str(k): duration(ms / 1e3) for k, ms in milliseconds.items() if k != "count"}


def usage(result: RunFacts) -> dict[str, str]:
    """Tokens, and what they cost; what is not known or costs nothing is left out."""
    used = result.usage
    tokens = {
        "prompt": used.prompt_tokens,
        "completion": used.completion_tokens,
        "total": used.total_tokens,
    }
    counts = {name: f"{count:,}" for name, count in tokens.items() if count is not None}
    return counts | ({"cost": dollars(used.cost_usd)} if used.cost_usd else {})


def errors(result: RunFacts) -> tuple[list[Group], str]:
    """Failed rows grouped by what went wrong, most frequent first, and what is left out."""
    table = result.errors
    columns = [table[c].tolist() for c in ("error_type", "message", "row", "index", "item")]
    groups: dict[tuple[str, str], Group] = {}
    for kind, message, row, label, item in zip(*columns, strict=True):
        known = groups.get((kind, message))
        if known is not None:
            groups[kind, message] = known._replace(rows=known.rows + 1)
            continue
        groups[kind, message] = Group(
            harmless(kind, 60), harmless(message), 1, f"{row_name(row, label)}: {_item(item)}"
        )
    ordered = sorted(groups.values(), key=lambda group: -group.rows)
    more = len(ordered) - _GROUPS
    return ordered[:_GROUPS], f"{more:,} more kinds of error." if more > 0 else ""


def next_steps(result: RunFacts) -> list[str]:
    """How to go on, by what happened."""
    metrics, steps = result.metrics, []
    keeps = result.store is not None and result.store_problem is None
    if metrics.failed:
        steps.append("Every failed row, with its item and message: run.errors.")
    if metrics.cancelled or metrics.not_started:
        again = "the same call again, which takes from the store what is done; or " if keeps else ""
        steps.append(f"To go on with what is not done: {again}run.retry_failed()")
    elif metrics.failed and (result.errors["error_type"] == "MissingInput").all():
        steps.append("To try them again: fill in what is missing, and make the same call again")
    elif metrics.failed:
        steps.append("To try them again: run.retry_failed()")
    if result.store_problem is not None:
        steps.append("Replies that the store could not keep are in run.frame alone: save it")
    return steps


def row_name(row: int, label: object) -> str:
    """A row by its position, and by its index label where that is another."""
    return f"row {row}" if str(row) == str(label) else f"row {row} (index {harmless(label, 40)})"


def _item(item: object) -> str:
    """A row's inputs on one line."""
    if isinstance(item, Mapping):
        if len(item) == 1:
            (item,) = item.values()
        else:
            pairs = list(item.items())[:8]
            item = ", ".join(f"{harmless(k, 30)}: {harmless(v, 60)}" for k, v in pairs)
    return harmless(item, 120)
