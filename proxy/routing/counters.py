"""The counters that stand between a key and a model: configured limits, and limits that were told.

A limit is counted for a key, for a quota group, or for a group and a model: whatever of that holds
for a call has to have room for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import tzinfo

import msgspec

from proxy.routing.limits import Counter, Daily, Limit, Sliding, Slots, Told, read_headers

_MOST = 4096  # (key, model) pairs and limits held; clients may name any model

Owner = tuple[str, str, str]
"""Whose use is counted: the key's name ("" for all of the group), its quota group, and the model
("" for all)."""


class Allowance(msgspec.Struct, frozen=True):
    """What somebody may use: requests and tokens by the minute and day, and calls at a time."""

    limits: tuple[Limit, ...] = ()
    concurrency: int | None = None


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
        self._counters: dict[tuple[Owner, str], Sliding | Slots] = {}
        self._told: dict[tuple[str, str], dict[str, Told]] = {}
        self._of: dict[tuple[str, str], tuple[Counter, ...]] = {}
        self._part = 1.0

    def configure(self, allowances: Allowances) -> None:
        """What may be used from now on; what was counted against an unchanged limit stays."""
        self._allowances = allowances
        self._patterns = [(_pattern(name), each) for name, each in allowances.models.items()]
        self._of.clear()
        self.version += 1

    def of(self, key: str, group: str, model: str) -> tuple[Counter, ...]:
        """Every counter that a call with this key to this model has to pass."""
        found = self._of.get((key, model))
        if found is None:
            if len(self._of) >= _MOST:
                self._of.clear()
            found = self._of[key, model] = tuple(self._gather(key, group, model))
        return found

    def hear(
        self, group: str, model: str, headers: Sequence[tuple[bytes, bytes]], now: float
    ) -> None:
        """Learn from the headers of an answer."""
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
            known[kind].hear(limit, remaining, reset, now)

    def share(self, part: float) -> None:
        """Use only this part of each limit, because others use the rest unseen."""
        self._part = part
        for counter in self._counters.values():
            if isinstance(counter, Sliding):
                counter.share(part)
        self.version += 1

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

    def replay(self, seconds: int, owner: Owner, when: float, requests: int, tokens: int) -> None:
        """Count what was used before this process began; ``owner`` names key, group and model."""
        for counter in self.of(*owner):
            if isinstance(counter, Sliding) and counter.limit.seconds == seconds:
                counter.add(when, tokens if counter.limit.kind == "tokens" else requests)

    def block(self, name: str, until: float) -> None:
        """Another gateway has used up what this window allows."""
        for _, window in self.windows():
            if window.name == name:
                window.blocked_until = until

    def _gather(self, key: str, group: str, model: str) -> Iterator[Counter]:
        configured = self._allowances
        yield from self._counted((key, group, ""), configured.keys.get(key))
        yield from self._counted(("", group, ""), configured.groups.get(group))
        for pattern, allowance in self._patterns:
            if pattern.fullmatch(model):
                yield from self._counted(("", group, model), allowance)
                break
        yield from self._told.get((group, model), {}).values()

    def _counted(self, owner: Owner, allowance: Allowance | None) -> Iterator[Counter]:
        if allowance is None:
            return
        for limit in allowance.limits:
            known = self._counters.get((owner, limit.type))
            if not isinstance(known, Sliding) or known.limit.amount != limit.amount:
                known = self._new(owner, limit)
            yield known
        if allowance.concurrency is not None:
            slots = self._counters.get((owner, "concurrent"))
            if not isinstance(slots, Slots):
                slots = self._counters[owner, "concurrent"] = Slots(_name(owner, "concurrent"), 0)
            slots.amount = allowance.concurrency
            yield slots

    def _new(self, owner: Owner, limit: Limit) -> Sliding:
        if len(self._counters) >= _MOST:  # of models that nobody uses
            used = {place: each for place, each in self._counters.items() if each.used}
            self._counters = used if len(used) < _MOST else {}
            self._of.clear()
        name = _name(owner, limit.type)
        window: Sliding
        if limit.seconds > 3600 and self._day is not None:
            window = Daily(name, limit, self._day, self._wall)
        else:
            window = Sliding(name, limit)
        before = self._counters.get((owner, limit.type))
        if isinstance(before, Sliding):
            window.inherit(before)
        window.share(self._part)
        self._counters[owner, limit.type] = window
        return window


def _name(owner: Owner, type: str) -> str:
    return msgspec.json.encode([*owner, type]).decode()


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, name.split("*"))))
