"""A pydantic model class as outputs: what is asked for, under which keys, and what is refused.

The key that the model is asked for is the output's name: the alias that the class reads it by,
where it has one. What a class computes is an output that nobody is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, one_line
from .annotations import shown

if TYPE_CHECKING:
    import pydantic

__all__ = ["OutputModel", "Source", "is_model", "read_model", "refused_types"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where an output of a pydantic object comes from.

    Attributes:
        attribute: its name in the class.
        dumped: its key in what ``model_dump(by_alias=True)`` gives.
        type: its annotation.
        description: of the field.
        computed: the class computes it.
    """

    attribute: str
    dumped: str
    type: Any
    description: str
    computed: bool


@dataclass(frozen=True, slots=True)
class OutputModel:
    """A pydantic model class as outputs.

    Attributes:
        cls: the class.
        sources: output name to where it comes from.
    """

    cls: type[pydantic.BaseModel]
    sources: dict[str, Source]

    @property
    def computed(self) -> set[str]:
        """Outputs that nobody is asked for."""
        return {name for name, source in self.sources.items() if source.computed}

    def json_schema(self) -> dict[str, Any]:
        return self.cls.model_json_schema(by_alias=_reads_aliases(self.cls))

    def values(self, parsed: pydantic.BaseModel) -> dict[str, Any]:
        """Output name to value.

        By the class's own serialisers, but for what these leave out: a ``model_serializer`` may
        make anything of the whole.
        """
        import pydantic

        dumped = parsed.model_dump(by_alias=True)
        values: dict[str, Any] = {}
        for name, source in self.sources.items():
            if isinstance(dumped, dict) and source.dumped in dumped:
                values[name] = dumped[source.dumped]
            else:
                value = getattr(parsed, source.attribute)
                values[name] = pydantic.TypeAdapter(Any).dump_python(value, by_alias=True)
        return values


def is_model(given: Any) -> bool:
    """Whether it is a pydantic model class."""
    pydantic = sys.modules.get("pydantic")  # such a class cannot exist without it
    if pydantic is None or not isinstance(given, type):
        return False
    return issubclass(given, pydantic.BaseModel)


def read_model(cls: type[pydantic.BaseModel]) -> OutputModel:
    """Read a pydantic model class.

    Raises:
        UsageError: its replies would not be JSON objects whose keys can be named.
    """
    if getattr(cls, "__pydantic_root_model__", False):
        root = shown(cls.model_fields["root"].annotation)
        raise UsageError(
            f"{cls.__name__} is a RootModel, whose reply has no keys to name columns by; name "
            f'its value: outputs={{"answer": {root}}}'
        )
    with refused_types(f"the pydantic model {cls.__name__}"):
        if not cls.__pydantic_complete__:
            cls.model_rebuild()
    sources = {
        _asked(cls, name, info): Source(
            name,
            info.serialization_alias or name,
            info.annotation,
            info.description or "",
            computed=False,
        )
        for name, info in cls.model_fields.items()
    }
    if not sources:
        raise UsageError(f"the pydantic model {cls.__name__} has no fields")
    for name, computed in cls.model_computed_fields.items():
        key = computed.alias or name
        sources[key] = Source(
            name, key, computed.return_type, computed.description or "", computed=True
        )
    return OutputModel(cls, sources)


def _reads_aliases(cls: type[pydantic.BaseModel]) -> bool:
    return cls.model_config.get("validate_by_alias") is not False


def _asked(cls: type[pydantic.BaseModel], name: str, info: Any) -> str:
    """The key by which a class reads a field."""
    alias = info.validation_alias
    if alias is None or not _reads_aliases(cls):
        return name
    for choice in getattr(alias, "choices", [alias]):
        if isinstance(choice, str):
            return choice
    raise UsageError(
        f"{cls.__name__} reads {name} from within another value (AliasPath), and revkit asks for "
        "keys only; give the field an alias of one key, or use a nested model"
    )


@contextmanager
def refused_types(what: str) -> Iterator[None]:
    """What pydantic says of types that no reply can have, as revkit's own error."""
    import pydantic

    try:
        yield
    except pydantic.PydanticUndefinedAnnotation as error:
        why = f"{error.message}: define it before the call"
    except pydantic.PydanticUserError as error:
        why = f"{str(error.message).rstrip('.')}: use types that JSON can hold"
    else:
        return
    raise UsageError(one_line(f"{what} cannot be asked for: {why}"))
