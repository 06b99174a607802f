from __future__ import annotations

import pytest

from proxy.changes import BreakerRecord, CooldownRecord
from proxy.sample import GpuSample, HostSample
from proxy.store import state
from proxy.store.credits import Account, Credits
from proxy.store.engine import Store
from proxy.store.events import EventRecord
from tests.store.rows import anything, call


@pytest.fixture
async def filled(store: Store) -> Store:
    await store.write(
        [
            call(),
            call(provider="gemini"),
            CooldownRecord("groq", "llama", "org-a", "org", 2000, "rate_limit", 1, 1000),
            BreakerRecord("groq", "llama", "closed", "open", "server_error", 2000, 1, 1000),
            HostSample(1000, 1, gpus=(GpuSample(1), GpuSample(0))),
            HostSample(2000, 0),
            EventRecord("e-1", 1000, "hit"),
            EventRecord("e-2", 1000, "hit"),
        ]
    )
    for kind in ("pages", "search"):
        await Credits(store).allow(Account(kind, "tavily", "main"), 1, "monthly", 1000)
    return store


@pytest.mark.parametrize("name", state.TABLES)
async def test_every_list_has_pages_without_repeats(filled: Store, name: str) -> None:
    async with filled.reader() as connection:
        whole, after = await state.page(connection, name, anything(), 100, None)
        assert whole
        assert after is None
        seen, cursor = [], None
        while len(seen) < len(whole):
            page, cursor = await state.page(connection, name, anything(), 1, cursor)
            seen += page
    assert seen == whole
    assert cursor is None


async def test_a_sample_comes_with_its_gpus(filled: Store) -> None:
    async with filled.reader() as connection:
        (newest, older), _ = await state.page(connection, "system", anything(), 100, None)
    assert newest["gpus"] == []
    assert [gpu["gpu_id"] for gpu in older["gpus"]] == [0, 1]
    assert older["gpus"][0]["timestamp"] == "1970-01-01T00:00:01.000Z"


async def test_filters_hold_where_the_table_has_the_column(filled: Store) -> None:
    async with filled.reader() as connection:
        for name in ("health", "tps", "costs/daily"):
            rows, _ = await state.page(connection, name, anything(provider=("gemini",)), 100, None)
            assert {row["provider"] for row in rows} == {"gemini"}
