"""What goes from a pool to the shared state, and back; that state itself is a recording."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from proxy.clock import monotonic, now_ms
from proxy.errors import ErrorReason
from proxy.relay.claims import Claims
from proxy.routing.breaker import BreakerRules
from proxy.routing.counters import Allowance, Allowances, Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyLease, KeyPool
from proxy.routing.limits import MINUTE, Limit
from proxy.sharing.types import Denial, Granted, Rest, WindowClaim
from proxy.types import Action, Verdict

RATE = ErrorReason.RATE_LIMIT
REST = Verdict(Action.NEXT_KEY, "group", cooldown=40.0)
FAILURE = Verdict(Action.NEXT_TARGET, failure=True)
AGES = 3_600_000


class State:
    """What is claimed, told and settled; ``denials`` are the answers to come, then all is granted.

    ``offset_ms``: the server's clock is two seconds before this machine's.
    """

    def __init__(self) -> None:
        self.available = True
        self.offset_ms = 2000
        self.denials: list[Denial] = []
        self.claims: list[tuple[list[str], list[WindowClaim], str | None]] = []
        self.rests: list[Rest] = []
        self.lifted: list[str] = []
        self.settled: list[tuple[str, int]] = []

    async def claim(
        self,
        places: list[str],
        windows: list[WindowClaim],
        probe: str | None,
        probe_ms: int,
        counted: Granted | None,
    ) -> Denial | None:
        self.claims.append((places, windows, probe))
        await asyncio.sleep(0)
        if self.denials:
            return self.denials.pop(0)
        if counted is not None:
            counted(7, [])
        return None

    def rest(self, rest: Rest) -> None:
        self.rests.append(rest)

    def lift(self, places: list[str]) -> None:
        self.lifted += places

    def settle(self, name: str, seconds: int, start: int | None, difference: int, at: int) -> None:
        assert (seconds, at) == (MINUTE, 7)
        self.settled.append((name, difference))


class Place:
    """A provider with two keys and two limits on its group, and its claims on a recorded state."""

    def __init__(self, rules: BreakerRules = BreakerRules(failures=1)) -> None:  # noqa: B008
        counters = Counters(None, lambda: 0.0)
        limits = (Limit("requests", 4, MINUTE), Limit("tokens", 1000, MINUTE))
        counters.configure(Allowances(groups={"org": Allowance(limits)}))
        self.state = State()
        self.pool = KeyPool("lab", [], counters, chance=lambda: 1.0, changed=self._changed)
        self.pool.configure([Key("k1", "s", "org"), Key("k2", "t", "org")], rules=rules)
        self.claims = Claims(self.state, lambda: {"lab": self.pool})  # type: ignore[arg-type]

    def _changed(self, event: Any) -> None:
        self.claims.tell(event)

    def lease(self, model: str = "m", tokens: int = 100) -> KeyLease:
        lease = self.pool.lease(model, monotonic(), tokens=tokens)
        assert lease is not None
        return lease

    async def granted(self, lease: KeyLease) -> bool:
        return await self.claims.granted(self.pool, lease)

    async def probing(self) -> KeyLease:
        """A lease that decides over a breaker that was open."""
        self.lease().failed(FAILURE, ErrorReason.SERVER_ERROR, monotonic())
        self.pool.health.breaker("m").until = monotonic()
        lease = self.lease()
        assert lease.probe
        return lease


def name(kind: str, owner: str = "", models: str = "") -> str:
    return msgspec.json.encode(["lab", kind, owner, models]).decode()


def at(seconds: float, place: Place) -> int:
    """So many seconds from now by the server's clock."""
    return now_ms() + place.state.offset_ms + round(seconds * 1000)


async def test_a_claim_names_all_that_may_stand_in_the_way() -> None:
    place = Place()
    assert await place.granted(place.lease("big:free"))
    [(places, windows, probe)] = place.state.claims
    assert set(places) == {
        name("group", "org", "big:free"),
        name("group", "org", "*:free"),
        name("group", "org"),
        name("key", "k1"),
        name("target", "", "big:free"),
        name("breaker", "", "big:free"),
    }
    assert [(each.limit, each.cost, each.seconds) for each in windows] == [
        (4, 1, 60),
        (1000, 100, 60),
    ]
    assert len({each.name for each in windows}) == 2
    assert all(each.name.startswith("lab ") for each in windows)
    assert probe is None


async def test_where_the_state_is_away_nobody_is_asked() -> None:
    place = Place()
    place.state.available = False
    lease = place.lease()
    assert await place.granted(lease)
    assert not place.state.claims
    assert place.pool.keys[0].in_flight == 1


async def test_what_a_call_really_used_is_settled_at_its_end() -> None:
    place = Place()
    for used in (130, 100, None):
        lease = place.lease()
        assert await place.granted(lease)
        lease.used = used
        lease.release()
    tokens = place.state.claims[0][1][1]
    assert place.state.settled == [(tokens.name, 30), (tokens.name, 0)]


async def test_a_window_that_others_used_up_keeps_every_key_of_it_from_being_asked() -> None:
    place = Place()
    lease = place.lease()
    assert await place.granted(lease)
    window = place.state.claims[0][1][0].name
    place.state.denials.append(Denial(window, 12.0, None))
    denied = place.lease()
    assert not await place.granted(denied)
    assert sum(key.in_flight for key in place.pool.keys) == 1
    assert place.pool.lease("m", monotonic()) is None
    assert place.pool.lease("m", monotonic() + 12.1) is not None


async def test_a_rest_that_others_ordered_is_taken_up() -> None:
    place = Place()
    rest = Rest(name("group", "org", "m"), at(20, place), "quota_exceeded", "exhausted", 3)
    place.state.denials.append(Denial(rest.place, 20.0, rest))
    assert not await place.granted(place.lease())
    kept = place.pool.rests.at(("group", "org", "m"), monotonic())
    assert kept is not None
    assert kept.until == pytest.approx(monotonic() + 20, abs=0.5)
    assert (kept.reason, kept.state, kept.count) == ("quota_exceeded", "exhausted", 3)
    assert not place.state.rests


async def test_a_client_that_leaves_while_it_is_claimed_holds_nothing() -> None:
    place = Place()
    lease = place.lease()
    task = asyncio.ensure_future(place.granted(lease))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert [key.in_flight for key in place.pool.keys] == [0, 0]
    assert not place.state.lifted


# Breakers and probes.


async def test_a_breaker_that_opens_is_told_and_one_that_closes_is_lifted() -> None:
    place = Place()
    lease = await place.probing()
    [rest] = place.state.rests
    assert (rest.place, rest.reason, rest.state) == (
        name("breaker", "", "m"),
        "server_error",
        "open",
    )
    assert abs(rest.until - at(10, place)) < 500
    place.state.lifted.clear()
    assert await place.granted(lease)
    assert place.state.claims[-1][2] == name("breaker", "", "m")
    assert name("breaker", "", "m") not in place.state.claims[-1][0]
    lease.succeeded(monotonic())
    lease.release()
    assert place.state.lifted == [name("breaker", "", "m")]


async def test_a_probe_that_told_nothing_is_free_for_others() -> None:
    place = Place()
    lease = await place.probing()
    assert await place.granted(lease)
    place.state.lifted.clear()
    lease.release()
    assert place.state.lifted == [name("breaker", "", "m")]
    assert place.lease().probe


async def test_a_probe_that_was_left_while_it_was_claimed_is_free_for_others() -> None:
    place = Place()
    lease = await place.probing()
    place.state.lifted.clear()
    task = asyncio.ensure_future(place.granted(lease))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert place.state.lifted == [name("breaker", "", "m")]


async def test_while_another_gateway_probes_this_one_looks_again_soon() -> None:
    """Its success is told to nobody who had not opened the breaker himself."""
    place = Place()
    lease = await place.probing()
    place.state.denials.append(Denial(name("breaker", "", "m"), 15.0, None))
    assert not await place.granted(lease)
    assert place.pool.lease("m", monotonic()) is None
    again = place.pool.lease("m", monotonic() + 1.01)
    assert again is not None
    assert again.probe


async def test_a_gateway_without_breakers_does_not_ask_for_those_of_others() -> None:
    place = Place(BreakerRules(failures=0))
    assert await place.granted(place.lease())
    assert name("breaker", "", "m") not in place.state.claims[-1][0]


# What is told, and what is heard.


async def test_a_rest_is_told_by_the_servers_clock() -> None:
    place = Place()
    verdict = Verdict(Action.NEXT_KEY, "group", cooldown=40.0, probe_after=12.0)
    place.lease().failed(verdict, RATE, monotonic())
    [rest] = place.state.rests
    assert (rest.place, rest.reason, rest.state) == (
        name("group", "org", "m"),
        "rate_limit",
        "cooling",
    )
    assert abs(rest.until - at(40, place)) < 500
    assert rest.probe_at is not None
    assert abs(rest.probe_at - at(12, place)) < 500


async def test_what_an_operator_says_is_told() -> None:
    place = Place()
    place.lease().failed(REST, RATE, monotonic())
    place.pool.reset(place.pool.keys[0])
    assert place.state.lifted == [name("group", "org", "m")]
    place.pool.switch("k1", disabled=True)
    assert place.state.rests[-1].place == name("switch", "k1")
    assert place.state.rests[-1].until > at(AGES, place)
    place.pool.switch("k1", disabled=False)
    assert place.state.lifted[-1] == name("switch", "k1")


async def test_what_was_heard_is_not_told_again() -> None:
    """Else two gateways could undo each other's orders for ever."""
    place = Place()
    off = Rest(name("switch", "k1"), at(AGES, place), "operator", "disabled", 1)
    place.claims.heard([off])
    assert place.pool.keys[0].disabled
    place.claims.heard([])
    assert not place.pool.keys[0].disabled
    assert not place.state.rests
    assert not place.state.lifted


async def test_what_is_lifted_elsewhere_ends_here_and_what_ended_by_itself_is_left() -> None:
    place = Place()
    group, key, breaker = name("group", "org", "m"), name("key", "k1"), name("breaker", "", "m")
    soon, late = at(0.02, place), at(40, place)
    place.claims.heard(
        [
            Rest(group, late, "rate_limit", "cooling", 1),
            Rest(key, soon, "authentication", "disabled", 1),
            Rest(breaker, late, "timeout", "open", 2),
        ]
    )
    now = monotonic()
    assert place.pool.lease("m", now) is None
    assert place.pool.health.breaker("m").openings == 2
    assert not place.pool.open("m", now + 39)
    await asyncio.sleep(0.03)
    place.claims.heard([])
    assert place.pool.lease("m", monotonic()) is not None
    assert place.pool.rests.places == [("key", "k1", "")]  # its refusals in a row are remembered


async def test_a_longer_rest_of_ones_own_is_not_shortened() -> None:
    place = Place()
    place.lease().failed(REST, RATE, monotonic())
    place.claims.heard([Rest(name("group", "org", "m"), at(5, place), "rate_limit", "cooling", 1)])
    assert place.pool.lease("m", monotonic() + 39) is None


async def test_news_of_other_providers_and_of_later_versions_do_no_harm() -> None:
    place = Place()
    other = msgspec.json.encode(["else", "key", "k", ""]).decode()
    place.claims.heard(
        [
            Rest(other, at(9, place), "authentication", "disabled", 1),
            Rest("in another form", at(9, place), "rate_limit", "cooling", 1),
            Rest(name("region", "eu", "m"), at(9, place), "rate_limit", "cooling", 1),
            Rest(name("group", "org", "m"), at(9, place), "a reason to come", "cooling", 1),
        ]
    )
    assert place.pool.rests.places == [("group", "org", "m")]
    assert place.pool.lease("m", monotonic()) is None
    place.claims.heard([])
    assert place.pool.lease("m", monotonic()) is not None


async def test_a_gateway_by_itself_keeps_to_its_part() -> None:
    place = Place()
    place.claims.away(2)
    leases = [place.pool.lease("m", monotonic()) for _ in range(3)]
    assert [lease is not None for lease in leases] == [True, True, False]
    place.claims.back()
    assert place.pool.lease("m", monotonic()) is not None


async def test_what_is_known_is_told_to_a_state_that_has_just_begun() -> None:
    place, other = Place(), Place()
    for lease in (place.lease(), place.lease("other", tokens=50)):
        lease.release()
    place.lease().failed(REST, RATE, monotonic())
    place.lease("broken").failed(FAILURE, ErrorReason.SERVER_ERROR, monotonic())
    place.pool.switch("k2", disabled=True)
    rests, uses = place.claims.known()
    assert {rest.place for rest in rests} == {
        name("group", "org", "m"),
        name("breaker", "", "broken"),
        name("switch", "k2"),
    }
    assert {use.name: use.difference for use in uses} == {
        'lab ["","org","","requests_minute"]': 4,
        'lab ["","org","","tokens_minute"]': 350,
    }
    assert all(abs(use.at - at(0, place)) < 2000 for use in uses)
    other.claims.heard(rests)
    assert [rest.until for rest in other.claims.known()[0]] == pytest.approx(
        [rest.until for rest in rests], abs=100
    )
