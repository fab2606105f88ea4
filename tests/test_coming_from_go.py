"""Each behaviour of the two originals has its line in the docs, and each line a test that runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "coming-from-go.md"
LINE = re.compile(r"^\| (?P<there>.+) \| (?P<here>.+) \| `(?P<test>tests/\w+\.py::\w+)` \|$")
#: What the originals do, in the words of the page's first column.
BEHAVIOURS = """
    work queue|max_workers|worker_cap|order of items|fail_fast|collect|partial results|task error|
    the error's text|cancel through|deadline|never started|panic|empty input|progress|observers|
    unknown name|parallel.start|their sequence|reading events|timeline|agent file|docker compose|
    summary|label|speed-up|first wave|state graph|sequential chain|hub|several runs|
    checkpointing|coordination|troubleshooting|rate limiter|batches of 100|by id|signature|
    class output|Predict|batch key|equally long lists|broadcast|repeated n times|precedence|
    unequal|empty batch|max_failures|strict mode|negative|return all|only successful|
    primary output|metrics|latency|usage|cost|factory|instances|history|DSPy
"""


def lines() -> list[re.Match[str]]:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row != "| There | Here | Shown by |"]
    found = [LINE.match(row) for row in rows]
    assert [row for row, match in zip(rows, found, strict=True) if match is None] == []
    return [match for match in found if match is not None]


def test_every_behaviour_has_its_line() -> None:
    told = " ".join(line["there"] for line in lines()).lower()
    wanted = [" ".join(words.split()).lower() for words in BEHAVIOURS.split("|")]
    assert [words for words in wanted if words not in told] == []


def test_every_test_that_is_named_exists_and_runs() -> None:
    """Collected by pytest itself, by the names that the page gives, and none of them skipped."""
    named = sorted({line["test"] for line in lines()})
    script = f"""
import pytest, sys

class Reader:
    def pytest_collection_finish(self, session):
        for item in session.items:
            kept = [mark.name for mark in item.iter_markers() if mark.name in ("skip", "xfail")]
            print("found", item.nodeid.partition("[")[0], *kept)

sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *{named!r}], [Reader()]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=PAGE.parent.parent, capture_output=True, text=True
    )
    found = {line.removeprefix("found ") for line in ran.stdout.splitlines() if "found " in line}
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert sorted(found) == named
