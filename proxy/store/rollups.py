"""Sums of calls by minute, hour and day, written in the transaction of the rows they count.

A series is what calls have in common, ``""`` for none. Each call counts in the series of all calls
of its status (scope ``all``), in that of its provider, model, key, endpoint, status and reason
(``service``), and in one with its client, agent and tool beside these (``caller``) if it has any:
so few rows answer the common questions.

A call belongs to the span in which it began. Tokens and nano-dollars are None where no call of the
span has any; ``*_total`` are sums of thousandths, so that they are exact: see ``thousandths``. Rows
are read, added to and written back, so that two writers must not do it at once: SQLite lets only
one write, and on PostgreSQL rows are locked in the order of their keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Table, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.bounds import saturated
from proxy.clock import now_ms
from proxy.store.costs import unpriced
from proxy.store.sets import STATUSES
from proxy.store.sketch import Sketch
from proxy.store.tables import rollup_series, rollups_day, rollups_hour, rollups_minute
from proxy.store.upsert import Insert, insert_into, replace
from proxy.types import CallRecord

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
_FOR_EVER = 2**53
_LARGEST = 1e9
_CHUNK = 1000


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

    def wider(self) -> Iterator[Series]:
        """The series of a ``caller`` and those that its calls count in, too."""
        yield Series("all", status=self.status)
        yield self._replace(scope="service", client_id="", agent_name="", tool_name="")
        if self.client_id or self.agent_name or self.tool_name:
            yield self


DIMENSIONS = Series._fields[1:]
CALLERS = ("client_id", "agent_name", "tool_name")
"""The dimensions that only the series of a ``caller`` have."""


class Tally(msgspec.Struct):
    """The measures of some calls: the columns behind the key, in order."""

    attempts: int = 0
    requests: int = 0
    failovers: int = 0
    unpriced: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    nano_usd: int | None = None
    latency_total: int = 0
    ttft_total: int = 0
    speed_total: int = 0
    latency_sketch: Sketch = msgspec.field(default_factory=Sketch)
    ttft_sketch: Sketch = msgspec.field(default_factory=Sketch)
    speed_sketch: Sketch = msgspec.field(default_factory=Sketch)

    def count(self, call: CallRecord) -> None:
        """Add one call."""
        self.attempts += 1
        if call.is_final:
            self.requests += 1
            self.failovers += call.attempt > 1
            if call.total_duration_ms is not None:
                self.latency_total += thousandths(call.total_duration_ms)
                self.latency_sketch.add(call.total_duration_ms)
        self.unpriced += unpriced(call)
        self.input_tokens = plus(self.input_tokens, call.input_tokens)
        self.output_tokens = plus(self.output_tokens, call.output_tokens)
        self.total_tokens = plus(self.total_tokens, call.total_tokens)
        self.nano_usd = plus(self.nano_usd, call.cost_nano_usd)
        if call.time_to_first_token_ms is not None:
            self.ttft_total += thousandths(call.time_to_first_token_ms)
            self.ttft_sketch.add(call.time_to_first_token_ms)
        if call.tokens_per_second is not None:
            self.speed_total += thousandths(call.tokens_per_second)
            self.speed_sketch.add(call.tokens_per_second)

    def update(self, other: Tally) -> None:
        """Add the calls of another tally."""
        self.attempts += other.attempts
        self.requests += other.requests
        self.failovers += other.failovers
        self.unpriced += other.unpriced
        self.input_tokens = plus(self.input_tokens, other.input_tokens)
        self.output_tokens = plus(self.output_tokens, other.output_tokens)
        self.total_tokens = plus(self.total_tokens, other.total_tokens)
        self.nano_usd = plus(self.nano_usd, other.nano_usd)
        self.latency_total += other.latency_total
        self.ttft_total += other.ttft_total
        self.speed_total += other.speed_total
        self.latency_sketch.update(other.latency_sketch)
        self.ttft_sketch.update(other.ttft_sketch)
        self.speed_sketch.update(other.speed_sketch)


Tallies = dict[tuple[int, Series], Tally]
"""By the start of the span, in UTC milliseconds, and the series."""

Key = tuple[int, int]
"""The start of a span and the id of a series: what a row is found by."""

_KEY = ("start", "series_id")
_NOTHING = (None,) * len(Tally.__struct_fields__)
_SKETCHES = Tally.__struct_fields__.index("latency_sketch")  # the first, behind the numbers


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


def thousandths(value: float) -> int:
    """A duration in microseconds, or a speed in thousandths of a token a second, rounded half up.

    What is beyond 1e9, or below 0, counts as that: so no sum is ever too large for a database.
    """
    return math.floor(min(max(value, 0.0), _LARGEST) * 1000 + 0.5)


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


def plus(one: int | None, other: int | None) -> int | None:
    """The sum of what is known; None if nothing is."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


async def _save(connection: AsyncConnection, callers: Tallies) -> None:
    """Add to the rows of all series, and of all spans that are still kept."""
    if not callers:
        return
    tallies = gathered(
        ((start, series), tally)
        for (start, caller), tally in callers.items()
        for series in caller.wider()
    )
    now = now_ms()
    for table, length, kept in GRAINS:
        tallies = gathered(
            ((start - start % length, series), tally) for (start, series), tally in tallies.items()
        )
        rows = {
            (start, series_id(series)): tally
            for (start, series), tally in tallies.items()
            if start >= now - kept
        }
        new: set[int] = set()
        keys = sorted(rows)
        for at in range(0, len(keys), _CHUNK):
            part = keys[at : at + _CHUNK]
            new |= await _update(connection, table, {key: rows[key] for key in part})
    await _introduce(connection, [key for key in tallies if series_id(key[1]) in new])


def gathered(parts: Iterable[tuple[tuple[int, Series], Tally]]) -> Tallies:
    """One tally for each key. One that was alone is the same, not a copy."""
    found: dict[tuple[int, Series], list[Tally]] = {}
    for key, tally in parts:
        found.setdefault(key, []).append(tally)
    return {key: same[0] if len(same) == 1 else _together(same) for key, same in found.items()}


def _together(tallies: Iterable[Tally]) -> Tally:
    whole = Tally()
    for tally in tallies:
        whole.update(tally)
    return whole


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
    rows = [(*key, *_sum(tally, old.get(key, _NOTHING))) for key, tally in tallies.items()]
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


def _sum(tally: Tally, old: Sequence[Any]) -> Iterator[Any]:
    """The values of a row that has been added to, behind its key."""
    new = msgspec.structs.astuple(tally)
    for more, held in zip(new[:_SKETCHES], old[:_SKETCHES], strict=True):
        total = plus(more, held)
        yield None if total is None else saturated(total)
    for sketch, dump in zip(new[_SKETCHES:], old[_SKETCHES:], strict=True):
        yield sketch.onto(dump)


@cache
def _replacement(table: Table) -> str:
    """The statement that puts whole rows into SQLite."""
    values = ", ".join("?" * len(table.c))
    return f"REPLACE INTO {table} ({_columns(table)}) VALUES ({values})"


@cache
def _columns(table: Table) -> str:
    return ", ".join(table.c.keys())


@cache
def _unless_there(dialect: str, table: Table) -> Insert:
    return insert_into(table, dialect).on_conflict_do_nothing()
