"""The counters that stand between a key and a model: configured limits, and limits that were told.

A limit is counted for a key, for a quota group, or for a group and a model: whatever of that holds
for a call has to have room for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import tzinfo

import msgspec

from proxy.routing.limits import DAY, Counter, Daily, Limit, Sliding, Slots, Told, read_headers

_MOST = 4096  # (key, model) pairs and limits held; clients may name any model

CONCURRENT = "concurrent"

Owner = tuple[str, str, str]
"""Whose use is counted: the key's name ("" for all of the group), its quota group, and the model
("" for all)."""
_Counted = dict[tuple[Owner, str], Sliding | Slots]
"""Counters by their owner and type."""


class Allowance(msgspec.Struct, frozen=True):
    """What somebody may use: requests and tokens by the minute and day, and calls at a time."""

    limits: tuple[Limit, ...] = ()
    concurrency: int | None = None


_NOTHING = Allowance()


class Allowances(msgspec.Struct, frozen=True):
    """What is configured for one provider. A ``*`` in a model's name stands for any part of it;
    each model that it matches is counted by itself."""

    keys: Mapping[str, Allowance] = {}
    groups: Mapping[str, Allowance] = {}
    models: Mapping[str, Allowance] = {}


class Counters:
    """The counters of one provider. ``wall`` is epoch seconds, ``day`` where its days end."""

    def __init__(self, day: tzinfo | None, wall: Callable[[], float]) -> None:
        self.version = 0
        self._day = day
        self._wall = wall
        self._allowances = Allowances()
        self._patterns: list[tuple[re.Pattern[str], Allowance]] = []
        self._counters: _Counted = {}
        self._told: dict[tuple[str, str], dict[str, Told]] = {}
        self._of: dict[Owner, tuple[Counter, ...]] = {}
        self._part = 1.0

    def configure(self, allowances: Allowances) -> None:
        """What may be used from now on; what was counted against a limit stays if that does, be
        it with another amount."""
        self._allowances = allowances
        self._patterns = [(_pattern(name), each) for name, each in allowances.models.items()]
        before, self._counters = self._counters, {}
        for owner in dict.fromkeys(owner for owner, _ in before):
            self._counters |= self._counted(owner, before)
        self._of.clear()
        self.version += 1

    def of(self, key: str, group: str, model: str) -> tuple[Counter, ...]:
        """Every counter that a call with this key to this model has to pass."""
        found = self._of.get((key, group, model))
        if found is None:
            if len(self._of) >= _MOST:
                self._of.clear()
            found = self._of[key, group, model] = tuple(self._gather(key, group, model))
        return found

    def hear(
        self,
        group: str,
        model: str,
        headers: Sequence[tuple[bytes, bytes]],
        now: float,
        sent: float,
    ) -> None:
        """Learn from the headers of an answer to a call that was ``sent`` then."""
        for kind, limit, remaining, reset in read_headers(headers):
            known = self._told.get((group, model))
            if known is None:
                if len(self._told) >= _MOST:
                    self._told.clear()
                known = self._told[group, model] = {
                    "requests": Told("requests"),
                    "tokens": Told("tokens"),
                }
                self._of.clear()
            known[kind].hear(limit, remaining, reset, now, sent)

    def share(self, part: float) -> None:
        """Use only this part of each limit, because others use the rest unseen."""
        self._part = part
        for _, window in self.windows():
            window.allow(window.limit, part)
        self.version += 1

    def counted(self) -> Iterator[tuple[Owner, Sliding | Slots]]:
        """All that is counted, by its owners."""
        return ((owner, counter) for (owner, _), counter in self._counters.items())

    def windows(self) -> Iterator[tuple[Owner, Sliding]]:
        """All counts by their owners."""
        return (
            (owner, counter)
            for (owner, _), counter in self._counters.items()
            if isinstance(counter, Sliding)
        )

    def slots(self) -> Iterator[tuple[Owner, Slots]]:
        """All counts of calls at a time by their owners."""
        return (
            (owner, counter)
            for (owner, _), counter in self._counters.items()
            if isinstance(counter, Slots)
        )

    def told(self, group: str) -> Iterator[tuple[str, Told]]:
        """What a provider told of a group's limits, by model."""
        return (
            (model, each)
            for (name, model), kinds in self._told.items()
            if name == group
            for each in kinds.values()
        )

    def limits(self, seconds: int) -> bool:
        """Whether any limit over so many seconds is configured."""
        each = self._allowances
        configured = [*each.keys.values(), *each.groups.values(), *each.models.values()]
        return any(limit.seconds == seconds for one in configured for limit in one.limits)

    def replay(
        self, seconds: int, owner: Owner, when: float, requests: int, tokens: int, now: float
    ) -> None:
        """Count what was used before this process began; ``owner`` names key, group and model."""
        for counter in self.of(*owner):
            if isinstance(counter, Sliding) and counter.limit.seconds == seconds:
                counter.forget(now)
                counter.add(when, tokens if counter.limit.kind == "tokens" else requests)

    def block(self, name: str, until: float) -> None:
        """Another gateway has used up what this window allows."""
        for _, window in self.windows():
            if window.name == name:
                window.blocked_until = until

    def _gather(self, key: str, group: str, model: str) -> Iterator[Counter]:
        for owner in ((key, group, ""), ("", group, ""), ("", group, model)):
            counted = self._counted(owner, self._counters)
            if counted:
                self._make_room()
                self._counters |= counted
            yield from counted.values()
        yield from self._told.get((group, model), {}).values()

    def _counted(self, owner: Owner, known: _Counted) -> _Counted:
        """All that is counted for one owner: what is known of it, and what is new."""
        counted: _Counted = {}
        allowance = self._allowance(*owner)
        for limit in allowance.limits:
            window = known.get((owner, limit.type))
            if not isinstance(window, Sliding):
                window = self._window(_name(owner, limit.type), limit)
            window.allow(limit, self._part)
            counted[owner, limit.type] = window
        if allowance.concurrency is not None:
            slots = known.get((owner, CONCURRENT))
            if not isinstance(slots, Slots):
                slots = Slots(_name(owner, CONCURRENT), 0)
            slots.amount = allowance.concurrency
            counted[owner, CONCURRENT] = slots
        return counted

    def _allowance(self, key: str, group: str, model: str) -> Allowance:
        configured = self._allowances
        if key:
            return configured.keys.get(key, _NOTHING)
        if not model:
            return configured.groups.get(group, _NOTHING)
        matching = (each for pattern, each in self._patterns if pattern.fullmatch(model))
        return next(matching, _NOTHING)

    def _window(self, name: str, limit: Limit) -> Sliding:
        if limit.seconds == DAY and self._day is not None:
            return Daily(name, limit, self._day, self._wall)
        return Sliding(name, limit)

    def _make_room(self) -> None:
        """Clients may name any model: forget those that nobody uses, or else all of them."""
        if len(self._counters) >= _MOST:
            lasting = {place: each for place, each in self._counters.items() if not place[0][2]}
            used = {place: each for place, each in self._counters.items() if each.used}
            self._counters = lasting | used if len(lasting | used) < _MOST else lasting
            self._of.clear()


def admit(counters: tuple[Counter, ...], now: float, tokens: int) -> Counter | None:
    """Count a call, unless a counter has no room for it: then that one, and nothing is counted."""
    for place, counter in enumerate(counters):
        if counter.admit(now, tokens):
            for counted in counters[:place]:
                counted.undone(now, tokens)
            return counter
    return None


def _name(owner: Owner, type: str) -> str:
    return msgspec.json.encode([*owner, type]).decode()


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, name.split("*"))), re.DOTALL)
