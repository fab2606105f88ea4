"""What a run says about itself: what is in it, what cannot get into it, and what nbval ignores."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbclient
import nbformat
import pandas as pd
import pytest
from pages import Page

import revkit.testing
from revkit import display
from revkit.plot import NotebookFigure
from revkit.record.metrics import Metrics, Usage

SANITIZE = Path(revkit.testing.NBVAL_SANITIZE)
NAMES = ["min", "mean", "p50", "p90", "p95", "p99", "max"]
WAITS = ["queue", "limit", "backoff", "total"]
NONE_WAITED = (0.0, 0.0, 0.0)
NASTY = '<script>alert("1")</script> \x1b[31mred\x07 {braces} %s \u202eturned\nnew line'


def result(
    *, labels: dict[Any, int] | None = None, errors: list[dict[str, Any]] | None = None,
    time: float = 1.0, first_wave: int = 0, waited: tuple[float, float, float] = NONE_WAITED,
    **figures: Any,
) -> Any:  # fmt: skip
    """A stand-in for ParallelResult, in which every duration is a multiple of ``time``.

    ``first_wave`` of its attempts were the first of their worker, and its rows waited so many ms
    in the queue, for a limit, and to be tried again.
    """
    labels = {"positive": 6, "neutral": 3, "negative": 2} if labels is None else labels
    errors = [] if errors is None else errors
    ok, failed = sum(labels.values()), len(errors)
    filled = [
        {"row": i, "index": i, "item": {"review": "text"}, "error_type": "ValueError",
         "status": None, "message": "no", "attempts": 1} | error
        for i, error in enumerate(errors)
    ]  # fmt: skip
    metrics = {
        "total": ok + failed, "succeeded": ok, "failed": failed, "cancelled": 0, "not_started": 0,
        "from_store": 0, "duplicates": 0, "limit": None,
        "attempts": ok + failed, "retries": 0, "wall_s": 1.2345 * time,
        "rows_per_s": 9.72 / time, "mean_concurrency": 3.4 / time, "speedup_estimate": 3.1 / time,
        "speedup_basis": "sum of service times / wall time", "workers": 4, "engine": "thread",
        "cold_start_ms": 12.5 * time, "pauses": 0, "paused_s": 0.0, "limited_s": 0.0,
    } | figures  # fmt: skip
    total = max(1, ok)
    summary = pd.DataFrame(
        {"count": labels.values(), "share": [n / total for n in labels.values()]}
    )
    summary.index = pd.Index(list(labels), dtype=object)
    columns = ["row", "index", "item", "error_type", "status", "message", "attempts"]
    latency = pd.Series([time * 100 * k for k in range(1, 8)], index=NAMES)
    waves = {"first": latency * 3, "rest": latency / 2}
    waves = pd.DataFrame(waves).T.assign(count=[first_wave, ok - first_wave])
    waits = {name: latency * ms for name, ms in zip(WAITS, [*waited, sum(waited)], strict=True)}
    return SimpleNamespace(
        model_name="llama3.2:3b",
        metrics=Metrics(**metrics),
        bottleneck=None,
        provenance={"model": None},
        store=None,
        store_problem=None,
        stopped=None,
        outputs={"sentiment": tuple(labels), "reason": None},
        summary=lambda name: summary,
        latency=latency,
        latency_by=lambda by: {"wave": waves}[by],
        waiting=pd.DataFrame(waits).T.drop(columns="min").assign(count=ok + failed),
        usage=Usage(1234, 56, 1290),
        errors=pd.DataFrame(filled, columns=columns),
        timeline_png=lambda: b"\x89PNG" + str(time).encode(),
    )


def sanitized(output: str) -> str:
    """What nbval compares: it reads the file and applies it in just this way."""
    pairs = re.findall("^regex: (.*)$\n^replace: (.*)$", SANITIZE.read_text(), re.MULTILINE)
    assert len(pairs) == SANITIZE.read_text().count("\nregex:")
    for regex, replace in pairs:
        output = re.sub(regex, replace, output)
    return output


# -- the repr -------------------------------------------------------------------------------------


def test_the_repr_has_counts_and_labels_and_nothing_that_time_decides() -> None:
    shown = display.short(result(errors=[{}]))
    assert shown == (
        "ParallelResult: 12 rows, 11 ok, 1 failed\n"
        "sentiment: 6 positive, 3 neutral, 2 negative"
    )  # fmt: skip
    assert shown == display.short(result(errors=[{}], time=17.3, workers=16))


def test_the_repr_names_every_status_that_occurs() -> None:
    shown = display.short(result(labels={}, total=1234, cancelled=2, not_started=1232))
    assert shown == "ParallelResult: 1,234 rows, 0 ok, 2 cancelled, 1,232 not started"


def test_the_repr_stays_short_with_many_labels() -> None:
    shown = display.short(result(labels={f"label {i}": 1 for i in range(500)}))
    assert [len(line) <= 100 for line in shown.splitlines()] == [True, True]


# -- the report -----------------------------------------------------------------------------------


def test_the_report_tells_the_run() -> None:
    report = display.text(result(errors=[{"message": "no"}, {"message": "no"}]))
    for line in (
        "13 rows, 11 ok, 2 failed",
        "model: llama3.2:3b",
        "  positive        6   54.5%  ██████████████████████",
        "  total time         1.23 s",
        "  per row            103 ms",
        "  success rate       84.6%",
        "  speed-up, at most  3.10 x",
        "                     sum of service times / wall time",
        "  workers            4 (thread)",
        "  1,234 prompt, 56 completion, 1,290 total",
        "  2 x ValueError: no",
        "      such as row 0: text",
        "  Every failed row, with its item and message: run.errors.",
        "  To try them again: run.retry_failed()",
    ):
        assert line in report.splitlines()
    (head,) = [line for line in report.splitlines() if " p99 " in line]
    (values,) = [line for line in report.splitlines() if "service time  " in line]
    assert [head.index(n) + len(n) for n in NAMES] == [
        match.end() for match in re.finditer(r"\d+ ms", values)
    ]


def test_the_report_is_never_wider_than_100_characters() -> None:
    long = "a long story " * 100
    report = display.text(
        result(
            labels={long: 3, "x" * 300: 1},
            errors=[{"message": long, "item": {"a": long, "b": "y" * 999}, "index": "z" * 400}],
        )
    )
    assert max(map(len, report.splitlines())) <= 100


def test_a_run_without_good_attempts_has_no_figures_but_a_report() -> None:
    empty = result(
        labels={}, time=float("nan"), attempts=0, wall_s=0.0, speedup_basis="no attempt was made"
    )
    empty.usage, empty.model_name = Usage(None, None, None), None
    report = display.text(empty)
    assert "0 rows, 0 ok" in report
    assert "  speed-up, at most  n/a\n" in report
    assert "latency" not in report
    assert "tokens" not in report
    assert "model" not in report
    assert "<img" not in display.html(empty)


def test_many_labels_and_many_kinds_of_error_are_cut_and_say_so() -> None:
    full = result(
        labels={f"label {i}": 1 for i in range(50)},
        errors=[{"message": f"id {i}"} for i in range(30)] + [{"message": "usual"}] * 2,
    )
    report = display.text(full)
    assert "  30 more: run.summary('sentiment')" in report
    assert "  21 more kinds of error." in report
    assert report.index("2 x ValueError: usual") < report.index("1 x ValueError: id 0")
    assert "21 more kinds of error." in Page(display.html(full)).text


def test_the_row_of_an_example_is_named_as_its_frame_names_it() -> None:
    report = display.text(result(errors=[{"row": 5, "index": ("a", 1)}]))
    assert "such as row 5 (index ('a', 1)): text" in report


def test_the_cost_stands_beside_the_tokens_where_there_is_one() -> None:
    for cost, shown in ((0.00384, "$0.0038"), (12.5, "$12.50"), (0.0, ""), (None, "")):
        run = result()
        run.usage = Usage(1234, 56, 1290, cost)
        told = "1,234 prompt, 56 completion, 1,290 total" + (f", {shown}" if shown else "")
        assert f"  {told}" in display.text(run).splitlines()
        cells = "".join(f"<td>{value}</td>" for value in ("1,234", "56", "1,290", shown) if value)
        assert f"<tr><td></td>{cells}</tr>" in display.html(run)


def test_the_latency_table_tells_of_waves_and_waits_where_there_were_any() -> None:
    def lines(**told: Any) -> list[str]:
        report = display.text(result(**told)).splitlines()
        table = report[report.index(next(x for x in report if x.startswith("latency"))) + 1 :]
        names = [line[2:16].strip() for line in table[: table.index("")]]
        cells = re.findall('<td><span title="[^"]+">([^<]*)</span>', display.html(result(**told)))
        assert cells == [name for name in names if name != "held back"]
        return names

    assert lines() == ["service time"]
    assert lines(first_wave=4) == ["service time", "first wave", "the rest"]
    assert lines(first_wave=11) == ["service time"]  # one wave is no other than all
    assert lines(waited=(0.5, 0.0, 0.0)) == ["service time", "queue wait"]
    assert lines(waited=(0.0, 9.0, 0.1)) == ["service time", "limit wait", "backoff wait"]
    assert lines(limited_s=1.0) == ["service time", "held back"]


def test_a_wait_has_its_percentiles_below_those_of_the_service_time() -> None:
    report = display.text(result(waited=(10.0, 0.0, 0.0))).splitlines()
    (head,) = [line for line in report if " p99 " in line]
    (values,) = [line for line in report if "queue wait" in line]
    assert [head.index(n) + len(n) for n in NAMES[1:]] == [
        match.end() for match in re.finditer(r"\d+\.\d+ s", values)
    ]


def test_what_held_the_run_back_is_said_in_words() -> None:
    both = {"pauses": 2, "paused_s": 24.0, "limited_s": 21.6}
    told = "2 pauses of the server, 24.0 s; rate limit or budget, 21.6 s"
    assert f"  held back     {told}" in display.text(result(**both)).splitlines()
    assert f'<td>held back</td><td colspan="7">{told}</td>' in display.html(result(**both))
    one = display.text(result(pauses=1, paused_s=3.0))
    assert "  held back     1 pause of the server, 3.00 s\n" in one
    long = dict.fromkeys(("paused_s", "limited_s"), 86_400.0 * 30)
    assert max(map(len, display.text(result(pauses=123_456, **long)).splitlines())) <= 100


@pytest.mark.parametrize(
    ("told", "store", "problem", "steps"),
    [
        ({}, None, None, []),
        (
            {"errors": [{}]},
            None,
            None,
            [
                "Every failed row, with its item and message: run.errors.",
                "To try them again: run.retry_failed()",
            ],
        ),
        (
            {"errors": [{"error_type": "MissingInput"}]},
            None,
            None,
            [
                "Every failed row, with its item and message: run.errors.",
                "To try them again: fill in what is missing, and make the same call again",
            ],
        ),
        (
            {"not_started": 5, "cancelled": 1},
            None,
            None,
            ["To go on with what is not done: run.retry_failed()"],
        ),
        (
            {"not_started": 5, "errors": [{}]},
            "/a/store",
            None,
            [
                "Every failed row, with its item and message: run.errors.",
                "To go on with what is not done: the same call again, which takes from the store "
                "what is done; or run.retry_failed()",
            ],
        ),
        (
            {"cancelled": 1},
            "/a/store",
            "disk full",
            [
                "To go on with what is not done: run.retry_failed()",
                "Replies that the store could not keep are in run.frame alone: save it",
            ],
        ),
    ],
)
def test_how_to_go_on_depends_on_what_happened(
    told: dict[str, Any], store: str | None, problem: str | None, steps: list[str]
) -> None:
    run = result(**told)
    run.store, run.store_problem = store, problem
    text = display.text(run)
    found = text.split("how to go on\n")[1] if steps else ""
    assert " ".join(found.split()) == " ".join(steps)
    assert "how to go on" in text or not steps
    assert all(f"<p>{step}</p>" in display.html(run) for step in steps)
    assert ("<p>To " in display.html(run)) is bool(steps)


def test_a_stop_and_a_fault_of_the_store_stand_above_all_figures() -> None:
    run = result()
    run.stopped, run.store_problem = "the key <b>", "the disk is full"
    assert display.text(run).splitlines()[2:4] == [
        "stopped: the key <b>",
        "store: the disk is full",
    ]
    shown = display.html(run)
    assert "stopped: the key &lt;b&gt;</p>" in shown
    assert shown.index("the disk is full") < shown.index("<table")


# -- what is foreign ------------------------------------------------------------------------------


@pytest.fixture
def nasty() -> Any:
    run = result(
        labels={NASTY: 1, 3: 1},
        errors=[
            {
                "message": NASTY,
                "error_type": NASTY,
                "index": NASTY,
                "item": {NASTY: NASTY, "b": 1},
            }
        ],
        speedup_basis=NASTY,
    )
    run.model_name = NASTY
    run.outputs = {NASTY: (NASTY, 3)}
    return run


def test_foreign_text_cannot_run_in_html(nasty: Any) -> None:
    page = Page(display.html(nasty))
    assert set(page.tags) <= {
        "div", "style", "p", "b", "small", "span", "img",
        "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert page.text.count('<script>alert("1")</script>') >= 5
    assert "{braces} %s" in page.text


@pytest.mark.parametrize("show", [display.html, display.text, display.short])
def test_foreign_text_has_no_control_characters(show: Any, nasty: Any) -> None:
    shown = show(nasty)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert r"\x1b[31mr" in shown


def test_joiners_stay_and_lone_surrogates_become_encodable() -> None:
    assert display.harmless("👩\u200d🔬") == "👩\u200d🔬"
    assert display.harmless("\ud800") == r"\ud800"


def test_a_report_can_be_printed_where_only_ascii_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("ascii", "cp1252"):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        report = display.text(result(labels={"肯定": 3, "naïve": 1}))
        print(report, file=out)
        assert "####" in report
        assert r"\u80af\u5b9a" in report
        monkeypatch.undo()


def test_wide_characters_are_counted_as_two_columns() -> None:
    lines = display.text(result(labels={"肯定": 1, "no": 1})).splitlines()
    assert "  肯定        1   50.0%  " + "█" * 20 in lines
    assert "  no          1   50.0%  " + "█" * 20 in lines


# -- HTML -----------------------------------------------------------------------------------------


def test_html_shows_counts_then_labels_then_percentiles_then_timeline_then_errors() -> None:
    shown = display.html(result(errors=[{}], retries=1, attempts=13))
    order = ["12 rows", "13 attempts", "positive", "54.5%", "p99", "600 ms", "<img", "run.errors"]
    places = [shown.index(part) for part in order]
    assert places == sorted(places)
    Page(shown)  # every tag is closed


def test_html_takes_its_colours_from_the_page() -> None:
    style = re.search("<style>(.*?)</style>", display.html(result()), re.DOTALL)
    assert style is not None
    rules = re.findall(r"([^{}]+)\{[^{}]*\}", style[1])
    assert all(s.strip().startswith(".revkit-run") for rule in rules for s in rule.split(","))
    assert re.findall(r"(?<!-)color: ([^;]*)", style[1]) == ["inherit", "inherit"]


# -- the sanitising file --------------------------------------------------------------------------


@pytest.mark.parametrize("show", [display.html, display.text, display.short])
def test_nbval_sees_no_difference_between_two_runs_of_the_same_thing(show: Any) -> None:
    one = show(result(errors=[{}]))
    other = show(result(errors=[{}], time=123.4, workers=16))
    waits = {"waited": (1.0, 20.0, 0.3), "pauses": 3, "paused_s": 4.0, "limited_s": 0.1}
    longer = show(result(errors=[{}], time=0.01, first_wave=2, **waits))
    assert (one == other) is (show is display.short)
    assert sanitized(one) == sanitized(other) == sanitized(longer)
    if show is not display.short:
        assert longer.count("held back") == 1
        assert "how to go on" in sanitized(longer) or "run.errors" in sanitized(longer)


@pytest.mark.parametrize("show", [display.html, display.text, display.short])
@pytest.mark.parametrize(
    "changed",
    [
        result(errors=[{}, {}]),
        result(errors=[{"error_type": "TimeoutError"}]),
        result(labels={"positive": 5, "neutral": 4, "negative": 2}, errors=[{}]),
        result(labels={"positive": 6, "neutral": 3, "bad": 2}, errors=[{}]),
    ],
)
def test_nbval_sees_what_matters(show: Any, changed: Any) -> None:
    same = show is display.short and changed.errors["error_type"].tolist() == ["TimeoutError"]
    assert (sanitized(show(result(errors=[{}]))) == sanitized(show(changed))) is same


def test_nbval_ignores_the_times_in_fields_and_series() -> None:
    for one, other in (
        (result().metrics, result(time=0.001, workers=16).metrics),
        (result().latency, result(time=0.001).latency),
        (result().latency, result(time=1234.5).latency),
        (result().latency, result(time=float("nan")).latency),
    ):
        assert sanitized(repr(one)) == sanitized(repr(other))
    held = result(pauses=2, paused_s=3.5, limited_s=1e-05, cold_start_ms=float("nan")).metrics
    assert sanitized(repr(held)) == sanitized(repr(result().metrics))
    assert "total=11, succeeded=11" in sanitized(repr(result().metrics))


def test_nbval_takes_the_height_of_a_panel_for_what_it_is() -> None:
    few, many = (NotebookFigure(figsize=(9, inches)) for inches in (6, 12))
    assert repr(few) != repr(many)
    assert sanitized(repr(few)) == sanitized(repr(many)) == "<NotebookFigure with 0 Axes>"


def test_nbval_leaves_what_is_not_revkits() -> None:
    table = "workers  time\n  total 12 ms\nmean price 3.5\nmaximum 9"
    assert sanitized(table) == table


CELLS = """
import random, sys
import pandas as pd
import revkit
from revkit.testing import FakeModel
reviews = pd.DataFrame({"review": ["it fits"] * 9 + ["a treat"] * 2 + ["a kettle"]})
def answer(text):
    if "kettle" in text:
        raise ValueError("<b>no</b>")
    return "positive" if "treat" in text else "neutral"
model = FakeModel(answer, latency=lambda text: random.uniform(0.001, 0.3))
run = reviews.llm.parallel_map(on="review", model=model, max_workers=random.randint(1, 12))
---
run
---
print(run.report())
---
run.latency
---
run.plot_timeline()
---
[run.metrics, "matplotlib.pyplot" in sys.modules]
---
reviews.llm.preview(on="review", model=model, max_workers=random.randint(1, 12))
"""


@pytest.mark.kernel
def test_a_notebook_with_all_of_it_passes_strict_nbval(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS.split("---")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    outputs = [cell.outputs[-1] for cell in notebook.cells[1:]]
    shown, report, latency, timeline, fields, preview = outputs
    assert set(shown.data) == {"text/plain", "text/html"}
    assert "revkit-plot" in shown.data["text/html"]
    assert "11 ok" in report.text
    assert "p99" in latency.data["text/plain"]
    assert set(timeline.data) == {"text/plain", "image/png"}  # shows itself, without pyplot
    assert fields.data["text/plain"].endswith("False]")
    assert set(preview.data) == {"text/plain", "text/html"}

    path = tmp_path / "notebook.ipynb"
    nbformat.write(notebook, path)
    nbval = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path)]
    nbval += ["--nbval", "--nbval-current-env", str(path)]
    strict = subprocess.run([*nbval, f"--nbval-sanitize-with={SANITIZE}"], capture_output=True)
    assert strict.returncode == 0, strict.stdout.decode()
