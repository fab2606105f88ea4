"""What the pictures of a run show: lanes, marks, colours, words and limits; pixels where needed."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

import revkit
from revkit.plot import (
    NotebookAxes,
    NotebookFigure,
    TimelineAxes,
    draw_latency,
    draw_timeline,
    live_png,
    new_axes,
    timeline_png,
)
from revkit.plot.looks import HOLDS, OUTCOMES, SETTLED
from revkit.record.record import DECISIONS
from revkit.scheduling.events import Stop, StopKind
from revkit.testing import FakeModel


def attempts_of(rows: int, workers: int, *, service_s: float = 0.3, seed: int = 7) -> pd.DataFrame:
    """A run with log-normal service times, in which each worker takes the next row at once."""
    random = np.random.default_rng(seed)
    service = service_s * random.lognormal(sigma=0.5, size=rows)
    worker = np.arange(rows) % workers
    end = pd.Series(service).groupby(worker).cumsum().to_numpy()
    return pd.DataFrame(
        {
            "row": np.arange(rows),
            "attempt": 1,
            "worker": worker,
            "start_s": end - service,
            "end_s": end,
            "outcome": pd.array(["ok"] * rows, dtype="string"),
        }
    )


def drawn(attempts: pd.DataFrame, **options: Any) -> Axes:
    settings = {"workers": 4, "wall_s": float(attempts["end_s"].max())} | options
    return draw_timeline(attempts, **settings)


def marks(ax: Axes) -> dict[str, PolyCollection]:
    """The one collection of each outcome."""
    found = [c for c in ax.collections if c.get_label() in OUTCOMES]
    assert len({c.get_label() for c in found}) == len(found)
    return {str(c.get_label()): c for c in found if isinstance(c, PolyCollection)}


def boxes(collection: PolyCollection) -> np.ndarray:
    """Left, right, top and bottom of each mark."""
    corners = np.array([path.vertices[:4] for path in collection.get_paths()])
    x, y = corners[:, :, 0], corners[:, :, 1]
    return np.stack([x.min(1), x.max(1), y.min(1), y.max(1)], axis=1)


@pytest.fixture
def small() -> pd.DataFrame:
    attempts = attempts_of(12, 4)
    attempts.loc[3, "outcome"] = "retried"
    attempts.loc[[7, 8], "outcome"] = "failed"
    return attempts


def test_each_outcome_is_one_collection_in_its_colour(small: pd.DataFrame) -> None:
    found = marks(drawn(small))
    assert {name: len(c.get_paths()) for name, c in found.items()} == {
        "ok": 9, "retried": 1, "failed": 2,
    }  # fmt: skip
    for name, collection in found.items():
        assert tuple(collection.get_facecolor()[0]) == to_rgba(OUTCOMES[name].colour)


def test_a_mark_stands_in_its_workers_lane_at_its_time(small: pd.DataFrame) -> None:
    ax = drawn(small)
    chosen = small[small["outcome"] == "ok"]
    left, right, top, bottom = boxes(marks(ax)["ok"]).T
    pixel = small["end_s"].max() / ax.get_window_extent().width
    np.testing.assert_allclose(left, chosen["start_s"])
    np.testing.assert_allclose(right, chosen["end_s"], atol=1.01 * pixel)  # the seam
    np.testing.assert_allclose((top + bottom) / 2, chosen["worker"])
    assert (bottom - top < 1).all()


def test_worker_0_is_at_the_top_and_idle_workers_have_a_lane(small: pd.DataFrame) -> None:
    ax = drawn(small, workers=6)
    assert ax.get_ylim() == (5.5, -0.5)
    assert list(ax.get_yticks()) == [0, 1, 2, 3, 4, 5]


def test_a_replaced_workers_lane_is_drawn_beyond_the_count(small: pd.DataFrame) -> None:
    small.loc[11, "worker"] = 7
    assert drawn(small, workers=4).get_ylim() == (7.5, -0.5)


def test_the_legend_names_the_outcomes_present_and_lies_outside_the_marks(
    small: pd.DataFrame,
) -> None:
    ax = drawn(small)
    legend = ax.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["ok (9)", "retried (1)", "failed (2)"]
    figure = ax.figure
    figure.canvas.draw()
    assert not legend.get_window_extent().overlaps(ax.get_window_extent())


def test_outcomes_can_be_told_apart_without_hue() -> None:
    grey = {n: np.dot(to_rgba(k.colour)[:3], (0.299, 0.587, 0.114)) for n, k in OUTCOMES.items()}
    names = list(OUTCOMES)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            hatches = OUTCOMES[one].hatch, OUTCOMES[other].hatch
            assert abs(grey[one] - grey[other]) > 0.12 or hatches[0] != hatches[1]


def test_rows_are_written_on_their_bars_where_they_fit(small: pd.DataFrame) -> None:
    small.loc[0, "end_s"] = small.loc[0, "start_s"] + 1e-4
    assert {t.get_text() for t in drawn(small).texts} == {str(row) for row in range(1, 12)}


def test_row_labels_are_text_and_never_mathematics(small: pd.DataFrame) -> None:
    ax = drawn(small, row_labels=["$x^$"] * 12, title="$\\frac")
    assert [t.get_text() for t in ax.texts] == ["$x^$"] * 12
    timeline_png(small, workers=4, wall_s=5.0, row_labels=["$x^$"] * 12, title="$\\frac")


@pytest.mark.parametrize(
    ("span", "unit", "limit"),
    [
        (0.0123, "ms", 12.3), (0.999, "ms", 999), (1.5, "s", 1.5), (120.0, "s", 120),
        (600.0, "min", 10), (36000.0, "h", 10),
    ],
)  # fmt: skip
def test_time_is_shown_in_the_fitting_unit(span: float, unit: str, limit: float) -> None:
    attempts = attempts_of(1, 1)
    attempts["end_s"] = span
    ax = drawn(attempts, wall_s=span)
    assert ax.get_xlabel() == f"Time from the start of the run ({unit})"
    assert ax.get_xlim() == (0, pytest.approx(limit))


def test_the_axis_reaches_to_the_end_of_the_run_and_of_every_attempt(small: pd.DataFrame) -> None:
    assert drawn(small, wall_s=50.0).get_xlim() == (0, 50.0)
    assert drawn(small, wall_s=0.0).get_xlim() == (0, pytest.approx(small["end_s"].max()))


def test_a_very_short_attempt_is_still_a_pixel_wide_and_a_failure_two() -> None:
    attempts = attempts_of(2, 1)
    attempts["start_s"], attempts["end_s"] = [0.0, 5.0], [1e-9, 5.0]
    attempts.loc[1, "outcome"] = "failed"
    ax = drawn(attempts, wall_s=10.0)
    pixel = 10.0 / ax.get_window_extent().width
    for name, least in (("ok", 1), ("failed", 2)):
        ((left, right, *_),) = boxes(marks(ax)[name])
        assert right - left == pytest.approx(least * pixel)


def test_failures_lie_on_top() -> None:
    assert next(iter(OUTCOMES)) == "ok"
    assert list(OUTCOMES)[-1] == "failed"


def test_a_thousand_rows_on_64_workers_stay_readable() -> None:
    attempts = attempts_of(1000, 64)
    attempts.loc[5, "outcome"] = "failed"
    ax = drawn(attempts, workers=64)
    assert not ax.texts
    assert set(marks(ax)) == {"ok", "failed"}
    for collection in marks(ax).values():
        assert not np.any(collection.get_linewidth())  # no edges that swallow the colour
    ticks = [t for t in ax.get_yticks() if 0 <= t < 64]
    assert 4 <= len(ticks) <= 12
    assert all(t == int(t) for t in ticks)


@pytest.mark.parametrize("workers", [1, 4, 16, 64, 256, 1000])
def test_the_figure_grows_with_the_workers_but_not_without_end(workers: int) -> None:
    ax = drawn(attempts_of(workers, workers), workers=workers)
    height = ax.figure.get_size_inches()[1]
    assert 1.2 <= height <= 9.7
    assert height / workers > 0.08 or workers > 64


def test_a_run_without_attempts_says_so() -> None:
    ax = draw_timeline(attempts_of(0, 1), workers=0, wall_s=0.0)
    assert [t.get_text() for t in ax.texts] == ["no attempts: nothing was run"]
    assert ax.get_legend() is None
    assert timeline_png(attempts_of(0, 1), workers=0, wall_s=0.0).startswith(b"\x89PNG")


def test_given_axes_are_drawn_into_and_keep_their_title(small: pd.DataFrame) -> None:
    mine = Figure().add_subplot()
    mine.set_title("mine")
    ax = drawn(small, ax=mine)
    assert ax is mine
    assert (mine.get_title(), mine.get_title("left")) == ("mine", "")
    assert len(marks(mine)) == 3


def test_new_axes_say_how_much_ran_on_how_many(small: pd.DataFrame) -> None:
    assert drawn(small).get_title("left") == "12 rows on 4 workers"
    assert drawn(attempts_of(1, 1), workers=1).get_title("left") == "1 row on 1 worker"
    assert drawn(small, title="mine").get_title("left") == "mine"


def test_an_outcome_that_it_does_not_know_is_refused(small: pd.DataFrame) -> None:
    small.loc[2, "outcome"] = "lost"
    with pytest.raises(ValueError, match="no such outcome of an attempt: 'lost'"):
        drawn(small)


def test_a_notebook_shows_new_axes_by_themselves(small: pd.DataFrame) -> None:
    ax = drawn(small)
    assert isinstance(ax, TimelineAxes)
    png, size = ax._repr_png_()
    assert Image.open(io.BytesIO(png)).format == "PNG"
    assert size["width"] == 900
    assert "TimelineAxes" in repr(ax)


def test_the_png_has_the_size_that_was_asked_for(small: pd.DataFrame) -> None:
    picture = Image.open(io.BytesIO(timeline_png(small, workers=4, wall_s=2.0, dpi=100)))
    assert picture.size[0] == 900
    assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_of_a_hundred_thousand_attempts_the_pixels_are_drawn_and_no_failure_is_lost() -> None:
    attempts = attempts_of(100_000, 64)
    attempts.loc[::10_000, "outcome"] = "failed"
    ax = drawn(attempts, workers=64)
    found = marks(ax)
    assert len(found["ok"].get_paths()) < 200  # a few for each lane, and none for each attempt
    assert keys(ax) == ["ok (99,990)", "failed (10)"]
    pixel = ax.get_xlim()[1] / 1296
    failed = attempts[attempts["outcome"] == "failed"]
    left, right, top, bottom = boxes(found["failed"]).T
    order, other = np.lexsort((left, top)), np.lexsort((failed["start_s"], failed["worker"]))
    np.testing.assert_array_equal(((top + bottom) / 2)[order], failed["worker"].iloc[other])
    np.testing.assert_allclose(left[order] * 60, failed["start_s"].iloc[other], atol=120 * pixel)
    assert (right - left > pixel).all()
    assert len(timeline_png(attempts, workers=64, wall_s=500.0)) < 100_000


def test_a_failure_is_seen_where_lanes_are_lower_than_a_pixel() -> None:
    attempts = attempts_of(2000, 2000)
    attempts.loc[777, "outcome"] = "failed"
    picture = Image.open(io.BytesIO(timeline_png(attempts, workers=2000, wall_s=1.0)))
    red = np.array([int(255 * part) for part in to_rgba(OUTCOMES["failed"].colour)[:3]])
    near = np.abs(np.asarray(picture.convert("RGB"), dtype=int) - red).max(axis=2) < 60
    key = near[:60].sum()  # in the legend
    assert key > 0
    assert near[60:].sum() > 0


# -- across the lanes, and the strip below them ---------------------------------------------------


def keys(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def strip_of(ax: Axes) -> Axes:
    lanes, strip = ax.figure.axes
    assert lanes is ax
    return strip


def band(ax: Axes, kind: str) -> np.ndarray:
    (found,) = (c for c in ax.collections if c.get_label() == kind)
    assert found.get_hatch() == HOLDS[kind].hatch
    assert found.get_zorder() < marks(ax)["ok"].get_zorder() if marks(ax) else True
    return boxes(found)


def test_the_strip_shows_how_many_were_running_under_the_limit(small: pd.DataFrame) -> None:
    small["start_s"], small["end_s"], small["worker"] = 0.0, 4.0, np.arange(12)
    small.loc[:5, "end_s"] = 1.0
    strip = strip_of(drawn(small, workers=16, wall_s=8.0))
    peak, mean = (patch.get_data() for patch in strip.patches)
    np.testing.assert_allclose(peak.values[[0, 149, 151, 599, 601, -1]], [12, 12, 6, 6, 0, 0])
    np.testing.assert_allclose(mean.values[[0, 149, 151, 599, 601, -1]], [12, 12, 6, 6, 0, 0])
    (limit,) = strip.get_lines()
    assert set(limit.get_ydata()) == {16}
    assert keys(strip) == ["peak", "mean (3.75)", "limit (16)"]
    assert strip.get_ylim()[0] == 0
    assert strip.get_ylim()[1] > 16
    assert not strip.figure.axes[0].xaxis.label.get_visible()
    assert (strip.get_xlabel(), strip.get_xlim()) == ("Time from the start of the run (s)", (0, 8))


def test_the_strip_shows_the_limits_of_an_adaptive_run(small: pd.DataFrame) -> None:
    strip = strip_of(drawn(small, wall_s=300.0, limits=[(0.0, 2), (60.0, 8), (120.0, 5)]))
    (limit,) = strip.get_lines()
    assert list(limit.get_xdata()) == [0, 1, 2, 5]  # minutes
    assert list(limit.get_ydata()) == [2, 8, 5, 5]
    assert keys(strip)[2] == "limit (2 to 8)"


def test_given_axes_get_the_lanes_only_and_no_other_axes(small: pd.DataFrame) -> None:
    mine = Figure().add_subplot()
    drawn(small, ax=mine, holds=[("pause", 0.0, 0.5)], stop=("timeout", 1.0))
    assert mine.figure.axes == [mine]
    assert mine.xaxis.label.get_visible()
    assert keys(mine)[-2:] == ["paused by the server (0.5 s)", "stopped (timeout)"]


def test_a_given_pair_gets_lanes_and_strip(small: pd.DataFrame) -> None:
    pair = tuple(Figure().subplots(2, 1, sharex=True))
    assert drawn(small, ax=pair) is pair[0]
    assert keys(pair[1])[0] == "peak"


def test_holds_are_bands_behind_the_bars_of_lanes_and_strip(small: pd.DataFrame) -> None:
    holds = [("pause", 0.2, 0.4), ("rate_limit", 0.5, 0.6), ("rate_limit", 0.55, 0.8),
             ("budget", 0.9, 0.9)]  # fmt: skip
    ax = drawn(small, wall_s=2.0, holds=holds)
    pixel = 2.0 / ax.get_window_extent().width
    for axes in (ax, strip_of(ax)):
        np.testing.assert_allclose(band(axes, "pause"), [[0.2, 0.4, 0, 1]])
        np.testing.assert_allclose(band(axes, "rate_limit"), [[0.5, 0.8, 0, 1]])
        np.testing.assert_allclose(band(axes, "budget"), [[0.9, 0.9, 0, 1]], atol=2.5 * pixel)
        assert np.ptp(band(axes, "budget")[0, :2]) > pixel  # a moment is seen as well
    assert keys(strip_of(ax))[3:] == [
        "paused by the server (0.2 s)", "rate limit (0.3 s)", "budget (0 s)",
    ]  # fmt: skip
    assert ax.get_ylim() == (3.5, -0.5)


def test_thousands_of_short_holds_are_a_few_bands(small: pd.DataFrame) -> None:
    at = np.linspace(0, 100, 20_000)
    ax = drawn(small, wall_s=100.0, holds=[("rate_limit", t, t + 0.001) for t in at])
    assert len(band(ax, "rate_limit")) == 1
    assert keys(strip_of(ax))[3:] == ["rate limit (20 s)"]


def test_holds_can_be_told_apart_without_colour() -> None:
    assert len({look.hatch for look in HOLDS.values()} | {None}) == len(HOLDS) + 1


def test_a_hold_that_it_does_not_know_is_refused(small: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="no such kind of hold: 'lunch'"):
        drawn(small, holds=[("lunch", 0.0, 1.0)])


def test_a_stop_is_a_line_through_lanes_and_strip(small: pd.DataFrame) -> None:
    ax = drawn(small, wall_s=5.0, stop=("interrupted", 4.5))
    for axes in (ax, strip_of(ax)):
        assert [4.5, 4.5] in [list(line.get_xdata()) for line in axes.get_lines()]
    assert keys(strip_of(ax))[-1] == "stopped (interrupted)"


def test_rows_without_an_attempt_have_a_lane_of_their_own(small: pd.DataFrame) -> None:
    ax = drawn(small, wall_s=5.0, visits=[(0.0, 30), (2.0, 1), (2.000001, 1)])
    (found,) = (c for c in ax.collections if c.get_label() == SETTLED.label)
    left, right, top, bottom = boxes(found).T
    np.testing.assert_allclose(left, [0.0, 2.0], atol=0.01)
    assert (right > left).all()
    assert (bottom < -0.5).all()  # above worker 0
    assert ax.get_ylim()[1] < top.min()
    assert ax.get_yticklabels()[0].get_text() == "store"
    assert keys(ax)[-1] == "store or duplicate (32)"
    without = drawn(small)
    assert "store" not in [label.get_text() for label in without.get_yticklabels()]
    assert without.get_ylim() == (3.5, -0.5)


@pytest.mark.parametrize("workers", [1, 16, 64, 256])
def test_the_lane_of_the_store_is_as_high_on_few_lanes_as_on_many(workers: int) -> None:
    ax = drawn(attempts_of(workers, workers), workers=workers, visits=[(0.0, 1)])
    ax.figure.canvas.draw()
    (found,) = (c for c in ax.collections if c.get_label() == SETTLED.label)
    (_, top), (_, bottom) = ax.transData.transform([(0, y) for y in boxes(found)[0, 2:]])
    assert 5 < top - bottom < 20  # pixels


def test_a_wait_for_a_retry_is_a_line_to_the_next_attempt_of_the_row() -> None:
    attempts = attempts_of(4, 2, service_s=1.0)
    attempts["row"] = [0, 1, 2, 0]
    attempts["start_s"], attempts["end_s"] = [0.0, 0.0, 1.0, 3.0], [1.0, 2.0, 4.0, 5.0]
    attempts.loc[0, "outcome"] = "retried"
    ax = drawn(attempts, workers=2)
    (lines,) = (c for c in ax.collections if c.get_label() == "waited")
    (path,) = lines.get_segments()
    np.testing.assert_allclose(path[[0, -1], 0], [1.0, 3.0])  # from its end to the next start
    assert (path[0, 1], round(path[-1, 1])) == (0, 1)  # of worker 0 to that of worker 1
    assert keys(ax)[-1] == "waited to be retried"
    attempts.loc[0, "outcome"] = "failed"  # and the run was continued by retry_failed()
    assert not [c for c in drawn(attempts, workers=2).collections if c.get_label() == "waited"]
    attempts.loc[0, "outcome"] = "retried"
    attempts.loc[3, "start_s"] = 1.0  # tried again at once: nobody waited
    assert not [c for c in drawn(attempts, workers=2).collections if c.get_label() == "waited"]


@pytest.mark.parametrize("style", ["dark_background", "ggplot", "seaborn-v0_8-darkgrid"])
def test_words_show_on_the_background_of_the_users_style(style: str, small: pd.DataFrame) -> None:
    import matplotlib.style

    with matplotlib.style.context(style):
        ax = drawn(small, wall_s=9.0, stop=("timeout", 8.0), holds=[("pause", 0, 1)])
        behind = np.array(to_rgba(ax.figure.get_facecolor())[:3])
        texts = [ax.title, ax._left_title, *ax.get_legend().get_texts(), *ax.get_yticklabels()]
        for shown in [*texts, *ax.get_lines(), *strip_of(ax).get_lines()]:
            colour = np.array(to_rgba(shown.get_color())[:3])
            assert abs(colour.mean() - behind.mean()) > 0.3
        assert not any(line.get_visible() for line in ax.get_ygridlines())
        png = timeline_png(small, workers=4, wall_s=9.0)
    corner = Image.open(io.BytesIO(png)).convert("RGBA").getpixel((0, 0))
    np.testing.assert_allclose(corner, [*np.round(behind * 255), 255], atol=1)


# -- service times ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ecdf", "hist"])
def test_the_percentiles_of_the_latency_are_marked_and_named(kind: Any) -> None:
    times = np.arange(1.0, 102.0)
    ax = draw_latency(times, kind=kind)
    assert isinstance(ax, NotebookAxes)
    assert keys(ax) == ["p50  51.0 ms", "p90  91.0 ms", "p95  96.0 ms", "p99  100 ms"]
    named = {str(line.get_label()): line.get_xdata()[0] for line in ax.get_lines()}
    assert [named[key] for key in keys(ax)] == [51, 91, 96, 100]
    shapes = {(line.get_marker(), line.get_linestyle()) for line in ax.get_lines()}
    assert len(shapes) == len(ax.get_lines())  # apart without colour
    assert ax.get_title("left") == "Service time of 101 good attempts"


def test_the_ecdf_says_which_share_took_at_most_so_long() -> None:
    ax = draw_latency([1.0, 2.0, 2.0, 4.0])
    curve = ax.get_lines()[0]
    assert dict(zip(curve.get_xdata(), curve.get_ydata(), strict=True)) == {1: 0.25, 2: 0.75, 4: 1}
    assert ax.get_ylim() == (0, 1)


def test_the_histogram_counts_each_attempt_once() -> None:
    times = np.random.default_rng(3).lognormal(sigma=2, size=1000)
    ax = draw_latency(times, kind="hist")
    assert sum(bar.get_height() for bar in ax.patches) == 1000
    assert len(ax.patches) == 20


@pytest.mark.parametrize("kind", ["ecdf", "hist"])
def test_the_axis_is_logarithmic_where_the_spread_asks_for_it(kind: Any) -> None:
    assert draw_latency([10.0, 501.0], kind=kind).get_xscale() == "log"
    assert draw_latency([10.0, 499.0], kind=kind).get_xscale() == "linear"
    assert draw_latency([0.0, 499.0], kind=kind).get_xscale() == "linear"


@pytest.mark.parametrize("kind", ["ecdf", "hist"])
@pytest.mark.parametrize("times", [[], [0.0, 0.0], [7.0], [5.0] * 9])
def test_latency_of_none_or_all_the_same(kind: Any, times: list[float]) -> None:
    ax = draw_latency(times, kind=kind)
    assert ax._repr_png_()[0].startswith(b"\x89PNG")
    assert [text.get_text() for text in ax.texts] == ([] if times else ["no attempt was good"])


def test_latency_is_drawn_into_given_axes() -> None:
    mine = Figure().add_subplot()
    mine.set_title("mine")
    assert draw_latency([1.0, 2.0], ax=mine) is mine
    assert (mine.get_title(), mine.get_title("left")) == ("mine", "")


def test_a_kind_that_it_does_not_know_is_refused() -> None:
    run = virtual_run()
    with pytest.raises(revkit.UsageError, match=r'no kind "histo" .* "hist"'):
        run.plot_latency(kind="histo")  # type: ignore[arg-type]


# -- of a run ---------------------------------------------------------------------------------


def virtual_run(labels: Any = ("positive", "negative"), rows: int = 12) -> revkit.ParallelResult:
    """Two thirds of the first label; row 5 fails; each takes as many tenths as its number."""
    task = revkit.Signature("Which?", inputs=["text"], outputs={"label": list(labels)})

    def answer(text: str) -> Any:
        row = int(text.split("#")[1].split()[0])
        return revkit.ModelError("no") if row == 5 else {"label": labels[row % 3 == 0]}

    model = FakeModel(
        answer, latency=lambda text: (int(text.split("#")[1].split()[0]) + 1) / 10, clock="virtual"
    )
    df = pd.DataFrame({"text": [f"#{row} " for row in range(rows)]})
    return df.llm.parallel_map(task, model=model, max_workers=3)


def test_a_run_draws_its_timeline_and_its_latency() -> None:
    run = virtual_run()
    ax = run.plot_timeline()
    assert keys(ax) == ["ok (11)", "failed (1)"]
    assert keys(strip_of(ax)) == [
        "peak", f"mean ({run.metrics.mean_concurrency:.3g})", "limit (3)",
    ]  # fmt: skip
    latency = run.plot_latency(kind="hist")
    named = {str(line.get_label())[:3]: line.get_xdata()[0] for line in latency.get_lines()}
    assert named == pytest.approx(run.latency[["p50", "p90", "p95", "p99"]].to_dict())


def test_a_run_draws_what_held_it_up_and_what_stopped_it() -> None:
    run = virtual_run()
    record = run._record
    record.holds = [("pause", record.began + 0.5, record.began + 1.0),
                    ("budget", record.ended - 0.1, record.ended + 5.0)]  # fmt: skip
    record.visits = [(record.began + 0.25, 7)]
    record.stopped = Stop(StopKind.TIMEOUT, "late", True)
    record.stopped_at = record.began + 1.5
    ax = run.plot_timeline()
    np.testing.assert_allclose(band(ax, "pause")[0, :2], [0.5, 1.0])
    assert band(ax, "budget")[0, 1] == pytest.approx(run.metrics.wall_s)
    assert keys(ax)[-1] == "store or duplicate (7)"
    assert keys(strip_of(ax))[-1] == "stopped (timeout)"
    assert ax.get_lines()[0].get_xdata()[0] == pytest.approx(1.5)


def test_the_panel_has_timeline_latency_labels_and_errors() -> None:
    panel = virtual_run(labels=("$x^$ yes", "no\n" + "o" * 40)).plot()
    assert isinstance(panel, NotebookFigure)
    lanes, strip, latency, labels, errors = panel.axes
    assert lanes.get_title("left") == "12 rows on 3 workers"
    assert keys(strip)[0] == "peak"
    assert keys(latency)[0].startswith("p50")
    assert labels.get_title("left") == "label: rows by label"
    names = [name.get_text() for name in labels.get_yticklabels()]
    assert names == ["$x^$ yes", "no " + "o" * 18 + "…"]
    assert [bar.get_width() for bar in labels.patches] == [7, 4]
    assert [text.get_text() for text in labels.texts] == ["7  64%", "4  36%"]
    assert errors.get_title("left") == "Failed rows by error"
    assert [name.get_text() for name in errors.get_yticklabels()] == ["ModelError"]
    png, size = panel._repr_png_()
    assert Image.open(io.BytesIO(png)).size[0] == 1296
    assert size["width"] == 900


def test_the_panel_leaves_out_what_there_is_none_of() -> None:
    run = revkit.parallel_map([{"n": 1}, {"n": 2}], lambda row: row["n"], max_workers=1)
    lanes, _, latency = run.plot().axes
    assert lanes.get_title("left") == "2 rows on 1 worker"
    assert latency.get_xlabel() == "Service time (ms)"
    empty = revkit.parallel_map([], lambda row: 1)
    assert empty.plot()._repr_png_()[0].startswith(b"\x89PNG")


def test_the_panel_counts_the_labels_that_it_has_no_room_for() -> None:
    labels = [f"label {at}" for at in range(30)]
    axes = virtual_run(labels=labels).plot().axes[3]
    assert axes.get_yticklabels()[-1].get_text() == "20 others"
    assert len(axes.patches) == 11


def test_the_page_on_plots_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parent.parent / "docs" / "plots.md"
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        exec(block, {"run": virtual_run()})
    assert {path.name for path in tmp_path.iterdir()} == {"timeline.png", "panel.png"}


# -- of a run that still goes on --------------------------------------------------------------


def arrays(attempts: pd.DataFrame) -> tuple[np.ndarray, ...]:
    code = [DECISIONS.index(outcome) for outcome in attempts["outcome"]]
    columns = (attempts[name].to_numpy() for name in ("worker", "start_s", "end_s"))
    return (*columns, np.array(code, dtype=np.int8))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def shown(png: bytes, colour: str) -> np.ndarray:
    """Where a picture has exactly that colour, below its legend."""
    exact = (np.array(to_rgba(colour)[:3]) * 255).astype(np.uint8)
    found = (pixels(png) == exact).all(axis=2)
    found[:22] = False
    return found


def test_a_live_picture_shows_each_outcome_in_its_lane_at_its_time() -> None:
    attempts = attempts_of(4, 4)
    attempts["start_s"], attempts["end_s"] = [0.0, 2.0, 4.0, 6.0], [2.0, 4.0, 6.0, 8.0]
    attempts["outcome"] = ["ok", "retried", "failed", "cancelled"]
    png = live_png(*arrays(attempts), lanes=4, now_s=10.0)
    assert pixels(png).shape[1] == 900
    for lane, name in enumerate(("ok", "retried", "failed", "cancelled")):
        found = shown(png, OUTCOMES[name].colour)
        found[22 + 4 * 20 :] = False  # the strip has the colour of "ok", too
        row, column = np.nonzero(found)
        assert set((row - 22) // 20) == {lane}
        expected = 44 + 845 * np.array([2.0 * lane, 2.0 * lane + 2]) / 10
        np.testing.assert_allclose([column.min(), column.max() + 1], expected, atol=2)


def test_a_live_picture_loses_no_failure_among_many() -> None:
    attempts = attempts_of(100_000, 64)
    none = live_png(*arrays(attempts), lanes=64, now_s=500.0)
    attempts.loc[70_000, "outcome"] = "failed"
    one = live_png(*arrays(attempts), lanes=64, now_s=500.0)
    assert not shown(none, OUTCOMES["failed"].colour).any()
    assert shown(one, OUTCOMES["failed"].colour).sum() >= 4
    assert len(one) < 60_000


def test_a_live_picture_of_more_lanes_than_pixels_loses_no_failure_either() -> None:
    attempts = attempts_of(4000, 2000)
    attempts.loc[1999, "outcome"] = "failed"
    png = live_png(*arrays(attempts), lanes=2000, now_s=5.0)
    row, _ = np.nonzero(shown(png, OUTCOMES["failed"].colour))
    assert set(row) == {22 + 1999 // 8}  # one pixel for eight lanes
    assert pixels(png).shape[0] < 400


def test_a_live_picture_shows_holds_and_limits() -> None:
    attempts = attempts_of(2, 2, service_s=0.01)
    png = live_png(*arrays(attempts), lanes=2, now_s=10.0, holds=[("pause", 4.0, 6.0)],
                   limits=[(0.0, 1), (5.0, 2)])  # fmt: skip
    column = np.nonzero(shown(png, HOLDS["pause"].colour))[1]
    np.testing.assert_allclose([column.min(), column.max()], [44 + 338, 44 + 507], atol=4)
    black = (pixels(png)[62 + 20 :] == 0).all(axis=2)  # the line of the limit in the strip
    assert black[:, 60].argmax() > black[:, 880].argmax()


@pytest.mark.parametrize("lanes", [1, 5, 64, 300])
@pytest.mark.parametrize("width", [300, 900, 1800])
def test_a_live_picture_begins_with_nothing(lanes: int, width: int) -> None:
    png = live_png(*arrays(attempts_of(0, 1)), lanes=lanes, now_s=0.0, width_px=width)
    assert pixels(png).shape[1] == width


def test_a_live_picture_too_narrow_to_read_is_refused() -> None:
    with pytest.raises(revkit.UsageError, match="at least 300, not 299"):
        live_png(*arrays(attempts_of(1, 1)), lanes=1, now_s=1.0, width_px=299)


# -- without pyplot ---------------------------------------------------------------------------


def test_new_axes_are_shown_by_a_notebook_in_their_size() -> None:
    ax = new_axes(2.5)
    ax.plot([1, 2])
    png, size = ax._repr_png_()
    assert size == {"width": 900, "height": 250}
    assert Image.open(io.BytesIO(png)).size == (1296, 360)


def test_pyplot_is_never_imported() -> None:
    code = (
        "import sys, pandas as pd\n"
        "from revkit.plot import draw_timeline, timeline_png\n"
        "a = pd.DataFrame({'row': [0], 'attempt': [1], 'worker': [0], 'start_s': [0.0],\n"
        "                  'end_s': [1.0], 'outcome': ['ok']})\n"
        "draw_timeline(a, workers=1, wall_s=1.0)._repr_png_()\n"
        "timeline_png(a, workers=1, wall_s=1.0)\n"
        "import revkit\n"
        "run = revkit.parallel_map([{'n': 1}], lambda row: row['n'])\n"
        "run.plot()._repr_png_(), run.plot_latency()._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_revkit_imports_neither_matplotlib_nor_tqdm() -> None:
    code = (
        "import sys, revkit, revkit.display.progress\n"
        "assert not {'matplotlib', 'tqdm'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
