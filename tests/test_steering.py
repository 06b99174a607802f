from __future__ import annotations

import pytest

from proxy.clock import monotonic
from proxy.errors import ErrorReason
from proxy.routing.counters import Counters
from proxy.routing.events import Event, Lifted, Parked, Switched
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.steering import steer
from proxy.types import Action, Verdict


class Depot:
    """A provider with two keys of one group, one without keys, and what they tell."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lab = self.pool("lab", Key("k1", "sk-1", "org"), Key("k2", "sk-2", "org"))
        self.pools = {"lab": self.lab, "bare": self.pool("bare", Key("none", None, "none"))}

    def pool(self, name: str, *keys: Key) -> KeyPool:
        counters = Counters(None, lambda: 0.0)
        return KeyPool(name, keys, counters, chance=lambda: 0.5, changed=self.events.append)

    def refuse(self, key: int, rests: str, model: str = "m") -> None:
        verdict = Verdict(Action.NEXT_KEY, rests=rests, cooldown=600)  # type: ignore[arg-type]
        reason = ErrorReason.AUTHENTICATION if rests == "key" else ErrorReason.RATE_LIMIT
        self.lab.park(self.lab.keys[key], model, verdict, reason, monotonic())
        self.events.clear()

    def steer(self, name: str, order: str, provider: str = "lab") -> dict | None:
        return steer(lambda: self.pools, provider, name, order)


def test_a_key_is_taken_out_and_put_back() -> None:
    depot = Depot()
    state = depot.steer("k1", "disable")
    assert state is not None
    assert (state["name"], state["state"], state["reason"]) == ("k1", "disabled", "operator")
    assert {key.name for key in depot.lab.keys if key.disabled} == {"k1"}
    state = depot.steer("k1", "enable")
    assert state is not None
    assert (state["state"], state["reason"]) == ("healthy", None)
    assert [type(event) for event in depot.events] == [Switched, Switched]


def test_what_is_so_already_is_told_to_nobody() -> None:
    depot = Depot()
    assert depot.steer("k1", "enable")
    assert depot.events == []


def test_a_reset_ends_the_rests_of_the_key_and_of_its_group() -> None:
    depot = Depot()
    depot.refuse(0, "key")
    depot.refuse(1, "group")
    assert depot.lab.lease("m", monotonic()) is None
    state = depot.steer("k1", "reset")
    assert state is not None
    assert (state["name"], state["state"], state["until"]) == ("k1", "healthy", None)
    assert depot.lab.lease("m", monotonic()) is not None
    [lifted] = depot.events
    assert isinstance(lifted, Lifted)
    assert set(lifted.places) == {("key", "k1", ""), ("group", "org", "m")}


def test_a_reset_of_one_key_leaves_the_other_as_it_is() -> None:
    depot = Depot()
    depot.refuse(0, "key")
    depot.refuse(1, "key")
    assert depot.steer("k1", "reset")
    now = monotonic()
    assert depot.lab.rests.of("k1", "org", "m", now) is None
    assert depot.lab.rests.of("k2", "org", "m", now) is not None


def test_a_reset_puts_no_key_back_that_was_taken_out() -> None:
    depot = Depot()
    depot.steer("k1", "disable")
    state = depot.steer("k1", "reset")
    assert state is not None
    assert state["state"] == "disabled"


@pytest.mark.parametrize(
    ("provider", "name"), [("lab", "k3"), ("shed", "k1"), ("bare", "none"), ("", "")]
)
@pytest.mark.parametrize("order", ["reset", "enable", "disable"])
def test_what_is_no_key_is_none(provider: str, name: str, order: str) -> None:
    depot = Depot()
    assert depot.steer(name, order, provider) is None
    assert depot.events == []


def test_the_state_shows_no_secret() -> None:
    depot = Depot()
    assert "sk-1" not in str(depot.steer("k1", "disable"))
    assert not any(isinstance(event, Parked) for event in depot.events)
