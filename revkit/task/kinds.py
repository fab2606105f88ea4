"""What is done to each row: a :class:`Signature`, a template, or a callable.

Everything that decides what a model is shown lives here. Pure: a task turns a row's inputs into
chat messages and a reply's text into values, and knows nothing of servers, frames or workers.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, nearest, one_line
from .braces import doubled, is_text, piece
from .cells import text_of
from .output_models import is_model
from .outputs import Field, Outputs, as_fields

if TYPE_CHECKING:
    from .chat import Message

__all__ = ["CallableTask", "ModelTask", "Signature", "Template", "as_task"]

#: Goes up whenever the same task is rendered into other messages.
RENDER_VERSION = 1


class ModelTask:
    """Base of the tasks that ask a language model.

    Attributes:
        inputs: input names to :class:`~revkit.Field`, in declared order.
        outputs: output names to :class:`~revkit.Field`, in declared order.
        instructions: what the model is told to do; empty for a template.
        examples: mappings of inputs and outputs together.
    """

    inputs: Mapping[str, Field]
    outputs: Outputs
    instructions: str = ""
    examples: tuple[Mapping[str, Any], ...] = ()

    def user_text(self, row: Mapping[str, Any]) -> str:
        """The user's turn for one row."""
        raise TypeError(f"{type(self).__name__} does not implement user_text()")

    @cached_property
    def prefix(self) -> list[Message]:
        """The turns that stand before the row's own; the same for every row."""
        return []

    def messages(self, row: Mapping[str, Any]) -> list[Message]:
        """The chat turns for one row, in which ``row`` has every input by its name."""
        return [*self.prefix, {"role": "user", "content": self.user_text(row)}]

    def parse(self, text: str) -> dict[str, Any]:
        """Output values out of a reply's text. Raises :class:`~revkit.BadOutput`."""
        return self.outputs.parse(text)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change whenever the task asks for something else."""
        fields = {n: [repr(f.type), f.description, f.ordered] for n, f in self.inputs.items()}
        asked = [
            RENDER_VERSION,
            self.prefix,
            self.user_text({name: f"\0{name}\0" for name in self.inputs}),
            fields,
            list(self.outputs.asked),
            self.outputs.json_schema,
        ]
        return _digest(json.dumps(asked, default=str).encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelTask) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


class Signature(ModelTask):
    """Typed inputs and outputs, and what leads from the ones to the others.

    Args:
        instructions: what to do, in a sentence or a few.
        inputs: a name, a list of names, or a mapping of name to description, type or
            :class:`~revkit.Field`. Each row's value is put into the prompt whole: text, numbers
            and dates as ``str`` writes them, an Enum's member as its value, and what holds other
            values (lists, arrays, mappings, objects with fields) as JSON.
        outputs: a mapping of name to type (``str``, ``int``, ``float``, ``bool``,
            ``Literal[...]``, ``list[T]``, …), to a list of labels (a class output), to a pair of
            one of these and a description, or to a :class:`~revkit.Field`; or a pydantic model
            class, whose fields become the outputs, by the key that it reads them by. Constraints
            (``Annotated[int, pydantic.Field(ge=1, le=5)]``) are told to the model and checked.
        examples: mappings that hold every input and every output; each is shown to the model as
            a pair of chat turns before the row.

    Raises:
        UsageError: no input or output, labels that are fewer than two or repeated, a name that
            is both input and output, a type that JSON cannot hold, or an example that lacks one
            or has an unknown label.

    >>> topic = Signature(
    ...     "Say what the customer's ticket is about.",
    ...     inputs={"ticket": "the customer's own words"},
    ...     outputs={"topic": ["billing", "delivery", "other"], "urgent": bool},
    ... )
    >>> topic
    Signature(ticket -> topic, urgent)
    >>> topic.parse('{"topic": "Billing", "urgent": false}')
    {'topic': 'billing', 'urgent': False}
    """

    def __init__(
        self,
        instructions: str,
        *,
        inputs: Any,
        outputs: Any,
        examples: Iterable[Mapping[str, Any]] = (),
    ):
        self.instructions = instructions.strip()
        self.inputs = as_fields(inputs, what="inputs")
        self.outputs = Outputs(outputs)
        self.examples = tuple(dict(example) for example in examples)
        both = [name for name in self.outputs if name in self.inputs]
        if both:
            raise UsageError(f'"{both[0]}" is both an input and an output; rename one')
        for number, example in enumerate(self.examples, 1):
            self._check(number, example)

    def _check(self, number: int, example: Mapping[str, Any]) -> None:
        wanted = [*self.inputs, *self.outputs.asked]
        lacking = [name for name in wanted if name not in example]
        if lacking:
            raise UsageError(f'example {number} has no "{lacking[0]}"')
        unknown = [name for name in example if name not in wanted]
        if unknown:
            raise UsageError(
                f'example {number} has an unknown "{unknown[0]}"; {nearest(unknown[0], wanted)}'
            )
        for name, field in self.outputs.asked.items():
            if not field.takes_label(example[name]):
                raise UsageError(
                    f"example {number}: {name}={example[name]!r} is not a label; "
                    f"{nearest(str(example[name]), map(str, field.labels or ()))}"
                )

    def user_text(self, row: Mapping[str, Any]) -> str:
        if len(self.inputs) == 1:
            (name,) = self.inputs
            value = row[name]
            return value if type(value) is str else text_of(value, name)  # a call for each row
        return "\n".join(f"{name}: {text_of(row[name], name)}" for name in self.inputs)

    @cached_property
    def prefix(self) -> list[Message]:
        system = [self.instructions]
        described = [f"- {n}: {f.description}" for n, f in self.inputs.items() if f.description]
        if described:
            system.append("\n".join(["The user gives:", *described]))
        system.append(self.outputs.describe())
        turns: list[Message] = [{"role": "system", "content": "\n\n".join(filter(None, system))}]
        for example in self.examples:
            turns.append({"role": "user", "content": self.user_text(example)})
            turns.append({"role": "assistant", "content": self.outputs.dump(example)})
        return turns

    def __repr__(self) -> str:
        return f"Signature({', '.join(self.inputs)} -> {', '.join(self.outputs)})"


class Template(ModelTask):
    """A prompt with the names of columns in braces, and one free-text output.

    Args:
        text: the prompt; ``{name}`` is the value of a column (whatever its name: spaces and dots
            are part of it), ``{{`` and ``}}`` are braces. A value is put in whole, as
            :mod:`revkit.task.cells` says: braces in it mean nothing.
        output: name of the output.

    Raises:
        UsageError: no column is named, a name is empty, or a format spec or conversion is given.

    >>> task = Template("Summarise in five words: {Review Text}")
    >>> task.user_text({"Review Text": "Broke {twice}."})
    'Summarise in five words: Broke {twice}.'
    """

    def __init__(self, text: str, *, output: str = "response"):
        self.text = text
        self.outputs = Outputs({output: str}, free_text=True)
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UsageError(
                f"the template {text!r} cannot be read ({error}); write {{{{ and }}}} for braces"
            ) from None
        #: (literal text, name of the column that follows it or None)
        self._pieces: list[tuple[str, str | None]] = []
        for literal, name, spec, conversion in pieces:
            if name == "":
                raise UsageError(
                    f"the template {text!r} has empty braces: put a column's name in them, "
                    "or write {{}} for braces"
                )
            if spec or conversion:
                given = piece(name or "", spec, conversion)
                if is_text(name or "", spec):
                    raise UsageError(
                        f"the template has {one_line(given)[:80]}, which is no column's name; "
                        f"double the braces that are text: {doubled(given)}"
                    )
                raise UsageError(
                    f"the template has {given}: format specs and conversions are not supported; "
                    "format the column first, or bind a name to it with on=; braces that are text "
                    f"are doubled: {doubled(given)}"
                )
            self._pieces.append((literal, name))
        names = [name for _, name in self._pieces if name is not None]
        if not names:
            raise UsageError(f"the template {text!r} names no column, such as {{review}}")
        self.inputs = {name: Field() for name in dict.fromkeys(names)}

    def user_text(self, row: Mapping[str, Any]) -> str:
        return "".join(
            literal if name is None else f"{literal}{text_of(row[name], name)}"
            for literal, name in self._pieces
        )

    def __repr__(self) -> str:
        return f"Template({self.text!r} -> {next(iter(self.outputs))})"


class CallableTask:
    """A user's function over a row.

    Attributes:
        fn: the function.
        output: the output's name where it returns a scalar.
        is_async: it is a coroutine function, so it runs on the async engine.
        wants_context: it has a parameter named ``context`` beside the row.
    """

    def __init__(self, fn: Callable[..., Any], *, output: str = "response"):
        self.fn = fn
        self.output = output
        inner = fn
        while isinstance(inner, functools.partial):
            inner = inner.func
        call = inner if inspect.isroutine(inner) else getattr(inner, "__call__", inner)  # noqa: B004
        if inspect.isasyncgenfunction(call) or inspect.isgeneratorfunction(call):
            raise UsageError(
                f"{self.name} is a generator function; a task returns one value for each row"
            )
        self.is_async = inspect.iscoroutinefunction(call)
        try:
            parameters = list(inspect.signature(fn).parameters.values())
        except (ValueError, TypeError):  # builtins without a signature take the row alone
            parameters = []
        self.wants_context = any(p.name == "context" for p in parameters[1:])

    @property
    def name(self) -> str:
        return getattr(self.fn, "__qualname__", None) or type(self.fn).__name__

    @cached_property
    def fingerprint(self) -> str:
        """The function's name: editing a cell and running it again is the same task.

        What a name does not tell apart (lambdas, partials, methods of different objects,
        functions made by a function) is told apart by what it is made of.
        """
        return f"callable:{_identity(self.fn)}"

    def __repr__(self) -> str:
        return f"CallableTask({self.name})"


def _identity(fn: Any, depth: int = 4) -> str:
    """A name for what a callable does: the same when its cell is run again, if that can be told.

    Args:
        depth: how far to look into what it is made of; a function may be part of itself.
    """
    if isinstance(fn, functools.partial):
        made_of: tuple[Any, ...] = (fn.args, fn.keywords)
        return f"{_identity(fn.func, depth)}:{_digest(_plain(made_of, depth).encode())}"
    if inspect.ismethod(fn):
        return f"{_identity(fn.__func__, depth)}:{_digest(_plain(fn.__self__, depth).encode())}"
    code = getattr(fn, "__code__", None)
    if code is None:
        return _plain(fn) if not inspect.isbuiltin(fn) else f"{fn.__module__}.{fn.__qualname__}"
    name = f"{fn.__module__}.{fn.__qualname__}"
    made_of = ()
    if name.endswith("<lambda>"):
        constants = [c for c in code.co_consts if not inspect.iscode(c)]
        made_of = (code.co_code.hex(), code.co_names, repr(constants))
    for cell in fn.__closure__ or ():
        try:
            made_of = (*made_of, cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return f"{name}:{_digest(_plain(made_of, depth).encode())}" if made_of else name


def _plain(value: Any, depth: int = 4) -> str:
    """Plain values as text; anything else by its type and where it lives, for it cannot be told
    whether another one does the same.
    """
    try:
        return _read_plain(value, depth)
    except BaseException:  # noqa: BLE001 - out of an object of the user's
        return f"{id(type(value)):x}@{id(value):x}"


def _read_plain(value: Any, depth: int) -> str:
    if value is None or isinstance(value, str | bytes | int | float | bool):
        return repr(value)
    if depth and isinstance(value, tuple | list | set | frozenset):
        parts = [_plain(item, depth - 1) for item in value]
        return f"[{','.join(sorted(parts) if isinstance(value, set | frozenset) else parts)}]"
    if depth and isinstance(value, Mapping):
        return str({_plain(k, 0): _plain(v, depth - 1) for k, v in value.items()})
    if depth and inspect.isfunction(value):
        return _identity(value, depth - 1)
    return f"{type(value).__module__}.{type(value).__qualname__}@{id(value):x}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def as_task(
    task: Any,
    *,
    instructions: str | None = None,
    inputs: Sequence[str] | None = None,
    output: str | None = None,
) -> ModelTask | CallableTask:
    """Read the ``task`` argument: a signature, a template, a pydantic model, or a callable.

    Args:
        task: what the user gave.
        instructions: for a pydantic model class: what to do.
        inputs: names that ``on=`` binds, for a pydantic model class, which has no inputs itself.
        output: name of the output of a template, or of a callable that returns a scalar.

    Raises:
        UsageError: it is none of these, or an argument does not go with it.
    """
    if instructions is not None and not is_model(task):
        raise UsageError(
            "instructions= goes with a pydantic model class; a Signature has its own, and a "
            "template is its own"
        )
    if isinstance(task, ModelTask):
        if output is not None:
            raise UsageError(
                f"output= names the one output of a template or callable; {task!r} names its own"
            )
        return task
    if isinstance(task, str):
        return Template(task, output="response" if output is None else output)
    if is_model(task):
        if not instructions:
            raise UsageError(
                f"a pydantic model says what to reply, not what to do: "
                f'parallel_map({task.__name__}, instructions="…", on=…)'
            )
        if not inputs:
            raise UsageError(
                f'say which columns {task.__name__} is made from: on="review" or '
                'on=["title", "text"]'
            )
        if output is not None:
            raise UsageError("output= does not go with a pydantic model: its fields are named")
        return Signature(instructions, inputs=list(inputs), outputs=task)
    if callable(task):
        return CallableTask(task, output="response" if output is None else output)
    raise UsageError(
        'a task is a revkit.Signature, a template such as "Summarise: {review}", a pydantic '
        f"model class, or a function of a row; got {type(task).__name__}"
    )
