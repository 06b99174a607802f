"""The nouns: what rests, what is claimed, and how a claim is refused."""

from __future__ import annotations

import msgspec


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
