from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from proxy import reprice as module
from proxy.clock import now_ms
from proxy.config import load
from proxy.metering import pricing
from proxy.metering.pricing import Pair
from proxy.metering.rates import Rates
from proxy.reprice import RepriceError, reprice
from proxy.schema import Settings
from proxy.store import repricing
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.types import CallRecord
from tests.gateway import migrated
from tests.store.rows import call, failed, rows

NOON = 1_735_732_800_000
CENT = 10_000_000  # nano-dollars
LISTED: dict[Pair, Rates] = {
    ("groq", "llama"): Rates(input=2 * CENT * 1_000_000 // 1000, output=0, version="new"),
    ("groq", "same"): Rates(input=985_000 * 1000, output=0, version="new"),
}
"""A thousand input tokens of a llama cost two cents today; they cost 985,000 nano-dollars then."""


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look_up(pairs: Sequence[Pair]) -> list[Rates | None]:
        return [LISTED.get(pair) for pair in pairs]

    monkeypatch.setattr(pricing, "look_up", look_up)


def settings(folder: Path, **sections: Any) -> Settings:
    keys = [{"name": "org-a", "value": "gsk-1"}, {"name": "gift", "value": "gsk-2"}]
    providers = {"groq": {"keys": keys}, "lab": {"type": "openai", "base_url": "http://x/v1"}}
    url = f"sqlite+aiosqlite:///{folder}/t.db"
    data = {"providers": providers, "telemetry": {"database_url": url}, **sections}
    file = folder / "t.yaml"
    file.write_text(json.dumps(data))
    return load(file, {}, {})


async def recorded(folder: Path, *calls: CallRecord) -> None:
    if not (folder / "t.db").exists():
        shutil.copy(await migrated(), folder / "t.db")
    store = Store(f"sqlite+aiosqlite:///{folder}/t.db")
    await store.open()
    await store.write(list(calls))
    await store.close()


def costs(folder: Path) -> dict[str, tuple[Any, ...]]:
    found = rows(folder / "t.db", "SELECT * FROM api_calls ORDER BY id")
    names = ("cost_estimate_usd", "cost_source", "price_version", "list_cost_usd")
    return {row["request_id"]: tuple(row[name] for name in names) for row in found}


def daily(folder: Path) -> list[tuple[str, str, float, int]]:
    found = rows(folder / "t.db", "SELECT * FROM daily_costs ORDER BY provider, model_name")
    names = ("provider", "model_name", "total_cost_usd", "unpriced_calls")
    return [tuple(row[name] for name in names) for row in found]  # type: ignore[misc]


def unpriced(**changes: Any) -> CallRecord:
    return call(**{"cost_nano_usd": None, "cost_source": "none", "timestamp": NOON, **changes})


async def test_what_the_catalogue_or_nobody_priced_gets_todays_price(tmp_path: Path) -> None:
    await recorded(
        tmp_path,
        call(request_id="old", timestamp=NOON, price_version="old"),
        unpriced(request_id="new"),
        call(request_id="told", timestamp=NOON, cost_source="provider", cost_nano_usd=7),
        failed(request_id="failed", timestamp=NOON),
    )
    said = await reprice(settings(tmp_path), 0, now_ms(), False)
    assert costs(tmp_path) == {
        "old": (0.02, "catalog", "new", 0.02),
        "new": (0.02, "catalog", "new", 0.02),
        "told": (7e-9, "provider", None, None),
        "failed": (None, "none", None, None),
    }
    assert daily(tmp_path) == [("groq", "llama", 0.040000007, 0)]
    assert said.splitlines()[0] == "rows looked at: 2, changed: 2, newly priced: 1"
    assert said.splitlines()[2].split() == [
        "groq/llama",
        "2",
        "0.000985000",
        "0.040000000",
        "+0.039015000",
    ]


async def test_twice_is_once(tmp_path: Path) -> None:
    await recorded(tmp_path, call(timestamp=NOON), unpriced())
    await reprice(settings(tmp_path), 0, now_ms(), False)
    before = costs(tmp_path), daily(tmp_path)
    said = await reprice(settings(tmp_path), 0, now_ms(), False)
    assert said == "rows looked at: 2, changed: 0, newly priced: 0"
    assert (costs(tmp_path), daily(tmp_path)) == before


async def test_a_dry_run_says_the_same_and_changes_nothing(tmp_path: Path) -> None:
    await recorded(tmp_path, call(timestamp=NOON), unpriced(model="same"))
    before = costs(tmp_path), daily(tmp_path)
    dry = await reprice(settings(tmp_path), 0, now_ms(), True)
    assert (costs(tmp_path), daily(tmp_path)) == before
    assert dry.startswith("rows looked at: 2, would change: 2, newly priced: 1\n")
    wet = await reprice(settings(tmp_path), 0, now_ms(), False)
    assert wet.replace("changed", "would change", 1) == dry


async def test_a_configured_price_gives_way_to_another_alone(tmp_path: Path) -> None:
    mine = {"cost_source": "config", "timestamp": NOON, "price_version": "config 1"}
    await recorded(
        tmp_path,
        call(request_id="still", provider="lab", **mine),
        call(request_id="dropped", cost_nano_usd=5, list_cost_nano_usd=9, **mine),
        call(request_id="free", cost_nano_usd=0, key_id="gift", **mine),
    )
    keys = [{"name": "gift", "value": "gsk-2", "free_tier": True}]
    providers = {
        "groq": {"keys": keys},
        "lab": {"type": "openai", "base_url": "http://x/v1"},
    }
    table = {"lab/llama": {"input": 3, "output": 0}}
    await reprice(settings(tmp_path, providers=providers, prices=table), 0, now_ms(), False)
    found = costs(tmp_path)
    assert found["still"][:2] == (0.003, "config")
    assert found["still"][2] != "config 1"
    assert found["dropped"] == (5e-9, "config", "config 1", 0.02)  # the list alone is news
    assert found["free"] == (0.0, "config", "config 1", 0.02)


async def test_a_price_that_nobody_knows_any_more_stays(tmp_path: Path) -> None:
    await recorded(tmp_path, call(timestamp=NOON, model="gone", price_version="old"))
    before = costs(tmp_path)
    said = await reprice(settings(tmp_path), 0, now_ms(), False)
    assert said == "rows looked at: 1, changed: 0, newly priced: 0"
    assert costs(tmp_path) == before


async def test_a_price_that_is_the_same_keeps_its_date(tmp_path: Path) -> None:
    same = {"model": "same", "price_version": "old", "list_cost_nano_usd": 985_000}
    await recorded(tmp_path, call(timestamp=NOON, request_id="r", **same))
    await reprice(settings(tmp_path), 0, now_ms(), False)
    assert costs(tmp_path)["r"][2] == "old"


async def test_only_the_window_is_priced(tmp_path: Path) -> None:
    await recorded(
        tmp_path, *(unpriced(request_id=f"r{at}", timestamp=NOON + at) for at in range(4))
    )
    await reprice(settings(tmp_path), NOON + 1, NOON + 3, False)
    assert [name for name, row in costs(tmp_path).items() if row[0]] == ["r1", "r2"]
    assert daily(tmp_path) == [("groq", "llama", 0.04, 2)]


async def test_the_largest_drift_comes_first_and_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SHOWN", 2)
    table = {f"lab/m{at}": {"input": at, "output": 0} for at in range(1, 5)}
    made = [unpriced(provider="lab", model=f"m{at}") for at in range(1, 5)]
    await recorded(tmp_path, *made)
    said = await reprice(settings(tmp_path, prices=table), 0, now_ms(), False)
    _, _, first, second, more, whole = said.splitlines()
    assert [line.split()[0] for line in (first, second)] == ["lab/m4", "lab/m3"]
    assert more == "and 2 more models"
    assert whole.split() == ["all", "4", "0.000000000", "0.010000000", "+0.010000000"]


async def test_without_the_catalogue_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(pairs: Sequence[Pair]) -> list[Rates | None]:
        raise OSError("no such child")

    monkeypatch.setattr(pricing, "look_up", broken)
    await recorded(tmp_path, unpriced())
    before = costs(tmp_path)
    with pytest.raises(RepriceError, match="cannot be asked"):
        await reprice(settings(tmp_path), 0, now_ms(), False)
    assert costs(tmp_path) == before


async def test_without_a_database_none_is_made(tmp_path: Path) -> None:
    for dry_run in (True, False):
        with pytest.raises(StoreError, match="there is no database"):
            await reprice(settings(tmp_path), 0, now_ms(), dry_run)
    assert not (tmp_path / "t.db").exists()


async def test_a_terminal_sees_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await recorded(tmp_path, unpriced(), call(timestamp=NOON))
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    await reprice(settings(tmp_path), 0, now_ms(), False)
    assert "100%  2 of 2 rows" in terminal.getvalue()


async def test_a_database_that_is_locked_for_a_while_is_waited_for(tmp_path: Path) -> None:
    await recorded(tmp_path, call(request_id="a", timestamp=NOON))
    before = costs(tmp_path)
    with closing(sqlite3.connect(tmp_path / "t.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        pricing_anew = asyncio.create_task(reprice(settings(tmp_path), 0, now_ms(), False))
        await asyncio.sleep(1.5)  # longer than a connection waits
        assert not pricing_anew.done()
        other.execute("ROLLBACK")
    await asyncio.wait_for(pricing_anew, 20)
    assert costs(tmp_path) != before


async def test_between_two_chunks_nothing_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repricing, "CHUNK", 1)
    await recorded(tmp_path, *(unpriced() for _ in range(3)))
    written = 0

    async def pause(_: float) -> None:
        nonlocal written
        with closing(sqlite3.connect(tmp_path / "t.db", timeout=0)) as other, other:
            other.execute("INSERT INTO daily_costs (date, provider) VALUES (?, 'x')", (written,))
        written += 1

    monkeypatch.setattr(module, "asyncio", Paused(pause))
    await reprice(settings(tmp_path), 0, now_ms(), False)
    assert written == 3


class Paused:
    """asyncio, but for how it sleeps."""

    def __init__(self, sleep: Any) -> None:
        self.sleep = sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)
