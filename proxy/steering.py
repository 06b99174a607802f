"""What an operator does to a key of a running gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proxy.clock import monotonic, now_ms
from proxy.routing.keypool import KeyPool
from proxy.routing.states import states


def steer(
    pools: Callable[[], Mapping[str, KeyPool]], provider: str, name: str, order: str
) -> dict[str, Any] | None:
    """Reset, disable or enable a key; how it is after that, None if there is no such key."""
    pool = pools().get(provider)
    key = None if pool is None else pool.key(name)
    if pool is None or key is None or key.secret is None:
        return None
    if order == "reset":
        pool.reset(key)
    else:
        pool.switch(name, disabled=order == "disable")
    return next(each for each in states(pool, monotonic(), now_ms()) if each["name"] == name)
