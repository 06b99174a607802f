"""``daily_costs``: running sums by day, written in the transaction of the rows they count.

Invocations, successes and failures count final rows (one for each request); tokens and dollars
count every attempt, since a failed one may be billed. Dollars are added as integer nano-dollars.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from functools import cache
from typing import Any

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import daily_costs
from proxy.store.upsert import Insert, insert_into
from proxy.types import CallRecord

_KEY = ("date", "provider", "model_name", "agent_name", "tool_name", "client_id")
_DAY_MS = 86_400_000
_EPOCH = date(1970, 1, 1).toordinal()
_NANO = 1e9
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


async def add(connection: AsyncConnection, calls: Iterable[CallRecord]) -> None:
    """Add the calls, none of which was counted before, to their days."""
    sums: dict[tuple[str, ...], dict[str, int]] = {}
    for call in calls:
        _count(sums.setdefault(_key(call), dict.fromkeys(_SUMS, 0)), call)
    if not sums:
        return
    rows = [_row(key, sums[key]) for key in sorted(sums)]
    await connection.execute(_addition(connection.dialect.name), rows)


@cache
def _addition(dialect: str) -> Insert:
    insert = insert_into(daily_costs, dialect)
    old, new = daily_costs.c, insert.excluded
    dollars = func.round(old.total_cost_usd * _NANO) + func.round(new.total_cost_usd * _NANO)
    return insert.on_conflict_do_update(
        index_elements=_KEY,
        set_={name: old[name] + new[name] for name in _SUMS if name != "nano_usd"}
        | {"total_cost_usd": dollars / _NANO},
    )


def unpriced(call: CallRecord) -> bool:
    """Whether the call used tokens, as far as can be known, that have no price."""
    used = call.total_tokens is not None or call.status == "success"
    return used and call.cost_nano_usd is None


def _key(call: CallRecord) -> tuple[str, ...]:
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
    return date.fromordinal(_EPOCH + ms // _DAY_MS).isoformat()


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


def _row(key: tuple[str, ...], sums: dict[str, int]) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(_KEY, key, strict=True)) | sums
    row["total_cost_usd"] = row.pop("nano_usd") / _NANO
    return row
