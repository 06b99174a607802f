"""What was learnt outlives the process: a second gateway on the same database goes on with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from proxy.clock import monotonic
from tests.gateway import lab, running
from tests.scenarios.views import keys, seconds_left
from tests.upstream import Upstream, completion, error

AT_ONCE = {"max_wait": 0, "retry_budget": {"minimum": 1000}}


def config(url: str, **routing: Any) -> dict[str, Any]:
    keys = [
        {"name": "spent", "value": "sk-spent-111", "quota_group": "org"},
        {"name": "sibling", "value": "sk-sibling-1", "quota_group": "org"},
        {"name": "dead", "value": "sk-dead-1111"},
        {"name": "off", "value": "sk-off-11111"},
        {"name": "good", "value": "sk-good-1111"},
    ]
    provider = {"type": "openai", "base_url": url, "keys": keys, "strategy": "fallback"}
    return {"providers": {"lab": provider}, "routing": {**AT_ONCE, **routing}}


async def test_what_must_not_be_asked_is_not_asked_after_a_restart(
    upstream: Upstream, tmp_path: Path
) -> None:
    quota = error(429, "You exceeded your current quota", "insufficient_quota", retry_after="3600")
    upstream.by_key |= {"sk-spent-111": quota, "sk-dead-1111": error(401, "revoked")}
    upstream.by_model["sick"] = error(500, "down")
    settings = config(upstream.url, breaker={"failures": 1})
    async with running(tmp_path, settings) as gateway:
        await gateway.client.post("/admin/providers/lab/keys/off/disable")
        assert (await gateway.chat("lab/m")).headers["x-tollkeeper-key"] == "good"
        await gateway.chat("lab/sick")
        before = await keys(gateway)
        await gateway.rows(1, "SELECT * FROM provider_health_events")
    asked = {call.key for call in upstream.calls if call.json["model"] == "m"}
    assert asked == {"sk-spent-111", "sk-dead-1111", "sk-good-1111"}
    upstream.reset()
    async with running(tmp_path, settings) as gateway:
        after = await keys(gateway)
        assert (await gateway.chat("lab/m")).headers["x-tollkeeper-key"] == "good"
        got = await gateway.chat("lab/sick")
        assert got.json()["error"]["code"] == "circuit_open"
        [health] = [
            row
            for row in (await gateway.client.get("/stats/health")).json()["data"]
            if row["model"] == "sick"
        ]
    assert [call.key for call in upstream.calls] == ["sk-good-1111"]
    assert health["state"] == "open"
    assert [after[name]["state"] for name in after] == [
        "exhausted",
        "exhausted",
        "disabled",
        "disabled",
        "healthy",
    ]
    for name in ("spent", "sibling", "dead"):
        assert after[name]["reason"] == before[name]["reason"]
        assert abs(seconds_left(after[name]["until"]) - seconds_left(before[name]["until"])) < 1
    assert (after["off"]["reason"], after["off"]["until"]) == ("operator", None)


async def test_what_rested_returns_at_its_time_and_not_before(
    upstream: Upstream, tmp_path: Path
) -> None:
    settings = {
        "providers": {"lab": lab(upstream.url)},
        "routing": {**AT_ONCE, "breaker": {"failures": 1, "open_for": 6}},
    }
    async with running(tmp_path, settings) as gateway:
        upstream.by_model |= {
            "m": error(429, "later", **{"retry-after-ms": "6000"}),
            "sick": error(500, "down"),
        }
        began = monotonic()
        await gateway.chat("lab/m")
        await gateway.chat("lab/sick")
        learnt = monotonic()
    upstream.reset()
    async with running(tmp_path, settings) as gateway:
        for model, code in (("m", "rate_limit_exceeded"), ("sick", "circuit_open")):
            got = await gateway.chat(f"lab/{model}")
            if monotonic() < began + 5.9:  # else this machine was too slow to see it
                assert got.json()["error"]["code"] == code
                assert not upstream.calls
        await asyncio.sleep(max(0.0, learnt + 6.05 - monotonic()))
        for model in ("m", "sick"):
            assert (await gateway.chat(f"lab/{model}")).status_code == 200
        assert {key["state"] for key in (await keys(gateway)).values()} == {"healthy"}
        events = await gateway.rows(3, "SELECT * FROM provider_health_events ORDER BY id")
    assert [event["to_state"] for event in events] == ["open", "half_open", "closed"]


async def test_what_was_used_is_counted_on(upstream: Upstream, tmp_path: Path) -> None:
    """A limit of three, by the minute and the day, of a key, a group and a model each."""
    providers = {}
    for limit in ("rpm", "rpd"):
        three = {limit: 3}
        for owner in ("keys", "groups", "models"):
            provider = lab(upstream.url)
            limits = {"groups": {"groups": {"k1": three}}, "models": {"models": {"m*": three}}}
            provider["limits"] = limits.get(owner, {})
            provider["keys"][0]["limits"] = three if owner == "keys" else {}
            providers[f"{limit}-{owner}"] = provider
    settings = {"providers": providers, "routing": AT_ONCE}
    for statuses in ([200, 200], [200, 429]):
        async with running(tmp_path, settings) as gateway:
            for name in providers:
                got = [await gateway.chat(f"{name}/m") for _ in statuses]
                assert (name, [each.status_code for each in got]) == (name, statuses)
    assert len(upstream.calls) == 3 * len(providers)


async def test_tokens_are_counted_on(upstream: Upstream, tmp_path: Path) -> None:
    upstream.script = completion(prompt=60, output=30)
    provider = lab(upstream.url, limits={"groups": {"k1": {"tpd": 100}}})
    settings = {"providers": {"lab": provider}, "routing": AT_ONCE}
    for status in (200, 429):
        async with running(tmp_path, settings) as gateway:
            assert (await gateway.chat("lab/m", "word " * 30)).status_code == status
