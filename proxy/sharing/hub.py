"""The supervisor's side of what the workers of one host share: one turn of it after the other.

    hub = Hub(ready=..., reload=...)
    mine = hub.join(1)          a socket for worker 1 to inherit
    hub.turn(1.0)               what has come is done; waits for that so many seconds at most

It never waits for a worker: what one does not read is kept for it, and news are told to it once,
when it reads again.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec

from proxy.clock import monotonic, now_ms
from proxy.sharing.board import Board
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

ANSWER_SECONDS = 0.5
"""How long a question waits for the workers' answers; who is late is left out."""

_READ = 1 << 18
_BEHIND = 1 << 20  # bytes unread by a worker that is asked no more questions

_log = logging.getLogger("tollkeeper")

_decoder = msgspec.msgpack.Decoder(FromWorker)


class Hub:
    """``ready`` is told when a worker serves, ``reload`` when one has read its settings again."""

    def __init__(self, *, ready: Callable[[int, Ready], None], reload: Callable[[], None]) -> None:
        self._ready = ready
        self._reload = reload
        self._board = Board()
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, _Peer] = {}
        self._questions: dict[int, _Question] = {}
        self._numbers = count()

    def watch(self, wake: socket.socket) -> None:
        """A turn ends when there is something to read here, too; it is read and thrown away."""
        self._selector.register(wake, selectors.EVENT_READ)

    def join(self, number: int) -> socket.socket:
        """The other end of a new connection; nobody else may have that number now."""
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        peer = self._peers[number] = _Peer(number, mine)
        self._selector.register(mine, selectors.EVENT_READ, peer)
        return theirs

    def send(self, number: int, data: bytes) -> None:
        """Any bytes, such as the frame with which a worker begins."""
        self._write(self._peers[number], data)

    def tell_all(self, message: FromHub, but: int | None = None) -> None:
        for peer in list(self._peers.values()):
            if peer.number != but:
                self._write(peer, frame(message))

    def turn(self, seconds: float) -> None:
        """Do what has come, or wait for it."""
        for question in self._questions.values():
            seconds = min(seconds, question.until - monotonic())
        for key, events in self._selector.select(max(0.0, seconds)):
            peer: _Peer | None = key.data
            if peer is None:
                key.fileobj.recv(_READ)  # type: ignore[union-attr]
                continue
            if events & selectors.EVENT_READ:
                self._read(peer)
            if events & selectors.EVENT_WRITE and peer.number in self._peers:
                self._write(peer, b"")
        now = monotonic()
        for number in [n for n, each in self._questions.items() if each.until <= now]:
            self._answer(number)
        self._spread()

    def leave(self, number: int) -> None:
        """It has ended, or closed its end."""
        peer = self._peers.pop(number, None)
        if peer is None:
            return
        self._selector.unregister(peer.socket)
        peer.socket.close()
        self._board.gone(number)
        for place, question in list(self._questions.items()):
            question.waiting.discard(number)
            if question.asker is peer:
                del self._questions[place]
            elif not question.waiting:
                self._answer(place)

    def close(self) -> None:
        for number in list(self._peers):
            self.leave(number)
        self._selector.close()

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.leave(peer.number)
            return
        try:
            for message in peer.frames.feed(data):
                self._do(peer, message)
        except msgspec.DecodeError:  # it would be the end of all if it went on
            _log.exception("worker %d said what nobody understands", peer.number)
            self.leave(peer.number)

    def _do(self, peer: _Peer, message: FromWorker) -> None:
        at = now_ms()
        match message:
            case Claim(id, places, windows, probe, probe_ms):
                denial = self._board.claim(places, windows, probe, probe_ms, peer.number, at)
                used = [] if denial is not None else self._board.used(windows, at)
                self._write(peer, frame(Claimed(id, denial, at, used)))
            case Hold(id, name, limit, token):
                granted = self._board.hold(name, limit, token, peer.number)
                self._write(peer, frame(Held(id, granted)))
            case Change(lifts, rests, offs, frees):
                self._board.lift(lifts)
                for rest in rests:
                    self._board.rest(rest, at)
                for off in offs:
                    self._board.settle(off, at)
                for name, token in frees:
                    self._board.free(name, token)
                if lifts or rests:
                    peer.seen += 1
                    self._stale()
            case Begin(rests, uses):
                self._board.begin(rests, uses, at)
                self._stale()
            case Count(id):
                self._write(peer, frame(Counted(id, self._board.counts(at))))
            case Ask():
                self._ask(peer, message)
            case Answer(id, payload) if id in self._questions:
                question = self._questions[id]
                question.payloads.append(payload)
                question.waiting.discard(peer.number)
                if not question.waiting:
                    self._answer(id)
            case Ready():
                peer.serves = True
                self._ready(peer.number, message)
            case Reload():
                self.tell_all(message, but=peer.number)
                self._reload()

    def _ask(self, asker: _Peer, asked: Ask) -> None:
        number = next(self._numbers)
        others = [p for p in self._peers.values() if p.serves and len(p.unsent) < _BEHIND]
        others = [peer for peer in others if peer is not asker]
        self._questions[number] = _Question(asker, asked.id, {peer.number for peer in others})
        question = frame(Ask(number, asked.what, asked.argument))
        for peer in others:
            self._write(peer, question)
        if not others:
            self._answer(number)

    def _answer(self, number: int) -> None:
        question = self._questions.pop(number)
        self._write(question.asker, frame(Answers(question.id, question.payloads)))

    def _stale(self) -> None:
        for peer in self._peers.values():
            peer.stale = True

    def _spread(self) -> None:
        """Tell the rests to whom they are news, and who has read what it was told before."""
        rests = None
        for peer in list(self._peers.values()):
            if peer.stale and not peer.unsent:
                peer.stale = False
                rests = self._board.rests(now_ms()) if rests is None else rests
                self._write(peer, frame(Rests(peer.seen, rests)))

    def _write(self, peer: _Peer, data: bytes) -> None:
        """Send what can be sent now; the selector tells when there is room for the rest."""
        before = bool(peer.unsent)
        peer.unsent += data
        try:
            while peer.unsent:
                del peer.unsent[: peer.socket.send(peer.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            peer.unsent.clear()  # it has ended, which reading will tell
        if bool(peer.unsent) != before:
            write = selectors.EVENT_WRITE if peer.unsent else 0
            self._selector.modify(peer.socket, selectors.EVENT_READ | write, peer)


class _Peer:
    """A worker's connection. ``seen`` counts the changes of rests that it has told; ``stale``: it
    should be told the rests; ``serves``: it can be asked."""

    def __init__(self, number: int, socket: socket.socket) -> None:
        self.number = number
        self.socket = socket
        self.frames: Frames[Any] = Frames(_decoder)
        self.unsent = bytearray()
        self.seen = 0
        self.stale = True
        self.serves = False


class _Question:
    def __init__(self, asker: _Peer, id: int, waiting: set[int]) -> None:
        self.asker = asker
        self.id = id
        self.waiting = waiting
        self.payloads: list[bytes] = []
        self.until = monotonic() + ANSWER_SECONDS
