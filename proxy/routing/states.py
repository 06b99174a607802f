"""How the keys are, for a person: their states, why and until when, what is used and left."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from proxy.clock import instant
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.rests import WORST, Place, Rest, State


def states(
    pool: KeyPool, now: float, at: int, counts: Mapping[str, int] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """For each key: its state (the worst over its models), why and until when, and its limits.

    ``at`` is the same moment as ``now`` on the wall clock, in UTC milliseconds, as are ``until``
    and ``reset``. ``counts`` is what all who share have used, by provider and window.
    """
    return [_state(pool, key, now, at, counts) for key in pool.keys]


def _state(
    pool: KeyPool, key: Key, now: float, at: int, counts: Mapping[str, int]
) -> dict[str, Any]:
    mine = [(place, rest) for place, rest in pool.rests.current(now) if _holds(place, key)]
    worst = max(
        (rest for _, rest in mine),
        key=lambda rest: (WORST.index(rest.state), rest.until),
        default=None,
    )
    state: State = worst.state if worst is not None else "healthy"
    reason = str(worst.reason) if worst is not None else None
    until = instant(worst.until, now, at) if worst is not None else None
    if key.disabled:
        state, reason, until = "disabled", "operator", None
    return {
        "provider": pool.provider,
        "name": key.name if key.secret is not None else None,
        "quota_group": key.quota_group if key.secret is not None else None,
        "state": state,
        "reason": reason,
        "until": until,
        "in_flight": key.in_flight,
        "tried": key.tried,
        "succeeded": key.succeeded,
        "models": [
            _model(place[2], rest, now, at)
            for place, rest in sorted(mine, key=lambda item: item[0][2])
            if place[0] == "group"
        ],
        "limits": _limits(pool, key, now, at, counts),
    }


def _model(models: str, rest: Rest, now: float, at: int) -> dict[str, Any]:
    return {
        "model": models or None,
        "state": rest.state,
        "reason": str(rest.reason),
        "until": instant(rest.until, now, at),
    }


def _limits(
    pool: KeyPool, key: Key, now: float, at: int, counts: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The limits that hold for a key: those that are configured, then those that were told."""
    found = []
    for owner, window in pool.counters.windows():
        if owner[0] in ("", key.name) and owner[1] == key.quota_group:
            resets = window.resets(now)
            reset = at + round(resets * 1000) if resets else None
            amount = window.limit.amount
            used = counts.get(f"{pool.provider} {window.name}", window.used)
            found.append(_limit(owner[2], window.limit.type, amount, used, reset, "config"))
    for owner, slots in pool.counters.slots():
        if owner[0] in ("", key.name) and owner[1] == key.quota_group:
            found.append(_limit(owner[2], "concurrent", slots.amount, slots.used, None, "config"))
    for model, each in pool.counters.told(key.quota_group):
        known = each.now(now)
        if known is not None:
            limit, used, resets = known
            found.append(_limit(model, each.kind, limit, used, at + round(resets * 1000), "header"))
    return found


def _limit(
    model: str, type: str, limit: int, used: int, reset: int | None, source: str
) -> dict[str, Any]:
    return {
        "model": model or None,
        "limit_type": type,
        "limit": limit,
        "used": used,
        "remaining": max(0, limit - used),
        "reset": reset,
        "source": source,
    }


def _holds(place: Place, key: Key) -> bool:
    kind, name, _ = place
    return name == (key.quota_group if kind == "group" else key.name)
