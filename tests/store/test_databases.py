"""The same story on every database that can be reached here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from proxy.changes import BreakerRecord, CooldownRecord, CountRecord, LiftRecord, SwitchRecord
from proxy.sample import GpuSample, HostSample
from proxy.store import calls, groups, knocking, retention, schema, series, sizes, state
from proxy.store.address import StoreError
from proxy.store.engine import READERS, WRITERS, Store
from proxy.store.events import EventRecord
from proxy.store.filters import Filters
from proxy.store.tables import (
    api_calls,
    daily_costs,
    metadata,
    provider_health,
    rate_limits,
    tps_metrics,
)
from proxy.types import FaultRecord, ModelInfo
from tests.postgres_server import server
from tests.store.databases import REACHABLE, database, migrated
from tests.store.rows import call, failed, read
from tests.store.stories import content, let_in
from tests.turnstile import turnstile

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
    content("r", NOON),
]


async def test_the_story(store: Store) -> None:
    await store.write(STORY)
    await store.write(STORY[:4])
    await let_in(store)
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
        **{"journal_positions": 0},
        **{"api_calls": 4, "errors": 3, "rate_limits": 4, "tps_metrics": 5, "running_figures": 6},
        **{"rollups_minute": 0, "rollups_hour": 0, "rollups_day": 6, "rollup_series": 6},
    }


async def test_lists_have_pages(store: Store) -> None:
    await store.write(STORY)
    await let_in(store)
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
    gone = 4 + 3 + 1 + 1 + 5 + 1 + 1 + of_limits + of_health
    assert await retention.prune(store, 1, NOON + 2 * 86_400_000) == gone
    assert [row["limit_type"] for row in await read(store, rate_limits)] == ["disabled"]


async def test_the_schema_is_at_its_head_and_readers_only_read(store: Store) -> None:
    assert await schema.revision(await store.writer()) == schema.HEAD
    with pytest.raises(StoreError, match="read"):
        async with store.reader() as connection:
            await connection.execute(text("DELETE FROM api_calls"))


async def test_a_process_opens_as_many_connections_as_it_says(store: Store) -> None:
    if (await store.writer()).dialect.name == "sqlite":
        return
    mine = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'tollkeeper'"
    )

    async def ask() -> int:
        async with asyncio.timeout(10), store.reader() as connection:
            return await connection.scalar(mine) or 0

    async def write() -> None:
        await store.write([call()])

    counts = await asyncio.gather(*(ask() for _ in range(20)), *(write() for _ in range(3)))
    assert max(count for count in counts if count) == WRITERS + READERS["postgresql"]


@pytest.mark.skipif("postgresql" not in REACHABLE, reason="there is no PostgreSQL")
async def test_a_server_that_goes_away_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knocking, "_PAUSE", 0.3)
    host, port = server()["host"], server()["port"]
    async with (
        database("postgresql", tmp_path, migrated("postgresql")) as url,
        turnstile(host, port) as between,
    ):
        store = Store(
            url.replace("root@", "root:hunter2@").replace(f":{port}/", f":{between.port}/")
        )
        await store.write([call(request_id="before")])
        between.shut()
        told = set()
        for _ in range(20):
            with pytest.raises(StoreError) as writing:
                await store.write([call(request_id="during")])
            with pytest.raises(StoreError) as reading:
                await read(store, api_calls)
            told |= {str(writing.value), str(reading.value)}
        assert between.tries <= 3
        assert not [words for words in told if "hunter2" in words or "during" in words]
        between.reopen()
        await asyncio.sleep(knocking._PAUSE)
        await store.write([call(request_id="during")])
        found = await read(store, api_calls, "timestamp")
        assert [row["request_id"] for row in found] == ["before", "during"]
        await store.close()


async def test_no_server_is_told_without_the_password() -> None:
    store = Store("postgresql+asyncpg://me:hunter2@127.0.0.1:1/none")
    with pytest.raises(StoreError) as raised:
        await store.open()
    assert "127.0.0.1:1/none" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def _round(number: int) -> list[list[object]]:
    """What two nodes write at the same moment about the same, in opposite order. Every second time
    a call is in both, as after a crash."""
    models = [f"m{place}" for place in range(6)]
    at = NOON + number
    twice = {
        model: [call(request_id=f"{number}-{model}", model=model)] if number % 2 else []
        for model in models
    }
    batches: list[list[object]] = []
    for order in (1, -1):
        batch: list[object] = []
        for model in models[::order]:
            batch += [
                *twice[model],
                call(model=model, key_id="b", rate_headers=HEADERS),
                failed(model=model, rate_headers=HEADERS),
                CooldownRecord("groq", model, "k", "org", at + 9000, "rate_limit", 1, at),
                LiftRecord("groq", model, "", "org", at + 1),
                SwitchRecord("groq", model, "org", True, at),
                CountRecord("groq", model, "k", "org", "requests", 10, 4, 86_400, at, at),
                BreakerRecord("groq", model, "closed", "open", "server_error", at, 1, at),
                [ModelInfo("groq", model, {})],
                EventRecord(f"{number}-{model}", at, "hit"),
            ]
        batches.append(batch)
    return batches


async def _written(store: Store, items: Sequence[object]) -> None:
    """Who waited too long for the other has written nothing, and does it again."""
    for _ in range(20):
        try:
            await store.write(items)
            break
        except StoreError as error:
            if "locked" not in str(error):
                raise
    else:
        pytest.fail("the database stays locked")


async def test_two_nodes_that_write_the_same_rows_neither_deadlock_nor_miscount(
    either: Store, other: Store
) -> None:
    rounds = 8
    await other.open()
    for number in range(rounds):
        mine, theirs = _round(number)
        await asyncio.gather(_written(either, mine), _written(other, theirs))
    succeeded, failures = rounds // 2 + rounds * 2, rounds * 2  # of each of the six models
    costs = await read(either, daily_costs, "model_name")
    speeds = await read(either, tps_metrics)
    assert len(await read(either, api_calls)) == 6 * (succeeded + failures)
    assert [(day["successes"], day["failures"], day["input_tokens"]) for day in costs] == [
        (succeeded, failures, succeeded * 1000)
    ] * 6
    hour = [row["sample_count"] for row in speeds if row["window_minutes"] == 60]
    assert sum(hour) == 6 * succeeded
    for row in await read(either, provider_health):
        assert row["sample_count"] == succeeded + failures
