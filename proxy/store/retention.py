"""Old rows go, a few at a time, so that neither readers nor the batch writer wait for it.

``daily_costs``, ``models``, ``api_credits`` and the rollups by day are kept for ever, and so are
the keys that an operator took out; the other rollups have ages of their own. Of the tables of
current state, rows go that nothing has touched for as long. With an archive, calls go by whole days
(UTC), once the day is in its file, and nothing goes at all while that cannot be written. On
PostgreSQL they always go by whole days, each with its partition.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial

from sqlalchemy import Column, ColumnElement, Table, delete, func, select, true, tuple_
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.clock import now_ms
from proxy.store import address, partitions
from proxy.store.address import StoreError
from proxy.store.archive import DAY_MS, Archive, ArchiveError
from proxy.store.engine import Reader, Store
from proxy.store.patience import when_free
from proxy.store.rests import DISABLED
from proxy.store.rollups import GRAINS
from proxy.store.tables import (
    api_calls,
    call_contents,
    custom_events,
    errors,
    gpu_metrics,
    provider_health,
    provider_health_events,
    rate_limits,
    rollups_hour,
    rollups_minute,
    system_metrics,
    tps_metrics,
)
from proxy.store.upsert import in_turn

AGES: tuple[Column[int], ...] = (
    api_calls.c.timestamp,
    errors.c.timestamp,
    gpu_metrics.c.timestamp,  # before the samples, whose deletion would take them along unbounded
    system_metrics.c.timestamp,
    tps_metrics.c.window_start,
    rate_limits.c.last_updated,
    provider_health.c.updated_at,
    provider_health_events.c.timestamp,
    custom_events.c.timestamp,
    rollups_minute.c.start,
    rollups_hour.c.start,
)
"""The tables that rows go from, by the column that says how old a row is."""

CONTENTS = (call_contents.c.timestamp,)
"""Prompts and answers have an age of their own, and wait for no archive: it has none of them."""

_OWN = {grain.table: grain.kept for grain in GRAINS}
"""Ages in milliseconds that are not for the settings to say."""

_GOES = {rate_limits: rate_limits.c.limit_type != DISABLED}
"""Which of a table's rows go at all."""

_CHUNK = 500
_PAUSE = 0.02
_PAGES = 2000  # of 4 KiB, given back to the file system at a time
_log = logging.getLogger("tollkeeper.store")


async def run(
    store: Store, days: int, archive: Archive | None = None, content_days: int = 0
) -> int:
    """Delete what is older than ``days`` now; 0 days keep all but old rollups. Returns the rows
    deleted.

    Prompts and answers go after ``content_days`` if that is sooner; 0: with their calls.
    StoreError if the database or the archive cannot be written; what was deleted before that stays
    deleted. That the archive cannot be written is told in the log, too, once.
    """
    try:
        deleted = await prune(store, days, now_ms(), archive, content_days)
    except ArchiveError as error:
        if archive is not None and archive.trouble != str(error):
            archive.trouble = str(error)
            _log.error("old rows are kept, as they are to be archived first: %s", error)
        raise
    if archive is not None:
        archive.trouble = None
    return deleted


async def prune(
    store: Store, days: int, now: int, archive: Archive | None = None, content_days: int = 0
) -> int:
    """``run`` at the instant ``now``, in UTC milliseconds."""
    if not store.keeps:
        return 0
    deleted = 0
    if sooner := min(filter(None, (content_days, days)), default=0):
        deleted += await let_go(store, now - sooner * DAY_MS, ages=CONTENTS)
    return deleted + await let_go(store, now - days * DAY_MS if days else 0, archive)


async def let_go(
    store: Store,
    before: int,
    archive: Archive | None = None,
    told: Callable[[int], None] = lambda rows: None,
    ages: Sequence[Column[int]] = AGES,
) -> int:
    """Delete what is older than an instant in UTC milliseconds; ``told`` hears of every step."""
    engine = await store.writer()
    deleted = 0
    try:
        async with aclosing(_steps(store, engine, before, archive, ages)) as steps:
            async for count in steps:
                deleted += count
                told(count)
                await asyncio.sleep(_PAUSE)
        if engine.dialect.name == "sqlite":
            await _shrink(engine)
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise StoreError(f"cannot delete old rows: {address.reason(error)}") from error
    return deleted


async def old(
    connection: Reader, before: int, archived: bool, ages: Sequence[Column[int]] = AGES
) -> dict[str, int]:
    """How many rows ``let_go`` would delete now, by table."""
    found = {}
    for age, end in _ends(before, archived or connection.dialect.name == "postgresql", ages):
        query = select(func.count()).select_from(age.table).where(*_old(age, end))
        found[age.table.name] = await connection.scalar(query) or 0
    return found


def _ends(
    before: int, whole: bool, ages: Sequence[Column[int]]
) -> Iterator[tuple[Column[int], int]]:
    """For each table the instant before which its rows go. Calls that go by ``whole`` days do so
    when they are over: so a file is written once, and a partition dropped."""
    for age in ages:
        if age.table in _OWN:
            yield age, now_ms() - _OWN[age.table]
        elif whole and age.table is api_calls:
            yield age, before // DAY_MS * DAY_MS
        else:
            yield age, before


def _old(age: Column[int], end: int) -> tuple[ColumnElement[bool], ...]:
    return age < end, _GOES.get(age.table, true())


async def _steps(
    store: Store,
    engine: AsyncEngine,
    before: int,
    archive: Archive | None,
    ages: Sequence[Column[int]],
) -> AsyncGenerator[int]:
    """Delete a chunk at a time, and tell its size."""
    parted = engine.dialect.name == "postgresql"
    for age, end in _ends(before, archive is not None or parted, ages):
        kept = archive if age.table is api_calls else None
        if parted and age.table is api_calls:
            keep = None if kept is None else partial(kept.keep, store)
            async with aclosing(partitions.drop(engine, end, keep)) as days:
                async for count in days:
                    yield count
            age = partitions.DEFAULT.c.timestamp
        key = tuple_(*age.table.primary_key)
        if kept is not None:
            while (day := await _oldest_day(store, age, end)) is not None:
                safe = await kept.keep(store, day)
                for at in range(0, len(safe), _CHUNK):
                    chunk = api_calls.c.id.in_(safe[at : at + _CHUNK])
                    yield await _delete(engine, chunk, api_calls)
            continue
        oldest = select(*age.table.primary_key).where(*_old(age, end)).order_by(age).limit(_CHUNK)
        while count := await _delete(engine, key.in_(oldest), age.table):
            yield count


async def _oldest_day(store: Store, age: Column[int], end: int) -> int | None:
    """When the day of the oldest call before ``end`` began."""
    query = select(func.min(age)).where(age < end)
    async with store.reader() as connection:
        first = await connection.scalar(query)
    return None if first is None else first // DAY_MS * DAY_MS


async def _delete(engine: AsyncEngine, which: ColumnElement[bool], table: Table) -> int:
    async def chunk() -> int:
        async with engine.begin() as connection:
            await in_turn(connection)
            return (await connection.execute(delete(table).where(which))).rowcount

    return await when_free(chunk)


async def _shrink(engine: AsyncEngine) -> None:
    """Give freed pages back, and let SQLite look at its statistics."""

    async def pages() -> None:
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            driver = raw.driver_connection
            assert driver is not None
            # As a script, which runs to its end: execute() would take one step, which frees one
            # page.
            await driver.executescript(f"PRAGMA incremental_vacuum({_PAGES}); PRAGMA optimize")

    await when_free(pages)
