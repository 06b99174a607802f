"""``client_keys`` and ``client_secrets``: whom the gateway knows, and the hashes of their keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.clients import Client, Secret
from proxy.store import address
from proxy.store.address import StoreError
from proxy.store.columns import nano_usd
from proxy.store.engine import Store
from proxy.store.sets import CLIENT_LISTS
from proxy.store.tables import client_keys, client_secrets, daily_costs
from proxy.store.upsert import in_turn

_JSON = (*CLIENT_LISTS, "limits")
"""The columns that hold JSON."""
_keys, _hashes = client_keys.c, client_secrets.c


class ClientTable:
    """Reads and changes both tables. Every method raises StoreError where that cannot be done."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def kept(self) -> bool:
        """Whether there is a database to keep anything in."""
        return self._store.keeps

    async def load(self) -> tuple[list[Client], list[Secret]]:
        """All of them, the oldest first."""
        async with self._store.reader() as connection:
            clients = await connection.execute(
                select(client_keys).order_by(_keys.created_at, _keys.id)
            )
            hashes = await connection.execute(select(client_secrets).order_by(_hashes.created_at))
            return (
                [_client(dict(row)) for row in clients.mappings()],
                [Secret(**row) for row in hashes.mappings()],
            )

    async def mark(self) -> tuple[Any, ...]:
        """What is another after every change, and cheap to ask for."""
        query = select(func.count(), func.max(_keys.updated_at))
        async with self._store.reader() as connection:
            return tuple((await connection.execute(query)).one())

    async def create(self, client: Client, secret: Secret) -> None:
        """Add a client with its first key."""
        async with self._changing() as connection:
            at = await _later(connection, client.created_at)
            values = _columns(msgspec.structs.asdict(client)) | {"updated_at": at}
            await connection.execute(insert(client_keys).values(values))
            await connection.execute(insert(client_secrets).values(msgspec.structs.asdict(secret)))

    async def change(self, client_id: str, fields: Mapping[str, Any], now: int) -> bool:
        """Change these fields of a client; False if there is no such client."""
        async with self._changing() as connection:
            if not await _touch(connection, client_id, now):
                return False
            changed = update(client_keys).where(_keys.id == client_id).values(_columns(fields))
            await connection.execute(changed)
        return True

    async def revoke(self, client_id: str, now: int) -> bool:
        """Let none of its keys open anything from ``now`` on; False if there is no such client."""
        async with self._changing() as connection:
            if not await _touch(connection, client_id, now):
                return False
            of_client = (_keys.id == client_id) & _keys.revoked_at.is_(None)
            await connection.execute(update(client_keys).where(of_client).values(revoked_at=now))
        return True

    async def rotate(self, secret: Secret, until: int) -> bool:
        """Add a key; those of before open until ``until`` at the longest. False: no such client."""
        async with self._changing() as connection:
            if not await _touch(connection, secret.client_id, secret.created_at):
                return False
            longer = _hashes.expires_at.is_(None) | (_hashes.expires_at > until)
            of_client = _hashes.client_id == secret.client_id
            await connection.execute(
                update(client_secrets).where(of_client, longer).values(expires_at=until)
            )
            await connection.execute(insert(client_secrets).values(msgspec.structs.asdict(secret)))
        return True

    async def spent(self, client_id: str, since: str) -> int | None:
        """Nano-dollars of a client's calls from the day ``since`` (UTC, ``YYYY-MM-DD``) on; None
        where all that it used has no price."""
        costs = daily_costs.c
        nano = func.sum(nano_usd(costs.total_cost_usd))
        query = select(nano, func.sum(costs.unpriced_calls)).where(
            costs.client_id == client_id, costs.date >= since
        )
        async with self._store.reader() as connection:
            total, unpriced = (await connection.execute(query)).one()
        return None if unpriced and not total else int(total or 0)

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncConnection]:
        engine = await self._store.writer()
        try:
            async with engine.begin() as connection:
                # Else a change could come to be seen after a later one, and ``mark`` stay as it is.
                await in_turn(connection)
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(f"cannot keep the key: {address.reason(error)}") from error


async def _later(connection: AsyncConnection, now: int) -> int:
    """An instant that no client was changed at, so that two changes in a millisecond are two."""
    newest = await connection.scalar(select(func.max(_keys.updated_at))) or 0
    return max(now, newest + 1)


async def _touch(connection: AsyncConnection, client_id: str, now: int) -> bool:
    """Let ``mark`` be another; False if there is no such client."""
    at = await _later(connection, now)
    changed = await connection.execute(
        update(client_keys).where(_keys.id == client_id).values(updated_at=at)
    )
    return changed.rowcount > 0


def _client(row: Mapping[str, Any]) -> Client:
    values = {name: row[name] for name in Client.__struct_fields__}
    told = {name: msgspec.json.decode(row[name]) for name in _JSON}
    return msgspec.convert(values | told, Client)


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: msgspec.json.encode(value).decode() if name in _JSON else value
        for name, value in fields.items()
    }
