from __future__ import annotations

import math

from proxy.errors import ErrorReason
from proxy.routing.breaker import BreakerRules
from proxy.routing.counters import Allowance, Allowances, Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.limits import DAY, MINUTE, SOON, Limit
from proxy.routing.obstacles import Obstacle, key_obstacle, obstacle, target_obstacle
from proxy.routing.rests import Place

NOW = 1000.0


def pool(*names: str, **groups: Allowance) -> KeyPool:
    keys = KeyPool("lab", (), Counters(None, lambda: 0.0), chance=lambda: 1.0)
    keys.configure([Key(name, f"sk-{name}", f"g{name}") for name in names])
    keys.counters.configure(Allowances(groups=groups))
    return keys


def rest(
    keys: KeyPool, place: Place, seconds: float, reason: ErrorReason, probe: float | None = None
) -> None:
    keys.rests.order(place, reason, NOW, seconds, probe)


def found(keys: KeyPool, tokens: int = 0) -> tuple[float, str, str] | None:
    each = obstacle(keys, "m", NOW, tokens)
    return None if each is None else (each.wait, each.why, each.kind)


def test_nothing_stands_before_a_key_that_may_be_used() -> None:
    keys = pool("a", "b")
    rest(keys, ("key", "a", ""), 60, ErrorReason.AUTHENTICATION)
    assert found(keys) is None


def test_of_several_keys_the_first_that_comes_back_counts() -> None:
    keys = pool("a", "b", "c")
    keys.switch("a", disabled=True)
    rest(keys, ("group", "gb", "m"), 60, ErrorReason.RATE_LIMIT)
    rest(keys, ("group", "gc", ""), 20, ErrorReason.CREDIT)
    assert found(keys) == (20, "credit", "rest")


def test_a_key_that_is_out_for_several_reasons_waits_for_the_last() -> None:
    limits = Allowance((Limit("requests", 1, MINUTE), Limit("requests", 1, DAY)), 1)
    keys = pool("a", ga=limits)
    lease = keys.lease("m", NOW)
    assert lease is not None
    wait, why, kind = found(keys) or (0.0, "", "")
    assert (why, kind) == ("requests_day 1/1", "limit")
    assert wait > 80_000
    rest(keys, ("group", "ga", "m"), 5, ErrorReason.RATE_LIMIT)
    assert found(keys) == (wait, why, kind)


def test_when_a_call_ends_nobody_knows() -> None:
    keys = pool("a", ga=Allowance((), 1))
    lease = keys.lease("m", NOW)
    assert lease is not None
    assert found(keys) == (SOON, "concurrent 1/1", "limit")
    lease.release()
    assert found(keys) is None


def test_what_a_request_needs_decides_over_tokens() -> None:
    keys = pool("a", ga=Allowance((Limit("tokens", 100, MINUTE),)))
    assert keys.lease("m", NOW, tokens=80) is not None
    assert found(keys, tokens=20) is None
    assert found(keys, tokens=21) is not None


def test_without_an_operator_nothing_ends_what_he_did() -> None:
    keys = pool("a")
    keys.switch("a", disabled=True)
    assert obstacle(keys, "m", NOW) == Obstacle(
        math.inf, "disabled by an operator", "disabled", "disabled"
    )
    assert found(pool()) == (math.inf, "no key is configured", "disabled")


def test_a_rest_of_which_a_call_may_look_whether_it_is_over_waits_until_then() -> None:
    keys = pool("a")
    rest(keys, ("group", "ga", "m"), 600, ErrorReason.QUOTA_EXCEEDED, 40)
    each = key_obstacle(keys, keys.keys[0], "m", NOW)
    assert each is not None
    assert (each.wait, each.kind, each.state) == (40, "rest", "exhausted")
    assert key_obstacle(keys, keys.keys[0], "m", NOW + 40) is None
    assert keys.lease("m", NOW + 40) is not None
    assert key_obstacle(keys, keys.keys[0], "m", NOW + 40) is not None


def test_a_breaker_keeps_every_key_from_its_model() -> None:
    keys = pool("a")
    keys.configure(keys.keys, rules=BreakerRules(failures=1, open_for=10))
    keys.health.failed("m", "timeout", False, NOW)
    assert found(keys) == (10, "breaker open", "breaker")
    assert keys.health.begin("m", NOW + 10)
    each = target_obstacle(keys, "m", NOW + 10)
    assert each is not None
    assert each.why == "breaker half-open"
    assert obstacle(keys, "n", NOW) is None


def test_a_provider_without_capacity_keeps_every_key_from_its_model() -> None:
    keys = pool("a")
    rest(keys, ("target", "", "m"), 30, ErrorReason.OVERLOADED)
    assert found(keys) == (30, "overloaded", "breaker")
    keys.configure(keys.keys, rules=BreakerRules(failures=1, open_for=10))
    keys.health.failed("m", "timeout", False, NOW)
    assert found(keys) == (30, "overloaded", "breaker")  # the longer of the two
