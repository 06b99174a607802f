"""What may be spent: so many dollars in a period, by whom, and what happens beyond."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
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


@lru_cache(maxsize=10_000)
def counted_under(account: str) -> Budget | None:
    """A budget that counts what the one of this account does, without a limit. None where another
    version of this program made the account, in a way that is not known here."""
    whose, *terms = account.rsplit(" ", 2)
    id, _, scope = whose.partition(" ")
    kind, _, value = scope.partition(":")
    try:
        span, zone = terms
        period(span, zone)
    except ValueError:
        return None
    budget = Budget(id, id, 0, span, kind, value, zone)
    return budget if kind in SCOPES and budget.account == account else None
