"""From the words of a call to a row that may be kept: sealed in a thread, bounded in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from proxy.content import MAX_WAITING, Content, ContentRecord, seal

_log = logging.getLogger("tollkeeper")


class Sealing:
    """Takes contents from the calls and hands their rows to ``keep``.

    ``redact`` masks a text of which so many characters are to be kept; ``limit`` is bytes of each
    side. What is being sealed when the process is killed is lost, and nothing but that.
    """

    def __init__(
        self,
        redact: Callable[[str, int], str],
        limit: int,
        keep: Callable[[ContentRecord], None],
    ) -> None:
        self._redact = redact
        self._limit = limit
        self._keep = keep
        self._under_way: set[asyncio.Future[ContentRecord]] = set()
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
        self._held += size
        loop = asyncio.get_running_loop()
        sealing = loop.run_in_executor(None, seal, content, self._redact, self._limit)
        self._under_way.add(sealing)
        sealing.add_done_callback(partial(self._sealed, size))

    async def drain(self, seconds: float) -> None:
        """Wait until everything that was taken has been handed on."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=seconds)
            await asyncio.sleep(0)  # for their callbacks

    def _sealed(self, size: int, sealing: asyncio.Future[ContentRecord]) -> None:
        self._under_way.discard(sealing)
        self._held -= size
        if not sealing.cancelled():
            self._keep(sealing.result())
