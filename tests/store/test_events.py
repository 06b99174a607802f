from __future__ import annotations

from proxy.store import state
from proxy.store.engine import Store
from proxy.store.events import EventRecord
from proxy.store.tables import custom_events
from tests.store.rows import anything, read

FULL = EventRecord("e-1", 10, "cache_hit", 1.5, "r", "planner", "search", "master", '{"a":1}')


async def test_an_event_is_kept_once_with_all_that_is_known_of_it(either: Store) -> None:
    await either.write([FULL, FULL, EventRecord("e-2", 20, "deploy")])
    await either.write([FULL])
    assert either.refused == 0
    first, second = await read(either, custom_events, "timestamp")
    assert list(first.values()) == ["e-1", 10, "cache_hit", 1.5, "r", *list(first.values())[5:]]
    assert (first["agent_name"], first["tool_name"], first["client_id"]) == (
        "planner",
        "search",
        "master",
    )
    assert (second["name"], second["value"], second["metadata"]) == ("deploy", None, None)


async def test_events_are_listed_newest_first_with_their_attributes(either: Store) -> None:
    await either.write([FULL, EventRecord("e-2", 20, "deploy")])
    async with either.reader() as connection:
        found, _ = await state.page(connection, "events", anything(), 10, None)
        of_planner, _ = await state.page(
            connection, "events", anything(agent=("planner",)), 9, None
        )
    assert [row["name"] for row in found] == ["deploy", "cache_hit"]
    assert [row["metadata"] for row in of_planner] == [{"a": 1}]
