"""The measures of ``/stats``, for all calls of a window or for groups of them.

Requests are counted by their final rows, ``attempts`` by all rows; ``errors`` includes timeouts;
``success_rate`` is success / (success + errors), so that neither a client's hang-up nor a refusal
of the gateway's counts, and None where there was neither. ``failovers`` are requests that needed
more than one attempt. Tokens and dollars are summed over all attempts, dollars as integer
nano-dollars; ``unpriced`` counts the attempts whose dollars are not known.

``latency_ms`` is over the ``total_duration_ms`` of final rows: how long the client waited, the
attempts that failed before included. ``ttft_ms`` and ``tokens_per_second`` are over the rows in
which they are known. Means are of values to the thousandth. Percentiles are interpolated linearly
between the two nearest rows where all of the window is read from rows (see ``coverage``), and are
within 2 % where sketches tell them. All else is exact everywhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import sources
from proxy.store.coverage import Piece, cover
from proxy.store.filters import Filters
from proxy.store.rollups import plus, thousandths
from proxy.store.sketch import Sketch, lanes, of_lanes
from proxy.store.sources import COUNTS, SUMS, VALUES, Asked, Only
from proxy.store.tables import api_calls

Values = dict[str, Any]
Key = tuple[Any, ...]

DISTRIBUTIONS = tuple(VALUES)
PERCENTILES = (50, 95, 99)
_NANO = 1e9
_STEP = 250  # rows that are added up at once: more would keep the event loop for milliseconds

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
    connection: AsyncConnection, filters: Filters, by: Sequence[str] = (), only: Only | None = None
) -> list[Values]:
    """All measures, a dictionary for each group (its keys first), most requests first.

    ``by`` are dimensions. Without any there is one group, also of no rows. ``only`` are conditions
    beside the filters'.
    """
    asked = Asked(filters, by, only=only)
    pieces = await cover(connection, filters)
    groups = await totals(connection, asked, pieces)
    for name, found in (await distributions(connection, asked, pieces, DISTRIBUTIONS)).items():
        for key, values in groups.items():
            values[name] = found.get(key, NO_VALUES)
    most = sorted(groups.items(), key=lambda item: (-item[1]["requests"], -item[1]["attempts"]))
    return [dict(zip(by, key, strict=True)) | values for key, values in most]


async def totals(
    connection: AsyncConnection, asked: Asked, pieces: Sequence[Piece]
) -> dict[Key, Values]:
    """Counts and sums by group, in the order of their keys."""
    found: dict[Key, list[int | None]] = {}
    if not asked.width:
        found[()] = [0] * len(COUNTS) + [None] * len(SUMS)
    for piece in pieces:
        for row in await connection.execute(sources.sums(piece, asked)):
            key, more = tuple(row[: asked.width]), map(_int, row[asked.width :])
            held = found.get(key)
            found[key] = [*more] if held is None else [*map(plus, held, more)]
    ordered = sorted(found.items(), key=lambda item: [(part is None, part) for part in item[0]])
    return {key: _totals(dict(zip((*COUNTS, *SUMS), held, strict=True))) for key, held in ordered}


async def distributions(
    connection: AsyncConnection, asked: Asked, pieces: Sequence[Piece], names: Sequence[str]
) -> dict[str, dict[Key, Values]]:
    """Mean and percentiles of ``DISTRIBUTIONS`` by group; groups without values are left out."""
    if any(piece.is_rolled for piece in pieces):
        return await _sketched(connection, asked, pieces, names)
    found: dict[str, dict[Key, Values]] = {name: {} for name in names}
    for name in names:
        for piece in pieces:
            for row in await connection.execute(_ranked(piece, asked, name)):
                total, size, *shares = row[asked.width :]
                if size:
                    found[name][tuple(row[: asked.width])] = _spread(int(total), size, shares)
    return found


async def _sketched(
    connection: AsyncConnection, asked: Asked, pieces: Sequence[Piece], names: Sequence[str]
) -> dict[str, dict[Key, Values]]:
    """The distributions from rollups, and from the rows beside them."""
    sums: dict[tuple[str, Key], _Sum] = defaultdict(_Sum)
    for piece in pieces:
        query = sources.values(piece, asked, names)
        rows = await connection.stream(query, execution_options={"yield_per": _STEP})
        async for part in rows.partitions():
            for row in part:
                key, values = tuple(row[: asked.width]), iter(row[asked.width :])
                for name in names:
                    if piece.is_rolled:
                        sums[name, key].add_rollup(next(values), next(values))
                    else:
                        sums[name, key].add_value(next(values))
    found: dict[str, dict[Key, Values]] = {name: {} for name in names}
    for (name, key), held in sums.items():
        if (values := held.spread()) is not None:
            found[name][key] = values
    return found


class _Sum:
    """What is known of one distribution of one group."""

    def __init__(self) -> None:
        self._total = self._lanes = 0
        self._sketch = Sketch()

    def add_rollup(self, total: int, dump: bytes | None) -> None:
        if dump:
            self._total += total
            self._lanes += lanes(dump)

    def add_value(self, value: float | None) -> None:
        if value is not None:
            self._total += thousandths(value)
            self._sketch.add(value)

    def spread(self) -> Values | None:
        """None without values."""
        whole = self._sketch.plus(of_lanes(self._lanes))
        shares = whole.quantiles(*(percent / 100 for percent in PERCENTILES))
        return _spread(self._total, whole.count, shares) if shares else None


def _spread(total: int, size: int, shares: Sequence[float]) -> Values:
    """``total`` in thousandths."""
    return dict(zip(NO_VALUES, (total / (1000 * size), *shares), strict=True))


def _ranked(piece: Piece, asked: Asked, name: str) -> Select[Any]:
    """By group: the sum in thousandths, how many values there are, and the percentiles."""
    column, counts = VALUES[name]
    keys = asked.keys(api_calls, api_calls.c.timestamp)
    groups = [key.element for key in keys]
    ranked = (
        select(
            *keys,
            column.label("value"),
            func.row_number().over(partition_by=groups or None, order_by=column).label("place"),
            func.count().over(partition_by=groups or None).label("size"),
        )
        .where(*sources.conditions(piece, asked), counts, column.is_not(None))
        .subquery()
    )
    c = ranked.c
    shares = [_percentile(c.value, c.place, c.size, percent) for percent in PERCENTILES]
    found = (func.sum(sources.thousandths(c.value)), func.count(), *shares)
    groups = [c[key.name] for key in keys]
    return select(*groups, *found).group_by(*groups)


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
    values = {name: row.get(name) for name in NO_CALLS}
    judged = row["success"] + row["errors"]
    values["success_rate"] = row["success"] / judged if judged else None
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        values[name] = known_sum(row[name], row["calls"])
    nano = known_sum(row["nano_usd"], row["unpriced"])
    values["cost_usd"] = None if nano is None else nano / _NANO
    return values


def _int(sum: Any) -> int | None:
    """PostgreSQL's sums are decimals."""
    return None if sum is None else int(sum)


def known_sum(total: Any, without: int) -> int | None:
    """A sum over the rows that have a value. None if no row has one, though ``without`` rows
    should; 0 if none should."""
    if total is not None:
        return int(total)
    return None if without else 0
