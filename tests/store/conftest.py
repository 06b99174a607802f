from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.store.engine import Store
from tests.store.databases import REACHABLE, database, migrated

WINDOWS = {"groq": {"requests": 86_400, "tokens": 60}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated("sqlite"), tmp_path / "tollkeeper.db"))


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
async def ready(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The address of a database at the newest revision, on each kind in turn."""
    async with database(request.param, tmp_path, migrated(request.param)) as url:
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
