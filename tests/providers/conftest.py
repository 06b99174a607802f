"""The upstream client runs on uvloop where there is one and on asyncio elsewhere: test on both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import pytest_asyncio

from proxy.providers.transport import Transport
from tests.providers.sockets import until

try:
    import uvloop
except ImportError:  # Windows has none
    LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
else:
    LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], Any]]:
    """Both loops for the client's own tests, the usual one for all others."""
    if item.path.name.startswith("test_transport"):
        return LOOPS
    return {"asyncio": asyncio.new_event_loop}


@pytest_asyncio.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Transport]:
    """A client that must hold nothing once it is closed. Its connections count as rested."""
    monkeypatch.setattr("proxy.providers.transport.RESTED_SECONDS", 0.0)
    transport = Transport()
    yield transport
    await transport.aclose()
    await until(lambda: not transport._open)
    assert not any(transport._idle.values())
