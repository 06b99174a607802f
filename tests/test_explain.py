from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy import cli
from proxy.config import load
from proxy.errors import GatewayError
from proxy.explain import explain
from tests.gateway import Gateway, lab
from tests.redis_server import own_keys, some_server
from tests.upstream import Upstream, error

Start = Callable[..., Awaitable[Gateway]]


async def said(gateway: Gateway, model: str) -> list[str]:
    """The lines without the instants in them."""
    settings = load(gateway.folder / "tollkeeper.yaml", {}, {})
    text = await explain(settings, model)
    return re.sub(r"20\d\d-\S+Z", "THEN", text).splitlines()


def two_groups(url: str) -> dict[str, Any]:
    block = lab(url, "sk-1111", "sk-2222", "sk-3333")
    block["keys"][0]["quota_group"] = block["keys"][1]["quota_group"] = "org"
    return block


async def test_the_plan_is_told_in_order_with_who_would_be_skipped_and_why(
    upstream: Upstream, start: Start
) -> None:
    upstream.by_key["sk-1111"] = error(429, "slow down", retry_after="60")
    upstream.by_key["sk-2222"] = error(401, "no", "invalid_api_key")
    upstream.by_model["down"] = error(500, "broken")
    providers = {"lab": two_groups(upstream.url), "spare": lab(upstream.url)}
    targets = ["lab/m", {"target": "spare/down", "tier": 2}]
    alias = {"targets": targets, "context_window_fallbacks": ["spare/large"]}
    routing = {"breaker": {"failures": 1}, "max_wait": 0}
    gateway = await start({"providers": providers, "models": {"fast": alias}, "routing": routing})
    await gateway.chat("lab/m")
    await gateway.chat("spare/down")
    await gateway.rows(1, "SELECT * FROM provider_health WHERE state = 'open'")
    calls = len(upstream.requests)
    assert await said(gateway, "fast") == [
        "fast: an alias, fallback (as of THEN)",
        "1. lab/m",
        "   k3",
        "   k1  skipped: rate_limit, cooling until THEN",
        "   k2  skipped: rate_limit, cooling until THEN",
        "2. spare/down  skipped: breaker open, cooling until THEN",
        "   k1",
        "context_length: spare/large",
        "   k1",
    ]
    assert len(upstream.requests) == calls


async def test_a_key_that_an_operator_took_out_and_a_used_up_limit_are_told(
    upstream: Upstream, start: Start
) -> None:
    block = lab(upstream.url, "sk-1111", "sk-2222")
    block["keys"][0]["limits"] = {"rpm": 1}
    gateway = await start({"providers": {"lab": block}})
    assert (await gateway.chat("lab/m")).headers["x-tollkeeper-key"] == "k1"
    assert (await gateway.client.post("/admin/providers/lab/keys/k2/disable")).status_code == 200
    await gateway.rows(1, "SELECT * FROM api_calls")
    await gateway.rows(1, "SELECT * FROM rate_limits WHERE limit_type = 'disabled'")
    assert await said(gateway, "lab/m") == [
        "lab/m: a model of its provider (as of THEN)",
        "1. lab/m",
        "   k1  skipped: requests_minute 1/1, cooling until THEN",
        "   k2  skipped: disabled by an operator",
    ]


@pytest_asyncio.fixture
async def state() -> AsyncIterator[dict[str, str]]:
    """A shared state of this test's own, as it is configured."""
    with some_server() as url:
        async with own_keys(url) as prefix:
            yield {"url": url, "prefix": prefix}


async def test_what_is_shared_is_known_too(
    upstream: Upstream, start: Start, state: dict[str, str]
) -> None:
    upstream.script = error(429, "slow down", retry_after="60")
    providers, telemetry = {"lab": lab(upstream.url)}, {"enabled": False}
    gateway = await start({"providers": providers, "state": state, "telemetry": telemetry})
    await gateway.chat("lab/m")
    told: list[str] = []
    for _ in range(100):
        told = await said(gateway, "lab/m")
        if "skipped" in told[-1]:
            break
    assert told[-1] == "   k1  skipped: rate_limit, cooling until THEN"


async def test_without_a_database_the_plan_is_told_and_nothing_is_created(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    database = tmp_path / "none" / "x.db"
    file.write_text(
        "providers: {ollama: {}}\nmodels: {a: {targets: [ollama/x], strategy: sticky}}\n"
        f"telemetry: {{database_url: 'sqlite+aiosqlite:///{database}'}}\n"
    )
    text = await explain(load(file, {}, {}), "a")
    told = f"there is no database {database}: what was learnt is not known"
    assert text.splitlines() == [
        f"a: an alias, sticky ({told})",
        "1. ollama/x",
        "   no key needed",
    ]
    assert not database.parent.exists()


async def test_an_unknown_name_is_told_with_what_was_meant(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("providers: {ollama: {}}\nmodels: {fast: {targets: [ollama/x]}}\n")
    with pytest.raises(GatewayError, match="Did you mean 'fast'"):
        await explain(load(file, {}, {}), "fats")


def test_the_command_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {"GROQ_API_KEY": "gsk_canary_canary_canary"})
    assert cli.main(["explain", "groq/llama"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1] == "1. groq/llama"
    assert "canary" not in out
    assert cli.main(["explain", "nobody"]) == 1
    assert "does not exist here" in capsys.readouterr().err


async def test_the_cheapest_of_the_catalogue_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(
        "providers: {groq: {keys: [{value: gsk_1}]}}\n"
        "models: {a: {targets: [groq/llama-3.3-70b-versatile, groq/llama-3.1-8b-instant],"
        " strategy: lowest_cost}}\n"
        f"telemetry: {{database_url: 'sqlite+aiosqlite:///{tmp_path}/none.db'}}\n"
    )
    told = (await explain(load(file, {}, {}), "a")).splitlines()
    assert told[1:4:2] == ["1. groq/llama-3.1-8b-instant", "2. groq/llama-3.3-70b-versatile"]
