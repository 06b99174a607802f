from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering.attempt import Attempt
from proxy.metering.tap import StreamTap
from proxy.metering.timing import percentile, timing
from proxy.types import Target
from tests.metering.streams import chunk


def test_an_attempt_that_was_never_made_has_no_durations() -> None:
    attempt = Attempt(1, Target("", ""), 1.0, leased=2.0)
    attempt.called = False
    assert timing(attempt, 1.0, 3.0) == {}


def test_the_time_in_line_is_none_of_our_own() -> None:
    attempt = Attempt(2, Target("lab", "m"), 10.0, leased=11.0)
    attempt.sent, attempt.ended = 11.25, 12.0
    times = timing(attempt, 9.0, 12.5)
    assert times["queue_time_ms"] == 1000.0
    assert times["overhead_ms"] == 750.0
    assert (times["overhead_before_ms"], times["overhead_after_ms"]) == (250.0, 500.0)
    assert times["processing_time_ms"] == 750.0
    assert times["response_time_ms"] == 2000.0


def streamed(*events: tuple[float, dict[str, Any]]) -> dict[str, Any]:
    """The times of an attempt that was sent at 10 s, and whose stream said this at those times."""
    attempt = Attempt(1, Target("lab", "m"), 10.0, leased=10.0)
    attempt.first_byte, attempt.tap = 10.25, (tap := StreamTap())
    for at, delta in events:
        tap.feed(chunk(delta), at)
    return timing(attempt, 10.0, 99.0)


def test_every_moment_counts_from_sending() -> None:
    call = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}
    times = streamed(
        (10.5, {"role": "assistant", "content": ""}),
        (11.0, {"reasoning": "hm"}),
        (11.25, {"reasoning": "hm"}),
        (12.0, {"content": "a"}),
        (12.5, call),
        (13.0, {"content": ""}),
    )
    moments = ("ttfb", "time_to_first_token", "first_reasoning", "first_content", "first_tool")
    found = [times[f"{name}_ms"] for name in (*moments, "last_token")]
    assert found == [250, 1000, 1000, 2000, 2500, 2500]


def test_what_never_came_has_no_moment() -> None:
    times = streamed((10.5, {"content": "a"}))
    assert (times["first_reasoning_ms"], times["first_tool_ms"]) == (None, None)
    assert "stall_count" not in times


@pytest.mark.parametrize(
    ("gaps", "stalls"),
    [
        ([0.05] * 9 + [1.0], 0),  # nobody minds a second
        ([0.05] * 9 + [1.01], 1),
        ([0.05] * 9 + [3.0, 0.05, 4.0], 2),
        ([2.0] * 9, 0),  # slow, and steady
        ([2.0] * 9 + [19.0], 0),
        ([2.0] * 9 + [21.0], 1),
    ],
)
def test_a_stall_is_a_long_gap_of_a_stream_that_has_shorter_ones(
    gaps: list[float], stalls: int
) -> None:
    at, events = 11.0, [(11.0, {"content": "a"})]
    for gap in gaps:
        at += gap
        events.append((at, {"content": "a"}))
    assert streamed(*events)["stall_count"] == stalls


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


def test_a_stream_that_never_waited_has_stalled_for_no_time() -> None:
    assert streamed((10.5, {"content": "a"}), (10.5, {"content": "b"}))["max_stall_ms"] == 0
