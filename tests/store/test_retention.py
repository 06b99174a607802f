from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, insert, select

from proxy.changes import SwitchRecord
from proxy.clock import now_ms
from proxy.content import pack
from proxy.store import patience, retention
from proxy.store.address import StoreError
from proxy.store.archive import Archive, ArchiveError
from proxy.store.engine import Store
from proxy.store.tables import api_calls, metadata, rollups_day, rollups_hour, rollups_minute
from proxy.types import CallRecord
from tests.store.databases import REACHABLE, database
from tests.store.reading import read
from tests.store.rows import call, rows
from tests.store.rows import read as read_table
from tests.store.stories import NOON, content, everything, let_in

DAY = 86_400_000
ROLLED = {"rollups_minute", "rollups_hour"}
AGING = {age.table.name for age in (*retention.AGES, *retention.CONTENTS)} - ROLLED
KEPT = {"daily_costs", "models", "client_keys", "client_secrets", "rollup_series", "rollups_day"}
KEPT |= {"api_credits", "budget_windows"}
PASSING = {"running_figures", "budget_leases"}
"""Rows that go by themselves, within the hour."""
JOURNAL = {"journal_positions"}
"""A row goes with its segment."""


def count(path: Path, table: str) -> int:
    return rows(path, f"SELECT count(*) AS n FROM {table}")[0]["n"]


def test_every_table_has_its_age_or_is_kept_for_ever() -> None:
    assert metadata.tables.keys() == AGING | ROLLED | KEPT | PASSING | JOURNAL


async def test_what_is_old_goes_from_every_table_but_costs_and_models(
    store: Store, path: Path
) -> None:
    now = now_ms()
    await store.write(everything(now - 31 * DAY, "old") + everything(now, "new"))
    await let_in(store, now - 31 * DAY)
    before = {table: count(path, table) for table in (*AGING, *KEPT)}
    assert all(before.values())
    assert await retention.prune(store, 0, now) == 0
    assert {table: count(path, table) for table in (*AGING, *KEPT)} == before
    assert await retention.prune(store, 30, now) > 0
    after = {table: count(path, table) for table in (*AGING, *KEPT)}
    assert all(after[table] * 2 == before[table] for table in AGING)
    assert all(after[table] == before[table] for table in KEPT)
    (left,) = rows(path, "SELECT DISTINCT model FROM api_calls")
    assert left["model"] == "new"


@pytest.mark.parametrize("days", [0, 30])
async def test_rollups_go_at_their_own_age(either: Store, days: int) -> None:
    now = now_ms()
    ages = {"minute": 47, "hour": 399 * 24}  # hours; then beyond
    await either.write([call(timestamp=now - hours * DAY // 24) for hours in (0, *ages.values())])
    async with (await either.writer()).begin() as connection:
        for span, hours in ages.items():
            table = metadata.tables[f"rollups_{span}"]
            oldest = select(table).order_by(table.c.start).limit(1)
            (row,) = (await connection.execute(oldest)).mappings()
            older = dict(row) | {"start": now - (hours + 25) * DAY // 24}
            await connection.execute(insert(table), older)
    assert await retention.prune(either, days, now) >= 2
    for table, left in ((rollups_minute, 2 * 2), (rollups_hour, 3 * 2), (rollups_day, 3 * 2)):
        assert len(await read_table(either, table)) == left


async def test_health_that_nothing_touched_goes(store: Store, path: Path) -> None:
    now = now_ms()
    await store.write([call()])
    await retention.prune(store, 30, now + 29 * DAY)
    assert count(path, "provider_health") == 1
    await retention.prune(store, 30, now + 31 * DAY)
    assert count(path, "provider_health") == 0


async def test_a_key_that_an_operator_took_out_stays_out(store: Store, path: Path) -> None:
    now = now_ms()
    await store.write([SwitchRecord("groq", "k", "org", True, now - 400 * DAY)])
    await retention.prune(store, 30, now)
    assert count(path, "rate_limits") == 1


async def test_many_rows_go_in_chunks_and_the_file_shrinks(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_PAUSE", 0)
    old = now_ms() - 40 * DAY
    await store.write([call(timestamp=old) for _ in range(2401)])

    def pages() -> int:
        with closing(sqlite3.connect(path)) as connection:
            return int(connection.execute("PRAGMA page_count").fetchone()[0])

    full = pages()
    assert await retention.run(store, 30) >= 2401
    assert count(path, "api_calls") == 0
    assert pages() < full / 2


async def test_a_store_that_keeps_nothing_has_nothing_to_delete() -> None:
    assert await retention.run(Store(None), 30) == 0


@pytest.mark.parametrize("ages", [retention.AGES, ()], ids=["deleting", "giving pages back"])
async def test_who_has_the_database_locked_for_a_while_is_waited_for(
    store: Store, path: Path, ages: Sequence[Column[int]]
) -> None:
    await store.write([call(timestamp=now_ms() - 40 * DAY)])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE free AS SELECT zeroblob(100000)")
        other.execute("DROP TABLE free")
        other.execute("BEGIN IMMEDIATE")
        before = now_ms() - 30 * DAY
        task = asyncio.create_task(retention.let_go(store, before, ages=ages))
        await asyncio.sleep(1.5)  # longer than a connection waits
        assert not task.done()
        other.execute("ROLLBACK")
        deleted = await asyncio.wait_for(task, 20)
    assert bool(deleted) == bool(ages)
    assert count(path, "api_calls") == (not ages)
    assert not rows(path, "PRAGMA freelist_count")[0]["freelist_count"]


async def test_a_locked_database_is_told(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_TRIES", 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            await retention.run(store, 30)


# With an archive.


def archived(folder: Path) -> dict[str, list[str]]:
    """The request ids in each file."""
    return {
        file.name: [row["request_id"] for row in read("jsonl.gz", api_calls, file.read_bytes())]
        for file in sorted(folder.glob("api_calls-*"))
    }


async def left(store: Store) -> list[str]:
    async with store.reader() as connection:
        found = await connection.scalars(select(api_calls.c.request_id).order_by(api_calls.c.id))
        return list(found)


def days(*names: str) -> list[CallRecord]:
    """Calls at noon of the days after ``NOON``, each named after its day."""
    return [call(request_id=name, timestamp=NOON + int(name[0]) * DAY) for name in names]


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    monkeypatch.setattr(retention, "_PAUSE", 0)
    monkeypatch.setattr(retention, "_CHUNK", 2)
    return Archive(tmp_path / "archive")


@pytest.mark.parametrize("kind", REACHABLE)
async def test_whole_days_are_in_their_files_before_they_go(
    kind: str, tmp_path: Path, archive: Archive
) -> None:
    async with database(kind, tmp_path) as url:
        store = Store(url)
        await store.open()
        try:
            await store.write(days("0a", "1a", "0b", "1b", "0c", "3a"))
            async with store.reader() as connection:
                query = select(api_calls).where(api_calls.c.timestamp < NOON + DAY)
                before = [dict(row) for row in (await connection.execute(query)).mappings()]
            assert await retention.prune(store, 1, NOON + 3 * DAY - 1, archive) > 0
            assert await left(store) == ["3a"]
        finally:
            await store.close()
    assert archived(archive.folder) == {
        "api_calls-2025-01-01.jsonl.gz": ["0a", "0b", "0c"],
        "api_calls-2025-01-02.jsonl.gz": ["1a", "1b"],
    }
    file = archive.folder / "api_calls-2025-01-01.jsonl.gz"
    assert read("jsonl.gz", api_calls, file.read_bytes()) == before


async def test_a_day_that_is_not_over_waits(store: Store, archive: Archive) -> None:
    await store.write(days("0a", "1a"))
    for hours in (25, 35):
        await retention.prune(store, 1, NOON + hours * DAY // 24, archive)
        assert await left(store) == ["0a", "1a"]
    assert archived(archive.folder) == {}
    await retention.prune(store, 1, NOON + 36 * DAY // 24, archive)
    assert await left(store) == ["1a"]


async def test_after_a_crash_every_row_is_there_once(
    store: Store, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write(days("0a", "0b", "0c", "1a"))
    delete, steps = retention._delete, [0]

    async def crash(*args: Any) -> int:
        steps[0] += 1
        if steps[0] == 3:  # the first looks for contents
            raise OSError("the power went")
        return await delete(*args)

    monkeypatch.setattr(retention, "_delete", crash)
    with pytest.raises(StoreError, match="the power went"):
        await retention.prune(store, 1, NOON + 9 * DAY, archive)
    assert await left(store) == ["0c", "1a"]
    await store.write(days("0d"))  # and one that comes late
    await retention.prune(store, 1, NOON + 9 * DAY, archive)
    assert archived(archive.folder) == {
        "api_calls-2025-01-01.jsonl.gz": ["0a", "0b", "0c", "0d"],
        "api_calls-2025-01-02.jsonl.gz": ["1a"],
    }
    assert await left(store) == []


async def test_a_row_that_comes_between_writing_and_deleting_is_not_lost(
    store: Store, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write(days("0a"))
    keep, late = archive.keep, days("0b")

    async def slow(*args: Any) -> Any:
        ids = await keep(*args)
        await store.write(late)
        late.clear()
        return ids

    monkeypatch.setattr(archive, "keep", slow)
    await retention.prune(store, 1, NOON + 9 * DAY, archive)
    assert archived(archive.folder) == {"api_calls-2025-01-01.jsonl.gz": ["0a", "0b"]}


async def test_without_its_archive_nothing_goes_and_the_log_says_so_once(
    store: Store, path: Path, archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    await store.write(everything(now_ms() - 40 * DAY))
    before = {table: count(path, table) for table in metadata.tables} | {"call_contents": 0}
    archive.folder.write_text("no folder")
    for _ in range(3):
        with pytest.raises(ArchiveError):
            await retention.run(store, 30, archive)
    assert {table: count(path, table) for table in metadata.tables} == before
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("old rows are kept, as they are to be archived first: cannot write")
    archive.folder.unlink()
    assert await retention.run(store, 30, archive) > 0
    assert archive.trouble is None


async def test_what_would_go_is_what_goes(store: Store, archive: Archive) -> None:
    await store.write(everything(NOON) + everything(NOON + DAY, "other"))
    for before, kept in ((NOON + DAY // 4, archive), (NOON + 1, None), (now_ms() + DAY, archive)):
        async with store.reader() as connection:
            found = await retention.old(connection, before, kept is not None)
        steps: list[int] = []
        assert await retention.let_go(store, before, kept, steps.append) == sum(found.values())
        assert sum(steps) == sum(found.values())


@pytest.mark.parametrize(
    ("days", "content_days", "left"),
    [(30, 7, [6]), (3, 7, []), (0, 7, [6]), (30, 0, [6, 8, 29]), (0, 0, [6, 8, 29, 31])],
)
async def test_contents_go_before_their_calls(
    store: Store, path: Path, days: int, content_days: int, left: list[int]
) -> None:
    now = now_ms()
    ages = (6, 8, 29, 31)
    await store.write([call(timestamp=now - age * DAY) for age in ages])
    await store.write([content(f"r{age}", now - age * DAY) for age in ages])
    await retention.prune(store, days, now, content_days=content_days)
    kept = rows(path, "SELECT request_id FROM call_contents ORDER BY timestamp DESC")
    assert [row["request_id"] for row in kept] == [f"r{age}" for age in left]
    assert count(path, "api_calls") == sum(not days or age < days for age in ages)


async def test_contents_wait_for_no_archive(store: Store, path: Path, tmp_path: Path) -> None:
    now = now_ms()
    await store.write([call(timestamp=now - 40 * DAY), content("r", now - 40 * DAY)])
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ArchiveError):
        await retention.run(store, 30, Archive(tmp_path / "file" / "archive"), 7)
    assert (count(path, "api_calls"), count(path, "call_contents")) == (1, 0)


async def test_of_a_deleted_content_nothing_is_left_on_the_disk(store: Store, path: Path) -> None:
    kept = pack("0123456789")
    await store.write([content("r", now_ms() - 8 * DAY, "0123456789")])
    assert kept in b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
    await retention.prune(store, 30, now_ms(), content_days=7)
    await store.close()  # and with it the WAL
    assert kept not in b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
