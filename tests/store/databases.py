"""Databases of each kind that can be reached here, each of one test's own."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

SERVER = {"host": "127.0.0.1", "port": 5432, "user": "root", "timeout": 2}


async def execute(statement: str) -> None:
    """Tell the PostgreSQL server something."""
    connection = await asyncpg.connect(**SERVER, database="postgres")
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def reachable() -> list[str]:
    """SQLite always is; PostgreSQL need not be."""
    try:
        asyncio.run(execute("SELECT 1"))
    except (OSError, asyncpg.PostgresError):
        return ["sqlite"]
    return ["sqlite", "postgresql"]


REACHABLE = reachable()


def address(name: str) -> str:
    return f"postgresql+asyncpg://root@127.0.0.1:5432/{name}"


@asynccontextmanager
async def database(kind: str, folder: Path, like: str | Path = "") -> AsyncIterator[str]:
    """The address of a database that is gone afterwards. ``like`` is a file or, on PostgreSQL, a
    database to begin with: migrating takes a second. Without, there are no tables yet."""
    name = f"tollkeeper_{secrets.token_hex(6)}"
    if kind == "sqlite":
        if like:
            shutil.copy(like, folder / f"{name}.db")
        yield f"sqlite+aiosqlite:///{folder}/{name}.db"
        return
    await execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {like}" if like else ""))
    try:
        yield address(name)
    finally:
        await execute(f"DROP DATABASE {name}")
