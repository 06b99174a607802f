"""The one transaction in which a batch is written: rows, sums and running figures together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.clock import now_ms
from proxy.sample import HostSample
from proxy.store import breakers, catalog, costs, events, faults, limits, rests, rollups, samples
from proxy.store.events import EventRecord
from proxy.store.health import Health
from proxy.store.tables import api_calls
from proxy.store.upsert import insert_into
from proxy.store.windows import SpeedWindows
from proxy.types import (
    BreakerRecord,
    CallRecord,
    CooldownRecord,
    CountRecord,
    FaultRecord,
    LiftRecord,
    ModelInfo,
    SwitchRecord,
)

_FIELDS = CallRecord.__struct_fields__
_COST = _FIELDS.index("cost_nano_usd")  # and the list price next to it
COLUMNS = (*_FIELDS[:_COST], "cost_estimate_usd", "list_cost_usd", *_FIELDS[_COST + 2 : -1])
"""The columns that a CallRecord fills, in the order of its fields."""


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
                case list():
                    self.models.extend(item)
                case _:
                    raise TypeError(f"nothing to store in a {type(item).__name__}")
        self.calls = list(calls.values())


class Ledger:
    """Writes batches, and holds the figures that run on from one to the next.

    What it holds changes only after a commit, so that a batch may be written again.
    """

    def __init__(self, windows: Mapping[str, Mapping[str, int]]) -> None:
        self._windows = windows
        self._health = Health()
        self._speeds = SpeedWindows()
        self._in_step = False

    async def write(self, engine: AsyncEngine, items: Sequence[object]) -> None:
        """Write the items in one transaction, or none of them."""
        batch = Batch(items)
        async with engine.connect() as connection:
            await connection.begin()
            now = now_ms()
            if not self._in_step:
                self._health = await Health.load(connection, now)
                self._speeds = SpeedWindows(known_from=now)
            calls = await insert_calls(connection, batch.calls)
            health = self._health.after(calls, now)
            speeds = await self._speeds.after(connection, calls)
            await health.save(connection)
            await speeds.save(connection)
            await costs.add(connection, calls)
            await rollups.add(connection, calls)
            await limits.save_headers(connection, calls, self._windows)
            await rests.save_cooldowns(connection, batch.cooldowns)
            await rests.save_switches(connection, batch.switches)
            await rests.save_counts(connection, batch.counts)
            await breakers.save(connection, batch.turns)
            await faults.save(connection, calls, batch.faults)
            await events.save(connection, batch.events)
            await catalog.save(connection, batch.models, now)
            await samples.save(connection, batch.samples)
            # A commit that fails may still have happened: then the tables know better than we.
            self._in_step = False
            await connection.commit()
            self._in_step = True
        self._health.adopt(health)
        self._speeds.adopt(speeds)


def row(record: CallRecord) -> tuple[Any, ...]:
    """The values of ``COLUMNS``."""
    values = msgspec.structs.astuple(record)
    cost, listed = values[_COST : _COST + 2]
    dollars = (None if cost is None else cost / 1e9, None if listed is None else listed / 1e9)
    return (*values[:_COST], *dollars, *values[_COST + 2 : -1])


async def insert_calls(
    connection: AsyncConnection, calls: Sequence[CallRecord]
) -> Sequence[CallRecord]:
    """Insert the rows and return those that were not there yet."""
    if not calls:
        return calls
    if connection.dialect.name == "sqlite":
        # Past SQLAlchemy's handling of single values, which would cost more than the insert.
        done = await connection.exec_driver_sql(_SQLITE_INSERT, [row(call) for call in calls])
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
    known = select(api_calls.c.request_id, api_calls.c.attempt).where(
        api_calls.c.request_id.in_({call.request_id for call in calls})
    )
    old = {(request, attempt) for request, attempt in await connection.execute(known)}
    fresh = [call for call in calls if (call.request_id, call.attempt) not in old]
    if fresh:
        rows = [dict(zip(COLUMNS, row(call), strict=True)) for call in fresh]
        await connection.execute(
            insert_into(api_calls, "postgresql").on_conflict_do_nothing(), rows
        )
    return fresh


def _sqlite_insert() -> str:
    statement = sqlite.insert(api_calls).on_conflict_do_nothing()
    return str(statement.compile(dialect=sqlite.dialect(), column_keys=list(COLUMNS)))


_SQLITE_INSERT = _sqlite_insert()
