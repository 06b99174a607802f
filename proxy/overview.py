"""What a gateway shows and tells of itself from memory. Where it is one of several workers, any of
them shows the same: each asks the others, and who does not answer in time is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from proxy.changes import CountRecord
from proxy.clock import monotonic, now_ms
from proxy.company import Company
from proxy.learnt import counted
from proxy.routing.counters import CONCURRENT
from proxy.routing.keypool import KeyPool
from proxy.routing.rests import WORST
from proxy.routing.states import states
from proxy.store.filters import Filters
from proxy.store.recent import Recent, chosen

WATCH_SECONDS = 1.0
"""How often the others are asked how busy they are."""

Record = dict[str, Any]
_T = TypeVar("_T")


class Overview:
    """``recent``, ``recorder`` and ``busy`` are this process's own; the last tells the requests in
    flight, and how much waits to be written."""

    def __init__(
        self,
        pools: Callable[[], Mapping[str, KeyPool]],
        recent: Recent,
        recorder: Callable[[], Record],
        busy: Callable[[], tuple[int, int]],
        company: Company,
    ) -> None:
        self._pools = pools
        self._recent = recent
        self._recorder = recorder
        self._busy = busy
        self._member = company.member
        self._state = company.state
        self._shared = company.shared
        self._others = (0, 0)
        self.answers = {
            "keys": lambda asked: _encode(self._keys(_decode(asked, dict[str, int]))),
            "counted": lambda asked: _encode(self._counted(_decode(asked, dict[str, int]))),
            "recorder": lambda _: _encode(recorder()),
            "busy": lambda _: _encode(busy()),
            "recent": lambda asked: msgspec.json.encode(
                recent.newest(*_decode(asked, tuple[Filters, int]))
            ),
        }
        """What the others may ask for by name."""

    async def keys(self) -> list[Record]:
        """How each key is: its worst state anywhere, and what is in flight everywhere."""
        counts = await self._counts()
        others = await self._ask("keys", counts, list[Record])
        return together([self._keys(counts), *others])

    async def recorder(self) -> Record:
        """What became of the rows: numbers are sums, and of texts there is the first."""
        whole = self._recorder()
        for each in await self._ask("recorder", None, Record):
            for name, value in each.items():
                mine = whole.get(name)
                number = isinstance(value, int) and isinstance(mine, int)
                whole[name] = mine + value if number else value if mine is None else mine
        return whole

    async def recent(self, filters: Filters, limit: int) -> Sequence[msgspec.Raw]:
        """The calls that ended last, as JSON, the last first: those of all gateways that share a
        state, as long as that is there, else those of this host's workers."""
        rows = None if self._shared is None else await self._shared.newest()
        if rows is not None:  # of all gateways that share it, this one among them
            calls = [msgspec.Raw(each) for each in rows]
            return chosen(_in_order(calls), filters, limit)
        mine = self._recent.newest(filters, limit)
        if self._member is None:
            return mine
        payloads = await self._member.ask("recent", _encode((filters, limit)))
        return _in_order([*mine, *(c for each in payloads for c in _calls.decode(each))])[:limit]

    async def counted(self) -> list[CountRecord]:
        """What the configured limits have counted."""
        counts = await self._counts()
        found: dict[tuple[str, ...], CountRecord] = {}
        others = await self._ask("counted", counts, list[CountRecord])
        for each in (record for records in [self._counted(counts), *others] for record in records):
            place = (each.provider, each.key_id, each.account, each.model, each.limit_type)
            found[place] = _added(found[place], each) if place in found else each
        return list(found.values())

    def gauges(self) -> tuple[int, int]:
        """Requests in flight, and how much waits to be written; of others as of the last look."""
        mine = self._busy()
        return mine[0] + self._others[0], mine[1] + self._others[1]

    @property
    def loops(self) -> list[Callable[[], Awaitable[None]]]:
        """What it needs beside the requests."""
        return [] if self._member is None else [self._watch]

    async def _watch(self) -> None:
        """Look how busy the others are, again and again."""
        while True:
            others = await self._ask("busy", None, tuple[int, int])
            self._others = sum(each[0] for each in others), sum(each[1] for each in others)
            await asyncio.sleep(WATCH_SECONDS)

    async def _ask(self, what: str, argument: object, answer: type[_T]) -> list[_T]:
        if self._member is None:
            return []
        payloads = await self._member.ask(what, _encode(argument))
        return [_decode(payload, answer) for payload in payloads]

    async def _counts(self) -> Mapping[str, int]:
        """What all have used, by provider and window; nothing where this process knows it all."""
        if self._member is None or self._state is None:
            return {}
        return (await self._state.snapshot())[1]

    def _keys(self, counts: Mapping[str, int]) -> list[Record]:
        now, at = monotonic(), now_ms()
        return [s for pool in self._pools().values() for s in states(pool, now, at, counts)]

    def _counted(self, counts: Mapping[str, int]) -> list[CountRecord]:
        return counted(self._pools().values(), counts)


def _in_order(calls: Iterable[msgspec.Raw]) -> list[msgspec.Raw]:
    """The last that ended first; one that several tell of is there once, as the first told it."""
    found: dict[tuple[str, int], tuple[str, msgspec.Raw]] = {}
    for call in calls:  # one that was restored at a start is held by several
        ended = _ended.decode(call)
        found.setdefault((ended.request_id, ended.attempt), (ended.finished_at, call))
    newest = sorted(found.values(), key=lambda each: each[0], reverse=True)
    return [call for _, call in newest]


def together(views: Iterable[list[Record]]) -> list[Record]:
    """The same keys as several see them, in one."""
    found: dict[tuple[str, str | None], Record] = {}
    for key in (key for view in views for key in view):
        place = (key["provider"], key["name"])
        found[place] = _both(found[place], key) if place in found else key
    return list(found.values())


def _both(one: Record, other: Record) -> Record:
    worse = max(one, other, key=_badness)
    return one | {
        **{name: worse[name] for name in ("state", "reason", "until")},
        **{name: one[name] + other[name] for name in ("in_flight", "tried", "succeeded")},
        "models": _united(one["models"], other["models"], ("model",), _worse),
        "limits": _united(
            one["limits"], other["limits"], ("model", "limit_type", "source"), _used_up
        ),
    }


def _united(
    one: list[Record],
    other: list[Record],
    place: tuple[str, ...],
    both: Callable[[Record, Record], Record],
) -> list[Record]:
    found = {tuple(each[name] for name in place): each for each in one}
    for each in other:
        at = tuple(each[name] for name in place)
        found[at] = both(found[at], each) if at in found else each
    return list(found.values())


def _badness(state: Record) -> tuple[int, int]:
    return WORST.index(state["state"]), state["until"] or 0


def _worse(one: Record, other: Record) -> Record:
    return max(one, other, key=_badness)


def _used_up(one: Record, other: Record) -> Record:
    """Of calls at a time each worker has its part; what goes by time is counted for all, and what
    a provider told, it told of all."""
    if one["limit_type"] == CONCURRENT:
        sums = {name: one[name] + other[name] for name in ("limit", "used", "remaining")}
        return one | sums
    return max(one, other, key=lambda each: (each["used"], each["reset"] or 0))


def _added(one: CountRecord, other: CountRecord) -> CountRecord:
    if one.limit_type == CONCURRENT:
        sums = {"limit": one.limit + other.limit, "used": one.used + other.used}
        return msgspec.structs.replace(one, **sums)
    return max(one, other, key=lambda each: (each.used, each.reset or 0))


class _Ended(msgspec.Struct):
    request_id: str
    attempt: int
    finished_at: str


_ended = msgspec.json.Decoder(_Ended)
_calls = msgspec.json.Decoder(list[msgspec.Raw])
_encode = msgspec.msgpack.Encoder().encode


def _decode(data: bytes, shape: type[_T]) -> _T:
    return msgspec.msgpack.decode(data, type=shape)
