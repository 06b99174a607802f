"""Calls whose price has changed: their rows, and the sums that count them, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.money import dollars, nano
from proxy.store import costs, rollups
from proxy.store.engine import Reader
from proxy.store.spans import Span
from proxy.store.tables import api_calls

CHUNK = 500
"""Rows of one transaction: neither readers nor a gateway's writer wait long for it."""

_MONEY = ("cost_estimate_usd", "list_cost_usd")


class Row(msgspec.Struct, frozen=True):
    """What of a call decides its price, and where it is summed."""

    id: int
    timestamp: int
    provider: str
    model: str
    key_id: str | None
    agent_name: str | None
    tool_name: str | None
    client_id: str | None
    endpoint: str
    status: str
    error_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    total_tokens: int | None
    cached_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    input_audio_tokens: int | None
    output_audio_tokens: int | None
    input_image_tokens: int | None
    output_image_tokens: int | None
    cost_source: str
    price_version: str | None
    cost_nano_usd: int | None
    list_cost_nano_usd: int | None


Change = tuple[Row, Row]
"""A call as its row says it, and as it is to be."""

_FIELDS = Row.__struct_fields__[:-2]
_COLUMNS = [api_calls.c[name] for name in (*_FIELDS, *_MONEY)]


async def count(connection: Reader, since: int, until: int) -> int:
    """How many calls ``page`` would give from an instant to before another, UTC milliseconds."""
    query = select(func.count()).where(*_which(Span(api_calls, since, until)))
    found = await connection.scalar(query)
    await connection.rollback()
    return found or 0


async def page(connection: Reader, since: int, until: int, last: Row | None) -> list[Row]:
    """The next calls behind ``last``, oldest first: those with tokens, whose cost the provider
    itself did not say."""
    span = Span(api_calls, since, until)
    after = None if last is None else {"timestamp": last.timestamp, "id": last.id}
    query = select(*_COLUMNS).where(*_which(span, after)).order_by(*span.key).limit(CHUNK)
    rows = [_row(values) for values in await connection.execute(query)]
    await connection.rollback()
    return rows


async def apply(engine: AsyncEngine, changes: Sequence[Change]) -> list[Change]:
    """Write the changes, and return those that were: a row that is gone, or that somebody else
    has priced anew in the meantime, is left alone."""
    if not changes:
        return []
    async with engine.begin() as connection:
        ids = [before.id for before, _ in changes]
        query = select(*_COLUMNS).where(api_calls.c.id.in_(ids)).with_for_update()
        now = {row.id: row for row in map(_row, await connection.execute(query))}
        done = [(before, after) for before, after in changes if now.get(before.id) == before]
        if done:
            await connection.execute(_UPDATE, [_values(after) for _, after in done])
            await _carry(connection, done)
    return done


async def _carry(connection: AsyncConnection, changes: Sequence[Change]) -> None:
    """Every sum that counts these calls takes up what has become different about them."""
    different: dict[costs.Key, costs.Difference] = {}
    for before, after in changes:
        nano, unpriced = different.get(costs.key(before), (0, 0))
        nano += (after.cost_nano_usd or 0) - (before.cost_nano_usd or 0)
        unpriced += costs.unpriced(after) - costs.unpriced(before)
        different[costs.key(before)] = nano, unpriced
    await costs.adjust(connection, different)
    await rollups.reprice(
        connection,
        [
            (msgspec.structs.asdict(before), before.cost_nano_usd, after.cost_nano_usd)
            for before, after in changes
        ],
    )


_NAMES = (*_MONEY, "cost_source", "price_version")
_UPDATE = (
    update(api_calls)
    .where(api_calls.c.id == bindparam("row_id"))
    .values({name: bindparam(f"new_{name}") for name in _NAMES})
)


def _which(span: Span, after: dict[str, Any] | None = None) -> list[ColumnElement[bool]]:
    told, known = api_calls.c.cost_source == "provider", api_calls.c.usage_source != "none"
    return [*span.conditions(after), ~told, known]


def _row(values: Sequence[Any]) -> Row:
    *plain, cost, listed = values
    named = dict(zip(_FIELDS, plain, strict=True))
    return Row(**named, cost_nano_usd=nano(cost), list_cost_nano_usd=nano(listed))


def _values(row: Row) -> dict[str, Any]:
    money = (row.cost_nano_usd, row.list_cost_nano_usd)
    values = (*map(dollars, money), row.cost_source, row.price_version)
    named = {f"new_{name}": value for name, value in zip(_NAMES, values, strict=True)}
    return {"row_id": row.id, **named}
