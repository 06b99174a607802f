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

from collections.abc import Iterable, Mapping, Sequence
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
    sums: dict[Key, list[_Sum]] = {}
    for piece in pieces:
        query = sources.values(piece, asked, names)
        rows = await connection.stream(query, execution_options={"yield_per": _STEP})
        async for part in rows.partitions():
            _add(sums, part, asked.width, len(names), piece.is_rolled)
    found: dict[str, dict[Key, Values]] = {name: {} for name in names}
    for key, held in sums.items():
        for name, each in zip(names, held, strict=True):
            if (values := each.spread()) is not None:
                found[name][key] = values
    return found


def _add(
    sums: dict[Key, list[_Sum]], rows: Iterable[Any], width: int, size: int, rolled: bool
) -> None:
    """Add rows of ``sources.values``: the ``width`` parts of a key, then ``size`` distributions."""
    for row in rows:
        key = row[:width]
        held = sums.get(key)
        if held is None:
            held = sums[key] = [_Sum() for _ in range(size)]
        if rolled:
            for each, total, dump in zip(held, row[width::2], row[width + 1 :: 2], strict=True):
                if dump:
                    each.total += total
                    each.lanes += lanes(dump)
        else:
            for each, value in zip(held, row[width:], strict=True):
                if value is not None:
                    each.total += thousandths(value)
                    each.sketch.add(value)


class _Sum:
    """What is known of one distribution of one group: in rollups, and in the calls beside them."""

    __slots__ = ("lanes", "sketch", "total")

    def __init__(self) -> None:
        self.total = self.lanes = 0
        self.sketch = Sketch()

    def spread(self) -> Values | None:
        """None without values."""
        whole = self.sketch.plus(of_lanes(self.lanes))
        shares = whole.quantiles(*(percent / 100 for percent in PERCENTILES))
        return _spread(self.total, whole.count, shares) if shares else None


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
    """Sums are floating-point numbers: see ``sources.total``."""
    return None if sum is None else int(sum)


def known_sum(total: Any, without: int) -> int | None:
    """A sum over the rows that have a value. None if no row has one, though ``without`` rows
    should; 0 if none should."""
    if total is not None:
        return int(total)
    return None if without else 0
