from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from proxy.store import schema
from proxy.store.address import SchemaError
from proxy.store.engine import Store


def test_alembic_stays_out_of_the_serving_process() -> None:
    """Looked at in a process of its own, since the tests import everything."""
    code = "import sys, proxy.store.engine; sys.exit('alembic' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_an_empty_database_has_no_revision_and_gets_the_newest(tmp_path: Path) -> None:
    store = Store(f"sqlite+aiosqlite:///{tmp_path}/deep/er/new.db")
    await store.open()
    assert await schema.revision(await store.writer()) == schema.HEAD
    await store.close()


async def test_a_database_at_the_newest_revision_needs_no_child(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_migrate", None)
    store = Store(f"sqlite+aiosqlite:///{path}")
    await store.open()
    await store.close()


async def test_a_newer_database_is_not_opened(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    store = Store(f"sqlite+aiosqlite:///{path}")
    with pytest.raises(SchemaError, match="newer version"):
        await store.open()
