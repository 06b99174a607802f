"""The body of one answer, between the connection that brings it and the reader that takes it."""

from __future__ import annotations

import asyncio
from typing import Protocol

import httpx

HIGH_WATER = 256 * 1024
"""Bytes held for a slow reader before the socket is no longer read."""


class Source(Protocol):
    """What a body asks of its connection."""

    def expect(self, seconds: float | None) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def abort(self) -> None: ...


class Body(httpx.AsyncByteStream):
    """What arrived together is handed on together. ``timeout`` is seconds between two chunks.

    The connection calls ``push``, ``wake`` and ``complete``; the reader iterates, and closes.
    """

    def __init__(
        self, source: Source, loop: asyncio.AbstractEventLoop, timeout: float | None
    ) -> None:
        self._source: Source | None = source
        self._loop = loop
        self._timeout = timeout
        self._chunks: list[bytes] = []
        self._size = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._source is None:
                raise StopAsyncIteration
            self._source.expect(self._timeout)
            self._waiter = self._loop.create_future()
            await self._waiter
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self._size = 0
        if self._source is not None:
            self._source.expect(None)  # while the reader is busy, nobody is late
            if self._paused:
                self._paused = False
                self._source.resume()
        return data

    async def aclose(self) -> None:
        """Give up the rest. Idempotent, and never waits."""
        source, self._source = self._source, None
        self._chunks = []
        if source is not None:
            source.abort()

    def push(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER and not self._paused and self._source is not None:
            self._paused = True
            self._source.pause()

    def wake(self) -> None:
        """Let the reader have what was pushed."""
        waiter = self._waiter
        if waiter is not None and self._chunks:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def complete(self, error: Exception | None = None) -> None:
        """Nothing more comes: the body has ended, or it broke off."""
        self._error = error
        self._source = None
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
