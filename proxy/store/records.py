"""The one transaction in which a batch is written: rows, sums and running figures together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Dialect, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.changes import BreakerRecord, CooldownRecord, CountRecord, LiftRecord, SwitchRecord
from proxy.clock import now_ms
from proxy.content import ContentRecord
from proxy.sample import HostSample
from proxy.store import (
    breakers,
    budgets,
    catalog,
    contents,
    costs,
    events,
    faults,
    health,
    limits,
    positions,
    rests,
    rollups,
    running,
    samples,
    windows,
)
from proxy.store.columns import Instant
from proxy.store.events import EventRecord
from proxy.store.positions import Moves
from proxy.store.rows import COLUMNS, kept, row
from proxy.store.sets import TOLD
from proxy.store.tables import api_calls
from proxy.store.upsert import in_turn
from proxy.types import CallRecord, FaultRecord, ModelInfo


class Batch:
    """The items of one flush, by kind; of one call that came twice, the first."""

    def __init__(self, items: Sequence[object]) -> None:
        calls: dict[tuple[str, int], CallRecord] = {}
        self.faults: list[FaultRecord] = []
        self.samples: list[HostSample] = []
        self.cooldowns: list[CooldownRecord | LiftRecord] = []
        self.switches: list[SwitchRecord] = []
        self.counts: list[CountRecord] = []
        self.turns: list[BreakerRecord] = []
        self.models: list[ModelInfo] = []
        self.events: list[EventRecord] = []
        self.contents: list[ContentRecord] = []
        for item in items:
            match item:
                case CallRecord():
                    calls.setdefault((item.request_id, item.attempt), item)
                case FaultRecord():
                    self.faults.append(item)
                case HostSample():
                    self.samples.append(item)
                case CooldownRecord() | LiftRecord():
                    self.cooldowns.append(item)
                case SwitchRecord():
                    self.switches.append(item)
                case CountRecord():
                    self.counts.append(item)
                case BreakerRecord():
                    self.turns.append(item)
                case EventRecord():
                    self.events.append(item)
                case ContentRecord():
                    self.contents.append(item)
                case list():
                    self.models.extend(item)
                case _:
                    raise TypeError(f"nothing to store in a {type(item).__name__}")
        self.calls = list(calls.values())


class Ledger:
    """Writes batches. It remembers nothing from one to the next: others may write beside it."""

    def __init__(
        self, limit_windows: Mapping[str, Mapping[str, int]], speed_windows: Sequence[int]
    ) -> None:
        self._limit_windows = limit_windows
        self._speed_windows = speed_windows

    async def write(
        self, engine: AsyncEngine, items: Sequence[object], moves: Moves | None = None
    ) -> None:
        """Write the items and ``moves`` in one transaction, or nothing at all."""
        async with engine.begin() as connection:
            await self.add(connection, items)
            await positions.move(connection, moves or {}, now_ms())

    async def add(self, connection: AsyncConnection, items: Sequence[object]) -> None:
        """Write the items in the connection's transaction."""
        batch = Batch(items)
        calls = await insert_calls(connection, batch.calls)
        await in_turn(connection)
        now = now_ms()
        await _run_on(connection, calls, self._speed_windows, now)
        await costs.add(connection, calls)
        await budgets.settle(connection, calls)
        await rollups.add(connection, calls)
        await limits.save_headers(connection, calls, self._limit_windows)
        await rests.save_cooldowns(connection, batch.cooldowns)
        await rests.save_switches(connection, batch.switches)
        await rests.save_counts(connection, batch.counts)
        await breakers.save(connection, batch.turns)
        await faults.save(connection, calls, batch.faults)
        await events.save(connection, batch.events)
        await contents.save(connection, batch.contents)
        await catalog.save(connection, batch.models, now)
        await samples.save(connection, batch.samples)


async def _run_on(
    connection: AsyncConnection, calls: Sequence[CallRecord], sizes: Sequence[int], now: int
) -> None:
    """Add the calls to the figures that run on from batch to batch."""
    ended, parts = health.outcomes(calls), windows.parts(calls, sizes)
    old = await running.load(connection, [*ended, *parts])
    conditions = await health.save(connection, ended, old, now)
    speeds = await windows.save(connection, parts, old)
    await running.save(connection, old, {**conditions, **speeds}, now)


async def insert_calls(
    connection: AsyncConnection, calls: Sequence[CallRecord]
) -> Sequence[CallRecord]:
    """Insert the rows and return those that were not there yet."""
    if not calls:
        return calls
    if connection.dialect.name == "sqlite":
        # Past SQLAlchemy's handling of single values, which would cost more than the insert.
        done = await connection.exec_driver_sql(*_sqlite_insert(calls))
        if done.rowcount == len(calls):
            return calls
        # The transaction holds the lock for writing, so the newest rows are those of this batch.
        newest = (
            select(api_calls.c.request_id, api_calls.c.attempt)
            .order_by(api_calls.c.id.desc())
            .limit(done.rowcount)
        )
        new = {(request, attempt) for request, attempt in await connection.execute(newest)}
        return [call for call in calls if (call.request_id, call.attempt) in new]
    calls = await _not_told_before(connection, calls)
    # In one order on all nodes, as each waits for those who insert the same row just now.
    calls = sorted(calls, key=lambda call: (call.request_id, call.attempt))
    rows = msgspec.json.encode([row(call) for call in calls]).decode()
    done = await connection.exec_driver_sql(_POSTGRESQL_INSERT, (rows,))
    new = {tuple(key) for key in done}
    return [call for call in calls if (call.request_id, call.attempt) in new]


async def _not_told_before(
    connection: AsyncConnection, calls: Sequence[CallRecord]
) -> Sequence[CallRecord]:
    """Without the calls that somebody told us of, and that are there. PostgreSQL would not notice:
    told again, they may begin at another time, and its rows are unique within a day alone."""
    told = [call.request_id for call in calls if call.endpoint in TOLD]
    if not told:
        return calls
    await in_turn(connection)  # so that of two who tell the same one is first
    known = select(api_calls.c.request_id).where(api_calls.c.request_id.in_(told))
    there = set(await connection.scalars(known))
    return [call for call in calls if call.endpoint not in TOLD or call.request_id not in there]


def _sqlite_insert(calls: Sequence[CallRecord]) -> tuple[str, list[tuple[Any, ...]]]:
    """The statement and its values."""
    columns = kept(calls)
    statement = (
        f"INSERT INTO api_calls ({', '.join(columns)})"
        f" VALUES ({', '.join('?' * len(columns))}) ON CONFLICT DO NOTHING"
    )
    return statement, list(zip(*columns.values(), strict=True))


def _postgresql_insert() -> str:
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    values = ", ".join(_out_of_json(place, name) for place, name in enumerate(COLUMNS))
    return (
        f"INSERT INTO api_calls ({names}) SELECT {values}"
        " FROM jsonb_array_elements(CAST($1 AS text)::jsonb) AS row"
        " ON CONFLICT DO NOTHING RETURNING request_id, attempt"
    )


_POSTGRESQL: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


def _out_of_json(place: int, name: str) -> str:
    kind = api_calls.c[name].type
    if isinstance(kind, Instant):
        return f"'epoch'::timestamptz + (row->>{place})::bigint * interval '1 millisecond'"
    return f"(row->>{place})::{kind.compile(_POSTGRESQL)}"


_POSTGRESQL_INSERT = _postgresql_insert()
"""All rows as one parameter: of arrays, COPY and many parameters, none costs us as little."""
