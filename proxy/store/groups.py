"""The groupings of ``/stats``: all calls, by provider, model, endpoint, kind of error or key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.filters import Filters
from proxy.store.metrics import DISTRIBUTIONS, NO_CALLS, NO_VALUES, Values, measure
from proxy.store.sources import Only


def _failed(c: Any) -> Sequence[ColumnElement[bool]]:
    return (c.status != "success",)


def somebodys(c: Any) -> Sequence[ColumnElement[bool]]:
    """Calls that were refused before a provider was chosen are nobody's."""
    return (c.provider != "",)


GROUPS: Mapping[str, tuple[Sequence[str], Only | None]] = {
    "providers": (("provider",), None),
    "models": (("provider", "model"), None),
    "endpoints": (("endpoint",), None),
    "errors": (("provider", "error_reason"), _failed),
}
"""By path: the dimensions to group by, and which rows. Errors are all that did not succeed, so that
``attempts`` counts failed attempts and the other measures say what became of the request. A program
that told of one may have given no reason."""

NOTHING: Values = {**NO_CALLS, **dict.fromkeys(DISTRIBUTIONS, NO_VALUES)}
"""The measures of a group without calls."""


UNKNOWN: dict[str, Values] = {
    "totals": dict.fromkeys(NO_CALLS),
    **dict.fromkeys(DISTRIBUTIONS, NO_VALUES),
}
"""What ``whole`` would tell if the database could be read."""


def blank(name: str) -> Values:
    """A row of one of ``GROUPS`` without calls."""
    return dict.fromkeys(GROUPS[name][0]) | NOTHING


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
    used = await measure(connection, filters, ("provider", "key_id"), somebodys)
    return {(row.pop("provider"), row.pop("key_id")): row for row in used}
