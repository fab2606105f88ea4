"""Typed outputs: how they are declared, described to a model, and read out of its reply.

Everything that decides whether a reply fits a task lives here. Validation and JSON schemas are
pydantic's; this module turns the short ways of writing outputs (a list of labels, a type, a
pydantic model) into one pydantic model, lazily, so that ``import revkit`` does not pay for it.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from ..errors import BadOutput, UsageError
from . import lenient
from .annotations import allows_none, is_type, labels_of, one_type, scalar_of, shown
from .candidates import candidates
from .cells import to_json
from .output_models import OutputModel, is_model, read_model, refused_types

if TYPE_CHECKING:
    import pydantic

__all__ = ["Field", "Outputs"]

#: Replies that are remembered with their values, and how many characters these may have.
_KNOWN, _SHORT = 1_000, 200

_WORDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Field:
    """One input or output: its type and what it means.

    Args:
        type: ``str``, ``int``, ``float``, ``bool``, ``Literal[...]``, a list or tuple of labels
            (a class output), an ``Enum``, ``list[T]``, or anything else pydantic can validate.
        description: shown to the model.
        ordered: whether the column of a class output is an ordered ``Categorical``.

    Raises:
        UsageError: fewer than two labels, or a label that occurs twice.

    >>> Field(["cheap", "fair", "dear"], "how the price is judged", ordered=True).labels
    ('cheap', 'fair', 'dear')
    """

    type: Any = str
    description: str = ""
    ordered: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.type, list | tuple):
            if len(set(map(repr, self.type))) < len(self.type):
                raise UsageError(
                    f"the labels {list(self.type)!r} are not all different; name each once"
                )
            object.__setattr__(self, "type", Literal[tuple(self.type)] if self.type else Literal)
        labels = labels_of(one_type(self.type))
        if labels is not None:
            shown = ", ".join(repr(label) for label in labels)
            if len(labels) < 2:
                raise UsageError(
                    f"a class output needs at least two labels, this one has [{shown}]; add what "
                    "else there is, or ask for a str"
                )
            folded = [x.casefold() if isinstance(x, str) else x for x in labels]
            if len(set(folded)) < len(folded):
                raise UsageError(f"the labels [{shown}] are not all different; name each once")
            if any(isinstance(x, str) and not x.strip() for x in labels):
                raise UsageError(f"the labels [{shown}] hold an empty one; give it a name")
        elif self.ordered and self.labels is None:
            raise UsageError("ordered=True is for class outputs, and this field has no labels")

    @property
    def labels(self) -> tuple[Any, ...] | None:
        """The labels of a class output in declared order, else None."""
        labels = labels_of(self.scalar)
        return labels and tuple(label for label in labels if label is not None)

    def takes_label(self, value: Any) -> bool:
        """Whether an example may have ``value``: a label, an Enum's member, None in an optional
        one; anything where there are no labels.
        """
        labels = self.labels
        if labels is None or (value is None and allows_none(self.type)):
            return True
        return (value.value if isinstance(value, enum.Enum) else value) in labels

    @property
    def scalar(self) -> Any:
        """The type itself, without its constraints (``Annotated``), its names (``NewType``,
        ``type X = …``), and None: ``int`` of ``Annotated[int, Field(ge=1)] | None``.
        """
        return scalar_of(self.type)

    @property
    def is_plain(self) -> bool:
        """Whether its values are labels, or of a plain type, that nobody can change or refuse."""
        tp = one_type(self.type)
        return labels_of(tp) is not None or _is_word(tp)

    def words(self) -> str:
        """What the field may hold, in words for a prompt."""
        labels = labels_of(one_type(self.type))
        if labels is not None:
            return "one of " + ", ".join(json.dumps(label) for label in labels)
        return _words(self.type)


def _is_word(tp: Any) -> bool:
    return isinstance(tp, type) and tp in _WORDS


def _words(tp: Any) -> str:
    if _is_word(tp):
        return _WORDS[tp]
    if get_origin(tp) is list:
        inner = get_args(tp)
        return "a list, each item " + (Field(inner[0]).words() if inner else "of any kind")
    if get_origin(tp) in (Union, UnionType):
        return " or ".join("null" if t is type(None) else Field(t).words() for t in get_args(tp))
    return "as in the JSON schema " + json.dumps(_tidy(_adapter_schema(tp)), ensure_ascii=False)


def _adapter_schema(tp: Any) -> dict[str, Any]:
    import pydantic

    with refused_types(f"the type {shown(tp)}"):
        return pydantic.TypeAdapter(tp).json_schema()


def as_field(name: str, given: Any, *, described: bool) -> Field:
    """Read one entry of ``inputs=`` or ``outputs=``.

    ``described`` says what a bare string is: a description (True).
    """
    try:
        if isinstance(given, Field):
            return given
        if isinstance(given, str):
            if not described:
                raise UsageError("give a type, a list of labels, or a revkit.Field")
            return Field(str, given)
        if (
            isinstance(given, tuple)
            and len(given) == 2
            and (isinstance(given[0], list) or is_type(given[0]))
        ):
            return Field(given[0], str(given[1]))
        if isinstance(given, list | tuple):
            if not all(isinstance(x, str | int | bool) for x in given):
                raise UsageError(f"labels are strings, not {list(given)!r}")
            return Field(list(given))
        return Field(given)
    except UsageError as error:
        raise UsageError(f'"{name}": {error}') from None


def as_fields(given: Any, *, what: str) -> dict[str, Field]:
    """Read ``inputs=`` or ``outputs=`` in any of the ways to write it."""
    if isinstance(given, str):
        given = [given]
    if is_type(given):  # that of a list can be iterated, too
        raise UsageError(
            f'{what}= takes a mapping of name to type, such as {{"answer": {shown(given)}}}'
            + (", or a pydantic model class" if what == "outputs" else "")
            + f"; got {'the class ' if isinstance(given, type) else ''}{shown(given)}"
        )
    if isinstance(given, Mapping):
        fields = {str(k): as_field(str(k), v, described=True) for k, v in given.items()}
    elif isinstance(given, Iterable):
        names = [str(name) for name in given]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UsageError(f"{what} are named twice: {', '.join(repeated)}; name each once")
        fields = {name: Field() for name in names}
    else:
        raise UsageError(f"{what}= takes a mapping of name to type, a list of names, or a name")
    if not fields:
        raise UsageError(f"a task needs at least one of {what}=")
    return fields


class Outputs(Mapping[str, Field]):
    """The outputs of a task: a mapping of name to :class:`Field`, in declared order.

    Args:
        given: a mapping of name to type, list of labels, description or :class:`Field`; a list
            of names (strings); one name; or a pydantic model class, whose fields become the
            outputs and whose validators are kept.
        free_text: the reply's text *is* the one output; no JSON is asked for.
    """

    def __init__(self, given: Any, *, free_text: bool = False):
        self._user_model: OutputModel | None = None
        if is_model(given):
            self._user_model = read_model(given)
            self._fields = {
                name: Field(source.type, source.description)
                for name, source in self._user_model.sources.items()
            }
        else:
            self._fields = as_fields(given, what="outputs")
        self.free_text = free_text
        #: Replies that were read, with their values: rows of a class output share a few replies,
        #: and to validate one again costs more than all else that is done to it. Not where a
        #: validator of the user's might tell two apart, or where values can be changed.
        self._known: dict[str, dict[str, Any]] | None = None
        if self._user_model is None and all(field.is_plain for field in self.values()):
            self._known = {}
        if free_text and (len(self) != 1 or next(iter(self.values())).type is not str):
            raise UsageError("free text is one output of type str")

    def __getitem__(self, name: str) -> Field:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Outputs({list(self._fields)})"

    def __getstate__(self) -> dict[str, Any]:
        # Not the model class that was made of the fields: where they go, it is made again.
        state = {name: self.__dict__[name] for name in ("_user_model", "_fields", "free_text")}
        return state | {"_known": None if self._known is None else {}}

    @property
    def asked(self) -> dict[str, Field]:
        """The outputs that the model is asked for: all but those that a pydantic class computes."""
        computed = () if self._user_model is None else self._user_model.computed
        return {name: field for name, field in self.items() if name not in computed}

    @cached_property
    def model(self) -> type[pydantic.BaseModel]:
        """The pydantic model that validates a reply."""
        import pydantic

        if self._user_model is not None:
            return self._user_model.cls
        # Fields go by position and carry their names as aliases, so that an output may have any
        # name: with spaces, with a leading underscore, or one that pydantic keeps for itself.
        fields: dict[str, Any] = {
            f"f{i}": (
                field.type,
                pydantic.Field(alias=name, description=field.description or None),
            )
            for i, (name, field) in enumerate(self.items())
        }
        config = pydantic.ConfigDict(
            coerce_numbers_to_str=True, allow_inf_nan=False, str_strip_whitespace=True
        )
        with refused_types("the outputs"):
            return pydantic.create_model("Outputs", __config__=config, **fields)

    @cached_property
    def json_schema(self) -> dict[str, Any] | None:
        """JSON schema of the reply, every property required and no other allowed.

        None where the reply is free text.
        """
        if self.free_text:
            return None
        with refused_types("the outputs"):
            if self._user_model is not None:
                schema = self._user_model.json_schema()
            else:
                schema = self.model.model_json_schema(by_alias=True)
        tidy: dict[str, Any] = _tidy(schema)
        return tidy

    def describe(self) -> str:
        """What to reply with, in words for a prompt; empty for free text."""
        if self.free_text:
            return ""
        lines = ["Reply with one JSON object that has these keys and no others:"]
        for name, field in self.asked.items():
            end = f" ({field.description})" if field.description else ""
            lines.append(f"- {json.dumps(name, ensure_ascii=False)}: {field.words()}{end}")
        return "\n".join(lines)

    def dump(self, values: Mapping[str, Any]) -> str:
        """A reply that holds ``values``, as the model should have written it."""
        if self.free_text:
            return str(values[next(iter(self))])
        return to_json({name: values[name] for name in self.asked}, "an example")

    def parse(self, text: str, *, whole: bool = False) -> dict[str, Any]:
        """Read a reply's text.

        Args:
            whole: JSON is read only where the whole text is one object.

        Returns:
            Output name to value, in declared order.

        Raises:
            BadOutput: the text is not what was asked for; the message says why, in words that
                can be shown to the model.
        """
        if not text or text.isspace():
            raise BadOutput("the reply is empty", text=text)
        if self.free_text:
            return {next(iter(self)): text.strip()}
        known = self._known
        if known is None or whole or len(text) > _SHORT:
            return self._validated(text, whole)
        values = known.get(text)
        if values is None:
            values = self._validated(text, whole)
            if len(known) < _KNOWN:
                known[text] = values
        return values.copy()

    def _validated(self, text: str, whole: bool) -> dict[str, Any]:
        try:
            return self._values(self._object(text))
        except BadOutput as error:
            problem = str(error)
        if whole:
            raise BadOutput(problem, text=text)
        found = candidates(text)
        if found.fragment is not None:
            if found.fragment != text.lstrip():  # else pydantic has said where it ended
                problem = f"it has a JSON object without an end: {_quoted(found.fragment)}"
                problem = f"the reply does not fit: {problem}"
            raise BadOutput(problem, text=text)
        for place, candidate in enumerate(reversed(found.objects)):
            try:
                return self._values(self._object(candidate))
            except BadOutput as error:
                if place == 0:  # it is the one that was meant
                    problem = str(error)
        if (bare := self._bare(found.bare)) is not None:
            return bare
        raise BadOutput(problem, text=text)

    def _object(self, text: str) -> pydantic.BaseModel:
        """Read one JSON object, as it is written or in the only other way to read it."""
        import pydantic

        parsed, problem = None, ""
        try:
            parsed = self.model.model_validate_json(text)
            is_full = self._user_model is None or parsed.model_fields_set >= self._attributes
            if is_full and not self._is_doubtful(text):
                return parsed
        except pydantic.ValidationError as error:
            problem = _explain(error, text)
        try:
            made = lenient.rewritten(text, self._form)
            if made != text:
                parsed = self.model.model_validate_json(made)
        except pydantic.ValidationError as error:
            raise BadOutput(_explain(error, text), text=text) from None
        except lenient.Refused as error:
            raise BadOutput(f"the reply does not fit: {error}", text=text) from None
        except (ValueError, RecursionError):  # it is not JSON, or no reader's but pydantic's
            pass
        if parsed is None:
            raise BadOutput(problem, text=text)
        if not parsed.model_fields_set & self._attributes:  # all optional, and none is there
            keys = ", ".join(json.dumps(name, ensure_ascii=False) for name in self)
            raise BadOutput(f"the reply does not fit: it has none of the keys {keys}", text=text)
        return parsed

    def _bare(self, texts: list[str]) -> dict[str, Any] | None:
        """A text that is nothing but a value of the only output; the last one."""
        import pydantic

        problem: str | None = None
        for text in reversed(texts):
            if (made := lenient.bare(text, self._form)) is not None:
                try:
                    return self._values(self.model.model_validate_json(made))
                except pydantic.ValidationError as error:
                    problem = problem or _explain(error, made)
        if problem is not None:
            raise BadOutput(problem, text=texts[0])
        return None

    @cached_property
    def _attributes(self) -> frozenset[str]:
        return frozenset(self.model.model_fields)

    @cached_property
    def _form(self) -> lenient.Form:
        """What may be read that is not written as it was asked for."""
        types_ = {name: field.type for name, field in self.asked.items()}
        form = lenient.Form.of(types_, {name: field.labels for name, field in self.asked.items()})
        model = self._user_model
        return form if model is None else lenient.form_of_model(form, model.cls)

    @cached_property
    def _keys(self) -> list[str]:
        """The keys that the model is asked for, as they stand in a reply."""
        return [json.dumps(name, ensure_ascii=False) for name in self.asked]

    @cached_property
    def _doubts(self) -> list[re.Pattern[str]]:
        return self._form.doubts()

    def _is_doubtful(self, text: str) -> bool:
        """Whether pydantic may take a reply for something that it does not say."""
        if any(text.count(key) > 1 for key in self._keys):
            return True
        return any(doubt.search(text) is not None for doubt in self._doubts)

    def _values(self, parsed: pydantic.BaseModel) -> dict[str, Any]:
        if self._user_model is not None:
            return self._user_model.values(parsed)
        return parsed.model_dump(by_alias=True)


def _tidy(schema: Any) -> Any:
    """Close every object of a JSON schema and drop titles, as strict servers ask."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            tidy[key] = {name: _tidy(item) for name, item in value.items()}
        elif not (key == "title" and isinstance(value, str)):
            tidy[key] = _tidy(value)
    if tidy.get("type") == "object" and "properties" in tidy:
        tidy["required"] = list(tidy["properties"])
        tidy["additionalProperties"] = False
    return tidy


def _explain(error: pydantic.ValidationError, text: str) -> str:
    """A validation error in one line."""
    if error.errors()[0]["type"] == "json_invalid":
        why = error.errors()[0]["msg"].removeprefix("Invalid JSON: ")
        where = f" ({why})" if text.lstrip().startswith(("{", "[")) else ""
        return f"the reply does not fit: it is not JSON{where}: {_quoted(text)}"
    problems = []
    for item in error.errors(include_url=False, include_context=False)[:4]:
        where = ".".join(str(part) for part in item["loc"])
        given = item.get("input")
        got = f", not {json.dumps(given, ensure_ascii=False, default=str)[:80]}" if where else ""
        if item["type"] == "missing":
            got = ""
        problems.append(f"{where + ': ' if where else ''}{item['msg']}{got}")
    return "the reply does not fit: " + "; ".join(problems)


def _quoted(text: str) -> str:
    """The start of a reply, on one line."""
    return json.dumps(" ".join(text[:200].split())[:80], ensure_ascii=False)
