from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from proxy.budgeting import Budgets, BudgetSettings, KeyBudget

PLAIN = {"name": "team", "limit_usd": 10, "period": "month"}
_MANY: TypeAdapter[list[BudgetSettings]] = TypeAdapter(Budgets)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limit_usd": 0}, "greater than 0"),
        ({"limit_usd": -1}, "greater than"),
        ({"limit_usd": "0.0000000001"}, "nano-dollar"),
        ({"limit_usd": float("nan")}, "finite"),
        ({"limit_usd": float("inf")}, "finite"),
        ({"limit_usd": True}, "number"),
        ({"limit_usd": 10_000_000}, "less than"),
        ({"period": "year"}, "24h or 7d"),
        ({"time_zone": "Mars"}, "Europe/Berlin"),
        ({"mode": "firm"}, "hard"),
        ({"unpriced": "guess"}, "refuse"),
        ({"scope": "provider"}, "value"),
        ({"value": "groq"}, "value"),
        ({"scope": "planet", "value": "earth"}, "provider"),
        ({"scope": "user"}, "value"),
        ({"scope": "user", "value": " ann"}, "no space"),
        ({"scope": "user", "value": "a" * 129}, "128 characters"),
        ({"scope": "tag", "value": "a,b"}, "no comma"),
        ({"scope": "tag", "value": "a" * 65}, "64 characters"),
        ({"name": "two words"}, "letters"),
    ],
)
def test_what_is_no_budget_is_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        BudgetSettings.model_validate({**PLAIN, **changes})


def test_each_budget_has_a_name_of_its_own() -> None:
    with pytest.raises(ValidationError, match="twice: team"):
        _MANY.validate_python([PLAIN, PLAIN])


def test_the_budget_of_a_client_is_called_after_it() -> None:
    asked = KeyBudget.model_validate({"limit_usd": "0.05", "period": "Day", "mode": "SOFT"})
    made = asked.of("ck-1", "ann", 2)
    assert (made.id, made.name, made.scope, made.value) == ("ck-1-2", "ann", "client", "ck-1")
    assert (made.limit_nano, made.period, made.mode) == (50_000_000, "day", "soft")
