from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from proxy.clock import now_ms
from proxy.store import partitions, retention
from proxy.store.archive import Archive
from proxy.store.costs import day
from proxy.store.engine import Reader, Store
from proxy.store.partitions import AHEAD, BEHIND, Partitions
from proxy.store.tables import api_calls
from tests.store.databases import REACHABLE, database, migrated
from tests.store.reading import read as read_file
from tests.store.rows import call, read

pytestmark = pytest.mark.skipif("postgresql" not in REACHABLE, reason="there is no PostgreSQL")

DAY = 86_400_000
TODAY = now_ms() // DAY * DAY


def name(at: int) -> str:
    return "api_calls_" + day(at).replace("-", "")


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with database("postgresql", tmp_path, migrated("postgresql")) as url:
        yield url


@pytest.fixture
async def store(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    monkeypatch.setattr(partitions, "now_ms", lambda: TODAY + DAY // 2)
    made = Store(url)
    await made.open()
    yield made
    await made.close()


@asynccontextmanager
async def reading(store: Store) -> AsyncIterator[Reader]:
    """Somebody who holds the table, such as a dump."""
    async with store.reader() as connection:
        await connection.execute(text("SELECT count(*) FROM api_calls"))
        yield connection


async def tell(store: Store, statement: str) -> None:
    async with (await store.writer()).begin() as connection:
        await connection.exec_driver_sql(statement)


async def places(store: Store) -> dict[str, list[str]]:
    """The ids of the requests in each partition that has any."""
    found: dict[str, list[str]] = {}
    async with store.reader() as connection:
        query = "SELECT tableoid::regclass::text, request_id FROM api_calls ORDER BY id"
        for place, request in await connection.execute(text(query)):
            found.setdefault(place, []).append(request)
    return found


async def names(store: Store) -> list[str]:
    async with store.reader() as connection:
        query = "SELECT inhrelid::regclass::text FROM pg_inherits"
        query += " WHERE inhparent = 'api_calls'::regclass ORDER BY 1"
        return list(await connection.scalars(text(query)))


async def test_every_day_has_its_partition_and_what_is_far_away_another(store: Store) -> None:
    await store.write(
        [
            call(request_id="now", timestamp=TODAY),
            call(request_id="first", timestamp=TODAY - 2 * DAY),
            call(request_id="last", timestamp=TODAY - DAY - 1),
            call(request_id="soon", timestamp=TODAY + AHEAD * DAY),
            call(request_id="late", timestamp=TODAY - (BEHIND + 1) * DAY),
            call(request_id="wrong", timestamp=TODAY + (AHEAD + 1) * DAY),
        ]
    )
    assert await places(store) == {
        name(TODAY - 2 * DAY): ["first", "last"],
        name(TODAY): ["now"],
        name(TODAY + AHEAD * DAY): ["soon"],
        "api_calls_default": ["late", "wrong"],
    }
    days = [TODAY - 2 * DAY, *(TODAY + ahead * DAY for ahead in range(AHEAD + 1))]
    assert await names(store) == [*map(name, days), "api_calls_default"]


async def test_what_came_before_its_partition_moves_there_and_is_found_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = call(request_id="early", timestamp=TODAY + 9 * DAY, seed=7)
    await store.write([early])
    before = await read(store, api_calls)
    assert list(await places(store)) == ["api_calls_default"]
    monkeypatch.setattr(partitions, "now_ms", lambda: TODAY + 3 * DAY)
    await store.write([early, call(request_id="new", timestamp=TODAY + 9 * DAY)])
    assert await places(store) == {name(TODAY + 9 * DAY): ["early", "new"]}
    assert (await read(store, api_calls, "request_id"))[0] == before[0]


async def test_a_partition_that_cannot_be_made_now_costs_no_row(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = TODAY - 5 * DAY
    async with reading(store):
        await store.write([call(request_id="first", timestamp=old)])
    assert await places(store) == {"api_calls_default": ["first"]}
    await store.write([call(request_id="second", timestamp=old)])
    assert list(await places(store)) == ["api_calls_default"], "not with every batch"
    monkeypatch.setattr(partitions, "_REST_SECONDS", 0.0)
    monkeypatch.setattr(store, "_partitions", Partitions())
    await store.write([call(request_id="third", timestamp=old)])
    assert await places(store) == {name(old): ["first", "second", "third"]}


async def test_who_may_not_make_one_is_told_once_and_writes(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    old = TODAY - 5 * DAY
    await tell(store, f"CREATE TABLE {name(old)} (x int)")  # something is in the way
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            await store.write([call(request_id=f"r{number}", timestamp=old)])
    assert await places(store) == {"api_calls_default": ["r0", "r1", "r2"]}
    [said] = [record.getMessage() for record in caplog.records]
    assert said == f'no partition can be made: relation "{name(old)}" already exists'


async def test_several_nodes_make_the_same_ones(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them may have to give up: then what it wrote moves a little later."""
    nodes = [store, Store(url), Store(url)]
    batches = [[call(timestamp=TODAY - days * DAY) for days in range(1, 12)] for _ in nodes]
    work = zip(nodes, batches, strict=True)
    await asyncio.gather(*(node.write(batch) for node, batch in work))
    for node in nodes[1:]:
        await node.close()
    monkeypatch.setattr(store, "_partitions", Partitions())
    await store.write(batches[1])
    found = await places(store)
    assert {place: len(rows) for place, rows in found.items()} == {
        name(TODAY - days * DAY): 3 for days in range(1, 12)
    }


async def test_old_days_go_whole_and_stragglers_go_too(store: Store) -> None:
    await store.write([call(timestamp=TODAY - days * DAY) for days in (9, 3, 2, 2, 1, 400)])
    await tell(
        store,
        "CREATE TABLE api_calls_mine PARTITION OF api_calls FOR VALUES"
        " FROM ('2001-01-01 00:00:00+00') TO ('2002-01-01 00:00:00+00')",
    )
    found, left = await names(store), [TODAY - 2 * DAY, TODAY - DAY]
    assert await retention.prune(store, 2, TODAY + DAY // 2) >= 3
    assert list(await places(store)) == [*map(name, left)]
    gone = {name(TODAY - days * DAY) for days in (9, 3)}
    assert set(found) - set(await names(store)) == gone, "and not what somebody else has made"


async def test_a_day_that_somebody_reads_waits(store: Store) -> None:
    await store.write([call(timestamp=TODAY - 5 * DAY), call(timestamp=TODAY - 4 * DAY)])
    async with reading(store):
        assert [count async for count in partitions.drop(await store.writer(), TODAY)] == []
        await store.write([call(timestamp=TODAY - 5 * DAY)])
    assert [count async for count in partitions.drop(await store.writer(), TODAY)] == [2, 1]
    assert await read(store, api_calls) == []


async def test_a_row_that_comes_while_its_day_is_put_away_is_put_away_too(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = TODAY - 40 * DAY
    archive = Archive(tmp_path / "archive")
    await store.write([call(request_id="b", timestamp=old)])  # has no partition
    old = TODAY - 10 * DAY
    await store.write([call(request_id="a", timestamp=old)])
    late, keep = [call(request_id="late", timestamp=old)], archive.keep

    async def slow(*args: object) -> object:
        ids = await keep(*args)  # type: ignore[arg-type]
        await store.write(late)
        late.clear()
        return ids

    monkeypatch.setattr(archive, "keep", slow)
    await retention.prune(store, 2, TODAY, archive)
    assert await places(store) == {name(old): ["a", "late"]}
    await retention.prune(store, 2, TODAY, archive)
    assert await places(store) == {}
    files = {file.name: file.read_bytes() for file in archive.folder.glob("api_calls-*")}
    kept = {
        file: [row["request_id"] for row in read_file("jsonl.gz", api_calls, data)]
        for file, data in files.items()
    }
    assert kept == {
        f"api_calls-{day(TODAY - 40 * DAY)}.jsonl.gz": ["b"],
        f"api_calls-{day(old)}.jsonl.gz": ["a", "late"],
    }
