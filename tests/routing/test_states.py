from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import ErrorReason
from proxy.routing.counters import Allowance, Allowances, Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.limits import MINUTE, Limit
from proxy.routing.rests import Place
from proxy.routing.states import states

NOW, AT = 110.0, 5_000_000


def pool(*keys: Key) -> KeyPool:
    each = KeyPool("lab", (), Counters(None, lambda: 0.0), chance=lambda: 1.0)
    each.configure(keys or [Key("k1", "sk-1", "g1")])
    return each


def state(keys: KeyPool, now: float = NOW, at: int = AT) -> dict[str, Any]:
    return states(keys, now, at)[0]


def summary(keys: KeyPool, now: float = NOW) -> tuple[str, str | None, int | None]:
    found = state(keys, now)
    return found["state"], found["reason"], found["until"]


def test_a_key_for_which_nothing_rests_is_healthy() -> None:
    assert state(pool()) == {
        "provider": "lab",
        "name": "k1",
        "quota_group": "g1",
        "state": "healthy",
        "reason": None,
        "until": None,
        "in_flight": 0,
        "tried": 0,
        "succeeded": 0,
        "models": [],
        "limits": [],
    }


@pytest.mark.parametrize(
    ("place", "reason", "expected"),
    [
        (("group", "g1", "m"), ErrorReason.RATE_LIMIT, "cooling"),
        (("group", "g1", "m"), ErrorReason.QUOTA_EXCEEDED, "exhausted"),
        (("group", "g1", ""), ErrorReason.CREDIT, "exhausted"),
        (("key", "k1", ""), ErrorReason.AUTHENTICATION, "disabled"),
    ],
)
def test_why_and_until_when_a_key_rests(place: Place, reason: ErrorReason, expected: str) -> None:
    keys = pool()
    keys.rests.order(place, reason, 100, 30)
    assert summary(keys) == (expected, str(reason), AT + 20_000)
    assert summary(keys, 130) == ("healthy", None, None)


@pytest.mark.parametrize("place", [("group", "g2", ""), ("key", "k2", ""), ("target", "", "m")])
def test_what_rests_beside_it_does_not_touch_a_key(place: Place) -> None:
    keys = pool()
    keys.rests.order(place, ErrorReason.RATE_LIMIT, 100, 30)
    assert summary(keys) == ("healthy", None, None)


def test_a_key_is_as_ill_as_its_worst_model() -> None:
    keys = pool()
    keys.rests.order(("group", "g1", "b"), ErrorReason.QUOTA_EXCEEDED, 100, 30)
    keys.rests.order(("group", "g1", "a"), ErrorReason.RATE_LIMIT, 100, 900)
    keys.rests.order(("group", "g1", ""), ErrorReason.RATE_LIMIT, 100, 20)
    assert summary(keys) == ("exhausted", "quota_exceeded", AT + 20_000)
    assert [tuple(each.values()) for each in state(keys)["models"]] == [
        (None, "cooling", "rate_limit", AT + 10_000),
        ("a", "cooling", "rate_limit", AT + 890_000),
        ("b", "exhausted", "quota_exceeded", AT + 20_000),
    ]


def test_a_key_that_an_operator_took_out_is_disabled_whatever_else() -> None:
    keys = pool()
    keys.rests.order(("group", "g1", ""), ErrorReason.CREDIT, 100, 30)
    keys.switch("k1", disabled=True)
    assert summary(keys) == ("disabled", "operator", None)


def test_a_provider_that_needs_no_key_has_none_by_name() -> None:
    found = state(pool(Key("none", None, "none")))
    assert (found["name"], found["quota_group"]) == (None, None)


def test_what_a_key_did() -> None:
    keys = pool()
    for _ in range(3):
        lease = keys.lease("m", NOW)
        assert lease is not None
    lease.succeeded(NOW)
    lease.release()
    found = state(keys)
    assert (found["in_flight"], found["tried"], found["succeeded"]) == (2, 3, 1)


def test_limits_are_shown_with_what_is_used_and_left_and_who_said_so() -> None:
    keys = pool(Key("k1", "sk-1", "g1"), Key("k2", "sk-2", "g2"))
    minute = Allowance((Limit("requests", 3, MINUTE),))
    keys.counters.configure(
        Allowances({"k1": minute}, {"g1": Allowance((), 5), "g2": minute}, {"m": minute})
    )
    for _ in range(2):
        assert keys.lease("m", NOW, tried=("k2",)) is not None
    assert keys.lease("n", NOW, tried=("k1",)) is not None  # counts for another
    headers = [
        (b"x-ratelimit-limit-tokens", b"100"),
        (b"x-ratelimit-remaining-tokens", b"40"),
        (b"x-ratelimit-reset-tokens", b"6s"),
    ]
    keys.counters.hear("g1", "m", headers, NOW, NOW)
    assert [tuple(each.values()) for each in state(keys)["limits"]] == [
        (None, "requests_minute", 3, 2, 1, AT + 61_000, "config"),
        ("m", "requests_minute", 3, 2, 1, AT + 61_000, "config"),
        (None, "concurrent", 5, 2, 3, None, "config"),
        ("m", "tokens", 100, 60, 40, AT + 6000, "header"),
    ]
    assert {each["reset"] for each in state(keys, NOW + 61)["limits"][:2]} == {None}


def test_what_others_have_used_counts_too() -> None:
    keys = pool(Key("k1", "sk-1", "g1"))
    keys.counters.configure(Allowances(keys={"k1": Allowance((Limit("requests", 9, MINUTE),))}))
    assert keys.lease("m", NOW) is not None
    counts = {'lab ["k1","g1","","requests_minute"]': 4, "elsewhere": 7}
    [limit] = states(keys, NOW, AT, counts)[0]["limits"]
    assert (limit["used"], limit["remaining"]) == (4, 5)
