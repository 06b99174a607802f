"""A measure over time: one point for each minute, hour or day, those without calls included."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import metrics
from proxy.store.coverage import cover, forgotten
from proxy.store.filters import Filters
from proxy.store.rollups import DAY, HOUR, MINUTE
from proxy.store.sources import Asked

BUCKETS = {"minute": MINUTE, "hour": HOUR, "day": DAY}
"""Their lengths, in milliseconds; all are aligned to UTC."""
METRICS = (
    "requests",
    "errors",
    "latency_ms",
    "ttft_ms",
    "tokens_per_second",
    "input_tokens",
    "output_tokens",
    "cost_usd",
)
MOST_POINTS = 10_000


class TooManyPoints(Exception):
    """The buckets are too short for the window."""


def blank(metric: str) -> dict[str, Any]:
    """A point without values."""
    if metric in metrics.DISTRIBUTIONS:
        return _shares(0, metrics.NO_VALUES)
    return {"timestamp": None, "value": None}


async def series(
    connection: AsyncConnection, filters: Filters, metric: str, bucket: str
) -> list[dict[str, Any]]:
    """The points ``{timestamp, value}``, oldest first, for one of ``METRICS`` and ``BUCKETS``.

    A distribution's ``value`` is its mean and the percentiles stand beside it; it is None in a
    bucket without values, where counts and sums are 0. All are None where calls are deleted that
    only a longer bucket still counts. Raises TooManyPoints.
    """
    length = BUCKETS[bucket]
    first = filters.start - filters.start % length
    starts = range(first, filters.end, length)
    if len(starts) > MOST_POINTS:
        raise TooManyPoints
    asked = Asked(filters, bucket=length)
    pieces = await cover(connection, filters, length)
    unknown = await forgotten(connection, pieces, length)
    if metric in metrics.DISTRIBUTIONS:
        found = await metrics.distributions(connection, asked, pieces, (metric,))
        shares = {start: found[metric].get((start,), metrics.NO_VALUES) for start in starts}
        shares |= dict.fromkeys(unknown & shares.keys(), metrics.NO_VALUES)
        return [_shares(start, values) for start, values in shares.items()]
    sums = await metrics.totals(connection, asked, pieces)
    values = {start: sums.get((start,), metrics.NO_CALLS)[metric] for start in starts}
    values |= dict.fromkeys(unknown & values.keys(), None)
    return [{"timestamp": start, "value": value} for start, value in values.items()]


def _shares(start: int, values: dict[str, Any]) -> dict[str, Any]:
    percentiles = {name: value for name, value in values.items() if name != "avg"}
    return {"timestamp": start, "value": values["avg"], **percentiles}
