"""What the benchmarks and the script of the pictures import is where they look for it.

They are not run here, and need packages that tests do without.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "benchmarks").glob("*.py")), ROOT / "docs" / "pictures.py"]
#: Where scripts find modules that are no package's.
BESIDE = {
    path.stem: path for folder in ("tests", "benchmarks") for path in (ROOT / folder).glob("*.py")
}


def defined(path: Path) -> set[str]:
    """The names at the top of a module."""
    return {
        name.id if isinstance(name, ast.Name) else name.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        for name in ast.walk(node)
        if isinstance(name, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        or (isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store))
    }


def missing(source: str) -> Iterator[str]:
    """The names that a script takes from revkit or from a module beside it, and that are gone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (module := node.module or "") in BESIDE:
            names = {alias.name for alias in node.names}
            yield from (f"{module}.{name}" for name in names - defined(BESIDE[module]))
        elif isinstance(node, ast.ImportFrom) and module.split(".")[0] == "revkit":
            yield from (f"{module}.{a.name}" for a in node.names if not has(module, a.name))
        elif isinstance(node, ast.Import):
            names = {a.name for a in node.names if a.name.split(".")[0] == "revkit"}
            yield from (name for name in names if not importlib.util.find_spec(name))
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "revkit"
            and not has("revkit", node.attr)
        ):
            yield f"revkit.{node.attr}"


def has(module: str, name: str) -> bool:
    try:
        found = importlib.import_module(module)
        return hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}") is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_it_imports_is_there(script: Path) -> None:
    assert list(missing(script.read_text(encoding="utf-8"))) == []


def test_what_is_gone_is_found() -> None:
    source = """
import revkit
import revkit.parquet
from revkit.record import Record
from revkit.cluster.purse import Purse
from revkit.api import chunks, chain_of
from revkit.task.chat import Chat
from servers import serve, served
revkit.store.info(revkit.task)
"""
    assert sorted(missing(source)) == [
        "revkit.api.chain_of",
        "revkit.cluster.purse.Purse",
        "revkit.parquet",
        "revkit.record.Record",
        "revkit.task.chat.Chat",
        "servers.served",
    ]
