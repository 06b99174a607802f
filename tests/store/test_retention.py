from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from proxy.clock import now_ms
from proxy.store import retention
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.types import (
    BreakerRecord,
    CooldownRecord,
    CountRecord,
    FaultRecord,
    GpuSample,
    HostSample,
    ModelInfo,
    SwitchRecord,
)
from tests.store.rows import call, failed, rows

DAY = 86_400_000
AGING = (
    "api_calls",
    "errors",
    "system_metrics",
    "gpu_metrics",
    "tps_metrics",
    "rate_limits",
    "provider_health_events",
)
KEPT = ("daily_costs", "models")


def count(path: Path, table: str) -> int:
    return rows(path, f"SELECT count(*) AS n FROM {table}")[0]["n"]


def everything(at: int, model: str) -> list[object]:
    return [
        call(timestamp=at, model=model),
        failed(timestamp=at, model=model),
        FaultRecord(at, "KeyError", "x"),
        HostSample(at, 1, gpus=(GpuSample(0),)),
        CooldownRecord("groq", model, "k", "org", at, "rate_limit", 1, at),
        CountRecord("groq", model, "k", "org", "requests_day", 9, 1, 86_400, at, at),
        BreakerRecord("lab", model, "closed", "open", "server_error", at, 1, at),
        [ModelInfo("groq", model)],
    ]


async def test_what_is_old_goes_from_every_table_but_costs_and_models(
    store: Store, path: Path
) -> None:
    now = now_ms()
    await store.write(everything(now - 31 * DAY, "old") + everything(now, "new"))
    before = {table: count(path, table) for table in (*AGING, *KEPT)}
    assert await retention.prune(store, 0, now) == 0
    assert {table: count(path, table) for table in (*AGING, *KEPT)} == before
    assert await retention.prune(store, 30, now) > 0
    after = {table: count(path, table) for table in (*AGING, *KEPT)}
    assert all(after[table] * 2 == before[table] for table in AGING)
    assert all(after[table] == before[table] for table in KEPT)
    (left,) = rows(path, "SELECT DISTINCT model FROM api_calls")
    assert left["model"] == "new"


async def test_health_that_nothing_touched_goes(store: Store, path: Path) -> None:
    now = now_ms()
    await store.write([call()])
    await retention.prune(store, 30, now + 29 * DAY)
    assert count(path, "provider_health") == 1
    await retention.prune(store, 30, now + 31 * DAY)
    assert count(path, "provider_health") == 0


async def test_a_key_that_an_operator_took_out_stays_out(store: Store, path: Path) -> None:
    now = now_ms()
    await store.write([SwitchRecord("groq", "k", "org", True, now - 400 * DAY)])
    await retention.prune(store, 30, now)
    assert count(path, "rate_limits") == 1


async def test_many_rows_go_in_chunks_and_the_file_shrinks(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_PAUSE", 0)
    old = now_ms() - 40 * DAY
    await store.write([call(timestamp=old) for _ in range(1201)])

    def pages() -> int:
        with closing(sqlite3.connect(path)) as connection:
            return int(connection.execute("PRAGMA page_count").fetchone()[0])

    full = pages()
    assert await retention.run(store, 30) >= 1201
    assert count(path, "api_calls") == 0
    assert pages() < full / 3


async def test_a_store_that_keeps_nothing_has_nothing_to_delete() -> None:
    assert await retention.run(Store(None), 30) == 0


async def test_a_locked_database_is_told(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            await retention.run(store, 30)
