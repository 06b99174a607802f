from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from proxy.store import patience
from proxy.store.engine import Store
from proxy.store.patience import when_free
from proxy.store.tables import models


async def test_a_step_is_taken_again_until_nobody_has_the_file_locked(
    store: Store, path: Path
) -> None:
    tries: list[int] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        async def step() -> str:
            tries.append(len(tries))
            if len(tries) == 2:
                other.execute("ROLLBACK")
            async with (await store.writer()).begin() as connection:
                await connection.execute(models.delete())
            return "done"

        assert await when_free(step) == "done"
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("error", "tries"),
    [(sqlite3.SQLITE_BUSY, 3), (sqlite3.SQLITE_BUSY_SNAPSHOT, 3), (sqlite3.SQLITE_FULL, 1)],
)
async def test_it_gives_up_in_the_end_and_at_once_where_waiting_is_no_use(
    error: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_TRIES", 3)
    taken: list[int] = []

    async def step() -> None:
        taken.append(error)
        said = sqlite3.OperationalError("it is so")
        said.sqlite_errorcode = error
        raise OperationalError("SELECT", {}, said)

    with pytest.raises(OperationalError, match="it is so"):
        await when_free(step)
    assert len(taken) == tries
