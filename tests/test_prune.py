from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import sys
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from proxy.clock import now_ms
from proxy.config import load
from proxy.errors import ConfigError
from proxy.prune import prune
from proxy.schema import Settings
from proxy.store import retention
from proxy.store.address import StoreError
from proxy.store.engine import Store
from tests.gateway import migrated
from tests.store.rows import call, rows
from tests.store.stories import content, everything

ROOT = Path(__file__).parents[1]
DAY = 86_400_000
WRITER = """
import asyncio, json, sys, threading
from proxy.store.address import StoreError
from proxy.store.engine import Store
from tests.gateway import migrated
from tests.store.rows import call

async def main():
    told = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), told.set()), daemon=True).start()
    store, written, failed, before = Store(sys.argv[1]), 0, [], None
    await store.open()
    while not told.is_set():
        try:
            await store.write([call()])
            written, before = written + 1, None
        except StoreError as error:  # a second may be the machine's; the next one has to do
            failed += [str(error)] if before else []
            before = error
        if written == 1:
            print("ready", flush=True)
        await asyncio.sleep(0.002)
    await store.close()
    print(json.dumps([written, failed]))

asyncio.run(main())
"""
"""A gateway's store, which waits a second for a lock and then fails."""


def settings(folder: Path, **telemetry: Any) -> Settings:
    url = f"sqlite+aiosqlite:///{folder}/t.db"
    return load(None, {"telemetry": {"database_url": url, **telemetry}}, {})


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """With a database that has a bit of everything, old and new."""
    shutil.copy(await migrated(), tmp_path / "t.db")
    store = Store(f"sqlite+aiosqlite:///{tmp_path}/t.db")
    await store.open()
    await store.write(everything(now_ms() - 40 * DAY) + everything(now_ms(), "new"))
    await store.close()
    return tmp_path


def calls(folder: Path) -> int:
    return int(rows(folder / "t.db", "SELECT count(*) AS n FROM api_calls")[0]["n"])


async def test_what_is_old_goes_at_once(folder: Path) -> None:
    said = await prune(settings(folder), None, False)
    assert said.endswith(" rows deleted")
    assert int(said.split()[0]) > 5
    assert calls(folder) == 2
    assert await prune(settings(folder), None, False) == "0 rows deleted"


async def test_an_age_may_be_said(folder: Path) -> None:
    await prune(settings(folder, retention_days=0), 41 * DAY, False)
    assert calls(folder) == 4
    await prune(settings(folder, retention_days=0), 39 * DAY, False)
    assert calls(folder) == 2
    with pytest.raises(ConfigError, match="say --older-than"):
        await prune(settings(folder, retention_days=0), None, False)


async def test_a_dry_run_says_what_would_go_and_deletes_nothing(folder: Path) -> None:
    said = await prune(settings(folder), None, True)
    first, *lines = said.splitlines()
    assert first.startswith("older than 20")
    found = {table: int(number) for table, number in (line.split() for line in lines)}
    ages = (*retention.CONTENTS, *retention.AGES)
    assert list(found) == [age.table.name for age in ages]
    assert (found["api_calls"], found["errors"], found["gpu_metrics"]) == (2, 2, 1)
    assert calls(folder) == 4
    deleted = await prune(settings(folder), None, False)
    assert int(deleted.split()[0]) == sum(found.values())


async def test_contents_go_by_days_of_their_own(folder: Path) -> None:
    store = Store(f"sqlite+aiosqlite:///{folder}/t.db")
    await store.write([content(f"r{age}", now_ms() - age * DAY) for age in (1, 4, 8)])
    await store.close()
    kept = "SELECT request_id AS id FROM call_contents WHERE request_id LIKE 'r%' ORDER BY id"
    for older_than, left in ((None, ["r1", "r4"]), (365 * DAY, ["r1"]), (DAY // 2, [])):
        days = 7 if older_than is None else 3
        await prune(settings(folder, content_days=days), older_than, False)
        assert [row["id"] for row in rows(folder / "t.db", kept)] == left


async def test_calls_are_archived_first(folder: Path) -> None:
    archive = folder / "archive"
    archive.write_text("no folder")
    with pytest.raises(StoreError, match="cannot write"):
        await prune(settings(folder, archive=str(archive)), None, False)
    assert calls(folder) == 4
    archive.unlink()
    await prune(settings(folder, archive=str(archive)), None, False)
    assert calls(folder) == 2
    assert len(list(archive.glob("api_calls-*.jsonl.gz"))) == 1


async def test_without_a_database_none_is_made(tmp_path: Path) -> None:
    for dry_run in (True, False):
        with pytest.raises(StoreError, match="there is no database"):
            await prune(settings(tmp_path), None, dry_run)
    assert not (tmp_path / "t.db").exists()


async def test_a_terminal_sees_how_far_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    said = await prune(settings(folder), None, False)
    deleted = said.split()[0]
    assert f"100%  {deleted} of {deleted} rows" in terminal.getvalue()


async def test_between_two_steps_nothing_is_locked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_CHUNK", 1)
    steps: list[int] = []
    store = Store(f"sqlite+aiosqlite:///{folder}/t.db")
    with closing(sqlite3.connect(folder / "t.db", timeout=0, isolation_level=None)) as other:

        def write(step: int) -> None:
            steps.append(step)
            other.execute("UPDATE models SET version = 'seen'")

        await retention.let_go(store, now_ms() - 30 * DAY, None, write)
    await store.close()
    assert len(steps) > 5
    assert set(steps) == {1}


async def test_another_process_writes_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_CHUNK", 50)
    url = f"sqlite+aiosqlite:///{folder}/t.db"
    store = Store(url)
    await store.write([call(timestamp=now_ms() - 40 * DAY) for _ in range(2000)])
    await store.close()
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, url),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert await asyncio.wait_for(writer.stdout.readline(), 20) == b"ready\n"
    said = await prune(settings(folder), None, False)
    out, _ = await asyncio.wait_for(writer.communicate(b""), 20)
    written, failed = json.loads(out)
    assert int(said.split()[0]) > 2000
    assert failed == []
    assert calls(folder) == 2 + written
