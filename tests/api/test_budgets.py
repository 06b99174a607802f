from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from proxy.api import errors
from proxy.api.budgets import budgets_router, terms
from proxy.budget import Budget
from proxy.periods import Window
from proxy.store.address import StoreError
from proxy.store.leases import Audit, Standing

BUDGETS = [Budget(f"b{n}", "team", 2 * 10**9, "month", "provider", "groq") for n in range(3)]
WINDOW = Window(0, 86_400_000)


class Table:
    def __init__(self, spent: int = 0, leased: int = 0, error: Exception | None = None) -> None:
        self.spent, self.leased, self.error = spent, leased, error

    async def standing(self, budget: Budget, now: int) -> Standing:
        if self.error is not None:
            raise self.error
        return Standing(WINDOW, self.spent, self.leased)

    async def audit(self, budget: Budget, now: int) -> Audit:
        if self.error is not None:
            raise self.error
        return Audit(WINDOW, self.spent, self.spent - 5, 7, 1)


async def get(path: str, table: Table, **headers: str) -> httpx.Response:
    app = FastAPI()
    errors.install(app)
    spending: Any = SimpleNamespace(budgets=lambda: BUDGETS, table=table)
    app.include_router(budgets_router(spending))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize(
    ("spent", "leased", "remaining", "state"),
    [
        (0, 0, 2.0, "open"),
        (500_000_000, 250_000_000, 1.25, "open"),
        (2 * 10**9, 0, 0.0, "used_up"),
        (3 * 10**9, 1, 0.0, "used_up"),
    ],
)
async def test_how_a_budget_stands(spent: int, leased: int, remaining: float, state: str) -> None:
    found = (await get("/stats/budgets/b1", Table(spent, leased))).json()
    assert found == terms(BUDGETS[1]) | {
        "window": {"start": "1970-01-01T00:00:00.000Z", "end": "1970-01-02T00:00:00.000Z"},
        "spent_usd": spent / 1e9,
        "reserved_usd": leased / 1e9,
        "remaining_usd": remaining,
        "state": state,
    }
    assert (found["limit_usd"], found["value"]) == (2.0, "groq")


async def test_the_list_comes_in_pages() -> None:
    first = (await get("/stats/budgets?limit=2", Table())).json()
    assert [each["id"] for each in first["data"]] == ["b0", "b1"]
    rest = (await get(f"/stats/budgets?limit=2&cursor={first['next_cursor']}", Table())).json()
    assert ([each["id"] for each in rest["data"]], rest["next_cursor"]) == (["b2"], None)
    for wrong in ("limit=0", "limit=1001", "cursor=x"):
        assert (await get(f"/stats/budgets?{wrong}", Table())).status_code == 422


async def test_the_audit_tells_the_difference() -> None:
    found = (await get("/stats/budgets/b1/audit", Table(10**9))).json()
    assert (found["spent_usd"], found["difference_usd"]) == (1.0, 5e-9)
    assert (found["calls"], found["unpriced_calls"]) == (7, 1)


@pytest.mark.parametrize("path", ["/stats/budgets/b9", "/stats/budgets/b9/audit"])
async def test_a_budget_that_nobody_made_is_404(path: str) -> None:
    answer = await get(path, Table())
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "budget_not_found")


@pytest.mark.parametrize("path", ["", "/b1", "/b1/audit"])
async def test_without_the_database_it_is_503(path: str) -> None:
    answer = await get(f"/stats/budgets{path}", Table(error=StoreError("no database")))
    assert answer.status_code == 503


async def test_the_list_is_csv_where_that_is_asked_for() -> None:
    answer = await get("/stats/budgets", Table(5 * 10**8), accept="text/csv")
    lines = answer.text.splitlines()
    assert lines[0].startswith("id,name,scope,value,period,")
    assert [line.split(",")[0] for line in lines[1:]] == ["b0", "b1", "b2"]
    rows = (await get("/stats/budgets", Table())).json()["data"]
    columns = lines[0].split(",")
    assert {name.partition(".")[0] for name in columns} == set(rows[0])
