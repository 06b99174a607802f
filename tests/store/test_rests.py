from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.changes import CooldownRecord, CountRecord, LiftRecord, SwitchRecord
from proxy.store import rests
from proxy.store.engine import Store
from proxy.store.tables import rate_limits
from tests.store.rows import call, read

AT = 1_735_732_800_000
ORDER = ("provider", "model", "key_id", "account", "limit_type")


@pytest.fixture
def store(either: Store) -> Store:
    return either


def rest(until: int, at: int = AT, **changes: Any) -> CooldownRecord:
    """A quota group's, because its key org-a was refused."""
    values = {"model": "llama", "key_id": "org-a", "account": "org", "reason": "rate_limit"}
    return CooldownRecord(
        **{"provider": "groq", "backoff_count": 1, **values, "until": until, "at": at, **changes}
    )


def count(used: int, at: int = AT, **changes: Any) -> CountRecord:
    values = {"model": "", "key_id": "org-a", "account": "org", "limit_type": "requests_day"}
    more = {"limit": 100, "window_seconds": 86_400, "reset": AT + 9000}
    return CountRecord(**{"provider": "groq", **values, **more, "used": used, "at": at, **changes})


async def loaded(store: Store, now: int = AT) -> list[CooldownRecord]:
    async with store.reader() as connection:
        return await rests.load_cooldowns(connection, now)


async def switched_off(store: Store) -> list[tuple[str, str]]:
    async with store.reader() as connection:
        return await rests.load_switches(connection)


# Cool-downs.


async def test_a_rest_is_read_as_it_was_written(store: Store) -> None:
    group = rest(AT + 10_000, source="header")
    family = rest(AT + 20_000, model="*:free", source="body", probe_at=AT + 5000)
    key = rest(AT + 30_000, model="", account="", reason="authentication", backoff_count=3)
    provider = rest(AT + 40_000, key_id="", account="", reason="overloaded")
    await store.write([provider, key, family, group])
    assert await loaded(store) == [group, family, key, provider]


async def test_a_rest_makes_one_row_with_all_that_is_known(store: Store) -> None:
    await store.write([rest(AT + 10_000, probe_at=AT + 3000)])
    [row] = await read(store, rate_limits)
    assert {name: value for name, value in row.items() if value is not None} == {
        "provider": "groq",
        "model": "llama",
        "key_id": "org-a",
        "account": "org",
        "limit_type": "cooldown",
        "cooldown_until": AT + 10_000,
        "cooldown_reason": "rate_limit",
        "probe_at": AT + 3000,
        "backoff_count": 1,
        "hit_count": 1,
        "last_hit_at": AT,
        "source": "local",
        "last_updated": AT,
    }


async def test_a_longer_rest_is_never_shortened(store: Store) -> None:
    first = rest(AT + 60_000, reason="quota_exceeded", probe_at=AT + 30_000)
    await store.write([first])
    await store.write([rest(AT + 10_000, AT + 1, backoff_count=2, source="header")])
    [row] = await read(store, rate_limits)
    assert row["cooldown_until"] == AT + 60_000
    assert (row["cooldown_reason"], row["probe_at"]) == ("quota_exceeded", AT + 30_000)
    assert (row["backoff_count"], row["hit_count"], row["last_hit_at"]) == (2, 2, AT + 1)
    assert (row["source"], row["last_updated"]) == ("header", AT + 1)


async def test_a_longer_rest_takes_the_place_of_a_shorter_one(store: Store) -> None:
    await store.write([rest(AT + 10_000, probe_at=AT + 5000), rest(AT + 60_000, AT + 1)])
    [row] = await read(store, rate_limits)
    assert (row["cooldown_until"], row["probe_at"], row["hit_count"]) == (AT + 60_000, None, 2)


async def test_the_same_rest_twice_is_one_hit(store: Store) -> None:
    for _ in range(2):
        await store.write([rest(AT + 60_000), rest(AT + 70_000, AT + 5)])
    [row] = await read(store, rate_limits)
    assert (row["hit_count"], row["cooldown_until"]) == (2, AT + 70_000)


async def test_an_earlier_rest_that_comes_late_changes_no_later_one(store: Store) -> None:
    await store.write([rest(AT + 60_000, AT + 9, backoff_count=2)])
    await store.write([rest(AT + 50_000, AT + 1)])
    [row] = await read(store, rate_limits)
    assert (row["cooldown_until"], row["backoff_count"]) == (AT + 60_000, 2)
    assert (row["last_hit_at"], row["last_updated"]) == (AT + 9, AT + 9)


async def test_a_rest_that_is_over_is_not_read(store: Store) -> None:
    await store.write([rest(AT + 10_000), rest(AT + 20_000, model="other")])
    assert [each.model for each in await loaded(store, AT + 10_000)] == ["other"]
    assert await loaded(store, AT + 20_000) == []


async def test_a_rest_for_a_reason_of_another_version_is_left_out(store: Store) -> None:
    await store.write([rest(AT + 10_000), rest(AT + 20_000, model="other", reason="sunspots")])
    assert [each.model for each in await loaded(store)] == ["llama"]


async def test_of_a_group_the_longest_rest_is_read_last(store: Store) -> None:
    long, short = rest(AT + 90_000, key_id="org-b"), rest(AT + 5000, AT + 9, key_id="org-a")
    middle = rest(AT + 50_000, AT + 1, key_id="org-c")
    await store.write([long, middle, short])
    assert await loaded(store) == [short, middle, long]


async def test_a_limit_of_headers_is_no_rest(store: Store) -> None:
    headers = ((b"x-ratelimit-limit-requests", b"10"), (b"x-ratelimit-remaining-requests", b"0"))
    await store.write([call(rate_headers=headers), count(3)])
    assert len(await read(store, rate_limits)) == 2
    assert await loaded(store) == []


# What is over before its time.


async def test_a_lift_ends_a_groups_rest_whichever_key_was_refused(store: Store) -> None:
    await store.write([rest(AT + 10_000), rest(AT + 20_000, key_id="org-b")])
    await store.write([rest(AT + 30_000, model="other"), rest(AT + 30_000, account="other")])
    await store.write([LiftRecord("groq", "llama", "", "org", AT + 5)])
    left = {(each.model, each.account) for each in await loaded(store, AT + 5)}
    assert left == {("other", "org"), ("llama", "other")}
    lifted = [row for row in await read(store, rate_limits) if row["cooldown_until"] == AT + 5]
    assert [(row["backoff_count"], row["probe_at"]) for row in lifted] == [(0, None)] * 2
    assert [row["hit_count"] for row in lifted] == [1, 1]


@pytest.mark.parametrize(
    ("lift", "left"),
    [
        (LiftRecord("groq", "", "org-a", "", AT + 5), {"group", "target"}),
        (LiftRecord("groq", "llama", "", "", AT + 5), {"group", "key"}),
        (LiftRecord("groq", "llama", "", "org", AT + 5), {"key", "target"}),
        (LiftRecord("lab", "llama", "", "org", AT + 5), {"group", "key", "target"}),
    ],
)
async def test_a_lift_touches_nobody_else(store: Store, lift: LiftRecord, left: set[str]) -> None:
    group = rest(AT + 10_000)
    key = rest(AT + 10_000, model="", account="")
    target = rest(AT + 10_000, key_id="", account="")
    await store.write([group, key, target])
    await store.write([lift])
    names = {"group": group, "key": key, "target": target}
    assert {name for name, each in names.items() if each in await loaded(store, AT + 5)} == left


async def test_after_a_lift_a_short_rest_counts_again(store: Store) -> None:
    await store.write([rest(AT + 90_000), LiftRecord("groq", "llama", "", "org", AT + 5)])
    await store.write([rest(AT + 10_000, AT + 7)])
    [again] = await loaded(store, AT + 8)
    assert (again.until, again.backoff_count) == (AT + 10_000, 1)


async def test_a_lift_of_what_does_not_rest_makes_no_row(store: Store) -> None:
    await store.write([LiftRecord("groq", "llama", "", "org", AT)])
    assert await read(store, rate_limits) == []


async def test_rests_and_lifts_of_one_batch_hold_in_their_order(store: Store) -> None:
    lift = LiftRecord("groq", "llama", "", "org", AT + 5)
    items = [rest(AT + 90_000), lift, rest(AT + 20_000, AT + 6)]
    await store.write(items)
    before = await read(store, rate_limits)
    assert [each.until for each in await loaded(store, AT + 7)] == [AT + 20_000]
    await store.write(items)
    assert await read(store, rate_limits) == before


async def test_a_lift_that_comes_late_ends_no_rest_that_was_ordered_after_it(
    store: Store,
) -> None:
    await store.write([rest(AT + 10_000, AT + 6)])
    await store.write([LiftRecord("groq", "llama", "", "org", AT + 5)])
    assert [each.until for each in await loaded(store, AT + 7)] == [AT + 10_000]


# Keys that an operator took out.


async def test_a_key_that_was_taken_out_is_out_until_it_is_put_back(store: Store) -> None:
    await store.write([SwitchRecord("groq", "a", "org", True, AT)])
    await store.write([SwitchRecord("groq", "b", "org", True, AT)])
    await store.write([SwitchRecord("lab", "a", "org", True, AT)])
    assert sorted(await switched_off(store)) == [("groq", "a"), ("groq", "b"), ("lab", "a")]
    await store.write([SwitchRecord("groq", "a", "org", False, AT + 1)])
    assert sorted(await switched_off(store)) == [("groq", "b"), ("lab", "a")]
    assert await loaded(store) == []


async def test_the_last_word_of_a_batch_holds(store: Store) -> None:
    switches = [SwitchRecord("groq", "a", "org", out, AT + n) for n, out in enumerate([1, 0, 1])]
    await store.write(switches)
    await store.write(switches)
    [row] = await read(store, rate_limits)
    assert (row["limit_type"], row["cooldown_reason"]) == ("disabled", "operator")
    assert row["last_updated"] == AT + 2


async def test_a_key_is_put_back_though_its_group_has_another_name_now(store: Store) -> None:
    await store.write([SwitchRecord("groq", "a", "old", True, AT)])
    await store.write([SwitchRecord("groq", "a", "new", False, AT + 1)])
    assert await switched_off(store) == []


# Counts of configured limits.


async def test_a_count_is_the_whole_truth_of_its_limit(store: Store) -> None:
    await store.write([count(3), count(2, limit_type="requests_minute", window_seconds=60)])
    await store.write([count(140, AT + 1), count(9, AT + 2, reset=None)])
    await store.write([count(1, limit_type="concurrent", window_seconds=None, reset=None)])
    slots, day, minute = await read(store, rate_limits, "limit_type")
    assert (slots["current_count"], slots["remaining"], slots["window_seconds"]) == (1, 99, None)
    assert (day["current_count"], day["remaining"], day["limit_limit"]) == (9, 91, 100)
    assert (day["reset_time"], day["last_updated"], day["source"]) == (None, AT + 2, "config")
    assert (minute["current_count"], minute["reset_time"]) == (2, AT + 9000)
    assert (day["hit_count"], day["cooldown_until"]) == (0, None)


async def test_what_is_used_beyond_a_limit_leaves_nothing_and_not_less(store: Store) -> None:
    await store.write([count(140)])
    [row] = await read(store, rate_limits)
    assert (row["current_count"], row["remaining"]) == (140, 0)


async def test_counts_of_keys_groups_and_models_do_not_meet(store: Store) -> None:
    owners = [("org-a", "org", ""), ("", "org", ""), ("", "org", "llama")]
    counts = [
        count(used, key_id=key, account=group, model=model)
        for used, (key, group, model) in enumerate(owners, 1)
    ]
    await store.write(counts)
    await store.write(counts[::-1])
    rows = await read(store, rate_limits, "current_count")
    assert [(row["key_id"], row["account"], row["model"]) for row in rows] == owners


def test_the_same_statement_serves_every_batch() -> None:
    """It takes a millisecond to make."""
    assert rests._longest_rest("sqlite") is rests._longest_rest("sqlite")


@given(used=st.integers(0, 10**9), limit=st.integers(1, 10**9))
def test_what_remains_is_never_negative(used: int, limit: int) -> None:
    row = rests._count(count(used, limit=limit))
    assert 0 <= row["remaining"] <= limit
