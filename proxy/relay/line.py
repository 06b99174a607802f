"""The line in which requests wait for capacity: first come, first served, for each name.

Only the head of a line looks whether it may go, so a hundred waiters cost no more than one. Nobody
is overtaken: while somebody waits under a name, who comes next goes to the end.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable

from proxy.clock import monotonic

_SHORTEST = 0.001
"""Seconds between two looks, at least: a timer may fire a little early."""
_LONGEST = 3600.0
"""No timer is longer; it is only another look."""


class Line:
    """Lines of waiting requests, one for each name; ``capacity`` is how many wait in all of them.

    ``len`` is how many wait now.
    """

    def __init__(self, capacity: int = 1000) -> None:
        self._capacity = capacity
        self._lines: dict[str, OrderedDict[_Ticket, None]] = {}  # the head first; none is empty
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def busy(self, name: str) -> bool:
        """Whether somebody waits under this name: who comes now goes to the end."""
        return name in self._lines

    @property
    def full(self) -> bool:
        """Whether nobody else may wait."""
        return self._waiting >= self._capacity

    async def wait(self, name: str, ready: Callable[[float], float], give_up: float) -> bool:
        """Wait until it is this one's turn under ``name``, and ``ready`` agrees.

        ``ready(now)`` is asked at the head of the line: 0.0 to go, else the seconds until it is
        worth asking again, ``math.inf`` for "when something is released" (see ``nudge``).

        True: ``ready`` was 0.0 just now. Nothing else runs before the caller goes on, so what was
        free still is. False: ``give_up`` (monotonic) has passed, after a last look if this was the
        head; or the line is full, at once. What ``ready`` raises is raised.
        """
        if self.full:
            return False
        ticket = _Ticket()
        line = self._lines.setdefault(name, OrderedDict())
        line[ticket] = None
        self._waiting += 1
        try:
            while True:
                now = monotonic()
                seconds = ready(now) if ticket is _head(line) else math.inf
                if seconds <= 0.0:
                    return True
                if now >= give_up:
                    return False
                await ticket.sleep(min(seconds, give_up - now))
        finally:
            self._leave(name, line, ticket)

    def nudge(self) -> None:
        """Something was released: the heads look again. Costs nothing when nobody waits."""
        for line in self._lines.values():
            _head(line).wake()

    def _leave(self, name: str, line: OrderedDict[_Ticket, None], ticket: _Ticket) -> None:
        """Whoever went, gave up or was cancelled: the next one looks at once."""
        led = ticket is _head(line)
        del line[ticket]
        self._waiting -= 1
        if not line:
            del self._lines[name]
        elif led:
            _head(line).wake()


class _Ticket:
    """One who waits."""

    __slots__ = ("_woken",)

    def __init__(self) -> None:
        self._woken: asyncio.Future[None] | None = None

    async def sleep(self, seconds: float) -> None:
        """Until somebody wakes this one, or the time is over."""
        loop = asyncio.get_running_loop()
        self._woken = loop.create_future()
        timer = loop.call_later(min(max(seconds, _SHORTEST), _LONGEST), self.wake)
        try:
            await self._woken
        finally:
            timer.cancel()
            self._woken = None

    def wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


def _head(line: OrderedDict[_Ticket, None]) -> _Ticket:
    return next(iter(line))
