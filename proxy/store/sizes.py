"""How much the database holds: rows and bytes by table, and since when."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.clock import rfc3339
from proxy.store.tables import api_calls, metadata

_SQLITE_TABLES = text(
    "SELECT s.tbl_name, sum(d.pageno) * p.page_size"
    " FROM pragma_page_size AS p, dbstat AS d JOIN sqlite_schema AS s ON s.name = d.name"
    " WHERE d.aggregate = 1 GROUP BY s.tbl_name"
)
"""By numbers of pages: dbstat's own sums of bytes overflow at 2 GiB."""
_SQLITE_WHOLE = text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
_POSTGRESQL_TABLES = text(
    "SELECT coalesce(whole.relname, part.relname), sum(pg_total_relation_size(part.oid))"
    " FROM pg_class AS part LEFT JOIN pg_inherits ON inhrelid = part.oid"
    " LEFT JOIN pg_class AS whole ON whole.oid = inhparent"
    " WHERE part.relkind = 'r' AND part.relnamespace = current_schema()::regnamespace GROUP BY 1"
)
_POSTGRESQL_WHOLE = text("SELECT pg_database_size(current_database())")


async def sizes(connection: AsyncConnection) -> dict[str, Any]:
    """``bytes`` of the database, ``oldest`` call, and ``tables`` with ``name, rows, bytes``.

    The bytes of a table (its indexes included) are None where SQLite was built without dbstat.
    """
    sqlite = connection.dialect.name == "sqlite"
    whole = await connection.scalar(_SQLITE_WHOLE if sqlite else _POSTGRESQL_WHOLE)
    by_table = await _bytes(connection, sqlite)
    tables = []
    for table in metadata.sorted_tables:
        rows = await connection.scalar(select(func.count()).select_from(table))
        tables.append({"name": str(table.name), "rows": rows, "bytes": by_table.get(table.name)})
    oldest = await connection.scalar(select(func.min(api_calls.c.timestamp)))
    return {"bytes": whole, "oldest": rfc3339(oldest), "tables": tables}


async def _bytes(connection: AsyncConnection, sqlite: bool) -> dict[str, int]:
    try:
        rows = await connection.execute(_SQLITE_TABLES if sqlite else _POSTGRESQL_TABLES)
    except OperationalError:
        return {}
    return {name: int(size) for name, size in rows}
