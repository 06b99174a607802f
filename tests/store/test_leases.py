from __future__ import annotations

import asyncio

import pytest

from proxy.budget import Budget
from proxy.clock import now_ms
from proxy.ledger import Ledger
from proxy.store import budgets
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.store.leases import LeaseTable, starts
from tests.store.rows import call
from tests.store.stories import NOON

DAY = Budget("day", "day", 1000, "day")
HOUR = 3_600_000
LATER = NOON + 60_000


def everything(left: int) -> int:
    return max(left, 0)


async def test_what_one_has_leased_another_cannot(either: Store, other: Store) -> None:
    one, two = LeaseTable(either), LeaseTable(other)
    assert await one.lease(DAY, "a", NOON, LATER, lambda left: 600) == (600, 400, 0)
    assert await two.lease(DAY, "b", NOON, LATER, everything) == (400, 0, 0)
    assert await one.lease(DAY, "a", NOON, LATER, everything) == (0, 0, 0)
    assert (await two.standing(DAY, NOON)).leased == 1000
    assert (await two.standing(DAY, LATER)).leased == 0


async def test_many_at_once_get_no_more_than_there_is(either: Store, other: Store) -> None:
    await other.open()
    tables = [LeaseTable(either), LeaseTable(other)]
    found = await asyncio.gather(
        *[
            tables[n % 2].lease(DAY, f"l{n}", NOON, LATER, lambda left: 300 if left >= 300 else 0)
            for n in range(10)
        ]
    )
    assert sorted(each.amount for each in found) == [0] * 7 + [300] * 3


async def test_a_budget_that_is_no_more_is_forgotten_once_nobody_spends_it(either: Store) -> None:
    table = LeaseTable(either)
    await table.lease(DAY, "a", NOON, LATER, lambda left: 100)
    other = Budget("other", "other", 1000, "day")
    await table.lease(other, "b", NOON, LATER + HOUR, lambda left: 100)

    async def known() -> list[str]:
        async with either.reader() as connection:
            return await budgets.accounts(connection)

    await table.forget((), NOON)
    assert await known() == [DAY.account, other.account]
    await table.forget((), LATER)
    assert await known() == [other.account]
    await table.forget({other.account}, LATER + HOUR)
    assert await known() == [other.account]
    await table.forget((), LATER + HOUR)
    assert await known() == []


async def test_a_budget_that_comes_back_begins_with_the_calls(either: Store) -> None:
    table = LeaseTable(either)
    await table.lease(DAY, "a", NOON, LATER, lambda left: 100)
    await table.forget((), LATER)
    await either.write([call(request_id="while it was away", timestamp=NOON, cost_nano_usd=70)])
    assert (await table.standing(DAY, NOON)).spent == 70
    assert await table.lease(DAY, "a", NOON, LATER, lambda left: 0) == (0, 830, 70)


async def test_a_lease_grows_is_renewed_and_given_back(either: Store) -> None:
    table = LeaseTable(either)
    await table.lease(DAY, "a", NOON, LATER, lambda left: 100)
    assert await table.lease(DAY, "a", NOON, LATER, lambda left: 50) == (50, 850, 0)
    await table.renew([("a", 20, LATER + 60_000)])
    assert (await table.standing(DAY, LATER)).leased == 20
    await table.renew([("gone", 20, LATER)])


async def test_a_lease_whose_time_is_over_goes(either: Store) -> None:
    table = LeaseTable(either)
    await table.lease(DAY, "a", NOON, LATER, lambda left: 1000)
    assert await table.lease(DAY, "b", LATER, LATER + 60_000, lambda left: 600) == (600, 400, 0)
    # The first comes back with all that it had: what it holds counts although it was given away.
    assert (await table.lease(DAY, "a", LATER, LATER + 60_000, everything))[0] == 0
    await table.lease(DAY, "c", LATER + HOUR + 1, LATER + 2 * HOUR, lambda left: 1)
    async with either.reader() as connection:
        rows = await connection.exec_driver_sql("SELECT id FROM budget_leases ORDER BY id")
        assert [row.id for row in rows] == ["b", "c"]


async def test_every_window_has_leases_of_its_own(either: Store) -> None:
    table = LeaseTable(either)
    await table.lease(DAY, "a", NOON, NOON + 48 * HOUR, everything)
    assert (await table.lease(DAY, "b", NOON + 24 * HOUR, LATER, everything))[0] == 1000
    rolling = Budget("r", "r", 1000, "24h")
    assert starts(rolling, NOON) == 0
    await table.lease(rolling, "c", NOON, NOON + 48 * HOUR, everything)
    assert (await table.lease(rolling, "d", NOON + 24 * HOUR, LATER, everything))[0] == 0


async def test_the_audit_adds_the_calls_up_again(either: Store) -> None:
    table = LeaseTable(either)
    await table.lease(DAY, "a", NOON, LATER, lambda left: 100)
    await either.write([call(cost_nano_usd=70, timestamp=NOON, leases=("a",))])
    found = await table.audit(DAY, NOON)
    assert (found.spent, found.recomputed, found.calls, found.unpriced) == (70, 70, 1, 0)
    await either.write([call(cost_nano_usd=9, timestamp=NOON)])  # by somebody who does not know
    found = await table.audit(DAY, NOON)
    assert (found.spent, found.recomputed, found.calls) == (79, 79, 2)
    assert (await table.standing(DAY, NOON)).leased == 30


async def test_without_a_database_nothing_is_leased() -> None:
    table = LeaseTable(Store("sqlite+aiosqlite:////dev/null/none.db"))
    with pytest.raises(StoreError):
        await table.lease(DAY, "a", NOON, LATER, everything)
    with pytest.raises(StoreError):
        await table.standing(DAY, NOON)


async def test_two_processes_spend_one_budget(either: Store, other: Store) -> None:
    await other.open()
    async with asyncio.TaskGroup() as tasks:
        books = [Ledger(LeaseTable(each), tasks.create_task) for each in (either, other)]
        found = await asyncio.gather(*[book.reserve(book.account(DAY), 100) for book in books * 40])
        held = [each for each in found if each is not None]
        assert len(held) == 10
        for each in held:
            each.release()
        for book in books:
            await book.renew()
            await book.renew()
        assert (await LeaseTable(either).standing(DAY, now_ms())).leased == 0
