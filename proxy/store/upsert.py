"""INSERT ... ON CONFLICT, which both databases know and SQLAlchemy spells once for each.

A statement takes a millisecond to put together, so those who use it make it once a dialect.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

_TURN = """
SELECT set_config('idle_in_transaction_session_timeout', '10s', true),
       pg_advisory_xact_lock(1953459310)
"""

Insert = postgresql.Insert | sqlite.Insert


def insert_into(table: Table, dialect: str) -> Insert:
    """An insert that can say ON CONFLICT in the dialect, "sqlite" or "postgresql"."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


async def in_turn(connection: AsyncConnection) -> None:
    """Let one transaction at a time write what all of them write; this one until it ends.

    They wait for each other at today's costs anyway. In turn they cannot deadlock, whatever order
    they write in, and what one has read stays true until it has written. A node that hangs loses
    its turn. SQLite has one writer at a time by itself.
    """
    if connection.dialect.name == "postgresql":
        await connection.exec_driver_sql(_TURN)


async def replace(
    connection: AsyncConnection, table: Table, key: tuple[str, ...], rows: list[dict[str, Any]]
) -> None:
    """Write rows that are the whole truth of their key: what was there goes."""
    if rows:
        statement = _replacement(connection.dialect.name, table, key, tuple(rows[0]))
        await connection.execute(statement, rows)


@cache
def _replacement(
    dialect: str, table: Table, key: tuple[str, ...], columns: tuple[str, ...]
) -> Insert:
    insert = insert_into(table, dialect)
    new = {name: insert.excluded[name] for name in columns if name not in key}
    return insert.on_conflict_do_update(index_elements=key, set_=new)
