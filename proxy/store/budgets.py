"""``budget_windows``: what was spent of each budget, in nano-dollars.

A part of a window has a row from when it was first asked for, which begins with the sum of the
calls that are there. From then on each transaction that writes calls adds them, whether or not the
process that made them knew of the budget. So what stands here is the sum of the calls, whoever made
them and whenever the budget was made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy import (
    ColumnElement,
    Select,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.budget import SCOPES, Budget, counted_under
from proxy.periods import HOUR_MS, Period, Window
from proxy.store.buckets import bucket
from proxy.store.columns import nano_usd
from proxy.store.tables import api_calls, budget_leases, budget_windows
from proxy.store.tags import tagged
from proxy.tags import read
from proxy.types import CallRecord

DEAREST = 10**15
"""Nano-dollars: a million dollars. No call counts for more, whatever its provider says."""

_windows, _leases, _calls = budget_windows.c, budget_leases.c, api_calls.c
_NANO = nano_usd(_calls.cost_estimate_usd)
_COST = func.sum(case((_NANO > DEAREST, DEAREST), (_NANO > 0, _NANO), else_=0))
_ADD = (
    update(budget_windows)
    .where(_windows.account == bindparam("of"), _windows.start == bindparam("at"))
    .values(spent_nano=_windows.spent_nano + bindparam("cost"))
)
_PAY = (
    update(budget_leases)
    .where(_leases.id == bindparam("lease"))
    .values(spent_nano=_leases.spent_nano + bindparam("cost"))
)


def _each_account() -> Select[str]:
    """The accounts, each found by its first row: one may have two thousand."""
    first = select(func.min(_windows.account).label("name")).cte("accounts", recursive=True)
    following = select(func.min(_windows.account)).where(_windows.account > first.c.name)
    found = first.union_all(
        select(following.correlate(first).scalar_subquery()).where(first.c.name.is_not(None))
    )
    return select(found.c.name).where(found.c.name.is_not(None))


_ACCOUNTS = _each_account()


@lru_cache(maxsize=1000)
def _bucket(span: Period, second: int) -> int:
    """Where the calls of a second count; every bucket begins with one."""
    return span.bucket(second * 1000)


async def settle(connection: AsyncConnection, calls: Sequence[CallRecord]) -> None:
    """Add what the calls cost to the budgets that count them, and to the leases that paid. For a
    transaction in which no budget begins."""
    costs = [
        (call, min(call.cost_nano_usd, DEAREST))
        for call in calls
        if call.cost_nano_usd is not None and call.cost_nano_usd > 0
    ]
    spent: Counter[tuple[str, int]] = Counter()
    paid: Counter[str] = Counter()
    begun = await _begun(connection) if costs else {}
    for call, cost in costs:
        for holder in holders(call):
            for account, budget in begun.get(holder, ()):
                spent[account, _bucket(budget.span, call.timestamp // 1000)] += cost
        for lease in call.leases:
            paid[lease] += cost
    if spent:
        rows = [{"of": of, "at": at, "cost": cost} for (of, at), cost in sorted(spent.items())]
        await connection.execute(_ADD, rows)
    if paid:
        rows = [{"lease": lease, "cost": cost} for lease, cost in sorted(paid.items())]
        await connection.execute(_PAY, rows)


def holders(call: CallRecord) -> list[tuple[str, str]]:
    """Whose budgets count a call: scopes, each with its value."""
    found = []
    for scope, column in SCOPES.items():
        if column is None:
            found.append((scope, ""))
        elif column == "tags":
            found += [(scope, tag) for tag in read(call.tags)]
        elif (value := getattr(call, column)) is not None:
            found.append((scope, value))
    return found


async def accounts(connection: AsyncConnection) -> list[str]:
    """Under what anything is counted."""
    return [name for (name,) in await connection.execute(_ACCOUNTS)]


async def _begun(connection: AsyncConnection) -> dict[tuple[str, str], list[tuple[str, Budget]]]:
    """The accounts and what they count, by whose calls that are."""
    found: dict[tuple[str, str], list[tuple[str, Budget]]] = {}
    for account in await accounts(connection):
        if (budget := counted_under(account)) is not None:
            found.setdefault((budget.scope, budget.value), []).append((account, budget))
    return found


async def spent(connection: AsyncConnection, budget: Budget, at: int) -> int:
    """What is spent in the window of an instant."""
    known, missing = await _known(connection, budget, at)
    return known + sum((await _from_calls(connection, budget, missing)).values())


async def begin(connection: AsyncConnection, budget: Budget, at: int) -> int:
    """``spent``, and from now on calls are added to all parts of the window. For a transaction in
    which nobody else writes calls."""
    total, missing = await _known(connection, budget, at)
    if budget.span.hours is not None:  # what has rolled out of it comes never back
        gone = (_windows.account == budget.account) & (
            _windows.start < budget.span.window(at).start
        )
        await connection.execute(delete(budget_windows).where(gone))
    if missing:
        found = await _from_calls(connection, budget, missing)
        total += sum(found.values())
        rows = [
            {"account": budget.account, "start": start, "spent_nano": nano}
            for start, nano in found.items()
        ]
        await connection.execute(insert(budget_windows), rows)
    return total


async def recomputed(
    connection: AsyncConnection, budget: Budget, window: Window
) -> tuple[int, int, int]:
    """From the calls of a window that the budget counts: what they cost, how many have a cost, and
    of how many more nobody knows it."""
    unpriced = (_calls.cost_estimate_usd.is_(None)) & (_calls.usage_source != "none")
    query = select(
        _COST, func.count(_calls.cost_estimate_usd), func.sum(case((unpriced, 1), else_=0))
    ).where(_calls.timestamp >= window.start, _calls.timestamp < window.end, _counted(budget))
    found = (await connection.execute(query)).one()
    return int(found[0] or 0), found[1], int(found[2] or 0)


async def _from_calls(
    connection: AsyncConnection, budget: Budget, parts: Sequence[Window]
) -> dict[int, int]:
    """What the calls of each part of a window cost, by its start: of all its hours at once."""
    if budget.span.hours is None:
        return {each.start: (await recomputed(connection, budget, each))[0] for each in parts}
    found = {each.start: 0 for each in parts}
    if parts:
        hour = bucket(_calls.timestamp, HOUR_MS)
        query = (
            select(hour, _COST)
            .where(_calls.timestamp >= parts[0].start, _calls.timestamp < parts[-1].end)
            .where(_counted(budget))
            .group_by(hour)
        )
        for start, nano in await connection.execute(query):
            if start in found:
                found[start] = int(nano or 0)
    return found


async def leased(
    connection: AsyncConnection, account: str, start: int, now: int, own: str = ""
) -> int:
    """What processes hold and have not spent. ``own`` counts although its time may be over."""
    unspent = func.sum(_leases.amount_nano - _leases.spent_nano)
    query = select(unspent).where(
        _leases.account == account,
        _leases.start == start,
        _leases.amount_nano > _leases.spent_nano,
        (_leases.expires_at > now) | (_leases.id == own),
    )
    return int(await connection.scalar(query) or 0)


async def _known(connection: AsyncConnection, budget: Budget, at: int) -> tuple[int, list[Window]]:
    """What the rows of a window say, and the parts of it that have none."""
    period = budget.span
    window = period.window(at)
    query = select(_windows.start, _windows.spent_nano).where(
        _windows.account == budget.account,
        _windows.start >= window.start,
        _windows.start < window.end,
    )
    found = {start: nano for start, nano in await connection.execute(query)}
    return sum(found.values()), [e for e in period.buckets(window) if e.start not in found]


def _counted(budget: Budget) -> ColumnElement[bool]:
    """Whether a call is one that the budget counts: ``holders``, in SQL."""
    column = SCOPES[budget.scope]
    if column is None:
        return true()
    if column == "tags":
        return tagged(_calls.tags, [budget.value])
    return _calls[column] == budget.value
