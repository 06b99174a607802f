"""What was used of late, from the rows: so that counts go on where a restart has cut them off."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import case, func, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.errors import ErrorReason
from proxy.store.buckets import bucket
from proxy.store.sets import TOLD
from proxy.store.sources import total
from proxy.store.tables import api_calls
from proxy.store.tags import each

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
        .group_by(*owner, bucket(table.timestamp, _GRAINS[seconds]))
        .order_by(oldest)
    )
    rows = await connection.execute(query)
    return [
        Used(provider, key, account, model, at, int(requests), int(tokens))
        for provider, key, account, model, at, requests, tokens in rows
    ]


class UsedBy(NamedTuple):
    """Calls of a client, for a user or with a tag, made about ``timestamp`` (UTC milliseconds)."""

    name: str
    timestamp: int
    requests: int
    tokens: int


async def used_by(
    connection: AsyncConnection, scope: str, names: Collection[str], seconds: int, now: int
) -> Sequence[UsedBy]:
    """What these (``scope``: client, user or tag) used in the last ``seconds`` (60, 3,600 or
    86,400), the oldest first.

    A request is one whatever it took; its tokens are those of all its attempts.
    """
    table = api_calls.c
    tag = each(table.tags)
    named = {"client": table.client_id, "user": table.user_id, "tag": tag.c.value}[scope]
    oldest = func.min(table.timestamp)
    requests = func.count(case((table.is_final, 1)))
    query = (
        select(named, oldest, requests, func.coalesce(func.sum(table.total_tokens), 0))
        .select_from(api_calls.join(tag, true()) if scope == "tag" else api_calls)
        .where(
            table.timestamp >= now - seconds * 1000,
            table.status != "rejected",
            table.endpoint.not_in(TOLD),
            # Who left before a provider was called used nothing.
            (table.status != "cancelled") | table.response_time_ms.is_not(None),
            named.in_(names),
        )
        .group_by(named, bucket(table.timestamp, _GRAINS[seconds]))
        .order_by(oldest)
    )
    rows = await connection.execute(query)
    return [UsedBy(name, at, int(made), int(tokens)) for name, at, made, tokens in rows]
