"""A measure over time: one point for each minute, hour or day, those without calls included."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Label, literal_column
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from proxy.store import metrics
from proxy.store.filters import Filters, where
from proxy.store.tables import api_calls

BUCKETS = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}
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


class bucket_of(GenericFunction[int]):
    """The start of the bucket in which an instant lies, in UTC milliseconds."""

    type = BigInteger()
    inherit_cache = True


@compiles(bucket_of, "sqlite")
def _sqlite(element: bucket_of, compiler: SQLCompiler, **kw: Any) -> str:
    instant, length = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({instant} - {instant} % {length})"


@compiles(bucket_of, "postgresql")
def _postgresql(element: bucket_of, compiler: SQLCompiler, **kw: Any) -> str:
    instant, length = (compiler.process(clause, **kw) for clause in element.clauses)
    milliseconds = f"CAST(extract(epoch FROM {instant}) * 1000 AS BIGINT)"
    return f"({milliseconds} - {milliseconds} % {length})"


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
    bucket without values, where counts and sums are 0. Raises TooManyPoints.
    """
    length = BUCKETS[bucket]
    first = filters.start - filters.start % length
    starts = range(first, filters.end, length)
    if len(starts) > MOST_POINTS:
        raise TooManyPoints
    by = [_start(length)]
    conditions = where(api_calls, filters)
    if metric in metrics.DISTRIBUTIONS:
        found = await metrics.distribution(connection, metric, conditions, by)
        shares = {start: found.get((start,), metrics.NO_VALUES) for start in starts}
        return [_shares(start, values) for start, values in shares.items()]
    sums = await metrics.totals(connection, conditions, by)
    return [
        {"timestamp": start, "value": sums.get((start,), metrics.NO_CALLS)[metric]}
        for start in starts
    ]


def _start(length: int) -> Label[int]:
    # Written out, not bound: PostgreSQL takes two bound values for two expressions to group by.
    start: ColumnElement[int] = bucket_of(api_calls.c.timestamp, literal_column(str(length)))
    return start.label("start")


def _shares(start: int, values: dict[str, Any]) -> dict[str, Any]:
    percentiles = {name: value for name, value in values.items() if name != "avg"}
    return {"timestamp": start, "value": values["avg"], **percentiles}
