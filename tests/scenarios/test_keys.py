"""Which key serves, which one rests, for how long, and who is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests import transcripts
from tests.gateway import Gateway, lab
from tests.store.databases import columns
from tests.upstream import (
    Exchange,
    Upstream,
    answer,
    completion,
    error,
    event,
    json_answer,
    stream,
    words,
)

Start = Callable[..., Awaitable[Gateway]]


async def states(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """The keys by ``provider/name``, or by name alone where the provider is ``lab``."""
    found = (await gateway.client.get("/stats/keys", params={"limit": 1000})).json()["data"]
    return {f"{key['provider']}/{key['name']}".removeprefix("lab/"): key for key in found}


def seconds_left(moment: str) -> float:
    assert moment.endswith("Z")
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


async def test_keys_take_turns_by_weight(upstream: Upstream, start: Start) -> None:
    keys = [
        {"name": "big", "value": "sk-big-1111", "weight": 3},
        {"name": "small", "value": "sk-small-11", "weight": 1},
    ]
    config = {"type": "openai", "base_url": upstream.url, "keys": keys}
    gateway = await start({"providers": {"lab": config}})
    for _ in range(8):
        await gateway.chat("lab/m")
    used = Counter(call.key for call in upstream.calls)
    assert used == {"sk-big-1111": 6, "sk-small-11": 2}


async def test_the_least_busy_key_is_taken(upstream: Upstream, start: Start) -> None:
    """Six long calls spread over three keys, and ``in_flight`` tells of them until they end."""
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await asyncio.wait_for(go.wait(), 20)
        await completion()(exchange)

    upstream.script = script
    gateway = await start(
        {"providers": {"lab": lab(upstream.url, "sk-1111", "sk-2222", "sk-3333")}}
    )
    async with asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(gateway.chat("lab/m"))
        await upstream.asked(6)
        busy = {name: key["in_flight"] for name, key in (await states(gateway)).items()}
        assert busy == {"k1": 2, "k2": 2, "k3": 2}
        go.set()
    assert {key["in_flight"] for key in (await states(gateway)).values()} == {0}


async def test_a_refused_key_is_taken_out_and_the_next_one_serves(
    upstream: Upstream, start: Start
) -> None:
    upstream.by_key["sk-revoked-1"] = error(
        401, "Incorrect API key: sk-revoked-1", "invalid_api_key"
    )
    gateway = await start({"providers": {"lab": lab(upstream.url, "sk-revoked-1", "sk-good-222")}})
    for _ in range(3):
        got = await gateway.chat("lab/m")
        assert (got.status_code, got.headers["x-tollkeeper-key"]) == (200, "k2")
    assert [call.key for call in upstream.calls].count("sk-revoked-1") == 1
    keys = await states(gateway)
    assert (keys["k1"]["state"], keys["k1"]["reason"]) == ("disabled", "authentication")
    assert 200 < seconds_left(keys["k1"]["until"]) <= 300
    assert (keys["k2"]["state"], keys["k2"]["until"]) == ("healthy", None)


async def test_when_every_key_is_refused_the_client_learns_nothing_of_them(
    upstream: Upstream, start: Start
) -> None:
    upstream.script = error(401, "Incorrect API key provided: sk-canary-77. See account acme.")
    gateway = await start({"providers": {"lab": lab(upstream.url, "sk-canary-77", "sk-canary-88")}})
    first = await gateway.chat("lab/m")
    second = await gateway.chat("lab/m")
    assert len(upstream.calls) == 2
    for got in (first, second):
        assert got.status_code == 502
        assert "www-authenticate" not in got.headers
        assert "canary" not in got.text
        assert "acme" not in got.text
    assert len(await gateway.attempts(first.headers["x-request-id"])) == 2
    row = await gateway.attempt(second.headers["x-request-id"])
    assert (row["status"], row["error_reason"], row["key_id"]) == ("rejected", "no_keys", None)


async def test_a_key_that_was_told_to_wait_rests_for_that_model_alone(
    upstream: Upstream, start: Start
) -> None:
    upstream.by_model["busy"] = error(429, "slow down", retry_after="40")
    gateway = await start({"providers": {"lab": lab(upstream.url)}})
    got = await gateway.chat("lab/busy")
    assert got.status_code == 429
    assert 38 <= int(got.headers["retry-after"]) <= 40
    assert (await gateway.chat("lab/other")).status_code == 200
    key = (await states(gateway))["k1"]
    assert (key["state"], key["reason"]) == ("cooling", "rate_limit")
    assert 30 < seconds_left(key["until"]) <= 40
    [rest] = key["models"]
    assert (rest["model"], rest["state"], rest["until"]) == ("busy", "cooling", key["until"])
    row = await gateway.row("SELECT * FROM rate_limits WHERE limit_type = 'cooldown'")
    assert (row["provider"], row["model"], row["key_id"]) == ("lab", "busy", "k1")
    assert (row["cooldown_reason"], row["backoff_count"]) == ("rate_limit", 1)
    assert abs(row["cooldown_until"] / 1000 - datetime.now(UTC).timestamp() - 40) < 10


async def test_when_all_keys_rest_the_client_is_told_how_long(
    upstream: Upstream, start: Start
) -> None:
    upstream.by_key["sk-1111"] = error(429, "a", retry_after="50")
    upstream.by_key["sk-2222"] = error(429, "b", retry_after="30")
    gateway = await start({"providers": {"lab": lab(upstream.url, "sk-1111", "sk-2222")}})
    first = await gateway.chat("lab/m")
    assert first.status_code == 429
    assert len(await gateway.attempts(first.headers["x-request-id"])) == 2
    second = await gateway.chat("lab/m", stream=True)
    assert second.status_code == 429
    assert 28 <= int(second.headers["retry-after"]) <= 30
    assert second.json()["error"]["type"] == "rate_limit_error"
    assert second.json()["error"]["code"] == "rate_limit_exceeded"
    assert "x-tollkeeper-attempts" not in second.headers
    assert len(upstream.calls) == 2
    row = await gateway.attempt(second.headers["x-request-id"])
    assert (row["status"], row["attempt"], row["key_id"]) == ("rejected", 1, None)
    assert (row["error_reason"], row["client_status"], row["http_status"]) == ("no_keys", 429, None)
    assert (row["requested_model"], row["is_stream"]) == ("lab/m", 1)
    assert (row["provider"], row["model"]) == ("lab", "m")


async def test_a_rest_tells_who_said_how_long_it_is(upstream: Upstream, start: Start) -> None:
    upstream.by_model["head"] = error(429, "a", retry_after="50")
    upstream.by_model["text"] = error(429, "Please try again in 4.5s.")
    upstream.by_model["none"] = error(429, "no")
    gateway = await start({"providers": {"lab": lab(upstream.url)}})
    for model in ("head", "text", "none"):
        await gateway.chat(f"lab/{model}")
    rows = await gateway.rows(3, "SELECT model, source FROM rate_limits ORDER BY model")
    assert [(row["model"], row["source"]) for row in rows] == [
        ("head", "header"),
        ("none", "local"),
        ("text", "body"),
    ]


async def test_a_rested_key_serves_again(upstream: Upstream, start: Start) -> None:
    upstream.script = error(429, "wait", **{"retry-after-ms": "100"})
    gateway = await start({"providers": {"lab": lab(upstream.url)}})
    assert (await gateway.chat("lab/m")).headers["retry-after"] == "1"
    upstream.script = completion()
    await asyncio.sleep(0.12)
    assert (await gateway.chat("lab/m")).status_code == 200
    assert (await states(gateway))["k1"]["state"] == "healthy"


async def test_without_a_hint_a_key_rests_for_ten_seconds(upstream: Upstream, start: Start) -> None:
    upstream.script = error(429, "later")
    gateway = await start({"providers": {"lab": lab(upstream.url)}})
    await gateway.chat("lab/m")
    assert 5 < seconds_left((await states(gateway))["k1"]["until"]) <= 10


async def test_keys_of_one_quota_group_rest_together(upstream: Upstream, start: Start) -> None:
    keys = [
        {"name": "a", "value": "sk-group-a", "quota_group": "org"},
        {"name": "b", "value": "sk-group-b", "quota_group": "org"},
        {"name": "c", "value": "sk-alone-c"},
    ]
    config = {"type": "openai", "base_url": upstream.url, "keys": keys}
    gateway = await start({"providers": {"lab": config}})
    upstream.script = error(429, "slow down", retry_after="40")
    upstream.by_key["sk-alone-c"] = completion()
    for _ in range(3):
        assert (await gateway.chat("lab/m")).headers["x-tollkeeper-key"] == "c"
    assert sum(1 for call in upstream.calls if call.key != "sk-alone-c") == 1
    keys_now = await states(gateway)
    assert [keys_now[name]["state"] for name in "abc"] == ["cooling", "cooling", "healthy"]
    assert keys_now["a"]["quota_group"] == "org"


async def test_what_is_no_fault_of_the_key_leaves_it_alone(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url)}})
    moderation = {"message": "flagged", "code": 403, "metadata": {"reasons": ["x"]}}
    for script, status in (
        (json_answer({"error": moderation}, 403), 403),
        (error(400, "bad"), 400),
        (error(404, "no model"), 404),
        (error(500, "boom"), 502),
        (error(503, "full"), 503),
        (answer(200, b"<html>"), 502),
    ):
        upstream.script = script
        assert (await gateway.chat("lab/m")).status_code == status
        key = (await states(gateway))["k1"]
        assert (key["state"], key["in_flight"]) == ("healthy", 0)


async def test_each_providers_refusals_are_read_its_own_way(
    upstream: Upstream, start: Start
) -> None:
    """Status and body as the provider sends them; what becomes of the key, and for which model."""
    cases = {
        "groq-day": ("groq", 429, "T3", "exhausted", "quota_exceeded", "m"),
        "groq-key": ("groq", 401, "T5.key", "disabled", "authentication", None),
        "groq-full": ("groq", 503, "T5.capacity", "healthy", None, None),
        "gemini-day": ("gemini", 429, "T8", "exhausted", "quota_exceeded", "m"),
        "gemini-key": ("gemini", 400, "T9.key", "disabled", "authentication", None),
        "gemini-field": ("gemini", 400, "T9.field", "healthy", None, None),
        "router-day": ("openrouter", 429, "T13.daily", "exhausted", "quota_exceeded", "*:free"),
        "router-pool": ("openrouter", 429, "T13.upstream", "cooling", "rate_limit", "m"),
        "router-key": ("openrouter", 401, "T13.key", "disabled", "authentication", None),
        "router-money": ("openrouter", 402, "T13.credit", "exhausted", "credit", None),
        "flare-day": ("cloudflare", 429, "T18.daily", "exhausted", "quota_exceeded", None),
        "flare-key": ("cloudflare", 401, "T18.key", "disabled", "authentication", None),
        "flare-full": ("cloudflare", 429, "T18.capacity", "healthy", None, None),
    }
    providers = {}
    for name, (kind, status, body, *_) in cases.items():
        secret = f"sk-{name}-1"
        upstream.by_key[secret] = answer(status, transcripts.body(body))
        providers[name] = {
            "type": kind,
            "base_url": upstream.url,
            "keys": [{"name": "k", "value": secret}],
            **({"account_id": "acc"} if kind == "cloudflare" else {}),
        }
    gateway = await start({"providers": providers})
    for name in cases:
        await gateway.chat(f"{name}/m")
    keys = await states(gateway)
    for name, (*_, state, reason, model) in cases.items():
        key = keys[f"{name}/k"]
        assert (name, key["state"], key["reason"]) == (name, state, reason)
        if state in ("cooling", "exhausted"):
            assert (name, [rest["model"] for rest in key["models"]]) == (name, [model])


async def test_a_limit_in_the_middle_of_a_stream_cools_the_key(
    upstream: Upstream, start: Start
) -> None:
    limit = b'data: {"error":{"message":"slow down","code":429}}\n\n'
    upstream.script = stream([event({"content": "a"}), 0.02, limit])
    gateway = await start({"providers": {"lab": lab(upstream.url)}})
    got = await gateway.chat("lab/m", stream=True)
    assert got.content.endswith(limit)
    assert (await states(gateway))["k1"]["state"] == "cooling"
    row = await gateway.row()
    assert (row["status"], row["error_reason"]) == ("error", "stream_error")


async def test_limits_in_headers_are_kept(upstream: Upstream, start: Start) -> None:
    fields = {
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "990",
        "x-ratelimit-reset-requests": "1m26.4s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5000",
    }
    body = {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}
    upstream.script = json_answer(body, **fields)
    gateway = await start({"providers": {"lab": lab(upstream.url)}})
    await gateway.chat("lab/m")
    rows = await gateway.rows(2, "SELECT * FROM rate_limits ORDER BY limit_type")
    requests, tokens = rows
    assert (requests["limit_type"], tokens["limit_type"]) == ("requests", "tokens")
    assert (requests["limit_limit"], requests["remaining"], requests["current_count"]) == (
        1000,
        990,
        10,
    )
    assert 60 < requests["reset_time"] / 1000 - datetime.now(UTC).timestamp() < 90
    assert (tokens["limit_limit"], tokens["remaining"], tokens["reset_time"]) == (6000, 5000, None)
    assert (requests["key_id"], requests["model"], requests["source"]) == ("k1", "m", "header")
    shown = (await gateway.client.get("/stats/rate-limits")).json()["data"]
    assert len(shown) == 2


async def test_no_key_stands_in_an_answer_a_row_or_the_statistics(
    upstream: Upstream, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sk-canary-5f0e9d8c7b6a"
    said = f"the request of {secret} went wrong: Bearer {secret}"
    gateway = await start({"providers": {"lab": lab(upstream.url, secret)}})
    seen = []
    for script in (
        error(400, said, "x"),
        error(500, said),
        answer(502, said.encode()),
        stream([event({"content": "a"}), 0.02, b'data: {"error":"%s"}\n\n' % said.encode()]),
        stream([b'data: {"error":"%s"}\n\n' % said.encode()]),
    ):
        upstream.script = script
        got = await gateway.chat("lab/m", stream=True)
        seen.append(got)
        await gateway.attempts(got.headers["x-request-id"])
    for path in ("/stats", "/stats/calls", "/stats/keys", "/stats/errors", "/v1/models"):
        assert "canary" not in (await gateway.client.get(path)).text
    # The one that passes is the upstream's own stream: bytes that have begun are not edited.
    assert [("canary" in got.text) for got in seen] == [False, False, False, True, False]
    files = [path for path in gateway.folder.rglob("calls.db*") if path.is_file()]
    files += [path for path in gateway.folder.glob("calls.db.state/**/*") if path.is_file()]
    database = b"".join(path.read_bytes() for path in files)
    assert b"canary" not in database
    tables = {column.table for column in columns(gateway.database)}
    rows = [row for table in tables for row in gateway.select(f"SELECT * FROM {table}")]
    assert rows
    assert "canary" not in repr(rows)
    assert "canary" not in caplog.text


async def test_every_key_is_given_back(upstream: Upstream, start: Start) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url, "sk-1111", "sk-2222")}})
    for script in (
        completion(),
        stream(words("a", "b")),
        stream([event({"content": "a"})], ends="cut"),
        error(500),
        answer(200, b""),
        error(400),
    ):
        upstream.script = script
        await _survive(gateway)
    assert {key["in_flight"] for key in (await states(gateway)).values()} == {0}


async def _survive(gateway: Gateway) -> None:
    line = await gateway.dial({"model": "lab/m", "stream": True}, "connection: close")
    assert (await line.rest()).startswith(b"HTTP/1.1 ")
