"""Spans of time as providers write them."""

from __future__ import annotations

import math
import re

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
}
PART = r"\d{1,12}(?:\.\d{1,12})?(?:ns|us|µs|μs|ms|s|m|h|d)"
"""One part of a duration, as a regular expression: ``ms`` before ``m``."""
_PARTS = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(ns|us|µs|μs|ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{PART}){{1,8}}")
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,12})?")


def duration(text: str) -> float | None:
    """Seconds of a Go duration (``2m59.56s``, ``172.8ms``, ``1h2m3s``), of protobuf's ``36s``, or
    of a plain number of seconds; None for anything else."""
    if single := _PARTS.fullmatch(text):  # nearly all are
        return float(single[1]) * _UNITS[single[2]]
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(text))


def written(seconds: float) -> str:
    """Seconds as Go and OpenAI write them: ``1m30s``, ``120ms``. Rounded up: never too early."""
    if 0 < seconds < 0.9995:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
