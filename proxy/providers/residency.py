"""Which models are in the memory of their servers as a call begins, asked beside the call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx

from proxy.clock import monotonic
from proxy.providers.base import Provider
from proxy.providers.lists import FAILURES, Fetcher
from proxy.types import Memory

FRESH = 2.0
"""Seconds for which an answer is believed. But that a model is not loaded is asked anew for each
call, since the one before may have loaded it."""
_DEADLINE = 1.0  # seconds for an answer

Tell = Callable[[Memory], None]


class Residency:
    """Asks the servers that tell. No call waits for it: who ends before the answer never hears.

    ``start`` starts a task that nobody waits for.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        start: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._transport = transport
        self._start = start
        self._servers: dict[str, _Server] = {}

    def ask(self, provider: Provider, model: str, tell: Tell) -> None:
        """Have ``tell`` called with what the model holds now: at once, soon, or never."""
        url = provider.dialect.running_url(provider.base_url, model)
        if url is None:
            return
        server = self._servers.setdefault(url, _Server())
        if monotonic() < server.asked + FRESH:
            memory = provider.dialect.memory(model, server.said)
            if memory is None:
                return
            if memory.total_mb:
                tell(memory)
                return
        server.waiting.append((model, tell))
        if len(server.waiting) == 1:
            self._start(self._ask(provider, url, server))

    async def _ask(self, provider: Provider, url: str, server: _Server) -> None:
        asked, said = monotonic(), b""
        try:
            async with asyncio.timeout(_DEADLINE):
                said = await Fetcher(self._transport, provider, None)("GET", url)
        except FAILURES:
            pass  # it tells nothing, which is not for a call to suffer from
        finally:
            waiting, server.waiting = server.waiting, []
        server.asked, server.said = asked, said
        for model, tell in waiting:
            memory = provider.dialect.memory(model, said)
            if memory is not None:
                tell(memory)


class _Server:
    """What one server said last, when it was asked, and who waits for its answer."""

    def __init__(self) -> None:
        self.said = b""
        self.asked = -FRESH
        self.waiting: list[tuple[str, Tell]] = []
