"""``api_calls`` on PostgreSQL: a partition for each UTC day, so that old days go at once.

They are made ahead of time. Rows that find none, since they are far too old or since it could not
be made, are in ``DEFAULT`` and lose nothing by it: once their day gets its partition they move
there. To make or drop one takes the whole table for some milliseconds. Who holds it longer, such as
a dump, is not waited for, as everybody else would wait behind us.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from datetime import date

from sqlalchemy import MetaData
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.clock import monotonic, now_ms
from proxy.store import address
from proxy.store.tables import api_calls
from proxy.types import CallRecord

_DAY_MS = 86_400_000
AHEAD = 7
"""Days after today that have a partition."""
BEHIND = 31
"""Days before today that get one if a row of theirs comes."""
DEFAULT = api_calls.to_metadata(MetaData(), name="api_calls_default")
"""The rows of all other days."""

_EPOCH = date(1970, 1, 1).toordinal()
_NAME = re.compile(rf"{api_calls.name}_(\d{{8}})")
_LOCK = 0x746F6C6D  # any number that is ours
_HURRY = """
SELECT set_config('lock_timeout', '300ms', true),
       set_config('idle_in_transaction_session_timeout', '10s', true)
"""
"""Shorter than what PostgreSQL takes for a deadlock; and who hangs does not hold the table."""
_BUSY = "55P03"  # lock_not_available
_REST_SECONDS = 60.0
_COLUMNS = ", ".join(f'"{column.name}"' for column in api_calls.c if column.computed is None)
_EXISTING = f"""
SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = '{api_calls.name}'::regclass
"""
_log = logging.getLogger("tollkeeper.store")


class Partitions:
    """The days of which this process knows that they have a partition."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._rest_until = 0.0

    async def make(self, engine: AsyncEngine, items: Iterable[object]) -> None:
        """Let the days of the calls among the items, and those to come, have their partitions.

        That it cannot be done now is no error. Raises what is one: that there is no connection.
        """
        today = now_ms() // _DAY_MS
        days = {item.timestamp // _DAY_MS for item in items if isinstance(item, CallRecord)}
        late = {day for day in days if today - BEHIND <= day < today}
        missing = {*late, *range(today, today + AHEAD + 1)} - self._known
        if not missing or monotonic() < self._rest_until:
            return
        try:
            await _make(engine, missing)
            self._known |= missing
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            self._rest_until = monotonic() + _REST_SECONDS
            if not _busy(error):
                _log.warning("no partition can be made: %s", address.reason(error))


async def drop(
    engine: AsyncEngine,
    before: int,
    keep: Callable[[int], Awaitable[array[int]]] | None = None,
) -> AsyncGenerator[int]:
    """Drop the days that ended before an instant in UTC milliseconds; tell the rows of each.

    ``keep`` takes the beginning of a day, puts it away, and returns the ids of the rows that are
    safe. A day that somebody reads just now, or that a row came to meanwhile, stays until the next
    time.
    """
    async with engine.connect() as connection:
        days = sorted(await _existing(connection))
    for day in days:
        if (day + 1) * _DAY_MS > before:
            return
        safe = None if keep is None else len(await keep(day * _DAY_MS))
        try:
            async with engine.begin() as connection:
                rows = await _drop(connection, _name(day), safe)
        except DBAPIError as error:
            if not _busy(error):
                raise
        else:
            yield rows


async def _drop(connection: AsyncConnection, name: str, safe: int | None) -> int:
    await connection.exec_driver_sql(_HURRY)
    await connection.exec_driver_sql(
        f"LOCK TABLE {name} IN SHARE MODE"
    )  # no row comes from here on
    found = await connection.exec_driver_sql(f"SELECT count(*) FROM {name}")
    rows: int = found.scalar_one()
    if safe is not None and safe != rows:
        return 0
    await connection.exec_driver_sql(f"DROP TABLE {name}")
    return rows


async def _make(engine: AsyncEngine, days: Iterable[int]) -> None:
    async with engine.begin() as connection:
        if await _existing(connection) >= set(days):
            return
        await connection.exec_driver_sql(_HURRY)
        await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        await _attach(connection, sorted(set(days) - await _existing(connection)))


async def _attach(connection: AsyncConnection, days: Sequence[int]) -> None:
    for day in days:
        statement = f"CREATE TABLE {_name(day)} (LIKE {api_calls.name} INCLUDING ALL)"
        await connection.exec_driver_sql(statement)
    # The whole table is taken: a row that went to DEFAULT just now would be refused.
    await connection.exec_driver_sql(f"LOCK TABLE ONLY {api_calls.name} IN ACCESS EXCLUSIVE MODE")
    for day in days:
        first, end = _moment(day), _moment(day + 1)
        await connection.exec_driver_sql(
            f"WITH moved AS (DELETE FROM {DEFAULT.name} WHERE timestamp >= '{first}'"
            f" AND timestamp < '{end}' RETURNING {_COLUMNS})"
            f" INSERT INTO {_name(day)} ({_COLUMNS}) SELECT {_COLUMNS} FROM moved"
        )
        await connection.exec_driver_sql(
            f"ALTER TABLE {api_calls.name} ATTACH PARTITION {_name(day)}"
            f" FOR VALUES FROM ('{first}') TO ('{end}')"
        )


async def _existing(connection: AsyncConnection) -> set[int]:
    names = (await connection.exec_driver_sql(_EXISTING)).scalars()
    matches = filter(None, map(_NAME.fullmatch, names))
    return {date.fromisoformat(match[1]).toordinal() - _EPOCH for match in matches}


def _name(day: int) -> str:
    return f"{api_calls.name}_{date.fromordinal(_EPOCH + day):%Y%m%d}"


def _moment(day: int) -> str:
    return f"{date.fromordinal(_EPOCH + day)} 00:00:00+00"


def _busy(error: Exception) -> bool:
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _BUSY
