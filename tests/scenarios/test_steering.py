"""An operator takes a key out, puts it back, or ends its rest, while the gateway runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway import Gateway, lab, running
from tests.scenarios.views import Start, key
from tests.upstream import Upstream, completion, error

MASTER = "tk-master-canary-1"
AUTH = {"auth": {"master_key": MASTER}}


async def order(gateway: Gateway, what: str, name: str = "k1", provider: str = "lab") -> Any:
    got = await gateway.client.post(f"/admin/providers/{provider}/keys/{name}/{what}")
    assert got.status_code == 200, got.text
    return got.json()


@pytest.mark.parametrize("what", ["reset", "disable", "enable"])
async def test_only_the_master_key_may_steer(upstream: Upstream, start: Start, what: str) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url)}, **AUTH})
    path = f"/admin/providers/lab/keys/k1/{what}"
    async with httpx.AsyncClient(base_url=gateway.url) as stranger:
        for headers in ({}, {"authorization": "Bearer sk-wrong"}):
            got = await stranger.post(path, headers=headers)
            assert (got.status_code, got.json()["error"]["type"]) == (401, "authentication_error")
    assert (await key(gateway))["state"] == "healthy"
    assert (await gateway.client.post(path)).status_code == 200
    assert (await gateway.client.get(path)).status_code == 405


async def test_what_is_not_there_cannot_be_steered(upstream: Upstream, start: Start) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url)}, **AUTH})
    for path in ("lab/keys/k9/reset", "nobody/keys/k1/disable"):
        got = await gateway.client.post(f"/admin/providers/{path}")
        error = got.json()["error"]
        assert (got.status_code, error["code"], error["type"]) == (
            404,
            "key_not_found",
            "invalid_request_error",
        )
        assert set(error) == {"message", "type", "param", "code"}
    got = await gateway.client.post("/admin/providers/lab/keys/k1/explode")
    assert (got.status_code, set(got.json()["error"])) == (404, set(error))


async def test_a_disabled_key_is_not_asked_until_it_is_enabled(
    upstream: Upstream, start: Start
) -> None:
    provider = lab(upstream.url, "sk-1111", "sk-2222", strategy="fallback")
    gateway = await start({"providers": {"lab": provider}})
    said = await order(gateway, "disable")
    assert (said["name"], said["state"], said["reason"]) == ("k1", "disabled", "operator")
    shown = await key(gateway)
    assert (shown["state"], shown["reason"], shown["until"]) == ("disabled", "operator", None)
    assert (await gateway.chat("lab/m")).headers["x-tollkeeper-key"] == "k2"
    await order(gateway, "disable", "k2")
    got = await gateway.chat("lab/m")
    assert (got.status_code, got.json()["error"]["code"]) == (502, "no_keys")
    assert "disabled by an operator" in got.json()["error"]["message"]
    assert (await order(gateway, "enable"))["state"] == "healthy"
    assert (await gateway.chat("lab/m")).headers["x-tollkeeper-key"] == "k1"
    assert [call.key for call in upstream.calls] == ["sk-2222", "sk-1111"]


async def test_a_reset_ends_every_rest_of_a_key(upstream: Upstream, start: Start) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url)}})
    spent = error(429, "spent", "insufficient_quota", retry_after="3600")
    for script, state in (
        (error(429, "slow", retry_after="600"), "cooling"),
        (spent, "exhausted"),
        (error(401, "revoked"), "disabled"),
    ):
        upstream.script = script
        await gateway.chat("lab/m")
        assert (await key(gateway))["state"] == state
        said = await order(gateway, "reset")
        assert (said["state"], said["models"]) == ("healthy", [])
        upstream.script = completion()
        assert (await gateway.chat("lab/m")).status_code == 200


async def test_orders_outlive_a_restart(upstream: Upstream, tmp_path: Path) -> None:
    config = {"providers": {"lab": lab(upstream.url, "sk-1111", "sk-2222", strategy="fallback")}}
    upstream.by_key["sk-2222"] = error(429, "spent", "insufficient_quota", retry_after="3600")
    async with running(tmp_path, config) as gateway:
        await order(gateway, "disable")
        await gateway.chat("lab/m")
        await order(gateway, "reset", "k2")
    upstream.by_key["sk-2222"] = completion()
    async with running(tmp_path, config) as gateway:
        assert (await key(gateway))["reason"] == "operator"
        assert (await gateway.chat("lab/m")).headers["x-tollkeeper-key"] == "k2"
        await order(gateway, "enable")
    async with running(tmp_path, config) as gateway:
        assert (await key(gateway))["state"] == "healthy"
        assert (await gateway.chat("lab/m")).headers["x-tollkeeper-key"] == "k1"
