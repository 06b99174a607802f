from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from proxy.store.engine import Store
from proxy.store.filters import where
from proxy.store.tables import api_calls, daily_costs, rate_limits
from proxy.tags import written
from tests.store.rows import anything, call, failed, plan

DAY = 86_400_000
NOON = 1_735_732_800_000  # 2025-01-01T12:00:00Z


async def ids(store: Store, **filters: Any) -> list[str]:
    query = select(api_calls.c.request_id).where(*where(api_calls, anything(**filters)))
    async with store.reader() as connection:
        return [row[0] for row in await connection.execute(query.order_by(api_calls.c.request_id))]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["a", "b", "c"]),
        ({"provider": ("gemini",)}, ["b"]),
        ({"provider": ("gemini", "groq")}, ["a", "b", "c"]),
        ({"model": ("flash",)}, ["b"]),
        ({"key": ("org-b",)}, ["b"]),
        ({"status": ("error", "timeout")}, ["c"]),
        ({"client": ("alice",)}, ["a"]),
        ({"agent": ("aider",)}, ["a"]),
        ({"tool": ("cli",)}, ["a"]),
        ({"endpoint": ("/v1/embeddings",)}, ["b"]),
        ({"user": ("ann",)}, ["a"]),
        ({"user": ("ann", "bo")}, ["a", "b"]),
        ({"session": ("s-1",)}, ["b"]),
        ({"tag": ("eu",)}, ["a", "b"]),
        ({"tag": ("team-a", 'say "b"')}, ["a", "b"]),
        ({"tag": ("b",)}, []),
        ({"tag": ("eu",), "user": ("bo",)}, ["b"]),
        ({"min_latency_ms": 1500.0}, ["b"]),
        ({"min_latency_ms": 900.0}, ["a", "b", "c"]),
        ({"min_tokens": 1501}, ["b"]),
        ({"start": NOON + 1}, ["b", "c"]),
        ({"end": NOON + 1}, ["a"]),
        ({"provider": ("groq",), "status": ("success",)}, ["a"]),
    ],
)
async def test_each_filter_picks_its_rows(
    either: Store, filters: dict[str, Any], found: list[str]
) -> None:
    who = {"client_id": "alice", "agent_name": "aider", "tool_name": "cli"}
    who |= {"user_id": "ann", "tags": written(("team-a", "eu"))}
    b = {"user_id": "bo", "session_id": "s-1", "tags": written(("eu", 'say "b"'))}
    b |= {"provider": "gemini", "model": "flash", "key_id": "org-b", "endpoint": "/v1/embeddings"}
    await either.write(
        [
            call(request_id="a", timestamp=NOON, **who),
            call(
                request_id="b", timestamp=NOON + 1, total_duration_ms=1500.0, total_tokens=2000, **b
            ),
            failed(request_id="c", timestamp=NOON + 2, total_duration_ms=None),
        ]
    )
    assert await ids(either, **filters) == found


async def test_days_count_whole(store: Store) -> None:
    await store.write([call(timestamp=NOON + day * DAY) for day in range(4)])
    window = anything(start=NOON + DAY, end=NOON + 2 * DAY)
    query = select(daily_costs.c.date).where(*where(daily_costs, window))
    async with store.reader() as connection:
        assert [row[0] for row in await connection.execute(query)] == ["2025-01-02", "2025-01-03"]


def test_the_current_state_has_no_window() -> None:
    assert where(rate_limits, anything()) == []


async def test_a_window_is_found_by_an_index(store: Store) -> None:
    async with store.reader() as connection:
        query = select(api_calls).where(*where(api_calls, anything(start=1)))
        assert "USING INDEX ix_api_calls_timestamp" in await plan(connection, query)
        query = query.where(api_calls.c.provider == "groq", api_calls.c.model == "llama")
        assert "USING INDEX ix_api_calls_timestamp" in await plan(connection, query)
