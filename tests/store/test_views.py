"""The views of migration 0003, on each kind of database: older programs' queries still work."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text

from proxy.store.engine import Store
from tests.store.rows import call, failed, rows

AT = 1_795_176_000_250  # 2026-11-20T12:00:00.250Z

INVOCATIONS = """
    id invocation_id timestamp agent_name tool_name model_name prompt_tokens completion_tokens
    total_tokens cost_usd latency_ms status error_message privacy_level
"""
INFERENCE_METRICS = """
    id request_id timestamp model_name model_version prompt_tokens completion_tokens total_tokens
    prompt_length response_length response_time_ms queue_time_ms processing_time_ms
    tokens_per_second temperature max_tokens success error_message metadata
"""


async def fetch(store: Store, sql: str) -> list[dict[str, Any]]:
    async with store.reader() as connection:
        return [dict(row) for row in (await connection.execute(text(sql))).mappings()]


async def test_invocations_are_the_final_rows_under_their_old_names(either: Store) -> None:
    await either.write(
        [
            failed(request_id="r", timestamp=AT, is_final=False),
            call(request_id="r", attempt=2, timestamp=AT, agent_name="planner", tool_name="search"),
        ]
    )
    [row] = await fetch(either, "SELECT * FROM invocations")
    assert list(row) == INVOCATIONS.split()
    del row["id"], row["timestamp"]
    assert row == {
        "invocation_id": "r",
        "agent_name": "planner",
        "tool_name": "search",
        "model_name": "llama",
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "total_tokens": 1500,
        "cost_usd": 0.000985,
        "latency_ms": 990.5,
        "status": "success",
        "error_message": None,
        "privacy_level": "metadata",
    }


async def test_inference_metrics_are_all_attempts(either: Store) -> None:
    await either.write([failed(request_id="r", is_final=False), call(request_id="r", attempt=2)])
    found = await fetch(either, "SELECT * FROM inference_metrics ORDER BY id")
    assert list(found[0]) == INFERENCE_METRICS.split()
    assert len(found[0]) == 19
    assert [bool(row["success"]) for row in found] == [False, True]
    assert [row["response_time_ms"] for row in found] == [990.5, 990.5]


async def test_an_instant_is_text_on_sqlite_and_itself_on_postgresql(either: Store) -> None:
    await either.write([call(timestamp=AT)])
    for view in ("invocations", "inference_metrics"):
        [row] = await fetch(either, f"SELECT timestamp, DATE(timestamp) AS day FROM {view}")
        if isinstance(row["timestamp"], datetime):
            assert row["timestamp"] == datetime(2026, 11, 20, 12, 0, 0, 250_000, UTC)
        else:
            assert row == {"timestamp": "2026-11-20T12:00:00.250Z", "day": "2026-11-20"}


async def test_every_millisecond_is_shown_exactly(store: Store, path: Path) -> None:
    """SQLite's dates are floating-point numbers on the way."""
    await store.write([call(timestamp=AT - 250 + ms) for ms in range(1000)])
    found = rows(path, "SELECT timestamp FROM invocations ORDER BY id")
    assert [row["timestamp"] for row in found] == [
        f"2026-11-20T12:00:00.{ms:03}Z" for ms in range(1000)
    ]
