"""Errors of one kind as one: the rows of ``errors`` by their fingerprint."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.clock import rfc3339
from proxy.store.filters import Filters, where
from proxy.store.pages import Row
from proxy.store.tables import errors

BLANK: Row = dict.fromkeys(
    (
        *("fingerprint", "count", "first_seen", "last_seen", "provider", "model", "reason"),
        *("severity", "http_status", "message", "request_id"),
    )
)
"""A row without values."""


async def fingerprints(connection: AsyncConnection, filters: Filters) -> list[Row]:
    """Each with how often and when it was seen in the window, the most frequent first.

    What differs within one is the newest error's: ``message`` and ``request_id`` are a sample.
    ``reason`` is the type of the exception where the fault was our own; it has no provider.
    """
    c = errors.c
    seen = (
        select(
            *(c.fingerprint, func.count().label("count"), func.max(c.id).label("newest")),
            *(func.min(c.timestamp).label("first_seen"), func.max(c.timestamp).label("last_seen")),
        )
        .where(*where(errors, filters))
        .group_by(c.fingerprint)
        .subquery()
    )
    query = (
        select(
            *(seen.c.fingerprint, seen.c["count"], seen.c.first_seen, seen.c.last_seen),
            *(c.provider, c.model_name.label("model"), c.error_type.label("reason")),
            *(c.severity, c.http_status, c.error_message.label("message"), c.request_id),
        )
        .join_from(seen, errors, c.id == seen.c.newest)
        .order_by(seen.c["count"].desc(), seen.c.last_seen.desc(), seen.c.fingerprint)
    )
    return [
        {**row, "first_seen": rfc3339(row["first_seen"]), "last_seen": rfc3339(row["last_seen"])}
        for row in (await connection.execute(query)).mappings()
    ]
