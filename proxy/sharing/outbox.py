"""What waits to be sent to the server. All of it is bounded: nothing grows while that is away."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec.structs import replace

from proxy.sharing.types import Rest, Settlement

PLACES = 1024
"""How many rests, and how many lifts, are remembered; then the oldest goes."""

SETTLEMENTS = 4096
"""How many settlements wait; then the oldest is lost."""

ROWS = 1000
"""How many rows of calls wait; then the oldest is left out."""

BATCH = 100
"""How many of each kind are sent at once: a round trip has its time limit."""


class Batch(NamedTuple):
    """What is sent at once, lifts first: a rest that comes after a lift of its place stays."""

    lifts: Sequence[str]
    rests: Sequence[Rest]
    offs: Sequence[Settlement]
    rows: Sequence[bytes]
    frees: Sequence[tuple[str, str]]


class Outbox:
    """Rests that this node has published are kept until they are lifted or gone: a server that
    comes back without its memory gets them again.

    Rests, lifts and frees can be sent twice and are; a settlement or a row is sent once or never.
    """

    def __init__(self) -> None:
        self._own: dict[str, Rest] = {}
        self._unsent: dict[str, None] = {}  # a set that remembers its order
        self._lifts: dict[str, None] = {}
        self._offs: deque[Settlement] = deque(maxlen=SETTLEMENTS)
        self._rows: deque[bytes] = deque(maxlen=ROWS)
        self._frees: dict[tuple[str, str], None] = {}  # names and tokens of slots

    def __bool__(self) -> bool:
        return bool(self._unsent or self._lifts or self._offs or self._rows or self._frees)

    @property
    def frees(self) -> bool:
        """Whether a slot is free that others take for held."""
        return bool(self._frees)

    @property
    def urgent(self) -> bool:
        """Whether a rest or a lift waits, which other nodes should know of."""
        return bool(self._unsent or self._lifts)

    def rest(self, rest: Rest, now: int) -> None:
        """``now`` is UTC milliseconds by the server's clock, as far as it is known."""
        old = self._own.pop(rest.place, None)
        self._own[rest.place] = rest if old is None or old.until <= now else longer(old, rest)
        self._unsent[rest.place] = None
        if len(self._own) > PLACES:
            oldest = next(iter(self._own))
            del self._own[oldest]
            self._unsent.pop(oldest, None)

    def lift(self, places: Iterable[str]) -> None:
        for place in places:
            self._own.pop(place, None)
            self._unsent.pop(place, None)
            self._lifts[place] = None
            if len(self._lifts) > PLACES:
                del self._lifts[next(iter(self._lifts))]

    def settle(self, off: Settlement) -> None:
        self._offs.append(off)

    def free(self, name: str, token: str) -> None:
        self._frees[name, token] = None

    def row(self, row: bytes) -> None:
        self._rows.append(row)

    def take(self) -> Batch:
        lifts, self._lifts = list(self._lifts), {}
        places = list(islice(self._unsent, BATCH))
        for place in places:
            del self._unsent[place]
        offs = [self._offs.popleft() for _ in range(min(BATCH, len(self._offs)))]
        rows = [self._rows.popleft() for _ in range(min(BATCH, len(self._rows)))]
        frees = list(islice(self._frees, BATCH))
        for free in frees:
            del self._frees[free]
        return Batch(lifts, [self._own[place] for place in places], offs, rows, frees)

    def put_back(self, batch: Batch) -> None:
        """It may have arrived or not. What came after it has the last word."""
        self._lifts = dict.fromkeys([*batch.lifts, *self._lifts])
        kept = [rest.place for rest in batch.rests if rest.place in self._own]
        self._unsent = dict.fromkeys([*kept, *self._unsent])
        self._frees = dict.fromkeys([*batch.frees, *self._frees])

    def again(self) -> None:
        """All that this node has published is to be sent once more."""
        self._unsent = dict.fromkeys(self._own)

    def over(self, rests: Iterable[Rest]) -> dict[str, Rest]:
        """The server's rests as they will be when all that waits here has been sent."""
        known = {rest.place: rest for rest in rests if rest.place not in self._lifts}
        for place in self._unsent:
            own = self._own[place]
            known[place] = longer(known[place], own) if place in known else own
        return known

    def forget(self, known: Iterable[str]) -> None:
        """Of what was sent, only the places in ``known`` rest still."""
        stay = {*known, *self._unsent}
        self._own = {place: rest for place, rest in self._own.items() if place in stay}


def longer(old: Rest, new: Rest) -> Rest:
    """A rest is never shortened, and its count never falls; the server does the same."""
    kept = old if old.until >= new.until else new
    return replace(kept, count=max(old.count, new.count))
