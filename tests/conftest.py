"""Fixtures for everybody: an upstream, and gateways in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy.metering import tokenizer
from tests.gateway import Gateway, default, lab, running
from tests.store.databases import REACHABLE
from tests.upstream import Upstream, upstream_server


@pytest.fixture(scope="session", autouse=True)
def _no_tokenizer() -> None:
    """What nobody told is guessed, installed or not, but in the tests that are about counting."""
    tokenizer.INSTALLED = False


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "what gateways keep their rows in where a test does not say it"
    parser.addoption("--database", choices=REACHABLE, default="sqlite", help=told)


def pytest_configure(config: pytest.Config) -> None:
    default.database = config.getoption("--database")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if default.database == "sqlite":
        return
    others = [item for item in items if item.get_closest_marker("sqlite")]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with upstream_server() as server:
        yield server


@pytest_asyncio.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Gateway]]]:
    """Starts gateways: ``await start({"providers": ...})``, each with a folder of its own."""
    async with AsyncExitStack() as stack:
        number = 0

        async def begin(
            config: dict[str, Any], transport: Any = None, kind: str | None = None
        ) -> Gateway:
            nonlocal number
            number += 1
            folder = tmp_path / f"gateway-{number}"
            folder.mkdir()
            return await stack.enter_async_context(running(folder, config, transport, kind))

        yield begin


@pytest_asyncio.fixture
async def gateway(upstream: Upstream, start: Callable[..., Awaitable[Gateway]]) -> Gateway:
    """One provider ``lab`` with one key, in front of ``upstream``; ``lab/json`` has a price."""
    return await start(
        {
            "providers": {"lab": lab(upstream.url)},
            "prices": {"lab/json": {"input": 0.5, "output": 1.5}},
        }
    )
