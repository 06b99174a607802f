from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.store.address import StoreError
from proxy.store.credits import Account, Credits, Period, next_reset
from proxy.store.engine import Store

MAIN = Account("search", "tavily", "main")
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
HOUR = 3_600_000


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NOON = at("2026-01-31T12:00")
_names = (f"k-{number}" for number in count())


def left(row: Any) -> tuple[float | None, float, bool]:
    return row["credits_remaining"], row["credits_used_total"], row["is_exhausted"]


@pytest.mark.parametrize(
    ("period", "now", "reset"),
    [
        ("daily", "2026-01-31T12:00", "2026-02-01T00:00"),
        ("daily", "2026-12-31T23:59:59.999", "2027-01-01T00:00"),
        ("monthly", "2026-01-31T12:00", "2026-02-01T00:00"),
        ("monthly", "2024-02-29T00:00", "2024-03-01T00:00"),
        ("monthly", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("monthly", "2026-04-30T23:59:59.999", "2026-05-01T00:00"),
    ],
)
def test_a_period_is_the_calendars(period: Period, now: str, reset: str) -> None:
    assert next_reset(period, at(now)) == at(reset)
    assert next_reset("never", at(now)) is None


async def test_credits_are_used_up_and_never_less_than_none(either: Store) -> None:
    credits = Credits(either)
    row = await credits.allow(MAIN, 3, "monthly", NOON)
    assert left(row) == (3, 0, False)
    assert row["reset_at"] == at("2026-02-01T00:00")
    found = [await credits.consume(MAIN, amount, NOON) for amount in (1, 2.5, 2, 1e-6)]
    assert [used for used, _ in found] == [True, False, True, False]
    assert [left(row) for _, row in found] == [
        (2, 1, False),
        (2, 1, False),
        (0, 3, True),
        (0, 3, True),
    ]


async def test_ten_tenths_are_one(either: Store) -> None:
    credits = Credits(either)
    await credits.allow(MAIN, 1, "never", NOON)
    assert all([(await credits.consume(MAIN, 0.1, NOON))[0] for _ in range(10)])
    used, row = await credits.consume(MAIN, 0.1, NOON)
    assert (used, left(row)) == (False, (0, 1, True))


@pytest.mark.parametrize(
    ("period", "back"), [("daily", "2026-02-01T00:00"), ("monthly", "2026-02-01T00:00")]
)
async def test_the_allowance_is_restored_as_its_period_ends(
    either: Store, period: Period, back: str
) -> None:
    credits = Credits(either)
    await credits.allow(MAIN, 2, period, NOON)
    await credits.consume(MAIN, 2, NOON)
    assert not (await credits.consume(MAIN, 1, at(back) - 1))[0]
    used, row = await credits.consume(MAIN, 1, at(back))
    assert (used, left(row)) == (True, (1, 3, False))
    assert row is not None
    assert row["reset_at"] == next_reset(period, at(back))
    later = at("2027-05-05T05:05")
    assert left((await credits.consume(MAIN, 3, later))[1]) == (2, 3, False)


async def test_what_never_comes_back_does_not(either: Store) -> None:
    credits = Credits(either)
    await credits.allow(MAIN, 1, "never", NOON)
    await credits.consume(MAIN, 1, NOON)
    assert not (await credits.consume(MAIN, 1, at("2099-01-01T00:00")))[0]


async def test_what_has_no_end_is_counted(either: Store) -> None:
    credits = Credits(either)
    row = await credits.allow(MAIN, None, "daily", NOON)
    assert left(row) == (None, 0, False)
    for now in (NOON, NOON + 24 * HOUR):
        used, row = await credits.consume(MAIN, 1e6, now)
        assert used
    assert left(row) == (None, 2e6, False)


async def test_saying_an_allowance_again_restores_nothing(either: Store) -> None:
    credits = Credits(either)
    await credits.allow(MAIN, 10, "monthly", NOON)
    await credits.consume(MAIN, 4, NOON)
    for allowance, remaining in ((10, 6), (12, 8), (3, 0), (10, 6)):
        row = await credits.allow(MAIN, allowance, "monthly", NOON)
        assert left(row) == (remaining, 4, remaining == 0)
    assert left(await credits.allow(MAIN, None, "monthly", NOON)) == (None, 4, False)
    await credits.consume(MAIN, 0.5, NOON)
    assert left(await credits.allow(MAIN, 5, "daily", NOON)) == (0.5, 4.5, False)
    assert not (await credits.consume(MAIN, 1, NOON))[0]
    await credits.consume(MAIN, 0.5, NOON)
    assert left(await credits.allow(MAIN, 5, "daily", NOON + 24 * HOUR)) == (5, 5, False)


async def test_an_allowance_that_is_said_again_after_its_reset_is_whole(either: Store) -> None:
    credits, tomorrow = Credits(either), NOON + 24 * HOUR
    await credits.allow(MAIN, 5, "daily", NOON)
    await credits.consume(MAIN, 5, NOON)
    await credits.allow(MAIN, 5, "daily", tomorrow)
    assert (await credits.consume(MAIN, 5, tomorrow))[0]


async def test_accounts_do_not_know_each_other(either: Store) -> None:
    credits = Credits(either)
    await credits.allow(MAIN, 1, "never", NOON)
    await credits.allow(MAIN._replace(kind="pages"), 5, "never", NOON)
    await credits.consume(MAIN, 1, NOON)
    other = (await credits.consume(MAIN._replace(kind="pages"), 1, NOON))[1]
    assert left(other) == (4, 1, False)
    assert await credits.consume(MAIN._replace(key_id="other"), 1, NOON) == (False, None)


async def test_of_many_at_once_in_two_processes_as_many_get_some_as_there_is(
    either: Store, other: Store
) -> None:
    await other.open()
    places = Credits(either), Credits(other)
    await places[0].allow(MAIN, 10, "never", NOON)
    asked = [places[number % 2].consume(MAIN, 1, NOON) for number in range(40)]
    assert sum(used for used, _ in await asyncio.gather(*asked)) == 10
    assert left((await places[1].consume(MAIN, 1, NOON))[1]) == (0, 10, True)


async def test_of_many_at_once_at_a_reset_it_is_restored_once(either: Store, other: Store) -> None:
    await other.open()
    places = Credits(either), Credits(other)
    await places[0].allow(MAIN, 10, "daily", NOON)
    await places[0].consume(MAIN, 10, NOON)
    later = NOON + 24 * HOUR
    asked = [places[number % 2].consume(MAIN, 1, later) for number in range(40)]
    assert sum(used for used, _ in await asyncio.gather(*asked)) == 10


async def test_where_nothing_is_kept_nothing_is_counted() -> None:
    store = Store(None)
    credits = Credits(store)
    assert not credits.kept
    with pytest.raises(StoreError):
        await credits.consume(MAIN, 1, NOON)
    await store.close()


micro = st.integers(0, 5_000_000)
steps = st.one_of(
    st.tuples(st.just("use"), st.integers(1, 3_000_000)),
    st.tuples(st.just("wait"), st.integers(0, 40 * 24 * HOUR)),
    st.tuples(st.just("allow"), micro),
)


@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
@given(micro, st.sampled_from(("monthly", "daily", "never")), st.lists(steps, max_size=8))
async def test_whatever_happens_it_is_what_a_ledger_of_the_period_says(
    store: Store, allowance: int, period: Period, happens: list[tuple[str, int]]
) -> None:
    """Nothing is used that was not there, and no credit is lost or made."""
    credits, account, now = Credits(store), MAIN._replace(key_id=next(_names)), NOON
    await credits.allow(account, allowance / 1e6, period, now)
    used_now, used_ever, reset = 0, 0, next_reset(period, now)
    for what, value in happens:
        if what == "wait":
            now += value
        if reset is not None and now >= reset:
            used_now, reset = 0, next_reset(period, now)
        if what == "allow":
            row: Any = await credits.allow(account, value / 1e6, period, now)
            allowance = value
        if what == "use":
            done, row = await credits.consume(account, value / 1e6, now)
            assert done == (value <= allowance - used_now)
            if done:
                used_now, used_ever = used_now + value, used_ever + value
        if what != "wait":
            remaining = max(0, allowance - used_now)
            assert left(row) == (remaining / 1e6, used_ever / 1e6, remaining == 0)
            assert row["reset_at"] == reset
