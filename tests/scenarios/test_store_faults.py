"""A database that is locked, missing or broken costs no request, and its rows come later."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from proxy.bounds import MOST_SUM
from proxy.clock import monotonic
from tests.gateway import Gateway, lab, running
from tests.postgres_server import server
from tests.store.databases import REACHABLE, database, migrated
from tests.turnstile import turnstile
from tests.upstream import Upstream, completion, error, stream, words

Start = Callable[..., Awaitable[Gateway]]
Removal = Callable[[Path], None]
EVERY_CALL = "SELECT * FROM api_calls"


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(400):
        if await true():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came to be")


async def recorder(gateway: Gateway) -> dict[str, Any]:
    got = await gateway.client.get("/stats")
    assert got.status_code == 200
    found: dict[str, Any] = got.json()["recorder"]
    return found


@asynccontextmanager
async def locked(database: Path) -> AsyncIterator[None]:
    """Holds the database for writing, as a careless program beside the gateway would."""
    connection = sqlite3.connect(database, isolation_level=None, timeout=0)
    for _ in range(1000):
        try:
            connection.execute("BEGIN IMMEDIATE")
            break
        except sqlite3.OperationalError:  # the gateway is writing, and needs this loop to end it
            await asyncio.sleep(0.005)
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@pytest.mark.sqlite
async def test_a_locked_database_delays_rows_and_nothing_else(
    gateway: Gateway, upstream: Upstream
) -> None:
    before = await recorder(gateway)
    async with locked(gateway.database):
        answers = [await gateway.chat("lab/json") for _ in range(5)]
        upstream.script = stream(words("a", "b"))
        answers += await asyncio.gather(*(gateway.chat("lab/json", stream=True) for _ in range(5)))
        assert {got.status_code for got in answers} == {200}

        async def told() -> bool:
            return (await recorder(gateway))["last_error"] is not None

        await until(told)
        now = await recorder(gateway)
        assert now["queued"] >= 10
        assert "locked" in now["last_error"]
        assert (await gateway.chat("lab/json")).status_code == 200
        assert not gateway.select("SELECT id FROM api_calls")
    rows = await gateway.rows(11)
    ids = [got.headers["x-request-id"] for got in answers]
    assert [row["request_id"] for row in rows][:5] == ids[:5]
    assert {row["request_id"] for row in rows[:10]} == set(ids)

    async def written() -> bool:
        return (await recorder(gateway))["recorded"] == before["recorded"] + 11

    await until(written)
    assert (await recorder(gateway))["dropped"] == 0


@pytest.mark.skipif("postgresql" not in REACHABLE, reason="there is no PostgreSQL")
async def test_a_server_that_goes_away_delays_rows_and_nothing_else(
    upstream: Upstream, tmp_path: Path
) -> None:
    """Nor does a question for figures knock at its door more than once a second."""
    host, port = server()["host"], server()["port"]
    async with (
        database("postgresql", tmp_path, migrated("postgresql")) as url,
        turnstile(host, port) as between,
    ):
        config = {
            "providers": {"lab": lab(upstream.url)},
            "telemetry": {"database_url": url.replace(f":{port}/", f":{between.port}/")},
        }
        async with running(tmp_path, config) as gateway:
            gateway.database = url.rpartition("/")[2]
            await gateway.chat("lab/json")
            await gateway.rows(1)
            between.shut()
            ids, begun = [], monotonic()
            for _ in range(10):
                got = await gateway.chat("lab/json")
                ids.append(got.headers["x-request-id"])
                assert (await gateway.client.get("/stats/calls")).status_code == 503
            assert (await recorder(gateway))["queued"] >= 10
            assert between.tries <= 4 + monotonic() - begun
            between.reopen()
            rows = await gateway.rows(11)
            assert [row["request_id"] for row in rows[1:]] == ids


def in_the_way(folder: Path) -> Path:
    """A regular file stands where a folder of the database's path should be."""
    (folder / "file").write_text("no folder")
    return folder / "file"


def garbage(folder: Path) -> Path:
    """A file that is no database."""
    (folder / "file").mkdir()
    path = folder / "file" / "new.db"
    path.write_bytes(b"this is no database at all " * 400)
    return path


EVERY_PATH = (
    "",
    *("/summary", "/calls", "/calls/X", "/providers", "/models", "/endpoints", "/errors", "/keys"),
    *("/timeseries", "/rate-limits", "/health", "/tps", "/system", "/costs/daily", "/database"),
)
"""Below ``/stats``."""


@pytest.mark.parametrize("spoil", [in_the_way, garbage])
async def test_without_a_database_every_call_is_served(
    upstream: Upstream, tmp_path: Path, spoil: Callable[[Path], Path]
) -> None:
    obstacle = spoil(tmp_path)
    database = tmp_path / "file" / "new.db"
    config = {
        "providers": {"lab": lab(upstream.url)},
        "telemetry": {"database_url": f"sqlite+aiosqlite:///{database}"},
    }
    async with running(tmp_path, config) as gateway:
        assert (await gateway.client.get("/readyz")).status_code == 200
        got = await gateway.chat("lab/json")
        assert got.status_code == 200

        async def told() -> bool:
            return (await recorder(gateway))["last_error"] is not None

        await until(told)
        now = await recorder(gateway)
        assert (now["recorded"], now["dropped"]) == (0, 0)
        assert now["queued"] >= 1
        for path in EVERY_PATH:
            shown = await gateway.client.get(f"/stats{path}")
            assert shown.status_code in (200, 404, 503), path
            assert "Traceback" not in shown.text
            if shown.status_code != 200:
                assert set(shown.json()["error"]) == {"message", "type", "param", "code"}
        assert (await gateway.chat("lab/json")).status_code == 200

        obstacle.unlink()  # somebody repairs it, and what was kept back arrives
        gateway.database = database
        rows = await gateway.rows(2)
        assert rows[0]["request_id"] == got.headers["x-request-id"]


@pytest.mark.parametrize("telemetry", [{"enabled": False}, {"privacy_level": "none"}])
async def test_where_nothing_is_to_be_kept_nothing_is(
    upstream: Upstream, start: Start, tmp_path: Path, telemetry: dict[str, Any]
) -> None:
    database = tmp_path / "never" / "calls.db"
    telemetry["database_url"] = f"sqlite+aiosqlite:///{database}"
    upstream.by_model["busy"] = error(429, "slow down", retry_after="40")
    gateway = await start({"providers": {"lab": lab(upstream.url)}, "telemetry": telemetry})
    got = await gateway.chat("lab/json")
    assert got.status_code == 200
    assert got.headers["x-request-id"]
    upstream.script = stream(words("a"))
    assert (await gateway.chat("lab/json", stream=True)).status_code == 200
    assert (await gateway.chat("nobody/m")).status_code == 404
    assert [(await gateway.chat("lab/busy")).status_code for _ in range(2)] == [429, 429]
    assert len(upstream.calls) == 3, "what was learnt of the key lives in memory"
    await asyncio.sleep(0.5)
    assert not database.parent.exists()
    for path in EVERY_PATH:
        shown = await gateway.client.get(f"/stats{path}")
        assert shown.status_code == (404 if path.endswith("/X") else 200), path
        if "data" in shown.json() and path not in ("/keys", "/timeseries"):
            assert shown.json()["data"] == [], path
    totals = (await gateway.client.get("/stats")).json()["totals"]
    assert (totals["requests"], totals["cost_usd"]) == (0, 0)
    [key] = (await gateway.client.get("/stats/keys")).json()["data"]
    assert key["state"] == "cooling"


def file_deleted(folder: Path) -> None:
    for path in folder.glob("calls.db*"):
        if path.is_file():
            path.unlink()


def all_deleted(folder: Path) -> None:
    shutil.rmtree(folder)


def folder_moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize("remove", [file_deleted, all_deleted, folder_moved])
async def test_a_database_that_is_taken_away_costs_no_row_that_comes_after(
    upstream: Upstream, tmp_path: Path, caplog: pytest.LogCaptureFixture, remove: Removal
) -> None:
    """It is made anew, in its place, and what its old one held may be gone, which is told."""
    database = tmp_path / "data" / "calls.db"
    database.parent.mkdir()
    shutil.copy(migrated("sqlite"), database)
    config = {
        "providers": {"lab": lab(upstream.url)},
        "telemetry": {"database_url": f"sqlite+aiosqlite:///{database}"},
    }
    async with running(tmp_path, config) as gateway:
        gateway.database = database
        await gateway.chat("lab/json")
        await gateway.rows(1)
        remove(database.parent)
        answers = [await gateway.chat("lab/json") for _ in range(3)]
        upstream.script = stream(words("a"))
        answers += [await gateway.chat("lab/json", stream=True) for _ in range(3)]
        assert {got.status_code for got in answers} == {200}

        async def made() -> bool:
            return database.exists()

        await until(made)
        ids = {got.headers["x-request-id"] for got in answers}

        async def written() -> bool:
            with suppress(sqlite3.OperationalError):  # it is being migrated
                return ids <= {row["request_id"] for row in gateway.select(EVERY_CALL)}
            return False

        await until(written)
        assert len(gateway.select(EVERY_CALL)) in (6, 7), "the first may be in the journal still"
        shown = (await gateway.client.get("/stats/calls")).json()["data"]
        assert ids <= {row["request_id"] for row in shown}

        async def calm() -> bool:
            status = await recorder(gateway)
            return (status["last_error"], status["queued"], status["dropped"]) == (None, 0, 0)

        await until(calm)
        assert "calls.db was deleted, moved or replaced" in caplog.text


async def settled(gateway: Gateway) -> dict[str, Any]:
    """The recorder, once nothing waits any more."""

    async def done() -> bool:
        return (await recorder(gateway))["queued"] == 0

    await until(done)
    return await recorder(gateway)


async def test_counts_that_no_call_can_have_keep_no_row_out(
    upstream: Upstream, tmp_path: Path
) -> None:
    priced = {"input": 1000, "output": 1000}
    config = {"providers": {"lab": lab(upstream.url)}, "prices": {"lab/*": priced}}
    huge = int(4e15)
    upstream.by_model["huge"] = completion(prompt=huge, output=huge)
    told = {"provider": "lab", "model": "told", "input_tokens": 2**62}
    async with running(tmp_path, config) as gateway:
        await asyncio.gather(*(gateway.chat("lab/huge") for _ in range(4)))
        refused = await gateway.client.post("/track/inference", json=told)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "input_tokens")
        await gateway.chat("lab/json")
        rows = await gateway.rows(5)
        now = await settled(gateway)
        assert (now["dropped"], now["last_error"]) == (0, None)
    counted = {row["model"]: row["total_tokens"] for row in rows}
    assert counted["json"] is not None
    assert counted["huge"] is None or counted["huge"] < 1000  # what was seen of it, if anything


@pytest.mark.sqlite
async def test_sums_that_are_full_keep_no_row_out_over_a_restart_either(
    upstream: Upstream, tmp_path: Path
) -> None:
    """As an earlier version may have left them: it believed whatever it was told."""
    config = {"providers": {"lab": lab(upstream.url)}}
    async with running(tmp_path, config) as gateway:
        for _ in range(2):
            await gateway.chat("lab/json")
        await gateway.rows(2)
        assert (await settled(gateway))["dropped"] == 0
    sums = ("daily_costs", "rollups_minute", "rollups_hour", "rollups_day", "tps_metrics")
    with closing(sqlite3.connect(gateway.database)) as connection, connection:
        for table in sums:
            connection.execute(f"UPDATE {table} SET output_tokens = {2**63 - 1}")
        connection.execute(f"UPDATE api_calls SET total_tokens = {2**63 - 1}")
    async with running(tmp_path, config) as gateway:
        for _ in range(2):
            await gateway.chat("lab/json")
        assert len(await gateway.rows(4)) == 4
        now = await settled(gateway)
        assert (now["dropped"], now["last_error"]) == (0, None)
    [day] = gateway.select("SELECT invocations, output_tokens FROM daily_costs")
    assert day == {"invocations": 4, "output_tokens": MOST_SUM}
    async with running(tmp_path, config) as gateway:
        await gateway.chat("lab/json")
        assert len(await gateway.rows(5)) == 5
        assert (await settled(gateway))["dropped"] == 0
