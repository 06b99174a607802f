"""A look into a database that somebody else keeps: nothing is created, migrated or written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from proxy.store import address, schema
from proxy.store.address import StoreError
from proxy.store.engine import Reader


@asynccontextmanager
async def look(url: str) -> AsyncIterator[Reader]:
    """A connection for queries; StoreError if there is no database of this version."""
    where = address.parse(url)
    engine = create_async_engine(_read_only(where), poolclass=NullPool, hide_parameters=True)
    try:
        if await schema.revision(engine) != schema.HEAD:
            raise StoreError(f"the database {address.shown(where)} is of another version")
        async with engine.connect() as connection:
            yield connection
    except (SQLAlchemyError, OSError) as error:
        said = f"cannot read the database {address.shown(where)}: {address.reason(error)}"
        raise StoreError(said) from error
    finally:
        await engine.dispose()


def _read_only(where: URL) -> URL:
    if where.get_backend_name() != "sqlite":
        return where
    if not Path(where.database or "").is_file():
        raise StoreError(f"there is no database {address.shown(where)}")
    return where.set(database=f"file:{where.database}", query={"mode": "ro", "uri": "true"})
