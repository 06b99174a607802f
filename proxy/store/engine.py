"""The database as the program holds it: one writer, a few readers, opened and closed once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from proxy.store import address, salvage, schema
from proxy.store.address import StoreError
from proxy.store.records import Ledger
from proxy.store.tables import metadata

Reader = AsyncConnection
"""A connection that can only read; every query of one reader sees the same moment."""

_MEMORY = URL.create("sqlite+aiosqlite")
_PRAGMAS = {
    "journal_mode": "WAL",
    "synchronous": "NORMAL",  # survives a crash of the program; a power cut may cost the last rows
    "foreign_keys": "ON",
    "temp_store": "MEMORY",
    "journal_size_limit": 64 * 1024 * 1024,
}
_WRITER_BUSY_MS = 1000  # the batch writer comes again, so waiting here gains nothing
_READER_BUSY_MS = 5000
_CONNECT_SECONDS = 5


class Store:
    """What the gateway remembers, in SQLite or PostgreSQL.

    ``url`` None keeps nothing: the tables are there, in memory, and stay empty. ``windows`` says
    how long the limits of a provider's headers run, in seconds by provider and limit type.
    """

    def __init__(
        self, url: str | None, *, windows: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        self._address = None if url is None else address.parse(url)
        self._windows = windows or {}
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._ledger = Ledger(self._windows)
        self._writer: AsyncEngine | None = None
        self._reader: AsyncEngine | None = None
        self.refused = 0
        """Items that the database will never take, and which were therefore left out."""

    @property
    def location(self) -> str | None:
        """Where the rows go, without a password; None if nowhere."""
        return None if self._address is None else address.shown(self._address)

    @property
    def keeps(self) -> bool:
        """Whether anything is written at all."""
        return self._address is not None

    async def open(self) -> None:
        """Create or migrate the database and connect; does nothing if that is done.

        Raises SchemaError if a newer version made the database, StoreError if it cannot be
        opened now: ``write`` then tries again by itself.
        """
        async with self._opening:
            if self._reader is not None:
                return
            if self._address is None:
                self._reader = await _in_memory()
                return
            address.make_folder(self._address)
            writer = _writer(self._address)
            try:
                await schema.ensure(writer, self._address)
                # The one connection is made here, where nobody is cancelled: the pool would let
                # others wait for half a minute for one whose making was given up.
                async with writer.connect():
                    pass
            except (SQLAlchemyError, OSError) as error:
                await writer.dispose()
                raise StoreError(self._unusable(error)) from error
            except BaseException:
                await writer.dispose()
                raise
            self._writer, self._reader = writer, _readers(self._address)

    async def close(self) -> None:
        """Give back every connection; the store can be opened again."""
        async with self._opening:
            engines = (self._writer, self._reader)
            self._writer = self._reader = None
            self._ledger = Ledger(self._windows)
            for engine in engines:
                if engine is not None:
                    await engine.dispose()

    async def write(self, items: Sequence[object]) -> None:
        """Write a batch in one transaction; StoreError if nothing of it was written.

        The same items may come again after that. A row that is there already is left alone and
        counted nowhere twice.
        """
        if self._address is None or not items:
            return
        writer = await self.writer()
        async with self._writing:
            try:
                self.refused += await salvage.write(self._ledger, writer, items)
            except (SQLAlchemyError, OSError) as error:
                raise StoreError(self._unusable(error)) from error

    async def writer(self) -> AsyncEngine:
        """The engine with the one writing connection, opened if need be."""
        await self.open()
        if self._writer is None:
            raise StoreError("this store keeps nothing")
        return self._writer

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        """A connection for queries. StoreError if the database is not open or cannot be read."""
        if self._reader is None:
            raise StoreError("the database is not open")
        try:
            async with self._reader.connect() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(self._unusable(error)) from error

    def _unusable(self, error: BaseException) -> str:
        return f"cannot use the database {self.location}: {address.reason(error)}"


def _writer(where: URL) -> AsyncEngine:
    if where.get_backend_name() == "sqlite":
        return _sqlite(where, "BEGIN IMMEDIATE", connections=1, busy_timeout=_WRITER_BUSY_MS)
    return _postgresql(where, connections=1)


def _readers(where: URL) -> AsyncEngine:
    if where.get_backend_name() == "sqlite":
        return _sqlite(where, "BEGIN", connections=2, busy_timeout=_READER_BUSY_MS, query_only="ON")
    return _postgresql(
        where,
        connections=4,
        default_transaction_read_only="on",
        default_transaction_isolation="repeatable read",
    )


async def _in_memory() -> AsyncEngine:
    # One connection, since each has a database of its own.
    engine = create_async_engine(
        _MEMORY, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0
    )
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    return engine


def _sqlite(where: URL, begin: str, *, connections: int, **pragmas: str | int) -> AsyncEngine:
    # busy_timeout leads the pragmas, as setting the others may have to wait already.
    engine = create_async_engine(where, pool_size=connections, max_overflow=0, hide_parameters=True)

    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, not the driver
        cursor = connection.cursor()
        for name, value in (pragmas | _PRAGMAS).items():
            cursor.execute(f"PRAGMA {name} = {value}")
        cursor.close()

    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "begin", start)
    return engine


def _postgresql(where: URL, *, connections: int, **settings: str) -> AsyncEngine:
    return create_async_engine(
        where,
        pool_size=connections,
        max_overflow=0,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "timeout": _CONNECT_SECONDS,
            "server_settings": {"application_name": "tollkeeper", **settings},
        },
    )
