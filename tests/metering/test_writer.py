from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.entries import decode, encode
from proxy.metering import shipper
from proxy.metering import writer as module
from proxy.metering.writer import Writer
from tests.metering.ledgers import Database
from tests.scenarios.views import until
from tests.store.rows import call


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper, "BACKOFF", (0.001,))
    monkeypatch.setattr(shipper, "PAUSES", (0.001, 0.001))


def writer(folder: Path, database: Database) -> Writer:
    return Writer(
        folder,
        encode=encode,
        decode=decode,
        flush=database.flush,
        positions=database.positions,
        strict=False,
        max_bytes=2**30,
    )


@asynccontextmanager
async def writing(folder: Path, database: Database, seconds: float = 5) -> AsyncIterator[Writer]:
    """A writer whose loops run; at the end it is drained, as the app does it."""
    made = writer(folder, database)
    await made.open(5)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(made.run())
        tending = tasks.create_task(made.tend())
        yield made
        tending.cancel()
        await made.drain(seconds)


async def test_nothing_is_left_by_a_writer_that_was_drained(tmp_path: Path) -> None:
    database = Database()
    async with writing(tmp_path / "journal", database) as made:
        for _ in range(100):
            made.put(call())
        assert made.depth == 100
    assert len(database.rows) == 100
    assert database.at == {}
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["shipper"]
    status = made.status()
    assert (status["recorded"], status["queued"], status["dropped"]) == (100, 0, 0)
    assert status["journal"] == {
        "state": "unwritable",
        "bytes": 0,
        "segments": 0,
        "unjournaled": 0,
    }


async def test_what_could_not_be_written_is_there_at_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tollkeeper")
    database = Database()
    database.broken = OSError("gone")
    async with writing(tmp_path, database, seconds=0) as made:
        made.put(call(request_id="a"))
    assert made.status()["dropped"] == 0
    assert "1 items wait in the journal for the next start: gone" in caplog.messages
    database.broken = None
    async with writing(tmp_path, database):
        assert [row.request_id for row in database.rows] == ["a"], "before anything else happens"


async def test_of_two_writers_one_ships_and_the_other_follows(tmp_path: Path) -> None:
    database = Database()
    async with writing(tmp_path, database) as second:
        async with writing(tmp_path, database) as first:
            first.put(call(request_id="of the first"))
            second.put(call(request_id="of the second"))
            while len(database.rows) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert first.status()["recorded"] == 0
        second.put(call(request_id="the last"))
    assert [row.request_id for row in database.rows][2:] == ["the last"]


async def test_a_start_waits_for_what_was_left_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "BATCH", 10)
    database = Database()
    database.broken = OSError("gone")
    async with writing(tmp_path, database, seconds=0) as made:
        for _ in range(35):
            made.put(call())
    database.broken = None
    slow = writer(tmp_path, database)
    await slow.open(0)
    assert len(database.rows) == 10
    await slow.drain(5)
    assert len(database.rows) == 35


async def test_what_the_journal_cannot_take_goes_past_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.001)
    (tmp_path / "journal").touch()
    database = Database()
    database.broken = OSError("locked")
    made = writer(tmp_path / "journal", database)
    made.journal.open()
    made.put(call(request_id="a"))
    tending = asyncio.create_task(made.tend())
    async with asyncio.timeout(20):
        await until(lambda: "cannot go past the journal" in caplog.text)
        made.put(call(request_id="b"))
        database.broken = None
        await until(lambda: len(database.rows) == 2)
    tending.cancel()
    made.put(call(request_id="c"))
    await made.drain(1)
    assert [row.request_id for row in database.rows] == ["a", "b", "c"]
    assert made.status()["dropped"] == 0
