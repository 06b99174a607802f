from __future__ import annotations

from typing import Any

import msgspec
import pytest
from sqlalchemy import select, update

from proxy.store import repricing
from proxy.store.engine import Store
from proxy.store.repricing import Change, Row
from proxy.store.tables import api_calls, daily_costs
from tests.store.rows import call, failed

NOON = 1_735_732_800_000
DAY = 86_400_000


@pytest.fixture
def store(either: Store) -> Store:
    return either


async def pages(store: Store, since: int = 0, until: int = NOON + 2 * DAY) -> list[Row]:
    found: list[Row] = []
    async with store.reader() as connection:
        while rows := await repricing.page(connection, since, until, found[-1] if found else None):
            found += rows
        assert await repricing.count(connection, since, until) == len(found)
    return found


async def sums(store: Store) -> dict[tuple[str, str], tuple[float, int]]:
    """Dollars and unpriced calls by day and model."""
    async with store.reader() as connection:
        days = (await connection.execute(select(daily_costs))).mappings()
        return {
            (row["date"], row["model_name"]): (row["total_cost_usd"], row["unpriced_calls"])
            for row in days
        }


def priced(row: Row, nano: int | None, **more: Any) -> Change:
    new = {"cost_nano_usd": nano, "cost_source": "catalog", "price_version": "v2", **more}
    return row, msgspec.structs.replace(row, **new)


async def test_what_the_provider_said_and_what_has_no_tokens_is_not_looked_at(
    store: Store,
) -> None:
    await store.write(
        [
            call(timestamp=NOON, model="listed"),
            call(timestamp=NOON, model="mine", cost_source="config"),
            call(timestamp=NOON, model="told", cost_source="provider"),
            call(timestamp=NOON, model="none", cost_source="none", cost_nano_usd=None),
            failed(timestamp=NOON, model="failed"),
        ]
    )
    assert [row.model for row in await pages(store)] == ["listed", "mine", "none"]


async def test_the_window_begins_with_its_first_moment_and_ends_before_its_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repricing, "CHUNK", 2)
    await store.write([call(timestamp=NOON + at // 2, model=f"m{at}") for at in range(8)])
    found = await pages(store, NOON + 1, NOON + 3)
    assert [row.model for row in found] == ["m2", "m3", "m4", "m5"]


async def test_a_row_and_its_day_change_together(store: Store) -> None:
    await store.write(
        [
            call(timestamp=NOON, cost_nano_usd=1),
            call(timestamp=NOON + DAY, cost_nano_usd=None, cost_source="none"),
            call(timestamp=NOON + DAY, cost_nano_usd=2_000_000_003),
        ]
    )
    assert await sums(store) == {
        ("2025-01-01", "llama"): (1e-9, 0),
        ("2025-01-02", "llama"): (2.000000003, 1),
    }
    first, second, third = await pages(store)
    changes = [priced(first, 3, list_cost_nano_usd=7), priced(second, 5), priced(third, 1_000_000)]
    assert await repricing.apply(await store.writer(), changes) == changes
    assert await sums(store) == {
        ("2025-01-01", "llama"): (3e-9, 0),
        ("2025-01-02", "llama"): (0.001000005, 0),
    }
    assert await pages(store) == [after for _, after in changes]
    assert (await pages(store))[0].list_cost_nano_usd == 7


async def test_a_price_may_be_lost_again(store: Store) -> None:
    await store.write([call(timestamp=NOON, cost_nano_usd=5)])
    (row,) = await pages(store)
    await repricing.apply(await store.writer(), [priced(row, None, cost_source="none")])
    assert await sums(store) == {("2025-01-01", "llama"): (0.0, 1)}


async def test_the_same_changes_count_once(store: Store) -> None:
    await store.write([call(timestamp=NOON, cost_nano_usd=1)])
    (row,) = await pages(store)
    changes = [priced(row, 3)]
    assert await repricing.apply(await store.writer(), changes) == changes
    assert await repricing.apply(await store.writer(), changes) == []
    assert await sums(store) == {("2025-01-01", "llama"): (3e-9, 0)}


async def test_a_row_that_is_gone_is_left_alone(store: Store) -> None:
    await store.write([call(timestamp=NOON, cost_nano_usd=1)])
    (row,) = await pages(store)
    async with (await store.writer()).begin() as connection:
        await connection.execute(api_calls.delete())
    assert await repricing.apply(await store.writer(), [priced(row, 3)]) == []
    assert await sums(store) == {("2025-01-01", "llama"): (1e-9, 0)}


async def test_either_both_change_or_nothing_does(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write([call(timestamp=NOON, cost_nano_usd=1)])
    (row,) = await pages(store)
    broken = update(daily_costs).values(no_such_column=1)
    with monkeypatch.context() as patch:
        patch.setattr(repricing.costs, "_ADJUSTMENT", broken)
        with pytest.raises(Exception, match="no_such_column"):
            await repricing.apply(await store.writer(), [priced(row, 3)])
    assert await pages(store) == [row]
    assert await sums(store) == {("2025-01-01", "llama"): (1e-9, 0)}


async def test_nothing_to_change_writes_nothing(store: Store) -> None:
    assert await repricing.apply(await store.writer(), []) == []
