"""What key pools have learnt or were told, as rows: rests, switches, counts and breakers."""

from __future__ import annotations

from typing import Literal

import msgspec

Source = Literal["header", "body", "local"]
"""Who said how long a key rests: the provider, in either place, or this program."""


class CooldownRecord(msgspec.Struct, frozen=True):
    """A rest: a row of ``rate_limits`` with the limit_type ``cooldown``.

    It is a quota group's (``account``; ``key_id`` is the key that was refused), a key's (``key_id``
    alone) or the provider's (neither). ``model`` is "" for all models, ``*:free`` for all whose
    names end so. ``until`` and ``at`` (when it was ordered) are UTC milliseconds,
    ``backoff_count`` the number of rests in a row.
    """

    provider: str
    model: str
    key_id: str
    account: str
    until: int
    reason: str
    backoff_count: int
    at: int
    source: Source = "local"
    probe_at: int | None = None


class LiftRecord(msgspec.Struct, frozen=True):
    """A rest is over before its time: that of a group (``account``), a key, or neither."""

    provider: str
    model: str
    key_id: str
    account: str
    at: int


class SwitchRecord(msgspec.Struct, frozen=True):
    """An operator took a key out, or put it back: a row with the limit_type ``disabled``."""

    provider: str
    key_id: str
    account: str
    disabled: bool
    at: int


class CountRecord(msgspec.Struct, frozen=True):
    """What a configured limit has counted: a row of ``rate_limits`` with the source ``config``.

    ``reset`` is when nothing of it will count any more; instants are UTC milliseconds.
    """

    provider: str
    model: str
    key_id: str
    account: str
    limit_type: str
    limit: int
    used: int
    window_seconds: int | None
    reset: int | None
    at: int


class BreakerRecord(msgspec.Struct, frozen=True):
    """A breaker has turned: a row of ``provider_health_events``, and the state in
    ``provider_health``. ``until`` ends the open time; instants are UTC milliseconds."""

    provider: str
    model: str
    from_state: str
    to_state: str
    reason: str
    until: int | None
    openings: int
    at: int
