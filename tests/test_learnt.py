from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import learnt
from proxy.changes import BreakerRecord, CooldownRecord, CountRecord, LiftRecord, SwitchRecord
from proxy.errors import ErrorReason
from proxy.learnt import Counts, counted, records, restore, told
from proxy.routing.breaker import BreakerRules, Transition
from proxy.routing.counters import Allowance, Allowances, Counters
from proxy.routing.events import Event, Lifted, Parked, Switched
from proxy.routing.health import Turned
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.limits import DAY, MINUTE, Limit
from proxy.routing.rests import Place, Rest, state_of
from proxy.store.engine import Store
from proxy.types import Action, Verdict
from tests.gateway import migrated
from tests.store.rows import call

NOON = 1_795_176_000_000  # 2026-11-20 12:00 UTC
KEY = Key("k1", "sk-1", "org")
RATE, QUOTA = ErrorReason.RATE_LIMIT, ErrorReason.QUOTA_EXCEEDED


class Clock:
    """Both clocks: ``now`` monotonic seconds, ``at`` UTC milliseconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.at = NOON

    def move(self, seconds: float) -> None:
        self.now += seconds
        self.at += round(seconds * 1000)

    def restart(self) -> None:
        """The monotonic clock of another process begins anywhere."""
        self.now = 7.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(learnt, "monotonic", lambda: clock.now)
    monkeypatch.setattr(learnt, "now_ms", lambda: clock.at)
    return clock


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    path = shutil.copy(await migrated(), tmp_path / "t.db")
    store = Store(f"sqlite+aiosqlite:///{path}")
    await store.open()
    yield store
    await store.close()


class World:
    """Pools as one process has them, and what they tell."""

    def __init__(
        self,
        clock: Clock,
        *names: str,
        keys: Sequence[Key] = (),
        allowances: Allowances | None = None,
        day: tzinfo | None = None,
    ) -> None:
        self.events: list[Event] = []
        self.pools = {
            name: KeyPool(
                name,
                [Key(key.name, key.secret, key.quota_group) for key in keys or (KEY,)],
                Counters(day, lambda: clock.at / 1000),
                chance=lambda: 0.5,
                changed=self.events.append,
            )
            for name in names or ("lab",)
        }
        for pool in self.pools.values():
            pool.counters.configure(allowances or Allowances())
        self.pool = next(iter(self.pools.values()))

    def records(self) -> list[Any]:
        return [record for event in self.events for record in records(event)]

    async def restored(self, store: Store) -> World:
        async with store.reader() as connection:
            await restore(connection, self.pools)
        return self

    def used(self) -> dict[tuple[tuple[str, str, str], str], int]:
        """What the windows have counted, by owner and kind."""
        windows = self.pool.counters.windows()
        return {(owner, window.limit.type): window.used for owner, window in windows}


def parked(
    place: Place = ("group", "org", "big"),
    until: float = 1060.0,
    reason: ErrorReason = RATE,
    count: int = 1,
    probe_at: float | None = None,
) -> Parked:
    rest = Rest(until, reason, count, state_of(place, reason), probe_at)
    return Parked("lab", KEY, place, rest, "header")


def turned(before: Any, after: Any, reason: str, until: float | None, openings: int) -> Turned:
    return Turned("lab", "big", Transition(before, after, reason, until, openings))


# What is told.


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (parked(), "key k1 was refused; quota group org rests for 60 s (rate_limit, big)"),
        (
            parked(("group", "org", ""), reason=QUOTA),
            "key k1 was refused; quota group org rests for 60 s (quota_exceeded)",
        ),
        (
            parked(("group", "org", "*:free")),
            "key k1 was refused; quota group org rests for 60 s (rate_limit, *:free)",
        ),
        (
            parked(("key", "k1", ""), 1300.4, ErrorReason.AUTHENTICATION),
            "key k1 was refused; key k1 rests for 300 s (authentication)",
        ),
        (
            parked(("target", "", "big"), 1010.0, ErrorReason.OVERLOADED),
            "key k1 was refused; it rests for 10 s (overloaded, big)",
        ),
        (Lifted("lab", [("key", "k1", "")]), "k1 rests no more"),
        (
            Lifted("lab", [("group", "org", "big"), ("group", "org", ""), ("target", "", "big")]),
            "org, all keys rests no more",
        ),
        (Switched("lab", Key("k1", "sk-1", "org", disabled=True)), "key k1 was disabled"),
        (Switched("lab", KEY), "key k1 was enabled"),
    ],
)
def test_an_event_is_told_in_one_line(clock: Clock, event: Event, line: str) -> None:
    assert told(event) == f"lab: {line}"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (turned("closed", "open", "timeout", 1010.0, 1), "the breaker is open (timeout)"),
        (turned("open", "half_open", "elapsed", None, 1), "the breaker is half-open (elapsed)"),
        (turned("half_open", "closed", "recovered", None, 0), "the breaker is closed (recovered)"),
    ],
)
def test_a_turn_of_a_breaker_is_told_with_its_model(clock: Clock, event: Turned, line: str) -> None:
    assert told(event) == f"lab/big: {line}"


def test_no_line_shows_the_key_itself(clock: Clock) -> None:
    for event in (parked(), Switched("lab", KEY)):
        assert "sk-1" not in told(event)


# The rows that follow.


@pytest.mark.parametrize(
    ("place", "model", "key_id", "account"),
    [
        (("group", "org", "big"), "big", "k1", "org"),
        (("group", "org", ""), "", "k1", "org"),
        (("group", "org", "*:free"), "*:free", "k1", "org"),
        (("key", "k1", ""), "", "k1", ""),
        (("target", "", "big"), "big", "", ""),
    ],
)
def test_a_rest_becomes_a_row_of_its_owner(
    clock: Clock, place: Place, model: str, key_id: str, account: str
) -> None:
    assert list(records(parked(place, count=2, probe_at=1030.0))) == [
        CooldownRecord(
            provider="lab",
            model=model,
            key_id=key_id,
            account=account,
            until=NOON + 60_000,
            reason="rate_limit",
            backoff_count=2,
            at=NOON,
            source="header",
            probe_at=NOON + 30_000,
        )
    ]


def test_a_lift_becomes_a_row_for_each_place(clock: Clock) -> None:
    places: list[Place] = [("group", "org", "big"), ("key", "k1", ""), ("target", "", "big")]
    assert list(records(Lifted("lab", places))) == [
        LiftRecord("lab", "big", "", "org", NOON),
        LiftRecord("lab", "", "k1", "", NOON),
        LiftRecord("lab", "big", "", "", NOON),
    ]


@pytest.mark.parametrize("disabled", [True, False])
def test_a_switch_becomes_a_row(clock: Clock, disabled: bool) -> None:
    event = Switched("lab", Key("k1", "sk-1", "org", disabled=disabled))
    assert list(records(event)) == [SwitchRecord("lab", "k1", "org", disabled, NOON)]


def test_a_turn_of_a_breaker_becomes_a_row(clock: Clock) -> None:
    assert list(records(turned("closed", "open", "timeout", 1010.0, 3))) == [
        BreakerRecord("lab", "big", "closed", "open", "timeout", NOON + 10_000, 3, NOON)
    ]
    [closed] = records(turned("half_open", "closed", "recovered", None, 0))
    assert isinstance(closed, BreakerRecord)
    assert (closed.to_state, closed.until, closed.openings) == ("closed", None, 0)


PLACES: st.SearchStrategy[Place] = st.one_of(
    st.tuples(st.just("group"), st.sampled_from(["org", "none"]), st.sampled_from(["", "*:free"])),
    st.tuples(st.just("group"), st.text(min_size=1), st.text()),
    st.tuples(st.just("key"), st.text(min_size=1), st.just("")),
    st.tuples(st.just("target"), st.just(""), st.text(min_size=1)),
)  # type: ignore[assignment]


@given(
    place=PLACES,
    seconds=st.floats(0.001, 86_400),
    ago=st.floats(0, 86_400),
    probe=st.none() | st.floats(0.001, 86_400),
    count=st.integers(1, 99),
    reason=st.sampled_from(ErrorReason),
)
def test_no_rest_is_shortened_on_its_way_through_a_row(
    place: Place,
    seconds: float,
    ago: float,
    probe: float | None,
    count: int,
    reason: ErrorReason,
) -> None:
    event = parked(place, 500.0 + seconds, reason, count, None if probe is None else 500.0 + probe)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(learnt, "monotonic", lambda: 500.0)
        patched.setattr(learnt, "now_ms", lambda: NOON)
        owner = Key(place[1], "s", "org") if place[0] == "key" else KEY
        [record] = records(Parked("lab", owner, place, event.rest, "body"))
    assert isinstance(record, CooldownRecord)
    again, rest = learnt._rest(record, 7.0, NOON + round(ago * 1000))
    assert again == place
    assert (rest.count, rest.reason, rest.state) == (count, reason, state_of(place, reason))
    millisecond = 0.0011
    assert rest.until - 7.0 == pytest.approx(seconds - ago, abs=millisecond)
    if probe is None:
        assert rest.probe_at is None
    else:
        assert rest.probe_at == pytest.approx(7.0 + probe - ago, abs=millisecond)
        assert rest.probe_wait >= 1


# The counts of limits.


def limited(**amounts: int) -> Allowance:
    known = {
        "rpm": ("requests", MINUTE),
        "rpd": ("requests", DAY),
        "tpm": ("tokens", MINUTE),
        "tpd": ("tokens", DAY),
    }
    limits = [
        Limit(known[name][0], amount, known[name][1])  # type: ignore[arg-type]
        for name, amount in amounts.items()
        if name in known
    ]
    return Allowance(tuple(limits), amounts.get("concurrency"))


def test_counts_are_told_when_they_have_changed(clock: Clock) -> None:
    allowances = Allowances(
        keys={"k1": limited(rpm=10)}, models={"*": limited(tpd=1000, concurrency=2)}
    )
    world, counts = World(clock, allowances=allowances), Counts()
    pools = [world.pool]
    assert list(counts.news(counted(pools))) == []
    lease = world.pool.lease("big", clock.now, tokens=30)
    assert lease is not None
    requests, tokens, slots = counts.news(counted(pools))
    assert requests == CountRecord(
        provider="lab",
        model="",
        key_id="k1",
        account="org",
        limit_type="requests_minute",
        limit=10,
        used=1,
        window_seconds=60,
        reset=NOON + 61_000,
        at=NOON,
    )
    assert (tokens.limit_type, tokens.used, tokens.limit) == ("tokens_day", 30, 1000)
    assert (tokens.key_id, tokens.account, tokens.model) == ("", "org", "big")
    assert (slots.limit_type, slots.used, slots.limit) == ("concurrent", 1, 2)
    assert (slots.window_seconds, slots.reset) == (None, None)
    assert list(counts.news(counted(pools))) == []
    lease.used = 45
    lease.release()
    assert [(each.limit_type, each.used) for each in counts.news(counted(pools))] == [
        ("tokens_day", 45),
        ("concurrent", 0),
    ]
    clock.move(70)
    [gone] = counts.news(counted(pools))
    assert (gone.limit_type, gone.used, gone.reset) == ("requests_minute", 0, None)


def test_a_limit_that_was_changed_is_news(clock: Clock) -> None:
    world, counts = World(clock, allowances=Allowances(keys={"k1": limited(rpm=10)})), Counts()
    assert world.pool.lease("big", clock.now)
    assert [each.limit for each in counts.news(counted([world.pool]))] == [10]
    world.pool.counters.configure(Allowances(keys={"k1": limited(rpm=20)}))
    assert world.pool.lease("big", clock.now)
    assert [(each.limit, each.used) for each in counts.news(counted([world.pool]))] == [(20, 2)]


def test_counts_of_models_that_are_forgotten_are_forgotten(clock: Clock) -> None:
    allowances, counts = Allowances(models={"*": limited(rpm=10)}), Counts()
    for model in ("big", "small"):
        world = World(clock, allowances=allowances)
        assert world.pool.lease(model, clock.now)
        assert [each.model for each in counts.news(counted([world.pool]))] == [model]
    assert len(counts._told) == 1


# A restart.


@pytest.mark.parametrize(
    "place",
    [
        ("group", "org", "big"),
        ("group", "org", ""),
        ("group", "org", "*:free"),
        ("key", "k1", ""),
        ("target", "", "big"),
    ],
)
async def test_a_rest_goes_on_after_a_restart(clock: Clock, store: Store, place: Place) -> None:
    await store.write(list(records(parked(place, 1060.0, QUOTA, 3, 1020.0))))
    clock.move(25.5)
    clock.restart()
    world = await World(clock).restored(store)
    [(kept, rest)] = world.pool.rests.current(clock.now)
    assert kept == place
    assert rest.until == pytest.approx(clock.now + 34.5)
    assert (rest.reason, rest.count, rest.state) == (QUOTA, 3, state_of(place, QUOTA))
    assert rest.probe_at == pytest.approx(clock.now - 5.5)
    assert rest.probe_wait == pytest.approx(20.0)


async def test_a_rest_that_is_over_does_not_come_back(clock: Clock, store: Store) -> None:
    await store.write(list(records(parked())))
    clock.move(60)
    world = await World(clock).restored(store)
    assert world.pool.rests.places == []


async def test_a_rest_that_was_lifted_does_not_come_back(clock: Clock, store: Store) -> None:
    world = World(clock)
    verdict = Verdict(Action.NEXT_KEY, rests="group", cooldown=600)
    world.pool.park(world.pool.keys[0], "big", verdict, RATE, clock.now)
    world.pool.reset(world.pool.keys[0])
    await store.write(world.records())
    assert (await World(clock).restored(store)).pool.rests.places == []


async def test_of_one_group_the_longest_rest_comes_back(clock: Clock, store: Store) -> None:
    keys = [Key("k1", "sk-1", "org"), Key("k2", "sk-2", "org")]
    world = World(clock, keys=keys)
    for key, seconds in zip(world.pool.keys, (10, 300), strict=True):
        verdict = Verdict(Action.NEXT_KEY, rests="group", cooldown=seconds)
        world.pool.park(key, "big", verdict, RATE, clock.now)
        clock.move(1)
    await store.write(world.records()[::-1])
    [(_, rest)] = (await World(clock, keys=keys).restored(store)).pool.rests.current(clock.now)
    assert rest.until == clock.now + 300 - 1


async def test_a_rest_is_held_to_what_is_now_the_longest(clock: Clock, store: Store) -> None:
    await store.write(list(records(parked(until=1000.0 + 80_000))))
    world = World(clock)
    world.pool.rests.longest = 600.0
    [(_, rest)] = (await world.restored(store)).pool.rests.current(clock.now)
    assert rest.until == clock.now + 600


async def test_what_was_learnt_of_a_provider_that_is_gone_is_left_alone(
    clock: Clock, store: Store
) -> None:
    event = turned("closed", "open", "timeout", 1010.0, 1)
    await store.write([*records(parked()), *records(event)])
    await store.write([SwitchRecord("lab", "k1", "org", True, NOON), call(provider="lab")])
    world = await World(clock, "other").restored(store)
    assert world.pool.rests.places == []
    assert world.events == []


async def test_a_key_that_was_taken_out_stays_out(clock: Clock, store: Store) -> None:
    keys = [Key("k1", "sk-1", "org"), Key("k2", "sk-2", "org")]
    world = World(clock, keys=keys)
    world.pool.switch("k1", disabled=True)
    world.pool.switch("k2", disabled=True)
    world.pool.switch("k2", disabled=False)
    await store.write(world.records())
    await store.write([SwitchRecord("lab", "k9", "org", True, NOON)])  # it is no longer configured
    again = await World(clock, keys=keys).restored(store)
    assert [key.disabled for key in again.pool.keys] == [True, False]


async def test_an_open_breaker_stays_open_until_its_time(clock: Clock, store: Store) -> None:
    await store.write(list(records(turned("closed", "open", "timeout", 1010.0, 3))))
    clock.move(4)
    clock.restart()
    breaker = (await World(clock).restored(store)).pool.health.breakers["big"]
    assert (breaker.state, breaker.openings) == ("open", 3)
    assert breaker.wait(clock.now) == pytest.approx(6.0)


@pytest.mark.parametrize(
    "events",
    [
        [turned("closed", "open", "timeout", 1003.0, 2)],  # its time has passed meanwhile
        [
            turned("closed", "open", "timeout", 1090.0, 2),
            turned("open", "half_open", "elapsed", None, 2),  # the probe was cut off
        ],
    ],
)
async def test_a_breaker_whose_time_is_over_lets_one_call_look(
    clock: Clock, store: Store, events: list[Turned]
) -> None:
    await store.write([record for event in events for record in records(event)])
    clock.move(4)
    world = await World(clock).restored(store)
    breaker = world.pool.health.breakers["big"]
    assert (breaker.state, breaker.openings) == ("half_open", 2)
    first, second = (world.pool.lease("big", clock.now) for _ in range(2))
    assert first is not None
    assert first.probe
    assert second is None


async def test_a_breaker_that_closed_or_that_is_none_any_more_stays_closed(
    clock: Clock, store: Store
) -> None:
    await store.write(list(records(turned("closed", "open", "timeout", 1090.0, 1))))
    world = World(clock)
    world.pool.health.configure(BreakerRules(failures=0))
    assert (await world.restored(store)).pool.health.wait("big", clock.now) == 0
    await store.write(list(records(turned("open", "half_open", "elapsed", None, 1))))
    await store.write(list(records(turned("half_open", "closed", "recovered", None, 0))))
    assert (await World(clock).restored(store)).pool.health.breakers == {}


def made(ago: float, **changes: Any) -> Any:
    """A call that this gateway made so many seconds ago, with 1500 tokens."""
    values = {"provider": "lab", "model": "big", "key_id": "k1", "account": "org"}
    return call(**{**values, "timestamp": NOON - round(ago * 1000), **changes})


async def test_windows_go_on_with_what_the_rows_say(clock: Clock, store: Store) -> None:
    allowances = Allowances(
        keys={"k1": limited(rpm=10, tpd=10**6)},
        groups={"org": limited(rpm=99)},
        models={"b*": limited(tpm=10**5), "*": limited(rpd=50)},
    )
    await store.write([made(5), made(50), made(61.5), made(70_000), made(86_500)])
    await store.write([made(7, key_id="k2"), made(7, model="small"), made(7, provider="other")])
    clock.restart()
    world = await World(clock, keys=[KEY, Key("k2", "s", "org")], allowances=allowances).restored(
        store
    )
    assert world.used() == {
        (("k1", "org", ""), "requests_minute"): 3,
        (("k1", "org", ""), "tokens_day"): 5 * 1500,
        (("", "org", ""), "requests_minute"): 4,
        (("", "org", "big"), "tokens_minute"): 3 * 1500,
        (("", "org", "small"), "requests_day"): 1,
    }
    # What was used leaves the window when it would have done so without the restart.
    clock.move(12)
    counted([world.pool])
    assert world.used()[("k1", "org", ""), "requests_minute"] == 2


async def test_a_key_that_is_used_up_is_not_asked_after_a_restart(
    clock: Clock, store: Store
) -> None:
    allowances = Allowances(keys={"k1": limited(rpd=3)})
    await store.write([made(9), made(4000), made(80_000)])
    world = await World(clock, allowances=allowances).restored(store)
    assert world.pool.lease("big", clock.now) is None
    clock.move(86_400 - 80_000 + 1441)  # a day's window moves on in steps of 24 minutes
    assert world.pool.lease("big", clock.now) is not None


async def test_a_provider_without_keys_is_counted_too(clock: Clock, store: Store) -> None:
    keys = [Key("none", None, "none")]
    allowances = Allowances(models={"*": limited(rpm=2)})
    await store.write([made(5, key_id=None, account=None), made(6, key_id=None, account=None)])
    world = await World(clock, keys=keys, allowances=allowances).restored(store)
    assert world.used() == {(("", "none", "big"), "requests_minute"): 2}
    assert world.pool.lease("big", clock.now) is None


async def test_a_key_counts_for_the_group_that_it_is_in_now(clock: Clock, store: Store) -> None:
    allowances = Allowances(groups={"org": limited(rpm=5), "old": limited(rpm=5)})
    await store.write([made(5, account="old"), made(6, key_id="gone", account="org")])
    world = await World(clock, allowances=allowances).restored(store)
    assert world.pool.lease("big", clock.now) is not None
    assert world.used()[("", "org", ""), "requests_minute"] == 3


@pytest.mark.parametrize(
    ("zone", "midnight"),
    [(UTC, 12 * 3600), (ZoneInfo("America/Los_Angeles"), 4 * 3600)],  # hours ago, at noon in UTC
)
async def test_a_day_that_ends_at_midnight_counts_from_the_last_one(
    clock: Clock, store: Store, zone: tzinfo, midnight: int
) -> None:
    allowances = Allowances(keys={"k1": limited(rpd=2)})
    await store.write([made(midnight + 60), made(midnight + 7200), made(midnight - 60), made(30)])
    world = await World(clock, allowances=allowances, day=zone).restored(store)
    assert world.used() == {(("k1", "org", ""), "requests_day"): 2}
    [(_, window)] = world.pool.counters.windows()
    assert window.resets(clock.now) == pytest.approx(86_400 - midnight)
    assert world.pool.lease("big", clock.now) is None
    clock.move(86_400 - midnight)
    assert world.pool.lease("big", clock.now) is not None


async def test_without_limits_nobody_looks_at_the_rows(
    clock: Clock, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def used(_: object, seconds: int, at: int) -> list[Any]:
        asked.append(seconds)
        return []

    monkeypatch.setattr(learnt, "used", used)
    await World(clock, "a", "b").restored(store)
    assert asked == []
    await World(clock, "a", "b", allowances=Allowances(keys={"k1": limited(rpd=1)})).restored(store)
    assert asked == [DAY]


RESTS = st.lists(
    st.tuples(
        st.sampled_from(["k1", "k2"]),
        st.sampled_from(["group", "key", "target"]),
        st.sampled_from(["big", "small"]),
        st.floats(0.5, 5000),
        st.floats(0, 600),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(RESTS)
def test_no_restart_shortens_a_deadline_whatever_came_before(story: list[Any]) -> None:
    """The pool before and the pool after keep the same keys from the same models for as long."""
    clock = Clock()
    keys = [Key("k1", "sk-1", "org"), Key("k2", "sk-2", "org")]
    world = World(clock, keys=keys)

    async def live() -> World:
        path = shutil.copy(await migrated(), Path(tempfile.mkdtemp(dir=folder)) / "t.db")
        store = Store(f"sqlite+aiosqlite:///{path}")
        await store.open()
        for name, kind, model, seconds, pause, reset in story:
            key = world.pool.key(name)
            assert key is not None
            verdict = Verdict(Action.NEXT_KEY, rests=kind, cooldown=seconds)
            world.pool.park(key, model, verdict, RATE, clock.now)
            if reset:
                world.pool.reset(key)
            await store.write(world.records())
            world.events.clear()
            clock.move(round(pause, 3))
        again = await World(clock, keys=keys).restored(store)
        await store.close()
        return again

    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as folder:
        patched.setattr(learnt, "monotonic", lambda: clock.now)
        patched.setattr(learnt, "now_ms", lambda: clock.at)
        again = asyncio.run(live())
    before, after = (dict(each.pool.rests.current(clock.now)) for each in (world, again))
    left = {place: rest for place, rest in before.items() if rest.until > clock.now + 0.002}
    assert after.keys() >= left.keys()
    for place, rest in left.items():
        assert after[place].until == pytest.approx(rest.until, abs=0.002)


async def test_what_is_taken_up_late_counts_no_call_of_this_process_and_turns_no_breaker(
    clock: Clock, store: Store
) -> None:
    """A database that could not be read at the start is read when it can be."""
    made = {"provider": "lab", "model": "big", "key_id": "k1", "account": "org"}
    await store.write(
        [
            call(timestamp=NOON - 30_000, **made),
            call(timestamp=NOON + 5_000, **made),
            BreakerRecord("lab", "big", "closed", "open", "timeout", NOON + 90_000, 3, NOON - 1),
        ]
    )
    clock.move(10)
    late = World(clock, allowances=Allowances(groups={"org": limited(rpm=5)}))
    late.pool.health.breaker("big")  # which has judged by itself since
    async with store.reader() as connection:
        await restore(connection, late.pools, NOON)
    assert late.used()[("", "org", ""), "requests_minute"] == 1
    assert late.pool.health.breakers["big"].state == "closed"
