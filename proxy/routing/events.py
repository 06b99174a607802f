"""What a key pool tells of itself: what rests, what rests no more, and what was switched."""

from __future__ import annotations

import msgspec

from proxy.changes import Source
from proxy.routing.health import Turned
from proxy.routing.key import Key
from proxy.routing.rests import Place, Rest


class Parked(msgspec.Struct, frozen=True):
    """What rests from now on; ``key`` is the one that was refused, ``source`` who said how long."""

    provider: str
    key: Key
    place: Place
    rest: Rest
    source: Source


class Lifted(msgspec.Struct, frozen=True):
    """What rests no more, before its time."""

    provider: str
    places: list[Place]


class Switched(msgspec.Struct, frozen=True):
    """An operator has taken a key out, or put it back."""

    provider: str
    key: Key


Event = Parked | Lifted | Switched | Turned
