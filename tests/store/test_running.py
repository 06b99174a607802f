from __future__ import annotations

from sqlalchemy import func, select

from proxy.store import running
from proxy.store.engine import Store
from proxy.store.running import Key, States
from proxy.store.tables import running_figures

HOUR = 3_600_000


async def saved(store: Store, new: States, now: int) -> States:
    """Saves states, and reads them again."""
    async with (await store.writer()).begin() as connection:
        await running.save(connection, await running.load(connection, new), new, now)
        return await running.load(connection, new)


async def test_a_state_is_kept_under_its_key(either: Store) -> None:
    states: dict[Key, bytes] = {("a", 'b"', 60): b'{"1":2}', ("a", 'b"', 61): "ä".encode()}
    assert await saved(either, {}, 0) == {}
    assert await saved(either, states, 0) == states
    assert await saved(either, {("a", 'b"', 60): b"[]"}, 0) == {("a", 'b"', 60): b"[]"}
    async with either.reader() as connection:
        assert await running.load(connection, [("a",)]) == {}
        assert await running.load(connection, [("a", 'b"', 61)]) == {("a", 'b"', 61): "ä".encode()}


async def test_a_state_that_nothing_changes_for_an_hour_goes(either: Store) -> None:
    await saved(either, {("old",): b"1", ("new",): b"1"}, 0)
    await saved(either, {("new",): b"2"}, HOUR)
    await saved(either, {("other",): b"1"}, HOUR + 1)
    async with either.reader() as connection:
        names = await connection.scalars(select(running_figures.c.name))
        assert sorted(names) == ['["new"]', '["other"]']
        assert await connection.scalar(select(func.max(running_figures.c.until))) == 2 * HOUR + 1
