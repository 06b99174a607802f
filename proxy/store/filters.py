"""Which rows a question is about: a window of time and the values of some columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, FromClause, func

from proxy.store import costs
from proxy.store.tags import tagged

_COLUMNS = {
    "provider": ("provider",),
    "model": ("model", "model_name"),
    "key": ("key_id",),
    "status": ("status",),
    "client": ("client_id",),
    "agent": ("agent_name",),
    "tool": ("tool_name",),
    "endpoint": ("endpoint",),
    "user": ("user_id",),
    "session": ("session_id",),
}
_INSTANTS = ("timestamp", "window_start")


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """A window, from ``start`` to before ``end`` in UTC milliseconds, and what else must hold.

    Of several values of a column one must match; an empty tuple lets everything through. Of the
    tags of a row one must match.
    ``min_latency_ms`` is about the whole request where that is known, else about the attempt.
    """

    start: int
    end: int
    provider: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    client: tuple[str, ...] = ()
    agent: tuple[str, ...] = ()
    tool: tuple[str, ...] = ()
    endpoint: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    session: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    min_latency_ms: float | None = None
    min_tokens: int | None = None

    @property
    def of_rows(self) -> bool:
        """Whether only the rows themselves can tell: sums of calls do not know their users, their
        tags, or how long each took."""
        least = self.min_latency_ms is not None or self.min_tokens is not None
        return bool(self.user or self.session or self.tag or least)


def where(table: FromClause, filters: Filters) -> list[ColumnElement[bool]]:
    """The filters' conditions on a table; those about columns that it lacks do not apply.

    A table of current state has no window, and days count whole, first and last included.
    """
    conditions: list[ColumnElement[bool]] = []
    for instant in _INSTANTS:
        if instant in table.c:
            conditions += [table.c[instant] >= filters.start, table.c[instant] < filters.end]
    if "date" in table.c:
        first, last = costs.day(filters.start), costs.day(max(filters.start, filters.end - 1))
        conditions.append(table.c.date.between(first, last))
    for name, columns in _COLUMNS.items():
        values = getattr(filters, name)
        conditions += [table.c[c].in_(values) for c in columns if values and c in table.c]
    if filters.tag and "tags" in table.c:
        conditions.append(tagged(table.c.tags, filters.tag))
    if filters.min_latency_ms is not None and "total_duration_ms" in table.c:
        latency = func.coalesce(table.c.total_duration_ms, table.c.response_time_ms)
        conditions.append(latency >= filters.min_latency_ms)
    if filters.min_tokens is not None and "total_tokens" in table.c:
        conditions.append(table.c.total_tokens >= filters.min_tokens)
    return conditions


def admits(filters: Filters, call: Mapping[str, Any]) -> bool:
    """Whether a row of ``api_calls`` that is in memory, as it is shown, passes all but the
    window."""
    if filters.tag and not set(filters.tag) & set(call["tags"] or ()):
        return False
    for name, columns in _COLUMNS.items():
        values = getattr(filters, name)
        if values and call[columns[0]] not in values:
            return False
    least = filters.min_latency_ms
    if least is not None:
        whole = call["total_duration_ms"]
        latency = call["response_time_ms"] if whole is None else whole
        if latency is None or latency < least:
            return False
    tokens = call["total_tokens"]
    return filters.min_tokens is None or (tokens is not None and tokens >= filters.min_tokens)
