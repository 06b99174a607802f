"""One row that the database refuses must not keep the others out, nor come back for ever."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import msgspec
from sqlalchemy.exc import DataError, IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.clock import now_ms
from proxy.store import positions
from proxy.store.address import reason
from proxy.store.positions import Moves
from proxy.store.records import Ledger
from proxy.types import CallRecord

_LARGEST = 2**63 - 1
_MISFITS = (ValueError, OverflowError, TypeError)
_log = logging.getLogger("tollkeeper.store")


async def write(
    ledger: Ledger, engine: AsyncEngine, items: Sequence[object], moves: Moves | None = None
) -> int:
    """Write the items and ``moves`` in one transaction; how many the database will never take.

    Numbers beyond 64 bits and characters that no database stores, which a client or a provider may
    send, are taken out of an item that has them; one that still cannot be stored is left out.
    Raises what else goes wrong, such as a locked database.
    """
    try:
        await ledger.write(engine, items, moves)
        return 0
    except Exception as error:
        if not _is_data_fault(error):
            raise
    lost: Counter[str] = Counter()
    async with engine.begin() as connection:
        await _sift(ledger, connection, items, lost)
        await positions.move(connection, moves or {}, now_ms())
    for what, times in lost.items():
        _log.error("%d %s", times, what)
    return lost.total()


async def _sift(
    ledger: Ledger, connection: AsyncConnection, items: Sequence[object], lost: Counter[str]
) -> None:
    """Write those of the items that can be stored, mended where need be: what cannot is halved
    until each is alone. All of it is one transaction, so each is tried on top of those that were
    written before it, and nothing is left that could fail as a whole."""
    try:
        async with connection.begin_nested():
            await ledger.add(connection, items)
    except Exception as error:
        if not _is_data_fault(error):
            raise
        if len(items) > 1:
            middle = len(items) // 2
            await _sift(ledger, connection, items[:middle], lost)
            await _sift(ledger, connection, items[middle:], lost)
            return
        mended = [mend(item) if isinstance(item, CallRecord) else item for item in items]
        if mended != list(items):
            await _sift(ledger, connection, mended, lost)
            return
        lost[f"{type(items[0]).__name__} cannot be stored: {reason(error)}"] += 1


def mend(record: CallRecord) -> CallRecord:
    """The record with values that fit a database; the same if all do."""
    changes: dict[str, str | None] = {}
    for name in CallRecord.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, str):
            clean = value.replace("\0", "").encode(errors="replace").decode()
            if clean != value:
                changes[name] = clean
        elif isinstance(value, int) and abs(value) > _LARGEST:
            changes[name] = None
    return msgspec.structs.replace(record, **changes) if changes else record


def _is_data_fault(error: Exception) -> bool:
    # The drivers' own names for it: sqlite3 raises Python's errors, or says that it cannot bind,
    # asyncpg ValueErrors of its own, and PostgreSQL answers with SQLSTATE class 22 (data) or 23
    # (integrity).
    if isinstance(error, (IntegrityError, DataError, *_MISFITS)):
        return True
    if not isinstance(error, StatementError) or error.orig is None:
        return False
    state = getattr(error.orig, "sqlstate", None) or ""
    unbound = str(error.orig).startswith("Error binding parameter")
    misfit = isinstance(error.orig, _MISFITS) or isinstance(error.orig.__cause__, ValueError)
    return state[:2] in ("22", "23") or unbound or misfit
