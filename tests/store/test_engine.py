from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL, func, select, text

from proxy.store import salvage, schema
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.store.tables import api_calls
from tests.store.databases import migrated
from tests.store.rows import call, rows


async def test_what_is_written_another_connection_sees(store: Store, path: Path) -> None:
    await store.write([call(request_id="one")])
    assert [row["request_id"] for row in rows(path, "SELECT * FROM api_calls")] == ["one"]


async def test_readers_cannot_write(either: Store) -> None:
    with pytest.raises(StoreError, match="read"):
        async with either.reader() as connection:
            await connection.execute(text("DELETE FROM api_calls"))


async def test_a_reader_sees_one_moment(either: Store) -> None:
    count = select(func.count()).select_from(api_calls)
    async with either.reader() as connection:
        assert await connection.scalar(count) == 0
        await either.write([call()])
        assert await connection.scalar(count) == 0
    async with either.reader() as connection:
        assert await connection.scalar(count) == 1


async def test_a_store_without_address_keeps_nothing(tmp_path: Path) -> None:
    store = Store(None)
    await store.open()
    await store.write([call()])
    async with store.reader() as connection:
        assert await connection.scalar(select(func.count()).select_from(api_calls)) == 0
    assert store.location is None
    assert not store.keeps
    await store.close()


async def test_a_locked_database_is_told_and_written_later(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"cannot use the database .*: database is locked"):
            await store.write([call(request_id="late")])
        other.execute("COMMIT")
    await store.write([call(request_id="late")])
    assert len(rows(path, "SELECT * FROM api_calls")) == 1


async def test_it_can_be_opened_while_another_process_writes(path: Path) -> None:
    other = Store(f"sqlite+aiosqlite:///{path}")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        await other.open()
        async with other.reader() as reader:
            assert await reader.scalar(select(func.count()).select_from(api_calls)) == 0
        connection.execute("COMMIT")
    await other.close()


async def test_a_database_that_cannot_be_opened_is_opened_by_a_later_write(
    path: Path, tmp_path: Path
) -> None:
    place = tmp_path / "later"
    place.touch()  # a file where a folder should be
    store = Store(f"sqlite+aiosqlite:///{place}/t.db")
    with pytest.raises(StoreError, match="cannot create the folder"):
        await store.open()
    with pytest.raises(StoreError, match="not open"):
        async with store.reader():
            pass
    with pytest.raises(StoreError):
        await store.write([call()])
    place.unlink()
    place.mkdir()
    shutil.move(path, place / "t.db")
    await store.write([call()])
    assert len(rows(place / "t.db", "SELECT * FROM api_calls")) == 1
    await store.close()


async def test_a_closed_store_can_be_opened_again(store: Store, path: Path) -> None:
    await store.write([call()])
    await store.close()
    await store.write([call()])
    assert len(rows(path, "SELECT * FROM api_calls")) == 2


async def test_pragmas_hold_on_every_connection(store: Store) -> None:
    async with store.reader() as connection:
        for pragma, value in {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2}.items():
            assert await connection.scalar(text(f"PRAGMA {pragma}")) == value


def deleted(path: Path) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()


def moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))  # its -wal and -shm stay


def replaced(path: Path) -> None:
    """By an empty one, as ``sqlite3 FILE`` leaves it."""
    path.unlink()
    path.touch()


Removal = Callable[[Path], None]


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new database is a copy, as its migration takes a process and seconds."""

    async def copy(address: URL) -> None:
        path = Path(str(address.database))
        path.with_name(f"{path.name}-wal").unlink(missing_ok=True)  # as SQLite does
        shutil.copy(migrated("sqlite"), path)

    monkeypatch.setattr(schema, "_migrate", copy)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("remove", [deleted, moved, replaced])
async def test_a_file_that_was_taken_away_is_made_anew_and_that_is_told(
    store: Store, path: Path, caplog: pytest.LogCaptureFixture, remove: Removal
) -> None:
    await store.write([call()], {"s": (0, 9)})
    assert await store.positions() == {"s": 9}
    remove(path)
    with pytest.raises(StoreError, match="was deleted, moved or replaced"):
        await store.write([call(request_id="new")], {"s": (9, 12)})
    assert await store.positions() == {}, "a mover has to begin again"
    await store.write([call(request_id="old"), call(request_id="new")], {"s": (0, 12)})
    found = rows(path, "SELECT request_id FROM api_calls ORDER BY id")
    assert [row["request_id"] for row in found] == ["old", "new"]
    async with store.reader() as connection:
        assert await connection.scalar(select(func.count()).select_from(api_calls)) == 2
    told = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert len(told) == 1
    assert f"{path} was deleted, moved or replaced while in use, and" in told[0].message


@pytest.mark.usefixtures("_quick")
async def test_what_moves_no_position_is_written_into_the_new_file_at_once(
    store: Store, path: Path
) -> None:
    await store.write([call()])
    deleted(path)
    await store.write([call(request_id="new")])
    assert [row["request_id"] for row in rows(path, "SELECT * FROM api_calls")] == ["new"]


@pytest.mark.usefixtures("_quick")
async def test_a_file_that_goes_while_it_is_written_has_taken_nothing(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = salvage.write

    async def too_late(*words: object) -> int:
        done = await write(*words)  # type: ignore[arg-type]
        deleted(path)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(salvage, "write", too_late)
        with pytest.raises(StoreError, match="was deleted"):
            await store.write([call()], {"s": (0, 9)})
    assert await store.positions() == {}
    await store.write([call()], {"s": (0, 9)})
    assert len(rows(path, "SELECT * FROM api_calls")) == 1


@pytest.mark.usefixtures("_quick")
async def test_positions_hold_for_one_file_alone(store: Store, path: Path) -> None:
    """Though it was a reader who found that the file is another."""
    await store.write([call()], {"s": (0, 9)})
    deleted(path)
    async with store.reader() as connection:
        assert await connection.scalar(select(func.count()).select_from(api_calls)) == 0
    with pytest.raises(StoreError, match="was deleted"):
        await store.write([call(request_id="other")], {"t": (0, 9)})


@pytest.mark.usefixtures("_quick")
async def test_a_reader_comes_back_once_a_new_file_can_be_made(store: Store, path: Path) -> None:
    deleted(path)
    os.mkdir(path)
    for _ in range(2):
        with pytest.raises(StoreError):
            async with store.reader():
                pass
    os.rmdir(path)
    async with store.reader() as connection:
        assert await connection.scalar(select(func.count()).select_from(api_calls)) == 0


@pytest.mark.usefixtures("_quick")
async def test_who_still_reads_a_file_that_was_taken_away_may_end(store: Store, path: Path) -> None:
    count = select(func.count()).select_from(api_calls)
    await store.write([call()])
    async with store.reader() as old:
        assert await old.scalar(count) == 1
        deleted(path)
        async with store.reader() as new:
            assert await new.scalar(count) == 0
        assert await old.scalar(count) == 1
    async with store.reader():
        assert not store._parting, "and its connection is closed"
