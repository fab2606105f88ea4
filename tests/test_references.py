"""What docstrings and documents say of modules, names and files of revkit is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXTS = [
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "data/*.md", "revkit/**/*.py")
    for path in sorted(ROOT.glob(pattern))
]
#: A name in a docstring's role, or one with a module in Markdown's code.
NAMED = re.compile(r"(?::\w+:`~?|`)(revkit(?:\.[A-Za-z]\w*)+)")
FILES = re.compile(r"(?<![\w/.-])revkit/[a-z_/]+\.py\b")
#: Columns of a saved file (docs/saved-results.md).
IN_FILES = re.compile(
    r"revkit\.(attempts|error_text|http_status|input|output|probabilities|sample|status)"
)


def is_there(name: str) -> bool:
    """Whether a dotted name is one; what instances of a class have is not looked for."""
    module, rest = name, list[str]()
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for part in rest:
        if not hasattr(found, part):
            return isinstance(found, type)
        found = getattr(found, part)
    return True


def test_what_they_name_is_there() -> None:
    gone = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        names = {name for name in NAMED.findall(text) if not IN_FILES.fullmatch(name)}
        gone += [(path, name) for name in names if not is_there(name)]
        gone += [(path, file) for file in FILES.findall(text) if not (ROOT / file).exists()]
    assert gone == []


def test_what_is_gone_is_not_there() -> None:
    assert not is_there("revkit.record.Record")
    assert not is_there("revkit.cluster")
    assert is_there("revkit.store.Store.path")
