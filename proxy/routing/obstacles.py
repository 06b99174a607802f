"""Why no call may go, and when one may: for a person who asks, and for a request that waits."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.rests import State


class Obstacle(msgspec.Struct, frozen=True):
    """``wait`` is seconds; ``math.inf``: until another call ends, or an operator helps."""

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
    if wait > 0:
        state = pool.health.breakers[model].state.replace("_", "-")
        return Obstacle(wait, f"breaker {state}", "breaker")
    rest = pool.rests.at(("target", "", model), now)
    return None if rest is None else Obstacle(rest.until - now, str(rest.reason), "breaker")


def key_obstacle(
    pool: KeyPool, key: Key, model: str, now: float, tokens: int = 0
) -> Obstacle | None:
    """What keeps one key from a model; None if it may be used."""
    if key.disabled:
        return Obstacle(math.inf, "disabled by an operator", "disabled", "disabled")
    rest = pool.rests.of(key.name, key.quota_group, model, now)
    if rest is not None:
        wait = (rest.until if rest.probe_at is None else rest.probe_at) - now
        return Obstacle(wait, str(rest.reason), "rest", rest.state) if wait > 0 else None
    for counter in pool.counters.of(key.name, key.quota_group, model):
        if (wait := counter.wait(now, tokens)) > 0:
            return Obstacle(wait, counter.why, "limit")
    return None
