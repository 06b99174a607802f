"""What several gateways share: its lifetime, the claim of a request, and the loop beside it.

    shared = Shared(url, changed=..., away=..., back=...)
    await shared.open()
    denial = await shared.claim(places, windows)     on the path of a request: one round trip
    shared.rest(rest)                                queued; the loop sends it

``run`` and ``listen`` are two coroutines that somebody else starts, and cancels before ``close``.
Without ``listen`` the news of other nodes comes once a second.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

from proxy.clock import monotonic, now_ms
from proxy.sharing.calls import Call, Calls, denial, rests
from proxy.sharing.link import (
    CONNECT_SECONDS,
    FAILURES,
    Link,
    address,
    cause,
    client,
    patience,
)
from proxy.sharing.outbox import Outbox
from proxy.sharing.turns import Turns
from proxy.sharing.types import Denial, Granted, Rest, Settlement, WindowClaim

REFRESH_SECONDS = 1.0
"""How often the rests are read, and this node says that it is alive."""

GATHER_SECONDS = 0.005
"""What is queued waits so long for company."""

BACKOFF = (0.5, 10.0)
"""Seconds until a server that is away is tried again: at first, and at most."""

STEADY_SECONDS = 10.0
"""A server that stayed for so long is trusted again: the back-off starts anew."""

WINDOWS = 100
"""Windows counted in one round trip of ``snapshot``."""

_log = logging.getLogger("tollkeeper")


class Shared:
    """The state that this node shares with all that use the same server and ``prefix``.

    ``timeout`` is the seconds that one round trip may take; when one is late or fails, the server
    is away at once. ``away`` is told how many nodes were alive then, ``back`` is called when the
    server answers again, and ``changed`` gets all rests whenever they are others than before.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "tollkeeper",
        timeout: float = 0.05,
        changed: Callable[[list[Rest]], None],
        away: Callable[[int], None],
        back: Callable[[], None],
    ) -> None:
        """Raises ValueError where ``url`` is no address; the message does not show it."""
        client(url)
        self._url = url
        self._timeout = timeout
        self._changed, self._away, self._back = changed, away, back
        self._calls = Calls(prefix)
        self._node = os.urandom(8).hex()
        self._tokens = count()
        self._outbox = Outbox()
        self._exchanging = asyncio.Lock()
        self._link: Link | None = None
        self._lost: Link | None = None
        self._turns = Turns(self._leave)
        self._wake = asyncio.Event()
        self._present = asyncio.Event()
        self._known: dict[str, Rest] = {}
        self._nodes = 1
        self._offset_ms = 0
        self._stale = True
        self._delay = BACKOFF[0]
        self._refreshed = self._returned = monotonic()

    @property
    def available(self) -> bool:
        return self._link is not None

    @property
    def nodes(self) -> int:
        """How many gateways were alive at the last count, this one among them."""
        return self._nodes

    @property
    def offset_ms(self) -> int:
        """The server's clock minus this machine's, milliseconds."""
        return self._offset_ms

    async def open(self) -> None:
        """Connect. Where there is no server it begins away, and says so."""
        try:
            await self._connect()
        except FAILURES as error:
            self._leave(error)

    async def close(self) -> None:
        """Send what is queued, once, and take leave of the other nodes."""
        link, self._link = self._link, None
        self._present.clear()
        self._turns.release()
        await self._bury()
        if link is not None:
            with suppress(*FAILURES):
                calls = self._calls.batch(self._outbox.take())
                await link.send([*calls, self._calls.leave(self._node)])
            await link.close()

    # On the path of a request.

    async def claim(
        self,
        places: Sequence[str],
        windows: Sequence[WindowClaim],
        probe: str | None = None,
        probe_ms: int = 150_000,
        counted: Granted | None = None,
    ) -> Denial | None:
        """Ask for all at once: no place rests, every window has room, nobody else probes.

        None is a grant, or there is no server to ask and the local state decides. Of a grant by
        the server ``counted`` is told; without a word nothing was counted, and there is nothing to
        ``settle``. A denial counts nothing and takes no probe.

        It takes one round trip; where several are on their way, it waits for one of them and
        shares the next with all that wait. Neither takes longer than ``timeout``.
        """
        if not (places or windows or probe is not None):
            return None
        claim = self._calls.claim(places, windows, probe, probe_ms, self.token())

        def late(reply: Any) -> None:
            if reply is not None and reply[0] == 0:
                for each in windows:
                    self.settle(each.name, each.seconds, each.start, -each.cost, reply[1])

        reply = await self._ask(claim, late)
        if reply is None:
            return None
        if reply[0] == 0 and counted is not None:
            counted(reply[1], reply[2])
        return denial(reply, places, windows, probe)

    def token(self) -> str:
        return f"{self._node}:{next(self._tokens)}"

    async def hold(self, name: str, limit: int, token: str) -> bool:
        """Take a slot until it is freed, or this node is dead: in one round trip, two where one was
        freed here just before."""
        if self._link is not None and self._outbox.frees:
            with suppress(*FAILURES):  # the next question will meet them, too
                await self._exchange(self._link, refresh=False)
        late = partial(self._free_late, name, token)
        granted: int | None = await self._ask(self._calls.hold(name, limit, token), late)
        return granted != 0

    def _free_late(self, name: str, token: str, granted: int | None) -> None:
        if granted:
            self.free(name, token)

    async def _ask(self, call: Call, late: Callable[[Any], None]) -> Any:
        """The reply to a call; None where there is nobody to ask, or none came in time."""
        return None if self._link is None else await self._turns.ask(self._link, call, late)

    # Queued for the loop.

    def rest(self, rest: Rest) -> None:
        """Publish a rest, within milliseconds. A longer one is not shortened by it."""
        self._outbox.rest(rest, now_ms() + self._offset_ms)
        self._wake.set()

    def lift(self, places: Sequence[str]) -> None:
        """End these rests for all nodes, and free the probes of these names."""
        self._outbox.lift(places)
        self._wake.set()

    def settle(self, name: str, seconds: int, start: int | None, difference: int, at: int) -> None:
        """What a claim cost was off by ``difference``, which may be negative.

        ``seconds`` and ``start`` are those of the claim, and ``at`` is what its ``counted`` was
        told: the window is corrected where that was counted, and never below 0.
        """
        if difference:
            self._outbox.settle(Settlement(name, seconds, start, difference, at))
            self._wake.set()

    def free(self, name: str, token: str) -> None:
        """Give a slot back, within milliseconds; one that was never taken is none."""
        self._outbox.free(name, token)
        self._wake.set()

    def row(self, row: bytes) -> None:
        """Let all nodes show this row of a call. The last thousand are held, of all nodes."""
        if self._link is not None:
            self._outbox.row(row)
            self._wake.set()

    async def newest(self) -> list[bytes] | None:
        """The rows of all nodes, the last that was told first; None while the server is away."""
        link = self._link
        if link is None:
            return None
        try:
            await self._exchange(link, refresh=False)
            (rows,) = await link.send([self._calls.newest()])
        except FAILURES as error:
            self._leave(error, link)
            return None
        return list(rows)

    async def snapshot(self) -> tuple[list[Rest], dict[str, int]]:
        """All rests, and what is counted in the windows by their names.

        Of a fixed window that is the newest. While the server is away: what rested at last.
        """
        link = self._link
        counts: dict[str, int] = {}
        if link is None:
            return list(self._known.values()), {}
        try:
            await self._exchange(link, refresh=True)
            (listed,) = await link.send([self._calls.windows()])
            keys = [key.decode() for key in listed]
            for place in range(0, len(keys), WINDOWS):
                some = keys[place : place + WINDOWS]
                (numbers,) = await link.send([self._calls.count(some)])
                counts.update(zip(map(self._calls.window_name, some), numbers, strict=True))
        except FAILURES as error:
            self._leave(error, link)
        return list(self._known.values()), counts

    # Beside the requests.

    async def run(self) -> None:
        """Send what is queued, refresh, and try a server that is away again, until cancelled."""
        while True:
            if self._link is not None:
                await self._attend(self._link)
                continue
            await asyncio.sleep(max(self._delay, self._timeout))
            self._delay = min(self._delay * 2, BACKOFF[1])
            await self._bury()
            try:
                await self._connect()
            except FAILURES:
                continue
            _log.info("the shared state at %s is back", address(self._url))
            self._back()

    async def listen(self) -> None:
        """Refresh as soon as another node has published something, until cancelled.

        It needs a connection of its own. One that fails is made again, without haste: the refresh
        of every second does without it.
        """
        while True:
            await self._present.wait()
            link = self._link
            with suppress(*FAILURES):
                async with client(self._url) as redis, redis.pubsub() as messages:
                    async with patience(CONNECT_SECONDS):
                        await messages.subscribe(self._calls.channel)
                    while self._link is link:
                        # Subscribing is news, too: there may have been some before it.
                        if await messages.get_message(timeout=REFRESH_SECONDS):
                            self._stale = True
                            self._wake.set()
            await asyncio.sleep(REFRESH_SECONDS)

    async def _attend(self, link: Link) -> None:
        """Wait for something to do, and do it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._refreshed + REFRESH_SECONDS - monotonic()):
                await self._wake.wait()
                await asyncio.sleep(GATHER_SECONDS)
        self._wake.clear()
        if self._link is not link:
            return
        due = monotonic() - self._refreshed >= REFRESH_SECONDS
        try:
            await self._exchange(link, refresh=due or self._stale or self._outbox.urgent)
        except FAILURES as error:
            self._leave(error, link)
        if self._outbox:
            self._wake.set()

    async def _connect(self) -> None:
        """Begin a new life of the connection: publish what this node knows, and read the rest."""
        link = Link(self._url, self._timeout)
        try:
            await link.open()
            self._outbox.again()
            await self._exchange(link, refresh=True)
        except BaseException:
            await link.close()
            raise
        self._link = link
        self._returned = monotonic()
        self._present.set()

    async def _exchange(self, link: Link, *, refresh: bool) -> None:
        """Send what is queued and read the rests, in one round trip."""
        async with self._exchanging:  # answers must not overtake each other
            batch = self._outbox.take()
            calls = self._calls.batch(batch)
            if refresh:
                calls.append(self._calls.refresh(self._node))
                self._stale = False
            if not calls:
                return
            try:
                *_, reply = await link.send(calls)
            except BaseException:
                self._outbox.put_back(batch)
                raise
            if refresh:
                self._learn(*reply)

    def _learn(self, at: int, nodes: int, rows: list[bytes]) -> None:
        """What a refresh has read."""
        self._refreshed = monotonic()
        self._offset_ms = at - now_ms()
        self._nodes = max(nodes, 1)
        there = list(rests(rows))
        self._outbox.forget(rest.place for rest in there)
        known = self._outbox.over(there)
        if known != self._known:
            self._known = known
            self._changed(list(known.values()))

    def _leave(self, error: BaseException, link: Link | None = None) -> None:
        """The server is away from now on: nobody asks it, and nobody waits for it."""
        if link is not self._link:
            return  # a straggler: that link was left already
        self._link, self._lost = None, link
        self._present.clear()
        self._turns.release()
        if monotonic() - self._returned > STEADY_SECONDS:
            self._delay = BACKOFF[0]
        _log.warning(
            "the shared state at %s is away (%s): this gateway goes on by itself, as one of %d",
            address(self._url),
            cause(error),
            self._nodes,
        )
        self._wake.set()
        self._away(self._nodes)

    async def _bury(self) -> None:
        """Close the link that was lost, once nothing is on its way there."""
        if self._lost is not None:
            await self._lost.close()
            self._lost = None
