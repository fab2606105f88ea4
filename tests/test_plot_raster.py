"""Attempts by pixel column, held against a count of every attempt at every moment."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from revkit.plot.raster import merged, running, stretches, worst

SPAN = 12

#: (lane, start, length, code): whole seconds, in columns of a second each.
ATTEMPTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, SPAN - 1), st.integers(0, SPAN), st.integers(0, 3)),
    max_size=30,
).map(lambda found: [(lane, at, min(at + long, SPAN), code) for lane, at, long, code in found])


def columns_of(attempts: list[tuple[int, int, int, int]]) -> list[np.ndarray]:
    return [np.array([attempt[at] for attempt in attempts], dtype=float) for at in range(4)]


@given(ATTEMPTS)
def test_a_column_has_the_worst_that_touches_it(attempts: list[tuple[int, int, int, int]]) -> None:
    expected = np.full((4, SPAN), -1)
    for lane, start, end, code in attempts:
        end = min(max(end, start + (2 if code else 1)), SPAN)
        expected[lane, start:end] = np.maximum(expected[lane, start:end], code)
    lane, start, end, code = columns_of(attempts)
    found = worst(lane, start, end, code.astype(int), lanes=4, columns=SPAN, span=float(SPAN))
    np.testing.assert_array_equal(found, expected)


@given(ATTEMPTS, st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_running_is_the_peak_and_the_mean_of_each_column(
    attempts: list[tuple[int, int, int, int]], width: int
) -> None:
    at_once = np.zeros(SPAN)
    for _, start, end, _ in attempts:
        at_once[start:end] += 1
    by_column = at_once.reshape(-1, width)
    _, start, end, _ = columns_of(attempts)
    peak, mean = running(start, end, columns=SPAN // width, span=float(SPAN))
    np.testing.assert_array_equal(peak, by_column.max(axis=1))
    np.testing.assert_allclose(mean, by_column.mean(axis=1), atol=1e-9)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 1)), max_size=40), st.integers(1, 50))
def test_no_mean_passes_its_peak_and_none_is_lost(
    spans: list[tuple[float, float]], columns: int
) -> None:
    start = np.array([at for at, _ in spans], dtype=float)
    end = np.array([at + long for at, long in spans], dtype=float)
    peak, mean = running(start, end, columns=columns, span=10.0)
    assert (mean <= peak + 1e-6).all()
    np.testing.assert_allclose(mean.sum() * 10 / columns, (end - start).sum(), atol=1e-6)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_stretches_cover_a_mask_and_do_not_touch(rows: list[list[bool]]) -> None:
    mask = np.array(rows)
    again = np.zeros_like(mask)
    seen = set()
    for row, first, last in zip(*stretches(mask), strict=True):
        again[row, first:last] = True
        assert (row, first) not in seen
        seen.add((row, last))
    np.testing.assert_array_equal(again, mask)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=20), st.integers(0, 3))
def test_merged_spans_cover_the_same_and_lie_apart(spans: list[tuple[int, int]], gap: int) -> None:
    covered = {at for start, long in spans for at in range(start, start + long)}
    start = np.array([at for at, _ in spans], dtype=float)
    end = np.array([at + long for at, long in spans], dtype=float)
    first, last = merged(start, end, gap)
    assert covered <= {at for a, b in zip(first, last, strict=True) for at in range(int(a), int(b))}
    assert (first[1:] - last[:-1] > gap).all()
    assert set(first) <= set(start)
    assert set(last) <= set(end)
