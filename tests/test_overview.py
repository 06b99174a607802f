"""Two workers, each with what it knows of itself, and nothing but a line between them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from proxy import overview as module
from proxy.clock import monotonic, now_ms
from proxy.errors import ErrorReason
from proxy.overview import Overview, together
from proxy.routing.counters import Allowance, Allowances, Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.limits import MINUTE, Limit
from proxy.store.filters import Filters
from proxy.store.recent import Recent
from proxy.types import Action, Verdict
from tests.store.rows import call
from tests.test_loops import for_a_moment

ALL = Filters(start=0, end=1)


class Line:
    """Asks the other worker; its state is where the windows are counted: ``counts``."""

    def __init__(self) -> None:
        self.others: list[Overview] = []
        self.counts: dict[str, int] = {}

    async def ask(self, what: str, argument: bytes) -> list[bytes]:
        return [other.answers[what](argument) for other in self.others]

    async def snapshot(self) -> tuple[list[Any], dict[str, int]]:
        return [], self.counts


class Worker:
    def __init__(self, *, alone: bool = False) -> None:
        counters = Counters(None, lambda: 0.0)
        allowance = Allowance((Limit("requests", 10, MINUTE),), concurrency=2)
        counters.configure(Allowances(groups={"org": allowance}))
        self.pool = KeyPool("lab", [Key("k1", "s", "org")], counters, chance=lambda: 1.0)
        self.recent = Recent()
        self.recorder: dict[str, Any] = {"recorded": 0, "queued": 0, "last_error": None}
        self.line = Line()
        line = None if alone else self.line
        company: Any = SimpleNamespace(member=line, state=line, shared=None)
        self.overview = Overview(
            lambda: {"lab": self.pool},
            self.recent,
            lambda: dict(self.recorder),
            lambda: (self.pool.keys[0].in_flight, 3),
            company,
        )


@pytest.fixture
def two() -> tuple[Worker, Worker]:
    one, other = Worker(), Worker()
    one.line.others, other.line.others = [other.overview], [one.overview]
    return one, other


def refuse(worker: Worker, model: str, seconds: float, reason: ErrorReason) -> None:
    verdict = Verdict(Action.NEXT_KEY, "group", cooldown=seconds)
    worker.pool.park(worker.pool.keys[0], model, verdict, reason, monotonic())


async def test_who_is_alone_shows_itself() -> None:
    alone = Worker(alone=True)
    assert alone.pool.lease("m", monotonic()) is not None
    [key] = await alone.overview.keys()
    assert (key["in_flight"], [each["used"] for each in key["limits"]]) == (1, [1, 1])
    alone.recent.add(call())
    assert len(await alone.overview.recent(ALL, 5)) == 1
    assert await alone.overview.recorder() == alone.recorder
    assert [each.used for each in await alone.overview.counted()] == [1, 1]
    assert alone.overview.gauges() == (1, 3)
    assert not alone.overview.loops


async def test_a_key_is_as_bad_as_it_is_anywhere_and_as_busy_as_everywhere(
    two: tuple[Worker, Worker],
) -> None:
    one, other = two
    for worker in (one, other, other):
        assert worker.pool.lease("m", monotonic()) is not None
    refuse(one, "a", 50, ErrorReason.RATE_LIMIT)
    refuse(one, "b", 50, ErrorReason.RATE_LIMIT)
    refuse(other, "b", 20, ErrorReason.QUOTA_EXCEEDED)
    for worker in two:
        [key] = await worker.overview.keys()
        assert (key["in_flight"], key["tried"], key["succeeded"]) == (3, 3, 0)
        assert (key["state"], key["reason"]) == ("exhausted", "quota_exceeded")
        assert 0 < key["until"] - now_ms() <= 20_000
        states = {model["model"]: model["state"] for model in key["models"]}
        assert states == {"a": "cooling", "b": "exhausted"}


async def test_what_is_used_is_what_all_have_used(two: tuple[Worker, Worker]) -> None:
    one, other = two
    for worker in (one, other, other):
        assert worker.pool.lease("m", monotonic()) is not None
    name = 'lab ["","org","","requests_minute"]'
    for worker in two:
        worker.line.counts = {name: 7}
        [key] = await worker.overview.keys()
        figures = {
            each["limit_type"]: (each["used"], each["limit"], each["remaining"])
            for each in key["limits"]
        }
        assert figures == {"requests_minute": (7, 10, 3), "concurrent": (3, 4, 1)}
        counted = {
            each.limit_type: (each.used, each.limit) for each in await worker.overview.counted()
        }
        assert counted == {"requests_minute": (7, 10), "concurrent": (3, 4)}


async def test_numbers_of_the_recorder_are_sums(two: tuple[Worker, Worker]) -> None:
    one, other = two
    one.recorder = {"recorded": 5, "queued": 1, "last_error": None, "at": "here"}
    other.recorder = {"recorded": 2, "queued": 0, "last_error": "locked", "at": "there"}
    whole = {"recorded": 7, "queued": 1, "last_error": "locked"}
    assert await one.overview.recorder() == whole | {"at": "here"}
    assert await other.overview.recorder() == whole | {"at": "there"}
    assert one.recorder["recorded"] == 5


async def test_the_newest_calls_are_those_of_all_each_once(two: tuple[Worker, Worker]) -> None:
    _, other = two
    calls = [call(request_id=f"r{number}", timestamp=1000 * number) for number in range(6)]
    for number, each in enumerate(calls):
        two[number % 2].recent.add(each)
    other.recent.add(calls[4])  # restored from the database
    for worker in two:
        found = await worker.overview.recent(ALL, 4)
        assert [msgspec.json.decode(each)["request_id"] for each in found] == [
            "r5",
            "r4",
            "r3",
            "r2",
        ]
        few = Filters(start=0, end=1, provider=("nobody",))
        assert not await worker.overview.recent(few, 4)


async def test_the_gauges_are_those_of_all_as_of_the_last_look(
    two: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.01)
    one, other = two
    assert other.pool.lease("m", monotonic()) is not None
    assert one.overview.gauges() == (0, 3)
    [watch] = one.overview.loops
    await for_a_moment(watch())  # type: ignore[arg-type]
    assert one.overview.gauges() == (1, 6)


def test_of_keys_that_one_alone_has_nothing_is_changed() -> None:
    [key] = Worker().overview._keys({})
    assert together([[key], [key | {"name": "other"}]]) == [key, key | {"name": "other"}]


@pytest.mark.parametrize("swapped", [False, True])
def test_of_what_a_provider_told_the_least_that_remains_holds(swapped: bool) -> None:
    [key] = Worker().overview._keys({})
    limits = [
        {
            "model": "m",
            "limit_type": "requests",
            "source": "header",
            "limit": 9,
            "used": used,
            "remaining": 9 - used,
            "reset": None,
        }
        for used in (2, 5)
    ]
    views = [[key | {"limits": [limit]}] for limit in limits]
    [found] = together(views[::-1] if swapped else views)
    assert found["limits"] == [limits[1]]
