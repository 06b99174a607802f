from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from proxy.metering import writer
from proxy.metering.writer import BATCH, BatchWriter
from tests.store.rows import call


class Table:
    """What ``flush`` writes to; it refuses for as long as ``broken`` says why."""

    def __init__(self) -> None:
        self.batches: list[list[object]] = []
        self.broken: Exception | None = None
        self.tries = 0

    @property
    def rows(self) -> list[object]:
        return [row for batch in self.batches for row in batch]

    async def flush(self, items: Sequence[object]) -> None:
        self.tries += 1
        await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken
        self.batches.append(list(items))


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BACKOFF", (0.001,))


@asynccontextmanager
async def writing(
    flush: Callable[[Sequence[object]], Awaitable[None]], **options: float
) -> AsyncIterator[BatchWriter]:
    """A writer whose loop runs; at the end it is drained, as the app does it."""
    batches = BatchWriter(flush, **{"interval": 0.001, **options})  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(batches.run())
        yield batches
        await batches.drain(1)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_what_comes_together_is_written_together_and_in_order(table: Table) -> None:
    async with writing(table.flush, interval=0.05) as batches:
        for number in range(100):
            batches.put(number)
            await asyncio.sleep(0)
        assert batches.depth == 100
        await until(lambda: batches.depth == 0)
        assert table.batches == [list(range(100))]


async def test_a_batch_has_an_end(table: Table) -> None:
    async with writing(table.flush) as batches:
        for number in range(2 * BATCH + 1):
            batches.put(number)
        await until(lambda: batches.depth == 0)
    assert [len(batch) for batch in table.batches] == [BATCH, BATCH, 1]


async def test_what_comes_during_a_write_is_not_lost(table: Table) -> None:
    async def flush(items: Sequence[object]) -> None:
        if 1 in items:
            batches.put(2)
        await table.flush(items)

    async with writing(flush) as batches:
        batches.put(1)
        await until(lambda: table.rows == [1, 2])


async def test_what_cannot_be_written_comes_again_first(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tollkeeper")
    async with writing(table.flush) as batches:
        table.broken = OSError("disk full")
        batches.put(1)
        await until(lambda: table.tries >= 3)
        batches.put(2)
        assert batches.status() == {
            "recorded": 0,
            "queued": 2,
            "dropped": 0,
            "last_error": "disk full",
        }
        table.broken = None
        await until(lambda: batches.depth == 0)
        assert table.rows == [1, 2]
    assert [record.message for record in caplog.records] == [
        "rows wait to be written: disk full",
        "the database can be written again",
    ]


async def test_each_trouble_is_told_once_and_so_is_its_end(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tollkeeper")
    async with writing(table.flush) as batches:
        for trouble in ("first", "second"):
            table.broken, tries = OSError(trouble), table.tries
            batches.put(trouble)
            await until(lambda before=tries: table.tries >= before + 3)  # type: ignore[misc]
            table.broken = None
            await until(lambda: batches.depth == 0)
    assert [message.partition(":")[2] for message in caplog.messages] == [
        " first",
        "",
        " second",
        "",
    ]


async def test_tries_are_ever_farther_apart(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(writer, "BACKOFF", (0.5, 1.0, 2.0))
    monkeypatch.setattr(writer.asyncio, "sleep", note)
    batches = BatchWriter(table.flush, interval=9)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(batches.run())
        table.broken = OSError("locked")
        batches.put(1)
        while table.tries < 5:
            await sleep(0)
        table.broken = None
        await batches.drain(5)
    assert [seconds for seconds in slept if seconds not in (0, 9)][:4] == [0.5, 1.0, 2.0, 2.0]
    assert slept[0] == 9  # first of all it waits for others to come


async def test_an_error_without_words_is_told_by_its_name(table: Table) -> None:
    async with writing(table.flush) as batches:
        table.broken = TimeoutError()
        batches.put(1)
        await until(lambda: table.tries)
        table.broken = None
    assert batches.status()["last_error"] == "TimeoutError"


async def test_a_full_queue_loses_the_newest_and_counts_them(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    async with writing(table.flush, capacity=3) as batches:
        table.broken = OSError("locked")
        for number in range(8):
            batches.put(number)
        assert (batches.depth, batches.status()["dropped"]) == (3, 5)
        table.broken = None
        await until(lambda: batches.depth == 0)
        batches.put("again")
    assert table.rows == [0, 1, 2, "again"]
    assert sum("queue is full" in record.message for record in caplog.records) == 1


async def test_only_rows_of_calls_are_counted_as_recorded(table: Table) -> None:
    async with writing(table.flush) as batches:
        for item in (call(), "a sample", [], call()):
            batches.put(item)
    assert batches.status()["recorded"] == 2


async def test_draining_writes_all_that_is_queued_and_ends_the_loop(table: Table) -> None:
    async with writing(table.flush, interval=0.01) as batches:
        for number in range(BATCH + 7):
            batches.put(number)
    assert table.rows == list(range(BATCH + 7))


async def test_draining_waits_for_the_write_that_runs() -> None:
    written: list[object] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def flush(items: Sequence[object]) -> None:
        begun.set()
        await go_on.wait()
        written.extend(items)

    async with writing(flush) as batches:
        batches.put(1)
        await begun.wait()
        batches.put(2)
        asyncio.get_running_loop().call_later(0.01, go_on.set)
    assert written == [1, 2]


async def test_draining_tries_again_while_there_is_time(table: Table) -> None:
    batches = BatchWriter(table.flush)
    batches.put(1)
    table.broken = OSError("locked")
    asyncio.get_running_loop().call_later(0.01, setattr, table, "broken", None)
    await batches.drain(5)
    assert (table.rows, batches.status()["dropped"]) == ([1], 0)


async def test_what_draining_cannot_write_is_counted_and_told(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    batches = BatchWriter(table.flush)
    table.broken = OSError("gone")
    for number in range(4):
        batches.put(number)
    await batches.drain(0)
    assert (batches.depth, batches.status()["dropped"], table.tries) == (0, 4, 1)
    assert "4 items are lost: gone" in caplog.messages
