"""Questions to the server, in turns: those that wait together go together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Any

from proxy.sharing.calls import Call
from proxy.sharing.link import FAILURES, TURNS, Link

CLAIMS = 100
"""Questions in one round trip."""


class Turns:
    """``failed`` is told why a link gave no answer."""

    def __init__(self, failed: Callable[[BaseException, Link], None]) -> None:
        self._failed = failed
        self._free = asyncio.Semaphore(TURNS)
        self._waiting: dict[asyncio.Future[Any], Call] = {}

    async def ask(self, link: Link, call: Call, late: Callable[[Any], None]) -> Any:
        """The reply to a call; None where none came in time. ``late`` is told of one that comes
        when whoever asked has left."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[answer] = call
        try:
            await asyncio.shield(self._turn(answer, link))  # it carries the calls of others, too
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if answer not in self._waiting:
                answer.add_done_callback(lambda answer: late(answer.result()))
            raise
        finally:
            self._waiting.pop(answer, None)

    def release(self) -> None:
        """Nobody waits for a server that is away."""
        for answer in self._waiting:
            _answer(answer, None)
        self._waiting.clear()

    async def _turn(self, answer: asyncio.Future[Any], link: Link) -> None:
        """Ask for the first that wait, if ``answer`` still does. What gets no answer is for the
        local state."""
        async with self._free:
            if answer not in self._waiting:
                return
            batch = dict(islice(self._waiting.items(), CLAIMS))
            for each in batch:
                del self._waiting[each]
            try:
                for each, reply in zip(batch, await link.send([*batch.values()]), strict=True):
                    _answer(each, reply)
            except FAILURES as error:
                self._failed(error, link)
            finally:
                for each in batch:
                    _answer(each, None)


def _answer(answer: asyncio.Future[Any], reply: Any) -> None:
    if not answer.done():
        answer.set_result(reply)
