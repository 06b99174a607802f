"""Credits over HTTP, and where they can be looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.gateway import Gateway, lab
from tests.store.databases import REACHABLE
from tests.upstream import Upstream

Start = Callable[..., Awaitable[Gateway]]
PATH = "/admin/credits/tavily/main"


@pytest.mark.parametrize("kind", REACHABLE)
async def test_a_tool_uses_what_it_may_and_is_then_refused(kind: str, start: Start) -> None:
    gateway = await start({}, kind=kind)
    made = await gateway.client.put(PATH, json={"allowance": 3, "period": "monthly"})
    assert (made.status_code, made.json()["credits_remaining"]) == (200, 3)
    assert made.json()["reset_at"].endswith("-01T00:00:00.000Z")
    answers = await asyncio.gather(
        *(gateway.client.post(f"{PATH}/consume", json={"amount": 1}) for _ in range(8))
    )
    assert sorted(each.status_code for each in answers) == [200] * 3 + [429] * 5
    refused = next(each for each in answers if each.status_code == 429)
    assert refused.json()["error"]["code"] == "credits_exhausted"
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["x-should-retry"] == "false"
    (row,) = gateway.select("SELECT * FROM api_credits")
    assert (row["credits_remaining"], row["credits_used_total"], row["is_exhausted"]) == (0, 3, 1)
    (shown,) = (await gateway.client.get("/stats/credits?provider=tavily&key=main")).json()["data"]
    assert (shown["kind"], shown["is_exhausted"], shown["allowance"]) == ("search", True, 3)
    assert (await gateway.client.get("/stats/credits?key=other")).json()["data"] == []


async def test_the_statistics_show_an_allowance_that_is_back(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await gateway.client.put(PATH, json={"allowance": 1, "period": "daily"})
    await gateway.client.post(f"{PATH}/consume", json={})
    (before,) = (await gateway.client.get("/stats/credits")).json()["data"]
    assert (before["credits_remaining"], before["is_exhausted"]) == (0, True)
    (stored,) = gateway.select("SELECT reset_at FROM api_credits")
    monkeypatch.setattr("proxy.store.state.now_ms", lambda: stored["reset_at"])
    (after,) = (await gateway.client.get("/stats/credits")).json()["data"]
    assert (after["credits_remaining"], after["is_exhausted"]) == (1, False)
    assert after["reset_at"] > before["reset_at"]


@pytest.mark.parametrize(
    ("method", "path", "told", "param"),
    [
        ("PUT", PATH, {}, "allowance"),
        ("PUT", PATH, {"allowance": -1}, "allowance"),
        ("PUT", PATH, {"allowance": 1e10}, "allowance"),
        ("PUT", PATH, {"allowance": "1"}, "allowance"),
        ("PUT", PATH, {"allowance": 1, "period": "weekly"}, "period"),
        ("PUT", PATH, {"allowance": 1, "kind": ""}, "kind"),
        ("PUT", "/admin/credits/a%00/b", {"allowance": 1}, "provider"),
        ("POST", f"{PATH}/consume", {"amount": 0}, "amount"),
        ("POST", f"{PATH}/consume", {"amount": -1}, "amount"),
        ("POST", f"{PATH}/consume", {"amount": 1e-7}, "amount"),
        ("POST", f"{PATH}/consume", {"amount": True}, "amount"),
        ("POST", f"{PATH}/consume", {"credits": 1}, "credits"),
    ],
)
async def test_what_cannot_be_is_refused(
    gateway: Gateway, method: str, path: str, told: dict[str, Any], param: str
) -> None:
    answer = await gateway.client.request(method, path, json=told)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert gateway.select("SELECT * FROM api_credits") == []


@pytest.mark.parametrize("amount", [b"NaN", b"Infinity", b"1e999"])
async def test_no_amount_is_endless(gateway: Gateway, amount: bytes) -> None:
    body = b'{"amount": ' + amount + b"}"
    answer = await gateway.client.post(f"{PATH}/consume", content=body)
    assert answer.status_code == 422


async def test_who_was_never_allowed_anything_is_not_known(gateway: Gateway) -> None:
    answer = await gateway.client.post(f"{PATH}/consume", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "credits_not_found")


async def test_where_nothing_is_kept_no_credit_is(start: Start, upstream: Upstream) -> None:
    gateway = await start(
        {"providers": {"lab": lab(upstream.url)}, "telemetry": {"enabled": False}}
    )
    for method, path in (("PUT", PATH), ("POST", f"{PATH}/consume")):
        body = {"allowance": 1} if method == "PUT" else {}
        answer = await gateway.client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "telemetry_off")
