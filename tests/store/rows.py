"""Records as the gateway makes them, to be changed where a test says so."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.clock import new_id, now_ms
from proxy.store.engine import Store
from proxy.store.filters import Filters
from proxy.types import BESIDE, CallRecord

OPTIONAL = {name: None for name in CallRecord.__struct_fields__[: -len(BESIDE)]}


def call(**changes: Any) -> CallRecord:
    """A streamed call that succeeded just now."""
    now = now_ms()
    values = OPTIONAL | {
        "request_id": new_id(),
        "attempt": 1,
        "is_final": True,
        "timestamp": now,
        "finished_at": changes.get("timestamp", now) + 1000,
        "endpoint": "/v1/chat/completions",
        "provider": "groq",
        "model": "llama",
        "key_id": "org-a",
        "is_stream": True,
        "status": "success",
        "http_status": 200,
        "client_status": 200,
        "response_time_ms": 990.5,
        "total_duration_ms": 1000.25,
        "time_to_first_token_ms": 200.0,
        "tokens_per_second": 100.0,
        "input_tokens": 1000,
        "output_tokens": 500,
        "total_tokens": 1500,
        "usage_source": "provider",
        "cost_nano_usd": 985_000,
        "cost_source": "catalog",
        "privacy_level": "metadata",
    }
    return CallRecord(**{**values, **changes})


def failed(reason: str = "server_error", **changes: Any) -> CallRecord:
    """An attempt that failed, without tokens."""
    nothing = (
        "time_to_first_token_ms",
        "tokens_per_second",
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "cost_nano_usd",
    )
    return call(
        **{
            **dict.fromkeys(nothing),
            "status": "timeout" if reason == "timeout" else "error",
            "error_reason": reason,
            "error_message": f"it failed: {reason}",
            "http_status": 500,
            "usage_source": "none",
            "cost_source": "none",
            **changes,
        }
    )


def anything(**changes: Any) -> Filters:
    """Filters that let every row through."""
    return Filters(**{"start": 0, "end": 4_000_000_000_000, **changes})


def rows(path: Path, sql: str) -> list[dict[str, Any]]:
    """What another connection sees."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(sql)]


async def read(store: Store, table: Table, *order: str) -> list[dict[str, Any]]:
    """What the store reads from a table, without the ids, on any kind of database."""
    async with store.reader() as connection:
        found = await connection.execute(select(table).order_by(*[table.c[name] for name in order]))
        return [{name: row[name] for name in row if name != "id"} for row in found.mappings()]


async def plan(connection: AsyncConnection, statement: Any) -> str:
    """How SQLite goes about a query."""
    compiled = statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
    steps = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")
    return "; ".join(step[3] for step in steps)
