"""What is done with a running gateway's keys beside the calls: by an operator, and by those who ask
for lists of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proxy.clock import monotonic, now_ms
from proxy.errors import ErrorReason
from proxy.relay.verdict import judge
from proxy.routing.keypool import KeyPool
from proxy.routing.states import states
from proxy.types import Fault


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


def key_to_ask_with(
    pools: Callable[[], Mapping[str, KeyPool]], provider: str
) -> tuple[str, str] | None:
    """The name and secret of a key that a provider may be asked for its list with."""
    pool = pools().get(provider)  # a reload may just have taken it out
    key = None if pool is None else pool.healthy(monotonic())
    return (key.name, key.secret) if key is not None and key.secret is not None else None


def refused(pools: Callable[[], Mapping[str, KeyPool]], provider: str, name: str) -> None:
    """A provider answered 401 to the key with which its list was asked for."""
    pool, reason = pools().get(provider), ErrorReason.AUTHENTICATION
    key = None if pool is None else pool.key(name)
    if pool is not None and key is not None:
        verdict = judge(Fault(reason, "the provider refused the key"))
        pool.park(key, "", verdict, reason, monotonic())
