"""Limits that are configured or told: an upstream never sees a call that it would refuse."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from tests.gateway import Gateway, lab
from tests.scenarios.views import Start, key
from tests.upstream import Exchange, Script, Upstream, completion, json_answer

AT_ONCE = {"routing": {"max_wait": 0}}


def pair(url: str, **more: Any) -> dict[str, Any]:
    """Two keys of one group, ``a`` with a limit of its own where ``limits`` says so."""
    limits = more.pop("own", {})
    keys = [
        {"name": "a", "value": "sk-aaaa-1111", "quota_group": "org", "limits": limits},
        {"name": "b", "value": "sk-bbbb-2222", "quota_group": "org"},
    ]
    return {"type": "openai", "base_url": url, "keys": keys, **more}


async def statuses(gateway: Gateway, *models: str, count: int) -> Counter[int]:
    """How so many calls to each model end that are all made at once."""
    calls = [gateway.chat(f"lab/{model}") for model in models for _ in range(count)]
    return Counter(got.status_code for got in await asyncio.gather(*calls))


def at_most(count: int, seen: list[int]) -> Script:
    """Answers, and notes how many calls were there at once."""
    there = 0

    async def script(exchange: Exchange) -> None:
        nonlocal there
        there += 1
        seen.append(there)
        await asyncio.sleep(0.02)
        there -= 1
        await completion()(exchange)

    return script


async def test_requests_a_minute_of_a_key(upstream: Upstream, start: Start) -> None:
    gateway = await start(
        {"providers": {"lab": pair(upstream.url, own={"rpm": 3})}, **AT_ONCE},
    )
    assert await statuses(gateway, "m", count=12) == {200: 12}
    assert Counter(call.key for call in upstream.calls)["sk-aaaa-1111"] == 3


async def test_requests_a_minute_of_a_group(upstream: Upstream, start: Start) -> None:
    limits = {"groups": {"org": {"rpm": 5}}}
    gateway = await start({"providers": {"lab": pair(upstream.url, limits=limits)}, **AT_ONCE})
    assert await statuses(gateway, "m", "other", count=6) == {200: 5, 429: 7}
    assert len(upstream.calls) == 5
    got = await gateway.chat("lab/m")
    assert (got.status_code, got.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 50 <= int(got.headers["retry-after"]) <= 61
    assert "requests_minute 5/5" in got.json()["error"]["message"]


async def test_requests_a_minute_of_each_model_that_a_pattern_matches(
    upstream: Upstream, start: Start
) -> None:
    limits = {"models": {"big-*": {"rpm": 2}}}
    gateway = await start({"providers": {"lab": pair(upstream.url, limits=limits)}, **AT_ONCE})
    await statuses(gateway, "big-1", "big-2", "small", count=4)
    seen = Counter(call.json["model"] for call in upstream.calls)
    assert seen == {"big-1": 2, "big-2": 2, "small": 4}


async def test_tokens_a_minute_are_those_that_a_call_really_used(
    upstream: Upstream, start: Start
) -> None:
    upstream.script = completion(prompt=60, output=30)
    gateway = await start(
        {
            "providers": {"lab": lab(upstream.url, limits={"groups": {"k1": {"tpm": 200}}})},
            **AT_ONCE,
        }
    )
    text = "word " * 30
    for _ in range(2):
        assert (await gateway.chat("lab/m", text)).status_code == 200
    got = await gateway.chat("lab/m", text)
    assert got.status_code == 429
    assert "tokens_minute 180/200" in got.json()["error"]["message"]
    assert len(upstream.calls) == 2


@pytest.mark.parametrize("where", ["keys", "groups", "models"])
async def test_calls_at_a_time(upstream: Upstream, start: Start, where: str) -> None:
    two = {"concurrency": 2}
    limits = {"groups": {"groups": {"org": two}}, "models": {"models": {"*": two}}}.get(where, {})
    provider = pair(upstream.url, own=two if where == "keys" else {}, limits=limits)
    if where == "keys":
        del provider["keys"][1]
    seen: list[int] = []
    upstream.script = at_most(2, seen)
    gateway = await start({"providers": {"lab": provider}, "routing": {"max_wait": 5}})
    assert await statuses(gateway, "m", count=8) == {200: 8}
    assert (len(seen), max(seen)) == (8, 2)


def telling(limit: int, remaining: int, reset: str) -> Script:
    body = {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}
    fields = {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": reset,
    }
    return json_answer(body, **fields)


async def test_a_key_whose_limit_is_used_up_as_the_provider_told_is_not_asked(
    upstream: Upstream, start: Start
) -> None:
    """A bucket of two that is full again in 8 s takes the next call in 4 s."""
    upstream.by_key["sk-1111"] = telling(2, 0, "8s")
    provider = lab(upstream.url, "sk-1111", "sk-2222", strategy="fallback")
    gateway = await start({"providers": {"lab": provider}, **AT_ONCE})
    took = [(await gateway.chat("lab/m")).headers["x-tollkeeper-key"] for _ in range(3)]
    assert took == ["k1", "k2", "k2"]
    assert (await gateway.chat("lab/other")).headers["x-tollkeeper-key"] == "k1"
    await asyncio.sleep(4.01)
    assert (await gateway.chat("lab/m")).headers["x-tollkeeper-key"] == "k1"


async def test_without_another_key_the_client_is_told_when(
    upstream: Upstream, start: Start
) -> None:
    upstream.script = telling(2, 0, "200s")
    gateway = await start({"providers": {"lab": lab(upstream.url)}, **AT_ONCE})
    await gateway.chat("lab/m")
    got = await gateway.chat("lab/m")
    assert (got.status_code, len(upstream.calls)) == (429, 1)
    assert 90 <= int(got.headers["retry-after"]) <= 100
    assert "0 of 2 requests remain" in got.json()["error"]["message"]


async def test_limits_can_be_seen(upstream: Upstream, start: Start) -> None:
    upstream.script = telling(1000, 990, "90s")
    limits = {"groups": {"k1": {"rpm": 30, "rpd": 100}}, "models": {"m": {"concurrency": 4}}}
    gateway = await start({"providers": {"lab": lab(upstream.url, limits=limits)}, **AT_ONCE})
    for _ in range(2):
        await gateway.chat("lab/m")
    shown = (await key(gateway))["limits"]
    names = ("limit_type", "model", "limit", "used", "remaining", "source")
    assert [[each[name] for name in names] for each in shown] == [
        ["requests_minute", None, 30, 2, 28, "config"],
        ["requests_day", None, 100, 2, 98, "config"],
        ["concurrent", "m", 4, 0, 4, "config"],
        ["requests", "m", 1000, 10, 990, "header"],
    ]
    assert all(each["reset"] for each in shown if each["limit_type"] != "concurrent")
    rows = await gateway.rows(
        2, "SELECT * FROM rate_limits WHERE source = 'config' AND current_count = 2"
    )
    for row in rows:
        assert row["remaining"] == row["limit_limit"] - 2
        assert row["reset_time"] > row["last_updated"]
        assert (row["provider"], row["account"], row["model"]) == ("lab", "k1", "")
    assert {row["window_seconds"] for row in rows} == {60, 86_400}
    [told] = await gateway.rows(1, "SELECT * FROM rate_limits WHERE source = 'header'")
    assert (told["limit_limit"], told["remaining"], told["current_count"]) == (1000, 990, 10)
    listed = (await gateway.client.get("/stats/rate-limits")).json()["data"]
    assert {"config", "header"} <= {row["source"] for row in listed}, json.dumps(listed)
