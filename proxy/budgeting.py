"""Budgets as they are written, in the configuration and for a client's key."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from proxy.budget import Budget, Mode, Unpriced
from proxy.fields import Lower, Name, Part, Usd
from proxy.limiting import said
from proxy.money import NANO
from proxy.periods import period

MOST_BUDGETS = 10
"""Of one client."""


def _told_apart(usd: Decimal) -> Decimal:
    if usd * NANO < 1:
        raise ValueError("must be a nano-dollar at least")
    return usd


class KeyBudget(Part):
    """A budget of one client."""

    limit_usd: Annotated[Usd, Field(gt=0), AfterValidator(_told_apart)]
    period: Annotated[str, Lower]
    time_zone: str = "UTC"
    mode: Annotated[Mode, Lower] = "hard"
    unpriced: Annotated[Unpriced, Lower] = "refuse"

    def of(self, client_id: str, client: str, place: int) -> Budget:
        """The budget of a client, at its place among those of that client."""
        return Budget(
            id=f"{client_id}-{place}",
            name=client,
            limit_nano=int(self.limit_usd * NANO),
            period=self.period,
            scope="client",
            value=client_id,
            time_zone=self.time_zone,
            mode=self.mode,
            unpriced=self.unpriced,
        )

    @model_validator(mode="after")
    def _periodic(self) -> Self:
        try:
            period(self.period, self.time_zone)
        except ValueError as error:
            raise ValueError(f"period and time_zone: {error}") from None
        return self


def of_client(asked: Iterable[KeyBudget], client_id: str, client: str) -> tuple[Budget, ...]:
    """The budgets of a client as they are asked for."""
    return tuple([each.of(client_id, client, place) for place, each in enumerate(asked, 1)])


def parsed(text: str) -> KeyBudget:
    """The budget that ``20/month`` is, or ``5/24h/soft``. ValueError if it is none."""
    usd, _, rest = text.partition("/")
    span, _, mode = rest.partition("/")
    told = {"limit_usd": usd, "period": span, "mode": mode if text.count("/") > 1 else "hard"}
    return KeyBudget.model_validate(told)


class BudgetSettings(KeyBudget):
    """A budget by its ``name``, of everybody, or of the client, user, tag or provider that
    ``value`` is."""

    name: Name
    scope: Annotated[Literal["all", "client", "user", "tag", "provider"], Lower] = "all"
    value: str = ""

    @model_validator(mode="after")
    def _whose(self) -> Self:
        if bool(self.value) == (self.scope == "all"):
            raise ValueError("value: is needed with every scope but all, and only there")
        said(self.scope, self.value)
        return self


def _distinct(budgets: list[BudgetSettings]) -> list[BudgetSettings]:
    names = [each.name for each in budgets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"each budget needs a name of its own (twice: {', '.join(twice)})")
    return budgets


Budgets = Annotated[list[BudgetSettings], AfterValidator(_distinct)]
