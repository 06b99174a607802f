"""``journal_positions``: how far each segment of the journal has been taken in.

A position moves in the transaction of the rows that it counts, and only from where its mover
believes it to be. So nothing is taken in twice, not even by two that do it at once, or by one that
never heard whether its last commit happened.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.address import StoreError
from proxy.store.tables import journal_positions
from proxy.store.upsert import insert_into

Moves = Mapping[str, tuple[int, int | None]]
"""For each segment: from which byte to which; to None: the segment is gone."""


async def load(connection: AsyncConnection) -> dict[str, int]:
    """The position of every segment that something was taken from."""
    columns = select(journal_positions.c.segment, journal_positions.c.position)
    return {segment: position for segment, position in await connection.execute(columns)}


async def move(connection: AsyncConnection, moves: Moves, now: int) -> None:
    """Move the positions. StoreError if one of them is not where it is said to be."""
    table = journal_positions
    for segment, (start, end) in sorted(moves.items()):
        here = (table.c.segment == segment, table.c.position == start)
        if end is None:
            await connection.execute(delete(table).where(*here))
            continue
        if start == 0:
            first = insert_into(table, connection.dialect.name).values(
                segment=segment, position=end, updated_at=now
            )
            done = await connection.execute(first.on_conflict_do_nothing())
        else:
            done = await connection.execute(
                update(table).where(*here).values(position=end, updated_at=now)
            )
        if done.rowcount != 1:
            raise StoreError(f"segment {segment} of the journal has been taken in already")
