"""``call_contents``: prompts and answers, which stand in no list and go before their calls."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.content import ContentRecord
from proxy.store.pages import Row, shown
from proxy.store.tables import call_contents
from proxy.store.upsert import Insert, insert_into


async def save(connection: AsyncConnection, contents: Iterable[ContentRecord]) -> None:
    """Write them, each once."""
    rows = [msgspec.structs.asdict(content) for content in contents]
    if rows:
        await connection.execute(_insert(connection.dialect.name), rows)


async def request(connection: AsyncConnection, request_id: str) -> Row | None:
    """What one request asked and got, as it is shown: JSON as such, other texts as they are. None
    if that is not kept."""
    query = (
        select(call_contents)
        .where(call_contents.c.request_id == request_id)
        .order_by(call_contents.c.attempt.desc())
        .limit(1)
    )
    found = (await connection.execute(query)).mappings().first()
    if found is None:
        return None
    row = shown(call_contents, {name: value for name, value in found.items() if name != "id"})
    return {**row, **{side: _document(row[side]) for side in ("request", "answer")}}


def _document(text: str | None) -> msgspec.Raw | str | None:
    """JSON as it was written, to the digit."""
    if text is None:
        return None
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return msgspec.Raw(text.encode())


@cache
def _insert(dialect: str) -> Insert:
    return insert_into(call_contents, dialect).on_conflict_do_nothing()
