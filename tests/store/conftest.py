from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from proxy.store.address import parse
from proxy.store.engine import Store
from proxy.store.migrate import migrate

WINDOWS = {"groq": {"requests": 86_400, "tokens": 60}}
SERVER = {"host": "127.0.0.1", "port": 5432, "user": "root", "timeout": 2}


async def _execute(statement: str) -> None:
    connection = await asyncpg.connect(**SERVER, database="postgres")
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _reachable() -> list[str]:
    try:
        asyncio.run(_execute("SELECT 1"))
    except (OSError, asyncpg.PostgresError):
        return ["sqlite"]
    return ["sqlite", "postgresql"]


REACHABLE = _reachable()
"""The databases that there are here; PostgreSQL need not be."""


def _url(database: str) -> str:
    return f"postgresql+asyncpg://root@127.0.0.1:5432/{database}"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database at the newest revision, to be copied: migrating takes half a second."""
    path = tmp_path_factory.mktemp("migrated") / "empty.db"
    asyncio.run(migrate(parse(f"sqlite+aiosqlite:///{path}")))
    return path


@pytest.fixture(scope="session")
def template() -> Iterator[str]:
    """The same in PostgreSQL: the name of a database to make others from; "" without a server."""
    if "postgresql" not in REACHABLE:
        yield ""
        return
    name = f"tollkeeper_{secrets.token_hex(6)}"
    asyncio.run(_execute(f"CREATE DATABASE {name}"))
    try:
        asyncio.run(migrate(parse(_url(name))))
        yield name
    finally:
        asyncio.run(_execute(f"DROP DATABASE {name}"))


@pytest.fixture
def path(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "tollkeeper.db"))


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite+aiosqlite:///{path}", windows=WINDOWS)
    await store.open()
    yield store
    await store.close()


@pytest.fixture(params=REACHABLE)
async def empty(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The address of a database without any table, on each kind of database in turn."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/new.db"
        return
    name = f"tollkeeper_{secrets.token_hex(6)}"
    await _execute(f"CREATE DATABASE {name}")
    try:
        yield _url(name)
    finally:
        await _execute(f"DROP DATABASE {name}")


@pytest.fixture(params=REACHABLE)
async def either(request: pytest.FixtureRequest, path: Path, template: str) -> AsyncIterator[Store]:
    """A store on each kind of database in turn."""
    if request.param == "sqlite":
        made = Store(f"sqlite+aiosqlite:///{path}", windows=WINDOWS)
        await made.open()
        yield made
        await made.close()
        return
    name = f"tollkeeper_{secrets.token_hex(6)}"
    await _execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    made = Store(_url(name), windows=WINDOWS)
    try:
        await made.open()
        yield made
    finally:
        await made.close()
        await _execute(f"DROP DATABASE {name}")
