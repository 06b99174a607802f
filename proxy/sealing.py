"""From the words of a call to a row that may be kept: sealed in a thread, bounded in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from proxy.content import MAX_WAITING, Content, ContentRecord, seal

_log = logging.getLogger("tollkeeper")


class Sealing:
    """Takes contents from the calls and hands their rows to ``keep``; ``write`` is the store's.

    ``redact`` masks a text of which so many characters are to be kept; ``limit`` is bytes of each
    side. What is under way when the process is killed is lost, and nothing but that.
    """

    def __init__(
        self,
        redact: Callable[[str, int], str],
        limit: int,
        write: Callable[[Sequence[object]], Awaitable[None]],
        keep: Callable[[ContentRecord], None],
    ) -> None:
        self._redact = redact
        self._limit = limit
        self._write = write
        self._keep = keep
        self._under_way: set[asyncio.Future[ContentRecord]] = set()
        self._waiting: dict[tuple[str, int], int] = {}
        self._held = 0
        self.lost = 0

    def take(self, content: Content) -> None:
        """Keep it. Never waits."""
        size = len(content.request or b"") + len(content.answer or b"")
        if self._held + size > MAX_WAITING:
            if not self.lost:
                _log.error("prompts and answers are lost: %d bytes wait already", self._held)
            self.lost += 1
            return
        self._hold(content.request_id, content.attempt, size)
        loop = asyncio.get_running_loop()
        sealing = loop.run_in_executor(None, seal, content, self._redact, self._limit)
        self._under_way.add(sealing)
        sealing.add_done_callback(self._sealed)

    async def write(self, items: Sequence[object]) -> None:
        """Write them as the store does; what of them had to wait does so no more."""
        await self._write(items)
        for item in items:
            if isinstance(item, ContentRecord):
                self._held -= self._waiting.pop((item.request_id, item.attempt), 0)

    async def drain(self, seconds: float) -> None:
        """Wait until everything that was taken has been handed on."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=seconds)
            await asyncio.sleep(0)  # for their callbacks

    def _sealed(self, sealing: asyncio.Future[ContentRecord]) -> None:
        self._under_way.discard(sealing)
        if sealing.cancelled():
            return
        record = sealing.result()
        self._hold(record.request_id, record.attempt, record.size)
        self._keep(record)

    def _hold(self, request_id: str, attempt: int, size: int) -> None:
        self._held += size - self._waiting.get((request_id, attempt), 0)
        self._waiting[request_id, attempt] = size
