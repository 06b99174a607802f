from __future__ import annotations

import msgspec
import pytest

from proxy.budget import SCOPES, Budget, counted_under
from proxy.types import CallRecord

TEAM = Budget("team", "team", 10, "month")


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "b"},
        {"scope": "client", "value": "ck-1"},
        {"scope": "provider", "value": "ck-1"},
        {"period": "week"},
        {"time_zone": "Europe/Berlin"},
    ],
)
def test_a_budget_that_counts_something_else_begins_anew(changes: dict[str, str]) -> None:
    assert msgspec.structs.replace(TEAM, **changes).account != TEAM.account


def test_a_budget_with_another_limit_goes_on() -> None:
    more = msgspec.structs.replace(TEAM, limit_nano=20, mode="soft", unpriced="allow")
    assert more.account == TEAM.account


def test_a_scope_is_a_column_of_a_call() -> None:
    assert set(SCOPES.values()) - {None} <= set(CallRecord.__struct_fields__)


@pytest.mark.parametrize(
    "budget",
    [
        TEAM,
        Budget("a.b@c-d", "n", 1, "24h", "user", " ann: x 7d UTC ", "Europe/Berlin", "soft"),
        Budget("ck-1-2", "ann", 1, "7d", "client", "ck-1"),
        Budget("t", "t", 1, "day", "tag", "für alle"),
    ],
)
def test_an_account_tells_what_is_counted(budget: Budget) -> None:
    found = counted_under(budget.account)
    assert found is not None
    assert found.account == budget.account
    for name in ("id", "period", "scope", "value", "time_zone"):
        assert getattr(found, name) == getattr(budget, name)


@pytest.mark.parametrize(
    "account",
    [
        "",
        "x",
        "a all: day",
        "a all: day Nowhere",
        "a all: fortnight UTC",
        "a team:x day UTC",
        "a b c d",
    ],
)
def test_an_account_in_another_form_tells_nothing(account: str) -> None:
    assert counted_under(account) is None
