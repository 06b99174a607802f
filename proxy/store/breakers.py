"""``provider_health.state`` and ``provider_health_events``: breakers, and all their turns."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.changes import BreakerRecord
from proxy.store.health import WINDOW_SECONDS
from proxy.store.tables import provider_health, provider_health_events
from proxy.store.upsert import Insert, insert_into

_STATE = ("state", "open_until", "openings")


async def save(connection: AsyncConnection, turns: Iterable[BreakerRecord]) -> None:
    """Log the turns, each once, and hold the state that each model is left in."""
    turns = list(turns)
    if not turns:
        return
    dialect = connection.dialect.name
    await connection.execute(_log(dialect), [_event(turn) for turn in turns])
    newest = {(turn.provider, turn.model): _state(turn) for turn in turns}
    states = [newest[key] for key in sorted(newest)]
    await connection.execute(_upsert(dialect), states)


async def load(connection: AsyncConnection) -> list[BreakerRecord]:
    """The breakers that are not closed."""
    table = provider_health.c
    query = select(provider_health).where(table.state != "closed")
    return [
        BreakerRecord(
            provider=row["provider"],
            model=row["model"],
            from_state="closed",
            to_state=row["state"],
            reason=row["last_error_reason"] or "",
            until=row["open_until"],
            openings=row["openings"],
            at=row["updated_at"],
        )
        for row in (await connection.execute(query)).mappings()
    ]


@cache
def _log(dialect: str) -> Insert:
    return insert_into(provider_health_events, dialect).on_conflict_do_nothing()


@cache
def _upsert(dialect: str) -> Insert:
    statement = insert_into(provider_health, dialect)
    new = {name: statement.excluded[name] for name in (*_STATE, "updated_at")}
    return statement.on_conflict_do_update(index_elements=("provider", "model", "key_id"), set_=new)


def _event(turn: BreakerRecord) -> dict[str, Any]:
    return {
        "timestamp": turn.at,
        "provider": turn.provider,
        "model": turn.model,
        "from_state": turn.from_state,
        "to_state": turn.to_state,
        "reason": turn.reason,
        "open_until": turn.until,
        "openings": turn.openings,
    }


def _state(turn: BreakerRecord) -> dict[str, Any]:
    return {
        "provider": turn.provider,
        "model": turn.model,
        "key_id": "",
        "is_healthy": turn.to_state == "closed",
        "failure_rate": 0.0,
        "window_seconds": WINDOW_SECONDS,
        "sample_count": 0,
        "consecutive_failures": 0,
        "state": turn.to_state,
        "open_until": turn.until,
        "openings": turn.openings,
        "updated_at": turn.at,
    }
