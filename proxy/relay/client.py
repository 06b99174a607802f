"""Noticing that a client has left.

A server's ``send`` is silent after the client has gone, so somebody must listen for it: a task
beside the one that serves, which it cancels, at once or once nothing more is to be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any


class ClientWatch:
    """Cancels the task that began it when the client leaves; then ``gone`` is true.

    ``linger`` is called when it leaves, and the task goes on until that returns.
    """

    def __init__(
        self,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        linger: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.gone = False
        self._receive = receive
        self._linger = linger
        self._served: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        self._served = asyncio.current_task()
        self._task = start(self._listen())

    def end(self) -> None:
        """The call is over; what the client does now no longer matters."""
        self._served = None
        if self._task is not None:
            self._task.cancel()
            # It keeps its exception, and that its frames, in which this object is: all of a call
            # would wait for the garbage collector, which took 8 % of the time.
            self._task = None

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._served is None:
            return
        self.gone = True
        if self._linger is not None:
            await self._linger()
        if self._served is not None:
            self._served.cancel()
