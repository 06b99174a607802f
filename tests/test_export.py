from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.config import load
from proxy.export import FORMATS, TABLES, export
from proxy.schema import Settings
from proxy.store import spans
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.store.formats import ExportError
from proxy.store.tables import metadata
from tests.gateway import migrated
from tests.store.rows import call

NOON = 1_735_732_800_000
EVER = 4_000_000_000_000


@pytest.fixture
async def settings(tmp_path: Path) -> Settings:
    """Of a gateway that has recorded 25 calls."""
    url = f"sqlite+aiosqlite:///{tmp_path}/t.db"
    shutil.copy(await migrated(), tmp_path / "t.db")
    store = Store(url)
    await store.open()
    await store.write([call(request_id=f"r{n:02}", timestamp=NOON + n) for n in range(25)])
    await store.close()
    return load(None, {"telemetry": {"database_url": url}}, {})


def names(folder: Path) -> list[str]:
    """What lies beside the database."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("t.db"))


async def test_a_file_is_written_in_pages(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    page = spans.page

    async def small(*args: Any) -> Any:
        rows = await page(*args, size=10)
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(spans, "page", small)
    file = tmp_path / "calls.jsonl.gz"
    assert await export(settings, "api_calls", 0, EVER, "jsonl.gz", str(file)) == 25
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert [row["request_id"] for row in rows] == [f"r{n:02}" for n in range(25)]
    assert sizes == [10, 10, 5, 0]
    assert names(tmp_path) == ["calls.jsonl.gz"]


async def test_a_window_and_another_table(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    assert await export(settings, "api_calls", NOON + 3, NOON + 7, "csv", str(file)) == 4
    assert [row["request_id"] for row in csv.DictReader(file.read_text().splitlines())] == [
        "r03",
        "r04",
        "r05",
        "r06",
    ]
    assert await export(settings, "daily_costs", 0, EVER, "csv", str(file)) == 1
    assert [row["invocations"] for row in csv.DictReader(file.read_text().splitlines())] == ["25"]


async def test_standard_output_takes_it(
    settings: Settings, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert await export(settings, "api_calls", 0, EVER, "csv", "-") == 25
    assert capsysbinary.readouterr().out.count(b"\n") == 26


async def test_bytes_are_not_poured_into_a_terminal(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(ExportError, match="nothing for a terminal"):
        await export(settings, "api_calls", 0, EVER, "jsonl.gz", "-")


async def test_what_cannot_be_written_leaves_nothing_behind(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match=r"cannot write .*none.x.csv: No such file"):
        await export(settings, "api_calls", 0, EVER, "csv", str(tmp_path / "none" / "x.csv"))
    if sys.platform == "linux":
        with pytest.raises(ExportError, match="cannot write /dev/full: No space left"):
            await export(settings, "api_calls", 0, EVER, "jsonl.gz", "/dev/full")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_text("older")
    with pytest.raises(ExportError, match="parquet needs pyarrow"):
        await export(settings, "api_calls", 0, EVER, "parquet", str(tmp_path / "x.parquet"))
    assert names(tmp_path) == ["x.parquet"]
    assert (tmp_path / "x.parquet").read_text() == "older"


async def test_without_a_database_none_is_made(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/none.db"
    settings = load(None, {"telemetry": {"database_url": url}}, {})
    with pytest.raises(StoreError, match="there is no database"):
        await export(settings, "api_calls", 0, EVER, "csv", str(tmp_path / "x.csv"))
    assert names(tmp_path) == []


async def test_a_terminal_sees_how_far_it_is(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    await export(settings, "api_calls", NOON + 5, EVER, "csv", str(tmp_path / "x.csv"))
    assert terminal.getvalue().rpartition("\r")[2].startswith(f"[{'#' * 30}] 100%  20 of 20 rows")


def test_every_table_can_be_asked_for() -> None:
    assert set(metadata.tables) - set(TABLES) == {"client_secrets"}
    assert FORMATS == ["jsonl.gz", "csv", "parquet"]
