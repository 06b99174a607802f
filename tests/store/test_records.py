from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import func, select

from proxy.changes import BreakerRecord, CooldownRecord, CountRecord, LiftRecord, SwitchRecord
from proxy.sample import GpuSample, HostSample
from proxy.store.engine import Store
from proxy.store.events import EventRecord
from proxy.store.records import Batch
from proxy.store.rows import COLUMNS, row
from proxy.store.sets import TOLD
from proxy.store.tables import api_calls, daily_costs
from proxy.types import FaultRecord, ModelInfo
from tests.store.rows import call, failed, rows

NOON = 1_795_000_000_000
EVERYTHING = (
    "api_calls",
    "daily_costs",
    "tps_metrics",
    "provider_health",
    "rate_limits",
    "errors",
)
OTHERS = ("custom_events", "provider_health_events", "system_metrics", "gpu_metrics", "models")


async def test_every_field_arrives_in_its_column(store: Store, path: Path) -> None:
    record = call(metadata='{"a":1}', seed=7, temperature=0.5)
    await store.write([record])
    (stored,) = rows(path, "SELECT * FROM api_calls")
    assert tuple(stored[name] for name in COLUMNS) == row(record)
    assert stored["cost_estimate_usd"] == 0.000985
    assert stored["success"] == 1


async def test_the_same_items_twice_count_once(store: Store, path: Path) -> None:
    headers = ((b"x-ratelimit-limit-requests", b"10"), (b"x-ratelimit-remaining-requests", b"0"))
    first = [
        failed(request_id="r", is_final=False),
        call(request_id="r", attempt=2, rate_headers=headers),
    ]
    await store.write(first)
    before = {table: rows(path, f"SELECT * FROM {table}") for table in EVERYTHING}
    assert all(before.values())
    await store.write(first)
    await store.write([*first, first[0]])
    assert {table: rows(path, f"SELECT * FROM {table}") for table in EVERYTHING} == before
    await store.write([*first, call()])
    (costs,) = rows(path, "SELECT sum(invocations) AS n FROM daily_costs")
    (speed,) = rows(path, "SELECT sample_count AS n FROM tps_metrics WHERE window_minutes = 60")
    assert (costs["n"], speed["n"]) == (2, 2)


async def test_what_was_learnt_may_come_twice(store: Store, path: Path) -> None:
    items = [
        CooldownRecord("groq", "", "org-a", "org", 99, "rate_limit", 1, 3),
        LiftRecord("groq", "", "", "org", 4),
        CooldownRecord("groq", "", "org-a", "org", 50, "rate_limit", 1, 5),
        SwitchRecord("groq", "org-b", "org", True, 6),
        SwitchRecord("groq", "org-c", "org", True, 6),
        SwitchRecord("groq", "org-b", "org", False, 7),
        CountRecord("groq", "", "org-a", "org", "requests_day", 10, 4, 86_400, 99, 8),
        BreakerRecord("groq", "llama", "closed", "open", "server_error", 99, 1, 9),
        BreakerRecord("groq", "llama", "open", "half_open", "elapsed", None, 1, 99),
    ]
    tables = ("rate_limits", "provider_health", "provider_health_events")
    await store.write(items)
    before = {table: rows(path, f"SELECT * FROM {table} ORDER BY id") for table in tables}
    assert [len(found) for found in before.values()] == [3, 1, 2]
    await store.write(items)
    after = {table: rows(path, f"SELECT * FROM {table} ORDER BY id") for table in tables}
    assert after == before


async def test_a_failed_flush_leaves_nothing_behind(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no(*_: object) -> None:
        raise sqlite3.OperationalError("disk full")

    items = [call(), failed()]
    with monkeypatch.context() as patched:
        patched.setattr("proxy.store.samples.save", no)
        with pytest.raises(sqlite3.OperationalError):
            await store.write(items)
    assert [rows(path, f"SELECT * FROM {table}") for table in EVERYTHING] == [[]] * len(EVERYTHING)
    await store.write(items)
    (health,) = rows(path, "SELECT sample_count AS n FROM provider_health")
    (speed,) = rows(path, "SELECT sample_count AS n FROM tps_metrics WHERE window_minutes = 60")
    assert (health["n"], speed["n"]) == (2, 1)


async def test_a_commit_that_happened_though_it_failed_counts_once(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await store.writer()
    commit = writer.sync_engine.dialect.do_commit

    def lost(connection: object) -> None:
        commit(connection)
        raise ConnectionError("gone before the answer")

    items = [call(), failed()]
    with monkeypatch.context() as patched:
        patched.setattr(writer.sync_engine.dialect, "do_commit", lost)
        with pytest.raises(Exception, match="gone before"):
            await store.write(items)
    await store.write(items)
    await store.write([call()])
    (speed,) = rows(path, "SELECT sample_count AS n FROM tps_metrics WHERE window_minutes = 60")
    (health,) = rows(path, "SELECT sample_count AS n FROM provider_health")
    (costs,) = rows(path, "SELECT invocations AS n FROM daily_costs")
    assert (speed["n"], health["n"], costs["n"]) == (2, 3, 3)


async def test_every_kind_of_item_in_one_batch(store: Store, path: Path) -> None:
    await store.write(
        [
            call(),
            FaultRecord(1, "KeyError", "'x'", 'File "a.py", line 1, in f'),
            HostSample(2, gpu_count=1, gpus=(GpuSample(0, name="fake"),)),
            CooldownRecord("groq", "", "org-a", "org", 99, "rate_limit", 1, 3),
            SwitchRecord("groq", "org-b", "org", True, 4),
            CountRecord("groq", "", "org-a", "org", "requests_day", 10, 4, 86_400, 99, 5),
            BreakerRecord("groq", "llama", "closed", "open", "server_error", 99, 1, 6),
            [ModelInfo("groq", "llama", {"id": "llama"}, context_length=8192)],
            EventRecord("e", 7, "hit"),
        ]
    )
    for table in (*EVERYTHING, *OTHERS):
        assert rows(path, f"SELECT * FROM {table}"), table
    kinds = rows(path, "SELECT limit_type FROM rate_limits ORDER BY limit_type")
    assert [row["limit_type"] for row in kinds] == ["cooldown", "disabled", "requests_day"]


def test_rests_and_lifts_stay_in_the_order_in_which_they_came() -> None:
    rest = CooldownRecord("groq", "", "org-a", "org", 99, "rate_limit", 1, 3)
    lift = LiftRecord("groq", "", "", "org", 4)
    assert Batch([rest, lift, rest]).cooldowns == [rest, lift, rest]
    assert Batch([lift, call(), rest]).cooldowns == [lift, rest]


async def test_what_is_no_record_is_refused_and_the_rest_is_kept(store: Store, path: Path) -> None:
    await store.write([call(), object(), call()])
    assert store.refused == 1
    assert len(rows(path, "SELECT * FROM api_calls")) == 2


async def test_two_stores_may_write_to_one_file(store: Store, path: Path) -> None:
    other = Store(f"sqlite+aiosqlite:///{path}")
    await asyncio.gather(
        *(one.write([call()]) for _ in range(10) for one in (store, other)),
    )
    await other.close()
    assert len(rows(path, "SELECT * FROM api_calls")) == 20


@pytest.mark.parametrize("endpoint", TOLD)
async def test_a_call_that_is_told_again_counts_once_whenever_it_is_said_to_have_begun(
    either: Store, endpoint: str
) -> None:
    for later in (0, 1, 90_000_000):
        for _ in range(2):
            await either.write(
                [call(request_id="again", endpoint=endpoint, timestamp=NOON + later)]
            )
    async with either.reader() as connection:
        assert await connection.scalar(select(func.count()).select_from(api_calls)) == 1
        assert await connection.scalar(select(func.sum(daily_costs.c.invocations))) == 1
