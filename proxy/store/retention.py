"""Old rows go, a few at a time, so that neither readers nor the batch writer wait for it.

``daily_costs`` and ``models`` are kept for ever, and so are the keys that an operator took out. Of
the tables of current state, rows go that nothing has touched for as long.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import Column, delete, false, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.clock import now_ms
from proxy.store import address
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.store.rests import DISABLED
from proxy.store.tables import (
    api_calls,
    errors,
    gpu_metrics,
    provider_health,
    provider_health_events,
    rate_limits,
    system_metrics,
    tps_metrics,
)

_AGES = (
    api_calls.c.timestamp,
    errors.c.timestamp,
    gpu_metrics.c.timestamp,  # before the samples, whose deletion would take them along unbounded
    system_metrics.c.timestamp,
    tps_metrics.c.window_start,
    rate_limits.c.last_updated,
    provider_health.c.updated_at,
    provider_health_events.c.timestamp,
)
_FOR_EVER = {rate_limits: rate_limits.c.limit_type == DISABLED}
_DAY_MS = 86_400_000
_CHUNK = 500
_PAUSE = 0.02
_PAGES = 2000  # of 4 KiB, given back to the file system at a time


async def run(store: Store, days: int) -> int:
    """Delete what is older than ``days`` now; 0 days keep everything. Returns the rows deleted.

    StoreError if the database cannot be written; what was deleted before that stays deleted.
    """
    return await prune(store, days, now_ms())


async def prune(store: Store, days: int, now: int) -> int:
    """``run`` at the instant ``now``, in UTC milliseconds."""
    if days == 0 or not store.keeps:
        return 0
    engine = await store.writer()
    deleted = 0
    try:
        for age in _AGES:
            while count := await _chunk(engine, age, now - days * _DAY_MS):
                deleted += count
                await asyncio.sleep(_PAUSE)
        if engine.dialect.name == "sqlite":
            await _shrink(engine)
    except (SQLAlchemyError, OSError) as error:
        raise StoreError(f"cannot delete old rows: {address.reason(error)}") from error
    return deleted


async def _chunk(engine: AsyncEngine, age: Column[int], before: int) -> int:
    table = age.table
    old = (age < before, ~_FOR_EVER.get(table, false()))
    oldest = select(table.c.id).where(*old).order_by(age).limit(_CHUNK)
    async with engine.begin() as connection:
        return (await connection.execute(delete(table).where(table.c.id.in_(oldest)))).rowcount


async def _shrink(engine: AsyncEngine) -> None:
    """Give freed pages back, and let SQLite look at its statistics."""
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        driver = raw.driver_connection
        assert driver is not None
        # As a script, which runs to its end: execute() would take one step, which frees one page.
        await driver.executescript(f"PRAGMA incremental_vacuum({_PAGES}); PRAGMA optimize")
