from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.gateway import Gateway, lab
from tests.upstream import Upstream

Start = Callable[..., Awaitable[Gateway]]


@pytest.mark.parametrize(
    ("told", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a", "models": "fast"}, "models"),
        ({"name": "a", "models": [""]}, "models"),
        ({"name": "a", "expires_at": "soon"}, "expires_at"),
        ({"name": "a", "limit": 1}, "limit"),
        ({"name": "a\u0000"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "\x1b[31m"}, "name"),
        ({"name": "\u202ex"}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "a", "tags": [str(n) for n in range(11)]}, "tags"),
        ({"name": "a", "tags": ["a,b"]}, "tags"),
        ({"name": "a", "tags": [" a"]}, "tags"),
        ({"name": "a", "tags": ["a", "a"]}, "tags"),
        ({"name": "a", "tags": ["x" * 65]}, "tags"),
        ({"name": "a", "limits": {"rpx": 1}}, "limits"),
        ({"name": "a", "limits": {"rpm": 0}}, "limits"),
        ({"name": "a", "limits": {"rpm": 1.5}}, "limits"),
        ({"name": "a", "limits": {"rpm": True}}, "limits"),
        ({"name": "a", "limits": [1]}, "limits"),
    ],
)
async def test_a_client_that_cannot_be_is_refused(
    gateway: Gateway, told: dict[str, Any], param: str
) -> None:
    answer = await gateway.client.post("/admin/keys", json=told)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"limits": {"rpx": 1}}, "limits: Object contains unknown field `rpx`"),
        ({"limits": {"tpd": -1}}, "limits: Expected `int` >= 1 - at `$.tpd`"),
        ({"name": ""}, "name: "),
        ({"expires_at": "soon"}, "expires_at: "),
        ({"id": "ck-0"}, "id: "),
    ],
)
async def test_a_change_that_cannot_be_is_refused(
    gateway: Gateway, told: dict[str, Any], said: str
) -> None:
    made = (await gateway.client.post("/admin/keys", json={"name": "ann"})).json()
    path = f"/admin/keys/{made['id']}"
    answer = await gateway.client.patch(path, json=told)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith(said)
    del made["key"]
    assert (await gateway.client.get(path)).json() == made


async def test_only_what_is_told_changes(gateway: Gateway) -> None:
    told = {"name": "ann", "tags": ["a"], "expires_at": "2099-01-01", "limits": {"rpm": 1}}
    made = (await gateway.client.post("/admin/keys", json=told)).json()
    del made["key"]
    path = f"/admin/keys/{made['id']}"
    change = {"models": ["fast"], "expires_at": None, "limits": {"tpm": 5}}
    assert (await gateway.client.patch(path, json={})).json() == made
    assert (await gateway.client.patch(path, json=change)).json() == {**made, **change}


async def test_its_budgets_have_its_new_name(gateway: Gateway) -> None:
    told = {"name": "ann", "budgets": [{"limit_usd": 1, "period": "day"}]}
    made = (await gateway.client.post("/admin/keys", json=told)).json()
    path = f"/admin/keys/{made['id']}"
    changed = (await gateway.client.patch(path, json={"name": "bob"})).json()
    assert (changed["name"], len(changed["budgets"])) == ("bob", 1)
    (shown,) = (await gateway.client.get("/stats/budgets")).json()["data"]
    assert (shown["id"], shown["name"]) == (f"{made['id']}-1", "bob")


async def test_nobody_is_changed_where_there_is_nobody(gateway: Gateway) -> None:
    for method, path in (
        ("GET", "/admin/keys/ck-0"),
        ("PATCH", "/admin/keys/ck-0"),
        ("DELETE", "/admin/keys/ck-0"),
        ("POST", "/admin/keys/ck-0/rotate"),
    ):
        answer = await gateway.client.request(method, path, json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "key_not_found")


async def test_an_open_gateway_has_a_usage_and_no_client(gateway: Gateway) -> None:
    data = (await gateway.client.get("/v1/key")).json()["data"]
    assert (data["id"], data["label"], data["usage"]) == (None, None, 0.0)
    assert (await gateway.client.get("/v1/generation?id=none")).status_code == 404
    assert (await gateway.client.get("/v1/generation")).status_code == 422


async def test_where_nothing_is_kept_no_key_is(start: Start, upstream: Upstream) -> None:
    gateway = await start(
        {"providers": {"lab": lab(upstream.url)}, "telemetry": {"enabled": False}}
    )
    for method, path, body in (
        ("POST", "/admin/keys", {"name": "ann"}),
        ("DELETE", "/admin/keys/ck-0", {}),
        ("GET", "/v1/key", {}),
    ):
        answer = await gateway.client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "telemetry_off")


async def test_a_bad_grace_is_refused(gateway: Gateway) -> None:
    made = (await gateway.client.post("/admin/keys", json={"name": "ann"})).json()
    path = f"/admin/keys/{made['id']}/rotate"
    for grace in ("soon", "7", "-1h"):
        answer = await gateway.client.post(path, json={"grace": grace})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "grace")
