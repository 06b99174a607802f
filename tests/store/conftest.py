from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.store.address import parse
from proxy.store.engine import Store
from proxy.store.migrate import migrate
from tests.store.databases import REACHABLE, address, database, execute

WINDOWS = {"groq": {"requests": 86_400, "tokens": 60}}


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
    asyncio.run(execute(f"CREATE DATABASE {name}"))
    try:
        asyncio.run(migrate(parse(address(name))))
        yield name
    finally:
        asyncio.run(execute(f"DROP DATABASE {name}"))


@pytest.fixture(scope="session")
def like(migrated: Path, template: str) -> dict[str, str | Path]:
    """What a database of each kind begins with, to be at the newest revision."""
    return {"sqlite": migrated, "postgresql": template}


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
    async with database(request.param, tmp_path) as url:
        yield url


@pytest.fixture(params=REACHABLE)
async def ready(
    request: pytest.FixtureRequest, tmp_path: Path, like: dict[str, str | Path]
) -> AsyncIterator[str]:
    """The address of a database at the newest revision, on each kind in turn."""
    async with database(request.param, tmp_path, like[request.param]) as url:
        yield url


@pytest.fixture
async def either(ready: str) -> AsyncIterator[Store]:
    """A store on each kind of database in turn."""
    made = Store(ready, windows=WINDOWS)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def other(ready: str) -> AsyncIterator[Store]:
    """A second store on the database of ``either``, as another process would have it."""
    made = Store(ready, windows=WINDOWS)
    yield made
    await made.close()
