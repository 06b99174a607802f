"""The board decides as the scripts do, by which it is measured, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from proxy.sharing.board import Board
from proxy.sharing.calls import denial
from proxy.sharing.types import Denial, Rest, Settlement, WindowClaim
from tests.sharing.test_scripts import HOUR, NOW, Ground

PROBE_MS = 10_000_000
PLACES = ["a", "b", "c"]
WINDOWS = [
    WindowClaim("short", 5, 60, 1),
    WindowClaim("long", 9, 86_400, 1),
    WindowClaim("day", 7, 86_400, 1, NOW - 20 * HOUR),
]

places = st.lists(st.sampled_from(PLACES), unique=True, max_size=2)
windows = st.lists(st.tuples(st.sampled_from(WINDOWS), st.integers(0, 12)), max_size=3)
moves = st.one_of(
    st.tuples(st.just("claim"), places, windows, st.sampled_from([None, "a", "p"])),
    st.tuples(st.just("rest"), st.sampled_from(PLACES), st.integers(-5, 90_000), st.integers(0, 4)),
    st.tuples(st.just("lift"), st.sampled_from([["a"], ["b", "p"]])),
    st.tuples(
        st.just("settle"), st.sampled_from(WINDOWS), st.integers(-9, 9), st.integers(0, 90_000)
    ),
    st.tuples(st.just("wait"), st.integers(0, 40_000)),
)


@pytest.fixture(scope="module")
def server(url: str) -> Iterator[tuple[Redis, str]]:
    prefix = f"test-{uuid4().hex}"
    with Redis.from_url(url) as redis:
        yield redis, prefix
        for key in redis.scan_iter(match=f"{{{prefix}*", count=1000):
            redis.delete(key)


@given(moves=st.lists(moves, min_size=1, max_size=25))
@settings(max_examples=60, deadline=None)
def test_it_does_as_the_scripts_do(server: tuple[Redis, str], moves: list[tuple[Any, ...]]) -> None:
    redis, prefix = server
    ground, board = Ground(redis, f"{prefix}-{uuid4().hex}"), Board()
    for number, (move, *words) in enumerate(moves):
        at = ground.now
        match move:
            case "claim":
                asked, counted, probe = words
                claims = [
                    WindowClaim(w.name, w.limit, w.seconds, cost, w.start) for w, cost in counted
                ]
                call = ground.calls.claim(asked, claims, probe, PROBE_MS, str(number))
                reply = ground.run(call)
                theirs = denial(reply, asked, claims, probe)
                ours = board.claim(asked, claims, probe, PROBE_MS, number, at)
                assert _without_the_servers_clock(ours) == _without_the_servers_clock(theirs)
                if ours is None and len({claim.name for claim in claims}) == len(claims):
                    assert board.used(claims, at) == reply[2]
            case "rest":
                place, left, count = words
                rest = Rest(place, at + left, "rate_limit", "cooling", count, at + 7)
                ground.run(ground.calls.rest(rest))
                board.rest(rest, at)
            case "lift":
                ground.run(ground.calls.lift(words[0]))
                board.lift(words[0])
            case "settle":
                window, difference, ago = words
                off = Settlement(window.name, window.seconds, window.start, difference, at - ago)
                ground.run(ground.calls.settle(off))
                board.settle(off, at)
            case "wait":
                ground.now += words[0]
    by_place = {rest.place: rest for rest in ground.rests()}
    assert {rest.place: rest for rest in board.rests(ground.now)} == by_place
    counts = board.counts(ground.now)
    for window in WINDOWS:
        assert counts.get(window.name, 0) == ground.count(window)


def _without_the_servers_clock(found: Denial | None) -> object:
    """A probe there ends by the time that really passes."""
    return found.name if found is not None and found.wait > 86_400 * 2 / 60 else found


def test_who_is_gone_probes_no_more() -> None:
    board = Board()
    assert board.claim([], [], "p", 1000, 1, 0) is None
    assert board.claim([], [], "p", 1000, 2, 1) == Denial("p", 0.999, None)
    board.gone(2)
    assert board.claim([], [], "p", 1000, 2, 2) is not None
    board.gone(1)
    assert board.claim([], [], "p", 1000, 2, 3) is None
    assert board.claim([], [], "p", 1000, 3, 1003) is None


def test_the_first_who_tells_what_was_before_is_believed() -> None:
    board = Board()
    board.claim([], [WINDOWS[0]], None, 0, 1, NOW)
    for _ in range(2):
        uses = [Settlement("short", 60, None, 3, NOW - 10_000)]
        board.begin([Rest("a", NOW + 10, "r", "s", 1)], uses, NOW)
    assert board.counts(NOW) == {"short": 4}
    assert [rest.place for rest in board.rests(NOW)] == ["a"]
    assert board.counts(NOW + 52_000) == {"short": 1}


def test_of_a_fixed_window_the_newest_is_told() -> None:
    board = Board()
    for start, cost in ((NOW, 2), (NOW - 24 * HOUR, 5)):
        board.claim([], [WindowClaim("day", 9, 86_400, cost, start)], None, 0, 1, NOW)
    assert board.counts(NOW) == {"day": 2}


def test_what_is_over_is_dropped() -> None:
    board = Board()
    for number in range(100):
        board.claim([], [WindowClaim(f"w{number}", 9, 60, 1)], f"p{number}", 1000, 1, NOW)
    board.claim([], [WindowClaim("day", 9, 86_400, 1, NOW)], None, 0, 1, NOW)
    board.claim([], [], None, 0, 1, NOW + 120_000)
    assert board.counts(NOW + 120_000) == {"day": 1}
    board.claim([], [], None, 0, 1, NOW + 50 * HOUR)
    assert not board.counts(NOW + 50 * HOUR)
    assert not board._probes


slots = st.one_of(
    st.tuples(st.just("hold"), st.integers(1, 3), st.sampled_from("xy"), st.integers(0, 9)),
    st.tuples(st.just("free"), st.integers(0, 9)),
)


@given(moves=st.lists(slots, max_size=25))
@settings(max_examples=60, deadline=None)
def test_slots_are_held_as_the_scripts_hold_them(
    server: tuple[Redis, str], moves: list[tuple[Any, ...]]
) -> None:
    redis, prefix = server
    ground, board = Ground(redis, f"{prefix}-{uuid4().hex}"), Board()
    tokens: list[str] = []
    for node in "xy":
        ground.run(ground.calls.refresh(node))
    for number, (move, *words) in enumerate(moves):
        if move == "hold":
            limit, node, _ = words
            tokens.append(f"{node}:{number}")
            theirs = ground.run(ground.calls.hold("s", limit, tokens[-1]))
            assert board.hold("s", limit, tokens[-1], ord(node)) is bool(theirs)
        elif tokens:
            token = tokens[words[0] % len(tokens)]
            ground.run(ground.calls.free("s", token))
            board.free("s", token)


def test_who_is_gone_holds_no_slot() -> None:
    board = Board()
    assert board.hold("s", 2, "a", 1)
    assert board.hold("s", 2, "b", 2)
    assert not board.hold("s", 2, "c", 2)
    assert board.hold("t", 1, "d", 1)
    board.gone(1)
    assert board.hold("s", 2, "c", 2)
    assert not board.hold("s", 2, "e", 2)
    for token in "bcb":
        board.free("s", token)
    board.free("none", "b")
    assert not board._slots
