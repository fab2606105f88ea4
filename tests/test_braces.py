"""Braces of a template that are text: the error says to double them, and shows how."""

from __future__ import annotations

import pandas as pd
import pytest

from revkit import MissingColumn, Signature, UsageError
from revkit.testing import FakeModel

TEXT: list[tuple[str, str]] = [
    ('Reply as {"label": "good"} for {review}', '{{"label": "good"}}'),
    ("Reply as {'a': 1} for {review}", "{{'a': 1}}"),
    ('{\n  "x": 1,\n  "y": 2\n} {review}', '{{"x": 1, "y": 2}}'),
    ('{"a": {"b": 1}} {review}', '{{"a": {{"b": 1}}}}'),
    ('{"text": "{review}"}', '{{"text": "{review}"}}'),
    ("{a: 1} {review}", "{{a: 1}}"),
    ('{"a!": 1} {review}', '{{"a!": 1}}'),
    ('{"a"} {review}', '{{"a"}}'),
    ("f() { return 1; } {review}", "{{return 1;}}"),
    (r"\frac{1}{2} of {review}", "{{1}}"),
    ("{x:.2f} {review}", "{{x:.2f}}"),
    ("{x | y} {review}", "{{x | y}}"),
    ("{nowhere} {review}", "{{nowhere}}"),
    ('{"type": "object", "properties": {"a": {"type": "string"}}} {review}', '{{"type": "object",'),
]


@pytest.mark.parametrize(("text", "doubled"), TEXT)
def test_braces_that_are_text_are_told_to_be_doubled(text: str, doubled: str) -> None:
    df = pd.DataFrame({"review": ["r"]})
    with pytest.raises(UsageError) as refused:
        df.llm.parallel_map(text, model=FakeModel([]))
    assert "double" in str(refused.value)
    assert doubled in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "doubled"), TEXT)
def test_what_is_told_can_be_written(text: str, doubled: str) -> None:
    if not doubled.endswith("}}"):
        return  # shortened
    df = pd.DataFrame({"review": ["r"]})
    sent: list[str] = []
    df.llm.parallel_map(
        f"{doubled} {{review}}",
        model=FakeModel(lambda text: sent.append(text) or "ok"),
        store=False,
    )
    assert sent == [doubled.replace("{{", "{").replace("}}", "}").replace("{review}", "r") + " r"]


def test_a_name_that_is_misspelt_is_no_text() -> None:
    df = pd.DataFrame({"review": ["r"]})
    with pytest.raises(MissingColumn) as refused:
        df.llm.parallel_map("{reveiw}", model=FakeModel([]))
    assert "did you mean" in str(refused.value)
    assert "double" not in str(refused.value)
    with pytest.raises(MissingColumn) as refused:
        df.llm.parallel_map(Signature("x", inputs="nowhere", outputs="y"), model=FakeModel([]))
    assert "double" not in str(refused.value)
