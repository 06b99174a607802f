"""The other tables as ``/stats`` shows them: limits, credits, health, speeds, costs, machine,
events."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.clock import now_ms
from proxy.store import credits
from proxy.store.filters import Filters
from proxy.store.pages import Row, newest, shown
from proxy.store.tables import (
    api_credits,
    custom_events,
    daily_costs,
    gpu_metrics,
    provider_health,
    provider_health_events,
    rate_limits,
    system_metrics,
    tps_metrics,
)

TABLES = {
    "rate-limits": (rate_limits, ("last_updated", "id")),
    "health": (provider_health, ("updated_at", "id")),
    "health/events": (provider_health_events, ("timestamp", "id")),
    "tps": (tps_metrics, ("window_start", "id")),
    "system": (system_metrics, ("timestamp", "id")),
    "credits": (api_credits, ("updated_at", "id")),
    "events": (custom_events, ("timestamp", "id")),
    "costs/daily": (
        daily_costs,
        ("date", "provider", "model_name", "agent_name", "tool_name", "client_id"),
    ),
}
"""The lists by their path below ``/stats``, each with the unique columns that it is sorted by."""


async def page(
    connection: AsyncConnection, name: str, filters: Filters, limit: int, cursor: str | None
) -> tuple[list[Row], str | None]:
    """One of ``TABLES``, newest first, and the cursor of the next page. Raises BadCursor."""
    table, key = TABLES[name]
    rows, following = await newest(connection, table, key, filters, limit, cursor)
    if table is system_metrics:
        await _add_gpus(connection, rows)
    if table is api_credits:
        rows = [credits.current(row, now_ms()) for row in rows]
    return [shown(table, row) for row in rows], following


async def _add_gpus(connection: AsyncConnection, samples: list[Row]) -> None:
    of_sample: dict[int, list[Row]] = {sample["id"]: [] for sample in samples}
    query = (
        select(gpu_metrics)
        .where(gpu_metrics.c.sample_id.in_(of_sample))
        .order_by(gpu_metrics.c.gpu_id)
    )
    for row in (await connection.execute(query)).mappings():
        of_sample[row["sample_id"]].append(shown(gpu_metrics, dict(row)))
    for sample in samples:
        sample["gpus"] = of_sample[sample["id"]]
