"""Several samples of one row as one value: what ``repeat=`` makes of them is decided here.

In a run with ``repeat=n`` each sample is a row of its own: it has attempts, a place in the store
and an outcome, and is counted as one. Sample ``s`` of the caller's row ``r`` is row ``r * n + s``.
Only the finished frame has one line for each of the caller's rows, and its values are made of the
samples' as in "Self-Consistency Improves Chain of Thought Reasoning in Language Models" (Wang et
al., 2022): the one that most of them gave.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from enum import Enum
from numbers import Real
from typing import Any, NamedTuple

from ..scheduling.events import Status
from ..task.outputs import Field
from .record import Record

__all__ = ["AGREEMENT", "TIED", "Combined", "Vote", "columns_of", "combine", "vote"]

AGREEMENT, TIED = "_agreement", "_tied"


class Vote(NamedTuple):
    """What most of the samples gave.

    Attributes:
        value: the one.
        agreement: share of all samples that gave it, 0 to 1; one that failed gave nothing.
        tied: another value was given as often.
    """

    value: Any
    agreement: float
    tied: bool


def vote(given: Sequence[Any], samples: int, labels: Sequence[Any] | None = None) -> Vote:
    """The value that occurs most often.

    Args:
        given: at least one value, in the order of the samples.
        samples: how many there were, failed ones too.
        labels: of a class output, in declared order: of several that occur as often the first of
            these is taken. None: the one that was given first.

    >>> vote(["mild", "hot", "hot", "mild"], 5, labels=["hot", "mild"])
    Vote(value='hot', agreement=0.4, tied=True)
    """
    try:
        first, counts = _counted(given, _key)
    except Exception:  # noqa: BLE001 - out of an object of the user's: those are equal that read so
        first, counts = _counted(given, repr)
    most = max(counts.values())
    leaders = [key for key in first if counts[key] == most]
    if labels is not None and len(leaders) > 1:
        order = [_key(label) for label in labels]
        leaders.sort(key=lambda key: order.index(key) if key in order else len(order))
    return Vote(first[leaders[0]], most / samples, len(leaders) > 1)


def _counted(
    given: Sequence[Any], key_of: Callable[[Any], Hashable]
) -> tuple[dict[Hashable, Any], Counter[Hashable]]:
    first: dict[Hashable, Any] = {}
    counts: Counter[Hashable] = Counter()
    for value in given:
        key = key_of(value)
        first.setdefault(key, value)
        counts[key] += 1
    return first, counts


def _key(value: Any) -> Hashable:
    """What is the same for values that are.

    An Enum's member is its value, and a mapping is the same in whatever order its keys come.

    >>> _key({"a": 1, "b": [True]}) == _key({"b": [True], "a": 1.0})
    True
    >>> _key([True]) == _key([1])
    False
    """
    value = value.value if isinstance(value, Enum) else value
    if isinstance(value, Mapping):
        return Mapping, frozenset((_key(name), _key(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_key, value))
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return type(value) is bool, value  # True is not 1


class Combined(NamedTuple):
    """The columns of the finished frame, by output name.

    Attributes:
        values: one for each of the caller's rows; None where no sample of it is ok.
        fields: their types; None where that shows in the values.
    """

    values: dict[Any, list[Any]]
    fields: dict[Any, Field | None]


def columns_of(outputs: Mapping[str, Field]) -> list[str]:
    """Names of the columns that ``outputs`` come to when rows are repeated."""
    names: list[str] = []
    for name, field in outputs.items():
        names.append(name)
        if not _is_number(field):
            names += [f"{name}{AGREEMENT}", f"{name}{TIED}"]
    return names


def combine(record: Record, outputs: Mapping[Any, Field] | None) -> Combined:
    """Make one value of the samples of each row.

    Numbers come to their median, a float. All else comes to the value that most samples gave, with
    ``<output>_agreement`` and ``<output>_tied``, as :func:`vote` tells them.

    Args:
        record: of a run in which each row has ``record.samples`` samples.
        outputs: as declared; None for a function, whose outputs are what it returned.
    """
    samples = record.samples
    combined = Combined({}, {})
    starts = range(0, record.total, samples)
    good = [
        [row for row in range(start, start + samples) if record.status[row] is Status.OK]
        for start in starts
    ]
    for name, values in record.values.items():
        field = None if outputs is None else outputs[name]
        given = [[values[row] for row in rows] for rows in good]
        numbers = _all_numbers(given) if field is None else _is_number(field)
        if numbers:
            combined.values[name] = [_median(each) for each in given]
            combined.fields[name] = Field(float)
            continue
        labels = None if field is None else field.labels
        votes = [vote(each, samples, labels) if each else None for each in given]
        combined.values[name] = [None if v is None else v.value for v in votes]
        combined.fields[name] = field
        extras: dict[str, tuple[Field, list[Any]]] = {
            f"{name}{AGREEMENT}": (Field(float), [v and v.agreement for v in votes]),
            f"{name}{TIED}": (Field(bool), [v and v.tied for v in votes]),
        }
        for extra, (kind, column) in extras.items():
            if extra not in record.values:  # a function may have an output of that name
                combined.values[extra], combined.fields[extra] = column, kind
    return combined


def _is_number(field: Field) -> bool:
    return field.scalar in (int, float)


def _all_numbers(given: Iterable[Sequence[Any]]) -> bool:
    """Whether a function's output is a number: it has values, and all are numbers."""
    kinds = {type(value) for each in given for value in each if value is not None}
    return bool(kinds) and bool not in kinds and all(issubclass(kind, Real) for kind in kinds)


def _median(given: Sequence[Any]) -> Any:
    """The median as a float; the lower middle value itself where no float can hold it."""
    import statistics

    numbers = [value for value in given if value is not None]
    if not numbers:
        return None
    low = statistics.median_low(numbers)
    try:
        middle = float(statistics.median(numbers))
    except (ArithmeticError, TypeError, ValueError):
        return low
    return low if math.isnan(middle) else middle  # between two infinities
