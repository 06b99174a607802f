"""The keys of one provider: which is free to use, and which must rest.

Everything here is synchronous and pure state: a lease is chosen and taken in one step, so no two
requests can race for it. Times are seconds of the monotonic clock, given by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from proxy.errors import ErrorReason
from proxy.types import Verdict

BACKOFF = (10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds that a key rests when the provider gave no hint, by refusals in a row."""
DISABLED_SECONDS = 300.0
"""How long a key is out that the provider refused: it may be repaired meanwhile."""
MAX_COOLDOWN = 86_400.0
"""No rest is longer than a day: whatever a provider says, a key comes back by itself."""

State = Literal["healthy", "cooling", "exhausted", "disabled"]
_EXHAUSTED = {ErrorReason.QUOTA_EXCEEDED, ErrorReason.CREDIT}
_WORST: tuple[State, ...] = ("healthy", "cooling", "exhausted", "disabled")


Place = tuple[Literal["group", "key"], str, str]
"""What rests: a quota group or a single key, its name, and the model ("" for all)."""


class Key(msgspec.Struct):
    """One credential. Keys of one ``quota_group`` share what the provider lets them use.

    A key without a secret stands for a provider that asks for none.
    """

    name: str
    secret: str | None
    quota_group: str
    weight: float = 1.0
    in_flight: int = 0
    credit: float = 0.0  # of the smooth weighted round robin

    def __repr__(self) -> str:
        return f"Key({self.name!r}, in_flight={self.in_flight})"


class Rest(msgspec.Struct):
    """Why and until when a group rests for a model, or a key for all of them."""

    until: float
    reason: ErrorReason
    count: int
    state: State


class Parked(msgspec.Struct, frozen=True):
    """What ``park`` has changed: who rests, for which model ("" for all), until when and why."""

    key: Key
    model: str
    rest: Rest


class KeyPool:
    """Gives out leases on the keys of one provider."""

    def __init__(self, provider: str, keys: Iterable[Key]) -> None:
        self.provider = provider
        self.keys = list(keys)
        self._rests: dict[Place, Rest] = {}

    def lease(self, model: str, tried: Iterable[str], now: float) -> KeyLease | None:
        """Take the healthy key with the least ``in_flight / weight`` that was not tried yet.

        Ties go round by smooth weighted round robin. None: no key may be used now.
        """
        best: list[Key] = []
        least = float("inf")
        for key in self.keys:
            if key.name in tried or self._resting(key, model, now) is not None:
                continue
            load = key.in_flight / key.weight
            if load < least:
                best, least = [key], load
            elif load == least:
                best.append(key)
        if not best:
            return None
        chosen = best[0] if len(best) == 1 else _round_robin(best)
        chosen.in_flight += 1
        return KeyLease(self, chosen, model)

    def outlook(self, model: str, now: float) -> Rest | None:
        """The rest that ends first, if every key rests for this model; None if one may be used.

        A pool without keys rests for ever.
        """
        soonest: Rest | None = None
        for key in self.keys:
            rest = self._resting(key, model, now)
            if rest is None:
                return None
            if soonest is None or rest.until < soonest.until:
                soonest = rest
        return soonest or Rest(now + MAX_COOLDOWN, ErrorReason.NO_KEYS, 0, "disabled")

    def park(
        self, key: Key, model: str, verdict: Verdict, reason: ErrorReason, now: float
    ) -> Parked | None:
        """Let a key rest as a verdict says. A longer rest is never shortened."""
        if verdict.park == "none":
            return None
        scope = model if verdict.park == "model" else ""
        place: Place = ("group", key.quota_group, scope)
        if verdict.park == "disable":
            place = ("key", key.name, "")
        old = self._rests.get(place)
        count = old.count + 1 if old is not None else 1
        seconds = verdict.cooldown
        if seconds is None:
            tier = BACKOFF[min(count, len(BACKOFF)) - 1]
            seconds = DISABLED_SECONDS if verdict.park == "disable" else tier
        until = now + min(seconds, MAX_COOLDOWN)
        state: State = "cooling"
        if verdict.park == "disable":
            state = "disabled"
        elif reason in _EXHAUSTED:
            state = "exhausted"
        if old is not None and old.until > until:
            until, reason, state = old.until, old.reason, old.state
        rest = self._rests[place] = Rest(until, reason, count, state)
        return Parked(key, scope, rest)

    def succeeded(self, key: Key, model: str, now: float) -> None:
        """A call went well: refusals in a row start again at none."""
        for place in _places(key, model) if self._rests else ():
            rest = self._rests.get(place)
            if rest is not None and rest.until <= now:
                del self._rests[place]

    def healthy(self, now: float) -> Key | None:
        """A key that rests for nothing, to ask a question with that counts as no call."""
        return next((key for key in self.keys if self._resting(key, "", now) is None), None)

    def states(self, now: float, at: int) -> list[dict[str, Any]]:
        """For each key: its state (the worst over its models), why and until when.

        ``at`` is the same moment as ``now`` on the wall clock, in UTC milliseconds, as is
        ``until``.
        """
        return [self._state(key, now, at) for key in self.keys]

    def _state(self, key: Key, now: float, at: int) -> dict[str, Any]:
        mine = [
            (model, rest)
            for (kind, owner, model), rest in self._rests.items()
            if owner == (key.quota_group if kind == "group" else key.name) and rest.until > now
        ]
        rests = [rest for _, rest in mine]
        models = [(model, rest) for model, rest in mine if rest.state != "disabled"]
        worst = max(rests, key=lambda rest: (_WORST.index(rest.state), rest.until), default=None)
        return {
            "provider": self.provider,
            "name": key.name if key.secret is not None else None,
            "quota_group": key.quota_group if key.secret is not None else None,
            "state": worst.state if worst is not None else "healthy",
            "reason": str(worst.reason) if worst is not None else None,
            "until": at + round((worst.until - now) * 1000) if worst is not None else None,
            "in_flight": key.in_flight,
            "models": [
                {
                    "model": model or None,
                    "state": rest.state,
                    "reason": str(rest.reason),
                    "until": at + round((rest.until - now) * 1000),
                }
                for model, rest in sorted(models, key=lambda item: item[0])
            ],
        }

    def _resting(self, key: Key, model: str, now: float) -> Rest | None:
        """The longest rest that keeps a key from a model, if any."""
        longest: Rest | None = None
        for place in _places(key, model) if self._rests else ():
            rest = self._rests.get(place)
            if rest is not None and rest.until > now:
                longest = rest if longest is None or rest.until > longest.until else longest
        return longest


def _places(key: Key, model: str) -> tuple[Place, ...]:
    """Every place where a rest would keep this key from this model."""
    group = key.quota_group
    return ("group", group, model), ("group", group, ""), ("key", key.name, "")


class KeyLease:
    """A key in use. It counts as in flight until it is released; releasing twice does nothing."""

    __slots__ = ("_pool", "_released", "key", "model")

    def __init__(self, pool: KeyPool, key: Key, model: str) -> None:
        self._pool = pool
        self._released = False
        self.key = key
        self.model = model

    @property
    def provider(self) -> str:
        return self._pool.provider

    def release(self) -> None:
        if not self._released:
            self._released = True
            self.key.in_flight -= 1

    def park(self, verdict: Verdict, reason: ErrorReason, now: float) -> Parked | None:
        return self._pool.park(self.key, self.model, verdict, reason, now)

    def succeeded(self, now: float) -> None:
        self._pool.succeeded(self.key, self.model, now)


def _round_robin(keys: list[Key]) -> Key:
    """Smooth weighted round robin, as nginx spreads load over its upstreams."""
    for key in keys:
        key.credit += key.weight
    chosen = max(keys, key=lambda key: key.credit)
    chosen.credit -= sum(key.weight for key in keys)
    return chosen
