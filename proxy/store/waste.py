"""What was spent for nothing: tokens, time and dollars of attempts that were of no use.

An attempt is of one kind: ``discarded`` if it failed and its request then succeeded elsewhere,
``failed`` if its request did not, ``abandoned`` if the client left. What was never sent to a
provider is none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, case, exists, func, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.money import dollars
from proxy.store.columns import nano_usd
from proxy.store.filters import Filters, where
from proxy.store.metrics import Values
from proxy.store.sources import total
from proxy.store.tables import api_calls

KINDS = ("failed", "abandoned", "discarded")
_TOKENS = ("input_tokens", "output_tokens", "total_tokens")

_c = api_calls.c
_end = api_calls.alias("last").c
_KIND = case(
    (_c.status == "cancelled", "abandoned"),
    (_c.is_final.is_(True), "failed"),  # by far the most: nobody need look for another row
    (
        exists().where(_end.request_id == _c.request_id, _end.status == "success"),
        "discarded",
    ),
    else_="failed",
)
_USELESS = (
    # Written out, not bound: or PostgreSQL could not know that the index of these rows will do.
    _c.status != literal("success", literal_execute=True),
    _c.status.in_(("error", "timeout", "cancelled")),
    # Of a request that was over before any attempt, the whole duration alone is known.
    or_(_c.response_time_ms.is_not(None), _c.total_duration_ms.is_(None)),
)

NOTHING: Values = {
    **dict.fromkeys(("attempts", *_TOKENS), 0),
    **{"time_ms": 0.0, "cost_usd": 0.0, "unpriced": 0},
}
"""The measures of no attempts."""
NO_KINDS: Values = dict.fromkeys(("all", *KINDS), NOTHING)


async def waste(connection: AsyncConnection, filters: Filters) -> tuple[Values, list[Values]]:
    """The measures of ``all`` and of each of ``KINDS``, in total and by provider and model.

    What cost most comes first, then what took longest. A sum is over the attempts of which the
    value is known, and None if it is known of none; ``unpriced`` counts those without a cost.
    """
    rows = [dict(row) for row in (await connection.execute(_query(filters))).mappings()]
    groups: dict[tuple[str, str], list[Values]] = {}
    for row in rows:
        groups.setdefault((row["provider"], row["model"]), []).append(row)
    data = [
        {"provider": provider, "model": model, **_by_kind(group)}
        for (provider, model), group in groups.items()
    ]
    data.sort(key=lambda row: (row["all"]["cost_usd"] or 0, row["all"]["time_ms"] or 0))
    return _by_kind(rows), data[::-1]


def _query(filters: Filters) -> Select[Any]:
    useless = (
        select(
            *(_c.provider, _c.model, _KIND.label("kind")),
            *(_c[name] for name in _TOKENS),
            _c.response_time_ms.label("time_ms"),
            nano_usd(_c.cost_estimate_usd).label("nano_usd"),
        )
        .where(*where(api_calls, filters), *_USELESS)
        .subquery()
        .c
    )
    by = (useless.provider, useless.model, useless.kind)
    summed = [*_TOKENS, "time_ms", "nano_usd"]
    return (
        select(
            *by,
            func.count().label("attempts"),
            *(total(useless[name]).label(name) for name in summed),
            func.count().filter(useless.nano_usd.is_(None)).label("unpriced"),
        )
        .group_by(*by)
        .order_by(*by)
    )


def _by_kind(rows: Sequence[Values]) -> Values:
    of_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    return {"all": _sum(rows), **{kind: _sum(some) for kind, some in of_kind.items()}}


def _sum(rows: Sequence[Mapping[str, Any]]) -> Values:
    if not rows:
        return NOTHING
    return {
        "attempts": sum(row["attempts"] for row in rows),
        **{name: _known(rows, name) for name in _TOKENS},
        "time_ms": _known(rows, "time_ms"),
        "cost_usd": dollars(_known(rows, "nano_usd")),
        "unpriced": sum(row["unpriced"] for row in rows),
    }


def _known(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Their sum, as far as it is known."""
    values = [row[name] for row in rows if row[name] is not None]
    if not values:
        return None
    return sum(values) if name == "time_ms" else int(sum(values))
