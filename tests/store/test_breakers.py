from __future__ import annotations

from typing import Any

import pytest

from proxy.changes import BreakerRecord
from proxy.store import breakers
from proxy.store.engine import Store
from proxy.store.tables import provider_health, provider_health_events
from tests.store.rows import call, failed, read

AT = 1_735_732_800_000


@pytest.fixture
def store(either: Store) -> Store:
    return either


def opened(at: int = AT, **changes: Any) -> BreakerRecord:
    values = {"from_state": "closed", "to_state": "open", "reason": "server_error", "openings": 1}
    until = {"until": at + 10_000, "at": at}
    return BreakerRecord(**{"provider": "groq", "model": "llama", **values, **until, **changes})


def turned(before: str, after: str, at: int, **changes: Any) -> BreakerRecord:
    reason = {"half_open": "elapsed", "closed": "recovered"}[after]
    values = {"from_state": before, "to_state": after, "reason": reason, "until": None}
    return opened(at, **{**values, "openings": 0 if after == "closed" else 1, **changes})


async def loaded(store: Store) -> list[tuple[str, str, int | None, int]]:
    async with store.reader() as connection:
        found = await breakers.load(connection)
    return sorted((turn.model, turn.to_state, turn.until, turn.openings) for turn in found)


async def test_every_turn_is_logged_and_the_last_state_is_held(store: Store) -> None:
    turns = [
        opened(),
        turned("open", "half_open", AT + 10_000),
        opened(AT + 10_500, from_state="half_open", until=AT + 30_500, openings=2),
    ]
    await store.write(turns)
    events = await read(store, provider_health_events, "timestamp")
    assert events[0] == {
        "timestamp": AT,
        "provider": "groq",
        "model": "llama",
        "from_state": "closed",
        "to_state": "open",
        "reason": "server_error",
        "open_until": AT + 10_000,
        "openings": 1,
    }
    assert [event["to_state"] for event in events] == ["open", "half_open", "open"]
    [row] = await read(store, provider_health)
    assert (row["state"], row["open_until"], row["openings"]) == ("open", AT + 30_500, 2)
    assert (row["provider"], row["model"], row["key_id"]) == ("groq", "llama", "")
    assert row["updated_at"] == AT + 10_500
    assert not row["is_healthy"]


async def test_the_same_turns_twice_are_logged_once(store: Store) -> None:
    turns = [opened(), opened(model="other"), turned("open", "half_open", AT + 10_000)]
    await store.write(turns)
    tables = (provider_health, provider_health_events)
    before = [await read(store, table, "model") for table in tables]
    assert [len(rows) for rows in before] == [2, 3]
    await store.write(turns)
    assert [await read(store, table, "model") for table in tables] == before
    assert store.refused == 0


async def test_what_is_not_closed_is_read_again(store: Store) -> None:
    await store.write([opened(model="a"), opened(model="b"), opened(model="c")])
    await store.write([turned("open", "half_open", AT + 1, model="b", openings=3)])
    await store.write([turned("half_open", "closed", AT + 2, model="c")])
    assert await loaded(store) == [("a", "open", AT + 10_000, 1), ("b", "half_open", None, 3)]


async def test_calls_leave_the_state_alone_and_the_state_leaves_their_figures(
    store: Store,
) -> None:
    await store.write([failed(timestamp=AT), opened()])
    await store.write([call(timestamp=AT), failed(timestamp=AT + 5000)])
    [row] = await read(store, provider_health)
    assert (row["state"], row["open_until"], row["openings"]) == ("open", AT + 10_000, 1)
    assert (row["consecutive_failures"], row["last_success_time"]) == (1, AT + 1000)
    await store.write([turned("open", "half_open", AT + 10_000)])
    [row] = await read(store, provider_health)
    assert (row["state"], row["open_until"]) == ("half_open", None)
    assert (row["consecutive_failures"], row["last_success_time"]) == (1, AT + 1000)


async def test_nothing_is_read_from_a_table_of_calls_alone(store: Store) -> None:
    await store.write([failed(), failed(), failed()])
    assert await loaded(store) == []


async def test_no_turns_are_no_rows(store: Store) -> None:
    await store.write([call()])
    assert await read(store, provider_health_events) == []
