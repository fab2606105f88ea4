"""docs/architecture.md names files and what is in them: all of it is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from test_layers import ORDER

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

#: A file or package in backticks, and the names after its colon.
NAMED = re.compile(r"`((?:revkit|tests)/[\w/.]+)`(?::((?:,?\s+`\w+`)+))?")
PLACES = [(path, tuple(re.findall(r"`(\w+)`", names))) for path, names in NAMED.findall(PAGE)]


def names_in(path: Path) -> set[str]:
    """What a file defines at its top level."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def test_the_page_names_enough_to_be_checked() -> None:
    assert len(PLACES) > 40
    assert ("revkit/scheduling/policy.py", ("Retry", "failure_stop")) in PLACES


@pytest.mark.parametrize(("path", "names"), sorted(set(PLACES)))
def test_every_file_and_name_exists(path: str, names: tuple[str, ...]) -> None:
    assert (ROOT / path).exists()
    assert set(names) <= (names_in(ROOT / path) if names else set())


def test_the_table_has_all_packages_in_order() -> None:
    table = PAGE[: PAGE.index("## The path of one row")]
    told = re.findall(r"^\| `revkit/(\w+)(?:\.py)?`", table, flags=re.MULTILINE)
    assert told == ORDER


def test_the_path_of_a_row_is_told_in_at_most_ten_files() -> None:
    path = PAGE[PAGE.index("## The path of one row") : PAGE.index("## The path of one stop")]
    steps = re.findall(r"^\| (\d+) \| `(revkit/[\w/]+\.py)`", path, flags=re.MULTILINE)
    assert [int(step) for step, _ in steps] == list(range(1, len(steps) + 1))
    assert len({file for _, file in steps}) <= 10


PACKAGES = sorted(path.parent for path in (ROOT / "revkit").rglob("__init__.py"))[1:]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_each_package_says_what_each_of_its_files_is_for(package: Path) -> None:
    told = ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8"))) or ""
    files = {path.stem for path in package.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(re.findall(r"^ *(\w+)/? {2,}\S", told, flags=re.MULTILINE)) == files | folders
