"""A moment as people write it on a command line."""

from __future__ import annotations

from datetime import UTC, datetime

from proxy.duration import duration

LONGEST_DAYS = 1_000_000
"""Of a span, so that no moment from now is beyond what a calendar knows."""
_EXAMPLES = "RFC 3339, a date, or a time ago such as 7d or 24h"


def when(text: str, now: int) -> int:
    """UTC milliseconds of RFC 3339, of a date (its midnight in UTC), or of ``7d`` before ``now``.

    A time without a zone is in UTC. ValueError, in words for a person, if it is none of these.
    """
    try:
        return max(0, now - span(text))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text.strip())
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"must be {_EXAMPLES} (got {text})") from None
    return round(seconds * 1000)


def span(text: str) -> int:
    """Milliseconds of ``30d``, ``12h``, ``1d12h``; ValueError for anything else.

    A number needs its unit: 7 might be days as well as seconds.
    """
    seconds = duration(text.strip())
    if seconds is None or text.strip()[-1:].isdigit() or seconds > LONGEST_DAYS * 86_400:
        raise ValueError(f"must be a time such as 30d or 12h, {LONGEST_DAYS}d at most (got {text})")
    return round(seconds * 1000)
