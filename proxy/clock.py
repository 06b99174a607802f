"""Time and ids: the wall clock for instants, the monotonic clock for durations."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta, tzinfo

monotonic = time.perf_counter
"""Seconds on a clock that never steps back."""

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_last = 0


def now_ms() -> int:
    """The wall clock, UTC milliseconds."""
    return time.time_ns() // 1_000_000


def instant(moment: float, now: float, at: int) -> int:
    """A moment of the monotonic clock as UTC milliseconds; ``now`` and ``at`` are the same moment
    on both clocks."""
    return at + round((moment - now) * 1000)


def rfc3339(ms: int | None) -> str | None:
    """UTC milliseconds as RFC 3339 with a ``Z``, to the millisecond."""
    if ms is None:
        return None
    moment = _EPOCH + timedelta(milliseconds=ms)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def until_midnight(now: float, zone: tzinfo) -> float:
    """Seconds from ``now`` (epoch seconds) to the next midnight of a zone, by its own clock."""
    return max(0.0, day(now, zone)[1] - now)


def day(now: float, zone: tzinfo) -> tuple[float, float]:
    """The midnights between which a moment lies in a zone; all in epoch seconds."""
    date = datetime.fromtimestamp(now, zone).date()
    first, last = (
        datetime.combine(date + timedelta(days=days), datetime.min.time(), zone).timestamp()
        for days in (0, 1)
    )
    return first, last


def new_id() -> str:
    """A time-ordered id of 18 characters, strictly rising within this process.

    45 bits of milliseconds, then 45 random ones, in Crockford's base 32: a ULID without its leading
    zero (until the year 3084) and with less chance in it, since every call keeps its id twice. A
    thousand calls a second, each of another process, meet once in two thousand years.
    """
    global _last
    value = (now_ms() << 45) | (int.from_bytes(os.urandom(6)) >> 3)
    if value <= _last:
        value = _last + 1
    _last = value
    return encode_id(value)


def encode_id(value: int) -> str:
    """A 90-bit number in 18 characters of Crockford's base 32."""
    return "".join([_PAIRS[(value >> shift) & 1023] for shift in range(80, -1, -10)])


_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
