"""The nouns: what rests, what is claimed, and how a claim is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

Granted = Callable[[int, Sequence[int]], None]
"""Told of a claim that was granted: when, in UTC milliseconds by the server's clock, and what each
of its windows holds now."""


class Rest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that rests.

    ``place`` is opaque. ``until`` and ``probe_at`` are UTC milliseconds by the server's clock;
    ``count`` is refusals in a row.
    """

    place: str
    until: int
    reason: str
    state: str
    count: int
    probe_at: int | None = None


class WindowClaim(msgspec.Struct, frozen=True):
    """``cost`` out of ``limit`` in the last ``seconds``, or since ``start`` where that is given.

    ``start`` is UTC milliseconds: when a fixed window (a provider's day) of ``seconds`` began.
    """

    name: str
    limit: int
    seconds: int
    cost: int
    start: int | None = None


class Denial(msgspec.Struct, frozen=True):
    """The place, window or probe that said no, and the seconds until it is worth asking again."""

    name: str
    wait: float
    rest: Rest | None


class Settlement(msgspec.Struct, frozen=True):
    """What a claim took from a window was off by ``difference``; ``at`` is when it was counted,
    UTC milliseconds by the server's clock."""

    name: str
    seconds: int
    start: int | None
    difference: int
    at: int


class State(Protocol):
    """Where a claim is made and news are told: a server, or the supervisor of this host's workers.

    ``offset_ms`` is its clock minus this machine's. ``claim`` gives None for a grant, also where
    nobody is there to ask; ``counted`` is told of it if it was counted.
    """

    @property
    def available(self) -> bool: ...

    @property
    def offset_ms(self) -> int: ...

    async def claim(
        self,
        places: Sequence[str],
        windows: Sequence[WindowClaim],
        probe: str | None = None,
        probe_ms: int = 150_000,
        counted: Granted | None = None,
    ) -> Denial | None: ...

    def token(self) -> str:
        """What nobody else holds a slot by."""
        ...

    async def hold(self, name: str, limit: int, token: str) -> bool:
        """Take one of ``limit`` slots of this name, until it is freed or whoever holds it has
        ended. False: all are taken. True also where nobody is there to ask."""
        ...

    def free(self, name: str, token: str) -> None:
        """Give a slot back; one that was never taken is none."""
        ...

    def rest(self, rest: Rest) -> None: ...

    def lift(self, places: Sequence[str]) -> None: ...

    def settle(
        self, name: str, seconds: int, start: int | None, difference: int, at: int
    ) -> None: ...

    async def snapshot(self) -> tuple[list[Rest], dict[str, int]]: ...
