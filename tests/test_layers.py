"""Imports point one way: what decides does not know what touches the world."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import revkit

PACKAGE = Path(revkit.__file__).parent

#: Decides: neither I/O nor time nor frames. ``clients.base`` says what a client is, no more.
PURE = {
    "errors",
    "events",
    "outputs",
    "task",
    "sentiment",
    "policy",
    "buckets",
    "tokens",
    "adaptive",
    "throttle",
    "scheduler",
    "state",
    "record",
    "samples",
    "stream",
    "metrics",
    "totals",
    "whatif",
    "bottleneck",
    "keys",
    "batch",
    "clients.base",
    "plot.raster",
    "cluster.shares",
    "cluster.claims",
    "cluster.rate",
    "cluster.purse",
    "cluster.runs",
    "cluster.coordinator",
}
#: Each touches one part of the world, and knows nothing of the others.
EDGES = {
    "engines",
    "clients",
    "plot",
    "progress",
    "display",
    "data",
    "cancel",
    "store",
    "limits",
    "prices",
    "observers",
}
#: Puts the parts together, and opens doors to them.
ABOVE = {
    "plan",
    "lookahead",
    "drain",
    "interrupt",
    "run",
    "columns",
    "tables",
    "forecast",
    "result",
    "compare",
    "evaluate",
    "saved",
    "provenance",
    "files",
    "trace",
    "api",
    "chain",
    "chunks",
    "parquet",
    "preview",
    "accessor",
    "cluster",
    "dask",
    "live",
    "config",
    "conversation",
    "testing",
    "demo",
    "doctor",
    "probe",
    "__main__",
}

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


def test_the_reader_of_imports_reads_them() -> None:
    seen = {(one.where, one.what) for one in ALL}
    assert ("scheduler", "revkit.events") in seen
    assert ("engines.loop", "revkit.scheduler") in seen  # "from ..scheduler"
    assert ("api", "revkit.columns") in seen  # "from . import columns"
    assert ("outputs", "pydantic") in seen  # inside a function
    assert any(o.typing_only for o in ALL if (o.where, o.what) == ("task", "revkit.clients.base"))


def test_every_module_has_its_layer() -> None:
    placed = PURE | EDGES | ABOVE | {"", "_version", "work"}
    unplaced = [name for name in MODULES if name not in placed and top(name) not in placed]
    assert unplaced == []


def test_pure_modules_touch_nothing() -> None:
    broken = [
        one for one in ALL if one.where in PURE and not one.typing_only and top(one.what) in WORLD
    ]
    assert broken == []


def test_pure_modules_know_only_pure_ones() -> None:
    broken = [
        one
        for one in ALL
        if one.where in PURE and not one.typing_only and (name := own(one)) is not None
        if name not in PURE
    ]
    assert broken == []


def test_edges_do_not_import_each_other() -> None:
    """But inside ``clients`` and ``store``, and that every plot may use ``plot``."""
    broken = [
        one
        for one in ALL
        if top(one.where) in EDGES and one.where not in PURE and not one.typing_only
        if (name := own(one)) is not None and name not in PURE
        if top(name) in EDGES and top(name) != top(one.where)
        if not (name == "plot" and one.where.startswith("plot_"))
    ]
    assert broken == []


def test_no_edge_knows_what_stands_above_it() -> None:
    below = EDGES | {"work"}
    broken = [
        one
        for one in ALL
        if top(one.where) in below and one.where not in PURE and not one.typing_only
        if (name := own(one)) is not None and (name == "" or top(name) in ABOVE)
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        (
            "pandas",
            {
                "accessor",
                "api",
                "chain",
                "chunks",
                "parquet",
                "columns",
                "tables",
                "result",
                "compare",
                "evaluate",
                "forecast",
                "preview",
                "data",
                "display",
                "plot",
                "demo",
                "testing",
                "saved",
                "provenance",
                "cluster",
            },
        ),
        ("pyarrow", {"columns", "parquet", "saved", "store"}),
        ("httpx", {"clients"}),
        ("httpcore", {"clients"}),
        ("aiohttp", {"clients"}),
        ("matplotlib", {"plot"}),
        ("PIL", {"plot"}),
        ("tqdm", {"progress", "clients"}),
        ("IPython", {"live"}),
        ("sqlite3", {"store"}),
        ("nest_asyncio2", {"run"}),
        ("asyncio", {"engines", "run", "clients", "testing", "work", "preview", "conversation"}),
        ("pydantic", {"outputs", "api"}),
        ("genai_prices", {"prices"}),
        ("opentelemetry", {"observers"}),
        ("sklearn", {"evaluate"}),
        ("dask", {"dask", "cluster"}),
        ("distributed", {"cluster"}),
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
    "Budget",
    "BudgetReached",
    "CancelToken",
    "Chain",
    "ChainResult",
    "Client",
    "ColumnExists",
    "ConnectionFailed",
    "Context",
    "Conversation",
    "Event",
    "FactoryFailed",
    "Field",
    "Interrupted",
    "Local",
    "MissingColumn",
    "MissingExtra",
    "MissingInput",
    "ModelError",
    "ModelMissing",
    "ModelUnavailable",
    "NoModel",
    "Ollama",
    "OpenAICompatible",
    "ParallelResult",
    "ParquetResult",
    "Preview",
    "Price",
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
    "Step",
    "UsageError",
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
    "register_observer",
    "use",
]


def test_public_names_are_pinned() -> None:
    assert sorted(revkit.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_exist(name: str) -> None:
    assert getattr(revkit, name) is not None


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
