"""The measures of ``/stats``, computed in the database, for all rows or for groups of them.

Requests are counted by their final rows, ``attempts`` by all rows; ``errors`` includes timeouts;
``success_rate`` is success / (success + errors), so that neither a client's hang-up nor a refusal
of the gateway's counts, and None where there was neither. ``failovers`` are requests that needed
more than one attempt. Tokens and dollars are summed over all attempts, dollars as integer
nano-dollars; ``unpriced`` counts the attempts whose dollars are not known.

``latency_ms`` is over the ``total_duration_ms`` of final rows: how long the client waited, the
attempts that failed before included. ``ttft_ms`` and ``tokens_per_second`` are over the rows in
which they are known. Percentiles are interpolated linearly between the two nearest rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Label,
    Select,
    and_,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.filters import Filters, where
from proxy.store.tables import api_calls

Group = Sequence[Label[Any] | ColumnElement[Any]]
Values = dict[str, Any]

PERCENTILES = (50, 95, 99)
_NANO = 1e9

_c = api_calls.c
_FINAL = _c.is_final.is_(True)
_UNPRICED = and_(
    _c.cost_estimate_usd.is_(None),
    or_(_c.total_tokens.is_not(None), _c.status == "success"),
)


def _final(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count().filter(_FINAL, *conditions)


COUNTS: Mapping[str, ColumnElement[int]] = {
    "requests": _final(),
    "attempts": func.count(),
    "success": _final(_c.status == "success"),
    "errors": _final(_c.status.in_(("error", "timeout"))),
    "cancelled": _final(_c.status == "cancelled"),
    "rejected": _final(_c.status == "rejected"),
    "failovers": _final(_c.attempt > 1),
    "unpriced": func.count().filter(_UNPRICED),
}
"""Measures that are never unknown."""

SUMS: Mapping[str, ColumnElement[Any]] = {
    "input_tokens": func.sum(_c.input_tokens),
    "output_tokens": func.sum(_c.output_tokens),
    "total_tokens": func.sum(_c.total_tokens),
    "nano_usd": func.sum(cast(func.round(_c.cost_estimate_usd * _NANO), BigInteger)),
}
"""Measures that are unknown where some row should have a value and none has."""

DISTRIBUTIONS: Mapping[str, tuple[ColumnElement[float], ColumnElement[bool]]] = {
    "latency_ms": (_c.total_duration_ms, _FINAL),
    "ttft_ms": (_c.time_to_first_token_ms, _c.time_to_first_token_ms.is_not(None)),
    "tokens_per_second": (_c.tokens_per_second, _c.tokens_per_second.is_not(None)),
}
"""The column of each, and the rows that count."""

NO_CALLS: Values = {
    **dict.fromkeys(("requests", "attempts", "success", "errors", "cancelled", "rejected"), 0),
    "success_rate": None,
    **dict.fromkeys(("failovers", "input_tokens", "output_tokens", "total_tokens"), 0),
    "cost_usd": 0.0,
    "unpriced": 0,
}
"""The totals of no rows at all, in the order in which they are shown."""

NO_VALUES: Values = dict.fromkeys(("avg", *(f"p{share}" for share in PERCENTILES)))


async def measure(
    connection: AsyncConnection,
    filters: Filters,
    by: Group = (),
    extra: Sequence[ColumnElement[bool]] = (),
) -> list[Values]:
    """All measures, a dictionary for each group (its keys first), most requests first.

    Without groups there is one, also of no rows. ``extra`` are conditions beside the filters'.
    """
    conditions = [*where(api_calls, filters), *extra]
    groups = await totals(connection, conditions, by)
    for name in DISTRIBUTIONS:
        found = await distribution(connection, name, conditions, by)
        for key, values in groups.items():
            values[name] = found.get(key, NO_VALUES)
    names = [str(column.key) for column in by]
    most = sorted(groups.items(), key=lambda item: (-item[1]["requests"], -item[1]["attempts"]))
    return [dict(zip(names, key, strict=True)) | values for key, values in most]


async def totals(
    connection: AsyncConnection, conditions: Sequence[ColumnElement[bool]], by: Group = ()
) -> dict[tuple[Any, ...], Values]:
    """Counts and sums by group."""
    known = func.count().filter(_c.status == "success").label("calls")
    measures = [value.label(name) for name, value in {**COUNTS, **SUMS}.items()]
    query = select(*by, known, *measures).where(*conditions).group_by(*by).order_by(*by)
    rows = (await connection.execute(query)).mappings()
    return {tuple(row.values())[: len(by)]: _totals(dict(row)) for row in rows}


async def distribution(
    connection: AsyncConnection,
    name: str,
    conditions: Sequence[ColumnElement[bool]],
    by: Group = (),
) -> dict[tuple[Any, ...], Values]:
    """Mean and percentiles of one of ``DISTRIBUTIONS`` by group; groups without values are left
    out."""
    column, counts = DISTRIBUTIONS[name]
    query = _ranked(column, [*conditions, counts, column.is_not(None)], by)
    rows = await connection.execute(query)
    names = list(NO_VALUES)
    return {
        tuple(row[: len(by)]): dict(zip(names, row[len(by) :], strict=True))
        for row in rows
        if row[len(by)] is not None
    }


def _ranked(
    column: ColumnElement[float], conditions: Sequence[ColumnElement[bool]], by: Group
) -> Select[Any]:
    value = column.label("value")
    ranked = (
        select(
            *by,
            value,
            func.row_number().over(partition_by=by or None, order_by=column).label("place"),
            func.count().over(partition_by=by or None).label("size"),
        )
        .where(*conditions)
        .subquery()
    )
    keys = [ranked.c[str(label.key)] for label in by]
    shares = [_percentile(ranked.c.value, ranked.c.place, ranked.c.size, p) for p in PERCENTILES]
    return select(*keys, func.avg(ranked.c.value), *shares).group_by(*keys)


def _percentile(
    value: ColumnElement[Any], place: ColumnElement[Any], size: ColumnElement[Any], percent: int
) -> ColumnElement[Any]:
    # Places count from 1. The percentile lies at 1 + (size - 1) * percent / 100: kept as whole
    # hundredths, so that both databases divide integers and no rounding decides on a row.
    hundredths = (size - 1) * literal_column(str(percent))
    below = 1 + hundredths // literal_column("100")
    part = (hundredths % literal_column("100")) / literal_column("100.0")
    return func.sum(
        case((place == below, value * (1 - part)), (place == below + 1, value * part), else_=0.0)
    )


def _totals(row: Mapping[str, Any]) -> Values:
    values = dict(NO_CALLS)
    values |= {name: row[name] for name in COUNTS}
    judged = row["success"] + row["errors"]
    values["success_rate"] = row["success"] / judged if judged else None
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        values[name] = known_sum(row[name], row["calls"])
    nano = known_sum(row["nano_usd"], row["unpriced"])
    values["cost_usd"] = None if nano is None else nano / _NANO
    return values


def known_sum(total: Any, without: int) -> int | None:
    """A sum over the rows that have a value. None if no row has one, though ``without`` rows
    should; 0 if none should."""
    if total is not None:
        return int(total)
    return None if without else 0
