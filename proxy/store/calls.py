"""The rows of ``api_calls``: page by page, or one request with all its attempts."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.filters import Filters
from proxy.store.pages import Row, newest, shown
from proxy.store.tables import api_calls


async def page(
    connection: AsyncConnection, filters: Filters, limit: int, cursor: str | None
) -> tuple[list[Row], str | None]:
    """The newest attempts first, and the cursor of the next page. Raises BadCursor."""
    rows, following = await newest(
        connection, api_calls, ("timestamp", "id"), filters, limit, cursor
    )
    return [shown(api_calls, row) for row in rows], following


async def request(connection: AsyncConnection, request_id: str) -> list[Row]:
    """The attempts of one request in order; none if it is not known."""
    query = (
        select(api_calls).where(api_calls.c.request_id == request_id).order_by(api_calls.c.attempt)
    )
    return [shown(api_calls, dict(row)) for row in (await connection.execute(query)).mappings()]
