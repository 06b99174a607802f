"""``daily_costs``: running sums by day, written in the transaction of the rows they count.

Invocations, successes and failures count final rows (one for each request); tokens and dollars
count every attempt, since a failed one may be billed. Dollars are added as integer nano-dollars.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from functools import cache, lru_cache
from typing import Any, Protocol

from sqlalchemy import bindparam, case, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.bounds import MOST_SUM, saturated
from proxy.money import NANO, dollars
from proxy.store.columns import FLOAT, nano_usd
from proxy.store.tables import daily_costs
from proxy.store.upsert import Insert, insert_into
from proxy.types import CallRecord

Key = tuple[str, ...]
"""A day, and for whom and what it counts: the values of the table's key."""
Difference = tuple[int, int]
"""What is to be added to a day's nano-dollars, and to its unpriced calls."""

_KEY = ("date", "provider", "model_name", "agent_name", "tool_name", "client_id")
_DAY_MS = 86_400_000
_EPOCH = date(1970, 1, 1).toordinal()
_SUMS = (
    "invocations",
    "successes",
    "failures",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "unpriced_calls",
    "nano_usd",
)


class Counted(Protocol):
    """What of a call says where it is summed, and whether it lacks a price."""

    @property
    def timestamp(self) -> int: ...
    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def agent_name(self) -> str | None: ...
    @property
    def tool_name(self) -> str | None: ...
    @property
    def client_id(self) -> str | None: ...
    @property
    def status(self) -> str: ...
    @property
    def total_tokens(self) -> int | None: ...
    @property
    def cost_nano_usd(self) -> int | None: ...


async def add(connection: AsyncConnection, calls: Iterable[CallRecord]) -> None:
    """Add the calls, none of which was counted before, to their days."""
    sums: dict[Key, dict[str, int]] = {}
    for call in calls:
        of = key(call)
        counted = sums.get(of)
        if counted is None:
            counted = sums[of] = dict.fromkeys(_SUMS, 0)
        _count(counted, call)
    if not sums:
        return
    rows = [_row(of, sums[of]) for of in sorted(sums)]
    await connection.execute(_addition(connection.dialect.name), rows)


async def adjust(connection: AsyncConnection, different: Mapping[Key, Difference]) -> None:
    """Add differences to days that are there: calls that were counted have been priced anew."""
    rows = [
        {f"of_{name}": value for name, value in zip(_KEY, of, strict=True)}
        | {"more_nano": different[of][0], "more_unpriced": different[of][1]}
        for of in sorted(different)
        if any(different[of])
    ]
    if rows:
        await connection.execute(_ADJUSTMENT, rows)


_ADJUSTMENT = (
    update(daily_costs)
    .where(*(daily_costs.c[name] == bindparam(f"of_{name}") for name in _KEY))
    .values(
        total_cost_usd=(
            nano_usd(daily_costs.c.total_cost_usd) + bindparam("more_nano", type_=FLOAT)
        )
        / float(NANO),
        unpriced_calls=daily_costs.c.unpriced_calls + bindparam("more_unpriced"),
    )
)


@cache
def _addition(dialect: str) -> Insert:
    insert = insert_into(daily_costs, dialect)
    old, new = daily_costs.c, insert.excluded
    nano = nano_usd(old.total_cost_usd) + nano_usd(new.total_cost_usd)
    # As ``saturated``, but without the sum that may be too large for the database.
    sums = {
        name: case((old[name] > MOST_SUM - new[name], MOST_SUM), else_=old[name] + new[name])
        for name in _SUMS
        if name != "nano_usd"
    }
    return insert.on_conflict_do_update(
        index_elements=_KEY, set_={**sums, "total_cost_usd": nano / float(NANO)}
    )


def unpriced(call: Counted) -> bool:
    """Whether the call used tokens, as far as can be known, that have no price."""
    used = call.total_tokens is not None or call.status == "success"
    return used and call.cost_nano_usd is None


def key(call: Counted) -> Key:
    """The day that counts a call."""
    return (
        day(call.timestamp),
        call.provider,
        call.model,
        call.agent_name or "",
        call.tool_name or "",
        call.client_id or "",
    )


def day(ms: int) -> str:
    """The UTC day of an instant, ``YYYY-MM-DD``."""
    return _spelled(ms // _DAY_MS)


@lru_cache(32)
def _spelled(days: int) -> str:
    return date.fromordinal(_EPOCH + days).isoformat()


def _count(sums: dict[str, int], call: CallRecord) -> None:
    if call.is_final:
        sums["invocations"] += 1
        sums["successes"] += call.status == "success"
        sums["failures"] += call.status in ("error", "timeout")
    sums["input_tokens"] += call.input_tokens or 0
    sums["output_tokens"] += call.output_tokens or 0
    sums["total_tokens"] += call.total_tokens or 0
    sums["unpriced_calls"] += unpriced(call)
    sums["nano_usd"] += call.cost_nano_usd or 0


def _row(of: Key, sums: dict[str, int]) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(_KEY, of, strict=True))
    row |= {name: saturated(total) for name, total in sums.items()}
    row["total_cost_usd"] = dollars(row.pop("nano_usd"))
    return row
