"""Between the key pools of this process and the state that several gateways share.

A lease is claimed from all of them before it is used; what one learns the others hear. While the
shared state is away, each goes by what it knows itself and by its part of the limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Literal

import msgspec

from proxy.clock import monotonic, now_ms
from proxy.errors import ErrorReason
from proxy.routing.breaker import PROBE_SECONDS
from proxy.routing.events import Event, Lifted, Parked, Switched
from proxy.routing.health import Turned
from proxy.routing.keypool import KeyLease, KeyPool
from proxy.routing.limits import Sliding
from proxy.routing.rests import Place, Rest, State, places
from proxy.sharing import types as shared

_BREAKER: Final = "breaker"
_SWITCH: Final = "switch"
_REASONS = {str(reason): reason for reason in ErrorReason}  # another version may know more
_Parts = tuple[str, Literal["group", "key", "target", "breaker", "switch"], str, str]
_NOWHERE: _Parts = ("", "target", "", "")
_decoder = msgspec.json.Decoder(_Parts)
_FOR_EVER_MS = 10 * 365 * 86_400_000
_PROBE_MS = 15_000  # after which another gateway may probe: the one that does may have died


class Claims:
    """Claims leases, tells the others, and takes up what they tell.

    ``pools`` gives the pools of now by their providers' names.
    """

    def __init__(self, state: shared.State, pools: Callable[[], Mapping[str, KeyPool]]) -> None:
        self._state = state
        self._pools = pools
        self._known: dict[str, int] = {}  # places and their ends, as last heard
        self._hearing = False  # what follows from the others' news is none of ours

    async def granted(self, pool: KeyPool, lease: KeyLease) -> bool:
        """Claim what a lease uses. If another gateway has used it up, the lease is given back and
        its pool knows better."""
        if not self._state.available:
            return True
        granted = False
        try:
            denial = await self._claim(lease)
            granted = denial is None
            if denial is not None:
                self._denied(pool, denial)
        except asyncio.CancelledError:
            if lease.probe:  # it may have been granted all the same
                self._state.lift([_breaker(lease)])
            raise
        finally:
            if not granted:
                lease.release(sent=False)
        return granted

    def tell(self, event: Event) -> None:
        """Something has changed here that the others should know."""
        at, now = now_ms() + self._state.offset_ms, monotonic()
        match event:
            case Parked(provider=provider, place=place, rest=rest):
                self._state.rest(_shared(_name(provider, *place), rest, now, at))
            case Turned(provider=provider, model=model, transition=turn):
                name = _name(provider, _BREAKER, "", model)
                if turn.to_state == "open" and turn.until is not None:
                    until = at + round((turn.until - now) * 1000)
                    self._state.lift([name])  # its probe is over
                    self._state.rest(_open(name, until, turn.reason, turn.openings))
                elif turn.to_state == "closed":
                    self._state.lift([name])
            case Lifted(provider=provider, places=gone):
                self._state.lift([_name(provider, *place) for place in gone])
            case Switched(provider=provider, key=key) if not self._hearing:
                name = _name(provider, _SWITCH, key.name, "")
                if key.disabled:
                    self._state.rest(_disabled(name, at))
                else:
                    self._state.lift([name])

    def heard(self, rests: list[shared.Rest]) -> None:
        """The others' rests, all of them: take up the new ones, and end those that were lifted."""
        at = now_ms() + self._state.offset_ms
        current = {rest.place: rest.until for rest in rests}
        self._hearing = True
        try:
            for rest in rests:
                self._adopt(rest, at)
            for name, until in self._known.items():
                if name not in current and until > at:
                    self._end(name)
        finally:
            self._hearing = False
        self._known = current

    def known(self) -> tuple[list[shared.Rest], list[shared.Settlement]]:
        """What rests here and what is counted, for a state that begins with nothing."""
        at, now = now_ms() + self._state.offset_ms, monotonic()
        rests, uses = [], []
        for provider, pool in self._pools().items():
            for place, rest in pool.rests.current(now):
                rests.append(_shared(_name(provider, *place), rest, now, at))
            for model, breaker in pool.health.breakers.items():
                if breaker.state == "open" and breaker.until > now:
                    name, until = _name(provider, _BREAKER, "", model), breaker.until - now
                    rests.append(_open(name, at + round(until * 1000), "", breaker.openings))
            for key in pool.keys:
                if key.disabled:
                    rests.append(_disabled(_name(provider, _SWITCH, key.name, ""), at))
            for _, window in pool.counters.windows():
                name, start = f"{provider} {window.name}", window.started(now)
                for when, count in window.uses(now):
                    counted = at - round((now - when) * 1000)
                    use = shared.Settlement(name, window.limit.seconds, start, count, counted)
                    uses.append(use)
        return rests, uses

    def away(self, nodes: int) -> None:
        """The shared state is away: keep to this gateway's part of every limit."""
        for pool in self._pools().values():
            pool.counters.share(1 / nodes)

    def back(self) -> None:
        for pool in self._pools().values():
            pool.counters.share(1.0)

    async def _claim(self, lease: KeyLease) -> shared.Denial | None:
        provider = lease.provider
        now, windows = monotonic(), []
        counted: list[tuple[Sliding, int | None]] = []
        for counter in lease.counters:
            if isinstance(counter, Sliding):
                start = counter.started(now)
                cost = lease.tokens if counter.limit.kind == "tokens" else 1
                name = f"{provider} {counter.name}"
                seconds = counter.limit.seconds
                claim = shared.WindowClaim(name, counter.limit.amount, seconds, cost, start)
                windows.append(claim)
                if counter.limit.kind == "tokens":
                    counted.append((counter, start))
        breaker = _breaker(lease)
        asked = []
        if not lease.lifts:
            asked = [_name(provider, *each) for each in _places(lease)]
        if not lease.probe and lease.pool.health.breaks:  # the others may, where this one does not
            asked.append(breaker)
        return await self._state.claim(
            asked,
            windows,
            breaker if lease.probe else None,
            _PROBE_MS,
            partial(self._settles, lease, counted) if counted or lease.probe else None,
        )

    def _settles(
        self, lease: KeyLease, counted: list[tuple[Sliding, int | None]], at: int, _: object
    ) -> None:
        """Once the call has ended, say what it really used, and free a probe that told nothing."""

        def settle(used: int | None) -> None:
            if lease.probe:
                self._state.lift([_breaker(lease)])
            if used is None:
                return
            for counter, start in counted:
                name = f"{lease.provider} {counter.name}"
                seconds = counter.limit.seconds
                self._state.settle(name, seconds, start, used - lease.tokens, at)

        lease.settle = settle

    def _denied(self, pool: KeyPool, denial: shared.Denial) -> None:
        if denial.rest is not None:
            self._adopt(denial.rest, now_ms() + self._state.offset_ms)
            return
        until = monotonic() + denial.wait
        if denial.name.startswith("["):  # somebody else's probe is out
            breaker = pool.health.breaker(msgspec.json.decode(denial.name)[3])
            # Nobody tells when that succeeds, so look again soon.
            breaker.restore("open", min(until, monotonic() + PROBE_SECONDS), breaker.openings)
        else:
            pool.counters.block(denial.name.partition(" ")[2], until)

    def _adopt(self, rest: shared.Rest, at: int) -> None:
        provider, kind, name, models = _parts(rest.place)
        pool = self._pools().get(provider)
        now = monotonic()
        until = now + (rest.until - at) / 1000
        if pool is None or until <= now:
            return
        if kind == _SWITCH:
            pool.switch(name, disabled=True)
            return
        if kind == _BREAKER:
            breaker = pool.health.breaker(models)
            if breaker.state != "open" or breaker.until < until - 0.05:
                breaker.restore("open", until, rest.count)
            return
        place: Place = (kind, name, models)
        known = pool.rests.at(place, now)
        if known is None or known.until < until - 0.05:
            pool.rests.keep(place, _local(rest, until, now, at), now)

    def _end(self, place: str) -> None:
        provider, kind, name, models = _parts(place)
        pool = self._pools().get(provider)
        if pool is None:
            return
        if kind == _SWITCH:
            pool.switch(name, disabled=False)
        elif kind == _BREAKER:
            pool.health.breaker(models).reset(monotonic())
        else:
            pool.rests.lift((kind, name, models))


def _places(lease: KeyLease) -> tuple[Place, ...]:
    """Every place whose rest would keep a lease from its model."""
    key = lease.key
    return (*places(key.name, key.quota_group, lease.model), ("target", "", lease.model))


def _breaker(lease: KeyLease) -> str:
    return _name(lease.provider, _BREAKER, "", lease.model)


def _name(provider: str, kind: str, name: str, models: str) -> str:
    return msgspec.json.encode([provider, kind, name, models]).decode()


def _parts(place: str) -> _Parts:
    """What ``_name`` made a name of. One of another version, in another form, is no provider's."""
    try:
        parts: _Parts = _decoder.decode(place)
    except msgspec.DecodeError:
        return _NOWHERE
    return parts


def _shared(name: str, rest: Rest, now: float, at: int) -> shared.Rest:
    probe_at = None if rest.probe_at is None else at + round((rest.probe_at - now) * 1000)
    until = at + round((rest.until - now) * 1000)
    return shared.Rest(name, until, str(rest.reason), rest.state, rest.count, probe_at)


def _open(name: str, until: int, reason: str, openings: int) -> shared.Rest:
    return shared.Rest(name, until, reason, "open", openings)


def _disabled(name: str, at: int) -> shared.Rest:
    return shared.Rest(name, at + _FOR_EVER_MS, "operator", "disabled", 1)


def _local(rest: shared.Rest, until: float, now: float, at: int) -> Rest:
    state: State = rest.state  # type: ignore[assignment]
    local = Rest(until, _REASONS.get(rest.reason, ErrorReason.RATE_LIMIT), rest.count, state)
    if rest.probe_at is not None:
        local.probe_at = now + (rest.probe_at - at) / 1000
        local.probe_wait = max(10.0, local.probe_at - now)
    return local
