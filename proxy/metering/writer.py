"""From the request path to the database: this process's journal, and the shipper that empties all.

``put`` never waits and never raises. Nothing is lost by the end of the process, however it comes:
what is not in the database by then is in the journal, and the next start takes it in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from proxy.clock import monotonic
from proxy.election import Election
from proxy.metering.journal import SYNC_SECONDS, Journal
from proxy.metering.shipper import Moves, Shipper

_log = logging.getLogger("tollkeeper.journal")


class Writer:
    """``journal`` admits calls. ``folder`` is what all processes share that write to the database;
    one of them ships. The other arguments are the journal's and the shipper's."""

    def __init__(
        self,
        folder: Path,
        *,
        encode: Callable[[object], bytes],
        decode: Callable[[bytes], object],
        flush: Callable[[Sequence[object], Moves], Awaitable[None]],
        positions: Callable[[], Awaitable[dict[str, int]]],
        strict: bool,
        max_bytes: int,
    ) -> None:
        self._decode = decode
        self._flush = flush
        self._passing = asyncio.Lock()
        self._stuck = False
        self._election = Election(folder / "shipper")
        self._shipper = Shipper(
            folder,
            decode,
            flush,
            positions,
            elected=self._election.won,
            writes=lambda name: self.journal.writes(name),
        )
        self.journal = Journal(
            folder, encode, strict=strict, max_bytes=max_bytes, appended=self._shipper.wake
        )
        self.put = self.journal.append
        self.run = self._shipper.run

    async def tend(self) -> None:
        """Look after the journal until cancelled. What it cannot keep goes past it."""
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await self.journal.tend()
            await asyncio.shield(self._pass())  # to cancel it would break a transaction

    async def _pass(self) -> None:
        """Write into the database what waits for the journal in memory alone."""
        async with self._passing:
            if not (waiting := self.journal.take()):
                return
            try:
                await self._flush([self._decode(each) for each in waiting], {})
                self._stuck = False
            except Exception as error:
                self.journal.put_back(waiting)
                if not self._stuck:  # from then on the journal tells every minute how many wait
                    _log.warning("rows cannot go past the journal: %s", error)
                self._stuck = True

    @property
    def depth(self) -> int:
        """Items that wait to be written."""
        return self._shipper.queued() + self.journal.held

    def status(self) -> dict[str, Any]:
        """``recorded`` call rows, ``queued`` and ``dropped`` items, the last error, and how the
        ``journal`` is."""
        status = self._shipper.status()
        status["queued"] += self.journal.held
        status["dropped"] += self.journal.dropped
        return {**status, "journal": self.journal.status()}

    async def open(self, seconds: float) -> None:
        """Begin; what an earlier process left is written first, as far as ``seconds`` go."""
        self.journal.open()
        await self._shipper.catch_up(seconds)

    async def drain(self, seconds: float) -> None:
        """End ``run`` and write all that there is. What cannot be written in ``seconds`` is for the
        next start, and that is told."""
        deadline = monotonic() + seconds
        await self._shipper.drain(seconds)
        await self._pass()
        self.journal.close()
        await self._shipper.drain(deadline - monotonic())
        if left := self._shipper.queued():
            error = self._shipper.status()["last_error"] or "there was no more time"
            _log.error("%d items wait in the journal for the next start: %s", left, error)
        self._election.close()
