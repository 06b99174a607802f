from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.store.tables import api_calls
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
