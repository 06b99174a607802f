"""The stretches of time that a budget is counted over: of the calendar in a time zone, or rolling.

A rolling period is counted by whole hours: all of the hour counts in which it began. So a budget of
``24h`` looks back on 24 to 25 hours, and never lets more through in any 24.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

HOUR_MS = 3_600_000
CALENDAR = ("day", "week", "month")
LONGEST_DAYS = 90
_LATEST = 253_399_000_000_000  # some weeks before the year 10,000, which no calendar here has
_ROLLING = re.compile(r"([1-9]\d{0,3})([hd])")


class Window(NamedTuple):
    """From ``start`` to before ``end``, UTC milliseconds."""

    start: int
    end: int


class Period:
    """``text`` is ``day``, ``week`` (from Monday), ``month``, or a number of hours or days such as
    ``24h`` or ``7d``; ``zone`` is an IANA time zone. ValueError if either is none."""

    def __init__(self, text: str, zone: str) -> None:
        self._zone = _zone(zone)
        self._text = text
        self.hours = _hours(text)
        """Whole hours of a rolling period; None: it goes by the calendar."""

    def window(self, at: int) -> Window:
        """What counts at an instant. It ends when something of it ceases to count."""
        if self.hours is not None:
            hour = at - at % HOUR_MS
            return Window(hour - self.hours * HOUR_MS, hour + HOUR_MS)
        day = datetime.fromtimestamp(min(at, _LATEST) / 1000, self._zone).date()
        if self._text == "day":
            first, following = day, day + timedelta(days=1)
        elif self._text == "week":
            first = day - timedelta(days=day.weekday())
            following = first + timedelta(days=7)
        else:
            first = day.replace(day=1)
            following = (first + timedelta(days=31)).replace(day=1)
        return Window(self._midnight(first), self._midnight(following))

    def bucket(self, at: int) -> int:
        """The part of a window that an instant lies in, by its start: an hour, or all of it."""
        return at - at % HOUR_MS if self.hours is not None else self.window(at).start

    def buckets(self, window: Window) -> list[Window]:
        """The parts of a window, in order."""
        if self.hours is None:
            return [window]
        return [Window(each, each + HOUR_MS) for each in range(*window, HOUR_MS)]

    def _midnight(self, day: date) -> int:
        """The first instant of a day, also where its clocks leave midnight out or show it twice."""
        return round(datetime.combine(day, time.min, self._zone).timestamp() * 1000)


@cache
def period(text: str, zone: str) -> Period:
    """The period; ValueError that says what would be one."""
    return Period(text, zone)


def _hours(text: str) -> int | None:
    if text in CALENDAR:
        return None
    if match := _ROLLING.fullmatch(text):
        hours = int(match[1]) * (24 if match[2] == "d" else 1)
        if hours <= LONGEST_DAYS * 24:
            return hours
    accepted = f"{', '.join(CALENDAR)}, or hours or days such as 24h or 7d, {LONGEST_DAYS}d at most"
    raise ValueError(f"must be {accepted}")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError("must be a time zone such as UTC or Europe/Berlin") from None
