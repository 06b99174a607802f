"""Between the key pools of this process and the state that several gateways share.

A lease is claimed from all of them before it is used; what one learns the others hear. While the
shared state is away, each goes by what it knows itself and by its part of the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from proxy.clock import monotonic, now_ms
from proxy.errors import ErrorReason
from proxy.routing.events import Event, Lifted, Parked, Switched
from proxy.routing.health import Turned
from proxy.routing.keypool import KeyLease, KeyPool
from proxy.routing.limits import Sliding
from proxy.routing.rests import Place, Rest, State, places
from proxy.sharing import types as shared
from proxy.sharing.shared import Shared

_BREAKER = "breaker"
_SWITCH = "switch"
_FOR_EVER_MS = 10 * 365 * 86_400_000
_PROBE_MS = 15_000  # after which another gateway may probe: the one that does may have died


class Claims:
    """Claims leases, tells the others, and takes up what they tell.

    ``pools`` gives the pools of now by their providers' names.
    """

    def __init__(self, state: Shared, pools: Callable[[], Mapping[str, KeyPool]]) -> None:
        self._state = state
        self._pools = pools
        self._known: dict[str, int] = {}  # places and their ends, as last heard

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
                    self._state.rest(shared.Rest(name, until, turn.reason, "open", turn.openings))
                elif turn.to_state == "closed":
                    self._state.lift([name])
            case Lifted(provider=provider, places=gone):
                self._state.lift([_name(provider, *place) for place in gone])
            case Switched(provider=provider, key=key):
                name = _name(provider, _SWITCH, key.name, "")
                if key.disabled:
                    self._state.rest(
                        shared.Rest(name, at + _FOR_EVER_MS, "operator", "disabled", 1)
                    )
                else:
                    self._state.lift([name])

    def heard(self, rests: list[shared.Rest]) -> None:
        """The others' rests, all of them: take up the new ones, and end those that were lifted."""
        at = now_ms() + self._state.offset_ms
        for rest in rests:
            self._adopt(rest, at)
        current = {rest.place: rest.until for rest in rests}
        for name, until in self._known.items():
            if name not in current and until > at:
                self._end(name)
        self._known = current

    def away(self, nodes: int) -> None:
        """The shared state is away: keep to this gateway's part of every limit."""
        for pool in self._pools().values():
            pool.counters.share(1 / nodes)

    def back(self) -> None:
        for pool in self._pools().values():
            pool.counters.share(1.0)

    async def _claim(self, lease: KeyLease) -> shared.Denial | None:
        provider, key = lease.provider, lease.key
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
        breaker = _name(provider, _BREAKER, "", lease.model)
        resting = [
            _name(provider, *place) for place in places(key.name, key.quota_group, lease.model)
        ]
        resting.append(_name(provider, "target", "", lease.model))
        asked = [] if lease.lifts else resting
        settle = partial(self._settles, lease, counted)
        return await self._state.claim(
            asked if lease.probe else [*asked, breaker],
            windows,
            breaker if lease.probe else None,
            _PROBE_MS,
            settle if counted else None,
        )

    def _settles(self, lease: KeyLease, counted: list[tuple[Sliding, int | None]], at: int) -> None:
        """Once the call has ended, say what it really used."""

        def settle(used: int | None) -> None:
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
            breaker.restore("open", until, breaker.openings)
        else:
            pool.counters.block(denial.name.partition(" ")[2], until)

    def _adopt(self, rest: shared.Rest, at: int) -> None:
        provider, kind, name, models = msgspec.json.decode(rest.place)
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
        provider, kind, name, models = msgspec.json.decode(place)
        pool = self._pools().get(provider)
        if pool is None:
            return
        if kind == _SWITCH:
            pool.switch(name, disabled=False)
        elif kind == _BREAKER:
            pool.health.breaker(models).reset(monotonic())
        else:
            pool.rests.lift((kind, name, models))


def _name(provider: str, kind: str, name: str, models: str) -> str:
    return msgspec.json.encode([provider, kind, name, models]).decode()


def _shared(name: str, rest: Rest, now: float, at: int) -> shared.Rest:
    probe_at = None if rest.probe_at is None else at + round((rest.probe_at - now) * 1000)
    until = at + round((rest.until - now) * 1000)
    return shared.Rest(name, until, str(rest.reason), rest.state, rest.count, probe_at)


def _local(rest: shared.Rest, until: float, now: float, at: int) -> Rest:
    state: State = rest.state  # type: ignore[assignment]
    local = Rest(until, ErrorReason(rest.reason), rest.count, state)
    if rest.probe_at is not None:
        local.probe_at = now + (rest.probe_at - at) / 1000
        local.probe_wait = max(10.0, local.probe_at - now)
    return local
