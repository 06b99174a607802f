"""``api_credits``: what may still be used of APIs that are paid by the piece, searches above all.

Counted in millionths as whole numbers, though the columns are REAL, so that ten tenths are one.
What is used goes off by one UPDATE that also looks whether there is enough and whether the period
is over: several processes and nodes together never use more than there is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, case, false, func, literal, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import address
from proxy.store.address import StoreError
from proxy.store.columns import Instant
from proxy.store.engine import Store
from proxy.store.tables import api_credits
from proxy.store.upsert import insert_into

Period = Literal["monthly", "daily", "never"]
Row = dict[str, Any]

MICRO = 1_000_000
_c = api_credits.c


class Account(NamedTuple):
    """Of what credits are: a kind of use (``search``), a provider, and the name of a key of its."""

    kind: str
    provider: str
    key_id: str


class Credits:
    """Reads and changes the table. Every method raises StoreError where that cannot be done.

    Amounts are credits, instants UTC milliseconds. Rows are as they are at ``now``.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def kept(self) -> bool:
        """Whether there is a database to keep anything in."""
        return self._store.keeps

    async def allow(
        self, account: Account, allowance: float | None, period: Period, now: int
    ) -> Row:
        """Let so much be used in each period; None: without an end. What was used of the current
        period stays used, so that saying it again changes nothing."""
        async with self._changing() as connection:
            start = insert_into(api_credits, connection.dialect.name).values(
                **account._asdict(),
                allowance=allowance,
                credits_remaining=allowance,
                credits_used=0.0,
                credits_used_total=0.0,
                reset_period=period,
                reset_at=next_reset(period, now),
                is_exhausted=allowance is not None and _micro(allowance) <= 0,
                updated_at=now,
            )
            used = _used(now)
            left = None if allowance is None else float(_micro(allowance)) - used
            again = start.on_conflict_do_update(
                index_elements=Account._fields,
                set_={
                    "allowance": allowance,
                    "credits_remaining": None if left is None else _none_or(left) / MICRO,
                    "credits_used": used / MICRO,
                    "reset_period": period,
                    "reset_at": next_reset(period, now),
                    "is_exhausted": False if left is None else left <= 0,
                    "updated_at": now,
                },
            )
            await connection.execute(again)
            return current(await _row(connection, account) or {}, now)

    async def consume(self, account: Account, amount: float, now: int) -> tuple[bool, Row | None]:
        """Use so much, or nothing where there is not as much left; whether it was used, and how it
        is now. None: there is no such account."""
        micro = float(_micro(amount))
        used = _used(now)
        left = func.round(_c.allowance * MICRO) - used - micro
        due = _due(now)
        use = (
            update(api_credits)
            .where(*_is(account), or_(_c.allowance.is_(None), left >= 0))
            .values(
                credits_remaining=left / MICRO,
                credits_used=(used + micro) / MICRO,
                credits_used_total=(func.round(_c.credits_used_total * MICRO) + micro) / MICRO,
                reset_at=case((due, _following(now)), else_=_c.reset_at),
                is_exhausted=func.coalesce(left <= 0, false()),
                updated_at=now,
            )
        )
        async with self._changing() as connection:
            enough = (await connection.execute(use)).rowcount > 0
            row = await _row(connection, account)
        return enough, None if row is None else current(row, now)

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncConnection]:
        engine = await self._store.writer()
        try:
            async with engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(f"cannot count credits: {address.reason(error)}") from error


def current(row: Row, now: int) -> Row:
    """A row as it is now: one whose period is over has its whole allowance again, although nobody
    has written that down yet."""
    if row["reset_at"] is None or row["reset_at"] > now:
        return row
    whole = row["allowance"]
    return row | {
        "credits_remaining": whole,
        "credits_used": 0.0,
        "is_exhausted": whole is not None and _micro(whole) <= 0,
        "reset_at": next_reset(row["reset_period"], now),
    }


def next_reset(period: Period, now: int) -> int | None:
    """When the calendar's next period begins, in UTC; None: never."""
    if period == "never":
        return None
    today = datetime.fromtimestamp(now / 1000, UTC).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    following = today + timedelta(days=1)
    if period == "monthly":
        following = (today.replace(day=28) + timedelta(days=4)).replace(day=1)
    return round(following.timestamp() * 1000)


def _micro(credits: float) -> int:
    return round(credits * MICRO)


def _is(account: Account) -> list[ColumnElement[bool]]:
    return [_c[name] == value for name, value in account._asdict().items()]


def _due(now: int) -> ColumnElement[bool]:
    """Whether the period is over; not where there is none."""
    return func.coalesce(_c.reset_at <= now, false())


def _used(now: int) -> ColumnElement[float]:
    """Millionths that were used in the period."""
    return case((_due(now), 0.0), else_=func.round(_c.credits_used * MICRO))


def _none_or(left: ColumnElement[float]) -> ColumnElement[float]:
    """What is left, none where more was used than another allowance has."""
    return case((left > 0, left), else_=0.0)


def _following(now: int) -> ColumnElement[int]:
    """The next reset by the row's own period."""
    resets = {
        period: literal(next_reset(period, now), Instant()) for period in ("monthly", "daily")
    }
    return case(resets, value=_c.reset_period)


async def _row(connection: AsyncConnection, account: Account) -> Row | None:
    found = (await connection.execute(select(api_credits).where(*_is(account)))).mappings().first()
    return None if found is None else dict(found)
