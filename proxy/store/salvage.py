"""One row that the database refuses must not keep the others out, nor come back for ever."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.store.address import reason
from proxy.store.positions import Moves
from proxy.store.records import Ledger
from proxy.types import CallRecord

_LARGEST = 2**63 - 1
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
    good = await _sifted(ledger, engine, items)
    await ledger.write(engine, good, moves)
    return len(items) - len(good)


async def _sifted(ledger: Ledger, engine: AsyncEngine, items: Sequence[object]) -> list[object]:
    """The items that can be stored, mended where need be: those that cannot are halved until each
    is alone."""
    try:
        await ledger.write(engine, items, keep=False)
        return list(items)
    except Exception as error:
        if not _is_data_fault(error):
            raise
        if len(items) > 1:
            middle = len(items) // 2
            first = await _sifted(ledger, engine, items[:middle])
            return first + await _sifted(ledger, engine, items[middle:])
        mended = [mend(item) if isinstance(item, CallRecord) else item for item in items]
        if mended != list(items):
            return await _sifted(ledger, engine, mended)
        _log.error("a %s cannot be stored: %s", type(items[0]).__name__, reason(error))
        return []


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
    # The drivers' own names for it: sqlite3 raises Python's errors, asyncpg ValueErrors of its
    # own, and PostgreSQL answers with SQLSTATE class 22 (data) or 23 (integrity).
    if isinstance(error, IntegrityError | DataError | ValueError | OverflowError | TypeError):
        return True
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    state = getattr(error.orig, "sqlstate", None) or ""
    return state[:2] in ("22", "23") or isinstance(error.orig.__cause__, ValueError)
