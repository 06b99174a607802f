"""``python -m proxy.store.migrate``: bring the database named on standard input to the head.

Exit status 0, or 1 and ``schema.NEWER_SCHEMA`` with one line on standard error. Of several that
run at once, one works and the others wait for it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from proxy.store.address import SchemaError, StoreError, make_folder, parse, reason, shown
from proxy.store.schema import NEWER_SCHEMA

_PATIENCE = 10.0
"""Seconds to wait for another process that migrates."""
_ADVISORY_LOCK = 0x746F6C6C  # any number that is ours

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """The migrations: inside the installed package, or beside it in a checkout."""
    for place in (_PACKAGE / "migrations", _PACKAGE.parent / "migrations"):
        if (place / "env.py").is_file():
            return place
    raise StoreError("the migrations are missing from this installation")


def config() -> Config:
    """Alembic's configuration, for which no file is needed."""
    settings = Config()
    settings.set_main_option("script_location", str(folder()).replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    return settings


async def migrate(address: URL) -> None:
    """Create the database where it is a file, and bring it to the head in one transaction."""
    make_folder(address)
    engine = create_async_engine(address, poolclass=NullPool, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_file)
        event.listen(engine.sync_engine, "begin", _take_the_lock)
    try:
        await _with_patience(engine, address)
    finally:
        await engine.dispose()


async def _with_patience(engine: AsyncEngine, address: URL) -> None:
    # Switching a new file to WAL fails at once, without busy_timeout, while another does the same.
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE
    while True:
        try:
            async with engine.begin() as connection:
                await connection.run_sync(_upgrade, address)
            return
        except OperationalError as error:
            if "locked" not in str(error.orig) or loop.time() > deadline:
                raise
        await asyncio.sleep(0.05)


def _prepare_file(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 2000")
    cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only before the first table
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _take_the_lock(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _upgrade(connection: Connection, address: URL) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _ADVISORY_LOCK})
    settings = config()
    known = [script.revision for script in ScriptDirectory.from_config(settings).walk_revisions()]
    for found in MigrationContext.configure(connection).get_current_heads():
        if found not in known:
            raise SchemaError(
                f"the database {shown(address)} was made by a newer version"
                f" (schema {found}; this one knows up to {known[0]})"
            )
    settings.attributes["connection"] = connection
    command.upgrade(settings, "head")


def main() -> int:
    """Migrate, and say in one line why not."""
    try:
        address = parse(sys.stdin.read().strip())
        asyncio.run(migrate(address))
    except StoreError as error:
        sys.stderr.write(f"{error}\n")
        return NEWER_SCHEMA if isinstance(error, SchemaError) else 1
    except (SQLAlchemyError, OSError) as error:
        sys.stderr.write(f"cannot set up the database {shown(address)}: {reason(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
