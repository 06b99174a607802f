from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import delete

from proxy.clock import now_ms
from proxy.store import coverage
from proxy.store.coverage import Piece, cover
from proxy.store.engine import Store
from proxy.store.groups import whole
from proxy.store.rollups import DAY, HOUR, MINUTE
from proxy.store.tables import api_calls
from tests.store.rows import anything, call

MIDNIGHT = now_ms() // DAY * DAY - DAY  # of yesterday


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "FEW", -1)


async def covered(
    store: Store, start: int, end: int, longest: int = DAY, by: Sequence[str] = (), **filters: Any
) -> list[Piece]:
    async with store.reader() as connection:
        return await cover(connection, anything(start=start, end=end, **filters), longest, by)


async def requests(store: Store, start: int, end: int) -> int:
    async with store.reader() as connection:
        found = await whole(connection, anything(start=start, end=end))
    return int(found["totals"]["requests"])


def told(pieces: list[Piece]) -> list[str]:
    """The pieces' tables, if they follow on each other."""
    assert all(one.end == two.start for one, two in pairwise(pieces))
    return [piece.table.name.removeprefix("rollups_") for piece in pieces]


async def test_a_window_is_days_hours_minutes_and_calls(store: Store) -> None:
    await store.write([call(timestamp=MIDNIGHT), call()])
    start, end = MIDNIGHT - 3 * DAY - HOUR - 90_001, MIDNIGHT + 2 * HOUR + 3 * MINUTE + 5
    pieces = await covered(store, start, end)
    assert told(pieces) == ["api_calls", "hour", "day", "hour", "minute", "api_calls"]
    assert (pieces[0].start, pieces[-1].end) == (start, end)
    assert told(await covered(store, start, end, HOUR)) == [
        "api_calls",
        "hour",
        "minute",
        "api_calls",
    ]
    assert told(await covered(store, end, end)) == []
    assert told(await covered(store, end, end + 7)) == ["api_calls"]


async def test_a_window_that_lasts_until_now_ends_with_whole_rollups(store: Store) -> None:
    now = now_ms()
    await store.write([call(timestamp=now - 5)])
    assert told(await covered(store, MIDNIGHT, now + 1)) == ["day"]
    await store.write([call(timestamp=now + DAY)])  # by the clock of another machine
    assert told(await covered(store, MIDNIGHT, now + 1))[-1] == "api_calls"


async def test_rollups_older_than_they_are_kept_are_not_counted_on(store: Store) -> None:
    await store.write([call()])
    start = MIDNIGHT - 500 * DAY + HOUR
    assert told(await covered(store, start, MIDNIGHT)) == ["api_calls", "day"]
    assert told(await covered(store, start, MIDNIGHT, HOUR)) == ["api_calls", "hour"]
    # Minutes are there for 47 hours: in the last hour of a day not for all of yesterday.
    assert told(await covered(store, start, MIDNIGHT + DAY, MINUTE)) == ["api_calls", "minute"]


async def test_few_calls_are_looked_at_one_by_one_while_they_are_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "FEW", 3)
    await store.write([call(timestamp=MIDNIGHT + n) for n in range(3)])
    window = (MIDNIGHT - DAY, MIDNIGHT + DAY)
    assert await covered(store, *window) == [Piece(api_calls, *window)]
    async with (await store.writer()).begin() as connection:
        await connection.execute(delete(api_calls).where(api_calls.c.timestamp == MIDNIGHT))
    assert told(await covered(store, *window)) == ["day"]
    await store.write([call(timestamp=MIDNIGHT + 9)])
    assert told(await covered(store, *window)) == ["day"]


@pytest.mark.parametrize(
    "asked",
    [
        {"min_latency_ms": 5.0},
        {"min_tokens": 1},
        {"user": ("ann",)},
        {"session": ("s-1",)},
        {"tag": ("eu",)},
        {"by": ("provider", "user_id")},
        {"by": ("tag",)},
    ],
)
async def test_what_rollups_do_not_know_is_asked_of_calls(
    store: Store, asked: dict[str, Any]
) -> None:
    await store.write([call()])
    pieces = await covered(store, MIDNIGHT - DAY, MIDNIGHT, **asked)
    assert pieces == [Piece(api_calls, MIDNIGHT - DAY, MIDNIGHT)]


async def test_windows_that_meet_count_deleted_calls_once(either: Store) -> None:
    """However the hours lie in which the windows meet, and whether or not their calls are gone."""
    begin = MIDNIGHT - 10 * DAY
    await either.write([call(timestamp=begin + n * 10 * MINUTE) for n in range(36)])
    middles = (begin + 2 * HOUR, begin + 2 * HOUR + 25 * MINUTE, begin + 5 * HOUR + 1)
    for _ in range(2):
        for middle in middles:
            before = await requests(either, begin, middle)
            after = await requests(either, middle, begin + DAY)
            assert before + after == 36
        async with (await either.writer()).begin() as connection:
            await connection.execute(delete(api_calls))
    assert await requests(either, begin - DAY, now_ms()) == 36


async def test_a_call_that_comes_late_does_not_hide_those_that_are_gone(either: Store) -> None:
    begin = MIDNIGHT - 10 * DAY
    await either.write([call(timestamp=begin + n * MINUTE) for n in range(40)])
    async with (await either.writer()).begin() as connection:
        await connection.execute(delete(api_calls))
    await either.write([call(timestamp=begin + 5 * MINUTE)])
    assert await requests(either, begin - DAY, begin + 45 * MINUTE) == 41
