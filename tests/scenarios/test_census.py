"""Nothing is built that nobody uses: every column is filled by calls, every setting is read.

One gateway lives through a day of all kinds of calls; then every column of every table is looked
at on a second connection. A column counts as filled by a value that is not its default.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import httpx
import pytest
from pydantic import BaseModel

from proxy import app as app_module
from proxy.observe import host
from proxy.providers.transport import Transport
from proxy.schema import Settings
from tests.gateway import Gateway, lab
from tests.observe.test_host import FakeNvml
from tests.store.databases import REACHABLE, columns
from tests.upstream import (
    Exchange,
    Upstream,
    completion,
    error,
    event,
    json_answer,
    stream,
    usage_event,
    words,
)

Start = Callable[..., Awaitable[Gateway]]
ROOT = Path(__file__).parents[2]

NEVER_FILLED = {
    "provider_health.key_id": "health is told for a model at a provider, '' stands for all keys",
}
"""Columns that no call fills, each with its reason."""

WHO = {
    "x-agent-name": "researcher",
    "x-tool-name": "search",
    "x-session-id": "s-1",
    "x-user-id": "ann",
    "x-tags": "batch",
    "x-request-id": "theirs",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
ASKED = {
    "temperature": 0.5,
    "top_p": 0.9,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.2,
    "top_k": 40,
    "max_tokens": 100,
    "stop": ["x"],
    "tools": [{"type": "function", "function": {"name": "weather"}}],
    "n": 1,
    "seed": 7,
    "reasoning_effort": "low",
}
LIMITS = {
    "x_ratelimit_limit_requests": "100",
    "x_ratelimit_remaining_requests": "0",
    "x_ratelimit_reset_requests": "30s",
}
DAY = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]},
            {"retryDelay": "36s"},
        ],
    }
}
USAGE = {
    "prompt_tokens": 40,
    "completion_tokens": 12,
    "total_tokens": 52,
    "prompt_tokens_details": {
        "cached_tokens": 8,
        "cache_write_tokens": 4,
        "audio_tokens": 2,
        "image_tokens": 1,
    },
    "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 2, "image_tokens": 1},
    "queue_time": 0.01,
}
TAG = {"name": "qwen3:4b", "digest": "d1", "details": {"parameter_size": "4.0B"}}
NATIVE = {
    "/desk/api/tags": {"models": [TAG]},
    "/desk/api/ps": {"models": [{**TAG, "size": 3 * 1024**3, "size_vram": 2 * 1024**3}]},
    "/desk/api/chat": {
        "message": {"content": "Hi"},
        "done": True,
        "load_duration": 1_400_000_000,
        "prompt_eval_count": 9,
        "prompt_eval_duration": 13_000_000,
        "eval_count": 2,
        "eval_duration": 52_000_000,
    },
    "/desk/api/show": {"model_info": {"qwen3.context_length": 40960}, "capabilities": ["tools"]},
    "/desk/v1/models": {"data": [{"id": "qwen3:4b"}]},
    "/broken/models": {"data": []},
    "/v1/models": {
        "data": [
            {"id": "json", "context_length": 8192, "max_completion_tokens": 1024},
            {"id": "llama-3.1-8b-instant"},
        ]
    },
}


async def native(exchange: Exchange) -> None:
    """What providers and an Ollama tell beside calls."""
    await json_answer(NATIVE[exchange.request.path])(exchange)


def streamed() -> list[bytes | float]:
    """A stream with reasoning, a tool call, pauses and all that usage can tell."""
    call = {"index": 0, "function": {"name": "weather", "arguments": "{}"}}
    return [
        event({"role": "assistant"}, system_fingerprint="fp_1"),
        event({"reasoning": "hm"}),
        0.005,
        event({"content": "Hello"}),
        0.01,
        event({"content": " you"}),
        0.005,
        event({"tool_calls": [call]}),
        event(finish="tool_calls", usage=USAGE),
        b"data: [DONE]\n\n",
    ]


class Faulty(Transport):
    """The real transport, but for a request to a provider that breaks us."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and "broken" in request.url.path:
            raise RuntimeError("a mistake of ours")
        return await super().handle_async_request(request)


def configuration(upstream: Upstream) -> dict[str, Any]:
    base = upstream.url
    return {
        "auth": {"master_key": "tk-master-of-the-census"},
        "providers": {
            "lab": lab(base, "sk-limited", "sk-good"),
            "groq": {"base_url": base, "keys": [{"value": "gsk-1"}]},
            "gemini": {"base_url": base, "keys": [{"value": "AIza-1", "limits": {"rpm": 10}}]},
            "broken": lab(base.replace("/v1", "/broken")),
            "ollama": {"base_url": base.replace("/v1", "/desk/v1"), "api": "native"},
        },
        "models": {"fast": {"targets": ["lab/down", "lab/json"]}},
        "prices": {"lab/json": {"input": 0.5, "output": 1.5, "cached_input": 0.1}},
        "budgets": [{"name": "all", "limit_usd": 1000, "period": "day", "mode": "soft"}],
        "routing": {"breaker": {"failures": 1}},
        "telemetry": {"privacy_level": "full"},
    }


async def live(gateway: Gateway, upstream: Upstream) -> None:
    """Every kind of call that there is."""
    upstream.by_key["sk-limited"] = error(429, "slow down", retry_after="60", **LIMITS)
    upstream.by_model |= {
        "day": json_answer(DAY, 429),
        "down": error(500, "out of order", x_request_id="up-1"),
        "streamed": stream(streamed()),
        "cut": stream(words("a", "b")[:3], ends="cut"),
        "slow": stream([event({"content": "a"}), 0.01, event({"content": "b"})], ends="hang"),
        "llama-3.1-8b-instant": stream([*words("a", "b", "c")[:-2], usage_event(100, 50)]),
    }
    upstream.by_model["qwen3:4b"] = native  # a call, and a question for what it can do
    upstream.script = completion("Hi")
    await gateway.chat("fast", "first", headers=WHO, **ASKED)
    await gateway.chat("lab/streamed", headers=WHO, stream=True, **ASKED)
    await gateway.chat("lab/unpriced")
    await gateway.chat("gemini/day")
    with suppress(httpx.RemoteProtocolError):
        await gateway.chat("lab/cut", stream=True)
    await gateway.chat("groq/llama-3.1-8b-instant", stream=True)
    await gateway.chat("no-such-model")
    await gateway.chat("broken/json", headers=WHO)
    await gateway.client.post("/v1/embeddings", json={"model": "ollama/embed", "input": "abc"})
    told = {"name": "hit", "value": 1, "request_id": "r", "attributes": {"cache": "answers"}}
    who = {"agent_name": "researcher", "tool_name": "search"}
    await gateway.client.post("/track/custom", json={**told, **who})
    client = {"name": "ann", "owner": "bo", "expires_at": "2099-01-01T00:00:00Z", "tags": ["a"]}
    may = {"models": ["*"], "providers": ["*"], "limits": {"rpm": 1}}
    may |= {"budgets": [{"limit_usd": 1, "period": "24h"}]}
    made = (await gateway.client.post("/admin/keys", json={**client, **may})).json()["id"]
    await gateway.client.post(f"/admin/keys/{made}/rotate", json={})
    await gateway.client.delete(f"/admin/keys/{made}")
    credits = "/admin/credits/tavily/main"
    await gateway.client.put(credits, json={"allowance": 2})
    await gateway.client.post(f"{credits}/consume", json={"amount": 1})
    for _ in range(2):  # the second knows at once what was in memory
        await gateway.chat("ollama/qwen3:4b")
        await asyncio.sleep(0.05)
    body = {"model": "lab/slow", "stream": True, "messages": []}
    async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_bytes():
            break


def empty_columns(gateway: Gateway) -> set[str]:
    found = columns(gateway.database)
    rows = {table: gateway.select(f"SELECT * FROM {table}") for table in {c.table for c in found}}
    return {
        f"{column.table}.{column.name}"
        for column in found
        if {row[column.name] for row in rows[column.table]} <= {None, "", _plain(column.default)}
    }


def _plain(default: str) -> int | str:
    return int(default) if default.isdigit() else default


@pytest.mark.parametrize("kind", REACHABLE)
async def test_every_column_of_every_table_is_filled_by_what_happens(
    kind: str, upstream: Upstream, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimpleNamespace(read_bytes=1, write_bytes=1)  # a machine may have none
    monkeypatch.setattr(host.psutil, "disk_io_counters", lambda: disk)
    monkeypatch.setattr(host, "pynvml", FakeNvml())
    quick = partial(host.HostSampler, sample_every=0.02, store_every=0.1)
    monkeypatch.setattr(app_module, "HostSampler", quick)
    upstream.lists = native
    gateway = await start(configuration(upstream), Faulty(), kind)
    await live(gateway, upstream)
    empty = {"?"}
    for _ in range(100):
        if (empty := empty_columns(gateway)) == set(NEVER_FILLED):
            break
        await asyncio.sleep(0.05)
    assert empty == set(NEVER_FILLED)
    for _ in range(100):
        recorder = (await gateway.client.get("/stats")).json()["recorder"]
        (rows,) = gateway.select("SELECT count(*) AS n FROM api_calls")
        if recorder["recorded"] == rows["n"]:
            break
        await asyncio.sleep(0.05)
    assert (recorder["recorded"], recorder["dropped"]) == (rows["n"], 0)


# Settings.


def settings(model: type[BaseModel] = Settings, place: str = "") -> Iterator[tuple[str, type]]:
    """The dotted name of every setting, ``*`` where the user names it, and the model it is in."""
    for name, field in model.model_fields.items():
        inner = [part for part in _parts(field.annotation) if isinstance(part, type)]
        sections = [part for part in inner if issubclass(part, BaseModel)]
        many = any(part in (dict, list) for part in inner)
        if sections:
            yield from settings(sections[0], f"{place}{name}.{'*.' * many}")
        else:
            yield f"{place}{name}", model


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation and everything inside its brackets."""
    yield getattr(annotation, "__origin__", annotation)
    for argument in get_args(annotation):
        yield from _parts(argument)


SETTINGS = dict(settings())


def readers() -> set[str]:
    """The attributes that are read by modules which see settings: prices are seen through a
    protocol of metering's own, and a property of the settings reads for whoever asks it."""
    names: set[str] = set()
    for path in (ROOT / "proxy").rglob("*.py"):
        text = path.read_text()
        if "from proxy.schema import" in text or path.name == "pricing.py":
            names |= attributes(ast.parse(text))
    schema = ast.walk(ast.parse((ROOT / "proxy" / "schema.py").read_text()))
    for node in schema:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            names |= attributes(node)
    return names


def attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_the_census_knows_the_settings() -> None:
    assert {
        "server.max_body",
        "auth.master_key",
        "providers.*.keys.*.quota_group",
        "providers.*.timeouts.first_byte",
        "models.*.rewrite_model",
        "prices.*.cache_write",
        "telemetry.retention_days",
    } < set(SETTINGS)
    assert len(SETTINGS) > 30


def test_every_setting_is_read() -> None:
    names = readers()
    unread = {place for place in SETTINGS if place.rpartition(".")[2] not in names}
    assert not unread


def test_every_setting_stands_in_the_example() -> None:
    text = (ROOT / "config" / "tollkeeper.example.yaml").read_text()
    missing = [
        place for place in SETTINGS if not re.search(rf"\b{place.rpartition('.')[2]}\b", text)
    ]
    assert not missing


# What users' SQL is written against.

CONTRACT = {
    "api_calls": """
        request_id attempt is_final timestamp finished_at provider model key_id status error_reason
        client_request_id usage_source cost_source cost_estimate_usd time_to_first_token_ms
        tokens_per_second metadata
    """,
    "rate_limits": "provider model key_id account limit_type limit_limit remaining reset_time",
    "provider_health": "provider model key_id is_healthy failure_rate consecutive_failures state",
    "tps_metrics": "provider model window_minutes window_start tps sample_count",
    "daily_costs": "date provider model_name agent_name tool_name client_id total_cost_usd",
    "system_metrics": "timestamp gpu_count cpu_percent memory_percent",
    "gpu_metrics": "sample_id timestamp gpu_id utilization_percent memory_used_mb",
    "errors": "timestamp request_id error_type error_message stack_trace severity",
    "custom_events": "event_id timestamp name value metadata",
    "models": "provider name context_length loaded_at",
    "api_credits": "kind provider key_id credits_remaining credits_used_total is_exhausted",
    "call_contents": "request_id attempt timestamp request answer request_cut answer_cut",
}
INSTANT = re.compile("timestamp|finished_at|loaded_at|window_start|(first|last)_seen|.*_until")


@pytest.mark.parametrize("kind", REACHABLE)
async def test_tables_and_columns_have_the_names_and_types_that_were_promised(
    kind: str, start: Start
) -> None:
    gateway = await start({}, kind=kind)
    found: dict[str, dict[str, str]] = {}
    for column in columns(gateway.database):
        found.setdefault(column.table, {})[column.name] = column.type
    for table, names in CONTRACT.items():
        assert set(names.split()) <= set(found[table]), table
    for name, type in (column for table in CONTRACT for column in found[table].items()):
        if name.endswith(("_ms", "_usd")):
            assert type in ("REAL", "double precision"), name
        if INSTANT.fullmatch(name):
            assert type in ("INTEGER", "timestamp with time zone"), name
