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

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.money import dollars
from proxy.store import sources
from proxy.store.coverage import Piece, cover
from proxy.store.filters import Filters
from proxy.store.sketch import Sketch, lanes, of_lanes
from proxy.store.sources import COUNTS, SUMS, VALUES, Among, Asked, Only
from proxy.store.tables import api_calls
from proxy.store.tally import plus, thousandths

Values = dict[str, Any]
Key = tuple[Any, ...]
Sums = list[int | None]

DISTRIBUTIONS = tuple(VALUES)
PERCENTILES = (50, 95, 99)
REST: Key = ()
"""The key of all groups that are not told one by one."""
_ATTEMPTS = COUNTS.index("attempts")
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
    found = await added_up(connection, asked, pieces)
    if not asked.width:
        found.setdefault((), [0] * len(COUNTS) + [None] * len(SUMS))
    ordered = sorted(found.items(), key=lambda item: [(part is None, part) for part in item[0]])
    return {key: told(sums) for key, sums in ordered}


async def added_up(
    connection: AsyncConnection, asked: Asked, pieces: Sequence[Piece]
) -> dict[Key, Sums]:
    """``COUNTS`` and ``SUMS`` by group."""
    rolled = [piece for piece in pieces if piece.is_rolled]
    found = await _gathered(connection, asked, rolled)
    rest = asked.anonymous
    if rest is not None:
        together = await _gathered(connection, rest, rolled)
        others = {asked.nameless(key): sums for key, sums in together.items()}
        for key, sums in found.items():
            nameless = asked.nameless(key)
            others[nameless] = _less(others[nameless], sums)
        join(found, {key: sums for key, sums in others.items() if sums[_ATTEMPTS]})
    join(found, await _gathered(connection, asked, [p for p in pieces if not p.is_rolled]))
    return found


async def _gathered(
    connection: AsyncConnection, asked: Asked, pieces: Sequence[Piece]
) -> dict[Key, Sums]:
    found: dict[Key, Sums] = {}
    for piece in pieces:
        query = await connection.execute(sources.sums(piece, asked))
        join(found, {tuple(row[: asked.width]): whole(row[asked.width :]) for row in query})
    return found


def join(found: dict[Key, Sums], more: Mapping[Key, Sums]) -> None:
    """Add the sums of some groups to those of others."""
    for key, sums in more.items():
        held = found.get(key)
        found[key] = sums if held is None else [*map(plus, held, sums)]


def whole(columns: Iterable[Any]) -> Sums:
    """The sums of a row as whole numbers. PostgreSQL's sums are decimals."""
    return [None if value is None else int(value) for value in columns]


def _less(together: Sums, part: Sums) -> Sums:
    """What is left. Of a sum of which nothing is left it is not known whether it was of anything:
    that is unknown, and never 0."""
    nothing = [0] * len(COUNTS) + [None] * len(SUMS)
    return [
        one if one is None or other is None else one - other or none
        for one, other, none in zip(together, part, nothing, strict=True)
    ]


async def distributions(
    connection: AsyncConnection,
    asked: Asked,
    pieces: Sequence[Piece],
    names: Sequence[str],
    chosen: Collection[Key] | None = None,
) -> dict[str, dict[Key, Values]]:
    """Mean and percentiles of ``DISTRIBUTIONS`` by group; groups without values are left out.

    With ``chosen``, all other groups are one, ``REST``.
    """
    if any(piece.is_rolled for piece in pieces):
        return await _sketched(connection, asked, pieces, names, chosen)
    found: dict[str, dict[Key, Values]] = {name: {} for name in names}
    parts = [asked]
    if chosen is not None:
        among = Among(asked.by, [*chosen], inside=True)
        parts = [
            asked._replace(among=among),
            asked._replace(by=(), among=among._replace(inside=False)),
        ]
    for part in parts:
        await _exact(connection, part, pieces, found)
    return found


async def _exact(
    connection: AsyncConnection,
    asked: Asked,
    pieces: Sequence[Piece],
    found: dict[str, dict[Key, Values]],
) -> None:
    """The distributions of ``found`` from rows alone."""
    for name, groups in found.items():
        for piece in pieces:
            for row in await connection.execute(_ranked(piece, asked, name)):
                total, size, *shares = row[asked.width :]
                if size:
                    groups[tuple(row[: asked.width])] = _spread(int(total), size, shares)


async def _sketched(
    connection: AsyncConnection,
    asked: Asked,
    pieces: Sequence[Piece],
    names: Sequence[str],
    chosen: Collection[Key] | None,
) -> dict[str, dict[Key, Values]]:
    """The distributions from rollups, and from the rows beside them."""
    rolled = [piece for piece in pieces if piece.is_rolled]
    parts = await _streamed(connection, asked, rolled, names)
    rest = asked.anonymous
    if rest is not None:
        whole = await _streamed(connection, rest, rolled, names)
        others = {asked.nameless(key): held for key, held in whole.items()}
        for key, held in parts.items():
            for one, part in zip(others[asked.nameless(key)], held, strict=True):
                one.subtract(part)
        _merge(parts, others)
    _merge(parts, await _streamed(connection, asked, [p for p in pieces if not p.is_rolled], names))
    if chosen is not None:
        kept = set(chosen)
        for key in [key for key in parts if key not in kept]:
            _merge(parts, {REST: parts.pop(key)})
    found: dict[str, dict[Key, Values]] = {name: {} for name in names}
    for key, held in parts.items():
        for name, each in zip(names, held, strict=True):
            if (values := each.spread()) is not None:
                found[name][key] = values
    return found


async def _streamed(
    connection: AsyncConnection, asked: Asked, pieces: Sequence[Piece], names: Sequence[str]
) -> dict[Key, list[_Sum]]:
    found: dict[Key, list[_Sum]] = {}
    for piece in pieces:
        query = sources.values(piece, asked, names)
        rows = await connection.stream(query, execution_options={"yield_per": _STEP})
        async for part in rows.partitions():
            _add(found, part, asked.width, len(names), piece.is_rolled)
    return found


def _merge(found: dict[Key, list[_Sum]], more: Mapping[Key, list[_Sum]]) -> None:
    for key, held in more.items():
        if key in found:
            for one, other in zip(found[key], held, strict=True):
                one.add(other)
        else:
            found[key] = held


def _add(
    sums: dict[Key, list[_Sum]], rows: Iterable[Any], width: int, size: int, rolled: bool
) -> None:
    """Add rows of ``sources.values``: the ``width`` parts of a key, then ``size`` distributions."""

    def of(key: Key) -> list[_Sum]:
        held = sums.get(key)
        if held is None:
            held = sums[key] = [_Sum() for _ in range(size)]
        return held

    if rolled:
        for row in rows:
            held = of(tuple(row[:width]))
            for each, total, dump in zip(held, row[width::2], row[width + 1 :: 2], strict=True):
                if dump:
                    each.total += total
                    each.lanes += lanes(dump)
        return
    groups: dict[Key, list[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(row[:width]), []).append(row[width:])
    for key, found in groups.items():
        for each, column in zip(of(key), zip(*found, strict=True), strict=True):
            known = [value for value in column if value is not None]
            each.total += sum(map(thousandths, known))
            each.sketch.extend(known)


class _Sum:
    """What is known of one distribution of one group: in rollups, and in the calls beside them."""

    __slots__ = ("lanes", "sketch", "total")

    def __init__(self) -> None:
        self.total = self.lanes = 0
        self.sketch = Sketch()

    def add(self, other: _Sum) -> None:
        """Add the values of another one."""
        self.total += other.total
        self.lanes += other.lanes
        self.sketch.update(other.sketch)

    def subtract(self, part: _Sum) -> None:
        """Take away values that are among these; both are of rollups alone."""
        self.total -= part.total
        self.lanes -= part.lanes

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
    source, columns = sources.rows(asked)
    keys = asked.keys(columns, api_calls.c.timestamp)
    groups = [key.element for key in keys]
    ranked = (
        select(
            *keys,
            column.label("value"),
            func.row_number().over(partition_by=groups or None, order_by=column).label("place"),
            func.count().over(partition_by=groups or None).label("size"),
        )
        .select_from(source)
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


def told(sums: Sums) -> Values:
    """The measures of a group by its sums, as they are shown."""
    row: Values = dict(zip((*COUNTS, *SUMS), sums, strict=True))
    values = {name: row.get(name) for name in NO_CALLS}
    judged = row["success"] + row["errors"]
    values["success_rate"] = row["success"] / judged if judged else None
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        values[name] = known_sum(row[name], row["calls"])
    values["cost_usd"] = dollars(known_sum(row["nano_usd"], row["unpriced"]))
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
