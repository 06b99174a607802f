"""Reading on for a client that has left, so that its row says what the provider says.

A provider tells what it bills at the end of a stream, and most go on to bill an answer that nobody
waits for. The call goes on as it was, with its key and its upstream; only the server drops what is
sent. It ends with the upstream, or is cancelled when the drain is over.
"""

from __future__ import annotations

import asyncio

from proxy.metering.meter import Meter

AT_ONCE = 64
"""Answers that are read on at a time; of one more the upstream is let go of at once."""


class Drains:
    """Says how long a call goes on without its client: ``seconds``, 0 for not at all.

    ``under_way`` is how many do now.
    """

    def __init__(self, seconds: float) -> None:
        self.under_way = 0
        self._seconds = seconds

    async def linger(self, meter: Meter) -> None:
        """The client of ``meter`` has left: wait while its answer may be read on, if there is one
        to read."""
        if not self._seconds or self.under_way >= AT_ONCE or not meter.leave():
            return
        self.under_way += 1
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self.under_way -= 1
