from __future__ import annotations

import asyncio
import errno
import gzip
import os
import sys
import threading
from pathlib import Path

import pytest

from proxy.store import archive as module
from proxy.store.archive import Archive, ArchiveError
from proxy.store.engine import Store
from proxy.store.tables import api_calls
from tests.store.reading import read
from tests.store.rows import call
from tests.store.stories import NOON

DAY = 86_400_000
MIDNIGHT = NOON // DAY * DAY
NAME = "api_calls-2025-01-01.jsonl.gz"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "deep" / "archive")


def kept(archive: Archive) -> list[str]:
    rows = read("jsonl.gz", api_calls, (archive.folder / NAME).read_bytes())
    return [row["request_id"] for row in rows]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


async def written(store: Store, *ids: str, at: int = NOON) -> None:
    await store.write([call(request_id=id, timestamp=at + n) for n, id in enumerate(ids)])


async def test_a_day_is_in_its_file_and_no_other_day(
    store: Store, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", 2)
    await written(store, "before", at=MIDNIGHT - 1)
    await written(store, "first", at=MIDNIGHT)
    await written(store, "a", "b")
    await written(store, "last", at=MIDNIGHT + DAY - 1)
    await written(store, "after", at=MIDNIGHT + DAY)
    assert list(await archive.keep(store, MIDNIGHT)) == [2, 3, 4, 5]
    assert kept(archive) == ["first", "a", "b", "last"]
    assert names(archive.folder) == [NAME]


async def test_a_second_time_adds_nothing(store: Store, archive: Archive) -> None:
    await written(store, "a", "b")
    first = await archive.keep(store, MIDNIGHT)
    before = (archive.folder / NAME).stat()
    assert await archive.keep(store, MIDNIGHT) == first
    after = (archive.folder / NAME).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_what_comes_late_is_added_and_the_file_stays_one_text(
    store: Store, archive: Archive
) -> None:
    await written(store, "a")
    await archive.keep(store, MIDNIGHT)
    await store.write([call(request_id="a", attempt=2, timestamp=NOON)])
    await written(store, "b")
    assert len(await archive.keep(store, MIDNIGHT)) == 3
    assert kept(archive) == ["a", "a", "b"]
    with gzip.open(archive.folder / NAME, "rt") as lines:
        assert len(list(lines)) == 3


async def test_a_day_without_calls_has_no_file(store: Store, archive: Archive) -> None:
    assert len(await archive.keep(store, MIDNIGHT)) == 0
    assert names(archive.folder) == []


async def test_a_full_disk_leaves_the_file_as_it_was(
    store: Store, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    await written(store, "a")
    await archive.keep(store, MIDNIGHT)
    await written(store, "b")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArchiveError, match=f"cannot write .*{NAME}: No space left on device"):
            await archive.keep(store, MIDNIGHT)
    assert kept(archive) == ["a"]
    assert names(archive.folder) == [NAME]
    await archive.keep(store, MIDNIGHT)
    assert kept(archive) == ["a", "b"]


async def test_what_a_killed_process_left_is_written_over(store: Store, archive: Archive) -> None:
    archive.folder.mkdir(parents=True)
    (archive.folder / f".{NAME}.part").write_text("half a")
    await written(store, "a")
    await archive.keep(store, MIDNIGHT)
    assert (kept(archive), names(archive.folder)) == (["a"], [NAME])


async def test_no_folder_can_be_made(store: Store, archive: Archive) -> None:
    archive.folder.parent.write_text("no folder")
    with pytest.raises(ArchiveError, match="cannot write"):
        await archive.keep(store, MIDNIGHT)


@pytest.mark.parametrize("bytes_lost", [1, 20])
async def test_nothing_is_added_to_a_damaged_file(
    bytes_lost: int, store: Store, archive: Archive
) -> None:
    await written(store, "a", "b")
    await archive.keep(store, MIDNIGHT)
    file = archive.folder / NAME
    file.write_bytes(file.read_bytes()[:-bytes_lost])
    damaged = file.read_bytes()
    with pytest.raises(ArchiveError, match=r"cannot add to .*: it is damaged"):
        await archive.keep(store, MIDNIGHT)
    assert file.read_bytes() == damaged


if sys.platform != "win32":
    import fcntl

    async def test_one_at_a_time_writes_to_a_folder(
        store: Store, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_GLANCE", 0.01)
        await written(store, "a")
        archive.folder.mkdir(parents=True)
        with (archive.folder / ".lock").open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with monkeypatch.context() as patch:
                patch.setattr(module, "_PATIENCE", 0.03)
                with pytest.raises(ArchiveError, match="another process does"):
                    await archive.keep(store, MIDNIGHT)
            waiting = asyncio.create_task(archive.keep(store, MIDNIGHT))
            await asyncio.sleep(0.03)
            assert names(archive.folder) == []
        assert len(await waiting) == 1


async def test_what_is_given_up_comes_to_its_end_first() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        go_on.wait(5)
        done.append(True)

    task = asyncio.create_task(module._aside(work))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]
