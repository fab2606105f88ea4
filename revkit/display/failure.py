"""Why a run failed, as the message of :class:`revkit.RunFailed`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..errors import plural
from ..record.metrics import cut_off
from ..scheduling.events import Status, StopKind
from . import facts

if TYPE_CHECKING:
    from ..record.record import Record

__all__ = ["failure_message"]

#: Failures that read the same are one group; so many groups are shown.
_GROUPS = 5


def failure_message(record: Record) -> str:
    """The first failure in time, then the others grouped, with counts."""
    failed, done = (record.status.count(status) for status in (Status.ERROR, Status.OK))
    next_step = "The partial result is in .result of this error, and in revkit.last_result()."
    if done and record.store is not None and record.store_problem is None:
        next_step += " Run the same again to go on from there: replies that came are kept."
    left = record.total - done - failed
    row_or_sample = "row" if record.samples == 1 else "sample"
    rows = f"{row_or_sample}s"
    head = (
        f"of {plural(record.total, row_or_sample)} {done} {'is' if done == 1 else 'are'} done, "
        f"{failed} failed and "
        f"{left} {'was' if left == 1 else 'were'} not finished"
    )
    first_failure = record.first_failure
    if record.stopped is not None:
        first_text = None if first_failure is None else str(first_failure[1])
        is_below = record.stopped.kind is StopKind.FATAL and record.stopped.reason == first_text
        why = "every other row would fail too" if is_below else record.stopped.reason
        head = f"the run was stopped: {why}; {head}"
    elif left:
        head = f"the run ended before its last row; {head}"
    if first_failure is None:
        return f"{head}.\n{next_step}"
    row, first = first_failure
    if record.stopped is None and not done and not left:
        head = f"all {failed} {rows} failed" if failed > 1 else "the only row failed"
        if not len(record.row):
            head += ", and nothing was sent"
    lines = [f"{head}. The first was {record.name(row)}: {first}"]
    groups = Counter(
        str(record.failures[i]) for i, status in enumerate(record.status) if status is Status.ERROR
    )
    rest = [(text, n) for text, n in groups.most_common() if text != str(first)]
    if failed > 1 and groups[str(first)] > 1:
        lines.append(f"  {groups[str(first)]} x the same")
    lines += [f"  {n} x {text}" for text, n in rest[:_GROUPS]]
    if len(rest) > _GROUPS:
        others = sum(n for _, n in rest[_GROUPS:])
        lines.append(f"  {others} x others, of {len(rest) - _GROUPS} kinds")
    if cut := cut_off(record):
        lines.append(facts.cut_off(cut, record.samples))
    lines.append(next_step)
    return "\n".join(lines)
