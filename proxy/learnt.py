"""What the key pools have learnt, as records for the database and back from it at a start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from proxy.changes import BreakerRecord, CooldownRecord, CountRecord, LiftRecord, SwitchRecord
from proxy.clients import Holder
from proxy.clock import instant, monotonic, now_ms
from proxy.errors import ErrorReason
from proxy.routing.counters import CONCURRENT, Owner
from proxy.routing.events import Event, Lifted, Parked, Switched
from proxy.routing.health import Turned
from proxy.routing.keypool import KeyPool
from proxy.routing.limits import DAY, MINUTE, Sliding, Slots
from proxy.routing.quotas import Quota
from proxy.routing.rests import Place, Rest, state_of
from proxy.store import breakers, rests
from proxy.store.engine import Reader
from proxy.store.usage import Used, used, used_by

Record = CooldownRecord | LiftRecord | SwitchRecord | BreakerRecord


def told(event: Event) -> str:
    """One line for the log."""
    match event:
        case Parked(provider=provider, key=key, place=(kind, name, models), rest=rest):
            who = {"group": f"quota group {name}", "key": f"key {name}", "target": "it"}[kind]
            of = f", {models}" if models else ""
            seconds = rest.until - monotonic()
            return (
                f"{provider}: key {key.name} was refused; {who} rests for {seconds:.0f} s"
                f" ({rest.reason}{of})"
            )
        case Turned(provider=provider, model=model, transition=turn):
            state = turn.to_state.replace("_", "-")
            return f"{provider}/{model}: the breaker is {state} ({turn.reason})"
        case Lifted(provider=provider, places=places):
            names = ", ".join(dict.fromkeys(name or "all keys" for _, name, _ in places))
            return f"{provider}: {names} rests no more"
        case Switched(provider=provider, key=key):
            return f"{provider}: key {key.name} was {'dis' if key.disabled else 'en'}abled"


def records(event: Event) -> Iterator[Record]:
    """The rows that follow from an event."""
    now, at = monotonic(), now_ms()
    match event:
        case Parked(provider=provider, key=key, place=place, rest=rest, source=source):
            key_id, account = _owner(place, key.name)
            yield CooldownRecord(
                provider=provider,
                model=place[2],
                key_id=key_id,
                account=account,
                until=instant(rest.until, now, at),
                reason=str(rest.reason),
                backoff_count=rest.count,
                at=at,
                source=source,
                probe_at=None if rest.probe_at is None else instant(rest.probe_at, now, at),
            )
        case Lifted(provider=provider, places=places):
            for place in places:
                yield LiftRecord(provider, place[2], *_owner(place, ""), at)
        case Switched(provider=provider, key=key):
            yield SwitchRecord(provider, key.name, key.quota_group, key.disabled, at)
        case Turned(provider=provider, model=model, transition=turn):
            yield BreakerRecord(
                provider=provider,
                model=model,
                from_state=turn.from_state,
                to_state=turn.to_state,
                reason=turn.reason,
                until=None if turn.until is None else instant(turn.until, now, at),
                openings=turn.openings,
                at=at,
            )


def counted(
    pools: Iterable[KeyPool], counts: Mapping[str, int] = MappingProxyType({})
) -> list[CountRecord]:
    """What the configured limits have counted. ``counts`` is what all who share have used, by
    provider and window."""
    now, at = monotonic(), now_ms()
    return [
        _count(pool.provider, owner, counter, counts, now, at)
        for pool in pools
        for owner, counter in pool.counters.counted()
    ]


class Counts:
    """What of that is new."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, ...], tuple[int, int]] = {}

    def news(self, records: Iterable[CountRecord]) -> Iterator[CountRecord]:
        """Those that have changed since the last time."""
        before, self._told = self._told, {}  # those that are forgotten there are forgotten here
        for each in records:
            place = (each.provider, each.key_id, each.account, each.model, each.limit_type)
            figures = self._told[place] = (each.used, each.limit)
            if before.get(place) != figures:
                yield each


async def restore(
    connection: Reader, pools: Mapping[str, KeyPool], before: int | None = None
) -> None:
    """Let the pools go on where the database says that they were.

    What they know better already stays. Calls from ``before`` on (UTC milliseconds) they have
    counted themselves.
    """
    now, at = monotonic(), now_ms()
    before = at if before is None else before
    for record in await rests.load_cooldowns(connection, at):
        pool = pools.get(record.provider)
        if pool is not None:
            place, rest = _rest(record, now, at)
            pool.rests.keep(place, rest, now)
    for provider, key in await rests.load_switches(connection):
        if provider in pools:
            pools[provider].switch(key, disabled=True)
    for turn in await breakers.load(connection):
        pool = pools.get(turn.provider)
        if pool is None or turn.model in pool.health.breakers:
            continue
        over = turn.until is None or turn.until <= at
        until = 0.0 if turn.until is None else now + (turn.until - at) / 1000
        breaker = pool.health.breaker(turn.model)
        breaker.restore("half_open" if over else "open", until, turn.openings)
    for seconds in (MINUTE, DAY):
        counted = {name: each for name, each in pools.items() if each.counters.limits(seconds)}
        for use in await used(connection, seconds, at) if counted else ():
            if use.provider in counted and use.timestamp < before:
                _count_again(counted[use.provider], use, seconds, now, at)


async def restore_quotas(
    connection: Reader, quotas: Iterable[tuple[Holder, Quota]], before: int
) -> None:
    """Let quotas go on where the rows say that they were before ``before``."""
    now, at = monotonic(), now_ms()
    asked: dict[tuple[str, int], dict[str, Quota]] = {}
    for (whose, name), quota in quotas:
        for window in quota.windows.values():
            asked.setdefault((whose, window.limit.seconds), {})[name] = quota
    for (scope, seconds), of in asked.items():
        for use in await used_by(connection, scope, of, seconds, at):
            if use.timestamp < before:
                when = now - max(0, at - use.timestamp) / 1000
                of[use.name].replay(seconds, when, use.requests, use.tokens, now)


def _count_again(pool: KeyPool, use: Used, seconds: int, now: float, at: int) -> None:
    name = use.key_id or "none"
    key = pool.key(name)
    group = (use.account or name) if key is None else key.quota_group  # as it is now
    owner = (name, group, use.model)
    when = now - max(0, at - use.timestamp) / 1000
    pool.counters.replay(seconds, owner, when, use.requests, use.tokens, now)


def _count(
    provider: str,
    owner: Owner,
    counter: Sliding | Slots,
    counts: Mapping[str, int],
    now: float,
    at: int,
) -> CountRecord:
    key, group, model = owner
    window = counter if isinstance(counter, Sliding) else None
    resets = window.resets(now) if window is not None else 0  # and lets go of what is over
    return CountRecord(
        provider=provider,
        model=model,
        key_id=key,
        account=group,
        limit_type=window.limit.type if window is not None else CONCURRENT,
        limit=counter.limit.amount if isinstance(counter, Sliding) else counter.amount,
        used=counts.get(f"{provider} {counter.name}", counter.used),
        window_seconds=window.limit.seconds if window is not None else None,
        reset=at + round(resets * 1000) if resets else None,
        at=at,
    )


def _owner(place: Place, refused: str) -> tuple[str, str]:
    """The columns ``key_id`` and ``account`` of a place; ``refused`` is the key that was."""
    kind, name, _ = place
    return {"group": (refused, name), "key": (name, ""), "target": ("", "")}[kind]


def _rest(record: CooldownRecord, now: float, at: int) -> tuple[Place, Rest]:
    place: Place = ("target", "", record.model)
    if record.account:
        place = ("group", record.account, record.model)
    elif record.key_id:
        place = ("key", record.key_id, "")
    until = now + (record.until - at) / 1000
    reason = ErrorReason(record.reason)
    rest = Rest(until, reason, record.backoff_count, state_of(place, reason))
    if record.probe_at is not None:
        rest.probe_at = now + (record.probe_at - at) / 1000
        rest.probe_wait = max(1.0, (record.probe_at - record.at) / 1000)
    return place, rest
