"""What a running gateway shows of itself, and waiting until it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from tests.gateway import SECONDS, Gateway

Start = Callable[..., Awaitable[Gateway]]


async def keys(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """The keys of ``/stats/keys`` by name, those of providers other than ``lab`` as ``p/name``."""
    found = (await gateway.client.get("/stats/keys", params={"limit": 1000})).json()["data"]
    return {f"{key['provider']}/{key['name']}".removeprefix("lab/"): key for key in found}


async def key(gateway: Gateway, name: str = "k1") -> dict[str, Any]:
    return (await keys(gateway))[name]


def waiting(gateway: Gateway) -> int:
    """How many requests wait for capacity."""
    return len(gateway.app.state.reload.__self__._line)


def seconds_left(moment: str) -> float:
    """From now until an instant as the statistics write them."""
    assert moment.endswith("Z")
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


async def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait for something that others bring about."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event for most of it
            await asyncio.sleep(0.005)
