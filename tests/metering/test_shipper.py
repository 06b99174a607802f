from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from proxy.metering import journal, shipper
from proxy.metering.segment import MAGIC, framed
from proxy.sample import HostSample
from tests.metering.ledgers import Database, Process


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper, "BACKOFF", (0.001,))
    monkeypatch.setattr(shipper, "PAUSES", (0.001, 0.001))
    monkeypatch.setattr(shipper, "_POLL", 0.005)
    monkeypatch.setattr(shipper, "_AGAIN", 0.001)


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def process(tmp_path: Path, database: Database) -> Process:
    return Process(tmp_path / "journal", database)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept for, in seconds; it takes a millisecond each."""
    seconds: list[float] = []
    sleep = asyncio.sleep

    async def note(asked: float) -> None:
        seconds.append(asked)
        await sleep(0.001)

    monkeypatch.setattr(shipper.asyncio, "sleep", note)
    return seconds


@asynccontextmanager
async def shipping(process: Process) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(process.shipper.run())
        yield
        await process.shipper.drain(1)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def ids(database: Database) -> list[str]:
    return [row.request_id for row in database.rows]


# While the processes live.


async def test_what_is_appended_is_shipped_in_order_and_once(
    process: Process, database: Database
) -> None:
    async with shipping(process):
        for number in range(10):
            process.begin(str(number))
            process.end(str(number))
        await until(lambda: len(database.rows) == 10)
        process.journal.append(HostSample(1))
        await until(lambda: len(database.items) == 11)
    assert ids(database) == [str(number) for number in range(10)]
    assert process.shipper.status() == {
        "recorded": 10,
        "queued": 0,
        "dropped": 0,
        "last_error": None,
    }


async def test_who_is_under_way_makes_no_row_and_no_transaction(
    process: Process, database: Database
) -> None:
    process.begin("a")
    for _ in range(3):
        await process.ship()
    assert (database.tries, database.items) == (0, [])


async def test_a_batch_has_an_end(
    process: Process, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "BATCH", 10)
    for number in range(25):
        process.begin(str(number))
        process.end(str(number))
    await process.ship()
    assert database.batches == [10, 10, 5]


async def test_one_ships_for_all_and_another_when_it_is_gone(
    process: Process, database: Database, tmp_path: Path
) -> None:
    second = Process(process.folder, database, elected=False)
    second.end("b")
    await second.ship()
    assert database.items == []
    assert second.shipper.queued() == 0
    process.end("a")
    await process.ship()
    assert sorted(ids(database)) == ["a", "b"]
    process.end("c")
    process.die()
    second.elected = True
    second.end("d")
    await second.ship()
    assert sorted(ids(database)) == ["a", "b", "c", "d"]
    assert [name.owner for name in second.segments] == [second.journal._name.owner]


async def test_a_segment_goes_once_it_is_full_and_in_the_database(
    process: Process, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 1)
    process.begin("a")
    process.end("b")
    await process.journal.tend()
    assert len(process.segments) == 2
    await process.ship()
    assert len(process.segments) == 1
    assert database.at == {}, "of what is gone no position is kept"
    process.end("a")
    await process.ship()
    assert ids(database) == ["b", "a"]


# When the database cannot be written.


async def test_what_cannot_be_written_comes_again(
    process: Process, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tollkeeper")
    process.end("before")
    await process.ship()
    async with shipping(process):
        database.broken = OSError("disk full")
        process.begin("a")
        process.end("a")
        await until(lambda: database.tries >= 4)
        process.end("b")
        assert process.shipper.queued() == 2
        assert process.shipper.status()["last_error"] == "disk full"
        database.broken = None
        await until(lambda: len(database.rows) == 3)
    assert process.shipper.status()["last_error"] is None, "nothing waits any more"
    assert ids(database) == ["before", "a", "b"]
    assert caplog.messages == [
        "rows wait to be written: disk full",
        "the database can be written again",
    ]


async def test_an_answer_that_was_lost_writes_nothing_twice(
    process: Process, database: Database
) -> None:
    """A commit that happened, though it was never heard of."""
    database.mute = ConnectionError("lost")
    process.journal.append(HostSample(1))
    process.begin("a")
    await process.ship()
    await process.ship()
    process.end("a")
    await process.ship()
    assert [type(item).__name__ for item in database.items] == ["HostSample", "CallRecord"]


async def test_tries_are_ever_farther_apart(
    process: Process, database: Database, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "BACKOFF", (0.5, 1.0, 2.0))
    database.broken = OSError("locked")
    process.end("a")
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(process.shipper.run())
        await until(lambda: database.tries >= 5)
        database.broken = None
        await process.shipper.drain(5)
    assert [seconds for seconds in slept if seconds >= 0.5][:4] == [0.5, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("took", "seconds"), [(0.0, 0.2), (0.006, 0.2), (0.03, 1.0), (0.054, 1.8), (0.5, 2.0)]
)
def test_writing_takes_three_hundredths_of_the_time(took: float, seconds: float) -> None:
    assert shipper.pause(took, 0.2, 2.0) == pytest.approx(seconds)


async def test_slow_batches_are_few(
    process: Process, database: Database, slept: list[float]
) -> None:
    process.shipper._pauses, process.shipper._pause = (0.01, 0.4), 0.01
    flush = process.shipper._flush

    async def slowly(*given: Any) -> None:
        await asyncio.to_thread(time.sleep, 0.05)
        await flush(*given)

    process.shipper._flush = slowly
    async with shipping(process):
        for number in range(3):
            process.end(str(number))
            await until(lambda number=number: len(database.rows) == number + 1)
    assert [seconds for seconds in slept if seconds > 0.005][:3] == [0.01, 0.4, 0.4]


async def test_an_error_without_words_is_told_by_its_name(
    process: Process, database: Database
) -> None:
    database.broken = TimeoutError()
    await process.ship()
    assert process.shipper.status()["last_error"] == "TimeoutError"


async def test_no_more_than_so_many_that_wait_are_counted(
    process: Process, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "MOST_COUNTED", 5)
    database.broken = OSError("gone")
    for number in range(8):
        process.end(str(number))
    await process.ship()
    assert process.shipper.queued() == 5


async def test_what_waits_is_known_at_every_moment(
    process: Process, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "BATCH", 4)
    choose, ended = random.Random(7), 0
    for turn in range(300):
        match choose.randrange(6):
            case 0:
                process.begin(f"open {turn}")
            case 1 | 2:
                process.end(str(turn))
                ended += 1
            case 3:
                database.broken = choose.choice([None, None, OSError("locked")])
                await process.shipper._ship()
            case _:
                assert process.shipper.queued() == (ended - len(database.rows) if ended else 0)
    assert ended > 50


async def test_what_is_asked_while_the_positions_are_loaded_spoils_nothing(
    process: Process, database: Database
) -> None:
    for number in range(3):
        process.end(str(number))
    database.mute = ConnectionError("lost")  # it was committed, and nobody heard
    await process.shipper._ship()
    positions = database.positions

    async def slowly() -> dict[str, int]:
        assert process.shipper.queued() == 3  # as far as anybody knows
        return await positions()

    process.shipper._load = slowly
    await process.ship()
    assert process.shipper.queued() == 0
    process.end("after")
    assert process.shipper.queued() == 1


async def test_another_process_cannot_make_it_write_more_often(
    process: Process, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody wakes it for what others append."""
    other = Process(process.folder, database, elected=False)
    begun: list[float] = []
    flush = database.flush

    async def slowly(*given: Any) -> None:
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.02)
        await flush(*given)

    process.shipper._flush = slowly
    process.shipper._pauses = (0.001, 0.3)
    async with shipping(process):
        for number in range(3):
            other.end(str(number))
            await until(lambda number=number: len(database.rows) == number + 1)
    assert [later - earlier > 0.25 for earlier, later in pairwise(begun)] == [True, True]


async def test_draining_gives_up_in_time_and_leaves_the_rest(
    process: Process, database: Database
) -> None:
    database.broken = OSError("gone")
    process.end("a")
    await process.shipper.drain(0.01)
    assert process.shipper.queued() == 1
    process.die()
    database.broken = None
    next_one = Process(process.folder, database)
    await next_one.ship()
    assert ids(database) == ["a"]


async def test_draining_tries_again_while_there_is_time(
    process: Process, database: Database
) -> None:
    database.broken = OSError("locked")
    process.end("a")
    asyncio.get_running_loop().call_later(0.01, setattr, database, "broken", None)
    await process.shipper.drain(5)
    assert ids(database) == ["a"]


# When a process has ended.


async def test_the_calls_of_a_dead_process_that_had_no_end_get_one(
    process: Process, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    process.begin("a")
    process.begin("b")
    process.end("a")
    await process.ship()
    process.begin("c", is_final=True)
    process.end("c", is_final=False, status="error")
    process.die()
    await Process(process.folder, database).ship()
    (interrupted,) = database.finals("b")
    assert (interrupted.status, interrupted.error_reason) == ("error", "interrupted")
    (following,) = database.finals("c")
    assert (following.attempt, following.error_reason) == (2, "interrupted")
    assert len(database.finals("a")) == 1
    assert "2 calls were interrupted" in caplog.text
    assert len(process.segments) == 1
    await Process(process.folder, database).ship()
    assert len(database.rows) == 4


async def test_a_shipper_that_begins_in_the_middle_knows_who_was_under_way(
    process: Process, database: Database
) -> None:
    process.begin("a")
    process.end("b")
    await process.ship()
    process.end("c")
    process.die()
    await Process(process.folder, database).ship()
    assert sorted(ids(database)) == ["a", "b", "c"]


async def test_a_torn_entry_ends_the_journal_of_a_dead_process(
    process: Process, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    process.begin("a")
    whole = process.path().stat().st_size
    process.end("a")
    caplog.set_level(logging.INFO, "tollkeeper")
    for size in range(whole, process.path().stat().st_size):
        folder = process.folder.parent / str(size)
        folder.mkdir()
        (folder / process.path().name).write_bytes(process.path().read_bytes()[:size])
        torn = Database()
        second = Process(folder, torn)
        caplog.clear()
        await second.ship()
        (row,) = torn.rows
        assert (row.request_id, row.error_reason) == ("a", "interrupted")
        assert not list(folder.glob("*.damaged"))
        assert second.shipper.status()["dropped"] == 0
        assert ("ends within an entry" in caplog.text) == (size > whole)
        assert not [each for each in caplog.records if each.levelno == logging.ERROR]


async def test_a_damaged_segment_is_told_and_put_aside_and_the_rest_of_it_is_taken_in(
    process: Process, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    process.end("a")
    place = process.path().stat().st_size + 20
    process.end("b")
    process.end("c")
    process.die()
    content = bytearray(process.path().read_bytes())
    content[place] ^= 255
    path = process.path()
    path.write_bytes(content)
    await Process(process.folder, database).ship()
    assert ids(database) == ["a", "c"]
    assert not path.exists()
    assert path.with_suffix(".damaged").read_bytes() == content
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("left", [2, 1, 0])
async def test_a_segment_that_is_damaged_up_to_its_end_is_told_counted_and_put_aside(
    process: Process, database: Database, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    sizes = [0, process.path().stat().st_size]
    for name in ("a", "b"):
        process.end(name)
        sizes.append(process.path().stat().st_size)
    process.die()
    path = process.path()
    content = path.read_bytes()[: sizes[left]] + b"\xa5" * 700
    path.write_bytes(content)
    second = Process(process.folder, database)
    second.end("c")
    for _ in range(2):
        await second.ship()
    assert sorted(ids(database)) == [
        *["a", "b"][: max(left - 1, 0)],
        "c",
    ]  # begun in one millisecond, either is first
    assert not path.exists()
    assert path.with_suffix(".damaged").read_bytes() == content
    assert second.shipper.status()["dropped"] == 1
    [told] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "700 of its bytes cannot be read" in told.message


async def test_a_segment_of_which_nothing_is_left_is_told_and_counted(
    process: Process, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    process.die()
    path = process.path()
    path.write_bytes(b"")
    second = Process(process.folder, database)
    await second.ship()
    assert path.with_suffix(".damaged").exists()
    assert second.shipper.status()["dropped"] == 1
    assert "is damaged" in caplog.text


async def test_damage_is_not_forgotten_over_the_batches_behind_it(
    process: Process, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "BATCH", 2)
    begin = process.path().stat().st_size
    for name in "abcdefg":
        process.end(name)
    process.die()
    path = process.path()
    content = bytearray(path.read_bytes())
    content[begin + 20] ^= 255
    path.write_bytes(content)
    second = Process(process.folder, database)
    await second.ship()
    assert ids(database) == list("bcdefg")
    assert path.with_suffix(".damaged").read_bytes() == content
    assert second.shipper.status()["dropped"] == 1


async def test_an_entry_of_an_unknown_kind_is_told_counted_and_put_aside(
    process: Process, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    process.die()
    process.path().write_bytes(MAGIC + framed(b"\x63?") + framed(b"\x02?"))
    second = Process(process.folder, database)
    second.end("a")
    for _ in range(2):
        await second.ship()
    assert second.shipper.status()["dropped"] == 2
    assert "kind 99 is not known" in caplog.text
    assert len(list(process.folder.glob("*.damaged"))) == 1
    assert ids(database) == ["a"]


async def test_a_process_that_cannot_write_is_not_taken_for_dead(
    process: Process, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Process(process.folder, database, elected=False)
    for each in (process, other):
        each.begin(f"of {each.journal._name}")

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", refuse)
        for each in (process, other):
            each.end(f"of {each.journal._name}")
    await process.ship()
    assert database.rows == []
    for each in (process, other):
        await each.journal.tend()
    await process.ship()
    assert [row.status for row in database.rows] == ["success", "success"]
    assert len(process.segments) == 2


@pytest.mark.parametrize("shut", ["a folder", "another version"])
async def test_a_segment_that_cannot_be_read_keeps_no_other_one_back(
    shut: str, process: Process, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    process.end("a")
    await process.ship()
    path = process.folder / "0000000000001-1-00000000.000001.segment"
    if shut == "a folder":
        path.mkdir()
    else:
        path.write_bytes(MAGIC[:-1] + b"\x02" + framed(b"whatever it may be"))
    for name in "bc":
        process.end(name)
        await process.ship()
    assert ids(database) == ["a", "b", "c"]
    status = process.shipper.status()
    assert (status["recorded"], status["dropped"]) == (3, 0)
    assert path.name in status["last_error"]
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(said) == 1
    assert f"{path.name} cannot be read, and is left for later" in said[0]
    assert path.exists()
    if shut == "a folder":
        path.rmdir()
    else:
        path.unlink()
    await process.ship()
    assert process.shipper.status()["last_error"] is None


async def spread(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three segments: ``a`` is under way, ``b`` has ended in the second, ``c`` in the third."""
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 1)
    process.begin("a")
    for name in ("b", "c"):
        await process.journal.tend()
        process.end(name)


async def test_while_a_segment_cannot_be_read_those_behind_it_are_taken_in_and_stay(
    process: Process, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await spread(process, monkeypatch)
    first, whole = process.path(0), len(process.segments)
    opened = Path.open

    def refuse(path: Path, *more: Any) -> Any:
        if path == first:
            raise PermissionError(13, "not permitted")
        return opened(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        await process.ship()
        assert ids(database) == ["b", "c"]
        assert len(process.segments) == whole
        assert "not permitted" in str(process.shipper.status()["last_error"])
    process.end("a")
    process.die()
    await Process(process.folder, database).ship()
    assert [row.status for row in database.finals("a")] == ["success"]
    assert len(process.segments) == 1


async def test_a_segment_that_cannot_be_deleted_is_taken_in_once(
    process: Process,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 1)
    process.begin("a")
    process.journal.append(HostSample(1))
    await process.journal.tend()
    process.end("a")
    await process.journal.tend()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        for _ in range(3):
            await process.ship()
        assert len(process.segments) == 3
    process.die()
    await Process(process.folder, database).ship()
    assert [type(item).__name__ for item in database.items] == ["HostSample", "CallRecord"]
    assert "not permitted" in caplog.text
    assert len(process.segments) == 1


async def test_while_a_segment_cannot_be_deleted_those_behind_it_stay(
    process: Process, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next to ship would take it for the last word of a process that is alive."""
    await spread(process, monkeypatch)
    first, unlink = process.path(0), Path.unlink

    def refuse(path: Path, **options: Any) -> None:
        if path == first:
            raise PermissionError(1, "not permitted")
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    await process.ship()
    process.elected = False
    second = Process(process.folder, database)
    await second.ship()
    assert ids(database) == ["b", "c"]
    process.end("a")
    await second.ship()
    assert [row.status for row in database.finals("a")] == ["success"]


# Every crash and every failure, one by one.


class Crash(BaseException):
    """The process ends here."""


class Fate:
    """Lets the n-th call that changes the disk go wrong; the ones before and after go well."""

    CALLS = ("write", "replace", "unlink", "ftruncate", "fsync", "fdatasync")

    def __init__(self, turn: int, how: str) -> None:
        self.turn = turn
        self.how = how
        self.calls = 0

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            self.calls += 1
            if self.calls != self.turn:
                return real(*words, **more)
            if self.how == "fails":
                raise OSError(5, "Input/output error")
            if self.how == "torn" and isinstance(words[-1], bytes):
                real(*words[:-1], words[-1][: len(words[-1]) // 2])
            elif self.how == "done":
                real(*words, **more)
            raise Crash

        return call

    @contextmanager
    def upon(self) -> Iterator[None]:
        with mock.patch.multiple(
            os, **{name: self.around(getattr(os, name)) for name in self.CALLS}
        ):
            yield


async def story(process: Process, told: list[str]) -> None:
    """A little of everything; ``told`` is what the outside knows to have happened."""

    def begin(name: str) -> None:
        process.begin(name)
        told.append(f"begin {name}")

    def end(name: str) -> None:
        process.end(name)
        told.append(f"end {name}")

    begin("a")
    begin("b")
    end("a")
    await process.ship()
    await process.journal.tend()
    process.journal.append(HostSample(1))
    told.append("sample")
    begin("c")
    await process.ship()
    end("b")
    await process.journal.tend()
    begin("d")
    await process.ship()
    end("d")
    await process.ship()


def collapse(folder: Path) -> None:
    """Close what is open in the folder, as the system does for a process that has ended."""
    for file in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{file}").startswith(str(folder)):
                os.close(int(file))


async def lived(folder: Path, fate: Fate) -> tuple[Database, list[str]]:
    """A process that lives until its story ends or its fate is upon it, and one that follows."""
    database, told = Database(), list[str]()
    with suppress(Crash), fate.upon():
        process = Process(folder, database)
        await story(process, told)
        await process.journal.tend()
    collapse(folder)
    for _ in range(2):
        await Process(folder, database).ship()
        collapse(folder)
    return database, told


@pytest.mark.parametrize("how", ["fails", "before", "torn", "done"])
async def test_at_whichever_call_the_disk_fails_or_the_process_ends_the_books_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 700)
    monkeypatch.setattr(journal, "_datasync", lambda file: os.fdatasync(file))
    fate = Fate(0, how)
    database, told = await lived(tmp_path / "0", fate)
    assert len(told) == 8
    assert fate.calls > 25
    for turn in range(1, fate.calls + 1):
        database, told = await lived(tmp_path / str(turn), Fate(turn, how))
        assert len(told) == 8 or how != "fails"
        for name in ("a", "b", "c", "d"):
            found = database.finals(name)
            assert len(found) <= 1
            if f"begin {name}" in told:
                (row,) = found
                assert row.status == "success" or row.error_reason == "interrupted"
                assert row.status == "success" or f"end {name}" not in told, (turn, told)
        samples = sum(isinstance(item, HostSample) for item in database.items)
        assert samples == 1 if "sample" in told else samples <= 1
        assert len(list((tmp_path / str(turn)).glob("*.segment"))) == 1
