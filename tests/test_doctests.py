"""Every example in the docstrings runs, without a model and without a network."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import revkit

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NAMES = ["revkit"] + [
    module.name
    for module in pkgutil.walk_packages(revkit.__path__, "revkit.")
    if not module.name.endswith("__main__")
]


class SameMissing(doctest.OutputChecker):
    """pandas 2 writes a missing string as <NA>, pandas 3 as NaN."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(
            want.replace("<NA>", "NaN"), got.replace("<NA>", "NaN"), optionflags
        )


def examples(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    return [test for test in doctest.DocTestFinder().find(module, name) if test.examples]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    for test in examples(name):
        told: list[str] = []
        runner = doctest.DocTestRunner(SameMissing(), verbose=False, optionflags=FLAGS)
        runner.run(test, out=told.append)
        assert runner.summarize(verbose=False).failed == 0, "".join(told)


def test_there_are_examples() -> None:
    assert sum(len(examples(name)) for name in NAMES) >= 15
