"""Any interleaving of what requests, operators, reloads and other gateways do to a pool."""

from __future__ import annotations

from collections import defaultdict
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from proxy.errors import ErrorReason
from proxy.routing.breaker import BreakerRules
from proxy.routing.counters import Allowance, Allowances, Counters, Owner
from proxy.routing.events import Event, Lifted, Parked
from proxy.routing.key import Key
from proxy.routing.keypool import KeyLease, KeyPool, KeyStrategy
from proxy.routing.limits import MINUTE, Limit, Slots
from proxy.routing.obstacles import key_obstacle, target_obstacle
from proxy.routing.rests import Place, Rest, places
from proxy.types import Action, Verdict

LONGEST = 1000.0
RULES = BreakerRules(failures=2, open_for=10, longest=40)
MODELS = ("x", "y:free")
STRATEGIES: tuple[KeyStrategy, ...] = (
    "fallback",
    "weighted",
    "round_robin",
    "least_busy",
    "lowest_latency",
    "sticky",
)
ALLOWANCES = (
    Allowances(),
    Allowances(
        keys={"a": Allowance((Limit("requests", 2, MINUTE),))},
        groups={"two": Allowance((Limit("tokens", 20, MINUTE),), 1)},
        models={"x": Allowance((Limit("requests", 3, MINUTE),), 2)},
    ),
    Allowances(
        keys={"a": Allowance((Limit("requests", 1, MINUTE),), 3)},
        models={"*": Allowance((Limit("requests", 2, MINUTE),))},
    ),
)
ALL = [("a", "one", "s"), ("b", "one", "s"), ("c", "two", "s"), ("d", "three", "s")]

seconds = st.integers(0, 1600).map(lambda sixteenths: sixteenths / 4)
verdicts = st.one_of(
    st.builds(Verdict, st.just(Action.NEXT_KEY), failure=st.booleans()),
    st.builds(
        Verdict,
        st.just(Action.NEXT_KEY),
        rests=st.just("group"),
        covers=st.sampled_from([None, "", "*:free"]),
        cooldown=st.none() | seconds | st.just(1e9),
        probe_after=st.sampled_from([None, 5.0, 10.0]),
        failure=st.booleans(),
    ),
    st.builds(
        Verdict,
        st.just(Action.NEXT_KEY),
        rests=st.just("key"),
        covers=st.just(""),
        cooldown=st.none() | seconds,
    ),
    st.builds(Verdict, st.just(Action.NEXT_KEY), rests=st.just("target"), cooldown=seconds),
)
configured = st.fixed_dictionaries(
    {
        name: st.none() | st.tuples(st.just(group) | st.just("two"), st.sampled_from("ss+"))
        for name, group, _ in ALL
    }
)


class Interleaved(RuleBasedStateMachine):
    """Beside the pool it keeps, in the simplest way, what was ordered and what was done."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.held: list[KeyLease] = []
        self.seen: dict[int, Key] = {}
        self.slots: dict[int, Slots] = {}
        self.rests: dict[Place, float] = {}
        self.calls: defaultdict[Owner, list[float]] = defaultdict(list)
        self.owners: dict[int, list[Owner]] = {}  # of the limits that a lease counted for
        self.allowances = ALLOWANCES[0]
        self.pool = KeyPool(
            "lab",
            (),
            Counters(None, lambda: self.now),
            chance=Random(1).random,
            changed=self.changed,
        )

    def changed(self, event: Event) -> None:
        if isinstance(event, Lifted):
            for place in event.places:
                self.rests.pop(place, None)
        elif isinstance(event, Parked):
            self.rest(event.place, event.rest.until)

    def rest(self, place: Place, until: float) -> None:
        assert until <= self.now + LONGEST
        if self.resting(place):
            assert until >= self.rests[place]  # no deadline is ever shortened
        self.rests[place] = until

    def resting(self, place: Place) -> bool:
        return self.rests.get(place, 0) > self.now

    def requests(self, key: Key, model: str) -> list[tuple[Owner, int]]:
        """The owners of limits of requests that hold for a call, and how many each may make."""
        owners = [(key.name, key.quota_group, ""), ("", key.quota_group, model)]
        return [
            (owner, limit.amount)
            for owner in owners
            if (allowance := self.allowance(owner)) is not None
            for limit in allowance.limits
        ]

    @initialize(allowances=st.sampled_from(ALLOWANCES), strategy=st.sampled_from(STRATEGIES))
    def begin(self, allowances: Allowances, strategy: KeyStrategy) -> None:
        self.load({name: (group, secret) for name, group, secret in ALL}, allowances, strategy)

    @rule(data=st.data(), calls=st.integers(2, 6), sent=st.booleans())
    def burst(self, data: st.DataObject, calls: int, sent: bool) -> None:
        """Calls to one model with any key, of which one ends at once."""
        model = data.draw(st.sampled_from(MODELS))
        for _ in range(calls):
            self.lease(model, set(), 3, None)
        if self.held:
            if sent:
                self.release(data, 3, False)
            else:
                self.cancel(data)
            self.lease(model, set(), 3, None)

    @rule(
        keys=configured,
        allowances=st.sampled_from(ALLOWANCES),
        strategy=st.sampled_from(STRATEGIES),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
    )
    def load(
        self,
        keys: dict[str, tuple[str, str] | None],
        allowances: Allowances,
        strategy: KeyStrategy,
        weight: float = 1.0,
    ) -> None:
        used = [
            Key(name, each[1], each[0], weight if name == "a" else 1.0)
            for name, each in keys.items()
            if each is not None
        ]
        self.pool.configure(used, strategy, RULES, LONGEST)
        self.pool.counters.configure(allowances)
        self.allowances = allowances
        self.seen |= {id(key): key for key in self.pool.keys}
        for owner in list(self.calls):  # a limit that is gone has forgotten what was used
            if self.allowance(owner) is None:
                del self.calls[owner]

    def allowance(self, owner: Owner) -> Allowance | None:
        key, _, model = owner
        models = self.allowances.models
        return self.allowances.keys.get(key) if key else models.get(model, models.get("*"))

    @rule(
        model=st.sampled_from(MODELS),
        tried=st.sets(st.sampled_from("abcd"), max_size=2),
        tokens=st.integers(0, 12),
        session=st.none() | st.sampled_from(["s1", "s2"]),
    )
    def lease(self, model: str, tried: set[str], tokens: int, session: str | None) -> None:
        pool, now = self.pool, self.now
        opens = {place: rest.opens for place, rest in pool.rests.current(now)}
        shut = target_obstacle(pool, model, now)
        lease = pool.lease(model, now, tried=tried, tokens=tokens, session=session, stream=True)
        if lease is None:
            free = [key for key in pool.keys if key.name not in tried]
            assert shut or all(key_obstacle(pool, key, model, now, tokens) for key in free)
            return
        key = lease.key
        assert shut is None
        assert not self.resting(("target", "", model))
        assert any(key is each for each in pool.keys)
        assert not key.disabled
        assert key.name not in tried
        for place in places(key.name, key.quota_group, model):
            if self.resting(place):
                assert lease.lifts
                assert opens[place] <= now
                assert pool.rests.wait(key.name, key.quota_group, model, now) > 0  # only this one
        for owner, amount in self.requests(key, model):
            calls = self.calls[owner]
            assert len([moment for moment in calls if moment > now - MINUTE]) < amount
            calls.append(now)
        self.owners[id(lease)] = [owner for owner, _ in self.requests(key, model)]
        if lease.probe:
            assert not [each for each in self.held if each.probe and each.model == model]
        self.slots |= {id(each): each for each in lease.counters if isinstance(each, Slots)}
        self.held.append(lease)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), used=st.none() | st.integers(0, 30), twice=st.booleans())
    def release(self, data: st.DataObject, used: int | None, twice: bool) -> None:
        lease = self.pick(data)
        self.held.remove(lease)
        lease.used = used
        lease.release()
        if twice:
            lease.release(sent=False)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        lease = self.pick(data)
        self.held.remove(lease)
        lease.release(sent=False)
        for owner in self.owners[id(lease)]:  # its key may be in another group by now
            if lease.taken in self.calls[owner]:
                self.calls[owner].remove(lease.taken)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), verdict=verdicts)
    def fail(self, data: st.DataObject, verdict: Verdict) -> None:
        parked = self.pick(data).failed(verdict, ErrorReason.RATE_LIMIT, self.now)
        assert (parked is None) == (verdict.rests == "none")
        if parked is not None and verdict.cooldown is not None:
            assert parked.rest.until >= self.now + min(verdict.cooldown, LONGEST)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        self.pick(data).succeeded(self.now, 0.5)

    @rule(
        place=st.sampled_from([("group", "one", "x"), ("key", "d", ""), ("target", "", "x")]),
        ends=seconds,
    )
    def hear_of_a_rest(self, place: Place, ends: float) -> None:
        rest = Rest(self.now + ends, ErrorReason.RATE_LIMIT, 1, "cooling")
        self.rest(place, self.pool.rests.keep(place, rest, self.now).until)

    @rule(model=st.sampled_from(MODELS))
    def hear_of_a_breaker(self, model: str) -> None:
        self.pool.health.breaker(model).restore("open", self.now + 20, 1)

    @rule(passed=st.sampled_from([0.25, 1.0, 5.0, 10.0, 30.0, 61.0, 300.0]))
    def wait(self, passed: float) -> None:
        self.now += passed

    @rule(name=st.sampled_from("abcd"))
    def reset(self, name: str) -> None:
        key = self.pool.key(name)
        if key is not None:
            self.pool.reset(key)
            assert self.pool.rests.of(name, key.quota_group, "x", self.now) is None

    @rule(name=st.sampled_from("abcd"), disabled=st.booleans())
    def switch(self, name: str, disabled: bool) -> None:
        key = self.pool.switch(name, disabled=disabled)
        assert key is None or key.disabled is disabled

    def pick(self, data: st.DataObject) -> KeyLease:
        return data.draw(st.sampled_from(self.held))

    @invariant()
    def what_is_held_is_in_flight_and_nothing_else(self) -> None:
        for key in self.seen.values():
            assert key.in_flight == sum(lease.key is key for lease in self.held)
        for model in MODELS:
            held = sum(lease.model == model for lease in self.held)
            assert self.pool.health.busy(model) == held
        for slots in self.slots.values():
            assert slots.used == sum(slots in lease.counters for lease in self.held)
        for _, window in self.pool.counters.windows():
            assert window.used >= 0

    def teardown(self) -> None:
        """Every key comes back in the end."""
        for lease in self.held:
            lease.release()
        self.held.clear()
        self.what_is_held_is_in_flight_and_nothing_else()
        self.load({name: (group, secret) for name, group, secret in ALL}, ALLOWANCES[1], "sticky")
        self.now += LONGEST + 1
        for name in "abcd":
            self.pool.switch(name, disabled=False)
            for model in MODELS:
                others = set("abcd") - {name}
                lease = self.pool.lease(model, self.now, tried=others, tokens=5)
                assert lease is not None
                lease.succeeded(self.now)
                lease.release()
                self.now += MINUTE / 2


@pytest.mark.timeout(300)  # a failure takes long to be made small
def test_any_interleaving_leaves_nothing_behind() -> None:
    run_state_machine_as_test(
        Interleaved, settings=settings(deadline=None, max_examples=60, stateful_step_count=60)
    )
