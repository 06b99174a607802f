"""Who spends most: the first of the groups of one or two dimensions, and all others as one.

Sums are exact, also those of the others, whose percentiles are those of their calls. A call counts
once for each of its tags; beside that, the groups and the others are all calls. Users, tags and
sessions are known of rows alone, so that what is asked of them is of the rows that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import sources
from proxy.store.coverage import Piece, cover
from proxy.store.filters import Filters
from proxy.store.groups import NOTHING
from proxy.store.metrics import (
    DISTRIBUTIONS,
    NO_VALUES,
    REST,
    Key,
    Sums,
    Values,
    added_up,
    distributions,
    join,
    told,
    whole,
)
from proxy.store.sources import COUNTS, SUMS, TAG, Among, Asked

DIMENSIONS: Mapping[str, str] = {
    "provider": "provider",
    "model": "model",
    "key": "key_id",
    "client": "client_id",
    "user": "user_id",
    "tag": TAG,
    "agent": "agent_name",
    "tool": "tool_name",
    "endpoint": "endpoint",
    "status": "status",
    "session": "session_id",
}
"""What can be grouped by, and the column of each."""

ORDERS: Mapping[str, str] = {
    "cost_usd": "nano_usd",
    **{name: name for name in ("requests", "attempts", "errors")},
    **{name: name for name in ("input_tokens", "output_tokens", "total_tokens")},
}
"""What the groups can be ordered by, and the sum behind each."""

_MEASURES = (*COUNTS, *SUMS)


def blank(by: Sequence[str]) -> Values:
    """A group without calls."""
    return {**dict.fromkeys(by), "other": False, **NOTHING}


async def ranked(
    connection: AsyncConnection, filters: Filters, by: Sequence[str], order: str, top: int
) -> list[Values]:
    """At most ``top`` groups with their measures, the highest first, and what is left with
    ``other`` True and no names.

    ``by`` are names of ``DIMENSIONS``, ``order`` is one of ``ORDERS``; unknown comes last.
    """
    asked = Asked(filters, [DIMENSIONS[name] for name in by])
    pieces = await cover(connection, filters, by=asked.by)
    first = [ORDERS[order], "requests", "attempts"]
    if any(piece.is_rolled for piece in pieces):
        found = await added_up(connection, asked, pieces)
        best, rest = _best(found, first, top)
    else:
        best, rest = await _best_of_rows(connection, asked, pieces, first, top)
    shares = await distributions(
        connection, asked, pieces, DISTRIBUTIONS, None if rest is None else best
    )

    def row(key: Key, held: Sums) -> Values:
        names = key or (None,) * len(by)
        spread = {name: shares[name].get(key, NO_VALUES) for name in DISTRIBUTIONS}
        return {**dict(zip(by, names, strict=True)), "other": key == REST, **told(held), **spread}

    rows = [row(key, held) for key, held in best.items()]
    return rows if rest is None else [*rows, row(REST, rest)]


def _best(
    found: Mapping[Key, Sums], order: Sequence[str], top: int
) -> tuple[dict[Key, Sums], Sums | None]:
    """The first groups in order, and the sums of the others."""
    places = [_MEASURES.index(name) for name in order]

    def rank(key: Key) -> Any:
        values = [found[key][place] for place in places]
        highest = [(value is None, -(value or 0)) for value in values]
        return highest, [(part is None, part) for part in key]

    keys = sorted(found, key=rank)
    rest: dict[Key, Sums] = {}
    for key in keys[top:]:
        join(rest, {REST: found[key]})
    return {key: found[key] for key in keys[:top]}, rest.get(REST)


async def _best_of_rows(
    connection: AsyncConnection,
    asked: Asked,
    pieces: Sequence[Piece],
    order: Sequence[str],
    top: int,
) -> tuple[dict[Key, Sums], Sums | None]:
    """The same by the database, which may have a million of sessions to choose from. Calls alone
    are always one piece, or none."""
    best: dict[Key, Sums] = {}
    for piece in pieces:
        query = sources.sums(piece, asked)
        measures = query.selected_columns
        highest = [measures[name].desc().nulls_last() for name in order]
        names = [measures[name].asc().nulls_last() for name in asked.by]
        found = await connection.execute(query.order_by(*highest, *names).limit(top + 1))
        for row in found:
            best[tuple(row[: asked.width])] = whole(row[asked.width :])
        if len(best) > top:
            best.popitem()
            others = asked._replace(by=(), among=Among(asked.by, [*best], inside=False))
            return best, (await added_up(connection, others, pieces))[REST]
    return best, None
