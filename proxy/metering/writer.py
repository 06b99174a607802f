"""From the request path to the database: a bounded queue and one loop that empties it in batches.

``put`` never waits. What cannot be written stays queued and is tried again; when the queue is full
the newest item is lost, counted, and told in ``status``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from proxy.clock import monotonic
from proxy.types import CallRecord

CAPACITY = 100_000
BATCH = 2_000
INTERVAL = 0.2
"""Seconds that a record waits for others, so that a busy second costs five transactions."""
BACKOFF = (0.5, 1.0, 2.0, 5.0)
"""Seconds until the next try, by failures in a row."""

_log = logging.getLogger("tollkeeper.writer")


class BatchWriter:
    """Hands items to ``flush``, in order and in batches.

    A flush that raises has written nothing: the same items come again, first.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[object]], Awaitable[None]],
        *,
        capacity: int = CAPACITY,
        interval: float = INTERVAL,
    ) -> None:
        self._flush = flush
        self._capacity = capacity
        self._interval = interval
        self._queue: deque[object] = deque()
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._closing = False
        self._failures = 0
        self._recorded = 0
        self._dropped = 0
        self._last_error: str | None = None

    @property
    def depth(self) -> int:
        """Items that wait to be written."""
        return len(self._queue)

    def status(self) -> dict[str, Any]:
        """``recorded`` call rows, ``queued`` and ``dropped`` items, and the last error."""
        return {
            "recorded": self._recorded,
            "queued": len(self._queue),
            "dropped": self._dropped,
            "last_error": self._last_error,
        }

    def put(self, item: object) -> None:
        if len(self._queue) >= self._capacity:
            if not self._dropped:
                _log.error(
                    "the queue is full (%d items): rows are lost until the database can be written",
                    self._capacity,
                )
            self._dropped += 1
            return
        self._queue.append(item)
        if not self._wake.is_set():
            self._wake.set()

    async def run(self) -> None:
        """Write until ``drain`` takes over. Never cancel it: that would break a transaction."""
        while not self._closing:
            await self._wake.wait()
            await asyncio.sleep(self._interval)
            self._wake.clear()
            async with self._writing:
                while self._queue and not self._closing and await self._write():
                    pass
            if self._queue and not self._closing:
                await asyncio.sleep(BACKOFF[min(self._failures, len(BACKOFF)) - 1])
                self._wake.set()

    async def drain(self, seconds: float) -> None:
        """End ``run`` and write all that is queued. After ``seconds`` of failures: give up, loudly.

        What is lost is counted as dropped.
        """
        self._closing = True
        self._wake.set()
        deadline = monotonic() + seconds
        async with self._writing:
            while self._queue:
                if await self._write():
                    continue
                if monotonic() > deadline:
                    break
                await asyncio.sleep(0.1)
        if self._queue:
            _log.error("%d items are lost: %s", len(self._queue), self._last_error)
            self._dropped += len(self._queue)
            self._queue.clear()

    async def _write(self) -> bool:
        """Write one batch; False if it has to come again."""
        batch = [self._queue[place] for place in range(min(BATCH, len(self._queue)))]
        try:
            await self._flush(batch)
        except Exception as exc:
            self._failures += 1
            self._last_error = str(exc) or type(exc).__name__
            if self._failures == 1:
                _log.warning("rows wait to be written: %s", self._last_error)
            return False
        for _ in batch:
            self._queue.popleft()
        if self._failures:
            _log.info("the database can be written again")
        self._failures = 0
        self._recorded += sum(1 for item in batch if isinstance(item, CallRecord))
        return True
