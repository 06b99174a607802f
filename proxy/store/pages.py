"""Lists, page by page. A cursor names the last row seen, so that new rows change no later page."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Table, Text, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.clock import rfc3339
from proxy.store.columns import Instant
from proxy.store.filters import Filters, where

Row = dict[str, Any]

_LARGEST = 253_402_300_799_999
"""The last millisecond of the year 9999; no id comes near it either."""


class BadCursor(Exception):
    """The cursor was not made by this list."""


async def newest(
    connection: AsyncConnection,
    table: Table,
    key: Sequence[str],
    filters: Filters | None,
    limit: int,
    cursor: str | None,
) -> tuple[list[Row], str | None]:
    """Up to ``limit`` rows, highest key first, and the cursor of the next page (None: no more).

    ``key`` are columns that together are unique; the first is the instant that the window of the
    filters is about, if the table has one. Raises BadCursor.
    """
    columns = [table.c[name] for name in key]
    last = None if cursor is None else decode(cursor, columns)
    if filters is not None and last is not None and isinstance(last[0], int):
        # SQLite begins at the end of the window, and would pass by all that came before.
        filters = msgspec.structs.replace(filters, end=min(filters.end, last[0] + 1))
    query = select(table).where(*([] if filters is None else where(table, filters)))
    if last is not None:
        values = (literal(v, c.type) for c, v in zip(columns, last, strict=True))
        query = query.where(tuple_(*columns) < tuple_(*values))
    query = query.order_by(*(column.desc() for column in columns)).limit(limit + 1)
    found = await connection.execute(query)
    names = tuple(found.keys())  # of mappings() each row would look up each name
    rows = [dict(zip(names, row, strict=True)) for row in found]
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], encode([rows[limit - 1][name] for name in key])


def shown(table: Table, row: Row) -> Row:
    """A row as JSON shows it: instants in RFC 3339, ``metadata`` and ``tags`` as what they are."""
    values = dict(row)
    for name in _instants(table):
        values[name] = rfc3339(values[name])
    for name in ("metadata", "tags"):
        if values.get(name) is not None:
            values[name] = _parsed(values[name])
    return values


def blank(table: Table) -> Row:
    """A row without values."""
    return dict.fromkeys(table.c.keys())


@cache
def _instants(table: Table) -> list[str]:
    return [column.name for column in table.c if isinstance(column.type, Instant)]


def encode(values: Sequence[Any]) -> str:
    """A cursor: text without meaning for its reader."""
    return base64.urlsafe_b64encode(msgspec.json.encode(values)).decode().rstrip("=")


def decode(cursor: str, columns: Sequence[ColumnElement[Any]]) -> list[Any]:
    """The values of a cursor, one for each column; BadCursor if it does not hold them."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        values = msgspec.json.decode(base64.urlsafe_b64decode(padded))
    except (binascii.Error, ValueError):
        raise BadCursor from None
    if not isinstance(values, list) or len(values) != len(columns):
        raise BadCursor
    for value, column in zip(values, columns, strict=True):
        if type(value) is not (str if isinstance(column.type, Text) else int):
            raise BadCursor
        if isinstance(value, int) and not 0 <= value <= _LARGEST:
            raise BadCursor
    return values


def _parsed(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
