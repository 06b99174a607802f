from __future__ import annotations

import msgspec
import pytest

from proxy.budget import SCOPES, Budget
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
