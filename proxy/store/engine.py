"""The database as the program holds it: one writer, a few readers, opened and closed once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from proxy.store import address, positions, salvage, schema
from proxy.store.address import StoreError
from proxy.store.knocking import Knocking
from proxy.store.partitions import Partitions
from proxy.store.positions import Moves
from proxy.store.records import Ledger
from proxy.store.tables import metadata
from proxy.store.windows import SIZES

Reader = AsyncConnection
"""A connection that can only read; every query of one reader sees the same moment."""

_MEMORY = URL.create("sqlite+aiosqlite")
_PRAGMAS = {
    "journal_mode": "WAL",
    "synchronous": "FULL",  # what is committed is deleted from the journal
    "foreign_keys": "ON",
    "temp_store": "MEMORY",
    "secure_delete": "ON",  # what is deleted is overwritten: it may be what somebody said
    "journal_size_limit": 64 * 1024 * 1024,
}
_WRITER_BUSY_MS = 1000  # the batch writer comes again, so waiting here gains nothing
_READER_BUSY_MS = 5000
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 60  # a server that neither answers nor hangs up is given up

WRITERS = 1
READERS = {"sqlite": 2, "postgresql": 4}
"""Connections of one process, by kind of database: it opens no more than ``WRITERS + READERS``."""

_log = logging.getLogger("tollkeeper.store")


class Store:
    """What the gateway remembers, in SQLite or PostgreSQL.

    ``url`` None keeps nothing: the tables are there, in memory, and stay empty. ``windows`` says
    how long the limits of a provider's headers run, in seconds by provider and limit type,
    ``tps_windows`` over how many minutes speeds are averaged.

    A database file that is deleted, moved or replaced while it is open is let go, and what is at
    its path is opened instead, made anew if need be.
    """

    def __init__(
        self,
        url: str | None,
        *,
        windows: Mapping[str, Mapping[str, int]] | None = None,
        tps_windows: Sequence[int] = SIZES,
    ) -> None:
        self._address = None if url is None else address.parse(url)
        self._windows, self._tps_windows = windows or {}, sorted(set(tps_windows))
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._ledger = Ledger(self._windows, self._tps_windows)
        self._partitions = Partitions()
        self._knocking = Knocking()
        self._writer: AsyncEngine | None = None
        self._reader: AsyncEngine | None = None
        self._file: address.File | None = None  # the one that is open
        self._beside: dict[str, address.File | None] = {}
        self._lost = False  # it was taken away, and no other is open yet
        self._parting: list[AsyncEngine] = []  # let go, with connections that are still in use
        self._uncounted = False  # another is open, whose positions nobody has asked for yet
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
        """Create or migrate the database and connect; does nothing if that is done, and the file
        is still where it was.

        Raises SchemaError if a newer version made the database, StoreError if it cannot be
        opened now: ``write`` then tries again by itself.
        """
        async with self._opening:
            if self._taken_away():
                await self._let_go()
            elif self._parting:
                await self._disconnect(self._parting)
            if self._reader is not None:
                return
            if self._address is None:
                self._reader = await _in_memory()
                return
            address.make_folder(self._address)
            writer = _writer(self._address, self._knocking)
            reader = _readers(self._address, self._knocking)
            try:
                # Looked at by a reader, for whom it is no matter that another process writes.
                await schema.ensure(reader, self._address)
                file = address.file(self._address)
                # The one connection is made here, where nobody is cancelled: the pool would let
                # others wait for half a minute for one whose making was given up.
                async with writer.connect():
                    pass
                if file != address.file(self._address):
                    raise StoreError(f"{self.location} was taken away while it was opened")
                beside = {name: address.file(self._address, name) for name in address.BESIDE}
            except BaseException as error:
                await writer.dispose()
                await reader.dispose()
                if isinstance(error, (SQLAlchemyError, OSError)):
                    raise StoreError(self._unusable(error)) from error
                raise
            self._writer, self._reader, self._file = writer, reader, file
            self._beside, self._lost = beside, False

    async def close(self) -> None:
        """Give back every connection; the store can be opened again."""
        async with self._opening:
            for engine in (*self._parting, *self._forget()):
                await engine.dispose()
            self._parting = []

    def _forget(self) -> list[AsyncEngine]:
        """From now on nothing is open. What was, for whoever closes it."""
        engines = [engine for engine in (self._writer, self._reader) if engine is not None]
        self._writer = self._reader = self._file = None
        self._ledger = Ledger(self._windows, self._tps_windows)
        self._partitions = Partitions()
        return engines

    async def _disconnect(self, engines: Sequence[AsyncEngine]) -> None:
        """Close those that nobody uses just now, and keep the others for the next time."""
        self._parting = [engine for engine in engines if _in_use(engine)]
        for engine in engines:
            if engine not in self._parting:
                await engine.dispose()

    def _taken_away(self) -> bool:
        """Whether the file that is open is not, or not any more, the one at its path. SQLite goes
        on in it without a word."""
        if self._file is None or self._address is None:
            return False
        return address.file(self._address) != self._file

    async def _let_go(self) -> None:
        assert self._address is not None
        self._lost = self._uncounted = True
        _log.error(
            "%s, and what it held with it; the rows that the journal still has, and all that come,"
            " go into the file at that path, a new one if there is none",
            self._elsewhere(),
        )
        address.clear(self._address, self._beside)
        await self._disconnect([*self._parting, *self._forget()])

    async def write(self, items: Sequence[object], moves: Moves | None = None) -> None:
        """Write a batch in one transaction; StoreError if nothing of it was written.

        The same items may come again after that. A call that is there already is left alone and
        counted nowhere twice; other items are, if they come from the journal, by their ``moves``.
        """
        if self._address is None or not (items or moves):
            return
        async with self._writing:
            writer, file = await self.writer(), self._file
            if moves and self._uncounted:
                raise StoreError(self._elsewhere())
            try:
                if writer.dialect.name == "postgresql":
                    await self._partitions.make(writer, items)
                refused = await salvage.write(self._ledger, writer, items, moves)
            except (SQLAlchemyError, OSError) as error:
                raise StoreError(self._unusable(error)) from error
            if file != address.file(self._address):  # it may have been committed to nowhere
                raise StoreError(self._elsewhere())
            self.refused += refused

    async def positions(self) -> dict[str, int]:
        """How far each segment of the journal was taken in. StoreError if that cannot be read."""
        await self.open()
        self._uncounted = False
        async with self.reader() as connection:
            return await positions.load(connection)

    async def writer(self) -> AsyncEngine:
        """The engine with the one writing connection, opened if need be."""
        await self.open()
        if self._writer is None:
            raise StoreError("this store keeps nothing")
        return self._writer

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        """A connection for queries. StoreError if the database is not open or cannot be read."""
        if self._lost or self._parting or self._taken_away():
            await self.open()
        if self._reader is None:
            raise StoreError("the database is not open")
        try:
            async with self._reader.connect() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(self._unusable(error)) from error

    def _elsewhere(self) -> str:
        return f"the database file {self.location} was deleted, moved or replaced while in use"

    def _unusable(self, error: BaseException) -> str:
        return f"cannot use the database {self.location}: {address.reason(error)}"


def _in_use(engine: AsyncEngine) -> bool:
    return isinstance(engine.pool, AsyncAdaptedQueuePool) and engine.pool.checkedout() > 0


def _writer(where: URL, knocking: Knocking) -> AsyncEngine:
    if where.get_backend_name() == "sqlite":
        return _sqlite(where, "BEGIN IMMEDIATE", WRITERS, busy_timeout=_WRITER_BUSY_MS)
    return _postgresql(where, knocking, WRITERS)


def _readers(where: URL, knocking: Knocking) -> AsyncEngine:
    kind = where.get_backend_name()
    if kind == "sqlite":
        return _sqlite(where, "BEGIN", READERS[kind], busy_timeout=_READER_BUSY_MS, query_only="ON")
    engine = _postgresql(where, knocking, READERS[kind], isolation_level="REPEATABLE READ")
    return engine.execution_options(postgresql_readonly=True)


async def _in_memory() -> AsyncEngine:
    # One connection, since each has a database of its own.
    engine = create_async_engine(
        _MEMORY, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0
    )
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    return engine


def _sqlite(where: URL, begin: str, connections: int, **pragmas: str | int) -> AsyncEngine:
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


def _postgresql(where: URL, knocking: Knocking, connections: int, **options: str) -> AsyncEngine:
    # What a connection is to be like is said with each transaction and never for its lifetime, so
    # that PgBouncer may stand between.
    engine = create_async_engine(
        where,
        pool_size=connections,
        max_overflow=0,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "timeout": _CONNECT_SECONDS,
            "command_timeout": _ANSWER_SECONDS,
            "server_settings": {"application_name": "tollkeeper"},
        },
        **options,
    )
    event.listen(engine.sync_engine, "do_connect", knocking.connect)
    return engine
