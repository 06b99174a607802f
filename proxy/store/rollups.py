"""Sums of calls by minute, hour and day, written in the transaction of the rows they count.

A series is what calls have in common, ``""`` for none. Each call counts in the series of all calls
of its status (scope ``all``), in that of its provider, model, key, endpoint, status and reason
(``service``), and in one with its client, agent and tool beside these (``caller``) if it has any:
so few rows answer the common questions.

A call belongs to the span in which it began. Tokens and nano-dollars are None where no call of the
span has any; ``*_total`` are sums of thousandths, so that they are exact. Rows are read, added to
and written back, so that two writers must not do it at once: SQLite lets only one write, and on
PostgreSQL rows are locked in the order of their keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import msgspec
from sqlalchemy import Table, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.clock import now_ms
from proxy.store.sets import STATUSES
from proxy.store.tables import rollup_series, rollups_day, rollups_hour, rollups_minute
from proxy.store.tally import Tally
from proxy.store.upsert import Insert, insert_into, replace
from proxy.types import CallRecord

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
_FOR_EVER = 2**53
_CHUNK = 1000

K = TypeVar("K")


class Grain(NamedTuple):
    """A table of rollups, the length of its spans and how long they are kept, in milliseconds."""

    table: Table
    length: int
    kept: int


GRAINS = (
    Grain(rollups_minute, MINUTE, 48 * HOUR),  # the edges of windows that people look at now
    Grain(rollups_hour, HOUR, 400 * DAY),  # a year beside the one before it
    Grain(rollups_day, DAY, _FOR_EVER),  # about 1 KB a series and day
)
"""The shortest first."""


class Series(NamedTuple):
    """What calls have in common; columns of ``rollup_series``."""

    scope: str
    provider: str = ""
    model: str = ""
    key_id: str = ""
    client_id: str = ""
    agent_name: str = ""
    tool_name: str = ""
    endpoint: str = ""
    status: str = ""
    error_reason: str = ""

    @property
    def service(self) -> Series:
        """The one without callers that the calls of this one count in, too."""
        provider, model, key = self[1:4]
        return Series("service", provider, model, key, "", "", "", *self[7:])

    @property
    def has_caller(self) -> bool:
        """Whether anything is known of who called."""
        return bool(self.client_id or self.agent_name or self.tool_name)


DIMENSIONS = Series._fields[1:]
CALLERS = ("client_id", "agent_name", "tool_name")
"""The dimensions that only the series of a ``caller`` have."""


Tallies = dict[tuple[int, Series], Tally]
"""By the start of the span, in UTC milliseconds, and the series."""

Key = tuple[int, int]
"""The start of a span and the id of a series: what a row is found by."""

_KEY = ("start", "series_id")
_NOTHING = (None,) * len(Tally.__struct_fields__)


async def add(connection: AsyncConnection, calls: Iterable[CallRecord]) -> None:
    """Count the calls, none of which was counted before."""
    minutes: Tallies = {}
    for call in calls:
        key = (call.timestamp - call.timestamp % MINUTE, _series(call))
        tally = minutes.get(key)
        if tally is None:
            tally = minutes[key] = Tally()
        tally.count(call)
    await _save(connection, minutes)


async def reprice(
    connection: AsyncConnection,
    changes: Iterable[tuple[Mapping[str, Any], int | None, int | None]],
) -> None:
    """Let calls that were counted cost something else, in the transaction that changes their rows.

    Each change is the row of ``api_calls``, by column, then its nano-dollars as they were and as
    they are now. A sum of which a price becomes unknown stays a number, if only 0.
    """
    minutes: Tallies = {}
    for row, old, new in changes:
        if old == new:
            continue
        used = row["total_tokens"] is not None or row["status"] == "success"
        change = Tally(
            unpriced=used * ((new is None) - (old is None)), nano_usd=(new or 0) - (old or 0)
        )
        series = Series("caller", *[row[name] or "" for name in DIMENSIONS])
        key = (row["timestamp"] - row["timestamp"] % MINUTE, series)
        minutes.setdefault(key, Tally()).update(change)
    await _save(connection, minutes)


@lru_cache(10_000)
def series_id(series: Series) -> int:
    """63 bits of a hash: every writer gives a series the same number without asking anybody.

    Two of a hundred thousand series have the same with a probability of 1 in a billion.
    """
    digest = blake2b(msgspec.json.encode(series), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


TOTALS = [series_id(Series("all", status=status)) for status in STATUSES]
"""The ids of the series that hold all calls of a status."""


def _series(call: CallRecord) -> Series:
    return Series(
        "caller",
        call.provider,
        call.model,
        call.key_id or "",
        call.client_id or "",
        call.agent_name or "",
        call.tool_name or "",
        call.endpoint,
        call.status,
        call.error_reason or "",
    )


async def _save(connection: AsyncConnection, callers: Tallies) -> None:
    """Add to the rows of all series, and of all spans that are still kept."""
    if not callers:
        return
    meant: dict[int, Series] = {}
    tallies: dict[Key, Tally] = {}
    for (start, series), tally in in_all_scopes(callers):
        number = series_id(series)
        meant[number] = series
        tallies[start, number] = tally
    now = now_ms()
    for table, length, kept in GRAINS:
        tallies = gathered(
            ((start - start % length, number), tally) for (start, number), tally in tallies.items()
        )
        keys = sorted(key for key in tallies if key[0] >= now - kept)
        new: set[int] = set()
        for at in range(0, len(keys), _CHUNK):
            part = keys[at : at + _CHUNK]
            new |= await _update(connection, table, {key: tallies[key] for key in part})
    await _introduce(
        connection, ((start, meant[number]) for start, number in tallies if number in new)
    )


def in_all_scopes(callers: Tallies) -> Iterator[tuple[tuple[int, Series], Tally]]:
    """The tallies by minute of the callers that there are, of their services, and of all."""
    services = gathered(
        ((start, series.service), tally) for (start, series), tally in callers.items()
    )
    whole = gathered(
        ((start, Series("all", status=series.status)), tally)
        for (start, series), tally in services.items()
    )
    yield from whole.items()
    yield from services.items()
    yield from (item for item in callers.items() if item[0][1].has_caller)


def gathered(parts: Iterable[tuple[K, Tally]]) -> dict[K, Tally]:
    """One tally for each key. One that was alone is the same, not a copy."""
    found: dict[K, Tally] = {}
    copied: set[K] = set()
    for key, tally in parts:
        first = found.setdefault(key, tally)
        if first is tally:
            continue
        if key not in copied:
            copied.add(key)
            found[key] = first = first.copy()
        first.update(tally)
    return found


async def _introduce(connection: AsyncConnection, days: Iterable[tuple[int, Series]]) -> None:
    """Write down what ids mean that are new on a day, unless they have been so on another one."""
    seen: dict[Series, int] = {}
    for start, series in days:
        seen[series] = min(start, seen.get(series, start))
    rows = [
        series._asdict() | {"id": series_id(series), "first_seen": seen[series]}
        for series in sorted(seen, key=series_id)
    ]
    if rows:
        await connection.execute(_unless_there(connection.dialect.name, rollup_series), rows)


async def _update(
    connection: AsyncConnection, table: Table, tallies: Mapping[Key, Tally]
) -> set[int]:
    """Add to the rows of one table, and tell which series had none in a span. The keys are in
    order."""
    sqlite = connection.dialect.name == "sqlite"
    held = await (_on_sqlite if sqlite else _on_postgresql)(connection, table, list(tallies))
    old = {(row[0], row[1]): row[2:] for row in held}
    rows = [(*key, *tally.onto(old.get(key, _NOTHING))) for key, tally in tallies.items()]
    if sqlite:
        # Past SQLAlchemy's handling of single values, which would cost more than the rest.
        await connection.exec_driver_sql(_replacement(table), rows)
    else:
        named = [dict(zip(table.c.keys(), row, strict=True)) for row in rows]
        await replace(connection, table, _KEY, named)
    return {series for start, series in tallies if not old.get((start, series), (0,))[0]}


async def _on_sqlite(
    connection: AsyncConnection, table: Table, keys: Sequence[Key]
) -> Sequence[Any]:
    places = ", ".join(["(?, ?)"] * len(keys))
    query = f"SELECT {_columns(table)} FROM {table} WHERE (start, series_id) IN (VALUES {places})"
    return (await connection.exec_driver_sql(query, tuple(chain(*keys)))).all()


async def _on_postgresql(
    connection: AsyncConnection, table: Table, keys: Sequence[Key]
) -> Sequence[Any]:
    """The rows, locked. Those that are not there could not be, so they are made: blank."""
    blanks = [dict(zip(_KEY, key, strict=True)) for key in keys]
    await connection.execute(_unless_there("postgresql", table), blanks)
    columns = [table.c[name] for name in _KEY]
    query = select(table).where(tuple_(*columns).in_(keys)).order_by(*columns).with_for_update()
    return (await connection.execute(query)).all()


@cache
def _replacement(table: Table) -> str:
    """The statement that puts whole rows into SQLite. REPLACE would do twice the work."""
    values = ", ".join("?" * len(table.c))
    new = ", ".join(f"{name} = excluded.{name}" for name in Tally.__struct_fields__)
    return (
        f"INSERT INTO {table} ({_columns(table)}) VALUES ({values}) ON CONFLICT DO UPDATE SET {new}"
    )


@cache
def _columns(table: Table) -> str:
    return ", ".join(table.c.keys())


@cache
def _unless_there(dialect: str, table: Table) -> Insert:
    return insert_into(table, dialect).on_conflict_do_nothing()
