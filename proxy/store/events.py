"""``custom_events``: what programs count by themselves. One that comes again is left out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import custom_events
from proxy.store.upsert import insert_into


class EventRecord(msgspec.Struct, frozen=True):
    """Something that a program counts by itself, a row of ``custom_events``. ``metadata`` is a JSON
    object, ``request_id`` the call that it belongs to."""

    event_id: str
    timestamp: int
    name: str
    value: float | None = None
    request_id: str | None = None
    agent_name: str | None = None
    tool_name: str | None = None
    client_id: str | None = None
    metadata: str | None = None


async def save(connection: AsyncConnection, events: Sequence[EventRecord]) -> None:
    """Write the events."""
    if events:
        statement = insert_into(custom_events, connection.dialect.name).on_conflict_do_nothing()
        await connection.execute(statement, [msgspec.structs.asdict(event) for event in events])
