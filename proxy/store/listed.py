"""The models that the providers were last seen to list, from the table ``models``."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import models


async def listed(connection: AsyncConnection) -> list[tuple[str, str]]:
    """Provider and model of each."""
    query = select(models.c.provider, models.c.name).order_by(models.c.provider, models.c.name)
    return [(provider, name) for provider, name in await connection.execute(query)]
