"""The groupings of ``/stats``: all calls, by provider, model, endpoint, kind of error or key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.filters import Filters
from proxy.store.metrics import DISTRIBUTIONS, NO_CALLS, NO_VALUES, Values, measure
from proxy.store.tables import api_calls

_c = api_calls.c

GROUPS: Mapping[str, tuple[Sequence[Column[Any]], Sequence[ColumnElement[bool]]]] = {
    "providers": ((_c.provider,), ()),
    "models": ((_c.provider, _c.model), ()),
    "endpoints": ((_c.endpoint,), ()),
    "errors": (
        (_c.provider, _c.error_reason),
        (_c.status != "success", _c.error_reason.is_not(None)),
    ),
}
"""By path: the columns to group by, and which rows. Errors are all rows with a reason, so that
``attempts`` counts failed attempts and the other measures say what became of the request."""

NOTHING: Values = {**NO_CALLS, **dict.fromkeys(DISTRIBUTIONS, NO_VALUES)}
"""The measures of a group without calls."""


UNKNOWN: dict[str, Values] = {
    "totals": dict.fromkeys(NO_CALLS),
    **dict.fromkeys(DISTRIBUTIONS, NO_VALUES),
}
"""What ``whole`` would tell if the database could be read."""


def blank(name: str) -> Values:
    """A row of one of ``GROUPS`` without calls."""
    return dict.fromkeys(column.name for column in GROUPS[name][0]) | NOTHING


async def whole(connection: AsyncConnection, filters: Filters) -> dict[str, Values]:
    """``totals`` and each distribution, over all rows that the filters let through."""
    (values,) = await measure(connection, filters)
    spread = {name: values.pop(name) for name in DISTRIBUTIONS}
    return {"totals": values, **spread}


async def grouped(connection: AsyncConnection, name: str, filters: Filters) -> list[Values]:
    """The groups of one of ``GROUPS`` with their measures, most requests first."""
    by, rows = GROUPS[name]
    return await measure(connection, filters, by, rows)


async def by_key(
    connection: AsyncConnection, filters: Filters
) -> dict[tuple[str, str | None], Values]:
    """The measures of each key, by provider and the key's name (None: a keyless provider)."""
    used = await measure(connection, filters, (_c.provider, _c.key_id), (_c.provider != "",))
    return {(row.pop("provider"), row.pop("key_id")): row for row in used}
