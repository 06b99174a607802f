"""Both ends of a call, without a socket: what an upstream sends, and what a client gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx

from proxy.types import Headers

Part = bytes | float | Exception
JSON = (b"content-type", b"application/json")
SSE = (b"content-type", b"text/event-stream; charset=utf-8")
DONE = b"data: [DONE]\n\n"


class Body(httpx.AsyncByteStream):
    """What an upstream sends: bytes, pauses in seconds, and failures.

    As with a socket, a read that was cancelled has lost nothing and may be repeated.
    """

    def __init__(self, *parts: Part) -> None:
        self.parts = parts
        self.waiting = list(parts)
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while self.waiting:
            part = self.waiting[0]
            if isinstance(part, float):
                await asyncio.sleep(part)
            del self.waiting[0]
            if isinstance(part, Exception):
                raise part
            if isinstance(part, bytes):
                return part
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1


class Client:
    """Takes what is sent to it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> Headers:
        return self.messages[0]["headers"]

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def ended(self) -> bool:
        """Whether the body was ended cleanly."""
        return self.messages[-1].get("more_body") is False
