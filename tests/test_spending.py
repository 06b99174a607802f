from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from proxy.budget import Budget
from proxy.clients import Client
from proxy.errors import ErrorReason, GatewayError
from proxy.metering.attempt import Attribution
from proxy.metering.pricing import Prices
from proxy.schema import Price, Settings
from proxy.spending import ASSUMED, Spending
from proxy.store.engine import Store
from proxy.store.events import EventRecord
from proxy.types import Caller, CallRecord, Demand, Plan, Target
from tests.store.rows import call
from tests.test_ledger import Table

CHEAP, DEAR, FREE, UNKNOWN = (Target("lab", name) for name in ("cheap", "dear", "free", "new"))
OTHER = Target("other", "cheap")
NOBODY, SOMEBODY = Caller(), Attribution()
PRICES = {"*/cheap": 1, "*/dear": 2, "*/free": 0}
DEMAND = Demand(tokens=0, max_tokens=100)  # 100,000 nano-dollars of the cheap one


class Office:
    """What spends goes by: ``left`` nano-dollars of every budget, and what is written."""

    def __init__(self, tasks: asyncio.TaskGroup, *budgets: dict[str, Any], left: int) -> None:
        prices = {name: Price(input=0, output=usd) for name, usd in PRICES.items()}
        self.clients: dict[str, Client] = {}
        self.records = SimpleNamespace(kept=[], settle=None)
        self.records.keep = self.records.kept.append
        keys = SimpleNamespace(get=self.clients.get, all=lambda: list(self.clients.values()))
        self.spending = Spending(
            Store(None),
            keys,  # type: ignore[arg-type]
            Prices(prices, {}),
            self.records,  # type: ignore[arg-type]
            tasks.create_task,
        )
        self.table = Table(left)
        self.spending.ledger._table = self.table  # type: ignore[assignment]
        named = [{"name": "b", "limit_usd": 1, "period": "day", **each} for each in budgets]
        self.spending.configure(Settings(budgets=named))

    async def admit(
        self,
        *targets: Target,
        caller: Caller = NOBODY,
        who: Attribution = SOMEBODY,
        demand: Demand = DEMAND,
        answers: int = 1,
    ) -> tuple[Plan, list[tuple[bytes, bytes]]]:
        plan = Plan("fast", targets, instead={ErrorReason.CONTEXT_LENGTH: (OTHER, UNKNOWN)})
        return await self.spending.admit("r", caller, who, plan, demand, answers)

    def paying(self, record: CallRecord) -> list[str]:
        """Which budgets hold the leases that pay."""
        accounts = self.spending.ledger._accounts.values()
        names = {each.lease.id: each.budget.id for each in accounts if each.lease is not None}
        return [names[lease] for lease in self.spending.settle(record).leases]

    @property
    def reserved(self) -> int:
        return sum(
            account.lease.reserved
            for account in self.spending.ledger._accounts.values()
            if account.lease is not None
        )


@pytest_asyncio.fixture
async def tasks() -> AsyncIterator[asyncio.TaskGroup]:
    async with asyncio.TaskGroup() as group:
        yield group


def record(cost: int | None, **more: Any) -> CallRecord:
    return call(**{"request_id": "r", "provider": "lab", "cost_nano_usd": cost, **more})


async def test_the_dearest_target_is_reserved_until_the_last_row(tasks: asyncio.TaskGroup) -> None:
    office = Office(tasks, {}, left=10**9)
    plan, told = await office.admit(CHEAP, DEAR)
    assert (plan.targets, told) == ((CHEAP, DEAR), [])
    assert office.reserved == 200_000
    failed = office.spending.settle(record(30, is_final=False))
    assert office.reserved == 200_000
    last = office.spending.settle(record(70_000, attempt=2))
    assert office.reserved == 0
    assert len(failed.leases) == 1
    assert failed.leases == last.leases
    (account,) = office.spending.ledger._accounts.values()
    assert account.lease is not None
    assert account.lease.used == 70_030
    assert office.spending.settle(record(5, attempt=3)).leases == ()


@pytest.mark.parametrize(
    ("demand", "answers", "nano"),
    [
        (Demand(tokens=50), 1, ASSUMED * 1000),
        (Demand(max_tokens=10), 3, 30_000),
        (Demand(max_tokens=10), 0, 0),
        (Demand(max_tokens=0), 1, ASSUMED * 1000),
    ],
)
async def test_what_a_call_is_taken_to_cost(
    demand: Demand, answers: int, nano: int, tasks: asyncio.TaskGroup
) -> None:
    office = Office(tasks, {}, left=10**9)
    await office.admit(CHEAP, demand=demand, answers=answers)
    assert office.reserved == nano


async def test_a_hard_budget_refuses_and_says_why(tasks: asyncio.TaskGroup) -> None:
    office = Office(tasks, {}, left=99_999)
    for _ in range(2):
        with pytest.raises(GatewayError) as caught:
            await office.admit(CHEAP)
    error = caught.value
    assert (error.status, error.type, error.code) == (429, *["insufficient_quota"] * 2)
    assert error.should_retry is False
    assert "'b' ($1.00 per day) has $0.000099999 left, and this call" in error.message
    assert "$0.0001; it resets at 2" in error.message
    (told,) = office.records.kept
    assert isinstance(told, EventRecord)
    assert (told.name, told.value) == ("budget_used_up", 1.0)
    assert (await office.admit(FREE))[0].targets == (FREE,)


async def test_a_call_that_is_too_dear_uses_no_budget_up(tasks: asyncio.TaskGroup) -> None:
    office = Office(tasks, {}, left=500_000_000)
    with pytest.raises(GatewayError, match=r"has \$0.50 left, and"):
        await office.admit(CHEAP, demand=Demand(tokens=0, max_tokens=1_000_001))
    assert office.records.kept == []
    await office.admit(CHEAP)


async def test_what_is_only_reserved_is_not_used_up(tasks: asyncio.TaskGroup) -> None:
    office = Office(tasks, {}, left=10**9)
    many = Demand(max_tokens=1_000_000)
    await office.admit(CHEAP, demand=many)
    with pytest.raises(GatewayError, match=r"has \$0.00 left that no other call has reserved"):
        await office.admit(CHEAP)
    assert office.records.kept == []
    office.spending.settle(record(999_950_000))
    with pytest.raises(GatewayError, match=r"has \$0.00005 left, and"):
        await office.admit(CHEAP)
    (told,) = office.records.kept
    assert told.name == "budget_used_up"


async def test_a_budget_that_changes_goes_on_with_the_calls_under_way(
    tasks: asyncio.TaskGroup,
) -> None:
    office = Office(tasks, {}, left=10**9)
    await office.admit(CHEAP)
    budgets = [{"name": "b", "limit_usd": 2, "period": "day", "mode": "soft"}]
    office.spending.configure(Settings(budgets=budgets))
    (account,) = office.spending.ledger._accounts.values()
    assert (account.budget.mode, account.lease is not None) == ("soft", True)
    (lease,) = office.spending.settle(record(70_000)).leases
    assert account.lease is not None
    assert lease == account.lease.id
    assert (account.lease.used, office.reserved) == (70_000, 0)


async def test_the_dearest_key_is_reserved(tasks: asyncio.TaskGroup) -> None:
    office = Office(tasks, {}, left=10**9)
    prices = {"lab/cheap": Price(input=0, output=1)}
    gift = {("lab", "gift"): True}
    for dearest, nano in ({}, 100_000), ({"lab": "gift"}, 0):
        office.spending._prices.configure(prices, {}, gift, dearest)
        await office.admit(CHEAP)
        assert office.reserved == nano
        office.spending.settle(record(nano))


async def test_what_nobody_could_pay_is_refused_all_the_same(tasks: asyncio.TaskGroup) -> None:
    office = Office(tasks, {"unpriced": "allow"}, left=10**9)
    with pytest.raises(GatewayError, match=r"may cost \$1000000.00"):
        await office.admit(CHEAP, demand=Demand(max_tokens=10**6), answers=10**7)


async def test_who_has_nothing_left_takes_nothing_from_what_others_share(
    tasks: asyncio.TaskGroup,
) -> None:
    office = Office(tasks, {}, left=99_999)
    own = Budget("ck-1-1", "ann", 10**9, "day", "client", "ck-1")
    ann = office.clients["ck-1"] = Client("ck-1", "ann", 0, budgets=(own,))
    with pytest.raises(GatewayError, match="'ann'"):
        await office.admit(CHEAP, caller=Caller("ck-1", ann))


async def test_a_soft_budget_tells(tasks: asyncio.TaskGroup) -> None:
    office = Office(tasks, {"mode": "soft"}, left=5)
    _, told = await office.admit(CHEAP)
    assert told == [(b"x-tollkeeper-budget", b"b; used=0.999999995; limit=1.00")]
    assert office.spending.settle(record(100_000)).leases == ()
    assert len(office.records.kept) == 1


async def test_a_price_that_nobody_knows(tasks: asyncio.TaskGroup) -> None:
    office = Office(tasks, {}, left=10**9)
    plan, _ = await office.admit(UNKNOWN, CHEAP)
    assert plan.targets == (CHEAP,)
    assert plan.instead == {ErrorReason.CONTEXT_LENGTH: (OTHER,)}
    with pytest.raises(GatewayError) as caught:
        await office.admit(UNKNOWN)
    assert (caught.value.status, caught.value.code) == (403, "model_unpriced")
    for lenient in ({"unpriced": "allow"}, {"mode": "soft"}):
        office = Office(tasks, lenient, left=10**9)
        plan, _ = await office.admit(UNKNOWN)
        assert plan.targets == (UNKNOWN,)


async def test_a_provider_whose_budget_is_used_up_is_left_out(tasks: asyncio.TaskGroup) -> None:
    office = Office(tasks, {"scope": "provider", "value": "lab"}, left=99_999)
    plan, _ = await office.admit(CHEAP, OTHER)
    assert plan.targets == (OTHER,)
    with pytest.raises(GatewayError, match="left"):
        await office.admit(CHEAP)
    assert office.spending.settle(record(1)).leases == ()


async def test_only_the_provider_that_served_pays(tasks: asyncio.TaskGroup) -> None:
    office = Office(tasks, {"scope": "provider", "value": "lab"}, left=10**9)
    await office.admit(CHEAP, OTHER)
    assert office.spending.settle(record(1, provider="other", is_final=False)).leases == ()
    assert len(office.spending.settle(record(1)).leases) == 1
    assert office.reserved == 0


async def test_a_client_pays_of_its_own_budgets(tasks: asyncio.TaskGroup) -> None:
    office = Office(tasks, {"scope": "client", "value": "ck-2"}, left=10**9)
    own = Budget("ck-1-1", "ann", 10**9, "day", "client", "ck-1")
    ann = office.clients["ck-1"] = Client("ck-1", "ann", 0, budgets=(own,))
    await office.admit(CHEAP, caller=Caller("ck-1", ann))
    assert office.paying(record(1, client_id="ck-1")) == ["ck-1-1"]
    await office.admit(CHEAP, caller=Caller("ck-2"))
    assert office.paying(record(1, client_id="ck-2")) == ["b"]
    assert await office.admit(CHEAP, caller=Caller("ck-3"))
    assert office.paying(record(1, client_id="ck-3")) == []
    assert [each.id for each in office.spending.budgets()] == ["b", "ck-1-1"]


async def test_a_call_pays_of_the_budgets_of_its_user_and_of_its_tags(
    tasks: asyncio.TaskGroup,
) -> None:
    scopes = [("user", "ann"), ("tag", "nightly"), ("tag", "team-a"), ("client", "ann")]
    budgets = [{"name": f"{s}-{v}", "scope": s, "value": v} for s, v in scopes]
    office = Office(tasks, *budgets, left=10**9)
    await office.admit(CHEAP, who=Attribution(user_id="ann", tags=("team-a", "x", "nightly")))
    paid = office.paying(record(1, user_id="ann", tags='["team-a","x","nightly"]'))
    assert paid == ["user-ann", "tag-team-a", "tag-nightly"]
    await office.admit(CHEAP, who=Attribution(user_id="bo", tags=("NIGHTLY",)))
    assert office.paying(record(1, user_id="bo", tags='["NIGHTLY"]')) == []


async def test_a_cost_that_nobody_knows_counts_nothing_and_holds_nothing(
    tasks: asyncio.TaskGroup,
) -> None:
    office = Office(tasks, {}, left=10**9)
    await office.admit(CHEAP)
    unknown = record(None)
    assert office.spending.settle(unknown) is unknown
    (account,) = office.spending.ledger._accounts.values()
    assert account.lease is not None
    assert (account.lease.used, account.lease.reserved) == (0, 0)
