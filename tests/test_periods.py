from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.periods import HOUR_MS, Period, Window, period

ZONES = [
    *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Chatham"),
    *("America/Sao_Paulo", "America/Havana", "Africa/Cairo", "Australia/Lord_Howe", "Pacific/Apia"),
]


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("text", "zone", "at", "start", "end"),
    [
        ("day", "UTC", "2026-11-26T18:00", "2026-11-26T00:00", "2026-11-27T00:00"),
        ("day", "UTC", "2026-11-26T00:00", "2026-11-26T00:00", "2026-11-27T00:00"),
        ("day", "Asia/Kolkata", "2026-11-26T18:45", "2026-11-26T18:30", "2026-11-27T18:30"),
        # 23 and 25 hours.
        ("day", "Europe/Berlin", "2026-03-29T12:00", "2026-03-28T23:00", "2026-03-29T22:00"),
        ("day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00", "2026-10-25T23:00"),
        # The clocks leave midnight out, and show it twice.
        ("day", "America/Sao_Paulo", "2018-11-04T12:00", "2018-11-04T03:00", "2018-11-05T02:00"),
        ("day", "America/Havana", "2026-11-01T04:30", "2026-11-01T04:00", "2026-11-02T05:00"),
        ("day", "America/Havana", "2026-11-01T05:30", "2026-11-01T04:00", "2026-11-02T05:00"),
        ("week", "UTC", "2026-11-26T18:00", "2026-11-23T00:00", "2026-11-30T00:00"),
        ("week", "UTC", "2026-11-29T23:59", "2026-11-23T00:00", "2026-11-30T00:00"),
        ("week", "Europe/Berlin", "2026-03-25T12:00", "2026-03-22T23:00", "2026-03-29T22:00"),
        ("month", "UTC", "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("month", "UTC", "2028-02-29T12:00", "2028-02-01T00:00", "2028-03-01T00:00"),
        ("month", "Europe/Berlin", "2026-03-31T22:00", "2026-03-31T22:00", "2026-04-30T22:00"),
        ("month", "America/New_York", "2026-12-01T04:59", "2026-11-01T04:00", "2026-12-01T05:00"),
        ("24h", "UTC", "2026-11-26T18:30", "2026-11-25T18:00", "2026-11-26T19:00"),
        ("7d", "Europe/Berlin", "2026-11-26T18:00", "2026-11-19T18:00", "2026-11-26T19:00"),
    ],
)
def test_what_counts_at_an_instant(text: str, zone: str, at: str, start: str, end: str) -> None:
    assert period(text, zone).window(ms(at)) == Window(ms(start), ms(end))


@given(
    text=st.sampled_from(["day", "week", "month"]),
    zone=st.sampled_from(ZONES),
    at=st.integers(ms("1990-01-01T00:00"), ms("2040-01-01T00:00")),
)
def test_windows_of_the_calendar_follow_each_other_without_a_gap(
    text: str, zone: str, at: int
) -> None:
    each = period(text, zone)
    window = each.window(at)
    assert window.start <= at < window.end
    assert each.window(window.start) == each.window(window.end - 1) == window
    assert each.window(window.end).start == window.end
    assert each.buckets(window) == [window]
    assert each.bucket(at) == window.start


@pytest.mark.parametrize("text", ["day", "week", "month", "24h"])
def test_even_a_clock_that_is_all_wrong_has_its_window(text: str) -> None:
    for at in (0, 253_402_300_799_999):
        assert period(text, "Pacific/Apia").window(at).start <= at
        assert period(text, "America/New_York").bucket(at) <= at


@given(hours=st.integers(1, 48), at=st.integers(0, ms("2040-01-01T00:00")))
def test_a_rolling_window_looks_back_on_all_of_its_hours(hours: int, at: int) -> None:
    each = Period(f"{hours}h", "UTC")
    window = each.window(at)
    assert at - (hours + 1) * HOUR_MS < window.start <= at - hours * HOUR_MS
    assert window.start <= at < window.end
    buckets = each.buckets(window)
    assert (buckets[0].start, buckets[-1].end) == window
    assert each.bucket(at) == buckets[-1].start


@pytest.mark.parametrize("text", ["", "year", "0h", "-1d", "1.5h", "24", "24 h", "91d", "9999h"])
def test_what_is_no_period_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="24h or 7d"):
        Period(text, "UTC")


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "Europe"])
def test_what_is_no_time_zone_is_told(zone: str) -> None:
    with pytest.raises(ValueError, match="Europe/Berlin"):
        Period("day", zone)
