"""What the workers of one host share, in the memory of one process: the decisions of ``scripts``
without a server. Pure: times are UTC milliseconds, given by the caller.

Windows are counted in the same steps as there, and told by the same names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple

from proxy.sharing.outbox import longer
from proxy.sharing.types import Denial, Rest, Settlement, WindowClaim

_KEPT_MS = 90_000_000  # a fixed window after its end: two may disagree on when their day begins
_SWEEP_MS = 60_000


class _Key(NamedTuple):
    name: str
    seconds: int
    start: int | None


class Board:
    """The rests, the counts in windows, and who probes. A ``holder`` is one of those who share."""

    def __init__(self) -> None:
        self._rests: dict[str, Rest] = {}
        self._windows: dict[_Key, _Window] = {}
        self._probes: dict[str, tuple[int, int]] = {}  # the holder, and until when
        self._slots: dict[str, dict[str, int]] = {}  # tokens and their holders
        self._swept = 0
        self._begun = False

    def begin(self, rests: Iterable[Rest], uses: Iterable[Settlement], at: int) -> None:
        """What was so before there was a board. All have read the same: the first word counts."""
        if not self._begun:
            self._begun = True
            for rest in rests:
                self.rest(rest, at)
            for use in uses:
                self.settle(use, at)

    def claim(
        self,
        places: Sequence[str],
        windows: Sequence[WindowClaim],
        probe: str | None,
        probe_ms: int,
        holder: int,
        at: int,
    ) -> Denial | None:
        """All or nothing: no place rests, every window has room, nobody probes. None: granted.

        Of several that say no it is the one that does so the longest.
        """
        self._sweep(at)
        rests = [self._rests[place] for place in places if place in self._rests]
        rest = max(rests, key=lambda each: each.until, default=None)
        if rest is not None and rest.until > at:
            return Denial(rest.place, (rest.until - at) / 1000, rest)
        counted = [(self._window(each.name, each.seconds, each.start), each) for each in windows]
        waits = [(each.name, window.wait(each.limit, each.cost, at)) for window, each in counted]
        name, wait = max(waits, key=itemgetter(1), default=("", 0))
        if wait > 0:
            return Denial(name, wait / 1000, None)
        if probe is not None:
            _, until = self._probes.get(probe, (0, 0))
            if until > at:
                return Denial(probe, (until - at) / 1000, None)
            self._probes[probe] = holder, at + probe_ms
        for window, each in counted:
            window.add(at, each.cost)
        return None

    def hold(self, name: str, limit: int, token: str, holder: int) -> bool:
        """Take one of so many slots, if one is free."""
        held = self._slots.setdefault(name, {})
        if len(held) >= limit:
            return False
        held[token] = holder
        return True

    def free(self, name: str, token: str) -> None:
        held = self._slots.get(name, {})
        held.pop(token, None)
        if not held:
            self._slots.pop(name, None)

    def rest(self, rest: Rest, at: int) -> None:
        """A longer rest is not shortened, and whoever probed has its answer."""
        self._probes.pop(rest.place, None)
        old = self._rests.get(rest.place)
        kept = rest if old is None or old.until <= at else longer(old, rest)
        if kept.until > at:
            self._rests[rest.place] = kept

    def lift(self, places: Iterable[str]) -> None:
        for place in places:
            self._rests.pop(place, None)
            self._probes.pop(place, None)

    def settle(self, off: Settlement, at: int) -> None:
        """Correct a window where the claim was counted; what counts no more is left alone."""
        self._window(off.name, off.seconds, off.start).correct(off.at, off.difference, at)

    def gone(self, holder: int) -> None:
        """It has ended, and so have its probes and its calls."""
        self._probes = {name: each for name, each in self._probes.items() if each[0] != holder}
        for name, held in list(self._slots.items()):
            for token in [token for token, by in held.items() if by == holder]:
                self.free(name, token)

    def rests(self, at: int) -> list[Rest]:
        """All that rests."""
        self._rests = {place: rest for place, rest in self._rests.items() if rest.until > at}
        return list(self._rests.values())

    def used(self, windows: Iterable[WindowClaim], at: int) -> list[int]:
        """What each of these windows holds."""
        return [self._window(each.name, each.seconds, each.start).used(at) for each in windows]

    def counts(self, at: int) -> dict[str, int]:
        """What is counted in the windows by their names; of a fixed window in the newest."""
        keys = sorted(self._windows, key=lambda key: (key.name, key.start or 0))
        return {key.name: self._windows[key].used(at) for key in keys}

    def _window(self, name: str, seconds: int, start: int | None) -> _Window:
        key = _Key(name, seconds, start)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(seconds, start)
        return window

    def _sweep(self, at: int) -> None:
        """Models may have any name, so what is over is dropped now and then."""
        if at - self._swept >= _SWEEP_MS:
            self._swept = at
            self._windows = {key: each for key, each in self._windows.items() if each.lasts(at)}
            self._probes = {name: each for name, each in self._probes.items() if each[1] > at}


class _Window:
    """Counts by steps; a fixed window, from ``start`` on, is one step."""

    __slots__ = ("_counts", "_ms", "_start", "_steps")

    def __init__(self, seconds: int, start: int | None) -> None:
        self._ms = seconds * 1000
        self._start = start
        self._steps = 60 if seconds <= 3600 else 240
        self._counts: dict[int, int] = {}

    def wait(self, limit: int, cost: int, at: int) -> int:
        """Milliseconds until there is room. A window in which nothing is counted takes anything:
        a cost that is larger than the limit must not wait for ever."""
        used = self.used(at)
        if not used or used + cost <= limit:
            return 0
        if self._start is not None:
            return max(1, self._start + self._ms - at)
        step = 0
        for step in sorted(self._counts):
            used -= self._counts[step]
            if not used or used + cost <= limit:
                break
        return math.ceil((step + self._steps + 1) * self._ms / self._steps) - at

    def add(self, at: int, count: int) -> None:
        step = self._step(at)
        self._counts[step] = max(0, self._counts.get(step, 0) + count)

    def correct(self, counted: int, difference: int, at: int) -> None:
        if self._step(counted) >= self._step(at) - self._steps:
            self.add(counted, difference)

    def used(self, at: int) -> int:
        if self._start is None:
            oldest = self._step(at) - self._steps
            for step in [step for step in self._counts if step < oldest]:
                del self._counts[step]
        return sum(self._counts.values())

    def lasts(self, at: int) -> bool:
        if self._start is not None:
            return self._start + self._ms + _KEPT_MS > at
        return self.used(at) > 0

    def _step(self, at: int) -> int:
        return 0 if self._start is not None else at * self._steps // self._ms
