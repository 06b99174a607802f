"""Why no call may go, and when one may: for a person who asks, and for a request that waits."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.rests import State


class Obstacle(msgspec.Struct, frozen=True):
    """``wait`` is seconds; ``math.inf``: until an operator helps."""

    wait: float
    why: str
    kind: Literal["rest", "limit", "breaker", "disabled"]
    state: State = "cooling"


def obstacle(pool: KeyPool, model: str, now: float, tokens: int = 0) -> Obstacle | None:
    """What keeps every key from a model, and ends first; None if a call may go."""
    target = target_obstacle(pool, model, now)
    if target is not None:
        return target
    first: Obstacle | None = None
    for key in pool.keys:
        found = key_obstacle(pool, key, model, now, tokens)
        if found is None:
            return None
        if first is None or found.wait < first.wait:
            first = found
    return first or Obstacle(math.inf, "no key is configured", "disabled", "disabled")


def target_obstacle(pool: KeyPool, model: str, now: float) -> Obstacle | None:
    """What keeps any key from a model: its breaker, or a provider without capacity."""
    wait = pool.health.wait(model, now)
    rest = pool.rests.at(("target", "", model), now)
    if rest is not None and rest.until - now > wait:
        return Obstacle(rest.until - now, str(rest.reason), "breaker")
    if wait > 0:
        state = pool.health.breakers[model].state.replace("_", "-")
        return Obstacle(wait, f"breaker {state}", "breaker")
    return None


def key_obstacle(
    pool: KeyPool, key: Key, model: str, now: float, tokens: int = 0
) -> Obstacle | None:
    """What keeps one key from a model; None if it may be used."""
    if key.disabled:
        return Obstacle(math.inf, "disabled by an operator", "disabled", "disabled")
    name, group = key.name, key.quota_group
    longest: Obstacle | None = None
    rest = pool.rests.of(name, group, model, now)
    if rest is not None and (wait := pool.rests.wait(name, group, model, now)) > 0:
        longest = Obstacle(wait, str(rest.reason), "rest", rest.state)
    for counter in pool.counters.of(name, group, model):
        wait = counter.wait(now, tokens)
        if wait > (longest.wait if longest is not None else 0):
            longest = Obstacle(wait, counter.why, "limit")
    return longest
