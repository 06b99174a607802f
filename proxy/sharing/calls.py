"""Questions as calls of scripts, and what their replies mean. Pure: no server, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from proxy.sharing import scripts
from proxy.sharing.outbox import Batch
from proxy.sharing.types import Denial, Rest, Settlement, WindowClaim

NEWEST = 1000
"""How many rows of calls are held for all to show."""

ALIVE_MS = 5000
"""A node that was not seen for so long is dead."""


class Call(NamedTuple):
    """A script, the keys that it touches and its other arguments."""

    script: str
    keys: Sequence[str]
    args: Sequence[str | int | bytes]


class Calls:
    """The calls of one installation. ``prefix`` is what its keys have in common.

    It stands in braces, so that a cluster keeps all the keys in one slot.
    """

    def __init__(self, prefix: str) -> None:
        self._tag = f"{{{prefix}}}:"
        self._rests = self._tag + "rests"
        self._nodes = self._tag + "nodes"
        self._windows = self._tag + "windows"
        self._newest = self._tag + "newest"
        self.channel = self._tag + "changed"

    def claim(
        self,
        places: Sequence[str],
        windows: Sequence[WindowClaim],
        probe: str | None,
        probe_ms: int,
        token: str,
    ) -> Call:
        """``token`` tells this claim's probe from all others."""
        keys = [self._rests, self._windows, self._probe(probe or "")]
        keys += [self._window(each.name, each.seconds, each.start) for each in windows]
        args: list[str | int | bytes] = ["" if probe is None else token, probe_ms, len(places)]
        args += places
        for each in windows:
            args += [each.limit, each.cost, each.seconds, "" if each.start is None else each.start]
        return Call(scripts.CLAIM, keys, args)

    def hold(self, name: str, limit: int, token: str) -> Call:
        return Call(scripts.HOLD, [self._slots(name), self._nodes], [limit, token, ALIVE_MS])

    def free(self, name: str, token: str) -> Call:
        return Call(scripts.FREE, [self._slots(name)], [token])

    def rest(self, rest: Rest) -> Call:
        keys = [self._rests, self._probe(rest.place)]
        return Call(scripts.REST, keys, [rest.place, msgspec.json.encode(rest), self.channel])

    def lift(self, places: Sequence[str]) -> Call:
        keys = [self._rests, *map(self._probe, places)]
        return Call(scripts.LIFT, keys, [self.channel, *places])

    def settle(self, off: Settlement) -> Call:
        keys = [self._window(off.name, off.seconds, off.start), self._windows]
        start = "" if off.start is None else off.start
        return Call(scripts.SETTLE, keys, [off.difference, off.at, off.seconds, start])

    def batch(self, batch: Batch) -> list[Call]:
        """All that waited, in the order in which it holds."""
        frees = [self.free(name, token) for name, token in batch.frees]
        lifts = [self.lift(batch.lifts)] if batch.lifts else []
        rows = [self.push(batch.rows)] if batch.rows else []
        return [*frees, *lifts, *map(self.rest, batch.rests), *map(self.settle, batch.offs), *rows]

    def push(self, rows: Sequence[bytes]) -> Call:
        """Hand on the rows of calls, the oldest first."""
        return Call(scripts.PUSH, [self._newest], [NEWEST, *rows])

    def newest(self) -> Call:
        return Call(scripts.NEWEST, [self._newest], [NEWEST])

    def refresh(self, node: str) -> Call:
        keys = [self._rests, self._nodes, self._windows]
        return Call(scripts.REFRESH, keys, [node, ALIVE_MS])

    def leave(self, node: str) -> Call:
        return Call(scripts.LEAVE, [self._nodes], [node])

    def windows(self) -> Call:
        return Call(scripts.WINDOWS, [self._windows], [])

    def count(self, keys: Sequence[str]) -> Call:
        """How much is counted in windows, by their keys as ``windows`` listed them."""
        kinds = [key.removeprefix(self._tag).split(":", 2) for key in keys]
        seconds = [number if kind == "sliding" else "" for kind, number, _ in kinds]
        return Call(scripts.COUNT, keys, seconds)

    def window_name(self, key: str) -> str:
        return key.removeprefix(self._tag).split(":", 2)[2]

    def _slots(self, name: str) -> str:
        return f"{self._tag}slots:{name}"

    def _probe(self, name: str) -> str:
        return f"{self._tag}probe:{name}"

    def _window(self, name: str, seconds: int, start: int | None) -> str:
        """The length is part of it: steps of another length cannot be added to."""
        if start is None:
            return f"{self._tag}sliding:{seconds}:{name}"
        return f"{self._tag}fixed:{start}:{name}"


def denial(
    reply: Sequence[Any], places: Sequence[str], windows: Sequence[WindowClaim], probe: str | None
) -> Denial | None:
    """What ``CLAIM`` replied; None is a grant."""
    match reply:
        case [1, which, wait, rest]:
            return Denial(places[which - 1], wait / 1000, next(rests([rest]), None))
        case [2, which, wait]:
            return Denial(windows[which - 1].name, wait / 1000, None)
        case [3, _, wait]:
            return Denial(probe or "", max(wait, 1) / 1000, None)
    return None


def rests(rows: Iterable[bytes]) -> Iterator[Rest]:
    """The rests of a reply. One that another version wrote, and this one cannot read, is none."""
    for row in rows:
        try:
            yield _decoder.decode(row)
        except msgspec.DecodeError:
            continue


_decoder = msgspec.json.Decoder(Rest)
