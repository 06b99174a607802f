"""``budget_leases``: what processes may spend of budgets without asking again.

What is leased is the sum of the leases whose time is not over. So that of a process which has died
comes back by itself, and nothing can leak.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.budget import Budget
from proxy.periods import Window
from proxy.store import address, budgets
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.store.tables import budget_leases, budget_windows
from proxy.store.upsert import in_turn, insert_into

_KEPT_MS = 3_600_000  # what a late journal still pays is of no matter after that
_leases, _windows = budget_leases.c, budget_windows.c
_FORGET = delete(budget_windows).where(_windows.account == bindparam("of"))
_RENEW = (
    update(budget_leases)
    .where(_leases.id == bindparam("of"))
    .values(amount_nano=bindparam("amount"), expires_at=bindparam("until"))
)


class Standing(NamedTuple):
    """A budget as it stands: its window, and nano-dollars."""

    window: Window
    spent: int
    leased: int


class Grant(NamedTuple):
    """What a lease got, what is left without it, and what calls have cost that it has not paid
    for: nano-dollars."""

    amount: int
    left: int
    spent: int


class Audit(NamedTuple):
    """What the ledger has, and what the calls say: nano-dollars, and how many calls."""

    window: Window
    spent: int
    recomputed: int
    calls: int
    unpriced: int


class LeaseTable:
    """Every method raises StoreError where the database cannot be used. Instants are UTC ms."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def lease(
        self, budget: Budget, id: str, now: int, until: int, grant: Callable[[int], int]
    ) -> Grant:
        """Add to a lease, which is made if need be, what ``grant`` makes of what is left."""
        start = starts(budget, now)
        async with self._changing() as connection:
            spent = await budgets.begin(connection, budget, now)
            held = await budgets.leased(connection, budget.account, start, now, id)
            paid = await connection.scalar(select(_leases.spent_nano).where(_leases.id == id))
            left = budget.limit_nano - spent - held
            granted = grant(left)
            if granted:
                new = insert_into(budget_leases, connection.dialect.name).values(
                    id=id,
                    account=budget.account,
                    start=start,
                    amount_nano=granted,
                    spent_nano=0,
                    expires_at=until,
                )
                added = _leases.amount_nano + granted
                await connection.execute(
                    new.on_conflict_do_update(
                        index_elements=["id"], set_={"amount_nano": added, "expires_at": until}
                    )
                )
            await connection.execute(
                delete(budget_leases).where(_leases.expires_at < now - _KEPT_MS)
            )
        return Grant(granted, left - granted, spent - (paid or 0))

    async def renew(self, leases: Sequence[tuple[str, int, int]]) -> set[str]:
        """Let leases (ids) be of these amounts, until these instants. Which of them there are."""
        rows = [{"of": id, "amount": amount, "until": until} for id, amount, until in leases]
        async with self._changing() as connection:
            await connection.execute(_RENEW, rows)
            there = select(_leases.id).where(_leases.id.in_([row["of"] for row in rows]))
            return set(await connection.scalars(there))

    async def forget(self, accounts: Collection[str], now: int) -> None:
        """Let go of what is known of all accounts but these, and those of which others have leased.
        A budget that comes back begins with the calls."""
        async with self._store.reader() as connection:
            known = await budgets.accounts(connection)
            leased = await connection.scalars(
                select(_leases.account).where(_leases.expires_at > now)
            )
            kept = {*accounts, *leased}
            gone = [{"of": each} for each in known if each not in kept]
        if gone:
            async with self._changing() as connection:
                await connection.execute(_FORGET, gone)

    async def standing(self, budget: Budget, now: int) -> Standing:
        """What is spent and leased now."""
        async with self._store.reader() as connection:
            spent = await budgets.spent(connection, budget, now)
            held = await budgets.leased(connection, budget.account, starts(budget, now), now)
        return Standing(budget.span.window(now), spent, held)

    async def audit(self, budget: Budget, now: int) -> Audit:
        """The ledger beside the calls that it is about, both as of one moment."""
        window = budget.span.window(now)
        async with self._store.reader() as connection:
            spent = await budgets.spent(connection, budget, now)
            found = await budgets.recomputed(connection, budget, window)
        return Audit(window, spent, *found)

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction in which nobody else writes calls or leases."""
        try:
            engine = await self._store.writer()
            async with engine.begin() as connection:
                await in_turn(connection)
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(f"cannot lease of the budget: {address.reason(error)}") from error


def starts(budget: Budget, now: int) -> int:
    """The window that a lease is for: one that rolls has no beginning."""
    return 0 if budget.span.hours is not None else budget.span.window(now).start
