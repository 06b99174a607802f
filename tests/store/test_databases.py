"""The same story on every database that can be reached here."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text

from proxy.sample import GpuSample, HostSample
from proxy.store import calls, groups, retention, schema, series, sizes, state
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.store.events import EventRecord
from proxy.store.filters import Filters
from proxy.store.tables import api_calls, daily_costs, metadata, rate_limits
from proxy.types import (
    BreakerRecord,
    CooldownRecord,
    CountRecord,
    FaultRecord,
    ModelInfo,
    SwitchRecord,
)
from tests.store.rows import call, failed, read

NOON = 1_735_732_800_123
HEADERS = (
    (b"x-ratelimit-limit-requests", b"14400"),
    (b"x-ratelimit-remaining-requests", b"14370"),
    (b"x-ratelimit-reset-requests", b"2m59.56s"),
)


@pytest.fixture
def store(either: Store) -> Store:
    return either


def window(**changes: Any) -> Filters:
    return Filters(**{"start": NOON - 3_600_000, "end": NOON + 3_600_000, **changes})


STORY = [
    failed("server_error", request_id="r", timestamp=NOON, is_final=False, total_duration_ms=None),
    call(request_id="r", attempt=2, timestamp=NOON + 5, rate_headers=HEADERS),
    call(request_id="s", timestamp=NOON + 60_000, tokens_per_second=50.0, total_duration_ms=2000.0),
    failed("timeout", request_id="t", timestamp=NOON + 120_000),
    CooldownRecord("groq", "", "org-a", "org", NOON + 9000, "rate_limit", 1, NOON),
    SwitchRecord("groq", "org-b", "org", True, NOON),
    CountRecord("groq", "", "org-a", "org", "requests_day", 100, 3, 86_400, NOON + 9000, NOON),
    BreakerRecord("groq", "llama", "closed", "open", "server_error", NOON + 9000, 1, NOON),
    FaultRecord(NOON, "KeyError", "x", "File a"),
    HostSample(NOON, 1, cpu_percent=1.5, gpus=(GpuSample(0, name="fake"),)),
    [ModelInfo("groq", "llama", {"id": "llama"}, loaded_at=NOON)],
    EventRecord("e", NOON, "hit"),
]


async def test_the_story(store: Store) -> None:
    await store.write(STORY)
    await store.write(STORY[:4])
    async with store.reader() as connection:
        page, _ = await calls.page(connection, window(), 2, None)
        whole = await groups.whole(connection, window())
        errors = await groups.grouped(connection, "errors", window())
        hours = await series.series(connection, window(), "requests", "hour")
        latency = await series.series(connection, window(), "latency_ms", "day")
        costs = (await connection.execute(select(daily_costs))).mappings().all()
        limits = (await connection.execute(select(rate_limits))).mappings().all()
        found = await sizes.sizes(connection)
    assert [row["request_id"] for row in page] == ["t", "s"]
    assert page[0]["timestamp"] == "2025-01-01T12:02:00.123Z"
    totals = whole["totals"]
    assert (totals["requests"], totals["attempts"], totals["errors"]) == (3, 4, 1)
    assert (totals["cost_usd"], totals["failovers"]) == (0.00197, 1)
    assert whole["latency_ms"]["p50"] == 1000.25
    assert whole["latency_ms"]["p95"] == pytest.approx(1900.025)
    assert sorted(group["error_reason"] for group in errors) == ["server_error", "timeout"]
    assert [point["value"] for point in hours] == [0, 3, 0]
    assert latency[0]["value"] == pytest.approx((1000.25 + 2000 + 1000.25) / 3)
    assert [(day["invocations"], day["total_cost_usd"]) for day in costs] == [(3, 0.00197)]
    assert {limit["limit_type"] for limit in limits} == {
        *("requests", "cooldown", "disabled", "requests_day"),
    }
    assert {table["name"]: table["rows"] for table in found["tables"]} == {
        **dict.fromkeys(metadata.tables, 1),
        **{"api_calls": 4, "errors": 3, "rate_limits": 4, "tps_metrics": 5},
        **{"rollups_minute": 0, "rollups_hour": 0, "rollups_day": 6, "rollup_series": 6},
    }


async def test_lists_have_pages(store: Store) -> None:
    await store.write(STORY)
    async with store.reader() as connection:
        for name in state.TABLES:
            whole, _ = await state.page(connection, name, window(), 100, None)
            first, cursor = await state.page(connection, name, window(), 1, None)
            rest = []
            if cursor is not None:
                rest, _ = await state.page(connection, name, window(), 100, cursor)
            assert first + rest == whole
            assert whole


async def test_a_restart_goes_on(store: Store) -> None:
    await store.write(STORY)
    await store.close()
    await store.write([call(timestamp=NOON + 10, tokens_per_second=30.0)])
    async with store.reader() as connection:
        speeds, _ = await state.page(connection, "tps", window(), 100, None)
        (health,), _ = await state.page(connection, "health", window(), 100, None)
    assert [row["sample_count"] for row in speeds if row["window_minutes"] == 60] == [3]
    assert [row["tps"] for row in speeds if row["window_minutes"] == 60] == [pytest.approx(60.0)]
    assert health["consecutive_failures"] == 0


async def test_bad_values_cost_only_themselves(store: Store) -> None:
    bad = (call(request_id="a", seed=2**70), call(request_id="b", finish_reason="\0\ud800"))
    await store.write([*bad, call(status="wonderful"), call(request_id="c")])
    async with store.reader() as connection:
        query = select(api_calls.c.request_id, api_calls.c.seed, api_calls.c.finish_reason)
        kept = (await connection.execute(query.order_by(api_calls.c.request_id))).all()
    assert [tuple(row) for row in kept] == [("a", None, None), ("b", None, "?"), ("c", None, None)]
    assert store.refused == 1


async def test_old_rows_go(store: Store) -> None:
    await store.write(STORY)
    of_limits, of_health = 3, 1 + 1  # and not the key that an operator took out
    gone = 4 + 3 + 1 + 1 + 5 + 1 + of_limits + of_health
    assert await retention.prune(store, 1, NOON + 2 * 86_400_000) == gone
    assert [row["limit_type"] for row in await read(store, rate_limits)] == ["disabled"]


async def test_the_schema_is_at_its_head_and_readers_only_read(store: Store) -> None:
    assert await schema.revision(await store.writer()) == schema.HEAD
    with pytest.raises(StoreError, match="read"):
        async with store.reader() as connection:
            await connection.execute(text("DELETE FROM api_calls"))


async def test_no_server_is_told_without_the_password() -> None:
    store = Store("postgresql+asyncpg://me:hunter2@127.0.0.1:1/none")
    with pytest.raises(StoreError) as raised:
        await store.open()
    assert "127.0.0.1:1/none" in str(raised.value)
    assert "hunter2" not in str(raised.value)
