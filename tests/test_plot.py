"""What the timeline draws: lanes, marks, colours, words and limits; never pixels."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from revkit.plot import _LOOKS, TimelineAxes, draw_timeline, timeline_png


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
    found = [c for c in ax.collections if c.get_label() in _LOOKS]
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
        assert tuple(collection.get_facecolor()[0]) == to_rgba(_LOOKS[name].colour)


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
    grey = {n: np.dot(to_rgba(k.colour)[:3], (0.299, 0.587, 0.114)) for n, k in _LOOKS.items()}
    names = list(_LOOKS)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            hatches = _LOOKS[one].hatch, _LOOKS[other].hatch
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
    assert next(iter(_LOOKS)) == "ok"
    assert list(_LOOKS)[-1] == "failed"


def test_a_thousand_rows_on_64_workers_stay_readable() -> None:
    attempts = attempts_of(1000, 64)
    attempts.loc[5, "outcome"] = "failed"
    ax = drawn(attempts, workers=64)
    assert not ax.texts
    assert len(ax.collections) == 3  # the lanes, the good, the failed
    for collection in marks(ax).values():
        assert not np.any(collection.get_linewidth())  # no edges that swallow the colour
    ticks = [t for t in ax.get_yticks() if 0 <= t < 64]
    assert 4 <= len(ticks) <= 12
    assert all(t == int(t) for t in ticks)


@pytest.mark.parametrize("workers", [1, 4, 16, 64, 256, 1000])
def test_the_figure_grows_with_the_workers_but_not_without_end(workers: int) -> None:
    ax = drawn(attempts_of(workers, workers), workers=workers)
    height = ax.figure.get_size_inches()[1]
    assert 1.2 <= height <= 8.5
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


def test_a_hundred_thousand_attempts_are_quick_and_small() -> None:
    attempts = attempts_of(100_000, 64)
    attempts.loc[::1000, "outcome"] = "failed"
    began = time.process_time()
    png = timeline_png(attempts, workers=64, wall_s=float(attempts["end_s"].max()))
    assert time.process_time() - began < 6  # about one, where nothing else runs
    assert len(png) < 150_000


def test_pyplot_is_never_imported() -> None:
    code = (
        "import sys, pandas as pd\n"
        "from revkit.plot import draw_timeline, timeline_png\n"
        "a = pd.DataFrame({'row': [0], 'attempt': [1], 'worker': [0], 'start_s': [0.0],\n"
        "                  'end_s': [1.0], 'outcome': ['ok']})\n"
        "draw_timeline(a, workers=1, wall_s=1.0)._repr_png_()\n"
        "timeline_png(a, workers=1, wall_s=1.0)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_revkit_imports_neither_matplotlib_nor_tqdm() -> None:
    code = (
        "import sys, revkit, revkit.display, revkit.progress\n"
        "assert not {'matplotlib', 'tqdm'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
