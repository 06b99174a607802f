"""What may be spent: so many dollars in a period, by whom, and what happens beyond."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from proxy.periods import Period, period

SCOPES: Mapping[str, str | None] = {
    "all": None,
    "client": "client_id",
    "user": "user_id",
    "tag": "tags",
    "provider": "provider",
}
"""Whose calls a budget counts: the column of a call that has to be the budget's ``value``, or to
have it among its tags."""

Mode = Literal["hard", "soft"]
Unpriced = Literal["refuse", "allow"]


class Budget(msgspec.Struct, frozen=True):
    """``limit_nano`` nano-dollars in each period. Beyond it, ``hard`` refuses and ``soft`` tells.

    ``unpriced`` says what a hard budget does with a model whose price nobody knows.
    """

    id: str
    name: str
    limit_nano: int
    period: str
    scope: str = "all"
    value: str = ""
    time_zone: str = "UTC"
    mode: Mode = "hard"
    unpriced: Unpriced = "refuse"

    @property
    def account(self) -> str:
        """What it is counted under: a budget that counts other calls, or over another time, begins
        anew."""
        return f"{self.id} {self.scope}:{self.value} {self.period} {self.time_zone}"

    @property
    def span(self) -> Period:
        return period(self.period, self.time_zone)


class Charge(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A budget that a call counts for: its account, the part of its window by its start (UTC
    milliseconds), and the lease that the cost was held by, if any."""

    account: str
    bucket: int
    lease: str | None = None
