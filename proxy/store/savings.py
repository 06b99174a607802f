"""The tokens that calls of some names used, summed by who served them: what a what-if goes by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from sqlalchemy import BigInteger, ColumnElement, Select, case, cast, func, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.columns import nano_usd
from proxy.store.filters import Filters, where
from proxy.store.tables import api_calls
from proxy.types import Usage

_c = api_calls.c
_TOKENS = tuple(name for name in Usage.__struct_fields__ if name in _c and name != "cost_nano_usd")


class Used(msgspec.Struct, frozen=True):
    """What the attempts of one name took that one target served.

    The input of each was longer than so many of the ``lengths`` that were asked for. ``nano_usd``
    is over those of which it is known, None if it is known of none; ``unpriced`` are the others.
    """

    requested_model: str
    provider: str
    model: str
    lengths: int
    attempts: int
    unpriced: int
    nano_usd: int | None
    usage: Usage


async def used(
    connection: AsyncConnection,
    filters: Filters,
    names: Collection[str],
    lengths: Sequence[int] = (),
) -> list[Used]:
    """The sums over the attempts that asked for one of the names and whose tokens are known.

    ``lengths`` are numbers of input tokens from which on a price is another; they rise.
    """
    if not names:
        return []
    rows = await connection.execute(_query(filters, names, lengths))
    return [_used(dict(row)) for row in rows.mappings()]


def _query(filters: Filters, names: Collection[str], lengths: Sequence[int]) -> Select[Any]:
    level: ColumnElement[int] = literal(0)
    for length in lengths:
        level = level + case((_c.input_tokens > length, 1), else_=0)
    named = (
        select(
            *(_c.requested_model, _c.provider, _c.model, level.label("lengths")),
            *(_c[name] for name in _TOKENS),
            cast(nano_usd(_c.cost_estimate_usd), BigInteger).label("nano_usd"),
        )
        .where(*where(api_calls, filters), _c.requested_model.in_(names))
        .where(_c.input_tokens.is_not(None), _c.output_tokens.is_not(None))
        .subquery()
        .c
    )
    by = (named.requested_model, named.provider, named.model, named.lengths)
    return (
        select(
            *by,
            func.count().label("attempts"),
            func.count().filter(named.nano_usd.is_(None)).label("unpriced"),
            *(func.sum(named[name]).label(name) for name in (*_TOKENS, "nano_usd")),
        )
        .group_by(*by)
        .order_by(*by)
    )


def _used(row: dict[str, Any]) -> Used:
    # PostgreSQL sums integers as decimals.
    sums = {name: None if row[name] is None else int(row[name]) for name in (*_TOKENS, "nano_usd")}
    return Used(
        row["requested_model"],
        row["provider"],
        row["model"],
        row["lengths"],
        row["attempts"],
        row["unpriced"],
        sums.pop("nano_usd"),
        Usage(**sums),
    )
