"""What this process may spend: leases of budgets, taken from the database and given back to it.

A call waits for the database only where its estimate is not leased yet; of all that wait for one
budget, one asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from proxy.budget import Budget
from proxy.budgets.account import Account, Lease, Reservation
from proxy.clock import monotonic, new_id, now_ms
from proxy.store.address import StoreError
from proxy.store.leases import LeaseTable

LEASE_SECONDS = 60.0
"""After which a process that does not renew its lease has lost it."""
RENEW_SECONDS = 5.0
"""How often leases are renewed, and what nobody needs is given back."""
WAIT_SECONDS = 5.0
"""How long a call waits for a lease of a hard budget."""
SOFT_SECONDS = 0.1
"""How long all that ask at a time wait for one of a soft budget, which lets them go on anyhow."""
_SOON = 0.2  # seconds until what calls let go is given back, where others may lack it
_EARLY = 5.0  # seconds that a lease ends sooner here than for others
_TRUST = 0.5  # seconds for which the ledger's last answer is believed


class Ledger:
    """``start`` runs what goes on although the call that needs it is given up."""

    def __init__(
        self,
        table: LeaseTable,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._table = table
        self._start = start
        self._accounts: dict[str, Account] = {}
        self._asking: dict[Account, tuple[asyncio.Task[None], float]] = {}  # since when
        self._hoarded = asyncio.Event()
        self._writing = asyncio.Lock()  # what a lease is to be must not change under way

    def account(self, budget: Budget) -> Account:
        """The budget as this process holds it."""
        name = budget.account
        found = self._accounts.get(name)
        if found is None:
            found = self._accounts[name] = Account(budget)
        elif found.budget is not budget:
            found.adopt(budget)
        return found

    def forget(self, names: Collection[str]) -> None:
        """Let go of all accounts but these, and those of which something is leased."""
        for name, account in list(self._accounts.items()):
            if name not in names and account.lease is None and not account.wanted:
                del self._accounts[name]

    def release(self, account: Account, held: Reservation) -> None:
        """A call is over, its costs are told. Once only."""
        held.release()
        if account.hoards:
            self._hoarded.set()

    async def reserve(self, account: Account, amount: int) -> Reservation | None:
        """Hold nano-dollars for a call; None where the budget has not as much left. StoreError
        where that is not known."""
        now = monotonic()
        held = account.reserve(amount, now_ms(), now)
        if held is not None:
            return held
        give_up = now + WAIT_SECONDS
        account.wanted += amount
        try:
            while not account.short(amount, now_ms(), monotonic()):
                await self._ask(account, amount, give_up)
                held = account.reserve(amount, now_ms(), monotonic())
                if held is not None:
                    return held
        finally:
            account.wanted -= amount
        return None

    async def run(self) -> None:
        """Renew, and give back, again and again, until cancelled."""
        due = monotonic() + RENEW_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - monotonic())):
                    await self._hoarded.wait()
            await asyncio.sleep(_SOON)  # more calls may end by then
            with suppress(StoreError):  # then leases end, unless it is back in time
                if monotonic() < due:
                    await self.give_back()
                else:
                    due = monotonic() + RENEW_SECONDS
                    await self.renew()

    async def renew(self) -> None:
        """Keep the leases that are in use, and give back what is not needed: all that is free where
        nothing was reserved since the last time."""
        async with self._writing:
            at, now = now_ms(), monotonic()
            found = [(each, each.current(at, now)) for each in self._accounts.values()]
            leases = [(account, lease) for account, lease in found if lease is not None]
            for account, lease in leases:
                account.trim(idle=not lease.busy)
                if not lease.busy and not lease.reserved:
                    account.lease = None
                lease.busy = False
            await self._keep([lease for _, lease in leases], at, now)

    async def give_back(self) -> None:
        """Give back what calls let go, where others may lack it."""
        self._hoarded.clear()
        async with self._writing:
            at, now = now_ms(), monotonic()
            found = [(each, each.current(at, now)) for each in self._accounts.values()]
            leases = []
            for account, lease in found:
                if lease is not None and account.hoards:
                    account.trim(idle=False)
                    leases.append(lease)
            await self._keep(leases, at, now)

    async def close(self) -> None:
        """Give back what is not used, as this process ends."""
        async with self._writing:
            leases = [each.lease for each in self._accounts.values() if each.lease is not None]
            for lease in leases:
                lease.amount = min(lease.amount, lease.used)
            with suppress(StoreError):
                await self._keep(leases, now_ms(), monotonic())

    async def _keep(self, leases: list[Lease], at: int, now: float) -> None:
        if leases:
            until = at + round(LEASE_SECONDS * 1000)
            rows = [(lease.id, lease.amount, until) for lease in leases]
            kept = await self._table.renew(rows)
            for lease in leases:  # one that was long over, by others' clocks, is not there any more
                lease.until = now + LEASE_SECONDS - _EARLY if lease.id in kept else float("-inf")

    async def _ask(self, account: Account, amount: int, give_up: float) -> None:
        """Wait for what the ledger says. StoreError if it says nothing."""
        now = monotonic()
        if account.trouble is None or now >= account.trusted:
            if account not in self._asking:
                self._asking[account] = self._start(self._lease(account, amount)), now
            asking, since = self._asking[account]
            if account.budget.mode == "soft":
                give_up = min(give_up, since + SOFT_SECONDS)
            await asyncio.wait((asking,), timeout=max(0.0, give_up - now))
            if not asking.done():
                raise StoreError("the database does not answer")
        if account.trouble is not None:
            raise StoreError(account.trouble)

    async def _lease(self, account: Account, amount: int) -> None:
        """Ask once, for one call and all that wait."""
        try:
            async with self._writing:
                at, now = now_ms(), monotonic()
                lease = account.current(at, now) or Lease(new_id(), account.starts(at))
                until = at + round(LEASE_SECONDS * 1000)
                grant = partial(account.grant, amount=amount)
                leased = self._table.lease(account.budget, lease.id, at, until, grant)
                granted, left, spent = await leased
                if granted:
                    lease.amount += granted
                    lease.until = now + LEASE_SECONDS - _EARLY
                    account.lease = lease
                account.hear(left, spent, lease.start, monotonic() + _TRUST)
            account.trouble = None
        except Exception as error:  # for those who wait: nobody else hears of it
            account.trouble = str(error) or type(error).__name__
            account.trusted = monotonic() + _TRUST
        finally:
            del self._asking[account]
