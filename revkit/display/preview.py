"""A preview, as its repr and as the cell's output."""

from __future__ import annotations

from html import escape
from typing import Any, NamedTuple, Protocol

from ..errors import one_line
from .facts import row_name
from .markup import heading, page, table, timed
from .words import NONE, dollars, duration, harmless, plural, wrapped

__all__ = ["preview_html", "preview_text"]


class PreviewFacts(Protocol):
    """What is read of a preview to show it: a :class:`revkit.Preview` has it all."""

    @property
    def prompts(self) -> Any: ...
    @property
    def answers(self) -> Any: ...
    @property
    def rows(self) -> Any: ...
    @property
    def expected(self) -> Any: ...
    @property
    def longest(self) -> Any: ...
    @property
    def workers(self) -> int: ...
    @property
    def model_name(self) -> str: ...
    @property
    def task(self) -> Any: ...


_SAMPLED = 10  # rows of a preview that are shown
_TURN = 2000  # characters of a chat turn that are shown


def preview_text(preview: PreviewFacts) -> str:
    """The repr of a preview: lines of at most 100 characters, and nothing that time decides."""
    lines = wrapped("Preview: " + ", ".join(_outlook(preview)), indent=0)
    lines.append(f"model: {harmless(preview.model_name, 80)}")
    figures = [
        value if name == "cost" else f"{value} {name}"
        for name, value in _expected(preview).items()
        if value != NONE
    ]
    lines += wrapped("expected: " + ", ".join(figures), indent=0)
    lines += wrapped(_notes(preview), indent=2, hang=0)
    for line in _longest(preview):
        lines += wrapped(line, indent=0)
    shared, rows, more = _samples(preview)
    if shared:
        lines += ["", "all rows"]
    for where, turns, answer in [("", shared, {}), *rows]:
        lines += ["", where] if where else []
        for role, content in turns:
            lines += [f"  {harmless(role, 40)}", *_indented(content)]
        for name, value in answer.items():
            lines += wrapped(f"-> {name}: {value}", indent=2, hang=3)
    return "\n".join(lines + (["", more] if more else []))


def preview_html(preview: PreviewFacts) -> str:
    """The cell's output: rows, what they may use, the prompts and what the model made of them."""
    parts = [heading(_outlook(preview), preview.model_name)]
    seconds, spent = preview.expected.time_s, NONE
    if seconds is not None:
        spent = f"{duration(seconds)} with {plural(preview.workers, 'worker')}"
    figures = _expected(preview)
    cells = [f"{preview.rows.to_ask:,} to ask", *figures.values(), timed(spent)]
    parts.append(table(("expected", *figures, "time"), [cells]))
    parts.append(f"<p><small>{escape(_notes(preview))}</small></p>")
    parts += [f"<p>{escape(line)}</p>" for line in _longest(preview)]
    shared, rows, more = _samples(preview)
    if shared:
        turns = [(escape(harmless(role, 40)), _as_html(content)) for role, content in shared]
        parts.append(table(("all rows", "prompt"), turns, "revkit-prompts"))
    names = list(dict.fromkeys(name for row in rows for name in row.answer))
    body = [
        (
            escape(row.where),
            "\n".join(_as_html(content) for _, content in row.turns),
            *(escape(row.answer.get(name, "")) for name in names),
        )
        for row in rows
    ]
    head = ("row", "prompt", *map(escape, names))
    parts.append(table(head, body, "revkit-prompts"))
    parts.append(f"<p>{escape(more)}</p>" if more else "")
    return page(parts)


class _Sample(NamedTuple):
    """One row of a preview: its own chat turns, and what the model made of them."""

    where: str
    turns: list[tuple[str, str]]
    answer: dict[str, str]


def _outlook(preview: PreviewFacts) -> list[str]:
    """How many rows there are, and what a run would do with them."""
    rows = preview.rows
    optional = {
        "without an input": rows.missing_input,
        "in the store": rows.from_store,
        "duplicates": rows.duplicates,
    }
    return [
        plural(rows.total, "row"),
        *(f"{count:,} {name}" for name, count in optional.items() if count),
        f"{rows.to_ask:,} to ask",
    ]


def _expected(preview: PreviewFacts) -> dict[str, str]:
    """What the rows that are left may use, but for the time."""
    expected = preview.expected
    return {
        "prompt tokens": f"{expected.prompt_tokens:,}",
        "completion tokens": _count(expected.completion_tokens),
        "total tokens": _count(expected.total_tokens),
        "cost": NONE if expected.cost_usd is None else dollars(expected.cost_usd),
    }


def _notes(preview: PreviewFacts) -> str:
    """What the figures rest on, in sentences."""
    rows, notes = preview.rows, [preview.expected.basis]
    if rows.looked_at < rows.total - rows.missing_input:
        notes.append(f"rows counted in {rows.looked_at:,} evenly spaced ones, and scaled")
    if rows.from_store and preview.answers is not None and preview.answers["error"].isna().any():
        notes.append("the sample's replies are in the store, so a run does not ask for them again")
    return "; ".join(notes)


def _longest(preview: PreviewFacts) -> list[str]:
    """The longest prompt, and what it needs."""
    longest = preview.longest
    if longest is None:
        return []
    about = "" if longest.measured else "about "
    needs = (
        f"longest prompt: row {longest.row}, {plural(longest.characters, 'character')}, "
        f"{about}{plural(longest.tokens, 'token')}; needs a context of {longest.context:,}"
    )
    return [needs] if longest.advice is None else [needs, f"warning: {longest.advice}"]


def _samples(preview: PreviewFacts) -> tuple[list[tuple[str, str]], list[_Sample], str]:
    """The turns that all prompts begin with, the rows that are shown, and what is left out."""
    turns: dict[int, list[tuple[str, str]]] = {}
    columns = [preview.prompts[column].tolist() for column in ("row", "role", "content")]
    for row, role, content in zip(*columns, strict=True):
        turns.setdefault(row, []).append((role, content))
    common = len(preview.task.prefix)
    answers = preview.answers
    shown = preview.prompts.drop_duplicates("row") if answers is None else answers
    rows = []
    for place, (row, label) in enumerate(zip(shown["row"].tolist(), shown.index, strict=True)):
        answer = {} if answers is None else _answer(answers.iloc[place])
        rows.append(_Sample(row_name(row, label), turns.get(row, [])[common:], answer))
    more = len(rows) - _SAMPLED
    left_out = f"{more:,} more rows: preview.prompts, preview.answers" if more > 0 else ""
    return next(iter(turns.values()), [])[:common], rows[:_SAMPLED], left_out


def _answer(row: Any) -> dict[str, str]:
    """A row's outputs, or its error, by name."""
    values = {str(name): value for name, value in row.items() if name != "row"}
    error = values.pop("error")
    shown = {"error": error} if isinstance(error, str) else values
    return {harmless(name, 40): harmless(value, 500) for name, value in shown.items()}


def _lines(text: str) -> list[str]:
    """Foreign text of several lines, each of them harmless."""
    more = len(text) - _TURN
    lines = [one_line(line) for line in text[:_TURN].splitlines()]
    return lines + ([f"... {more:,} more characters: preview.prompts"] if more > 0 else [])


def _indented(text: str) -> list[str]:
    return [part for line in _lines(text) for part in wrapped(line, indent=4, hang=0) or [""]]


def _as_html(text: str) -> str:
    return escape("\n".join(_lines(text)))


def _count(count: int | None) -> str:
    return NONE if count is None else f"{count:,}"
