"""``tps_metrics``: generation speed in windows of some lengths, aligned to the clock in UTC.

A call belongs to the window in which it began (its ``timestamp``). ``tps`` is the mean over calls
of each call's tokens a second, over the calls where that is known; ``aggregate_tps`` is all output
tokens of the window over its length. Percentiles are within 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.bounds import saturated
from proxy.store.running import States
from proxy.store.sketch import Sketch
from proxy.store.tables import api_calls, tps_metrics
from proxy.store.upsert import replace
from proxy.types import CallRecord

SIZES = (1, 5, 15, 60)
"""In minutes, where nothing else is said."""
_MINUTE = 60_000

Key = tuple[str, str, str, int, int]
"""Of a running figure: "tps", provider, model, minutes, start in UTC milliseconds."""


class Figure(msgspec.Struct, omit_defaults=True):  # JSON knows no infinity
    """What was measured of several calls. Mean, ``low`` and ``high`` are exact."""

    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    sketch: Sketch = msgspec.field(default_factory=Sketch)

    def add(self, value: float) -> None:
        """Count one value."""
        self.count += 1
        self.total += value
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value
        self.sketch.add(value)

    def plus(self, other: Figure) -> Figure:
        """A new figure with the values of both."""
        return Figure(
            self.count + other.count,
            self.total + other.total,
            min(self.low, other.low),
            max(self.high, other.high),
            self.sketch.plus(other.sketch),
        )

    @property
    def mean(self) -> float | None:
        """The average; None without values."""
        return self.total / self.count if self.count else None

    def quantiles(self, *shares: float) -> list[float | None]:
        """For each share the value below which that much lies; None without values."""
        if not self.count:
            return [None] * len(shares)
        return [min(max(value, self.low), self.high) for value in self.sketch.quantiles(*shares)]


class Window(msgspec.Struct):
    """What is known of the calls of one window."""

    speed: Figure = msgspec.field(default_factory=Figure)
    ttft: Figure = msgspec.field(default_factory=Figure)
    output_tokens: int = 0

    def add(self, speed: float | None, ttft: float | None, output_tokens: int | None) -> None:
        """Count one call."""
        if speed is not None:
            self.speed.add(speed)
        if ttft is not None:
            self.ttft.add(ttft)
        self.output_tokens = saturated(self.output_tokens + (output_tokens or 0))

    def plus(self, other: Window) -> Window:
        """A new window with the calls of both."""
        return Window(
            self.speed.plus(other.speed),
            self.ttft.plus(other.ttft),
            saturated(self.output_tokens + other.output_tokens),
        )

    def row(self, key: Key) -> dict[str, Any]:
        """The row of ``tps_metrics``."""
        _, provider, model, minutes, start = key
        median, high = self.speed.quantiles(0.50, 0.95)
        [slow] = self.ttft.quantiles(0.95)
        return {
            "provider": provider,
            "model": model,
            "window_minutes": minutes,
            "window_start": start,
            "tps": self.speed.mean,
            "tps_p50": median,
            "tps_p95": high,
            "tps_min": self.speed.low,
            "tps_max": self.speed.high,
            "sample_count": self.speed.count,
            "output_tokens": self.output_tokens,
            "aggregate_tps": self.output_tokens / (minutes * 60),
            "avg_ttft_ms": self.ttft.mean,
            "p95_ttft_ms": slow,
        }


_WINDOW = msgspec.json.Decoder(Window)


def parts(calls: Iterable[CallRecord], sizes: Iterable[int] = SIZES) -> dict[Key, Window]:
    """What the calls add to each window of each of the ``sizes``, in minutes."""
    found: dict[Key, Window] = {}
    for (provider, model, minute), part in _by_minute(calls).items():
        for minutes in sizes:
            key = ("tps", provider, model, minutes, minute - minute % (minutes * _MINUTE))
            found[key] = found[key].plus(part) if key in found else part
    return found


async def save(connection: AsyncConnection, added: Mapping[Key, Window], old: States) -> States:
    """Add to the windows, and return their states.

    Of a window that has none, because it is new or long over, all rows are read: those that are
    to be added are in this transaction already.
    """
    windows: dict[Key, Window] = {}
    for key in sorted(added):
        if key in old:
            windows[key] = _WINDOW.decode(old[key]).plus(added[key])
        else:
            windows[key] = await _read(connection, key)
    rows = [window.row(key) for key, window in windows.items() if window.speed.count]
    unique = ("provider", "model", "window_minutes", "window_start")
    await replace(connection, tps_metrics, unique, rows)
    return {key: msgspec.json.encode(window) for key, window in windows.items()}


def _by_minute(calls: Iterable[CallRecord]) -> dict[tuple[str, str, int], Window]:
    found: dict[tuple[str, str, int], Window] = {}
    for call in calls:
        speed, ttft = call.tokens_per_second, call.time_to_first_token_ms
        if speed is None and ttft is None and not call.output_tokens:
            continue
        key = (call.provider, call.model, call.timestamp - call.timestamp % _MINUTE)
        part = found.get(key)
        if part is None:
            part = found[key] = Window()
        part.add(speed, ttft, call.output_tokens)
    return found


async def _read(connection: AsyncConnection, key: Key) -> Window:
    _, provider, model, minutes, start = key
    table = api_calls.c
    rows = await connection.execute(
        select(table.tokens_per_second, table.time_to_first_token_ms, table.output_tokens).where(
            table.provider == provider,
            table.model == model,
            table.timestamp >= start,
            table.timestamp < start + minutes * _MINUTE,
        )
    )
    window = Window()
    for speed, ttft, output_tokens in rows:
        window.add(speed, ttft, output_tokens)
    return window
