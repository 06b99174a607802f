"""A week of a gateway, under a clock of its own: what the parts of routing do together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Literal

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from proxy import learnt
from proxy.changes import BreakerRecord, CooldownRecord, LiftRecord
from proxy.errors import ErrorReason
from proxy.relay.verdict import judge
from proxy.routing.alias import Alias, Candidate
from proxy.routing.counters import Counters
from proxy.routing.events import Event
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.limits import DAY, MINUTE
from proxy.routing.rests import KEY_SECONDS
from proxy.routing.retries import RetryBudget
from proxy.store import breakers, rests
from proxy.store.tables import metadata
from proxy.store.usage import Used
from proxy.types import Demand, Fault, Target
from tests.routing.provider import (
    Ask,
    Bucket,
    Exactly,
    Manner,
    Midnight,
    Oracle,
    Quota,
    Upstream,
)
from tests.routing.simulation import HOUR, MODEL, WEEK, Clock, Gateway, allowances

OWNERS = {"a": "one", "b": "one", "c": "two"}
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0}
TUESDAY, THURSDAY = 1 * DAY, 3 * DAY
TPM = 6000
PAUSE = 5.0
"""Seconds that a restart takes; nobody is served meanwhile."""
RESTARTS = (1 * DAY + 10 * HOUR, 2 * DAY + 3 * HOUR, 4 * DAY + 12 * HOUR, 5 * DAY + 9.5 * HOUR)


class World(msgspec.Struct, frozen=True):
    """What a provider is like, and what the gateway was told of it.

    ``refused`` is the most 429s that may be seen, as a share of the calls that could be served.
    """

    manner: Manner
    rpm: int
    rpd: int
    configured: bool
    refused: float

    def truth(self) -> Quota:
        minute = (
            ("TPM", "tokens", Bucket(TPM, MINUTE)),
            ("RPM", "requests", Bucket(self.rpm, MINUTE)),
        )
        if self.manner == "gemini":
            return Quota([*minute, ("RPD", "requests", Midnight(self.rpd))])
        return Quota([*minute, ("RPD", "requests", Bucket(self.rpd, DAY))])

    def best(self) -> Quota:
        """What the best gateway could make use of: the truth, or what was configured."""
        if not self.configured:
            return self.truth()
        day = Midnight(self.rpd) if self.manner == "gemini" else Exactly(self.rpd, DAY)
        return Quota(
            [
                ("TPM", "tokens", Exactly(TPM, MINUTE)),
                ("RPM", "requests", Exactly(self.rpm, MINUTE)),
                ("RPD", "requests", day),
            ]
        )


WORLDS = {
    # What an answer will use is not known before it has come: a call now and then is one too many.
    # A day that slides goes on in steps of 24 minutes: what was used in this morning's rush comes
    # back that much later tomorrow, every day.
    "configured, refills steadily": World("silent", 10, 1500, True, 0.001),
    "configured, ends at midnight": World("gemini", 10, 1200, True, 0.001),
    "learnt from headers": World("groq", 30, 1200, False, 0.06),
    # Nothing tells of the limit a minute before it is reached, and then when the next one call
    # goes: every few calls find out that the minute is used up.
    "learnt from hints, ends at midnight": World("gemini", 10, 1200, False, 0.5),
    "learnt without any hint": World("silent", 10, 1200, False, 0.3),
}


class Memory:
    """The database: what events become, and what a restart reads of it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: list[learnt.Record] = []

    def heard(self, event: Event) -> None:
        self._records += learnt.records(event)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[AsyncConnection]:
        """All of it, written as the writer does."""
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
            each, now = self._records, self._clock.wall() * 1000
            lifted = [one for one in each if isinstance(one, LiftRecord)]
            parked = [one for one in each if isinstance(one, CooldownRecord) and one.until > now]
            await rests.save_cooldowns(
                connection, sorted([*lifted, *parked], key=lambda one: one.at)
            )
            await breakers.save(connection, [one for one in each if isinstance(one, BreakerRecord)])
            yield connection
        await engine.dispose()


def rate(now: float) -> float:
    """Requests a second: a rush in the morning, and little else."""
    return 0.45 if 9 * HOUR <= now % DAY < 11 * HOUR else 1.5 / 60


class Week:
    """A gateway, its provider and its clients for a week."""

    def __init__(self, world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.random = Random(seed)
        self.clock = Clock()
        self.pausing = False
        quotas = {group: world.truth() for group in ("one", "two")}
        self.upstream = Upstream(world.manner, OWNERS, quotas)
        self.upstream.dead["b"] = TUESDAY, THURSDAY
        self.outages = list(self._outages())
        self.upstream.down = list(self.outages)
        self.memory = Memory(self.clock)
        configured = (
            allowances(("one", "two"), world.rpm, world.rpd, TPM) if world.configured else None
        )
        self.gateway = Gateway(
            self.clock, self.upstream, keys, allowances=configured, heard=self.memory.heard
        )
        if world.configured and world.manner == "gemini":
            self.gateway.known.daily({"one": world.rpd, "two": world.rpd})
        self.oracle = Oracle(self.upstream, [("a", world.best()), ("c", world.best())])
        monkeypatch.setattr(learnt, "monotonic", lambda: self.clock.now)
        monkeypatch.setattr(learnt, "now_ms", lambda: round(self.clock.wall() * 1000))
        monkeypatch.setattr(learnt, "used", self._used)

    async def run(self) -> None:
        self.clock.start(self._clients())
        for at in RESTARTS:
            self.clock.run(at)
            self.pausing = True
            self.clock.run(at + PAUSE)
            pool = self.gateway.restart()
            async with self.memory.opened() as connection:
                await learnt.restore(connection, {"lab": pool})
            self.pausing = False
        self.clock.run()

    def _outages(self) -> Generator[tuple[float, float]]:
        """From Monday noon on, four or so a day, for some minutes each."""
        now = DAY / 2
        while (now := now + HOUR + self.random.expovariate(1 / (5 * HOUR))) < WEEK - 3 * HOUR:
            yield now, now + self.random.uniform(60, 480)

    def _clients(self) -> Generator[float]:
        random, clock = self.random, self.clock
        burst = DAY / 4
        while clock.now < WEEK:
            yield random.expovariate(rate(clock.now))
            self._ask()
            if clock.now > burst:
                burst = clock.now + random.expovariate(1 / (3 * HOUR))
                for _ in range(40):
                    self._ask()

    def _ask(self) -> None:
        ask = Ask(int(self.random.uniform(100, 500)), int(self.random.uniform(50, 350)))
        if not self.pausing:
            self.oracle.asked(ask, self.clock.now)
            self.clock.start(self.gateway.serve(ask))

    async def _used(self, connection: AsyncConnection, seconds: int, at: int) -> Sequence[Used]:
        return self.gateway.used(seconds, 1.0 if seconds == MINUTE else 60.0)


def keys() -> list[Key]:
    return [Key(name, f"sk-{name}", group, WEIGHTS[name]) for name, group in OWNERS.items()]


@pytest.mark.parametrize("name", WORLDS)
async def test_in_a_week_what_is_allowed_is_used_and_hardly_anything_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every single call is checked too, by ``Known.check``: none goes to a key that is out."""
    week = Week(WORLDS[name], 1, monkeypatch)
    await week.run()
    figures, world = week.gateway.figures, week.world
    used, refused = figures.served / week.oracle.served, figures.statuses[429] / week.oracle.served
    told = f"{figures}; {week.oracle.served} could be served: {used:.1%}; refused {refused:.1%}"
    assert used >= 0.95, told
    assert refused <= world.refused, told
    if world.manner == "gemini":
        for number in (0, 3, 4, 5, 6):  # a dead key's refusals are counted as uses of its group
            served = _served(week, number * DAY, (number + 1) * DAY)
            assert served.total() >= 0.95 * 2 * world.rpd, f"day {number}: {served}; {told}"
    _shares_are_fair(week)
    _no_key_is_lost(week)
    _outages_cost_little(week)
    pool = week.gateway.pool
    assert [key.in_flight for key in pool.keys] == [0, 0, 0]
    assert pool.health.busy(MODEL) == 0


def _served(week: Week, since: float, until: float) -> Counter[str]:
    return Counter(
        {
            key: sum(since <= at < until for at in times)
            for key, times in week.gateway.figures.served_at.items()
        }
    )


def _shares_are_fair(week: Week) -> None:
    """While all are well and nothing is used up: before the first rush."""
    served = _served(week, 0, 6 * HOUR)
    for key, weight in WEIGHTS.items():
        share = served.total() * weight / sum(WEIGHTS.values())
        assert abs(served[key] - share) <= 0.05 * share, f"shares by weight: {served}"


def _no_key_is_lost(week: Week) -> None:
    """The one that was refused for two days is back, and all serve on the last day."""
    times = week.gateway.figures.served_at
    back = next(at for at in times["b"] if at >= THURSDAY)
    others = sum(THURSDAY + KEY_SECONDS <= at < back for at in times["a"])
    told = f"{others} calls went to the other key of its group in {back - THURSDAY:.0f} s"
    assert others <= 3, f"{told}, before the repaired key was asked"
    refused = week.gateway.figures.statuses[401]
    tries = (THURSDAY - TUESDAY) / KEY_SECONDS
    # In a burst some ask it together.
    assert refused <= 1.2 * tries, f"a dead key was asked {refused} times"
    served = _served(week, 6 * DAY, WEEK)
    assert min(served[key] for key in OWNERS) > 100, f"on the last day: {served}"


def _outages_cost_little(week: Week) -> None:
    """Some failures, then single probes, each after twice the time; and after it, no more."""
    failed, opened = week.gateway.figures.failed_at, week.gateway.known.opened
    for begins, ends in week.outages:
        turns = [turn for turn in opened if begins <= turn[0] <= ends + 1]
        calls = [call for call in failed if begins <= call[0] < ends]
        if not turns:
            assert len(calls) < 5
            continue
        probes = sum(probe for _, probe in calls)
        told = f"{len(calls)} calls ({probes} probes) in an outage of {ends - begins:.0f} s"
        assert probes <= math.log2((ends - begins) / 10 + 1) + 1, told
        assert all(probe for at, probe in calls if at > turns[0][0]), told
        assert len(calls) - probes <= 5 + 5, told  # some were under way together
        for at, until in turns:
            assert until - at <= at - begins + 10.1, "it was open for longer than it was down"
    for at, until in opened:
        assert any(begins <= at <= ends + 1 for begins, ends in week.outages), (at, until)
    shut = week.gateway.figures.shut_at
    late = [at for at in shut if not any(turn <= at < until for turn, until in opened)]
    assert not late, f"still open after its time: {late}"


@pytest.mark.parametrize("strategy", ["weighted", "least_busy", "round_robin"])
@pytest.mark.parametrize("often", [0.05, 100])
def test_healthy_keys_share_by_weight(
    strategy: Literal["weighted", "least_busy", "round_robin"], often: float
) -> None:
    """With few requests a second, and with many. In between, where a call or two are under way
    with each key, the least busy are not those that their weights say."""
    clock, random, requests = Clock(), Random(2), 3000
    upstream = Upstream("silent", OWNERS, {"one": Quota([]), "two": Quota([])})
    gateway = Gateway(clock, upstream, keys, strategy=strategy)

    def clients() -> Generator[float]:
        for _ in range(requests):
            clock.start(gateway.serve(Ask(10, 10)))
            yield random.expovariate(often)

    clock.start(clients())
    clock.run()
    taken = {key: len(times) for key, times in gateway.figures.served_at.items()}
    for key, weight in WEIGHTS.items():
        share = requests / 3 if strategy == "round_robin" else requests * weight / 4
        assert abs(taken[key] - share) <= 0.05 * share, f"{strategy}: {taken}"


def storm(budget: RetryBudget, retry_after: float | None, seconds: int = 60) -> tuple[int, int]:
    """Requests, and calls to upstreams, while 200 requests a second come and three providers with
    three keys each answer nothing but 429."""
    pools = {
        name: KeyPool(name, keys(), Counters(None, lambda: 0.0), chance=lambda: 1.0)
        for name in ("x", "y", "z")
    }
    targets = [Candidate(Target(name, MODEL)) for name in pools]
    alias = Alias(targets, "round_robin", pools=pools)
    fault = Fault(ErrorReason.RATE_LIMIT, "slow down", 429, retry_after=retry_after)
    calls = 0
    for number in range(seconds * 200):
        now = number / 200
        budget.request(now)
        calls += _tries(alias, pools, budget, fault, now)
    return seconds * 200, calls


def _tries(
    alias: Alias, pools: dict[str, KeyPool], budget: RetryBudget, fault: Fault, now: float
) -> int:
    calls = 0
    for target in alias.order(Demand(), now):
        tried: set[str] = set()
        while (lease := pools[target.provider].lease(MODEL, now, tried=tried)) is not None:
            if calls and not budget.spend(now):
                lease.release(sent=False)
                return calls
            calls += 1
            tried.add(lease.key.name)
            lease.failed(judge(fault), fault.reason, now)
            lease.release()
    return calls


def test_a_retry_budget_stops_a_storm() -> None:
    """The providers want to be asked again in a millisecond: nothing but the budget holds."""
    requests, calls = storm(RetryBudget(), 0.001)
    assert requests <= calls <= 1.2 * requests, f"{calls} calls for {requests} requests"
    requests, calls = storm(RetryBudget(ratio=9.0), 0.001, seconds=2)
    assert calls == 6 * requests, "without a budget every group is asked"


def test_rests_stop_a_storm_long_before_the_budget() -> None:
    requests, calls = storm(RetryBudget(), None)
    assert calls <= 30, f"{calls} calls for {requests} requests"


SECONDS = {"x": 0.03, "y": 0.12, "z": 0.4}
"""To the first token, more or less."""


def answered(strategy: Literal["lowest_latency", "round_robin"], *, by_key: bool) -> float:
    """The mean time to first token of twenty requests a second for two minutes, over three keys
    of one provider or three providers with a key each."""
    clock, random, took = Clock(), Random(3), []

    def pool(*names: str) -> KeyPool:
        found = KeyPool("lab", (), Counters(None, clock.wall), chance=random.random)
        found.configure([Key(name, "s", name) for name in names], strategy)
        return found

    pools = {"lab": pool(*SECONDS)} if by_key else {name: pool(name) for name in SECONDS}
    targets = [Candidate(Target(name, MODEL)) for name in pools]
    alias = Alias(targets, strategy, pools=pools, chance=random.random)

    def call() -> Generator[float]:
        target = alias.order(Demand(), clock.now)[0]
        lease = pools[target.provider].lease(MODEL, clock.now)
        assert lease is not None
        seconds = SECONDS[lease.key.name] * random.lognormvariate(0, 0.2)
        yield seconds
        took.append(seconds)
        lease.succeeded(clock.now, seconds)
        lease.release()

    def clients() -> Generator[float]:
        while clock.now < 120:
            clock.start(call())
            yield random.expovariate(20)

    clock.start(clients())
    clock.run()
    return sum(took) / len(took)


@pytest.mark.parametrize("by_key", [False, True])
def test_the_lowest_latency_beats_taking_turns(by_key: bool) -> None:
    chosen = answered("lowest_latency", by_key=by_key)
    turns = answered("round_robin", by_key=by_key)
    told = f"mean time to first token: {chosen * 1000:.0f} ms, and {turns * 1000:.0f} ms in turn"
    assert chosen < 0.5 * turns, told
