"""The newest calls are there at once, whatever the database does, and after a restart."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import Gateway, lab, running
from tests.scenarios.test_store_faults import locked
from tests.upstream import Upstream

Start = Callable[..., Awaitable[Gateway]]


async def recent(gateway: Gateway) -> list[dict[str, Any]]:
    answer = await gateway.client.get("/stats/recent?limit=1000")
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


@pytest.mark.sqlite
async def test_a_call_is_shown_though_its_row_cannot_be_written(gateway: Gateway) -> None:
    async with locked(gateway.database):
        answer = await gateway.chat("lab/json")
        (call,) = await recent(gateway)
        assert not gateway.select("SELECT id FROM api_calls")
    assert call["request_id"] == answer.headers["x-request-id"]
    row = await gateway.row()
    assert {name: row[name] for name in ("model", "status", "cost_estimate_usd")} == {
        name: call[name] for name in ("model", "status", "cost_estimate_usd")
    }


async def test_a_restart_forgets_none(tmp_path: Path, upstream: Upstream) -> None:
    config = {"providers": {"lab": lab(upstream.url)}}
    async with running(tmp_path, config) as first:
        for _ in range(3):
            await first.chat("lab/json")
        before = await recent(first)
    async with running(tmp_path, config) as second:
        after = await recent(second)
        await second.chat("lab/json")
        assert len(await recent(second)) == 4
    assert len(before) == 3
    assert [call | {"id": None} for call in after] == before


async def test_where_nothing_is_kept_nothing_is_shown(start: Start, upstream: Upstream) -> None:
    off = {"providers": {"lab": lab(upstream.url)}, "telemetry": {"enabled": False}}
    gateway = await start(off)
    assert (await gateway.chat("lab/json")).status_code == 200
    assert await recent(gateway) == []
