"""Servers, and nodes that share them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from proxy.sharing import link
from proxy.sharing.shared import Shared
from proxy.sharing.types import Rest
from tests.redis_server import Server, own_keys, private_server, some_server


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with some_server() as url:
        yield url


@pytest_asyncio.fixture
async def prefix(url: str) -> AsyncIterator[str]:
    async with own_keys(url) as prefix:
        yield prefix


@pytest_asyncio.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url) as redis:
        yield redis


@pytest.fixture
def server() -> Iterator[Server]:
    with private_server() as server:
        yield server


class Node:
    """A gateway as far as sharing is concerned; what its callbacks were told stands in lists."""

    def __init__(self, url: str, **options: Any) -> None:
        self.rests: list[Rest] = []
        self.changes = 0
        self.away: list[int] = []
        self.back = 0
        self.shared = Shared(
            url, changed=self._changed, away=self.away.append, back=self._back, **options
        )

    def _changed(self, rests: list[Rest]) -> None:
        self.rests, self.changes = rests, self.changes + 1

    def _back(self) -> None:
        self.back += 1

    @property
    def places(self) -> list[str]:
        return sorted(rest.place for rest in self.rests)


Join = Callable[..., Awaitable[Node]]


@pytest_asyncio.fixture
async def join() -> AsyncIterator[Join]:
    """Opens nodes and runs their loops: ``await join(url, prefix=...)``."""
    async with AsyncExitStack() as stack:

        async def begin(url: str, **options: Any) -> Node:
            node = Node(url, **options)
            await node.shared.open()
            stack.push_async_callback(node.shared.close)
            for loop in (node.shared.run, node.shared.listen):
                stack.push_async_callback(_end, asyncio.create_task(loop()))
            return node

        yield begin


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stalls is no server that is away."""
    monkeypatch.setattr(link, "CONNECT_SECONDS", 3.0)


async def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait for something that others bring about."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event for most of it
            await asyncio.sleep(0.005)
