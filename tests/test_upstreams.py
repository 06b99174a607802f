from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy import upstreams as module
from proxy.config import load
from proxy.errors import ConfigError
from proxy.schema import Settings
from proxy.upstreams import Upstreams

LAB = {"type": "openai", "base_url": "http://127.0.0.1:9/v1"}


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where an Ollama was looked for; there is none."""
    addresses: list[str] = []

    async def no(transport: object, address: str) -> bool:
        addresses.append(address)
        return False

    monkeypatch.setattr(module.ollama, "answers", no)
    return addresses


@pytest.fixture
def upstreams() -> Upstreams:
    return Upstreams(httpx.MockTransport(lambda _: httpx.Response(503)))


def settings(**providers: Any) -> Settings:
    return Settings(providers=providers)


async def answers(address: str | None) -> bool:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{address}/models")).status_code == 200


async def test_what_is_configured_is_taken_as_it_is(
    stack: AsyncExitStack, asked: list[str], upstreams: Upstreams
) -> None:
    given = settings(lab=LAB, groq={"keys": [{"value": "v"}]})
    assert await upstreams.find(given, stack) == given.providers
    assert asked == []


async def test_an_ollama_that_answers_is_found(
    stack: AsyncExitStack, upstreams: Upstreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def yes(*_: object) -> bool:
        return True

    monkeypatch.setattr(module.ollama, "answers", yes)
    found = await upstreams.find(settings(), stack)
    assert {name: each.type for name, each in found.items()} == {"ollama": "ollama"}
    assert found["ollama"].base_url == "http://127.0.0.1:11434/v1"
    assert upstreams.placed(settings()) == found


async def test_without_one_the_demo_runs_until_the_end(
    asked: list[str], upstreams: Upstreams
) -> None:
    async with AsyncExitStack() as stack:
        found = await upstreams.find(settings(), stack)
        address = found["demo"].base_url
        assert len(asked) == 1
        assert await answers(address)
        assert upstreams.placed(settings()) == found
    with pytest.raises(httpx.ConnectError):
        await answers(address)


async def test_with_a_file_no_ollama_is_looked_for(
    stack: AsyncExitStack, asked: list[str], upstreams: Upstreams, tmp_path: Path
) -> None:
    (tmp_path / "t.yaml").write_text("providers: {}\n")
    found = await upstreams.find(load(tmp_path / "t.yaml", {}, {}), stack)
    assert list(found) == ["demo"]
    assert asked == []


async def test_a_demo_that_is_configured_keeps_its_settings(
    stack: AsyncExitStack, asked: list[str], upstreams: Upstreams
) -> None:
    limits = {"models": {"*": {"rpm": 3}}}
    given = settings(lab=LAB, toy={"type": "demo", "limits": limits, "strategy": "fallback"})
    found = await upstreams.find(given, stack)
    assert await answers(found["toy"].base_url)
    assert found["toy"].limits.models["*"].rpm == 3
    assert found["toy"].strategy == "fallback"
    assert found["lab"] == given.providers["lab"]


async def test_a_reload_may_bring_providers_and_lose_what_was_found(
    stack: AsyncExitStack, asked: list[str], upstreams: Upstreams
) -> None:
    first = await upstreams.find(settings(), stack)
    assert list(upstreams.placed(settings(lab=LAB))) == ["lab"]
    assert upstreams.placed(settings(lab=LAB, demo=None))["demo"].base_url == (
        first["demo"].base_url
    )
    assert upstreams.placed(settings()) == first


@pytest.mark.parametrize("providers", [{"demo": None}, {"lab": LAB, "toy": {"type": "demo"}}, {}])
async def test_a_demo_that_was_not_started_cannot_come_with_a_reload(
    stack: AsyncExitStack, asked: list[str], upstreams: Upstreams, providers: dict[str, Any]
) -> None:
    await upstreams.find(settings(lab=LAB), stack)
    with pytest.raises(ConfigError, match="restart it"):
        upstreams.placed(settings(**providers))
    assert list(upstreams.placed(settings(lab=LAB))) == ["lab"]
