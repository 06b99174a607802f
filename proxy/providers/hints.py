"""When to come back: every form in which providers say so, in seconds.

``x-ratelimit-reset-requests`` and ``-tokens`` are not among them: they tell when the bucket is
full again, which is hours after the next request would be admitted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from proxy.duration import PART, duration
from proxy.providers.faults import ErrorBody
from proxy.types import Headers

LONGEST = 86_400.0
"""Seconds beyond which no hint is believed."""

_SENTENCE = re.compile(
    r"\b(?:try again|retry) (?:in|after) (?:"
    rf"(?P<go>(?:{PART}){{1,8}})(?![a-z])"
    r"|(?P<number>\d{1,12}(?:\.\d{1,12})?) ?(?P<unit>millisecond|second|minute|hour))",
    re.I,
)


def retry_after(headers: Headers, error: ErrorBody, now: float) -> float | None:
    """Seconds until the provider wants to be asked again, None if it does not say; at most a day.

    ``now`` is the wall clock in epoch seconds. Where the sentence in the message says the same as
    a rounded field, to within a second, the sentence is the finer one (Groq, Gemini).
    """
    said = _fields(headers, error, now)
    sentence = in_words(error.message)
    if said is None or (sentence is not None and abs(said - sentence) <= 1):
        said = sentence
    return reset(headers, error, now) if said is None else min(said, LONGEST)


def reset(headers: Headers, error: ErrorBody, now: float) -> float | None:
    """Seconds to OpenRouter's ``X-RateLimit-Reset``, in the body or as a header: a limit's end.

    At most a day; None if it is absent or has passed.
    """
    said = _quoted_reset(error, now)
    if said is None:
        said = _reset(_header(headers, b"x-ratelimit-reset"), now)
    return None if said is None else min(said, LONGEST)


def in_words(message: str) -> float | None:
    """Seconds in a sentence such as "Please try again in 9m38.016s."; None without one."""
    match = _SENTENCE.search(message)
    if match is None:
        return None
    if match["go"] is not None:
        return duration(match["go"].lower())
    unit = {"millisecond": 1e-3, "second": 1.0, "minute": 60.0, "hour": 3600.0}
    return float(match["number"]) * unit[match["unit"].lower()]


def _fields(headers: Headers, error: ErrorBody, now: float) -> float | None:
    milliseconds = _number(_header(headers, b"retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    stated = _header(headers, b"retry-after")
    for said in (_number(stated), _date(stated, now)):
        if said is not None:
            return said
    said = _number(error.member("availability").get("retry_after"))
    if said is not None:
        return said
    for detail in error.details:
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and (said := duration(delay)) is not None:
            return said
    return _quoted_reset(error, now)


def _quoted_reset(error: ErrorBody, now: float) -> float | None:
    quoted = error.member("metadata").get("headers")
    if isinstance(quoted, Mapping):
        for name, value in quoted.items():
            if str(name).lower() == "x-ratelimit-reset":
                return _reset(value, now)
    return None


def _reset(value: Any, now: float) -> float | None:
    """Epoch milliseconds (OpenRouter), epoch seconds, or plain seconds; None if it has passed."""
    number = _number(value)
    if number is None:
        return duration(value) if isinstance(value, str) else None
    if number > 1e11:
        number = number / 1000 - now
    elif number > 1e9:
        number -= now
    return number if number > 0 else None


def _number(value: Any) -> float | None:
    """A finite number that is not negative, from a number or its text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _date(value: str | None, now: float) -> float | None:
    """Seconds to an HTTP date (RFC 9110, 10.2.3); 0 for one that has passed."""
    if value is None:
        return None
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _header(headers: Headers, name: bytes) -> str | None:
    return next((value.decode("latin-1").strip() for key, value in headers if key == name), None)
