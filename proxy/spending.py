"""Whether a call may cost what it will, before it is made; and what it did cost, once it is over.

The estimate of a call is reserved of each budget that it counts for. It is the price of the dearest
target that may serve it, for the tokens of its prompt and for ``max_tokens``, else ``ASSUMED``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from itertools import chain
from typing import Any, Protocol

import msgspec

from proxy.budget import Budget
from proxy.budgets.account import Account, Reservation
from proxy.clients import Client
from proxy.clock import now_ms, rfc3339
from proxy.errors import ErrorReason, GatewayError
from proxy.keys import ClientKeys
from proxy.ledger import Ledger
from proxy.metering.attempt import Attribution
from proxy.metering.pricing import Prices
from proxy.money import NANO, dollars
from proxy.schema import Settings
from proxy.store.address import StoreError
from proxy.store.budgets import holders
from proxy.store.engine import Store
from proxy.store.events import EventRecord
from proxy.store.leases import LeaseTable
from proxy.types import Caller, CallRecord, Demand, Headers, Plan, Target

ASSUMED = 1024
"""Tokens that an answer is taken to have where the request sets no limit."""

FORGET_SECONDS = 30.0
"""How often it is looked which budgets are no more."""

_NO_ACCOUNTS: tuple[Account, ...] = ()
_log = logging.getLogger("tollkeeper.budgets")


class Records(Protocol):
    """Where the rows are made."""

    settle: Callable[[CallRecord], CallRecord]

    def keep(self, item: object) -> None: ...


class Spending:
    """``recording`` is asked to have every record settled here. ``start`` is the ledger's."""

    def __init__(
        self,
        store: Store,
        keys: ClientKeys,
        prices: Prices,
        recording: Records,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.table = LeaseTable(store)
        self.ledger = Ledger(self.table, start)
        self._keys = keys
        self._prices = prices
        self._keep = recording.keep
        recording.settle = self.settle
        self._budgets: list[Budget] = []
        self._scopes: dict[tuple[str, str], tuple[Account, ...]] = {}
        self._providers: set[str] = set()  # those that have one
        self._held: dict[str, list[tuple[Account, Reservation]]] = {}  # by request
        self._told: dict[str, int] = {}  # the windows that were told of as used up

    def configure(self, settings: Settings) -> None:
        """Go by these budgets, and those of the clients, from the next call on."""
        self._budgets = _budgets(settings)
        self._scopes = {}
        for budget in self._budgets:
            whose = budget.scope, budget.value
            others = self._scopes.get(whose, _NO_ACCOUNTS)
            self._scopes[whose] = (*others, self.ledger.account(budget))
        self._providers = {name for scope, name in self._scopes if scope == "provider"}

    async def forget(self) -> None:
        """Forget budgets that are no more, again and again, until cancelled."""
        while True:
            if self._keys.loaded:
                accounts = {each.account for each in self.budgets()}
                self.ledger.forget(accounts)
                self._told = {name: at for name, at in self._told.items() if name in accounts}
                with suppress(StoreError):
                    await self.table.forget(accounts, now_ms())
            await asyncio.sleep(FORGET_SECONDS)

    def budgets(self) -> list[Budget]:
        """All that there are: those that are configured, then the clients'."""
        own = chain.from_iterable(client.budgets for client in self._keys.all())
        return [*self._budgets, *own]

    async def admit(
        self,
        request_id: str,
        caller: Caller,
        who: Attribution,
        plan: Plan,
        demand: Demand,
        answers: int,
    ) -> tuple[Plan, Headers]:
        """What of the plan may be made, its estimate being reserved until the call's final row; and
        what the answer is to tell. ``answers`` is how many are asked for: an embedding is none.

        GatewayError: 429 where a hard budget is used up, 403 where nothing has a price and one
        needs it, 503 where a hard one cannot be asked.
        """
        common = self._of(caller.client_id, caller.client, who.user_id, who.tags)
        if not common and not self._scopes:
            return plan, []
        every = costs = await self._costs(plan, demand, answers)
        if None in costs.values():
            costs = self._priced(plan, costs, common)
        told: Headers = []
        dearest = max(costs.get(target) or 0 for target in plan.targets)
        for account in common:
            await self._reserve(request_id, account, dearest, told)
        for provider in self._providers.intersection(target.provider for target in costs):
            theirs = {each: cost for each, cost in costs.items() if each.provider == provider}
            dearest = max(cost or 0 for cost in theirs.values())
            try:
                for account in self._of_provider(provider):
                    await self._reserve(request_id, account, dearest, told)
            except GatewayError:
                costs = {each: cost for each, cost in costs.items() if each not in theirs}
                if not any(each in costs for each in plan.targets):
                    raise
        return (plan if costs is every else plan.only(costs.__contains__)), told

    def settle(self, record: CallRecord) -> CallRecord:
        """An attempt is over: the record, saying which leases pay. With the final one the estimate
        is let go."""
        held = self._held.get(record.request_id)
        if held is None:
            return record
        if cost := record.cost_nano_usd:
            whose = holders(record)
            paying = [
                each
                for account, each in held
                if (account.budget.scope, account.budget.value) in whose
            ]
            for reservation in paying:
                reservation.use(cost)
            leases = tuple([each.lease.id for each in paying])
            record = msgspec.structs.replace(record, leases=leases)
        if record.is_final:
            del self._held[record.request_id]
            for account, reservation in held:
                self.ledger.release(account, reservation)
        return record

    def _of(
        self,
        client_id: str | None,
        client: Client | None,
        user_id: str | None,
        tags: Iterable[str],
    ) -> tuple[Account, ...]:
        """The budgets of a call, whatever provider serves it: the client's own first, so that who
        has nothing left takes nothing from what others share."""
        accounts = _NO_ACCOUNTS
        if client is not None and client.budgets:
            accounts += tuple(map(self.ledger.account, client.budgets))
        if self._scopes:
            for scope, value in (("client", client_id), ("user", user_id)):
                if value is not None:
                    accounts += self._scopes.get((scope, value), _NO_ACCOUNTS)
            for tag in tags:
                accounts += self._scopes.get(("tag", tag), _NO_ACCOUNTS)
            accounts += self._scopes.get(("all", ""), _NO_ACCOUNTS)
        return accounts

    async def _costs(self, plan: Plan, demand: Demand, answers: int) -> dict[Target, int | None]:
        """What the call may cost at each target, None where nobody knows."""
        # Never nothing, or what has a price would never be refused.
        given, made = max(demand.tokens, 1), (demand.max_tokens or ASSUMED) * answers
        costs = {
            target: self._prices.estimate(target, given, made)
            for target in (*plan.targets, *chain.from_iterable(plan.instead.values()))
        }
        unknown = [target for target, cost in costs.items() if cost is None]
        if unknown:
            await self._prices.resolve({(target.provider, target.model) for target in unknown})
            costs |= {target: self._prices.estimate(target, given, made) for target in unknown}
        return costs

    def _priced(
        self, plan: Plan, costs: dict[Target, int | None], common: Iterable[Account]
    ) -> dict[Target, int | None]:
        """Without the targets whose price nobody knows, where a budget needs to know it."""
        everywhere = any(map(_strict, common))
        known = {
            target: cost
            for target, cost in costs.items()
            if cost is not None
            or not (everywhere or any(map(_strict, self._of_provider(target.provider))))
        }
        if any(target in known for target in plan.targets):
            return known
        raise GatewayError(
            403,
            f"Nobody knows what '{plan.requested_model[:100]}' costs, and a budget needs to:"
            " see `unpriced` and `prices` of the configuration.",
            ErrorReason.FORBIDDEN,
            code="model_unpriced",
            param="model",
        )

    def _of_provider(self, provider: str) -> tuple[Account, ...]:
        if provider not in self._providers:
            return _NO_ACCOUNTS
        return self._scopes.get(("provider", provider), _NO_ACCOUNTS)

    async def _reserve(self, request_id: str, account: Account, amount: int, told: Headers) -> None:
        if not amount:
            return  # what costs nothing is open to everybody
        hard = account.budget.mode == "hard"
        try:
            held = await self.ledger.reserve(account, amount)
        except StoreError as error:
            if not hard:
                return
            raise GatewayError(
                503,
                f"The budget '{account.budget.name}' cannot be asked: {error}",
                ErrorReason.INTERNAL,
                code="budget_unavailable",
            ) from error
        if held is not None:
            self._held.setdefault(request_id, []).append((account, held))
            return
        limit_nano = account.budget.limit_nano
        # Not where others may only have it reserved, nor where no budget would do for this call.
        if account.unspent < (amount if amount <= limit_nano else 1):
            self._tell(account)
        if hard:
            raise _refused(account, amount)
        used, limit = _usd(max(limit_nano - account.unspent, 0)), _usd(limit_nano)
        told.append(
            (b"x-tollkeeper-budget", f"{account.budget.id}; used={used}; limit={limit}".encode())
        )

    def _tell(self, account: Account) -> None:
        """Say once a window that a budget is used up."""
        budget, window = account.budget, account.window(now_ms())
        if self._told.get(account.name) == window.start:
            return
        self._told[account.name] = window.start
        _log.warning("the %s budget %s (%s) is used up", budget.mode, budget.id, _terms(budget))
        self._keep(
            EventRecord(
                event_id=f"{account.name} {window.start}",
                timestamp=now_ms(),
                name="budget_used_up",
                value=dollars(budget.limit_nano),
                client_id=budget.value if budget.scope == "client" else None,
                metadata=msgspec.json.encode({"budget": budget.id, "mode": budget.mode}).decode(),
            )
        )


def _budgets(settings: Settings) -> list[Budget]:
    return [
        Budget(
            id=each.name,
            name=each.name,
            limit_nano=int(each.limit_usd * NANO),
            period=each.period,
            scope=each.scope,
            value=each.value,
            time_zone=each.time_zone,
            mode=each.mode,
            unpriced=each.unpriced,
        )
        for each in settings.budgets
    ]


def _strict(account: Account) -> bool:
    return account.budget.mode == "hard" and account.budget.unpriced == "refuse"


def _refused(account: Account, amount: int) -> GatewayError:
    budget, window = account.budget, account.window(now_ms())
    free = 0 if account.lease is None else max(account.lease.free, 0)
    left = max(account.left + free, 0)
    if account.unspent <= 0:
        state = "is used up: $0.00 is left"
    elif left == account.unspent:
        state = f"has ${_usd(left)} left"
    else:
        state = f"has ${_usd(left)} left that no other call has reserved"
    until = rfc3339(window.end)
    resets = f"it resets at {until}" if account.period.hours is None else f"some returns at {until}"
    return GatewayError(
        429,
        f"The budget '{budget.name}' ({_terms(budget)}) {state}, and this call may cost"
        f" ${_usd(amount)}; {resets}.",
        ErrorReason.QUOTA_EXCEEDED,
        type="insufficient_quota",
        code="insufficient_quota",
        should_retry=False,
    )


def _terms(budget: Budget) -> str:
    return f"${_usd(budget.limit_nano)} per {budget.period}"


def _usd(nano: int) -> str:
    """Dollars with two decimals, and with more where they say something."""
    text = f"{dollars(nano):.9f}".rstrip("0")
    return text + "0" * max(0, 2 - len(text.partition(".")[2]))
