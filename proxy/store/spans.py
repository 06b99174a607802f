"""The rows of a table in a window of time, page by page: millions of them need no memory.

Each page is a question of its own, so that nothing is held between two: no snapshot that keeps
SQLite's WAL from being reset, and no transaction that keeps PostgreSQL from cleaning up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Table, func, literal, select, tuple_

from proxy.store import costs
from proxy.store.engine import Reader
from proxy.store.pages import Row
from proxy.store.tables import call_contents

PAGE = 1000
_LARGE = {call_contents: 50}
"""Tables whose rows are so large that a page has fewer of them."""

_INSTANTS = (
    *("timestamp", "window_start", "last_updated", "updated_at", "last_seen", "date"),
    *("created_at", "until", "start", "first_seen"),
)


class Span(NamedTuple):
    """The rows of a table from ``since`` to before ``until``, in UTC milliseconds.

    The days of a table of days count whole, first and last included.
    """

    table: Table
    since: int
    until: int

    @property
    def key(self) -> list[Column[Any]]:
        """The columns that order the rows: when, then what makes them unique."""
        at = self.at
        return [at, *(column for column in self.table.primary_key if column is not at)]

    @property
    def at(self) -> Column[Any]:
        """The column that the window is about. An index leads with it wherever rows are many."""
        return next(self.table.c[name] for name in _INSTANTS if name in self.table.c)

    def conditions(self, after: Row | None = None) -> list[ColumnElement[bool]]:
        """What the rows behind ``after`` fulfil; None: all of the window."""
        first, last = self.since, self.until - 1
        low, high = (costs.day(first), costs.day(last)) if self.at.name == "date" else (first, last)
        if after is None:
            begin = self.at >= literal(low, self.at.type)
        else:
            # Instead of the lower end, not beside it: SQLite would seek by only one of them.
            values = (literal(after[column.name], column.type) for column in self.key)
            begin = tuple_(*self.key) > tuple_(*values)
        return [begin, self.at <= literal(high, self.at.type)]


async def count(connection: Reader, span: Span) -> int:
    """How many rows there are now."""
    query = select(func.count()).select_from(span.table).where(*span.conditions())
    found = await connection.scalar(query)
    await connection.rollback()
    return found or 0


async def page(
    connection: Reader, span: Span, after: Row | None = None, size: int | None = None
) -> list[Row]:
    """The next rows behind ``after``, oldest first; none if there are no more."""
    size = size or _LARGE.get(span.table, PAGE)
    query = select(span.table).where(*span.conditions(after)).order_by(*span.key).limit(size)
    rows = [dict(row) for row in (await connection.execute(query)).mappings()]
    await connection.rollback()
    return rows
