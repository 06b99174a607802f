"""``rate_limits``: who rests, who is switched off, and what configured limits have counted.

    cooldown    a quota group (``account``), a key (``key_id`` alone) or the provider (neither)
    disabled    a key that an operator took out, until it is put back

What is written here is read again at the next start.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Update, case, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.changes import CooldownRecord, CountRecord, LiftRecord, SwitchRecord
from proxy.errors import ErrorReason
from proxy.store.tables import rate_limits
from proxy.store.upsert import Insert, insert_into, replace

_KEY = ("provider", "model", "key_id", "account", "limit_type")
COOLDOWN = "cooldown"
DISABLED = "disabled"


async def save_cooldowns(
    connection: AsyncConnection, rests: Iterable[CooldownRecord | LiftRecord]
) -> None:
    """Upsert rests, in order; a longer one that is known is not shortened, unless it is lifted."""
    for rest in _until_lifted(rests):
        if isinstance(rest, CooldownRecord):
            await connection.execute(_longest_rest(connection.dialect.name), [_row(rest)])
        else:
            await connection.execute(_lift(rest))


async def save_switches(connection: AsyncConnection, switches: Iterable[SwitchRecord]) -> None:
    """Keys taken out and put back, in order."""
    for switch in switches:
        place = {
            "provider": switch.provider,
            "model": "",
            "key_id": switch.key_id,
            "account": switch.account,
            "limit_type": DISABLED,
        }
        if switch.disabled:
            told = {"cooldown_reason": "operator", "source": "local", "last_updated": switch.at}
            await replace(connection, rate_limits, _KEY, [place | told])
        else:
            table = rate_limits.c
            mine = [table[name] == value for name, value in place.items() if name != "account"]
            await connection.execute(delete(rate_limits).where(*mine))


async def save_counts(connection: AsyncConnection, counts: Iterable[CountRecord]) -> None:
    """Upsert the counts; of one that comes twice, the last."""
    rows = {tuple(row[name] for name in _KEY): row for row in map(_count, counts)}
    await replace(connection, rate_limits, _KEY, [rows[key] for key in sorted(rows)])


async def load_cooldowns(connection: AsyncConnection, now: int) -> list[CooldownRecord]:
    """The rests that are not over at ``now``, in UTC milliseconds; the longest last.

    A quota group has a row for each of its keys that was refused. A rest whose reason only another
    version knows is left out.
    """
    table = rate_limits.c
    query = (
        select(rate_limits)
        .where(
            table.limit_type == COOLDOWN,
            table.cooldown_until > now,
            table.cooldown_reason.in_([reason.value for reason in ErrorReason]),
        )
        .order_by(table.cooldown_until, table.last_hit_at)
    )
    return [
        CooldownRecord(
            provider=row["provider"],
            model=row["model"],
            key_id=row["key_id"],
            account=row["account"],
            until=row["cooldown_until"],
            reason=row["cooldown_reason"],
            backoff_count=row["backoff_count"],
            at=row["last_hit_at"] or row["last_updated"],
            source=row["source"],
            probe_at=row["probe_at"],
        )
        for row in (await connection.execute(query)).mappings()
    ]


async def load_switches(connection: AsyncConnection) -> list[tuple[str, str]]:
    """Provider and name of each key that an operator took out."""
    table = rate_limits.c
    query = select(table.provider, table.key_id).where(table.limit_type == DISABLED)
    return [(provider, key) for provider, key in await connection.execute(query)]


def _until_lifted(
    rests: Iterable[CooldownRecord | LiftRecord],
) -> list[CooldownRecord | LiftRecord]:
    """The same, each rest no longer than until its lift: so they may come again after that."""
    lifts: dict[tuple[str, ...], int] = {}
    found: list[CooldownRecord | LiftRecord] = []
    for rest in reversed(list(rests)):
        key = "" if rest.account else rest.key_id
        place = (rest.provider, rest.model, key, rest.account)
        if isinstance(rest, LiftRecord):
            lifts[place] = rest.at
        elif place in lifts:
            rest = msgspec.structs.replace(rest, until=min(rest.until, lifts[place]))
        found.append(rest)
    return found[::-1]


@cache
def _longest_rest(dialect: str) -> Insert:
    insert = insert_into(rate_limits, dialect)
    old, new = rate_limits.c, insert.excluded
    longer = or_(old.cooldown_until.is_(None), new.cooldown_until >= old.cooldown_until)
    later = new.last_hit_at > old.last_hit_at  # not so where the same item comes again
    return insert.on_conflict_do_update(
        index_elements=_KEY,
        set_={
            "cooldown_until": _if(longer, new.cooldown_until, old.cooldown_until),
            "cooldown_reason": _if(longer, new.cooldown_reason, old.cooldown_reason),
            "probe_at": _if(longer, new.probe_at, old.probe_at),
            "backoff_count": _if(later, new.backoff_count, old.backoff_count),
            "hit_count": old.hit_count + _if(later, new.hit_count, 0),
            "last_hit_at": _if(later, new.last_hit_at, old.last_hit_at),
            "source": _if(later, new.source, old.source),
            "last_updated": _if(later, new.last_updated, old.last_updated),
        },
    )


def _lift(lifted: LiftRecord) -> Update:
    table = rate_limits.c
    mine = [
        table.provider == lifted.provider,
        table.model == lifted.model,
        table.account == lifted.account,
        table.limit_type == COOLDOWN,
        table.last_hit_at <= lifted.at,
    ]
    if not lifted.account:
        mine.append(table.key_id == lifted.key_id)
    over = {"cooldown_until": lifted.at, "backoff_count": 0, "last_updated": lifted.at}
    return update(rate_limits).where(*mine).values(probe_at=None, **over)


def _row(rest: CooldownRecord) -> dict[str, Any]:
    return {
        "provider": rest.provider,
        "model": rest.model,
        "key_id": rest.key_id,
        "account": rest.account,
        "limit_type": COOLDOWN,
        "cooldown_until": rest.until,
        "cooldown_reason": rest.reason,
        "probe_at": rest.probe_at,
        "backoff_count": rest.backoff_count,
        "hit_count": 1,
        "last_hit_at": rest.at,
        "source": rest.source,
        "last_updated": rest.at,
    }


def _count(count: CountRecord) -> dict[str, Any]:
    return {
        "provider": count.provider,
        "model": count.model,
        "key_id": count.key_id,
        "account": count.account,
        "limit_type": count.limit_type,
        "current_count": count.used,
        "limit_limit": count.limit,
        "remaining": max(0, count.limit - count.used),
        "window_seconds": count.window_seconds,
        "reset_time": count.reset,
        "source": "config",
        "last_updated": count.at,
    }


def _if(condition: ColumnElement[bool], then: Any, otherwise: Any) -> Any:
    return case((condition, then), else_=otherwise)
