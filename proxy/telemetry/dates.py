"""Days and moments as a program gives them, in UTC milliseconds. What has no zone is in UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

Moment = date | datetime | str
"""A day, a moment, or either as ISO 8601 text. A day is a whole one, in UTC."""

FARTHEST = 253_402_300_799_999
"""The last millisecond of the year 9999."""


def moment(value: Moment) -> int:
    """A moment, or a day's first; ValueError for what is neither, or not from 1970 to 9999."""
    return _milliseconds(_read(value))


def window(start: Moment | None, end: Moment | None) -> tuple[int, int]:
    """From the first moment to the one after the last: both ends are in it. None: no end.

    ValueError, with the name of what cannot be read.
    """
    first, after = 0, FARTHEST
    try:
        if start is not None:
            first = moment(start)
    except ValueError as error:
        raise ValueError(f"start_date: {error}") from None
    try:
        if end is not None:
            last = _read(end)
            after = _milliseconds(last) + (1 if isinstance(last, datetime) else 86_400_000)
    except ValueError as error:
        raise ValueError(f"end_date: {error}") from None
    return first, min(after, FARTHEST)


def _read(value: Moment) -> date:
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        pass
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"must be a date or ISO 8601 (got {value!r})") from None


def _milliseconds(value: date) -> int:
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    elif value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    found = (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    if not 0 <= found <= FARTHEST:
        raise ValueError(f"must be from 1970 to 9999 (got {value})")
    return found
