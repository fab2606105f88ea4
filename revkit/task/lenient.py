"""The other ways to write an answer that are read where exactly one reading is possible.

A server that does not force the form lets a model write a label in another case, a number as text,
keys in another case, or a wrapper around its answer. This rewrites a JSON object as it was asked
for, and pydantic validates that. Only an answer's own keys and values are touched. Nested values go
on as they are written, and so does whatever a validator of the user's sees before pydantic does.

Some readings of pydantic's own are wrong here: ``true`` is no number, and the number 2024 is no
second of 1970. Those are refused. A number in place of a text keeps its digits.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from .annotations import labels_of

if TYPE_CHECKING:
    import pydantic

__all__ = ["Ambiguous", "Form", "Refused", "Value", "bare", "form_of_model", "rewritten"]


class _Float(float):
    """A number with a point or an exponent, which knows how it was written."""

    written: str

    def __new__(cls, written: str) -> _Float:
        made = super().__new__(cls, written)
        made.written = written
        return made


_DECODER = json.JSONDecoder(strict=False, parse_float=_Float)
_STRING = re.compile(r'"(?:[^"\\]++|\\.?+)*+"?+', re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f]")
#: Halves of surrogate pairs as they are, and every escape: pairs, halves, then the others.
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(
    r"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_SPACE = re.compile(r"[ \t\n\r]*")
#: Values that pydantic may read as something else. What stands before them comes apart from them:
#: a pattern that starts with one character is searched for ten times as fast.
_BEFORE, _BEFORE_ITEM = (":",), (":", ",", r"\[")
_BOOLEANS = ("true", "false")
_STAMP = r'\s*+"?\s*+[-+]?\d[\d.]*+\s*+"?\s*+[,}\]]'
_FRACTION = r"\s*+-?\d++[.eE][\d.eE+-]*+\s*+[,}\]]"
_DIGITS = re.compile(r"[-+]?\d+(?:\.\d*)?")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")

#: What models write for a number that is missing.
_MISSING = frozenset({"n/a", "na", "none", "null", ""})


class Refused(ValueError):
    """A value is not what was asked for, though pydantic would take it; the message says which."""


class Ambiguous(Refused):
    """More than one reading is possible; the message says of what."""


@dataclass(frozen=True, slots=True)
class Value:
    """What one output may hold.

    Attributes:
        labels: of a class output, or of each item of a list of labels; else empty.
        is_list: it is a list, and the others say of what.
        is_number: it is an ``int`` or a ``float``, which may be optional.
        is_bool: it is a ``bool``, which may be optional.
        is_text: it is a ``str``, which a number may stand for.
        is_decimal: it is a ``Decimal``, whose digits count.
        is_time: it is a date, a time of day, or both.
        is_optional: None is a value.
    """

    labels: tuple[Any, ...] = ()
    is_list: bool = False
    is_number: bool = False
    is_bool: bool = False
    is_text: bool = False
    is_decimal: bool = False
    is_time: bool = False
    is_optional: bool = False

    @property
    def doubts(self) -> set[str]:
        """Patterns of what pydantic may read wrongly here."""
        before = _BEFORE_ITEM if self.is_list else _BEFORE
        if self.is_number or any(type(label) is int for label in self.labels):
            return {*_BOOLEANS}
        if self.is_time:
            return {first + _STAMP for first in before}
        if self.is_text or self.is_decimal:
            return {first + _FRACTION for first in before}
        return set()


@dataclass(frozen=True, slots=True)
class Form:
    """What may be rewritten in an answer.

    Attributes:
        keys: the keys that were asked for, where they may be rewritten; else empty.
        values: the outputs whose values may be rewritten.
    """

    keys: tuple[str, ...]
    values: Mapping[str, Value]

    @classmethod
    def of(cls, types_: Mapping[str, Any], labels: Mapping[str, tuple[Any, ...] | None]) -> Form:
        """The form of outputs of these types, with the labels of those that have some."""
        values = {name: _value(tp, labels[name]) for name, tp in types_.items()}
        return cls(tuple(types_), {name: value for name, value in values.items() if value})

    def doubts(self) -> list[re.Pattern[str]]:
        """Patterns of what pydantic may read wrongly.

        What they find may stand within a string and be none: only looking shows.
        """
        found = {pattern for value in self.values.values() for pattern in value.doubts}
        return list(map(re.compile, sorted(found)))


def form_of_model(form: Form, model: type[pydantic.BaseModel]) -> Form:
    """The part of a form that a user's model leaves to pydantic.

    A validator that sees a value, or the whole answer, before pydantic does might have refused or
    read it in its own way. A strict field is meant to be strict.
    """
    decorators = model.__pydantic_decorators__
    if any(found.info.mode != "after" for found in decorators.model_validators.values()):
        return Form((), {})
    if decorators.root_validators or decorators.validators:  # of pydantic 1
        return Form((), {})
    early = {
        name
        for found in decorators.field_validators.values()
        if found.info.mode != "after"
        for name in found.info.fields
    }
    strict = bool(model.model_config.get("strict"))
    takes_numbers = bool(model.model_config.get("coerce_numbers_to_str"))
    values, known = {}, True
    for attribute, info in model.model_fields.items():
        name = info.alias or attribute
        known = known and info.validation_alias in (None, name)
        if not (strict or early & {"*", attribute} or _is_guarded(info.metadata)):
            value = form.values.get(name)
            values[name] = value if takes_numbers or not (value and value.is_text) else None
    return Form(
        form.keys if known else (),
        {name: value for name, value in values.items() if value is not None},
    )


def _is_guarded(metadata: Iterable[Any]) -> bool:
    """Whether a type has a validator that sees a value first, or is strict."""
    import pydantic

    early = (pydantic.BeforeValidator, pydantic.WrapValidator, pydantic.PlainValidator)
    return any(isinstance(x, early) or getattr(x, "strict", None) is True for x in metadata)


def _value(tp: Any, labels: tuple[Any, ...] | None) -> Value | None:
    if get_origin(tp) is Annotated:
        tp, *metadata = get_args(tp)
        if _is_guarded(metadata):
            return None
    is_optional = False
    if get_origin(tp) in (Union, types.UnionType):
        inner = [each for each in get_args(tp) if each is not type(None)]
        is_optional = len(inner) < len(get_args(tp))
        if len(inner) != 1:
            return None
        found = _value(inner[0], labels)
        return found and dataclasses.replace(found, is_optional=is_optional)
    if get_origin(tp) is list and get_args(tp):
        item = get_args(tp)[0]
        if get_origin(item) is Annotated:
            item, *metadata = get_args(item)
            if _is_guarded(metadata):
                return None
        found = _value(item, labels_of(item))
        return None if found is None or found.is_list else dataclasses.replace(found, is_list=True)
    if labels:
        return Value(labels)
    return _PLAIN.get(tp) if isinstance(tp, type) else None


_PLAIN: dict[Any, Value] = {
    **dict.fromkeys((int, float), Value(is_number=True)),
    bool: Value(is_bool=True),
    **dict.fromkeys((dt.date, dt.datetime, dt.time), Value(is_time=True)),
    str: Value(is_text=True),
    decimal.Decimal: Value(is_decimal=True),
}


def rewritten(text: str, form: Form) -> str:
    """A JSON object as it was asked for: ``text`` itself where nothing had to be rewritten.

    Raises:
        ValueError: it is not JSON.
        Refused: a value is not what was asked for. Its kind ``Ambiguous``: two readings are
            possible.
    """
    if not isinstance(_DECODER.decode(text), dict):
        return text
    made = _HALF.sub("\ufffd", text)
    made = _ESCAPE.sub(lambda found: r"\ufffd" if found[2] else found[0], made)
    if _CONTROL.search(made):
        made = _STRING.sub(lambda found: _CONTROL.sub(_escaped, found[0]), made)
    members = list(_members(made))
    is_changed = False
    if form.keys and len(members) == 1:
        ((key, value, raw),) = members
        if isinstance(value, dict) and not _named(key, form.keys):
            members, is_changed = list(_members(raw)), True
    if len({key for key, _, _ in members}) < len(members):
        _check_repeated(members)
    names = _names({key for key, _, _ in members}, form.keys)
    parts = []
    for key, value, raw in members:
        name = names.get(key, key)
        try:
            read = _read(value, form.values.get(name))
        except Refused as error:
            raise Refused(f"{name}: {error}") from None
        is_changed = is_changed or name != key or read is not value
        parts.append(f"{json.dumps(name)}: {raw if read is value else json.dumps(read)}")
    return "{" + ", ".join(parts) + "}" if is_changed else made


def _check_repeated(members: Iterable[tuple[str, Any, str]]) -> None:
    """Refuse a key that occurs twice with two values: pydantic would take the last one."""
    seen: dict[str, Any] = {}
    for key, value, _ in members:
        if seen.setdefault(key, value) != value:
            raise Ambiguous(f"the key {json.dumps(key)} occurs more than once")


def bare(text: str, form: Form) -> str | None:
    """The object that a bare label, number or boolean stands for, where there is one output.

    None where it is neither.
    """
    if len(form.keys) != 1:
        return None
    (name,) = form.keys
    value = form.values.get(name)
    if value is None or value.is_list:
        return None
    if not (value.labels or value.is_number or value.is_bool):
        return None
    if value.labels:
        label = _label(text.strip().strip("\"'`.*!"), value.labels)
        return None if label is _NONE else json.dumps({name: label})
    number = text.strip().strip("\"'`*").strip()
    if value.is_bool:
        found = number.rstrip(".").casefold()
        return f"{{{json.dumps(name)}: {found}}}" if found in _BOOLEANS else None
    return f"{{{json.dumps(name)}: {number}}}" if _NUMBER.fullmatch(number) else None


_NONE = object()


def _read(value: Any, form: Value | None) -> Any:
    """A value as it was asked for: itself where it is, or where it cannot be read."""
    if form is None:
        return value
    if form.is_list:
        if not isinstance(value, list):
            return value
        of_item = dataclasses.replace(form, is_list=False, is_optional=False)
        items = [_read(item, of_item) for item in value]
        is_same = all(new is old for new, old in zip(items, value, strict=True))
        return value if is_same else items
    if form.labels:
        label = _label(value, form.labels)
        if label is _NONE and isinstance(value, bool) and value in form.labels:  # true equals 1
            raise Refused(f"{json.dumps(value)} is no label")
        return value if label is _NONE or label == value else label
    if form.is_number and isinstance(value, bool):
        raise Refused(f"{json.dumps(value)} is no number")
    if form.is_number and form.is_optional and isinstance(value, str):
        return None if value.strip().casefold() in _MISSING else value
    if form.is_time and _is_stamp(value):
        raise Refused(f"{json.dumps(value)} is no date or time; write it as ISO 8601 does")
    if (form.is_text or form.is_decimal) and isinstance(value, _Float):
        return value.written
    return value


def _is_stamp(value: Any) -> bool:
    """Whether pydantic would count seconds from 1970."""
    if isinstance(value, str):
        return _DIGITS.fullmatch(value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(value: Any, labels: tuple[Any, ...]) -> Any:
    """The only label that is spelled as ``value`` is."""
    for label in labels:
        if type(label) is type(value) and label == value:
            return label
    spelled = _spelled(value)
    found = [label for label in labels if spelled is not None and _spelled(label) == spelled]
    return found[0] if len(found) == 1 else _NONE


def _spelled(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip().casefold()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).casefold() if isinstance(value, int) else None


def _named(key: str, keys: Iterable[str]) -> list[str]:
    """The outputs that a key may stand for."""
    folded = key.strip().casefold()
    return [name for name in keys if name.strip().casefold() == folded]


def _names(given: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
    """The keys of an answer that stand for an output it does not have by name."""
    given, keys = set(given), tuple(keys)
    names: dict[str, str] = {}
    for key in sorted(given.difference(keys)):
        outputs = [name for name in _named(key, keys) if name not in given]
        if len(outputs) > 1 or (outputs and outputs[0] in names.values()):
            raise Ambiguous(f"more than one reading of the key {json.dumps(key)} is possible")
        names.update(dict.fromkeys([key], outputs[0]) if outputs else {})
    return names


def _members(text: str) -> Iterator[tuple[str, Any, str]]:
    """Each member of a JSON object: its key, its value, and that value as it is written."""
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)  # past the colon
        value, end = _DECODER.raw_decode(text, begin)
        yield key, value, text[begin:end]
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _escaped(control: re.Match[str]) -> str:
    return f"\\u{ord(control[0]):04x}"
