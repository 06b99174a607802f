from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.duration import PART, duration, written


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8.6ms", 0.0086),
        ("172.799999ms", 0.172799999),
        ("290.9ms", 0.2909),
        ("7.66s", 7.66),
        ("2m59.56s", 179.56),
        ("4h43m36.314s", 17_016.314),
        ("1h2m3s", 3723.0),
        ("1d", 86_400.0),
        ("1d2h", 93_600.0),
        ("0s", 0.0),
        ("5us", 5e-6),
        ("5µs", 5e-6),  # the micro sign
        ("5μs", 5e-6),  # the Greek letter, which looks the same
        ("5ns", 5e-9),
        ("36s", 36.0),
        ("60", 60.0),
        ("1.5", 1.5),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", "s", "5 s", " 5s", "5s ", "5s\n", "-5s", "+5s", "5sx", "5m later", ".5s", "5.s"),
        *("nan", "inf", "1e3", "5S", "soon", "1:30", "9" * 13, "1s" * 9),
    ],
)
def test_what_is_no_duration_is_none(text: str) -> None:
    assert duration(text) is None


def test_a_part_stands_for_the_longest_unit_that_fits() -> None:
    assert re.findall(PART, "1m2ms3s") == ["1m", "2ms", "3s"]


@given(
    st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999)
)  # as Go's Duration.String writes them
def test_what_go_writes_is_read_back(hours: int, minutes: int, seconds: int, ms: int) -> None:
    text = f"{hours}h{minutes}m{seconds}.{ms:03d}s"
    assert duration(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + ms / 1000)


@given(st.text(max_size=30))
def test_any_text_is_a_duration_or_none(text: str) -> None:
    found = duration(text)
    assert found is None or found >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.0121, "13ms"),
        (0.9999, "1s"),
        (1.0, "1s"),
        (59.2, "1m0s"),
        (89.1, "1m30s"),
        (360.0, "6m0s"),
        (86_400.0, "24h0m0s"),
    ],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert written(seconds) == text


@given(st.floats(0, 1e6))
def test_what_is_written_is_never_too_early(seconds: float) -> None:
    read = duration(written(seconds))
    assert read is not None
    assert seconds <= read + 1e-9 < seconds + 1.001
