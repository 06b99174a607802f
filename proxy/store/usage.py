"""What was used of late, from the rows: so that counts go on where a restart has cut them off."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.errors import ErrorReason
from proxy.store.sources import total
from proxy.store.tables import api_calls

_GRAINS = {60: 1000, 3600: 60_000, 86_400: 60_000}
"""By the seconds of a window, the milliseconds whose calls are counted as one."""


class Used(NamedTuple):
    """Calls made about ``timestamp`` (UTC milliseconds). ``key_id`` None: without a key."""

    provider: str
    key_id: str | None
    account: str | None
    model: str
    timestamp: int
    requests: int
    tokens: int


async def used(connection: AsyncConnection, seconds: int, now: int) -> Sequence[Used]:
    """The calls of the last ``seconds`` (60 or 86,400), the oldest first.

    To all providers at once: asked for one of them, SQLite would look at all that it ever did.
    """
    table = api_calls.c
    oldest = func.min(table.timestamp)
    owner = (table.provider, table.key_id, table.account, table.model)
    query = (
        select(*owner, oldest, func.count(), func.coalesce(total(table.total_tokens), 0))
        .where(
            table.timestamp >= now - seconds * 1000,
            table.status != "rejected",
            # Who is not let in uses up nothing.
            func.coalesce(table.error_reason, "") != ErrorReason.AUTHENTICATION.value,
        )
        .group_by(*owner, _grain(connection, _GRAINS[seconds]))
        .order_by(oldest)
    )
    rows = await connection.execute(query)
    return [
        Used(provider, key, account, model, at, int(requests), int(tokens))
        for provider, key, account, model, at, requests, tokens in rows
    ]


class UsedByClient(NamedTuple):
    """A client's calls made about ``timestamp`` (UTC milliseconds)."""

    client_id: str
    timestamp: int
    requests: int
    tokens: int


async def used_by_clients(
    connection: AsyncConnection, clients: Collection[str], seconds: int, now: int
) -> Sequence[UsedByClient]:
    """What these used in the last ``seconds`` (60, 3,600 or 86,400), the oldest first.

    A request is one whatever it took; its tokens are those of all its attempts.
    """
    table = api_calls.c
    oldest = func.min(table.timestamp)
    requests = func.count(case((table.is_final, 1)))
    query = (
        select(table.client_id, oldest, requests, func.coalesce(func.sum(table.total_tokens), 0))
        .where(
            table.timestamp >= now - seconds * 1000,
            table.status != "rejected",
            table.client_id.in_(clients),
        )
        .group_by(table.client_id, _grain(connection, _GRAINS[seconds]))
        .order_by(oldest)
    )
    rows = await connection.execute(query)
    return [UsedByClient(client, at, int(made), int(tokens)) for client, at, made, tokens in rows]


def _grain(connection: AsyncConnection, milliseconds: int) -> ColumnElement[int]:
    if connection.dialect.name == "postgresql":
        unit = "second" if milliseconds == 1000 else "minute"
        return func.date_trunc(unit, api_calls.c.timestamp)
    return api_calls.c.timestamp // milliseconds
