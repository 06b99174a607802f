from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.store.sketch import Sketch

VALUES = st.lists(st.floats(0.001, 1e6), min_size=2, max_size=200)


def sketch(values: list[float]) -> Sketch:
    made = Sketch()
    for value in values:
        made.add(value)
    return made


@given(VALUES)
def test_quantiles_are_within_two_percent(values: list[float]) -> None:
    made = sketch(values)
    hundredths = statistics.quantiles(values, n=100, method="inclusive")
    for percent in (50, 95, 99):
        assert made.quantile(percent / 100) == pytest.approx(hundredths[percent - 1], rel=0.0201)


@given(VALUES, VALUES)
def test_two_sketches_are_one_of_all_values(first: list[float], second: list[float]) -> None:
    both, whole = sketch(first).plus(sketch(second)), sketch(first + second)
    assert (both.count, both.low, both.high) == (whole.count, whole.low, whole.high)
    assert both.buckets == whole.buckets
    assert both.mean == pytest.approx(whole.mean)


def test_without_values_nothing_is_known() -> None:
    assert (Sketch().mean, Sketch().quantile(0.5)) == (None, None)


def test_zero_is_a_value() -> None:
    assert sketch([0.0, 0.0]).quantile(0.95) == 0.0
