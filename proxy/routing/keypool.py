"""The keys of one provider: which may be used for a model, and which of those is taken.

Everything here is synchronous and pure state: a lease is chosen and taken in one step, so no two
requests can race for it. Times are seconds of the monotonic clock, given by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter
from typing import Any, Literal

import msgspec

from proxy.changes import Source
from proxy.errors import ErrorReason
from proxy.routing.affinity import Affinity, rendezvous
from proxy.routing.breaker import BreakerRules
from proxy.routing.counters import Counters, admit
from proxy.routing.events import Event, Lifted, Parked, Switched
from proxy.routing.health import Health
from proxy.routing.key import Key
from proxy.routing.latency import pick
from proxy.routing.limits import Counter, Sliding
from proxy.routing.rests import LONGEST, Place, Rest, Rests
from proxy.types import Verdict

_MOST = 4096  # models for which the keys are held ready; clients may name any
_LOOK_AGAIN = 10.0  # seconds after which a used-up limit is read again: a clock may have been set

KeyStrategy = Literal[
    "fallback", "weighted", "round_robin", "least_busy", "lowest_latency", "sticky"
]


class KeyPool:
    """Gives out leases on the keys of one provider, and learns from how they end.

    ``changed`` hears of every rest that is ordered and every turn of a breaker, ``released`` that
    a lease has ended. ``chance`` gives random numbers from 0 to 1.
    """

    def __init__(
        self,
        provider: str,
        keys: Iterable[Key],
        counters: Counters,
        *,
        chance: Callable[[], float],
        changed: Callable[[Event], None] = lambda _: None,
        released: Callable[[], None] = lambda: None,
    ) -> None:
        self.provider = provider
        self.keys: list[Key] = []
        self.rests = Rests()
        self.counters = counters
        self.health = Health(provider, BreakerRules(), changed)
        self._chance = chance
        self._changed = changed
        self._on_release = released
        self._sessions = Affinity()
        self._surveys: dict[str, _Ready] = {}
        self._turn = 0.0
        self._changes = 0
        self.configure(keys)

    def configure(
        self,
        keys: Iterable[Key],
        strategy: KeyStrategy = "least_busy",
        rules: BreakerRules = BreakerRules(),  # noqa: B008 (it is frozen)
        longest: float = LONGEST,
    ) -> None:
        """Use these keys in this way from now on. What was learnt stays, also of a known key. One
        of that name with another secret is a new key, but as an operator left the old one."""
        known = {key.name: key for key in self.keys}
        self.keys = []
        for order, key in enumerate(keys):
            kept = known.get(key.name, key)
            if kept.secret != key.secret:
                key.disabled, kept = kept.disabled, key
                self._lift([("key", key.name, "")])
            kept.quota_group, kept.weight, kept.order = key.quota_group, key.weight, order
            kept.turn = max(kept.turn, self._turn + 0.5 * _stride(strategy, kept))
            kept.load = kept.in_flight / kept.weight, kept.turn
            self.keys.append(kept)
        self._strategy = strategy
        self._rank = _RANKS.get(strategy, _RANKS["least_busy"])
        self.rests.longest = longest
        self.health.configure(rules)
        self._changes += 1

    def lease(
        self,
        model: str,
        now: float,
        *,
        tried: Collection[str] = (),
        tokens: int = 0,
        session: str | None = None,
        stream: bool = False,
    ) -> KeyLease | None:
        """Take the key that the strategy prefers of those that may be used; None: none may.

        ``tried`` are names of keys that this request has used up, ``tokens`` what it is expected
        to use.
        """
        if self._shut(model, now):
            return None
        ready = self._ready(model, now)
        keys: Sequence[Key] = ready.keys
        if tried:
            keys = [key for key in keys if key.name not in tried]
        while keys:
            key = keys[0] if len(keys) == 1 else self._choose(keys, model, now, session, stream)
            counters = self.counters.of(key.name, key.quota_group, model)
            full = admit(counters, now, tokens)
            if full is None:
                return self._take(key, model, now, counters, tokens, session, stream)
            keys = [other for other in keys if other is not key]
            if isinstance(full, Sliding) and full.limit.kind == "requests":
                ready.without(key, now + min(full.wait(now, tokens), _LOOK_AGAIN))
        return self._scout(model, now, tried, tokens, session, stream) if self.rests else None

    def open(self, model: str, now: float) -> bool:
        """Whether a call to a model may probably go; its limits are not looked at."""
        return not self._shut(model, now) and bool(self._ready(model, now).keys)

    def healthy(self, now: float) -> Key | None:
        """A key that rests for nothing, to ask a question with that counts as no call."""
        for key in self.keys:
            if not key.disabled and self.rests.of(key.name, key.quota_group, "", now) is None:
                return key
        return None

    def park(
        self,
        key: Key,
        model: str,
        verdict: Verdict,
        reason: ErrorReason,
        now: float,
        source: Source = "local",
    ) -> Parked | None:
        """Let rest what a verdict names."""
        if verdict.rests == "none":
            return None
        models = model if verdict.covers is None else verdict.covers
        name = {"group": key.quota_group, "key": key.name, "target": ""}[verdict.rests]
        place: Place = (verdict.rests, name, "" if verdict.rests == "key" else models)
        rest = self.rests.order(place, reason, now, verdict.cooldown, verdict.probe_after)
        parked = Parked(self.provider, key, place, rest, source)
        self._changed(parked)
        return parked

    def key(self, name: str) -> Key | None:
        """The key of a name, if there is one."""
        return next((key for key in self.keys if key.name == name), None)

    def reset(self, key: Key) -> None:
        """An operator's word: the rests that keep this key from any model are over."""
        owners = {"group": key.quota_group, "key": key.name}
        self._lift([place for place in self.rests.places if owners.get(place[0]) == place[1]])

    def switch(self, name: str, *, disabled: bool) -> Key | None:
        """An operator's word: take a key out, or put it back. None: there is no such key."""
        key = self.key(name)
        if key is not None and key.disabled != disabled:
            key.disabled = disabled
            self._changes += 1
            self._changed(Switched(self.provider, key))
        return key

    def _shut(self, model: str, now: float) -> bool:
        if self.health.wait(model, now) > 0:
            return True
        return bool(self.rests) and self.rests.at(("target", "", model), now) is not None

    def _ready(self, model: str, now: float) -> _Ready:
        ready = self._surveys.get(model)
        version = self.rests.version + self.counters.version + self._changes
        if ready is None or ready.version != version or now >= ready.until:
            if len(self._surveys) >= _MOST:
                self._surveys.clear()
            ready = self._surveys[model] = self._survey(model, now, version)
        return ready

    def _survey(self, model: str, now: float, version: int) -> _Ready:
        keys = []
        until = math.inf
        for key in self.keys:
            if key.disabled:
                continue
            rest = self.rests.of(key.name, key.quota_group, model, now)
            if rest is None:
                keys.append(key)
            else:
                until = min(until, rest.until)
        return _Ready(keys, until, version)

    def _choose(
        self, keys: Sequence[Key], model: str, now: float, session: str | None, stream: bool
    ) -> Key:
        if self._strategy == "sticky" and session is not None:
            kept = self._sessions.get(session, now)
            for key in keys:
                if key.name == kept:
                    return key
            names = [key.name for key in keys]
            return keys[rendezvous(session, names, [key.weight for key in keys])]
        if self._strategy == "lowest_latency":
            values = self.health.latencies([key.name for key in keys], model, stream, now)
            return keys[pick(values, [key.in_flight for key in keys], self._chance())]
        return min(keys, key=self._rank)

    def _take(
        self,
        key: Key,
        model: str,
        now: float,
        counters: tuple[Counter, ...],
        tokens: int,
        session: str | None,
        stream: bool,
    ) -> KeyLease:
        """``counters`` have counted the call already."""
        key.in_flight += 1
        key.tried += 1
        # Who could not take his turns does not get them all at once later.
        self._turn = turn = max(key.turn, self._turn)
        key.turn = turn + _stride(self._strategy, key)
        key.load = key.in_flight / key.weight, key.turn
        if session is not None and self._strategy == "sticky":
            self._sessions.keep(session, key.name, now)
        probe = self.health.begin(model, now)
        return KeyLease(self, key, model, now, counters, tokens, stream, probe)

    def _scout(
        self,
        model: str,
        now: float,
        tried: Collection[str],
        tokens: int,
        session: str | None,
        stream: bool,
    ) -> KeyLease | None:
        """Take a key whose rests let one call look whether they are over before their time."""
        for key in self.keys:
            name, group = key.name, key.quota_group
            if key.disabled or name in tried or self.rests.wait(name, group, model, now) > 0:
                continue
            counters = self.counters.of(name, group, model)
            if admit(counters, now, tokens) is None:
                lease = self._take(key, model, now, counters, tokens, session, stream)
                lease.lifts = self.rests.scout(name, group, model, now)
                return lease
        return None

    def _release(self, lease: KeyLease, sent: bool) -> None:
        key = lease.key
        key.in_flight -= 1
        key.load = key.in_flight / key.weight, key.turn
        self.health.end(lease.model, lease.probe)
        for counter in lease.counters:
            if sent and lease.counts:
                counter.ended(lease.taken, lease.tokens, lease.used)
            else:
                counter.undone(lease.taken, lease.tokens)
        if not sent:
            self.rests.unscout(lease.lifts)
            self._changes += 1  # what was used up may not be any more
        self._on_release()

    def _succeeded(self, lease: KeyLease, now: float, first: float | None) -> None:
        key, model = lease.key, lease.model
        key.succeeded += 1
        if self.rests:
            over = [place for place, rest in lease.lifts if self.rests.at(place, now) is rest]
            self._lift(over)  # and no rest that began since this call looks whether it is over
            self.rests.over(key.name, key.quota_group, model, now)
        if first is not None:
            self._measure(lease, now, first)
        self.health.succeeded(model, lease.probe, now)
        lease.probe = False

    def _failed(
        self, lease: KeyLease, verdict: Verdict, reason: ErrorReason, now: float, source: Source
    ) -> Parked | None:
        if verdict.failure:
            self._measure(lease, now, None)
            self.health.failed(lease.model, str(reason), lease.probe, now)
            lease.probe = False
        lease.counts = verdict.rests != "key"  # who is not let in uses up nothing
        return self.park(lease.key, lease.model, verdict, reason, now, source)

    def _lift(self, lifted: Iterable[Place]) -> None:
        gone = self.rests.lift(*lifted)
        if gone:
            self._changed(Lifted(self.provider, gone))

    def _measure(self, lease: KeyLease, now: float, first: float | None) -> None:
        self.health.measure("", lease.model, lease.stream, now, first)
        if self._strategy == "lowest_latency":
            self.health.measure(lease.key.name, lease.model, lease.stream, now, first)


class KeyLease(msgspec.Struct, eq=False):
    """A key in use. It counts as in flight until it is released; releasing twice does nothing.

    ``probe``: this call decides over a half-open breaker. ``lifts`` are the rests of which it looks
    whether they are over early. ``used`` is the tokens that the call used, None as long as that is
    unknown; ``settle`` is told of it at the end. ``counts``: the provider counts it as a call.
    """

    pool: KeyPool
    key: Key
    model: str
    taken: float
    counters: tuple[Counter, ...]
    tokens: int
    stream: bool
    probe: bool
    lifts: Sequence[tuple[Place, Rest]] = ()
    used: int | None = None
    counts: bool = True
    settle: Callable[[int | None], None] | None = None
    released: bool = False

    @property
    def provider(self) -> str:
        return self.pool.provider

    def release(self, *, sent: bool = True) -> None:
        """The call has ended, however it did; ``sent`` False: it was never made."""
        if not self.released:
            self.released = True
            self.pool._release(self, sent)
            if self.settle is not None:
                self.settle(self.used)

    def succeeded(self, now: float, first: float | None = None) -> None:
        """The call went well; ``first`` is the seconds to its first token, or to its answer."""
        self.pool._succeeded(self, now, first)

    def failed(
        self, verdict: Verdict, reason: ErrorReason, now: float, source: Source = "local"
    ) -> Parked | None:
        """The call failed; what rests for it, if anything does. ``source`` said for how long."""
        return self.pool._failed(self, verdict, reason, now, source)


class _Ready:
    """The keys that rest for nothing, as long as no rest begins or ends."""

    __slots__ = ("keys", "until", "version")

    def __init__(self, keys: list[Key], until: float, version: int) -> None:
        self.keys = keys
        self.until = until
        self.version = version

    def without(self, key: Key, until: float) -> None:
        """Its limit is used up until then."""
        self.keys = [other for other in self.keys if other is not key]
        self.until = min(self.until, until)


_RANKS: dict[str, Callable[[Key], Any]] = {
    "fallback": attrgetter("order"),
    "weighted": attrgetter("turn"),
    "round_robin": attrgetter("turn"),
    "least_busy": attrgetter("load"),
}


def _stride(strategy: KeyStrategy, key: Key) -> float:
    """How far a key moves back in the round when it is taken."""
    return 1.0 if strategy == "round_robin" else 1.0 / key.weight
