"""Imports point one way: each package may import from those before it in ``ORDER``, and no others.

Late imports and those for typing only count too: they are knowledge as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import revkit
from revkit.clients.registry import BUILT_IN

PACKAGE = Path(revkit.__file__).parent

#: The packages of revkit, from what decides to what users call.
ORDER = [
    "errors",
    "task",
    "scheduling",
    "tables",
    "record",
    "clients",
    "store",
    "observers",
    "runtime",
    "plot",
    "display",
    "results",
    "api",
    "cli",
    "dask",
    "testing",
]

#: Decide, and touch nothing: neither the world nor a clock.
PURE = {"errors", "task", "scheduling"}
#: Modules elsewhere that do so as well.
PURE_MODULES = {
    "tables.batch",
    "tables.rows",
    "record.join",
    "record.record",
    "record.samples",
    "record.metrics",
    "record.totals",
    "clients.contract",
    "store.keys",
    "observers.stream",
    "plot.raster",
    "results.fitting",
    "results.replay",
    "results.server",
    "results.whatif",
    "results.bottleneck",
    "dask.shares",
    "dask.claims",
    "dask.shared_rate_limit",
    "dask.shared_budget",
    "dask.cluster_run",
    "dask.coordinator",
}
#: Shared by the runs of several threads: they hold a lock, read the clock for their callers, and
#: have an identity under which copies of them are one limit.
SHARED = {"scheduling.limits": {"threading", "time", "uuid"}}

WORLD = {
    "pandas",
    "httpx",
    "httpcore",
    "aiohttp",
    "asyncio",
    "threading",
    "time",
    "sqlite3",
    "matplotlib",
    "PIL",
    "tqdm",
    "socket",
    "ssl",
    "subprocess",
    "uuid",
    "secrets",
}


class Import:
    """One import statement: of which module, in which, and whether only types need it."""

    def __init__(self, where: str, what: str, line: int, typing_only: bool):
        self.where, self.what, self.line, self.typing_only = where, what, line, typing_only

    def __repr__(self) -> str:
        return f"{self.where}:{self.line} imports {self.what}"


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


MODULES = modules()


def imports(where: str) -> Iterator[Import]:
    path = MODULES[where]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    package = where.split(".") if path.name == "__init__.py" else where.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(tree):
        only = id(node) in typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(where, alias.name, node.lineno, only)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield Import(where, node.module or "", node.lineno, only)
                continue
            base = package[: len(package) - node.level + 1]
            base = ["revkit", *base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                known = whole.removeprefix("revkit.") in MODULES
                yield Import(where, whole if known else ".".join(base), node.lineno, only)


ALL = [one for where in MODULES for one in imports(where)]


def own(one: Import) -> str | None:
    """The module of revkit that is imported, else None."""
    if one.what == "revkit":
        return ""
    return one.what.removeprefix("revkit.") if one.what.startswith("revkit.") else None


def top(module: str) -> str:
    return module.split(".")[0]


def is_pure(module: str) -> bool:
    return top(module) in PURE or module in PURE_MODULES


def test_the_reader_of_imports_reads_them() -> None:
    seen = {(one.where, one.what) for one in ALL}
    assert ("scheduling.scheduler", "revkit.scheduling.events") in seen
    assert ("runtime.engines.loop", "revkit.scheduling.scheduler") in seen  # "from ...scheduling"
    assert ("api.finish", "revkit.record.columns") in seen  # "from ..record import columns"
    assert ("task.outputs", "pydantic") in seen  # inside a function
    assert ("results.result", "revkit.results.compare") in seen
    assert any(
        o.typing_only
        for o in ALL
        if (o.where, o.what) == ("clients.contract", "revkit.scheduling.limits")
    )


def test_every_package_has_its_place() -> None:
    entries = {top(name) for name in MODULES} - {"", "__main__", "_version"}
    assert entries == set(ORDER)


def test_imports_go_one_way() -> None:
    """Also late ones, and those for typing only."""
    place = {name: at for at, name in enumerate(ORDER)}
    broken = [
        one
        for one in ALL
        if top(one.where) in place and (name := own(one)) not in (None, "_version")
        if name == "" or place[top(name)] > place[top(one.where)]
    ]
    assert broken == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """At run time, that is: a function's own imports count, those for typing do not."""
    known: dict[str, set[str]] = {name: set() for name in MODULES}
    for one in ALL:
        name = own(one)
        if name in known and name not in ("", one.where) and not one.typing_only:
            known[one.where].add(name)
    done: set[str] = set()
    while free := {name for name, needs in known.items() if name not in done and needs <= done}:
        done |= free
    assert sorted(set(known) - done) == []


def test_pure_modules_touch_nothing() -> None:
    broken = [
        one
        for one in ALL
        if is_pure(one.where) and not one.typing_only and top(one.what) in WORLD
        if top(one.what) not in SHARED.get(one.where, ())
    ]
    assert broken == []


def test_pure_modules_ask_for_no_date() -> None:
    """``datetime`` itself is pure, and what the time is now is not."""
    broken = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        if is_pure(module)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today")
        if ast.unparse(node.value).split(".")[-1] in ("datetime", "date")
    ]
    assert broken == []


def test_pure_modules_know_only_pure_ones() -> None:
    broken = [
        one
        for one in ALL
        if is_pure(one.where) and not one.typing_only and (name := own(one)) is not None
        if not is_pure(name)
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("pandas", {"tables", "record", "plot", "display", "results", "api", "cli", "dask"}),
        ("pyarrow", {"record", "store", "results", "api"}),
        ("httpx", {"clients"}),
        ("httpcore", {"clients"}),
        ("aiohttp", {"clients"}),
        ("matplotlib", {"plot"}),
        ("PIL", {"plot"}),
        ("tqdm", {"display", "clients"}),
        ("IPython", {"display"}),
        ("sqlite3", {"store"}),
        ("nest_asyncio2", {"runtime"}),
        ("asyncio", {"clients", "runtime", "api", "testing"}),
        ("pydantic", {"task", "api"}),
        ("genai_prices", {"clients"}),
        ("opentelemetry", {"observers"}),
        ("sklearn", {"results"}),
        ("dask", {"dask"}),
        ("distributed", {"dask"}),
    ],
)
def test_each_library_has_its_home(library: str, homes: set[str]) -> None:
    broken = [
        one
        for one in ALL
        if top(one.what) == library and not one.typing_only and top(one.where) not in homes
    ]
    assert broken == []


#: What costs time or memory, and that many runs never need.
LATE = [
    "IPython",
    "PIL",
    "aiohttp",
    "dask",
    "distributed",
    "genai_prices",
    "httpcore",
    "httpx",
    "matplotlib",
    "nest_asyncio2",
    "opentelemetry",
    "pydantic",
    "sklearn",
    "sqlite3",
    "tqdm",
    "xllamacpp",
]


def loaded_by(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    return {top(name) for name in done.stdout.split()}


def test_import_revkit_loads_little_beside_pandas() -> None:
    extra = loaded_by("import revkit") - loaded_by("import pandas")
    assert sorted(extra & set(LATE)) == []


PUBLIC = [
    "SENTIMENT",
    "SENTIMENT_WITH_REASON",
    "AccessDenied",
    "Adaptive",
    "AttemptTimeout",
    "BadOutput",
    "BadReply",
    "Bottleneck",
    "Budget",
    "BudgetReached",
    "CancelToken",
    "Chain",
    "ChainResult",
    "Client",
    "ColumnExists",
    "Comparison",
    "ConnectionFailed",
    "ContentFiltered",
    "Context",
    "Conversation",
    "CutOff",
    "Evaluation",
    "Event",
    "FactoryFailed",
    "Field",
    "Interrupted",
    "Local",
    "Message",
    "Metrics",
    "MissingColumn",
    "MissingExtra",
    "MissingInput",
    "ModelError",
    "ModelMissing",
    "ModelRefused",
    "ModelUnavailable",
    "NoModel",
    "Ollama",
    "OpenAICompatible",
    "ParallelResult",
    "ParquetResult",
    "Preview",
    "Price",
    "PromptTooLong",
    "PromptTruncated",
    "QuotaUsedUp",
    "RateLimit",
    "Reply",
    "Retry",
    "RevkitError",
    "RowFailure",
    "RowResult",
    "RunCancelled",
    "RunFailed",
    "RunTimeout",
    "Secret",
    "ServerError",
    "Signature",
    "Status",
    "Step",
    "Usage",
    "UsageError",
    "WhatIf",
    "__version__",
    "aparallel_map",
    "apreview",
    "chain",
    "data_file",
    "last_result",
    "load_agent",
    "load_reviews",
    "map_chunks",
    "map_parquet",
    "parallel_map",
    "preview",
    "register_accessor",
    "register_client",
    "register_observer",
    "use",
]


#: The client class of every built-in provider is public as well.
PUBLIC += [cls for _, cls in BUILT_IN.values() if cls not in PUBLIC]


def test_public_names_are_pinned() -> None:
    assert sorted(revkit.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_exist(name: str) -> None:
    assert getattr(revkit, name) is not None


def test_tab_shows_what_users_need_and_no_modules() -> None:
    """But for the store, whose functions users call."""
    shown = {name: getattr(revkit, name) for name in dir(revkit) if name != "collect"}
    modules = [name for name, value in shown.items() if isinstance(value, types.ModuleType)]
    assert modules == ["store"]
    assert {*PUBLIC, "collect", "store"} == set(dir(revkit))


def test_no_name_is_both_a_module_and_a_function() -> None:
    import importlib
    import pkgutil

    for found in pkgutil.walk_packages(revkit.__path__, "revkit."):
        if found.name == "revkit.__main__" or not found.ispkg:
            continue
        package = importlib.import_module(found.name)
        for inner in pkgutil.iter_modules(package.__path__):
            value = getattr(package, inner.name, None)
            assert value is None or isinstance(value, types.ModuleType), (found.name, inner.name)


def test_errors_stand_in_one_tree() -> None:
    from revkit import errors

    for name in errors.__all__:
        thing = getattr(errors, name)
        if isinstance(thing, type):
            assert issubclass(thing, errors.RevkitError | KeyboardInterrupt)
            assert name in (errors.__doc__ or "") or name == "Interrupted"


def test_another_packages_accessor_is_left_alone() -> None:
    script = """
import warnings
import pandas as pd

@pd.api.extensions.register_dataframe_accessor("llm")
class Theirs:
    def __init__(self, frame): pass

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import revkit
assert "register_accessor" in str(told[-1].message), told
assert type(pd.DataFrame().llm) is Theirs
revkit.register_accessor("other")
assert pd.Series([1, 2]).other.parallel_map(lambda x: x + 1).frame["response"].tolist() == [2, 3]
try:
    revkit.register_accessor("llm")
except revkit.UsageError as error:
    assert "another name" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
