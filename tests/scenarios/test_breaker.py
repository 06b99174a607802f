"""An upstream that fails is left alone for a while, and then asked by one call alone."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.gateway import Gateway, lab
from tests.scenarios.views import Start, key, seconds_left, until
from tests.upstream import Exchange, Script, Upstream, completion, drop, error, json_answer

AT_ONCE = {"max_wait": 0, "retry_budget": {"minimum": 1000}}
QUICK = {**AT_ONCE, "breaker": {"failures": 2, "open_for": 0.3}}


async def health(gateway: Gateway) -> dict[str, Any]:
    [row] = (await gateway.client.get("/stats/health")).json()["data"]
    return row


async def turns(gateway: Gateway, count: int) -> list[str]:
    rows = await gateway.rows(count, "SELECT * FROM provider_health_events ORDER BY id")
    return [f"{row['from_state']} {row['to_state']}" for row in rows]


async def opened(gateway: Gateway, upstream: Upstream) -> None:
    upstream.script = error(500, "down")
    for _ in range(2):
        await gateway.chat("lab/m")
    upstream.requests.clear()


@pytest.mark.parametrize(
    ("script", "status"), [(error(500, "x"), 502), (drop, 502), (error(503, "x"), 503)]
)
async def test_after_five_failures_in_a_row_the_upstream_is_not_asked(
    upstream: Upstream, start: Start, script: Script, status: int
) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url)}, "routing": AT_ONCE})
    upstream.script = script
    for _ in range(4):
        assert (await gateway.chat("lab/m")).status_code == status
    last = await gateway.chat("lab/m")
    assert len(upstream.calls) == 5
    upstream.script = completion()
    got = await gateway.chat("lab/m")
    assert len(upstream.calls) == 5
    for answer in (last, got):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "circuit_open")
        assert 1 <= int(answer.headers["retry-after"]) <= 10
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["status"], row["error_reason"]) == ("rejected", "no_keys")
    assert (await gateway.chat("lab/other")).status_code == 200
    assert (await key(gateway))["state"] == "healthy"


async def test_an_open_breaker_can_be_seen(upstream: Upstream, start: Start) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url)}, "routing": AT_ONCE})
    upstream.script = error(500, "x")
    for _ in range(5):
        await gateway.chat("lab/m")
    assert await turns(gateway, 1) == ["closed open"]
    [event] = await gateway.rows(1, "SELECT * FROM provider_health_events")
    assert (event["provider"], event["model"]) == ("lab", "m")
    assert (event["reason"], event["openings"]) == ("server_error", 1)
    shown = await health(gateway)
    assert (shown["state"], shown["is_healthy"]) == ("open", False)
    assert 0 < seconds_left(shown["open_until"]) <= 10
    assert shown["consecutive_failures"] == 5


async def test_one_probe_goes_alone_and_its_success_closes(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url)}, "routing": QUICK})
    await opened(gateway, upstream)
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await asyncio.wait_for(go.wait(), 20)
        await completion()(exchange)

    upstream.script = script
    await asyncio.sleep(0.31)
    async with asyncio.TaskGroup() as tasks:
        probe = tasks.create_task(gateway.chat("lab/m"))
        await upstream.asked()
        others = await asyncio.gather(*[gateway.chat("lab/m") for _ in range(3)])
        assert {got.json()["error"]["code"] for got in others} == {"circuit_open"}
        assert len(upstream.calls) == 1
        go.set()
    assert probe.result().status_code == 200
    assert (await gateway.chat("lab/m")).status_code == 200
    assert await turns(gateway, 3) == ["closed open", "open half_open", "half_open closed"]
    await gateway.rows(1, "SELECT * FROM provider_health WHERE state = 'closed'")


async def test_a_probe_that_fails_opens_it_for_twice_as_long(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url)}, "routing": QUICK})
    await opened(gateway, upstream)
    await asyncio.sleep(0.31)
    assert (await gateway.chat("lab/m")).json()["error"]["code"] == "circuit_open"
    assert len(upstream.calls) == 1
    events = await gateway.rows(3, "SELECT * FROM provider_health_events ORDER BY id")
    first, _, last = events
    assert [(each["to_state"], each["openings"]) for each in (first, last)] == [
        ("open", 1),
        ("open", 2),
    ]
    for event, seconds in ((first, 0.3), (last, 0.6)):
        assert abs(event["open_until"] - event["timestamp"] - seconds * 1000) <= 250


async def test_a_probe_whose_client_leaves_frees_the_slot(upstream: Upstream, start: Start) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url)}, "routing": QUICK})
    await opened(gateway, upstream)

    async def script(exchange: Exchange) -> None:
        await exchange.gone.wait()

    upstream.script = script
    await asyncio.sleep(0.31)
    body = {"model": "lab/m", "messages": [{"role": "user", "content": "hi"}]}
    line = await gateway.dial(body, "x-request-id: left")
    await upstream.asked()
    await line.hang_up()
    await gateway.attempt("left")
    upstream.script = completion()
    assert (await gateway.chat("lab/m")).status_code == 200


async def test_an_alias_goes_on_to_the_next_target_while_it_is_open(
    upstream: Upstream, start: Start
) -> None:
    providers = {"lab": lab(upstream.url), "two": lab(upstream.url, "sk-two-2222")}
    models = {"best": {"targets": ["lab/m", "two/m"]}}
    routing = {**AT_ONCE, "breaker": {"failures": 2}}
    gateway = await start({"providers": providers, "models": models, "routing": routing})
    upstream.by_key["sk-11111111"] = error(500, "down")
    for _ in range(2):
        assert (await gateway.chat("best")).headers["x-tollkeeper-attempts"] == "2"
    got = await gateway.chat("best")
    assert got.headers["x-tollkeeper-provider"] == "two"
    assert got.headers["x-tollkeeper-attempts"] == "1"


async def test_what_a_provider_does_not_answer_for_opens_nothing(
    upstream: Upstream, start: Start
) -> None:
    moderation = json_answer({"error": {"message": "no", "code": 403}}, 403)
    secrets = [f"sk-number-{number}" for number in range(9)]
    gateway = await start({"providers": {"lab": lab(upstream.url, *secrets)}, "routing": QUICK})
    for script in (error(400, "bad"), error(404, "none"), error(413, "large"), moderation):
        upstream.script = script
        for _ in range(3):
            assert 400 <= (await gateway.chat("lab/m")).status_code < 500
    limit: dict[str, str] = {"retry-after": "60"}
    for number in range(8):
        upstream.by_key[secrets[number]] = error(429, "slow", **limit)
    upstream.script = completion()
    assert (await gateway.chat("lab/m")).status_code == 200
    assert not gateway.select("SELECT * FROM provider_health_events")


async def test_a_share_of_failures_opens_it_too(upstream: Upstream, start: Start) -> None:
    breaker = {"failures": 100, "minimum": 6, "rate": 0.5}
    routing = {**AT_ONCE, "breaker": breaker}
    gateway = await start({"providers": {"lab": lab(upstream.url)}, "routing": routing})

    async def ask(script: Script) -> httpx.Response:
        upstream.script = script
        return await gateway.chat("lab/m")

    for _ in range(3):
        await ask(error(500, "x"))
        await ask(completion())
    assert (await ask(error(500, "x"))).json()["error"]["code"] == "circuit_open"
    await until(lambda: gateway.select("SELECT * FROM provider_health_events"))
