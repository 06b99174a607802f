"""The scripts on a real server, by a clock that the test sets, against a model in plain Python."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from proxy.routing.limits import steps
from proxy.sharing import scripts
from proxy.sharing.calls import ALIVE_MS, Call, Calls, denial, rests
from proxy.sharing.types import Rest, Settlement, WindowClaim

HOUR = 3_600_000
NOW = time.time_ns() // 1_000_000 + HOUR
"""The clock of the test begins here, ahead of the server's own, which lets keys expire."""


class Ground:
    """A server with keys of its own and a clock that stands still until it is set."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.calls = Calls(prefix)
        self.now = NOW
        self._redis = redis

    def run(self, call: Call) -> Any:
        assert scripts._CLOCK in call.script or "clock()" not in call.script
        clock = f"local function clock() return {self.now} end\n"
        script = call.script.replace(scripts._CLOCK, clock)
        return self._redis.eval(script, len(call.keys), *call.keys, *call.args)

    def claim(
        self, places: list[str], windows: list[WindowClaim], probe: str | None = None, by: str = "t"
    ) -> Any:
        reply = self.run(self.calls.claim(places, windows, probe, 1000, by))
        return denial(reply, places, windows, probe)

    def count(self, claim: WindowClaim) -> int:
        key = self.calls._window(claim.name, claim.seconds, claim.start)
        (number,) = self.run(self.calls.count([key]))
        return int(number)

    def rests(self) -> list[Rest]:
        return list(rests(self.run(self.calls.refresh("node"))[2]))


@pytest.fixture(scope="module")
def server(url: str) -> Iterator[tuple[Redis, str]]:
    prefix = f"test-{uuid4().hex}"
    with Redis.from_url(url) as redis:
        yield redis, prefix
        for key in redis.scan_iter(match=f"{{{prefix}*", count=1000):
            redis.delete(key)


@pytest.fixture
def ground(server: tuple[Redis, str]) -> Ground:
    redis, prefix = server
    return Ground(redis, f"{prefix}-{uuid4().hex}")


class Model:
    """A sliding window in whole numbers."""

    def __init__(self, limit: int, seconds: int) -> None:
        self._limit, self._length = limit, seconds * 1000
        self._steps = steps(seconds)
        self._counted: list[tuple[int, int]] = []

    def _step(self, at: int) -> int:
        return at * self._steps // self._length

    def sum(self, at: int) -> int:
        oldest = self._step(at) - self._steps
        return sum(cost for then, cost in self._counted if self._step(then) >= oldest)

    def has_room(self, at: int, cost: int) -> bool:
        return self.sum(at) == 0 or self.sum(at) + cost <= self._limit

    def count(self, at: int, cost: int) -> None:
        self._counted.append((at, cost))

    def check(self) -> None:
        """No window that ends with a claim holds more than the limit; but it may hold one claim
        alone that is larger."""
        for end, _ in self._counted:
            inside = [c for at, c in self._counted if end - self._length < at <= end]
            assert sum(inside) <= self._limit or len(inside) == 1


@given(
    seconds=st.sampled_from([7, 60, 3600, 86_400]),
    limit=st.integers(1, 20),
    moves=st.lists(st.tuples(st.floats(0, 1.2), st.integers(1, 24)), max_size=25),
)
@settings(max_examples=60, deadline=None)
def test_a_sliding_window_does_as_its_model_does(
    server: tuple[Redis, str], seconds: int, limit: int, moves: list[tuple[float, int]]
) -> None:
    redis, prefix = server
    ground, model = Ground(redis, f"{prefix}-{uuid4().hex}"), Model(limit, seconds)
    for pause, cost in moves:
        ground.now += int(pause**3 * seconds * 1000)  # mostly close together
        claim = WindowClaim("w", limit, seconds, cost)
        refusal = ground.claim([], [claim])
        assert (refusal is None) == model.has_room(ground.now, cost)
        if refusal is None:
            model.count(ground.now, cost)
        else:
            free = ground.now + round(refusal.wait * 1000)
            assert model.has_room(free, cost)
            assert not model.has_room(free - 1, cost)
        assert ground.count(claim) == model.sum(ground.now)
    model.check()


def test_nearly_all_of_a_sliding_window_can_be_used(ground: Ground) -> None:
    granted, windows = 0, 5
    for _ in range(windows * 60):
        while ground.claim([], [WindowClaim("w", 61, 60, 1)]) is None:
            granted += 1
        ground.now += 1000
    assert granted >= windows * 61 * 60 / 61


def test_what_costs_more_than_the_limit_goes_alone(ground: Ground) -> None:
    large = WindowClaim("w", 10, 60, 99)
    assert ground.claim([], [large]) is None
    refusal = ground.claim([], [large])
    ground.now += round(refusal.wait * 1000) - 1
    assert ground.claim([], [large]) is not None
    ground.now += 1
    assert ground.claim([], [large]) is None


def test_windows_of_one_name_and_two_lengths_do_not_mix(ground: Ground) -> None:
    assert ground.claim([], [WindowClaim("w", 1, 60, 1), WindowClaim("w", 1, 3600, 1)]) is None
    ground.now += 90_000
    refusal = ground.claim([], [WindowClaim("w", 1, 60, 1), WindowClaim("w", 1, 3600, 1)])
    assert refusal.wait > 3000


def test_a_fixed_window_fills_and_the_next_is_empty(ground: Ground) -> None:
    day = WindowClaim("day", 3, 24 * 3600, 2, NOW - 23 * HOUR)
    assert ground.claim([], [day]) is None
    refusal = ground.claim([], [day])
    assert (refusal.name, refusal.wait) == ("day", 3600)
    ground.now += HOUR
    late = ground.claim([], [day])  # a caller that has not noticed the new day
    assert 0 < late.wait < 1
    assert ground.claim([], [msgspec.structs.replace(day, start=NOW + HOUR)]) is None
    assert ground.count(day) == 2


def test_a_fixed_window_is_kept_for_a_day_after_it(
    server: tuple[Redis, str], ground: Ground
) -> None:
    day = WindowClaim("day", 3, 24 * 3600, 1, NOW)
    ground.claim([], [day])
    left = server[0].pttl(ground.calls._window("day", 24 * 3600, NOW))
    assert 49 * HOUR < left <= 51 * HOUR


def test_of_several_refusals_the_longest_is_told(ground: Ground) -> None:
    for place, seconds in (("a", 5), ("b", 9), ("c", 7)):
        ground.run(ground.calls.rest(Rest(place, NOW + seconds * 1000, "r", "s", 1)))
    refusal = ground.claim(["none", "a", "b", "c"], [])
    assert (refusal.name, refusal.wait, refusal.rest.until) == ("b", 9, NOW + 9000)
    full = [WindowClaim("short", 1, 60, 1), WindowClaim("long", 1, 3600, 1)]
    ground.claim([], full)
    assert ground.claim([], full[::-1]).name == "long"
    assert ground.claim([], full).name == "long"


def test_a_rest_ends_to_the_millisecond(ground: Ground) -> None:
    ground.run(ground.calls.rest(Rest("p", NOW + 10, "r", "s", 1)))
    ground.now += 9
    assert ground.claim(["p"], []) is not None
    assert len(ground.rests()) == 1
    ground.now += 1
    assert ground.claim(["p"], []) is None
    assert ground.rests() == []


@pytest.mark.parametrize(
    ("second", "left"),
    [
        (Rest("p", NOW + 900, "b", "s", 5), Rest("p", NOW + 1000, "a", "s", 5, NOW + 7)),
        (Rest("p", NOW + 1100, "b", "s", 1), Rest("p", NOW + 1100, "b", "s", 2)),
        (Rest("p", NOW - 1, "b", "s", 9), Rest("p", NOW + 1000, "a", "s", 9, NOW + 7)),
    ],
)
def test_a_longer_rest_stays_and_the_larger_count(ground: Ground, second: Rest, left: Rest) -> None:
    ground.run(ground.calls.rest(Rest("p", NOW + 1000, "a", "s", 2, NOW + 7)))
    ground.run(ground.calls.rest(second))
    assert ground.rests() == [left]


def test_a_rest_comes_back_as_it_was_written(ground: Ground) -> None:
    rest = Rest('a|"ü"/\\ until":5', NOW + 1000, "rate\nlimit", "", 0, NOW + 500)
    ground.run(ground.calls.rest(rest))
    ground.run(ground.calls.rest(rest))  # through the server's own JSON, too
    assert ground.rests() == [rest]


def test_a_probe_is_held_by_its_token_until_it_is_known_how_it_went(ground: Ground) -> None:
    assert ground.claim([], [], "p", by="one") is None
    assert ground.claim([], [], "p", by="one") is None
    assert ground.claim([], [], "p", by="two").name == "p"
    ground.run(ground.calls.lift(["p", "q"]))
    assert ground.claim([], [], "p", by="two") is None
    ground.run(ground.calls.rest(Rest("p", NOW + 1, "r", "s", 1)))
    assert ground.claim([], [], "p", by="three") is None


def test_a_settlement_lands_in_the_step_in_which_the_claim_was_counted(ground: Ground) -> None:
    claim = WindowClaim("w", 100, 60, 10)
    ground.claim([], [claim])
    ground.now += 30_000
    ground.run(ground.calls.settle(Settlement("w", 60, None, 50, NOW)))
    assert ground.count(claim) == 60
    ground.run(ground.calls.settle(Settlement("w", 60, None, -90, NOW)))
    assert ground.count(claim) == 0
    assert ground.claim([], [WindowClaim("w", 5, 60, 10)]) is None  # nothing counts: it is empty
    ground.run(ground.calls.settle(Settlement("w", 60, None, -10, NOW + 30_000)))
    ground.run(ground.calls.settle(Settlement("w", 60, None, 20, NOW)))
    ground.now = NOW + 60_000
    assert ground.count(claim) == 20
    ground.now += 1000
    assert ground.count(claim) == 0
    ground.run(ground.calls.settle(Settlement("w", 60, None, 20, NOW)))
    ground.now = NOW
    assert ground.count(claim) == 0


def test_silent_nodes_are_dead_after_a_while(ground: Ground) -> None:
    assert ground.run(ground.calls.refresh("one"))[:2] == [NOW, 1]
    ground.now += 4000
    assert ground.run(ground.calls.refresh("two"))[1] == 2
    ground.now += 1000
    assert ground.run(ground.calls.refresh("two"))[1] == 1
    ground.run(ground.calls.leave("two"))
    assert ground.run(ground.calls.refresh("three"))[1] == 1


def test_windows_that_have_ended_are_not_listed(ground: Ground) -> None:
    day = WindowClaim("a:b", 9, 24 * 3600, 1, NOW)
    ground.claim([], [WindowClaim("x:y", 9, 60, 1), day])
    keys = [key.decode() for key in ground.run(ground.calls.windows())]
    assert [ground.calls.window_name(key) for key in keys] == ["x:y", "a:b"]
    assert ground.run(ground.calls.count(keys)) == [1, 1]
    ground.now += HOUR
    assert len(ground.run(ground.calls.windows())) == 1


def test_slots_of_a_node_that_is_dead_are_free(ground: Ground) -> None:
    for node in ("a", "b"):
        ground.run(ground.calls.refresh(node))
    assert ground.run(ground.calls.hold("s", 2, "a:1"))
    assert ground.run(ground.calls.hold("s", 2, "b:1"))
    assert not ground.run(ground.calls.hold("s", 2, "b:2"))
    ground.now += ALIVE_MS - 1000
    ground.run(ground.calls.refresh("b"))
    assert not ground.run(ground.calls.hold("s", 2, "b:2"))
    ground.now += 1001
    assert ground.run(ground.calls.hold("s", 2, "b:2"))
    assert not ground.run(ground.calls.hold("s", 2, "b:3"))
