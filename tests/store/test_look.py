from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from proxy.store.address import StoreError
from proxy.store.look import look


def url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


async def test_one_can_read_what_is_there(path: Path) -> None:
    async with look(url(path)) as connection:
        assert await connection.scalar(text("SELECT count(*) FROM api_calls")) == 0


async def test_nothing_can_be_written(path: Path) -> None:
    with pytest.raises(StoreError, match="readonly"):
        async with look(url(path)) as connection:
            await connection.execute(text("DELETE FROM api_calls"))


async def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database"):
        async with look(url(tmp_path / "none.db")):
            raise AssertionError
    assert not (tmp_path / "none.db").exists()


async def test_another_version_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(StoreError, match="of another version"):
        async with look(url(path)):
            raise AssertionError


async def test_what_is_no_database_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("this is no database, and long enough to look like a page of one" * 100)
    with pytest.raises(StoreError, match="file is not a database") as raised:
        async with look(url(path)):
            raise AssertionError
    assert not isinstance(raised.value, OperationalError)
