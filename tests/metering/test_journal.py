from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from proxy.entries import decode
from proxy.errors import GatewayError
from proxy.metering import journal as module
from proxy.metering.admission import Admission
from proxy.metering.segment import entries
from proxy.sample import HostSample
from proxy.types import CallRecord
from tests.metering.ledgers import Database, Process
from tests.store.rows import call


def held(path: Path) -> list[str]:
    """What a segment holds, in short."""
    with path.open("rb") as file:
        found = [decode(entry.payload) for entry in entries(file, 0, over=True)]
    return [
        f"begin {item.call.request_id}"
        if isinstance(item, Admission)
        else f"end {item.request_id}"
        if isinstance(item, CallRecord)
        else type(item).__name__
        for item in found
    ]


class Disk:
    """``os.write`` that has room for so many more bytes, or fails in another way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: int | None = None
        self.error = errno.ENOSPC
        self._write = os.write
        monkeypatch.setattr(module.os, "write", self.write)

    def write(self, file: int, data: bytes) -> int:
        if self.room is None or len(data) <= self.room:
            return self._write(file, data)
        if self.room > 0:
            return self._write(file, data[: self.room])
        raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process(tmp_path / "journal", Database())


def test_each_entry_is_in_the_file_when_the_call_returns(process: Process) -> None:
    process.begin("a")
    assert held(process.path()) == ["begin a"]
    process.end("a")
    process.journal.append(HostSample(1))
    assert held(process.path()) == ["begin a", "end a", "HostSample"]
    assert process.path().stat().st_mode & 0o777 == 0o600
    assert process.journal.status()["state"] == "writable"


async def test_what_was_written_is_synced_and_nothing_else_is(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(module, "_datasync", synced.append)
    await process.journal.tend()
    assert len(synced) == 1, "the segment itself"
    await process.journal.tend()
    assert len(synced) == 1
    process.begin("a")
    await process.journal.tend()
    assert len(synced) == 2
    assert process.journal.status()["bytes"] == process.path().stat().st_size


async def test_a_full_segment_is_followed_by_one_that_begins_with_what_is_under_way(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1000)
    process.begin("a")
    process.begin("b")
    process.end("b")
    assert len(process.segments) == 1
    await process.journal.tend()
    assert len(process.segments) == 2
    process.end("a")
    assert held(process.path(0)) == ["begin a", "begin b", "end b"]
    assert held(process.path(1)) == ["begin a", "end a"]
    first, second = process.segments
    assert second == first.next()
    assert process.journal.writes(second)
    assert not process.journal.writes(first)


@pytest.mark.parametrize("admitted", [True, False])
async def test_a_request_that_is_tried_again_goes_into_the_next_segment(
    process: Process, monkeypatch: pytest.MonkeyPatch, admitted: bool
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 500)
    process.begin("a", provider="first")
    if admitted:
        process.begin("a", attempt=2, provider="second")
    process.end("a", status="error", provider="failed", is_final=False)
    await process.journal.tend()
    await process.ship()
    process.die()
    await Process(process.folder, process.database).ship()
    (last,) = process.database.finals("a")
    assert (last.attempt, last.error_reason) == (2, "interrupted")
    assert last.provider == ("second" if admitted else "failed")
    assert {row.attempt for row in process.database.rows} == {1, 2}


async def test_a_segment_that_cannot_be_followed_is_written_on(
    process: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1)

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", refuse)
        await process.journal.tend()
        process.begin("a")
    assert held(process.path()) == ["begin a"]
    assert "cannot begin another segment" in caplog.text
    assert not list(process.folder.glob("*.new"))
    await process.journal.tend()
    assert len(process.segments) == 2


@pytest.mark.parametrize("room", [0, 7, 300])
def test_what_cannot_be_written_is_held_and_written_as_soon_as_it_can_be(
    process: Process, disk: Disk, room: int, caplog: pytest.LogCaptureFixture
) -> None:
    process.begin("a")
    process.begin("b")
    whole = process.path().stat().st_size
    disk.room = room
    process.end("a")
    assert process.path().stat().st_size == whole, "what was torn is taken back"
    process.begin("c")
    process.end("b")
    assert process.journal.status()["state"] == "unwritable"
    assert (process.journal.held, process.journal.dropped) == (2, 0)
    (line,) = caplog.messages
    assert "No space left on device; calls go on" in line
    disk.room = None
    process.journal._recover()
    assert held(process.path()) == ["end a", "end b", "begin c"]
    assert process.journal.held == 0
    assert caplog.messages[1:] == ["the journal can be written again"]


async def test_trouble_is_looked_at_again_and_told_once_a_minute(
    process: Process,
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    disk.room = 0
    process.end("a")
    for _ in range(3):
        await process.journal.tend()
    assert len(caplog.messages) == 1
    now += 60
    await process.journal.tend()
    assert len(caplog.messages) == 2
    assert "1 rows are in memory alone" in caplog.messages[1]
    disk.room = None
    await process.journal.tend()
    assert held(process.path()) == ["end a"]


async def test_a_disk_that_does_not_sync_is_not_trusted_on(
    process: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process.begin("a")

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_datasync", fail)
        await process.journal.tend()
    assert "Input/output error" in caplog.text
    assert len(process.segments) == 2
    assert held(process.path()) == ["begin a"]


def test_of_too_many_that_are_held_the_newest_are_lost_and_counted(
    process: Process, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "HELD", 3)
    disk.room = 0
    for number in range(5):
        process.end(str(number))
    assert (process.journal.held, process.journal.dropped) == (3, 2)
    assert sum("are lost" in message for message in caplog.messages) == 1
    disk.room = None
    process.journal._recover()
    assert held(process.path()) == ["end 0", "end 1", "end 2"]


def test_strict_admits_nothing_that_cannot_be_written_down(tmp_path: Path, disk: Disk) -> None:
    process = Process(tmp_path / "journal", Database(), strict=True)
    process.journal.check()
    process.begin("a")
    disk.room = 0
    with pytest.raises(GatewayError) as refused:
        process.begin("b")
    error = refused.value
    assert (error.status, error.code, error.retry_after) == (503, "journal_unwritable", 1)
    with pytest.raises(GatewayError):
        process.journal.check()
    process.end("a")
    assert process.journal.held == 1, "what was admitted is kept all the same"
    disk.room = None
    process.journal._recover()
    process.journal.check()
    assert held(process.path()) == ["end a"]


async def test_a_journal_takes_up_so_much_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(tmp_path / "journal", Database(), max_bytes=1200)
    for name in ("a", "b", "c"):
        process.end(name)
    await process.journal.tend()
    assert "it has reached its 1200 bytes" in caplog.text
    # As long as it could write nothing its segment could not go; now that one is another's.
    await process.journal.tend()
    for name in ("d", "e"):
        process.end(name)
        await process.journal.tend()
    assert [held(process.path(place)) for place in (0, 1)] == [
        ["end a", "end b", "end c"],
        ["end d"],
    ]
    assert process.journal.held == 1
    await process.ship()
    for _ in range(2):
        await process.journal.tend()
    await process.ship()
    assert [row.request_id for row in process.database.rows] == ["a", "b", "c", "d", "e"]
    assert process.journal.status()["state"] == "writable"


async def test_a_file_that_is_taken_away_is_put_back(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    process.end("a")
    await process.ship()
    process.end("b")
    shutil.rmtree(process.folder)
    process.begin("c")
    await process.journal.tend()
    assert "taken away" in caplog.text
    process.end("c")
    assert held(process.path()) == ["end a", "end b", "begin c", "end c"]
    await process.ship()
    assert [row.request_id for row in process.database.rows] == ["a", "b", "c"]


async def test_what_was_written_where_nobody_looks_any_more_is_written_again(
    process: Process,
) -> None:
    process.end("a")
    await process.ship()
    process.folder.rename(process.folder.with_name("away"))
    process.folder.touch()
    process.end("b")
    await process.journal.tend()
    assert process.journal.status()["state"] == "unwritable"
    assert process.shipper.queued() == 0
    process.end("c")
    process.folder.unlink()
    process.journal.close()
    assert held(process.path()) == ["end a", "end b", "end c"]
    await process.ship()
    assert [row.request_id for row in process.database.rows] == ["a", "b", "c"]


def test_a_folder_that_cannot_be_made_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "journal").touch()
    process = Process(tmp_path / "journal", Database())
    process.begin("a")
    process.end("a")
    assert "cannot write the journal" in caplog.text
    (tmp_path / "journal").unlink()
    process.journal._recover()
    assert held(process.path()) == ["end a"]


@pytest.mark.parametrize("item", ["no kind of thing", HostSample(2**70)])
def test_what_has_no_form_is_lost_alone_and_counted(
    process: Process, item: Any, caplog: pytest.LogCaptureFixture
) -> None:
    process.journal.append(item)
    process.end("a")
    assert process.journal.dropped == 1
    assert f"a {type(item).__name__} cannot be kept" in caplog.text
    assert held(process.path()) == ["end a"]


def test_what_is_longer_than_an_entry_may_be_is_lost_alone(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PAYLOAD", 2000)
    process.journal.append(call(metadata="x" * 2000))
    assert process.journal.dropped == 1
    assert held(process.path()) == []


def test_a_closed_journal_is_sealed_and_takes_nothing_more(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    process.end("a")
    process.journal.close()
    process.end("b")
    assert held(process.path()) == ["end a"]
    assert process.journal.dropped == 1
    assert "lost" in caplog.text


def test_what_is_held_at_the_end_is_written_or_counted(
    process: Process, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    disk.room = 0
    process.end("a")
    process.journal.close()
    assert process.journal.dropped == 1
    assert "1 entries are lost: cannot write the journal" in caplog.messages[-1]


def test_what_can_be_written_at_the_end_is(process: Process, disk: Disk) -> None:
    disk.room = 0
    process.end("a")
    disk.room = None
    process.journal.close()
    assert process.journal.dropped == 0
    assert held(process.path()) == ["end a"]
