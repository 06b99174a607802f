from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.store.address import parse
from proxy.store.engine import Store
from proxy.store.migrate import migrate


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database at the newest revision, to be copied: migrating takes half a second."""
    path = tmp_path_factory.mktemp("migrated") / "empty.db"
    asyncio.run(migrate(parse(f"sqlite+aiosqlite:///{path}")))
    return path


@pytest.fixture
def path(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "tollkeeper.db"))


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    store = Store(
        f"sqlite+aiosqlite:///{path}", windows={"groq": {"requests": 86_400, "tokens": 60}}
    )
    await store.open()
    yield store
    await store.close()
