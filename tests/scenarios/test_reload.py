"""A configuration that is read again: taken whole or not at all, under calls that go on."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.gateway import lab, migrated
from tests.process import Process, run
from tests.upstream import Exchange, Upstream, completion, error, event, words

MASTER = {"authorization": "Bearer tk-master-canary-1"}


class Serving:
    """A gateway in its own process, and its file."""

    def __init__(self, process: Process, file: Path, client: httpx.AsyncClient) -> None:
        self.process = process
        self.file = file
        self.client = client

    def write(self, config: dict[str, Any] | str) -> None:
        self.file.write_text(config if isinstance(config, str) else yaml.safe_dump(config))

    async def chat(self, model: str, **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
        return await self.client.post("/v1/chat/completions", json=body)

    async def reload(self) -> httpx.Response:
        return await self.client.post("/admin/reload")

    async def keys(self) -> dict[str, Any]:
        found = (await self.client.get("/stats/keys")).json()["data"]
        return {f"{key['provider']}/{key['name']}": key for key in found}

    async def ended(self) -> list[str]:
        """Stops it; what it said."""
        self.process.signal()
        return await self.process.ended()


def config(url: str, folder: Path, **sections: Any) -> dict[str, Any]:
    providers = {"lab": lab(url, "sk-first-canary-1"), "old": lab(url, "sk-old-canary-11")}
    return {
        "server": {"port": 0, "log_format": "json"},
        "auth": {"master_key": "tk-master-canary-1"},
        "telemetry": {"database_url": f"sqlite+aiosqlite:///{folder / 'calls.db'}"},
        "routing": {"max_wait": 0},
        "providers": providers,
        **sections,
    }


@asynccontextmanager
async def serving(folder: Path, first: dict[str, Any]) -> AsyncIterator[Serving]:
    database, file = folder / "calls.db", folder / "t.yaml"
    shutil.copy(await migrated(), database)
    file.write_text(yaml.safe_dump(first))
    started = await run("serve", "--config", str(file), cwd=folder)
    try:
        assert started.stdout is not None
        line = await asyncio.wait_for(started.stdout.readline(), 20)
        url = line.decode().split()[-1]
        async with httpx.AsyncClient(base_url=url, headers=MASTER, timeout=30) as client:
            yield Serving(Process(started, url, database), file, client)
    finally:
        if started.returncode is None:
            started.kill()
            await started.communicate()


async def test_what_is_new_is_used_and_what_runs_or_was_learnt_stays(
    upstream: Upstream, tmp_path: Path
) -> None:
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream", transfer_encoding="chunked")
        for part in words("a", "b"):
            await exchange.chunk(part)
            if part == event({"content": "a"}):
                await asyncio.wait_for(go.wait(), 10)
        await exchange.end()

    upstream.by_key |= {
        "sk-old-canary-11": script,
        "sk-first-canary-1": error(429, "slow", retry_after="600"),
    }
    async with serving(tmp_path, config(upstream.url, tmp_path)) as gateway:
        assert (await gateway.chat("lab/m")).status_code == 429
        assert (await gateway.chat("new")).status_code == 404
        line = await gateway.process.dial({"model": "old/m", "stream": True, "messages": []})
        await line.until(event({"content": "a"}))
        gateway.write(
            config(
                upstream.url,
                tmp_path,
                providers={"lab": lab(upstream.url, "sk-first-canary-1", "sk-second-canary-2")},
                models={"new": {"targets": ["lab/m"]}},
                prices={"lab/m": {"input": 1_000_000, "output": 0}},
            )
        )
        gateway.process.signal(signal.SIGHUP)
        async with asyncio.timeout(20):
            while "lab/k2" not in await gateway.keys():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        got = await gateway.chat("new")
        assert (got.status_code, got.headers["x-tollkeeper-key"]) == (200, "k2")
        assert upstream.calls[-1].key == "sk-second-canary-2"
        keys = await gateway.keys()
        assert {name: key["state"] for name, key in keys.items()} == {
            "lab/k1": "cooling",
            "lab/k2": "healthy",
        }
        assert [call.key for call in upstream.calls].count("sk-first-canary-1") == 1
        assert (await gateway.chat("old/m")).status_code == 404
        upstream.by_key["sk-second-canary-2"] = error(400, "is sk-second-canary-2 yours?")
        assert "canary" not in (await gateway.chat("new")).text
        go.set()
        await line.until(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        await line.hang_up()
        assert event({"content": "b"}) in line.received
        lines = await gateway.ended()
        rows = gateway.process.select("SELECT * FROM api_calls ORDER BY id")
    assert "canary" not in "\n".join(lines)
    assert any("was read again" in line for line in lines)
    [stream] = [row for row in rows if row["provider"] == "old" and row["key_id"]]
    assert (stream["status"], stream["output_tokens"]) == ("success", 2)
    [priced] = [row for row in rows if row["cost_source"] == "config"]
    assert (priced["requested_model"], priced["cost_estimate_usd"]) == ("new", 9.0)


BROKEN = (
    ("routing: {max_wait: soon}\nproviders: {lab: {type: openia}}\nprice: {}\n", 3),
    ("providers: {lab: [\n", 1),
)


async def test_a_file_that_does_not_hold_changes_nothing(
    upstream: Upstream, tmp_path: Path
) -> None:
    async with serving(tmp_path, config(upstream.url, tmp_path)) as gateway:
        for text, mistakes in BROKEN:
            gateway.write(text)
            got = await gateway.reload()
            said = got.json()["error"]
            assert (got.status_code, said["code"]) == (422, "invalid_configuration")
            assert len(said["message"].split("; t.yaml")) >= 1
            assert said["message"].count("t.yaml") >= mistakes
            assert (await gateway.chat("lab/m")).status_code == 200
        gateway.file.unlink()
        assert (await gateway.reload()).status_code == 422
        async with httpx.AsyncClient(base_url=gateway.process.url) as stranger:
            assert (await stranger.post("/admin/reload")).status_code == 401
        gateway.write(BROKEN[0][0])
        gateway.process.signal(signal.SIGHUP)
        for _ in range(2):
            assert (await gateway.chat("lab/m")).status_code == 200
        assert set(await gateway.keys()) == {"lab/k1", "old/k1"}
        lines = [json.loads(line) for line in await gateway.ended()]
    told = [line for line in lines if "stays as it was" in line.get("message", "")]
    assert len(told) == 3
    assert all(line["level"] == "error" and "t.yaml" in line["message"] for line in told)
    assert not any("was read again" in line.get("message", "") for line in lines)


async def test_what_needs_a_restart_is_named_and_left_as_it_is(
    upstream: Upstream, tmp_path: Path
) -> None:
    first = config(upstream.url, tmp_path)
    async with serving(tmp_path, first) as gateway:
        changed = {
            "server": {**first["server"], "drain": 1},
            "auth": {"master_key": "tk-master-canary-2"},
            "state": {"prefix": "other"},
            "telemetry": {**first["telemetry"], "retention_days": 1},
        }
        gateway.write({**first, **changed, "models": {"new": {"targets": ["lab/m"]}}})
        for _ in range(2):  # it is as true the second time
            said = (await gateway.reload()).json()
            assert said["reloaded"] is True
            assert sorted(said["restart_needed"]) == ["auth", "server", "state", "telemetry"]
        assert (await gateway.chat("new")).status_code == 200
        other = {"authorization": "Bearer tk-master-canary-2"}
        assert (await gateway.client.get("/v1/models", headers=other)).status_code == 401
        gateway.write(first)
        said = (await gateway.reload()).json()
        assert said == {"reloaded": True, "restart_needed": [], "warnings": []}
        upstream.script = completion()
        assert (await gateway.chat("new")).status_code == 404
