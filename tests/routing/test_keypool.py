from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.errors import ErrorReason
from proxy.routing.keypool import (
    BACKOFF,
    DISABLED_SECONDS,
    MAX_COOLDOWN,
    Key,
    KeyLease,
    KeyPool,
    Parked,
)
from proxy.types import Action, Verdict


def pool(*weights: float, group: str | None = None) -> KeyPool:
    """Keys k1, k2, ..., each of a quota group of its own unless they share one."""
    return KeyPool(
        "lab",
        [Key(f"k{n}", f"sk-{n}", group or f"g{n}", weight) for n, weight in enumerate(weights, 1)],
    )


def take(keys: KeyPool, model: str = "m", tried: tuple[str, ...] = (), now: float = 0) -> KeyLease:
    lease = keys.lease(model, tried, now)
    assert lease is not None
    return lease


def park(
    keys: KeyPool,
    what: str = "model",
    seconds: float | None = 60,
    *,
    key: int = 0,
    model: str = "m",
    reason: ErrorReason = ErrorReason.RATE_LIMIT,
    now: float = 0,
) -> Parked | None:
    verdict = Verdict(Action.NEXT_KEY, park=what, cooldown=seconds)  # type: ignore[arg-type]
    return keys.park(keys.keys[key], model, verdict, reason, now)


def names(leases: list[KeyLease]) -> list[str]:
    return [lease.key.name for lease in leases]


# Which key is leased.


def test_the_key_with_the_least_in_flight_goes_next() -> None:
    keys = pool(1, 1, 1)
    leases = [take(keys) for _ in range(3)]
    assert sorted(names(leases)) == ["k1", "k2", "k3"]
    leases[1].release()
    assert take(keys).key is leases[1].key


def test_what_is_in_flight_counts_by_weight() -> None:
    keys = pool(3, 1)
    taken = names([take(keys) for _ in range(8)])
    assert (taken.count("k1"), taken.count("k2")) == (6, 2)


def test_ties_go_round_smoothly() -> None:
    keys = pool(5, 1, 1)
    order = []
    for _ in range(7):
        lease = take(keys)
        order.append(lease.key.name)
        lease.release()
    assert order == ["k1", "k1", "k2", "k1", "k3", "k1", "k1"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_many_calls_spread_by_weight(weights: list[int]) -> None:
    keys = pool(*weights)
    counts = {key.name: 0 for key in keys.keys}
    rounds = 2000
    for _ in range(rounds):
        lease = take(keys)
        counts[lease.key.name] += 1
        lease.release()
    for key in keys.keys:
        share = rounds * key.weight / sum(weights)
        assert abs(counts[key.name] - share) <= max(1, 0.05 * share)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_many_calls_at_once_spread_by_weight(weights: list[int]) -> None:
    keys = pool(*weights)
    held = 100 * sum(weights)
    for _ in range(held):
        take(keys)
    for key in keys.keys:
        assert abs(key.in_flight - 100 * key.weight) <= max(1, 5 * key.weight)


def test_a_key_that_was_tried_is_not_leased_again() -> None:
    keys = pool(1, 1)
    assert take(keys, tried=("k1",)).key.name == "k2"
    assert keys.lease("m", ("k1", "k2"), 0) is None


def test_a_pool_without_keys_leases_none_and_rests_for_ever() -> None:
    keys = KeyPool("lab", [])
    assert keys.lease("m", (), 0) is None
    rest = keys.outlook("m", 5)
    assert rest is not None
    assert (rest.until, rest.reason) == (5 + MAX_COOLDOWN, ErrorReason.NO_KEYS)


def test_releasing_twice_counts_once() -> None:
    keys = pool(1)
    lease, other = take(keys), take(keys)
    lease.release()
    lease.release()
    assert keys.keys[0].in_flight == 1
    other.release()
    assert keys.keys[0].in_flight == 0


def test_a_lease_knows_its_provider_and_parks_its_own_model() -> None:
    keys = pool(1)
    lease = take(keys, "big")
    assert (lease.provider, lease.model) == ("lab", "big")
    lease.park(Verdict(Action.NEXT_KEY, park="model", cooldown=9), ErrorReason.RATE_LIMIT, 0)
    assert keys.outlook("big", 0) is not None
    assert keys.outlook("small", 0) is None
    lease.succeeded(9)
    assert lease.park(Verdict(Action.STOP), ErrorReason.FORBIDDEN, 0) is None


# Which key rests, for what, and how long.


@pytest.mark.parametrize(
    ("what", "siblings", "other_models"),
    [("model", True, False), ("key", True, True), ("disable", False, True)],
)
def test_who_rests_with_a_key(what: str, siblings: bool, other_models: bool) -> None:
    """A limit holds for the quota group, a refused key is only that one."""
    keys = pool(1, 1, group="org")
    parked = park(keys, what)
    assert parked is not None
    assert (parked.key.name, parked.model) == ("k1", "" if other_models else "m")
    assert (keys.lease("m", ("k1",), 0) is None) is siblings
    assert (keys.lease("other", ("k2",), 0) is None) is other_models


def test_a_key_comes_back_by_itself() -> None:
    keys = pool(1)
    park(keys, seconds=60, now=100)
    assert keys.lease("m", (), 159.9) is None
    assert keys.lease("m", (), 160) is not None


def test_verdicts_that_park_nothing_change_nothing() -> None:
    keys = pool(1)
    assert park(keys, "none") is None
    assert keys.outlook("m", 0) is None


def test_without_a_hint_rests_grow_by_refusals_in_a_row() -> None:
    keys = pool(1)
    now, seen = 0.0, []
    for _ in range(len(BACKOFF) + 2):
        parked = park(keys, seconds=None, now=now)
        assert parked is not None
        seen.append(parked.rest.until - now)
        now = parked.rest.until
    assert seen == [*BACKOFF, BACKOFF[-1], BACKOFF[-1]]
    keys.succeeded(keys.keys[0], "m", now)
    parked = park(keys, seconds=None, now=now)
    assert parked is not None
    assert (parked.rest.until - now, parked.rest.count) == (BACKOFF[0], 1)


def test_a_success_ends_no_rest_that_runs() -> None:
    """It may have been sent before the refusal."""
    keys = pool(1)
    park(keys, seconds=60)
    keys.succeeded(keys.keys[0], "m", 10)
    assert keys.lease("m", (), 10) is None


def test_a_disabled_key_without_a_hint_rests_its_own_time() -> None:
    parked = park(pool(1), "disable", None)
    assert parked is not None
    assert parked.rest.until == DISABLED_SECONDS == 300


def test_no_rest_is_longer_than_a_day() -> None:
    parked = park(pool(1), seconds=1e9, now=7)
    assert parked is not None
    assert parked.rest.until == 7 + MAX_COOLDOWN


def test_a_longer_rest_keeps_its_reason_and_counts_the_new_one() -> None:
    keys = pool(1)
    park(keys, seconds=3600, reason=ErrorReason.QUOTA_EXCEEDED)
    parked = park(keys, seconds=5, now=10)
    assert parked is not None
    rest = parked.rest
    assert (rest.until, rest.reason, rest.state) == (
        3600,
        ErrorReason.QUOTA_EXCEEDED,
        "exhausted",
    )
    assert rest.count == 2


def test_the_outlook_is_the_first_key_that_comes_back() -> None:
    keys = pool(1, 1)
    park(keys, seconds=60)
    assert keys.outlook("m", 0) is None
    park(keys, seconds=20, key=1)
    rest = keys.outlook("m", 0)
    assert rest is not None
    assert rest.until == 20


def test_of_several_rests_of_a_key_the_longest_holds() -> None:
    keys = pool(1)
    park(keys, "model", 60)
    park(keys, "key", 20)
    rest = keys.outlook("m", 0)
    assert rest is not None
    assert rest.until == 60


# What is told about the keys.


@pytest.mark.parametrize(
    ("what", "reason", "state"),
    [
        ("model", ErrorReason.RATE_LIMIT, "cooling"),
        ("model", ErrorReason.QUOTA_EXCEEDED, "exhausted"),
        ("key", ErrorReason.CREDIT, "exhausted"),
        ("disable", ErrorReason.AUTHENTICATION, "disabled"),
    ],
)
def test_the_state_of_a_key(what: str, reason: ErrorReason, state: str) -> None:
    keys = pool(1)
    park(keys, what, 30, reason=reason, now=100)
    (told,) = keys.states(110, 5_000_000)
    assert (told["state"], told["reason"], told["until"]) == (state, str(reason), 5_020_000)
    assert (told["provider"], told["name"], told["quota_group"]) == ("lab", "k1", "g1")
    (told,) = keys.states(130, 0)
    assert (told["state"], told["reason"], told["until"]) == ("healthy", None, None)


def test_a_key_is_as_ill_as_its_worst_model() -> None:
    keys = pool(1)
    take(keys)
    park(keys, seconds=900, model="a")
    park(keys, seconds=30, model="b", reason=ErrorReason.QUOTA_EXCEEDED)
    (told,) = keys.states(10, 1000)
    assert (told["state"], told["until"], told["in_flight"]) == ("exhausted", 21_000, 1)
    assert told["models"] == [
        {"model": "a", "state": "cooling", "reason": "rate_limit", "until": 891_000},
        {"model": "b", "state": "exhausted", "reason": "quota_exceeded", "until": 21_000},
    ]


def test_a_rest_for_all_models_names_none() -> None:
    keys = pool(1)
    park(keys, "key")
    (told,) = keys.states(0, 0)
    assert [each["model"] for each in told["models"]] == [None]


def test_questions_are_asked_with_a_key_that_rests_for_no_model() -> None:
    keys = pool(1, 1)
    park(keys, "model")
    assert keys.healthy(0) is keys.keys[0]
    park(keys, "disable")
    assert keys.healthy(0) is keys.keys[1]
    park(keys, "key", key=1)
    assert keys.healthy(0) is None


def test_a_key_does_not_show_its_secret() -> None:
    assert repr(Key("k1", "sk-secret", "g")) == "Key('k1', in_flight=0)"


class Pool(RuleBasedStateMachine):
    """Any interleaving of what requests do to a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = KeyPool(
            "lab",
            [Key("a", None, "one"), Key("b", None, "one", 2.5), Key("c", None, "two", 0.5)],
        )
        self.now = 0.0
        self.held: list[KeyLease] = []
        self.rests: dict[tuple[str, str, str], float] = {}

    def resting(self, key: Key, model: str) -> bool:
        """What was ordered, kept here in the simplest way."""
        places = [
            ("group", key.quota_group, model),
            ("group", key.quota_group, ""),
            ("key", key.name, ""),
        ]
        return any(self.rests.get(place, 0) > self.now for place in places)

    @rule(model=st.sampled_from("xy"), tried=st.sets(st.sampled_from("abc")))
    def lease(self, model: str, tried: set[str]) -> None:
        free = {
            key.name
            for key in self.keys.keys
            if key.name not in tried and not self.resting(key, model)
        }
        lease = self.keys.lease(model, tried, self.now)
        assert (lease is None) == (not free)
        if lease is not None:
            assert lease.key.name in free
            self.held.append(lease)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), twice=st.booleans())
    def release(self, data: st.DataObject, twice: bool) -> None:
        lease = data.draw(st.sampled_from(self.held))
        self.held.remove(lease)
        lease.release()
        if twice:
            lease.release()

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        what=st.sampled_from(["none", "model", "key", "disable"]),
        seconds=st.none() | st.floats(0, 1e6),
        reason=st.sampled_from([ErrorReason.RATE_LIMIT, ErrorReason.CREDIT]),
    )
    def park(
        self, data: st.DataObject, what: str, seconds: float | None, reason: ErrorReason
    ) -> None:
        lease = data.draw(st.sampled_from(self.held))
        verdict = Verdict(Action.NEXT_KEY, park=what, cooldown=seconds)  # type: ignore[arg-type]
        parked = lease.park(verdict, reason, self.now)
        assert (parked is None) == (what == "none")
        if parked is None:
            return
        place = ("group", lease.key.quota_group, lease.model if what == "model" else "")
        if what == "disable":
            place = ("key", lease.key.name, "")
        until = parked.rest.until
        assert until >= self.rests.get(place, 0)  # no deadline is ever shortened
        assert until <= self.now + MAX_COOLDOWN
        if seconds is not None:
            assert until >= self.now + min(seconds, MAX_COOLDOWN)
        self.rests[place] = until

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.held)).succeeded(self.now)

    @rule(seconds=st.floats(0.001, 400))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def what_is_held_is_in_flight(self) -> None:
        for key in self.keys.keys:
            assert key.in_flight == sum(1 for lease in self.held if lease.key is key)

    @invariant()
    def the_outlook_agrees_with_the_keys(self) -> None:
        for model in "xy":
            rest = self.keys.outlook(model, self.now)
            assert (rest is not None) == all(self.resting(k, model) for k in self.keys.keys)

    def teardown(self) -> None:
        for lease in self.held:
            lease.release()
        assert [key.in_flight for key in self.keys.keys] == [0, 0, 0]


Pool.TestCase.settings = settings(deadline=None)
TestAnyInterleaving = Pool.TestCase
