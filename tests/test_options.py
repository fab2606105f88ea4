"""Each option stands in one group with its default; every door shows and takes it from there."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import revkit
from revkit import Adaptive, Retry, UsageError
from revkit.api.accessor import DataFrameAccessor, SeriesAccessor
from revkit.runtime import options
from revkit.runtime.options import PARAMETERS, FrameOptions, ItemOptions, RunOptions

NEITHER = {"inplace", "batch_key"}
DOORS: list[tuple[Callable[..., Any], set[str]]] = [
    (revkit.parallel_map, {"inplace"}),
    (revkit.aparallel_map, {"inplace", "loop"}),
    (revkit.preview, {"inplace"}),
    (revkit.apreview, {"inplace", "loop"}),
    (revkit.map_chunks, NEITHER),
    (revkit.map_parquet, NEITHER),
    (revkit.Step, NEITHER),
    (revkit.chain, set(PARAMETERS) - set(options.ChainOptions.__annotations__)),
    (DataFrameAccessor.parallel_map, {"batch_key"}),
    (DataFrameAccessor.aparallel_map, {"batch_key", "loop"}),
    (DataFrameAccessor.preview, {"batch_key"}),
    (SeriesAccessor.parallel_map, {*NEITHER, "on"}),
    (SeriesAccessor.apreview, {*NEITHER, "on", "loop"}),
]


def groups() -> dict[str, Any]:
    return {one.name: getattr(RunOptions(), one.name) for one in dataclasses.fields(RunOptions)}


def test_no_option_stands_in_two_groups() -> None:
    names = [
        one.name for group in groups().values() for one in dataclasses.fields(group) if one.init
    ]
    assert sorted(names) == sorted(set(names)) == sorted(PARAMETERS)


def test_an_option_is_typed_alike_for_callers_and_in_its_group() -> None:
    callers = typing.get_type_hints(ItemOptions) | typing.get_type_hints(FrameOptions)
    assert callers.keys() == PARAMETERS.keys()
    for group in groups().values():
        hints = typing.get_type_hints(type(group))
        for one in dataclasses.fields(group):
            if one.init:  # None stands for the default where the group has none
                assert callers[one.name] in (hints[one.name], hints[one.name] | None), one.name


def test_the_docstring_has_every_argument_in_the_order_of_the_signature() -> None:
    text = inspect.getdoc(revkit.parallel_map) or ""
    lines = [line.strip() for line in text.splitlines() if line.startswith(" " * 4)]
    named = [line.partition(":")[0] for line in lines if line.partition(":")[0] in PARAMETERS]
    assert named == [name for name in PARAMETERS if name != "inplace"]


@pytest.mark.parametrize(("door", "without"), DOORS)
def test_every_door_shows_its_options_with_their_defaults(
    door: Callable[..., Any], without: set[str]
) -> None:
    shown = inspect.signature(door).parameters
    assert {name for name in shown if name in PARAMETERS} == set(PARAMETERS) - without
    for name in shown.keys() & PARAMETERS.keys():
        assert shown[name].default == PARAMETERS[name].default


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "timeout": st.floats(min_value=0.1, allow_nan=False, allow_infinity=False),
            "max_workers": st.integers(1, 100),
            "max_failures": st.integers(0, 9),
            "prefix": st.text(max_size=3),
            "repeat": st.integers(1, 5),
            "retry": st.builds(Retry, attempts=st.integers(1, 9)),
            "progress": st.booleans(),
        },
    )
)
def test_only_what_is_named_changes(changed: dict[str, Any]) -> None:
    default, made = RunOptions(), RunOptions().replace(**changed)
    for group in groups():
        for one in dataclasses.fields(getattr(default, group)):
            expected = changed.get(one.name, getattr(getattr(default, group), one.name))
            assert getattr(getattr(made, group), one.name) == expected
    assert made.replace(**{name: PARAMETERS[name].default for name in changed}) == default


def test_a_group_checks_itself_when_it_is_made() -> None:
    for wrong in (
        {"timeout": -1}, {"attempt_timeout": "s"}, {"max_workers": 0}, {"engine": "gpu"},
        {"loop": "mine"}, {"repeat": 0}, {"progress": 1}, {"retry": 3}, {"budget": 5},
        {"observer": "nobody"}, {"max_failures": -1}, {"instances": []}, {"factory": 3},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            RunOptions().replace(**wrong)
    with pytest.raises(TypeError, match="no option tiemout="):
        RunOptions().replace(tiemout=3)


def test_groups_hold_what_an_option_stands_for() -> None:
    made = RunOptions().replace(max_workers="adaptive", timeout=5, retry=None)
    assert made.pool.max_workers == Adaptive()
    assert made.limits.timeout == 5.0
    assert made.failures.retry == Retry()
    assert RunOptions().replace(instances=[object(), object()]).pool.max_workers == 2


def test_a_series_refuses_on_in_its_own_words() -> None:
    with pytest.raises(UsageError, match="leave it out"):
        pd.Series(["a"]).llm.parallel_map(len, on="a")
