"""The hub with members of one process on real sockets, turn by turn."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from proxy.sharing import hub as hub_module
from proxy.sharing.frames import (
    Answer,
    Answers,
    Ask,
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
from proxy.sharing.hub import Hub
from proxy.sharing.types import Rest, Settlement, WindowClaim

FAR = 10**15
REST = Rest("p", FAR, "rate_limit", "cooling", 1)


class Peer:
    """A worker that says what the test says."""

    def __init__(self, socket: socket.socket) -> None:
        self.socket = socket
        self.socket.setblocking(False)
        self._frames: Frames[Any] = Frames(msgspec.msgpack.Decoder(FromHub))

    def say(self, *messages: FromWorker) -> None:
        self.socket.sendall(b"".join(map(frame, messages)))

    def heard(self) -> list[FromHub]:
        data = b""
        try:
            while part := self.socket.recv(1 << 20):
                data += part
        except BlockingIOError:
            pass
        return list(self._frames.feed(data))


class Ring:
    def __init__(self, *numbers: int) -> None:
        self.ready: list[tuple[int, Ready]] = []
        self.reloads = 0
        self.hub = Hub(ready=lambda *told: self.ready.append(told), reload=self._reload)
        self.peers = [self.join(number) for number in numbers]

    def _reload(self) -> None:
        self.reloads += 1

    def join(self, number: int) -> Peer:
        return Peer(self.hub.join(number))

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.hub.turn(0)

    def serving(self) -> None:
        """All can be asked, and have read what there was to read."""
        for peer in self.peers:
            peer.say(Ready([], None))
        self.turn()
        for peer in self.peers:
            peer.heard()


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring(1, 2, 3)
    yield ring
    ring.hub.close()
    for peer in ring.peers:
        peer.socket.close()


def test_all_hear_of_a_rest_and_who_comes_later_too(ring: Ring) -> None:
    ring.turn()
    assert [peer.heard() for peer in ring.peers] == [[Rests(0, [])]] * 3
    ring.peers[0].say(Change(rests=[REST]))
    ring.turn()
    assert ring.peers[0].heard() == [Rests(1, [REST])]
    assert ring.peers[1].heard() == [Rests(0, [REST])]
    late = ring.join(4)
    ring.turn()
    assert late.heard() == [Rests(0, [REST])]
    ring.peers[1].say(Change(lifts=["p"]))
    ring.turn()
    assert ring.peers[1].heard() == [Rests(1, [])]
    late.socket.close()


def test_a_limit_holds_for_all_and_is_settled(ring: Ring) -> None:
    ring.serving()
    one, other, _ = ring.peers
    claim = Claim(5, ["p"], [WindowClaim("w", 10, 60, 8)], None, 0)
    one.say(claim)
    ring.turn()
    other.say(claim)
    ring.turn()
    [granted], [denied] = one.heard(), other.heard()
    assert isinstance(granted, Claimed)
    assert isinstance(denied, Claimed)
    assert (granted.id, granted.denial) == (5, None)
    assert denied.denial is not None
    assert denied.denial.name == "w"
    one.say(Change(offs=[Settlement("w", 60, None, -7, granted.at)]), Count(6))
    ring.turn()
    assert one.heard() == [Counted(6, {"w": 1})]
    assert not other.heard()  # how much is used is no news


def test_a_probe_is_free_again_when_its_worker_ends(ring: Ring) -> None:
    ring.serving()
    one, other, _ = ring.peers
    one.say(Claim(1, [], [], "p", 60_000))
    ring.turn()
    for free in (False, True):
        other.say(Claim(2, [], [], "p", 60_000))
        ring.turn()
        [answer] = other.heard()
        assert isinstance(answer, Claimed)
        assert (answer.denial is None) is free
        one.socket.close()
        ring.turn()


def test_a_question_gets_the_answers_of_all_others(ring: Ring) -> None:
    ring.serving()
    asker, *others = ring.peers
    asker.say(Ask(8, "keys", b"all"))
    ring.turn()
    for number, peer in enumerate(others):
        [question] = peer.heard()
        assert isinstance(question, Ask)
        assert (question.what, question.argument) == ("keys", b"all")
        peer.say(Answer(question.id, b"%d" % number))
        ring.turn()
    [answers] = asker.heard()
    assert isinstance(answers, Answers)
    assert (answers.id, sorted(answers.payloads)) == (8, [b"0", b"1"])


def test_who_does_not_answer_is_left_out(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.02)
    ring.serving()
    asker, other, silent = ring.peers
    asker.say(Ask(8, "keys", b""))
    ring.turn()
    [question] = other.heard()
    assert isinstance(question, Ask)
    other.say(Answer(question.id, b"here"))
    ring.turn()
    assert not asker.heard()
    ring.hub.turn(5)
    assert asker.heard() == [Answers(8, [b"here"])]
    silent.say(Answer(question.id, b"late"))
    ring.turn()
    assert not asker.heard()


def test_nobody_waits_for_a_worker_that_ends_or_has_not_begun(ring: Ring) -> None:
    ring.serving()
    asker, other, dying = ring.peers
    ring.peers.append(ring.join(4))
    asker.say(Ask(8, "keys", b""))
    ring.turn()
    [question] = other.heard()
    assert isinstance(question, Ask)
    other.say(Answer(question.id, b"here"))
    dying.socket.close()
    ring.turn(2)
    assert asker.heard() == [Answers(8, [b"here"])]
    for peer in (other, ring.peers[3]):
        peer.socket.close()
    ring.turn(2)
    asker.say(Ask(9, "keys", b""))
    ring.turn()
    assert asker.heard() == [Answers(9, [])]


def test_an_asker_that_ends_is_answered_no_more(ring: Ring) -> None:
    ring.serving()
    asker, other, _ = ring.peers
    asker.say(Ask(8, "keys", b""))
    ring.turn()
    asker.socket.close()
    ring.turn()
    [question] = other.heard()
    assert isinstance(question, Ask)
    other.say(Answer(question.id, b"here"), Count(1))
    ring.turn()
    assert other.heard() == [Counted(1, {})]


def test_a_reload_is_told_to_the_others_and_to_the_supervisor(ring: Ring) -> None:
    ring.serving()
    ring.peers[0].say(Reload())
    ring.turn()
    assert [peer.heard() for peer in ring.peers] == [[], [Reload()], [Reload()]]
    assert ring.reloads == 1


def test_the_supervisor_is_told_who_serves(ring: Ring) -> None:
    told = Ready([("lab", 2)], "lab/m")
    ring.peers[1].say(told)
    ring.turn()
    assert ring.ready == [(2, told)]


def test_for_one_that_does_not_read_nobody_waits(ring: Ring) -> None:
    """It is asked nothing, what waits for it does not grow, and it hears the newest in the end."""
    ring.serving()
    one, other, slow = ring.peers
    heard: list[FromHub] = []

    def pass_on() -> None:
        for _ in range(4):
            ring.turn()
            heard.extend([*one.heard(), *other.heard()])

    many = [Rest(f"p{number}", FAR, "r" * 1000, "s", 1) for number in range(2000)]
    ring.hub.send(3, frame(Rests(0, many)))
    behind = len(ring.hub._peers[3].unsent)
    for rest in many[:100]:
        one.say(Change(rests=[rest]))
        pass_on()
    assert len(ring.hub._peers[3].unsent) == behind > 1 << 20
    heard.clear()
    one.say(Ask(8, "keys", b""))
    pass_on()
    [question] = heard
    assert isinstance(question, Ask)
    other.say(Answer(question.id, b"here"))
    pass_on()
    assert heard[1:] == [Answers(8, [b"here"])]
    newest: list[FromHub] = []
    for _ in range(100):
        ring.turn()
        newest += slow.heard()
    assert isinstance(newest[-1], Rests)
    assert len(newest[-1].rests) == 100


def test_who_talks_nonsense_is_left_and_the_others_go_on(
    ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    ring.serving()
    one, other, _ = ring.peers
    one.socket.sendall(b"\x00\x00\x00\x01\x01")
    other.say(Count(1))
    ring.turn()
    assert other.heard() == [Counted(1, {})]
    assert one.socket.recv(1) == b""
    assert "worker 1 said" in caplog.text


def test_a_turn_ends_when_it_is_woken(ring: Ring) -> None:
    wake, waker = socket.socketpair()
    with wake, waker:
        ring.turn()
        ring.hub.watch(wake)
        waker.send(b"1")
        ring.hub.turn(50)
        ring.turn()


def test_no_more_is_held_than_there_are_slots(ring: Ring) -> None:
    ring.serving()
    first, second, third = ring.peers
    first.say(Hold(1, "s", 2, "a"))
    ring.turn()
    second.say(Hold(1, "s", 2, "b"))
    ring.turn()
    third.say(Hold(1, "s", 2, "c"))
    ring.turn()
    assert [peer.heard() for peer in ring.peers] == [
        [Held(1, True)],
        [Held(1, True)],
        [Held(1, False)],
    ]
    first.say(Change(frees=[("s", "a")]))
    ring.turn()
    third.say(Hold(2, "s", 2, "c"))
    ring.turn()
    assert third.heard() == [Held(2, True)]
    second.socket.close()
    ring.turn()
    first.say(Hold(3, "s", 2, "d"), Hold(4, "s", 2, "e"))
    ring.turn()
    assert first.heard() == [Held(3, True), Held(4, False)]
