from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering.attempt import Attempt
from proxy.metering.timing import percentile, timing
from proxy.types import Target


def test_an_attempt_that_was_never_made_has_no_durations() -> None:
    attempt = Attempt(1, Target("", ""), 1.0, leased=2.0)
    attempt.called = False
    assert set(timing(attempt, 1.0, 3.0).values()) == {None}


def test_the_time_in_line_is_none_of_our_own() -> None:
    attempt = Attempt(2, Target("lab", "m"), 10.0, leased=11.0)
    attempt.sent, attempt.ended = 11.25, 12.0
    times = timing(attempt, 9.0, 12.5)
    assert times["queue_time_ms"] == 1000.0
    assert times["overhead_ms"] == 750.0
    assert times["processing_time_ms"] == 750.0
    assert times["response_time_ms"] == 2000.0


@pytest.mark.parametrize(
    ("ordered", "share", "value"),
    [
        ([5], 0.5, 5),
        ([5], 0.95, 5),
        ([1, 2], 0.5, 1.5),
        ([1, 2, 3], 0.5, 2),
        ([1, 2, 3, 4], 0.95, 3.85),
        ([10, 20, 30, 40, 50], 0.25, 20),
        ([1, 2, 3], 0, 1),
        ([1, 2, 3], 1, 3),
    ],
)
def test_percentiles_are_interpolated(ordered: list[float], share: float, value: float) -> None:
    assert percentile(ordered, share) == pytest.approx(value)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1).map(sorted), st.floats(0, 1))
def test_a_percentile_lies_among_the_values(ordered: list[float], share: float) -> None:
    value = percentile(ordered, share)
    assert ordered[0] <= value or value == pytest.approx(ordered[0])
    assert value <= ordered[-1] or value == pytest.approx(ordered[-1])
