"""``/stats/budgets``: what may be spent, what is, and whether the ledger agrees with the calls."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from proxy.api.listing import Listing
from proxy.budget import Budget
from proxy.clock import now_ms, rfc3339
from proxy.errors import ErrorReason, GatewayError
from proxy.money import dollars
from proxy.periods import Window
from proxy.spending import Spending
from proxy.store.address import StoreError

Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(pattern="^[0-9]{1,9}$")]


_BLANK = {
    **dict.fromkeys(("id", "name", "scope", "value", "period", "time_zone", "mode", "unpriced")),
    "limit_usd": None,
    "window": {"start": None, "end": None},
    **dict.fromkeys(("spent_usd", "reserved_usd", "remaining_usd", "state")),
}


def budgets_router(spending: Spending) -> APIRouter:
    """Three paths; instants as RFC 3339, money in dollars."""
    shown = _Budgets(spending)
    router = APIRouter()
    router.add_api_route("/stats/budgets", shown.listed, methods=["GET"], response_model=None)
    router.add_api_route("/stats/budgets/{budget_id}", shown.one, methods=["GET"])
    router.add_api_route("/stats/budgets/{budget_id}/audit", shown.audit, methods=["GET"])
    return router


def terms(budget: Budget) -> dict[str, Any]:
    """What a budget is, without how it stands."""
    return {
        "id": budget.id,
        "name": budget.name,
        "scope": budget.scope,
        "value": budget.value or None,
        "period": budget.period,
        "time_zone": budget.time_zone,
        "mode": budget.mode,
        "unpriced": budget.unpriced,
        "limit_usd": dollars(budget.limit_nano),
    }


class _Budgets:
    def __init__(self, spending: Spending) -> None:
        self._budgets = spending.budgets
        self._table = spending.table

    async def listed(self, limit: Limit = 100, cursor: Cursor = None) -> Listing:
        begin = int(cursor or 0)
        every, end = self._budgets(), begin + limit
        data = [await self._standing(budget) for budget in every[begin:end]]
        return Listing(data, str(end) if end < len(every) else None, _BLANK)

    async def one(self, budget_id: str) -> dict[str, Any]:
        return await self._standing(self._find(budget_id))

    async def audit(self, budget_id: str) -> dict[str, Any]:
        budget = self._find(budget_id)
        try:
            found = await self._table.audit(budget, now_ms())
        except StoreError as error:
            raise GatewayError(503, str(error), ErrorReason.INTERNAL) from error
        return {
            "id": budget.id,
            "window": _window(found.window),
            "calls": found.calls,
            "unpriced_calls": found.unpriced,
            "spent_usd": dollars(found.spent),
            "recomputed_usd": dollars(found.recomputed),
            "difference_usd": dollars(found.spent - found.recomputed),
        }

    async def _standing(self, budget: Budget) -> dict[str, Any]:
        try:
            found = await self._table.standing(budget, now_ms())
        except StoreError as error:
            raise GatewayError(503, str(error), ErrorReason.INTERNAL) from error
        remaining = budget.limit_nano - found.spent - found.leased
        return terms(budget) | {
            "window": _window(found.window),
            "spent_usd": dollars(found.spent),
            "reserved_usd": dollars(found.leased),
            "remaining_usd": dollars(max(remaining, 0)),
            "state": "open" if found.spent < budget.limit_nano else "used_up",
        }

    def _find(self, budget_id: str) -> Budget:
        found = next((each for each in self._budgets() if each.id == budget_id), None)
        if found is None:
            message = f"There is no budget '{budget_id[:100]}' here."
            raise GatewayError(404, message, ErrorReason.NOT_FOUND, code="budget_not_found")
        return found


def _window(window: Window) -> dict[str, Any]:
    return {"start": rfc3339(window.start), "end": rfc3339(window.end)}
