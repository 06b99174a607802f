"""``running_figures``: what a figure that runs on from batch to batch is made of, such as counts.

It is read and written in the transaction of the rows that it counts, so that all who write to one
database, be it nodes or programs beside the gateway, add to the same figure. What nothing was added
to for an hour is let go; it can be had again from the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import running_figures
from proxy.store.upsert import replace

_LIFE_MS = 3_600_000
_LOAD = "SELECT name, state FROM running_figures WHERE name IN (SELECT {names})"
_NAMES = {
    "sqlite": "value FROM json_each(?)",
    "postgresql": "jsonb_array_elements_text(CAST($1 AS text)::jsonb)",
}

Key = tuple[str | int, ...]
"""What the figure is, and of what."""
States = Mapping[Key, bytes]
"""The states of figures, each a JSON text."""


async def load(connection: AsyncConnection, keys: Iterable[Key]) -> States:
    """The states that there are."""
    names = {_name(key): key for key in keys}
    if not names:
        return {}
    query = _LOAD.format(names=_NAMES[connection.dialect.name])
    asked = msgspec.json.encode(list(names)).decode()
    found = await connection.exec_driver_sql(query, (asked,))
    return {names[row.name]: row.state.encode() for row in found}


async def save(connection: AsyncConnection, old: States, new: States, now: int) -> None:
    """Write the ``new`` states at an instant in UTC milliseconds, ``old`` having been loaded."""
    rows = [
        {"name": _name(key), "state": state.decode(), "until": now + _LIFE_MS}
        for key, state in new.items()
    ]
    await replace(connection, running_figures, ("name",), rows)
    if new.keys() - old.keys():  # who adds takes away
        await connection.execute(delete(running_figures).where(running_figures.c.until < now))


def _name(key: Key) -> str:
    return msgspec.json.encode(key).decode()
