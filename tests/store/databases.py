"""Empty databases of each kind that can be reached here."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

SERVER = {"host": "127.0.0.1", "port": 5432, "user": "root", "timeout": 2}


async def _execute(statement: str) -> None:
    connection = await asyncpg.connect(**SERVER, database="postgres")
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def reachable() -> list[str]:
    """SQLite always is."""
    try:
        asyncio.run(_execute("SELECT 1"))
    except (OSError, asyncpg.PostgresError):
        return ["sqlite"]
    return ["sqlite", "postgresql"]


@asynccontextmanager
async def database(kind: str, folder: Path) -> AsyncIterator[str]:
    """The address of a database that is nobody else's, and is gone afterwards."""
    name = f"tollkeeper_{secrets.token_hex(6)}"
    if kind == "sqlite":
        yield f"sqlite+aiosqlite:///{folder}/{name}.db"
        return
    await _execute(f"CREATE DATABASE {name}")
    try:
        yield f"postgresql+asyncpg://root@127.0.0.1:5432/{name}"
    finally:
        await _execute(f"DROP DATABASE {name}")
