"""A worker's side of what the workers of one host share.

    member = Member(socket, 2, lost)
    member.meet(changed=..., away=..., back=...)
    member.serve(reload, {"keys": ...})
    await member.open()

It needs no loop of its own. Rests are told as they change, so only what is counted, or is a probe,
has to be claimed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import msgspec

from proxy.sharing.frames import (
    Answer,
    Answers,
    Ask,
    Begin,
    Change,
    Claim,
    Claimed,
    Count,
    Counted,
    Frames,
    FromHub,
    FromWorker,
    Held,
    Hold,
    Ready,
    Reload,
    Rests,
    frame,
)
from proxy.sharing.types import Denial, Granted, Rest, Settlement, WindowClaim

PATIENCE_SECONDS = 1.0
"""A supervisor that takes longer to answer is away: the worker goes on by itself."""

_UNSENT = 16 << 20  # bytes that wait for a supervisor that does not read

_decoder = msgspec.msgpack.Decoder(FromHub)

_log = logging.getLogger("tollkeeper")


class Member(asyncio.Protocol):
    """One of ``nodes`` workers. ``lost`` is called when the supervisor has ended."""

    offset_ms = 0

    def __init__(self, socket: socket.socket, nodes: int, lost: Callable[[], None]) -> None:
        self._socket = socket
        self._nodes = nodes
        self._lost = lost
        self._changed: Callable[[list[Rest]], None] = lambda _: None
        self._away: Callable[[int], None] = lambda _: None
        self._back: Callable[[], None] = lambda: None
        self._reload: Callable[[], None] = lambda: None
        self._answers: Mapping[str, Callable[[bytes], bytes]] = {}
        self._frames: Frames[Any] = Frames(_decoder)
        self._transport: asyncio.Transport | None = None
        self._ids = count()
        self._name = os.urandom(8).hex()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._sent = 0  # changes of rests
        self._known: list[Rest] = []
        self.available = False

    def meet(
        self,
        *,
        changed: Callable[[list[Rest]], None],
        away: Callable[[int], None],
        back: Callable[[], None],
    ) -> None:
        """Share: ``changed`` gets all rests whenever they are others, ``away`` the number of
        workers when the supervisor does not answer, until it does, which calls ``back``."""
        self._changed, self._away, self._back = changed, away, back

    def serve(
        self, reload: Callable[[], None], answers: Mapping[str, Callable[[bytes], bytes]]
    ) -> None:
        """``reload`` is called when another worker was told to, ``answers`` give what others ask
        for by name, from an argument."""
        self._reload, self._answers = reload, answers

    async def open(self) -> None:
        """Connect, and hear what is known so far."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=self._socket)
        await self.snapshot()

    def close(self) -> None:
        """Take leave; nothing is lost then."""
        transport, self._transport = self._transport, None
        self.available = False
        if transport is not None:
            transport.close()
        self._release()

    # To the supervisor, and through it to the others.

    def ready(self, providers: Sequence[tuple[str, int]], example: str | None) -> None:
        """This worker serves."""
        self._send(Ready(list(providers), example))

    def reloaded(self) -> None:
        """This worker has read its configuration again, and the others should."""
        self._send(Reload())

    def begin(self, rests: Sequence[Rest], uses: Sequence[Settlement]) -> None:
        """What has been restored here, in case that nobody has told anything yet."""
        self._send(Begin(rests, uses))

    async def ask(self, what: str, argument: bytes) -> list[bytes]:
        """The answers of all other workers that answer in time."""
        id = next(self._ids)
        found: Answers | None = await self._exchange(id, Ask(id, what, argument))
        return [] if found is None else found.payloads

    async def snapshot(self) -> tuple[list[Rest], dict[str, int]]:
        """All rests, and what is counted in the windows by their names."""
        id = next(self._ids)
        found: Counted | None = await self._exchange(id, Count(id))
        return self._known, {} if found is None else found.counts

    async def claim(
        self,
        places: Sequence[str],
        windows: Sequence[WindowClaim],
        probe: str | None = None,
        probe_ms: int = 150_000,
        counted: Granted | None = None,
    ) -> Denial | None:
        """Ask for all at once, as ``Shared.claim``."""
        if not windows and probe is None:
            return None
        id = next(self._ids)

        def late(found: Claimed | None) -> None:
            if found is not None and found.denial is None:
                for each in windows:
                    self.settle(each.name, each.seconds, each.start, -each.cost, found.at)

        found: Claimed | None = await self._exchange(
            id, Claim(id, places, windows, probe, probe_ms), late
        )
        if found is None:
            return None
        if found.denial is None and counted is not None:
            counted(found.at, found.used)
        return found.denial

    def token(self) -> str:
        return f"{self._name}:{next(self._ids)}"

    async def hold(self, name: str, limit: int, token: str) -> bool:
        """Take a slot, as ``Shared.hold``."""
        id = next(self._ids)

        def late(found: Held | None) -> None:
            if found is not None and found.granted:
                self.free(name, token)

        found: Held | None = await self._exchange(id, Hold(id, name, limit, token), late)
        return found is None or found.granted

    def free(self, name: str, token: str) -> None:
        self._send(Change(frees=[(name, token)]))

    def rest(self, rest: Rest) -> None:
        self._change(Change(rests=[rest]))

    def lift(self, places: Sequence[str]) -> None:
        self._change(Change(lifts=places))

    def settle(self, name: str, seconds: int, start: int | None, difference: int, at: int) -> None:
        if difference:
            self._send(Change(offs=[Settlement(name, seconds, start, difference, at)]))

    def _change(self, change: Change) -> None:
        if self._send(change):
            self._sent += 1

    def _send(self, message: FromWorker) -> bool:
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() > _UNSENT:
            return False
        transport.write(frame(message))
        return True

    async def _exchange(
        self,
        id: int,
        question: Claim | Hold | Count | Ask,
        late: Callable[[Any], None] = lambda _: None,
    ) -> Any:
        """What is answered; None where that takes too long. ``late`` is told of one that comes when
        whoever asked has left."""
        if not self._send(question):
            return None
        answer = self._waiting[id] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._waiting.pop(id, None))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda answer: late(answer.result()))
            raise
        except TimeoutError:
            self._waiting.pop(id, None)
            if self.available:
                self.available = False
                self._away(self._nodes)
            return None

    def _release(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(None)

    # From the supervisor.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.available = True

    def data_received(self, data: bytes) -> None:
        if not self.available and self._transport is not None:
            self.available = True
            self._back()
        for message in self._frames.feed(data):
            try:
                self._do(message)
            except Exception:  # it would cost the connection, and with it this worker
                _log.exception("%s from the other workers was lost", type(message).__name__)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self.close()
            self._lost()

    def _do(self, message: FromHub) -> None:
        match message:
            case Claimed(id) | Held(id) | Counted(id) | Answers(id):
                answer = self._waiting.get(id)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            case Rests(seen, rests) if seen == self._sent:  # else newer ones are on their way
                self._known = rests
                self._changed(rests)
            case Ask(id, what, argument):
                answers = self._answers.get(what)
                if answers is not None:
                    self._send(Answer(id, answers(argument)))
            case Reload():
                self._reload()
