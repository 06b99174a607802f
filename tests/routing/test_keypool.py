from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import ErrorReason
from proxy.routing import keypool as module
from proxy.routing.breaker import BreakerRules
from proxy.routing.counters import Allowance, Allowances, Counters
from proxy.routing.events import Event, Lifted, Parked, Switched
from proxy.routing.health import Turned
from proxy.routing.key import Key
from proxy.routing.keypool import KeyLease, KeyPool, KeyStrategy
from proxy.routing.limits import DAY, MINUTE, Limit
from proxy.routing.rests import BACKOFF, KEY_SECONDS, LONGEST
from proxy.types import Action, Verdict

RULES = BreakerRules(failures=2, open_for=10, longest=40)
LIMITED = Verdict(Action.NEXT_KEY, rests="group", cooldown=60)
LOST = Verdict(Action.NEXT_KEY, failure=True)
RATE_LIMIT = ErrorReason.RATE_LIMIT


def pool(
    *weights: float,
    strategy: KeyStrategy = "least_busy",
    group: str | None = None,
    chance: Callable[[], float] = lambda: 1.0,
    changed: Callable[[Event], None] = lambda _: None,
) -> KeyPool:
    """Keys k1, k2, ..., each of a quota group of its own unless they share one."""
    keys = KeyPool("lab", (), Counters(None, lambda: 0.0), chance=chance, changed=changed)
    keys.configure(named(*weights, group=group), strategy, RULES)
    return keys


def named(*weights: float, group: str | None = None) -> list[Key]:
    return [
        Key(f"k{n}", f"sk-{n}", group or f"g{n}", weight) for n, weight in enumerate(weights, 1)
    ]


def allow(keys: KeyPool, **groups: Allowance) -> None:
    keys.counters.configure(Allowances(groups=groups))


def rpm(amount: int) -> Allowance:
    return Allowance((Limit("requests", amount, MINUTE),))


def take(keys: KeyPool, model: str = "m", now: float = 0, **more: Any) -> KeyLease:
    lease = keys.lease(model, now, **more)
    assert lease is not None
    return lease


def one(keys: KeyPool, model: str = "m", now: float = 0, **more: Any) -> str:
    """The key of a call that goes well."""
    lease = take(keys, model, now, **more)
    lease.succeeded(now)
    lease.release()
    return lease.key.name


# Which key is leased.


def test_the_key_with_the_least_in_flight_goes_next() -> None:
    keys = pool(1, 1, 1)
    leases = [take(keys) for _ in range(3)]
    assert sorted(lease.key.name for lease in leases) == ["k1", "k2", "k3"]
    leases[1].release()
    assert take(keys).key is leases[1].key


def test_what_is_in_flight_counts_by_weight() -> None:
    keys = pool(3, 1)
    assert Counter(take(keys).key.name for _ in range(8)) == {"k1": 6, "k2": 2}


def test_ties_go_round_by_weight() -> None:
    keys = pool(4, 2, 1)
    assert [one(keys) for _ in range(7)] == ["k1", "k2", "k1", "k3", "k1", "k2", "k1"]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.sampled_from(["weighted", ""]))
def test_many_calls_spread_by_weight(weights: list[int], strategy: str) -> None:
    keys = pool(*weights, strategy=strategy or "least_busy")  # type: ignore[arg-type]
    rounds = 40 * sum(weights)
    counts = Counter(one(keys) for _ in range(rounds))
    for key in keys.keys:
        assert abs(counts[key.name] - 40 * key.weight) <= max(1, 0.05 * 40 * key.weight)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_many_calls_at_once_spread_by_weight(weights: list[int]) -> None:
    keys = pool(*weights)
    for _ in range(50 * sum(weights)):
        take(keys)
    for key in keys.keys:
        assert abs(key.in_flight - 50 * key.weight) <= max(1, 2.5 * key.weight)


def test_a_round_goes_to_each_in_turn_whatever_it_weighs() -> None:
    keys = pool(9, 1, 1, strategy="round_robin")
    order = [one(keys) for _ in range(9)]
    assert sorted(order[:3]) == ["k1", "k2", "k3"]
    assert order == order[:3] * 3


def test_fallback_takes_the_first_that_can() -> None:
    keys = pool(1, 5, 1, strategy="fallback")
    assert {one(keys) for _ in range(9)} == {"k1"}
    take(keys).failed(LIMITED, RATE_LIMIT, 0)
    assert {one(keys) for _ in range(9)} == {"k2"}
    assert one(keys, now=60) == "k1"


def test_the_fastest_key_is_taken_and_others_are_tried_now_and_then() -> None:
    chance = iter([1.0] * 3 + [0.01, 1.0])
    keys = pool(1, 1, 1, strategy="lowest_latency", chance=lambda: next(chance))
    for seconds in (0.5, 0.1, 0.9):  # who was never measured comes first
        lease = take(keys)
        lease.succeeded(0, seconds)
        lease.release()
    assert [one(keys), one(keys)] == ["k1", "k2"]


def test_a_session_keeps_its_key_while_that_is_well() -> None:
    keys = pool(1, 1, 1, 1, strategy="sticky")
    homes = {f"s{n}": one(keys, session=f"s{n}") for n in range(40)}
    assert set(homes.values()) == {"k1", "k2", "k3", "k4"}
    assert homes == {session: one(keys, session=session) for session in homes}
    take(keys, tried=("k2", "k3", "k4")).failed(LIMITED, RATE_LIMIT, 0)
    moved = {session: one(keys, session=session) for session in homes}
    assert "k1" not in moved.values()
    assert all(moved[s] == home for s, home in homes.items() if home != "k1")
    assert moved == {session: one(keys, now=60, session=session) for session in homes}


@pytest.mark.parametrize("strategy", ["weighted", "round_robin", "least_busy"])
def test_a_key_that_comes_back_does_not_catch_up(strategy: KeyStrategy) -> None:
    keys = pool(1, 1, strategy=strategy)
    keys.park(keys.keys[0], "m", LIMITED, RATE_LIMIT, 0)
    assert {one(keys, now=1) for _ in range(500)} == {"k2"}
    back = [one(keys, now=60) for _ in range(20)]
    assert abs(back.count("k1") - back.count("k2")) <= 2
    assert back[:3] != ["k1"] * 3


@pytest.mark.parametrize("strategy", ["weighted", "round_robin", "least_busy"])
def test_a_new_key_does_not_catch_up(strategy: KeyStrategy) -> None:
    keys = pool(1, strategy=strategy)
    for _ in range(500):
        one(keys)
    keys.configure(named(1, 1), strategy)
    assert Counter(one(keys) for _ in range(10)) == {"k1": 5, "k2": 5}


def test_a_key_that_was_tried_is_not_leased_again() -> None:
    keys = pool(1, 1)
    assert take(keys, tried=("k1",)).key.name == "k2"
    assert keys.lease("m", 0, tried=("k1", "k2")) is None


def test_a_pool_without_keys_leases_none() -> None:
    keys = pool()
    assert keys.lease("m", 0) is None
    assert not keys.open("m", 0)
    assert keys.healthy(0) is None


# How a call ends.


def test_releasing_twice_counts_once() -> None:
    ended: list[int] = []
    keys = KeyPool(
        "lab",
        named(1),
        Counters(None, lambda: 0.0),
        chance=lambda: 1.0,
        released=lambda: ended.append(1),
    )
    lease, other = take(keys), take(keys)
    for _ in range(2):
        lease.release()
    assert (keys.keys[0].in_flight, len(ended)) == (1, 1)
    other.release()
    assert (keys.keys[0].in_flight, len(ended)) == (0, 2)


def test_what_a_call_used_is_told_once() -> None:
    told: list[int | None] = []
    lease = take(pool(1), tokens=5)
    lease.settle = told.append
    lease.used = 7
    lease.release()
    lease.release()
    assert (lease.provider, told) == ("lab", [7])


@pytest.mark.parametrize(
    ("verdict", "siblings", "others", "strangers"),
    [
        (Verdict(Action.NEXT_KEY, rests="group"), True, False, False),
        (Verdict(Action.NEXT_KEY, rests="group", covers=""), True, True, False),
        (Verdict(Action.NEXT_KEY, rests="group", covers="*:free"), False, False, False),
        (Verdict(Action.NEXT_KEY, rests="key", covers=""), False, True, False),
        (Verdict(Action.NEXT_TARGET, rests="target", cooldown=5), True, False, True),
        (Verdict(Action.NEXT_TARGET), False, False, False),
    ],
)
def test_who_rests_with_a_key(
    verdict: Verdict, siblings: bool, others: bool, strangers: bool
) -> None:
    keys = pool()
    keys.configure([Key("k1", "1", "g"), Key("k2", "2", "g"), Key("k3", "3", "h")])
    take(keys, tried=("k2", "k3")).failed(verdict, RATE_LIMIT, 0)
    assert (keys.lease("m", 0, tried=("k1", "k3")) is None) is siblings
    assert (keys.lease("n", 0, tried=("k2", "k3")) is None) is others
    assert (keys.lease("m", 0, tried=("k1", "k2")) is None) is strangers


def test_what_a_failure_parks_is_told_with_who_said_so() -> None:
    events: list[Event] = []
    keys = pool(1, changed=events.append)
    parked = take(keys).failed(LIMITED, RATE_LIMIT, 5, "header")
    assert events == [parked]
    assert isinstance(parked, Parked)
    assert (parked.provider, parked.key.name, parked.source) == ("lab", "k1", "header")
    assert (parked.place, parked.rest.until) == (("group", "g1", "m"), 65)
    assert take(keys, "n").failed(Verdict(Action.STOP), ErrorReason.FORBIDDEN, 5) is None


def test_without_a_hint_rests_grow_and_a_success_ends_the_row() -> None:
    keys, now = pool(1), 0.0
    verdict = Verdict(Action.NEXT_KEY, rests="group")
    for seconds in BACKOFF[:3]:
        parked = take(keys, now=now).failed(verdict, RATE_LIMIT, now)
        assert parked is not None
        assert parked.rest.until == now + seconds
        now += seconds
    one(keys, now=now)
    parked = take(keys, now=now).failed(verdict, RATE_LIMIT, now)
    assert parked is not None
    assert parked.rest.until == now + BACKOFF[0]


def test_nothing_rests_for_longer_than_is_configured() -> None:
    keys = pool(1)
    keys.configure(named(1), longest=120)
    parked = keys.park(
        keys.keys[0], "m", Verdict(Action.STOP, rests="key", cooldown=LONGEST), RATE_LIMIT, 0
    )
    assert parked is not None
    assert parked.rest.until == 120


# The breaker.


def test_after_failures_no_key_is_asked_until_one_call_has_looked() -> None:
    events: list[Event] = []
    keys = pool(1, 1, changed=events.append)
    for _ in range(2):
        lease = take(keys)
        lease.failed(LOST, ErrorReason.TIMEOUT, 0)
        lease.release()
    assert keys.lease("m", 9) is None
    assert not keys.open("m", 9)
    assert keys.lease("n", 9) is not None
    probe = take(keys, now=10)
    assert probe.probe
    assert keys.lease("m", 10) is None
    probe.release(sent=False)  # it said nothing: another looks
    probe = take(keys, now=10)
    probe.succeeded(11)
    assert not take(keys, now=11).probe
    turns = [each.transition.to_state for each in events if isinstance(each, Turned)]
    assert turns == ["open", "half_open", "closed"]


# Limits.


def test_a_key_that_is_out_is_not_asked_until_there_is_room() -> None:
    keys = pool(1, 1)
    allow(keys, g1=rpm(3))
    assert Counter(one(keys, now=5) for _ in range(9)) == {"k1": 3, "k2": 6}
    assert keys.lease("m", 65.9, tried=("k2",)) is None
    assert one(keys, now=66, tried=("k2",)) == "k1"


def test_a_pool_is_closed_while_all_its_keys_are_out() -> None:
    keys = pool(1)
    allow(keys, g1=rpm(1))
    assert keys.open("m", 5)
    one(keys, now=5)
    assert keys.lease("m", 5) is None
    assert not keys.open("m", 5)
    assert keys.open("m", 66)


def test_a_call_that_was_never_made_gives_back_at_once_what_it_took() -> None:
    keys = pool(1, 1)
    allow(keys, g1=rpm(1), g2=Allowance((Limit("tokens", 10, MINUTE),), 1))
    first, second = take(keys, tried=("k2",)), take(keys, tried=("k1",), tokens=10)
    assert keys.lease("m", 0) is None
    first.release(sent=False)
    assert take(keys).key.name == "k1"
    second.release(sent=False)
    assert take(keys, tokens=10).key.name == "k2"


def test_a_reload_makes_a_key_available_at_once() -> None:
    keys = pool(1)
    allow(keys, g1=rpm(1))
    one(keys)
    assert keys.lease("m", 0) is None
    allow(keys, g1=rpm(2))
    one(keys)
    assert keys.lease("m", 0) is None
    allow(keys)
    one(keys)


def test_a_clock_that_was_set_ends_a_day_soon() -> None:
    wall = [0.0]
    keys = KeyPool("lab", named(1), Counters(UTC, lambda: wall[0]), chance=lambda: 1.0)
    allow(keys, g1=Allowance((Limit("requests", 1, DAY),)))
    one(keys)
    assert keys.lease("m", 1) is None
    wall[0] = DAY  # the machine slept
    assert keys.lease("m", 12) is not None


def test_tokens_that_are_out_leave_room_for_smaller_calls() -> None:
    keys = pool(1)
    allow(keys, g1=Allowance((Limit("tokens", 100, MINUTE),)))
    lease = take(keys, tokens=60)
    assert keys.lease("m", 0, tokens=60) is None
    take(keys, tokens=40)
    lease.used = 10
    lease.release()
    take(keys, tokens=50)


# Looking whether a limit is gone.

QUOTA = Verdict(Action.NEXT_KEY, rests="group", cooldown=3600, probe_after=60)


def test_one_call_looks_whether_a_rest_is_over_and_ends_it() -> None:
    events: list[Event] = []
    keys = pool(1, 1, group="org", changed=events.append)
    take(keys).failed(QUOTA, ErrorReason.QUOTA_EXCEEDED, 0)
    assert keys.lease("m", 59) is None
    scout = take(keys, now=60)
    assert scout.lifts
    assert keys.lease("m", 61) is None
    scout.succeeded(62)
    assert events[-1] == Lifted("lab", [("group", "org", "m")])
    assert not take(keys, now=62).lifts


def test_a_look_that_fails_or_was_never_taken() -> None:
    keys = pool(1)
    take(keys).failed(QUOTA, ErrorReason.QUOTA_EXCEEDED, 0)
    take(keys, now=60).release(sent=False)
    take(keys, now=60).failed(QUOTA, ErrorReason.QUOTA_EXCEEDED, 61)
    assert keys.lease("m", 179) is None
    assert take(keys, now=180).lifts


def test_a_look_ends_no_rest_that_began_after_it() -> None:
    keys = pool(1)
    take(keys, "n")
    take(keys).failed(QUOTA, ErrorReason.QUOTA_EXCEEDED, 0)
    scout = take(keys, now=60)
    longer = Verdict(Action.STOP, rests="group", cooldown=4000)
    keys.park(keys.keys[0], "m", longer, RATE_LIMIT, 61)
    keys.park(keys.keys[0], "n", Verdict(Action.STOP, rests="key", cooldown=90), RATE_LIMIT, 61)
    scout.succeeded(62)
    assert keys.lease("n", 62) is None
    assert keys.lease("n", 151) is not None
    assert keys.lease("m", 4060) is None


def test_who_looks_keeps_to_the_limits_and_is_counted() -> None:
    keys = pool(1)
    allow(keys, g1=rpm(1))
    take(keys, now=55).failed(QUOTA, ErrorReason.QUOTA_EXCEEDED, 0)
    assert keys.lease("m", 60) is None
    take(keys, now=116).release()
    keys.reset(keys.keys[0])
    assert keys.lease("m", 116) is None


# An operator's word, and reloads.


def test_a_reset_ends_what_keeps_a_key_from_any_model() -> None:
    events: list[Event] = []
    keys = pool(1, 1, changed=events.append)
    for model in ("m", "n"):
        take(keys, model, tried=("k2",)).failed(LIMITED, RATE_LIMIT, 0)
    keys.park(keys.keys[0], "m", Verdict(Action.STOP, rests="key"), RATE_LIMIT, 0)
    keys.park(keys.keys[1], "m", LIMITED, RATE_LIMIT, 0)
    keys.reset(keys.keys[0])
    assert take(keys, tried=("k2",)).key.name == "k1"
    assert keys.lease("m", 0, tried=("k1",)) is None
    lifted = events[-1]
    assert isinstance(lifted, Lifted)
    assert len(lifted.places) == 3
    keys.reset(keys.keys[0])
    assert events[-1] is lifted


def test_a_disabled_key_is_out_until_it_is_enabled() -> None:
    events: list[Event] = []
    keys = pool(1, changed=events.append)
    assert keys.switch("k9", disabled=True) is None
    for _ in range(2):
        assert keys.switch("k1", disabled=True) is keys.key("k1")
    assert len(events) == 1
    assert isinstance(events[0], Switched)
    assert keys.lease("m", 0) is None
    assert keys.healthy(0) is None
    keys.switch("k1", disabled=False)
    assert keys.lease("m", 0) is not None


def test_a_reload_keeps_what_is_known_of_a_key() -> None:
    keys = pool(1, 1)
    first = take(keys, tried=("k2",))
    first.failed(LIMITED, RATE_LIMIT, 0)
    keys.switch("k2", disabled=True)
    keys.configure(named(5, 5, 1))
    assert keys.keys[0] is first.key
    assert (first.key.weight, first.key.load[0]) == (5, 0.2)
    assert take(keys).key.name == "k3"
    assert keys.lease("m", 0, tried=("k3",)) is None
    keys.configure([])
    first.release()
    assert first.key.in_flight == 0
    assert keys.lease("m", 0) is None


def test_a_key_with_another_secret_is_tried_at_once_unless_an_operator_took_it_out() -> None:
    keys = pool(1, 1)
    for key in keys.keys:
        keys.park(key, "m", Verdict(Action.NEXT_KEY, rests="key"), RATE_LIMIT, 0)
    keys.switch("k2", disabled=True)
    assert keys.lease("m", KEY_SECONDS - 1) is None
    keys.configure([Key("k1", "new", "g1"), Key("k2", "new", "g2")])
    assert take(keys).key.secret == "new"
    assert keys.keys[1].disabled


def test_questions_are_asked_with_a_key_that_rests_for_no_model() -> None:
    keys = pool(1, 1)
    keys.park(keys.keys[0], "m", LIMITED, RATE_LIMIT, 0)
    assert keys.healthy(0) is keys.keys[0]
    keys.park(keys.keys[0], "m", Verdict(Action.NEXT_KEY, rests="key"), RATE_LIMIT, 0)
    assert keys.healthy(0) is keys.keys[1]


def test_ten_thousand_models_leave_little_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 100)
    keys = pool(1, 1)
    for number in range(10_000):
        one(keys, f"m{number}", session=f"s{number}")
        assert len(keys._surveys) <= 100


def test_a_key_that_is_not_let_in_uses_up_nothing() -> None:
    keys = pool(1, 1, group="org")
    allow(keys, org=rpm(1))
    refused = take(keys)
    refused.failed(Verdict(Action.NEXT_KEY, rests="key"), ErrorReason.AUTHENTICATION, 0)
    refused.release()
    assert one(keys, now=0.1) == "k2"
    assert keys.lease("m", 0.2) is None


def test_a_call_that_one_limit_has_no_room_for_is_counted_by_none() -> None:
    keys = pool(1, group="org")
    both = Allowance((Limit("requests", 5, MINUTE), Limit("tokens", 100, MINUTE)))
    allow(keys, org=both)
    take(keys, tokens=90).release()
    for _ in range(9):
        assert keys.lease("m", 0.1, tokens=50) is None
    counted = {window.limit.kind: window.used for _, window in keys.counters.windows()}
    assert counted == {"requests": 1, "tokens": 90}
