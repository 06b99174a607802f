"""Databases of each kind that can be had here, each of one test's own."""

from __future__ import annotations

import asyncio
import atexit
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from proxy.store.address import parse
from proxy.store.migrate import migrate
from tests.postgres_server import at_once, available, server

REACHABLE = ["sqlite", "postgresql"] if available() else ["sqlite"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


async def execute(statement: str) -> None:
    """Tell the PostgreSQL server something."""
    connection = await asyncpg.connect(**server(), database="postgres")
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def address(name: str) -> str:
    """Of a database of the PostgreSQL server."""
    return "postgresql+asyncpg://{user}@{host}:{port}/".format(**server()) + name


async def create(like: str | Path = "") -> str:
    """The name of a new database, for which ``drop`` is called at the end. ``like`` is the one
    to begin with; without, there are no tables yet."""
    name = f"tollkeeper_{secrets.token_hex(6)}"
    await execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {like}" if like else ""))
    return name


async def drop(name: str) -> None:
    await execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@cache
def migrated(kind: str) -> str | Path:
    """What to make databases at the newest revision from: a file or, on PostgreSQL, the name of a
    database. Migrating takes a second, copying nothing."""
    if kind == "sqlite":
        path = Path(tempfile.mkdtemp(prefix="tollkeeper-")) / "empty.db"
        atexit.register(shutil.rmtree, path.parent)
        at_once(migrate(parse(f"sqlite+aiosqlite:///{path}")))
        return path
    name = at_once(create())
    atexit.register(lambda: asyncio.run(drop(name)))
    at_once(migrate(parse(address(name))))
    return name


@asynccontextmanager
async def database(kind: str, folder: Path, like: str | Path = "") -> AsyncIterator[str]:
    """The address of a database that is gone afterwards. ``like``: see ``migrated``; without, there
    are no tables yet."""
    if kind == "sqlite":
        path = folder / f"{secrets.token_hex(6)}.db"
        if like:
            shutil.copy(like, path)
        yield f"sqlite+aiosqlite:///{path}"
        return
    name = await create(like)
    try:
        yield address(name)
    finally:
        await drop(name)


def select(where: Path | str, sql: str, *values: Any) -> list[dict[str, Any]]:
    """Rows of a file or of a database on the PostgreSQL server, read on a connection of its own;
    none if there is no such table yet, or if it is locked. They look alike: instants are UTC
    milliseconds, and what is true is 1. ``?`` in the query stands for a value."""
    if isinstance(where, str):
        return at_once(_select(where, sql, values))
    try:
        connection = sqlite3.connect(f"file:{where}?mode=ro", uri=True)
    except sqlite3.OperationalError:  # there is none yet
        return []
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(sql, values)]
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


class Described(NamedTuple):
    """A column of a table; ``default`` as text, "" without."""

    table: str
    name: str
    type: str
    default: str


_SQLITE_COLUMNS = """
SELECT t.name AS "table", c.name, c.type, c.dflt_value AS "default"
FROM sqlite_master AS t JOIN pragma_table_xinfo(t.name) AS c
WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%'
"""
_POSTGRESQL_COLUMNS = """
SELECT relname AS "table", attname AS name, format_type(atttypid, atttypmod) AS type,
       pg_get_expr(adbin, adrelid) AS default
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
      AND attnum > 0
"""


def columns(where: Path | str) -> list[Described]:
    """All that is shown; X_kept is how X is stored."""
    rows = select(where, _POSTGRESQL_COLUMNS if isinstance(where, str) else _SQLITE_COLUMNS)
    return [
        Described(**row | {"default": (row["default"] or "").partition("::")[0].strip("'")})
        for row in rows
        if row["table"] != "alembic_version" and not row["name"].endswith("_kept")
    ]


async def _select(name: str, sql: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    first, *others = sql.split("?")
    numbered = first + "".join(f"${number}{part}" for number, part in enumerate(others, 1))
    try:
        connection = await asyncpg.connect(**server(), database=name)
    except asyncpg.InvalidCatalogNameError:
        return []
    try:
        # A gateway that has locked the table just now waits for the loop of whoever asks here.
        await connection.execute("SET lock_timeout = '100ms'")
        found = await connection.fetch(numbered, *values)
    except (asyncpg.UndefinedTableError, asyncpg.LockNotAvailableError):
        return []
    finally:
        await connection.close()
    return [{key: _plain(value) for key, value in row.items()} for row in found]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return int((value - _EPOCH) / _MILLISECOND)
    return int(value) if isinstance(value, bool | Decimal) else value
