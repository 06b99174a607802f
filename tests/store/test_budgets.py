from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event, select

from proxy.budget import Budget
from proxy.periods import HOUR_MS
from proxy.store import budgets
from proxy.store.budgets import DEAREST
from proxy.store.engine import Store
from proxy.store.tables import budget_leases, budget_windows
from proxy.types import CallRecord
from tests.store.rows import call
from tests.store.stories import NOON

DAY = Budget("day", "day", 1000, "day")
ROLLING = Budget("rolling", "rolling", 1000, "24h")


async def begun(store: Store, budget: Budget, at: int = NOON) -> int:
    async with (await store.writer()).begin() as connection:
        return await budgets.begin(connection, budget, at)


async def spent(store: Store, budget: Budget, at: int = NOON) -> int:
    async with store.reader() as connection:
        return await budgets.spent(connection, budget, at)


async def recomputed(store: Store, budget: Budget, at: int = NOON) -> tuple[int, int, int]:
    async with store.reader() as connection:
        return await budgets.recomputed(connection, budget, budget.span.window(at))


def charged(cost: int | None, at: int = NOON, **more: Any) -> CallRecord:
    return call(cost_nano_usd=cost, timestamp=at, **more)


async def test_a_call_that_comes_twice_is_paid_once(either: Store) -> None:
    await begun(either, DAY)
    calls = [charged(30), charged(12), charged(None), charged(-5), charged(0)]
    await either.write(calls)
    await either.write([*calls, charged(8)])
    assert await spent(either, DAY) == 50
    assert await recomputed(either, DAY) == (50, 5, 1)


async def test_what_was_spent_before_anybody_asked_counts(either: Store) -> None:
    await either.write([charged(30), charged(5)])
    assert await spent(either, DAY) == 35
    assert await begun(either, DAY) == 35
    await either.write([charged(7)])
    assert await begun(either, DAY) == await spent(either, DAY) == 42


async def test_a_rolling_window_is_counted_by_hours(either: Store) -> None:
    hour = NOON - NOON % HOUR_MS
    await either.write([call(cost_nano_usd=2**n, timestamp=hour - n * HOUR_MS) for n in range(27)])
    assert await spent(either, ROLLING) == 2**25 - 1
    assert await begun(either, ROLLING) == 2**25 - 1
    assert await spent(either, ROLLING, NOON + HOUR_MS) == 2**25 - 1 - 2**24
    later = NOON + 3 * HOUR_MS
    await either.write([charged(2**30, later)])
    assert await begun(either, ROLLING, later) == (2**22 - 1) + 2**30
    async with either.reader() as connection:
        assert len((await connection.execute(select(budget_windows))).all()) == 25


async def test_a_budget_counts_its_own_calls_alone(either: Store) -> None:
    await either.write(
        [
            call(cost_nano_usd=1, timestamp=NOON, provider="groq", client_id="ck-1"),
            call(cost_nano_usd=10, timestamp=NOON, provider="groq"),
            call(cost_nano_usd=100, timestamp=NOON, provider="lab", client_id="ck-1"),
            call(cost_nano_usd=1000, timestamp=NOON + 24 * HOUR_MS, provider="lab"),
        ]
    )
    scopes = [("all", ""), ("client", "ck-1"), ("provider", "groq"), ("provider", "other")]
    found = [await spent(either, Budget("b", "b", 1, "day", *scope)) for scope in scopes]
    assert found == [111, 101, 11, 0]


@pytest.mark.parametrize("begins_first", [True, False])
async def test_every_budget_counts_its_calls_whoever_makes_them(
    either: Store, begins_first: bool
) -> None:
    tags = '["nightly","a, b"]'
    calls = [
        charged(1, provider="groq", client_id="ck-1", user_id="a: b", tags=tags),
        charged(10, provider="groq", user_id="a"),
        charged(100, provider="lab", tags='["night"]'),
        charged(1000, NOON - 24 * HOUR_MS, provider="groq"),
    ]
    expected = {
        ("all", ""): 111,
        ("client", "ck-1"): 1,
        ("user", "a: b"): 1,
        ("tag", "nightly"): 1,
        ("provider", "groq"): 11,
        ("provider", "other"): 0,
    }
    zones = "UTC", "America/New_York"
    terms = [(scope, zone) for scope in expected for zone in zones]
    each = [Budget(f"b{n}", "b", 1, "day", *scope, zone) for n, (scope, zone) in enumerate(terms)]
    rolling = Budget("r", "r", 1, "24h")
    if begins_first:
        for budget in (*each, rolling):
            await begun(either, budget)
    await either.write(calls)
    found = [await begun(either, budget) for budget in each]
    assert found == [expected[scope] for scope, _ in terms]
    assert found == [(await recomputed(either, budget))[0] for budget in each]
    assert await begun(either, rolling) == 1111


async def test_a_budget_of_another_version_keeps_no_row_out(either: Store) -> None:
    rows = [
        {"account": name, "start": NOON, "spent_nano": 0} for name in ("", "x", "b all: age UTC")
    ]
    async with (await either.writer()).begin() as connection:
        await connection.execute(budget_windows.insert(), rows)
    await begun(either, DAY)
    await either.write([charged(5)])
    assert await spent(either, DAY) == 5


async def test_a_provider_that_names_an_absurd_cost_breaks_nothing(either: Store) -> None:
    await begun(either, DAY)
    await either.write([charged(2**55), charged(2**55), charged(5)])
    assert await spent(either, DAY) == 2 * DEAREST + 5
    assert (await recomputed(either, DAY))[0] == 2 * DEAREST + 5


async def test_the_lease_pays_with_the_call(either: Store) -> None:
    await begun(either, DAY)
    row = {"id": "l", "account": DAY.account, "start": 0, "amount_nano": 50, "expires_at": NOON}
    async with (await either.writer()).begin() as connection:
        await connection.execute(budget_leases.insert(), row)
    await either.write([charged(20, leases=("l",)), charged(5, leases=("gone", "l2"))])
    async with either.reader() as connection:
        held = [
            await budgets.leased(connection, DAY.account, 0, *more)
            for more in [(NOON - 1,), (NOON,), (NOON, "l")]
        ]
    assert held == [30, 0, 30]
    await either.write([charged(100, leases=("l",))])
    async with either.reader() as connection:
        assert await budgets.leased(connection, DAY.account, 0, NOON - 1) == 0


async def test_all_hours_of_a_rolling_window_are_added_up_at_once(
    store: Store,
) -> None:
    long = Budget("long", "long", 1000, "90d", "client", "ck-1")
    hour = NOON - NOON % HOUR_MS
    times = [hour - n * 37 * HOUR_MS for n in range(50)]
    await store.write([call(cost_nano_usd=1, timestamp=at, client_id="ck-1") for at in times])
    asked: list[str] = []
    with every_statement(asked):
        assert await spent(store, long) == 50
        assert await begun(store, long) == 50
    assert len(asked) < 12
    assert await spent(store, long) == 50


@contextmanager
def every_statement(asked: list[str]) -> Iterator[None]:
    """Every statement that is executed meanwhile."""

    def told(_: Any, __: Any, statement: str, *___: Any) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", told)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", told)
