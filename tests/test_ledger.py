from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from unittest import mock

import msgspec
import pytest
import pytest_asyncio

from proxy import ledger
from proxy.budget import Budget
from proxy.budgets.account import SLICES
from proxy.ledger import Ledger
from proxy.store.address import StoreError
from proxy.store.leases import Grant

TEN = Budget("b", "b", 1000, "day")
CALL = 100


class Table:
    """A ledger's table that waits until it is let, and counts how often it is asked."""

    def __init__(self, left: int = 1000) -> None:
        self.left = left
        self.leased = 0
        self.lost: set[str] = set()
        self.asked = 0
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.renewed: list[tuple[str, int]] = []

    async def lease(
        self, budget: Budget, id: str, now: int, until: int, grant: Callable[[int], int]
    ) -> Grant:
        self.asked += 1
        await self.open.wait()
        if self.error is not None:
            raise self.error
        granted = grant(self.left)
        self.leased += granted
        self.left -= granted
        return Grant(granted, self.left, budget.limit_nano - self.left - self.leased)

    async def renew(self, leases: Sequence[tuple[str, int, int]]) -> set[str]:
        if self.error is not None:
            raise self.error
        self.renewed += [(id, amount) for id, amount, _ in leases]
        return {id for id, *_ in leases if id not in self.lost}


@pytest.fixture
def table() -> Table:
    return Table()


@pytest_asyncio.fixture
async def book(table: Table) -> AsyncIterator[Ledger]:
    async with asyncio.TaskGroup() as tasks:
        yield Ledger(table, tasks.create_task)  # type: ignore[arg-type]


async def test_of_all_that_wait_one_asks(table: Table, book: Ledger) -> None:
    account = book.account(TEN)
    table.open.clear()
    waiting = [asyncio.ensure_future(book.reserve(account, CALL)) for _ in range(50)]
    await asyncio.sleep(0)
    table.open.set()
    found = await asyncio.gather(*waiting)
    assert sum(held is not None for held in found) == 10
    assert table.asked == 1
    assert account.wanted == 0
    assert await book.reserve(account, CALL) is None
    assert table.asked == 1  # it is known for a moment


async def test_what_is_leased_is_asked_for_no_more(table: Table, book: Ledger) -> None:
    table.left = 10**6
    account = book.account(Budget("b", "b", 10**6, "day"))
    for _ in range(101):
        assert await book.reserve(account, CALL) is not None
    assert table.asked == 1


async def test_a_small_call_goes_where_a_large_one_cannot(table: Table, book: Ledger) -> None:
    account = book.account(TEN)
    large, small = await asyncio.gather(book.reserve(account, 2000), book.reserve(account, 10))
    assert large is None
    assert small is not None


async def test_a_call_that_is_given_up_leaves_nothing_behind(table: Table, book: Ledger) -> None:
    account = book.account(TEN)
    table.open.clear()
    waiting = asyncio.ensure_future(book.reserve(account, CALL))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert account.wanted == 0
    table.open.set()
    held = await book.reserve(account, CALL)
    assert held is not None
    assert held.lease.reserved == CALL


async def test_a_ledger_that_is_away_leaves_what_is_leased(table: Table, book: Ledger) -> None:
    account = book.account(TEN)
    account.wanted = CALL  # as if another had waited
    assert await book.reserve(account, CALL) is not None
    account.wanted = 0
    table.error = StoreError("no database")
    assert await book.reserve(account, CALL) is not None
    for _ in range(3):
        with pytest.raises(StoreError, match="no database"):
            await book.reserve(account, CALL)
    assert table.asked == 2  # and not again for a moment
    table.error, account.trusted = None, float("-inf")
    assert await book.reserve(account, CALL) is not None


async def test_for_a_soft_budget_all_together_wait_a_moment(table: Table, book: Ledger) -> None:
    account = book.account(msgspec.structs.replace(TEN, mode="soft"))
    table.open.clear()
    with mock.patch.object(ledger, "SOFT_SECONDS", 0.01):
        for _ in range(2000):  # more than could each wait as long
            with pytest.raises(StoreError, match="does not answer"):
                await book.reserve(account, CALL)
    assert table.asked == 1
    table.open.set()
    assert await book.reserve(account, CALL) is not None


async def test_nobody_waits_for_ever(table: Table, book: Ledger) -> None:
    table.open.clear()
    with (
        mock.patch.object(ledger, "WAIT_SECONDS", 0.01),
        pytest.raises(StoreError, match="does not answer"),
    ):
        await book.reserve(book.account(TEN), CALL)
    table.open.set()


async def test_what_nobody_needs_is_given_back(table: Table, book: Ledger) -> None:
    account = book.account(TEN)
    account.wanted = 400
    held = await book.reserve(account, CALL)
    assert held is not None
    assert held.lease.amount == 500
    await book.renew()
    assert table.renewed == [(held.lease.id, CALL + 1000 // SLICES)]
    await book.renew()  # nothing was reserved since
    assert table.renewed[-1] == (held.lease.id, CALL)
    assert account.lease is held.lease
    held.use(40)
    held.release()
    await book.renew()
    assert table.renewed[-1] == (held.lease.id, 40)
    assert account.lease is None
    await book.renew()
    assert len(table.renewed) == 3


async def test_what_calls_let_go_is_given_back_at_once_where_others_may_lack_it(
    table: Table, book: Ledger
) -> None:
    account = book.account(TEN)
    held = await book.reserve(account, 1000)
    assert held is not None
    with mock.patch.object(ledger, "_SOON", 0.0), mock.patch.object(ledger, "RENEW_SECONDS", 60.0):
        running = asyncio.ensure_future(book.run())
        await asyncio.sleep(0.01)
        assert table.renewed == []
        held.use(30)
        book.release(account, held)
        await asyncio.sleep(0.01)
        assert table.renewed == [(held.lease.id, 30)]
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert account.current(ledger.now_ms(), ledger.monotonic()) is held.lease


async def test_a_lease_that_is_not_there_any_more_is_no_lease(table: Table, book: Ledger) -> None:
    account = book.account(TEN)
    held = await book.reserve(account, CALL)
    assert held is not None
    table.lost.add(held.lease.id)
    await book.renew()
    again = await book.reserve(account, 1)
    assert again is not None
    assert again.lease is not held.lease


async def test_a_budget_keeps_its_account_until_it_is_no_more(table: Table, book: Ledger) -> None:
    account = book.account(TEN)
    held = await book.reserve(account, CALL)
    assert held is not None
    assert book.account(Budget("b", "renamed", 2000, "day")) is account
    assert account.budget.name == "renamed"
    book.forget(())
    assert book.account(TEN) is account  # something is leased
    held.release()
    await book.renew()
    await book.renew()
    book.forget({TEN.account})
    assert book.account(TEN) is account
    book.forget(())
    assert book.account(TEN) is not account


async def test_a_lease_that_cannot_be_renewed_ends(table: Table, book: Ledger) -> None:
    account = book.account(TEN)
    account.wanted = 400
    held = await book.reserve(account, CALL)
    assert held is not None
    until = held.lease.until
    table.error = StoreError("no database")
    with pytest.raises(StoreError):
        await book.renew()
    assert held.lease.until == until
    held.lease.until = 0.0
    with pytest.raises(StoreError):
        await book.reserve(account, CALL)


async def test_at_the_end_all_is_given_back(table: Table, book: Ledger) -> None:
    account = book.account(TEN)
    account.wanted = 400
    held = await book.reserve(account, CALL)
    assert held is not None
    held.use(70)
    held.release()
    await book.close()
    assert table.renewed == [(held.lease.id, 70)]
    table.error = StoreError("no database")
    await book.close()
