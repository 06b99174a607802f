from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import ErrorReason as R
from proxy.providers.faults import read
from proxy.providers.scope import FREE, covers, of_key

DAILY = "Rate limit exceeded: free-models-per-day-high-balance. "


def quotas(*names: Any) -> dict[str, Any]:
    return {"details": [{"violations": [{"quotaId": name} for name in names]}]}


@pytest.mark.parametrize(
    ("error", "models"),
    [
        ({"code": 3036}, ""),
        ({"code": 4006}, ""),
        ({"type": "insufficient_quota"}, ""),
        ({"message": "you have reached your weekly usage limit, upgrade"}, ""),
        ({"message": "reduce your usage limitation"}, None),
        ({"message": DAILY}, FREE),
        ({"message": "Rate limit exceeded: free-models-per-min. "}, FREE),
        ({"message": "Rate limit exceeded: limit_rpm/x:free/1-2"}, None),
        ({"metadata": {"limit_source": "openrouter_free_tier_daily"}}, FREE),
        ({"metadata": {"limit_source": "openrouter_shared_capacity"}}, None),
        (quotas("PerDayPerProjectPerModel"), None),
        (quotas("PerDayPerProject"), ""),
        (quotas("PerDayPerProject", "PerMinutePerModel"), None),
        (quotas(None), None),
        ({"details": [{"violations": []}]}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("reason", [R.RATE_LIMIT, R.QUOTA_EXCEEDED])
def test_a_limit_says_which_models_it_holds_for(
    reason: R, error: dict[str, Any], models: str | None
) -> None:
    assert covers(reason, read({"error": error})) == models


def test_money_is_the_same_for_all_models() -> None:
    assert covers(R.CREDIT, read({"error": {"message": DAILY}})) == ""


@pytest.mark.parametrize("reason", sorted(set(R) - {R.RATE_LIMIT, R.QUOTA_EXCEEDED, R.CREDIT}))
def test_what_is_no_limit_covers_nothing_more(reason: R) -> None:
    assert covers(reason, read({"error": {"code": 4006, "message": DAILY}})) is None


@pytest.mark.parametrize(
    ("reason", "error", "alone"),
    [
        (R.CREDIT, {"metadata": {"limit_source": "openrouter_key_limit"}}, True),
        (R.CREDIT, {"message": "Key limit exceeded (total limit)."}, True),
        (R.CREDIT, {"metadata": {"limit_source": "openrouter_credits"}}, False),
        (R.CREDIT, {"message": "Insufficient credits"}, False),
        (R.FORBIDDEN, {"message": "Key limit exceeded (total limit)."}, False),
    ],
)
def test_only_a_limit_in_dollars_is_set_on_one_key(
    reason: R, error: dict[str, Any], alone: bool
) -> None:
    assert of_key(reason, read({"error": error})) is alone
