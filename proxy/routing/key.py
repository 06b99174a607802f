"""One credential of a provider."""

from __future__ import annotations

import msgspec


class Key(msgspec.Struct):
    """One credential. Keys of one ``quota_group`` share what the provider lets them use.

    A key without a secret stands for a provider that asks for none. ``turn`` is its place in the
    round: the lowest is next (stride scheduling). ``load`` is what it has in flight by its weight,
    then its turn: kept at hand, since every request compares it. ``disabled``: an operator took it
    out.
    """

    name: str
    secret: str | None
    quota_group: str
    weight: float = 1.0
    order: int = 0
    in_flight: int = 0
    load: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    tried: int = 0
    succeeded: int = 0
    disabled: bool = False

    def __repr__(self) -> str:
        return f"Key({self.name!r}, in_flight={self.in_flight})"
