from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from proxy.telemetry.dates import FARTHEST, Moment, moment, window

NOON = 1_795_176_000_000  # 2026-11-20T12:00:00Z
MIDNIGHT = NOON - 12 * 3_600_000
DAY = 86_400_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime(2026, 11, 20, 12, tzinfo=UTC), NOON),
        (datetime(2026, 11, 20, 7, tzinfo=timezone(timedelta(hours=-5))), NOON),
        (datetime(2026, 11, 20, 12), NOON),  # noqa: DTZ001 (that is what it is about)
        ("2026-11-20T12:00:00.250Z", NOON + 250),
        ("2026-11-20T12:00:00", NOON),
        (date(2026, 11, 20), MIDNIGHT),
        ("2026-11-20", MIDNIGHT),
    ],
)
def test_a_moment_without_a_zone_is_in_utc(value: Moment, expected: int) -> None:
    assert moment(value) == expected


def test_both_ends_of_a_window_are_in_it() -> None:
    assert window("2026-11-20", date(2026, 11, 21)) == (MIDNIGHT, MIDNIGHT + 2 * DAY)
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert window(noon, noon) == (NOON, NOON + 1)


def test_an_end_that_is_not_given_is_no_end() -> None:
    assert window(None, None) == (0, FARTHEST)
    assert window(None, "9999-12-31") == (0, FARTHEST)


@pytest.mark.parametrize("bad", ["yesterday", "2026-13-01", "", 5, "1969-12-31"])
def test_what_is_no_date_is_told_by_its_name(bad: Moment) -> None:
    with pytest.raises(ValueError, match=r"^start_date: must be"):
        window(bad, None)
    with pytest.raises(ValueError, match=r"^end_date: must be"):
        window(None, bad)
