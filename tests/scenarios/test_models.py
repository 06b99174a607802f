"""``/v1/models``: all providers' lists in one, and which of them a name means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest_asyncio

from tests import transcripts
from tests.gateway import Gateway, lab
from tests.upstream import Exchange, Upstream, answer, error, hang, json_answer, upstream_server

Start = Callable[..., Awaitable[Gateway]]


@pytest_asyncio.fixture
async def others() -> AsyncIterator[list[Upstream]]:
    """Three more upstreams."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(upstream_server()) for _ in range(3)]


async def ids(gateway: Gateway) -> list[str]:
    got = await gateway.client.get("/v1/models")
    assert got.status_code == 200
    document = got.json()
    assert document["object"] == "list"
    for entry in document["data"]:
        assert entry["object"] == "model"
        assert isinstance(entry["created"], int)
        assert isinstance(entry["owned_by"], str)
    return [entry["id"] for entry in document["data"]]


async def test_all_lists_are_one_and_aliases_come_first(
    upstream: Upstream, others: list[Upstream], start: Start
) -> None:
    upstream.models = [{"id": "llama", "created": 7, "owned_by": "meta", "x_own": [1]}]
    others[0].models = [{"id": "vendor/model:free", "context_length": 4096}, {"id": "llama"}]
    config = {
        "providers": {"lab": lab(upstream.url), "router": lab(others[0].url)},
        "models": {"fast": {"targets": ["lab/llama"]}},
    }
    gateway = await start(config)
    assert await ids(gateway) == ["fast", "lab/llama", "router/vendor/model:free", "router/llama"]
    entry = (await gateway.client.get("/v1/models/lab/llama")).json()
    assert (entry["created"], entry["owned_by"], entry["x_own"]) == (7, "meta", [1])
    alias = (await gateway.client.get("/v1/models/fast")).json()
    assert (alias["id"], alias["owned_by"]) == ("fast", "tollkeeper")
    for name in ("router/vendor/model:free", "vendor/model:free", "router%2Fvendor%2Fmodel:free"):
        got = await gateway.client.get(f"/v1/models/{name}")
        assert got.json()["id"] == "router/vendor/model:free"
    missing = await gateway.client.get("/v1/models/router/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    rows = await gateway.rows(3, "SELECT * FROM models ORDER BY provider, name")
    assert [(row["provider"], row["name"], row["context_length"]) for row in rows] == [
        ("lab", "llama", None),
        ("router", "llama", None),
        ("router", "vendor/model:free", 4096),
    ]
    assert json.loads(rows[0]["metadata"])["x_own"] == [1]


async def test_a_provider_that_cannot_say_is_only_missing(
    upstream: Upstream, others: list[Upstream], start: Start
) -> None:
    """Refused, broken, no list, an empty one: the one that is well is still listed."""
    others[0].lists = error(500, "boom")
    others[1].lists = answer(200, b"<html>no list</html>")
    others[2].lists = answer(200, transcripts.body("T16.models"))
    providers = {f"bad{n}": lab(other.url) for n, other in enumerate(others)}
    providers["closed"] = lab("http://127.0.0.1:1/v1")
    gateway = await start({"providers": {**providers, "lab": lab(upstream.url)}})
    assert await ids(gateway) == ["lab/json"]
    keys = (await gateway.client.get("/stats/keys")).json()["data"]
    assert {key["state"] for key in keys} == {"healthy"}
    assert not gateway.select("SELECT id FROM api_calls")


async def test_a_key_that_is_refused_the_list_is_taken_out(
    upstream: Upstream, start: Start
) -> None:
    upstream.lists = error(401, "bad key", "invalid_api_key")
    gateway = await start({"providers": {"lab": lab(upstream.url, "sk-revoked-1", "sk-good-22")}})
    assert await ids(gateway) == []
    first, second = (await gateway.client.get("/stats/keys")).json()["data"]
    assert (first["state"], first["reason"]) == ("disabled", "authentication")
    assert second["state"] == "healthy"
    got = await gateway.chat("lab/anything")
    assert got.headers["x-tollkeeper-key"] == "k2"
    rows = await gateway.rows(1)
    assert len(rows) == 1, "a question for the list is no call"


async def test_other_refusals_of_the_list_change_no_key(upstream: Upstream, start: Start) -> None:
    upstream.lists = error(429, "slow down", retry_after="60")
    gateway = await start({"providers": {"lab": lab(upstream.url)}})
    assert await ids(gateway) == []
    [key] = (await gateway.client.get("/stats/keys")).json()["data"]
    assert key["state"] == "healthy"


async def test_a_list_is_asked_for_once(upstream: Upstream, start: Start) -> None:
    gateway = await start({"providers": {"lab": lab(upstream.url)}})
    await asyncio.gather(*(ids(gateway) for _ in range(20)))
    questions = [request for request in upstream.requests if request.method == "GET"]
    assert [request.path for request in questions] == ["/v1/models"]
    assert questions[0].headers["authorization"] == "Bearer sk-11111111"


async def test_a_slow_list_holds_up_no_call(
    upstream: Upstream, others: list[Upstream], start: Start
) -> None:
    others[0].lists = hang
    config = {
        "providers": {"lab": lab(upstream.url), "slow": lab(others[0].url)},
        "models": {"fast": {"targets": ["lab/json"]}},
    }
    gateway = await start(config)
    for model in ("lab/json", "fast", "slow/unlisted"):
        assert (await gateway.chat(model)).status_code == 200


async def test_a_name_finds_its_target(
    upstream: Upstream, others: list[Upstream], start: Start
) -> None:
    """A provider's name first, listed or not; then an alias; then the first that lists it."""
    upstream.models = [{"id": "shared"}, {"id": "vendor/deep/model"}, {"id": "aliased"}]
    others[0].models = [{"id": "shared"}, {"id": "only-here"}, {"id": "router/odd"}]
    config = {
        "providers": {"lab": lab(upstream.url), "router": lab(others[0].url)},
        "models": {
            "aliased": {"targets": ["router/other"]},
            "vendor/alias": {"targets": ["router/x/y"]},
        },
    }
    gateway = await start(config)
    expected = {
        "lab/unlisted": ("lab", "unlisted"),
        "lab/vendor/deep/model": ("lab", "vendor/deep/model"),
        "router/router/odd": ("router", "router/odd"),
        "router/odd": ("router", "odd"),
        "shared": ("lab", "shared"),
        "only-here": ("router", "only-here"),
        "vendor/deep/model": ("lab", "vendor/deep/model"),
        "aliased": ("router", "other"),
        "vendor/alias": ("router", "x/y"),
    }
    found = {}
    for name in expected:
        got = await gateway.chat(name)
        provider, model = got.headers["x-tollkeeper-provider"], got.headers["x-tollkeeper-model"]
        asked = (upstream if provider == "lab" else others[0]).calls[-1].json["model"]
        assert asked == model
        found[name] = (provider, model)
    assert found == expected


async def test_ollama_tells_more_of_its_models(upstream: Upstream, start: Start) -> None:
    answers: dict[str, Any] = {
        "/v1/models": {"object": "list", "data": [{"id": "llama3.2:3b", "owned_by": "library"}]},
        "/api/tags": {
            "models": [
                {
                    "name": "llama3.2:3b",
                    "digest": "a80c4f17acd5",
                    "details": {"parameter_size": "3.2B"},
                }
            ]
        },
        "/api/ps": {"models": [{"name": "llama3.2:3b", "size": 4 * 1024**3}]},
        "/api/show": {
            "capabilities": ["completion"],
            "model_info": {"general.parameter_count": 3212749888, "llama.context_length": 131072},
        },
    }

    async def script(exchange: Exchange) -> None:
        await json_answer(answers[exchange.request.path])(exchange)

    upstream.lists = upstream.script = script
    gateway = await start({"providers": {"ollama": {"base_url": upstream.url}}})
    assert await ids(gateway) == ["ollama/llama3.2:3b"]
    row = await gateway.row("SELECT * FROM models")
    assert (row["context_length"], row["parameters"]) == (131072, 3212749888)
    assert (row["memory_usage_gb"], row["type"]) == (4, "chat")
    assert row["loaded_at"] is not None
    assert row["is_free"] == 1
